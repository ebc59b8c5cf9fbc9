"""The gradient of a batch, whole and in parts."""

import pytest
import torch

from adjointdpm.tasks import (
    LoopSettings,
    RunOptions,
    optimize,
)
from tests.tiny.loops import sgd
from tests.tiny.tasks import Shift, run


def test_the_gradient_does_not_depend_on_its_parts():
    one, parts = run(None, Shift), run(None, Shift, accumulation=4)
    assert float((one.best["shift"] - parts.best["shift"]).abs().max()) < 1e-12
    assert one.losses == pytest.approx(parts.losses, rel=1e-12)


def test_the_step_is_the_optimizers_on_the_mean_over_the_batch():
    task = Shift()
    run_ = optimize(task, sgd(0.05), LoopSettings(steps=1, validation_steps=1, run=RunOptions(quiet=True)))
    other = Shift()
    other.variables["shift"].requires_grad_()
    mean = other.losses(0, list(range(6))).values.mean()
    (gradient,) = torch.autograd.grad(mean, other.variables["shift"])
    assert run_.losses[0] == pytest.approx(float(mean.detach()), rel=1e-12)
    moved = task.variables["shift"].detach()
    assert float((moved + 0.05 * gradient).abs().max()) < 1e-12
