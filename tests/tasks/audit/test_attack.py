"""The attack's loss and its gradient."""

import math

import pytest
import torch
from torch import nn

from adjointdpm.tasks import Ball, LoopSettings, NoiseClassifier, RunOptions, optimize
from adjointdpm.tasks.audit.attack import Attack, Objective
from adjointdpm.tasks.noise_optimization import Stages
from tests.system.test_bad_input import image_sampler
from tests.tiny.audits import LABELS, Constant, Nearest, audited, classifier, settings
from tests.tiny.tasks import mixture_sampler

# --- known faults


def test_the_ball_does_not_move_with_the_noise(tmp_path):
    """A centre that aliases the noise bounds nothing: steps of the ball's own size would add up."""
    sampler = mixture_sampler(3)
    start = sampler.noise(3, 0)
    kept = start.clone()
    far = Objective(
        classifier(), torch.zeros(3, dtype=torch.long), False, math.inf, None, 0.0, torch.zeros(3)
    )
    task = Attack(Stages((sampler,), (4,), 1), sampler.encode(["x"] * 3), start, Ball(0.1), far)
    seen = []

    def report(step, values):
        seen.append(task.ball.distance(task.variables["noise"].detach(), kept).max())

    sgd = lambda leaves: torch.optim.SGD(leaves, 3.0)  # noqa: E731
    optimize(task, sgd, LoopSettings(steps=5, run=RunOptions(quiet=True, report=report)))
    assert max(seen) == pytest.approx(0.1)
    assert torch.equal(start, kept)
    assert torch.equal(task.centre, kept)


def test_the_loss_is_on_logits():
    """A softmax of these logits is 1 to the last bit; its cross-entropy has no gradient."""
    images = torch.full((1, 3, 1, 1), 0.75, requires_grad=True)
    sure = classifier(Nearest(scale=1e4))
    logits = sure(images)
    entropy = nn.functional.cross_entropy(logits.softmax(1), logits.argmax(1))
    assert float(torch.autograd.grad(entropy, images)[0].norm()) == 0
    objective = Objective(sure, sure(images).argmax(1), False, 1.0, None, 0.0, images.detach())
    gradient = torch.autograd.grad(objective(images, [0]).values.sum(), images)[0]
    assert float(gradient.norm()) > 1


def test_guidance_is_in_the_gradient():
    """Against finite differences, with a guidance scale at which a detached half would be far off."""
    sampler = image_sampler(guidance_scale=6.0)
    cond = sampler.encode(["a", "b"])
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    module = NoiseClassifier(sampler, cond, head)
    noise, d = sampler.noise(2, 1).requires_grad_(), sampler.noise(2, 2)
    (gradient,) = torch.autograd.grad(module(noise)[:, 1].sum(), noise)
    with torch.no_grad():
        up, down = (module(noise + s * 1e-5 * d)[:, 1].sum() for s in (1, -1))
    assert float((gradient * d).sum()) == pytest.approx(float(up - down) / 2e-5, rel=1e-6)


def test_pixels_out_of_range_have_a_gradient():
    images = torch.tensor([1.4, -0.3, 1.1]).view(1, 3, 1, 1).requires_grad_()
    objective = Objective(classifier(), torch.tensor([3]), False, 1e9, None, 0.0, images.detach())
    gradient = torch.autograd.grad(objective(images, [0]).values.sum(), images)[0]
    assert float(gradient[:, :2].abs().min()) > 0


def test_nothing_pulls_the_noise_but_the_loss(tmp_path):
    """No weight decay: where the loss is flat, the noise keeps its bits."""
    with pytest.warns(UserWarning, match="6 of 8 starts are dropped"):
        found = audited(tmp_path, classifier(Constant()), judge=None, features=None,
                        settings=settings(controls=False))  # fmt: skip
    assert torch.equal(found.after.noise, found.start)
    assert found.success.hits == 0
    assert set(found.labels) == {LABELS[0]}


def test_the_likeness_term_keeps_images_near(tmp_path):
    far = audited(tmp_path / "0", settings=settings(keep_weight=0.0, confidence=9.0, controls=False))
    near = audited(tmp_path / "1", settings=settings(keep_weight=30.0, confidence=9.0, controls=False))

    def moved(found):
        return float((found.after.images.float() - found.before.images).square().mean())

    assert moved(near) < 0.8 * moved(far)
