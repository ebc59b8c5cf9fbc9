"""A look ahead has the gradient of the rest of the sampling."""

import torch

import adjointdpm as adp
from adjointdpm.flow.probability_flow import ProbabilityFlow
from adjointdpm.tasks.guide import look_ahead as trajectory
from adjointdpm.tasks.guide.look_ahead import LookAhead, guided
from tests.tiny.guides import GOAL, start
from tests.tiny.tasks import mixture_sampler


def test_a_whole_look_ahead_has_the_exact_gradient_of_the_sampling(monkeypatch):
    """With as many Euler steps as the sampler has, the first move is down the gradient of the whole sampling."""
    sampler = mixture_sampler(4).replace(solver=adp.Euler())
    noise, cond = start(sampler)
    seen = []

    def keep(z, gradient, length):
        seen.append(gradient)
        return z

    monkeypatch.setattr(trajectory, "_moved", keep)
    found = guided(sampler, GOAL, noise, cond, LookAhead(look_ahead=4))
    exact = adp.gradients(sampler, GOAL, noise, cond)
    # The state is the noise over alpha, so the two are proportional.
    ratio = seen[0] / exact.variables["noise"]
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-9)
    assert torch.allclose(found.images, exact.images)
    # Calls: 4 of the sampling, and 4 + 3 + 2 + 1 forward and backward.
    assert found.calls == 4 + 2 * 10


def test_nothing_is_detached_in_one_step_guidance(monkeypatch):
    """The first move's gradient is the slope of the predicted image's metric, through the network, by differences."""
    sampler = mixture_sampler(4).replace(solver=adp.Euler())
    noise, cond = start(sampler)
    seen = []
    monkeypatch.setattr(trajectory, "_moved", lambda z, gradient, length: seen.append((z, gradient)) or z)
    guided(sampler, GOAL, noise, cond, LookAhead(look_ahead=1))
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
