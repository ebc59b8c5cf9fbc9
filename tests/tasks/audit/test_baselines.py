"""Baselines have the same number of denoiser calls."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.tasks import Ball, RunOptions
from adjointdpm.tasks.audit import baselines
from adjointdpm.tasks.audit.attack import Objective
from tests.tiny.audits import LABELS, classifier, settings
from tests.tiny.tasks import mixture_sampler


def test_controls_have_the_same_number_of_denoiser_calls(tmp_path):
    """Counted at the denoiser: every sampling of a control is one of 4 calls."""
    sampler, draws = mixture_sampler(4), []
    given = settings(num_starts=1, train_batch_size=10)
    found = adp.tasks.audit(
        sampler, classifier(), LABELS[:1], LABELS[:1], output=tmp_path, settings=given, run=RunOptions(quiet=True),
        judge=None,
    )  # fmt: skip
    costs = found.costs
    assert costs["calls_a_sampling"] == 4
    assert costs["calls_a_step"] == 12
    draws = costs["samplings_a_control"]
    assert draws * costs["calls_a_sampling"] == given.max_train_steps * costs["calls_a_step"]
    assert float(found.controls["random noise"].distances) == pytest.approx(0.6)
    assert float(found.controls["SPSA"].distances.max()) <= 0.6 + 1e-9
    calls = []
    sampler.model.denoiser.register_forward_hook(lambda *_: calls.append(1))
    for control, more in (
        (baselines.random_search, ()),
        (baselines.spsa, (0.25,)),
    ):
        calls.clear()
        objective = Objective(classifier(), torch.tensor([0]), False, 0.2, None, 0.0, torch.zeros(1))
        control(sampler, sampler.encode("x"), found.start, Ball(0.6), objective, draws, 0, 10, *more)
        assert len(calls) == draws * 4
