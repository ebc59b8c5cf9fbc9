"""Guidance: the look-ahead's gradient against finite differences, norms, and calls that are counted."""

import json

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.probability_flow import ProbabilityFlow
from adjointdpm.metrics import PixelDistance
from adjointdpm.tasks.guide import look_ahead as trajectory
from adjointdpm.tasks.guide.guide import GuideSettings, guide
from adjointdpm.tasks.guide.look_ahead import LookAhead, guided
from adjointdpm.tasks.sampling import noise_of
from tests.tiny.tasks import mixture_sampler

GOAL = PixelDistance(torch.full((3, 1, 1), 0.75, dtype=torch.float64))


def start(sampler, count=3):
    return noise_of(sampler, list(range(count))), sampler.encode(["x"] * count)


def test_a_whole_look_ahead_has_the_exact_gradient_of_the_sampling(monkeypatch):
    """With as many Euler steps as the sampler has, the first move is down the gradient of the whole sampling."""
    sampler = mixture_sampler(4).replace(solver=adp.Euler())
    noise, cond = start(sampler)
    seen = []

    def keep(z, gradient, length):
        seen.append(gradient)
        return z

    monkeypatch.setattr(trajectory, "_moved", keep)
    found = guided(sampler, GOAL, noise, cond, LookAhead(steps=4))
    exact = adp.gradients(sampler, GOAL, noise, cond)
    # The state is the noise over alpha, so the two are proportional.
    ratio = seen[0] / exact.variables["noise"]
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-9)
    assert torch.allclose(found.images, exact.images)
    # Calls: 4 of the sampling, and 4 + 3 + 2 + 1 forward and backward.
    assert found.calls == 4 + 2 * 10


def test_nothing_is_detached_in_one_step_guidance(monkeypatch):
    """The first move's gradient is the slope of the predicted picture's metric, through the network, by differences."""
    sampler = mixture_sampler(4).replace(solver=adp.Euler())
    noise, cond = start(sampler)
    seen = []
    monkeypatch.setattr(trajectory, "_moved", lambda z, gradient, length: seen.append((z, gradient)) or z)
    guided(sampler, GOAL, noise, cond, LookAhead(steps=1))
    (z, gradient), *_ = seen
    flow = ProbabilityFlow(sampler.model.schedule, sampler.model.denoiser)
    grid = adp.grids.TimeGrid.checked(sampler.model.schedule, sampler.times())

    def reached(z):
        with torch.no_grad():
            end = z + (grid[4].tau - grid[0].tau) * flow.velocity(z, grid[0], cond)
            return GOAL(sampler.model.decode(flow.sample(end, grid[4])))

    way = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(0))
    h = 1e-4 * float(z.norm() / way.norm())
    slope = (reached(z + h * way) - reached(z - h * way)) / (2 * h)
    assert torch.allclose((gradient * way).flatten(1).sum(1), slope, rtol=1e-5)


def test_guidance_lowers_the_metric_at_the_norm_of_the_noise():
    z, g = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    moved = trajectory._moved(z, g, 0.3)
    assert torch.allclose(moved.flatten(1).norm(dim=1), z.flatten(1).norm(dim=1))
    assert float(((moved - z) * g).sum()) < 0
    sampler = mixture_sampler(6)
    noise, cond = start(sampler, 4)
    plain = float(GOAL(sampler(noise, cond)).mean().detach())
    for steps in (1, 3):
        found = guided(sampler, GOAL, noise, cond, LookAhead(steps=steps, strength=0.3))
        assert float(GOAL(found.images).mean()) < 0.8 * plain


def test_three_ways_at_equal_calls(tmp_path):
    sampler = mixture_sampler(5)
    settings = GuideSettings(max_train_steps=8, ahead=LookAhead(steps=2), num_validation_images=3)
    found = guide(sampler, GOAL, ["x"], output=tmp_path, settings=settings, quiet=True)
    noise, _ = adp.load_noise(found.artefact)
    first = noise_of(sampler, [adp.optimization.seeds.key(0, "guide", i) for i in range(3)])
    assert torch.allclose(noise.norm(dim=1), first.norm(dim=1))
    assert not torch.allclose(noise, first, rtol=1e-2)
    plain = float(found.ways["no guidance"].values.mean())
    assert float(found.ways["noise"].values.mean()) < 0.9 * plain
    calls = {name: way.calls for name, way in found.ways.items() if name != "no guidance"}
    assert calls["noise"] == 8 * 10 + 5
    assert max(calls.values()) <= 1.25 * min(calls.values())
    assert (
        json.loads((tmp_path / "result.json").read_text())["ways"]["one step"]["calls"] == calls["one step"]
    )
    again = guide(sampler, GOAL, ["x"], output=tmp_path, settings=settings, quiet=True, resume=True)
    for name, way in found.ways.items():
        assert torch.equal(again.ways[name].images, way.images)


def test_settings_out_of_range():
    for value in (float("nan"), float("inf"), 0.0, -1.0):
        with pytest.raises(adp.InputError, match="learning_rate must be above 0"):
            GuideSettings(learning_rate=value)
        with pytest.raises(adp.InputError, match="strength must be above 0"):
            LookAhead(strength=value)
    with pytest.raises(adp.InputError, match="at least 1"):
        LookAhead(steps=0)
    with pytest.raises(adp.InputError, match="first < last"):
        LookAhead(first=0.5, last=0.5)
