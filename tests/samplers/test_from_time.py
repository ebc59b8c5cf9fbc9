"""The last steps of a sampling are those of the whole one, and what they begin at is noised as the schedule says."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.grids import uniform
from adjointdpm.samplers.from_time import from_time, noised
from tests.tiny.tasks import mixture_sampler


def test_the_first_steps_and_then_the_last_ones_are_the_whole_sampling():
    whole = mixture_sampler(10).replace(solver=adp.Heun())
    schedule, noise = whole.model.schedule, whole.noise(4, 3)
    cond = whole.encode(["x"] * 4)
    split = schedule.end + 0.3 * (schedule.start - schedule.end)
    first = whole.replace(grid=uniform(schedule, 7, end=float(split)))
    last = from_time(whole, 0.3)
    assert len(last.times()) == 3 + 1
    with torch.no_grad():
        at = (first(noise, cond)[:, :2, 0, 0] - 0.5) / 0.25  # the image is 0.5 + 0.25 x
        prior = schedule.prior_std(last.times()[:1])
        assert torch.allclose(last(at / prior, cond), whole(noise, cond), rtol=0, atol=1e-12)


def test_latents_are_noised_each_by_its_own_seed():
    last = from_time(mixture_sampler(10), 0.3, 5)
    assert len(last.times()) == 5 + 1
    latents = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    t, schedule = last.times()[0], last.model.schedule
    found = noised(last, latents, [8, 9]) * schedule.prior_std(t[None])
    for row, seed in enumerate((8, 9)):
        eps = torch.randn(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert torch.allclose(found[row], schedule.alpha(t) * latents[row] + schedule.sigma(t) * eps)
    assert torch.equal(noised(last, latents[1:], [9]), noised(last, latents, [8, 9])[1:])


def test_at_least_one_step_is_taken_and_none_is_refused():
    sampler = mixture_sampler(10)
    assert len(from_time(sampler, 0.01).times()) == 2
    with pytest.raises(adp.InputError, match="at least 1"):
        from_time(sampler, 0.3, 0)
