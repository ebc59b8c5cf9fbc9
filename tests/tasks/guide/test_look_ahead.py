"""A look ahead has the gradient of the rest of the sampling."""

import gc

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.probability_flow import ProbabilityFlow
from adjointdpm.tasks.guide import look_ahead as trajectory
from adjointdpm.tasks.guide.look_ahead import LookAhead, guided
from benchmarks.live import LiveBytes
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


@pytest.mark.parametrize(
    "adjoint", [adp.Checkpointed(), adp.Backprop(), adp.CoarseAdjoint(steps=1), adp.Truncated(1)], ids=repr
)
def test_every_look_ahead_has_the_gradient_of_plain_autograd(monkeypatch, adjoint):
    """In float64, at every state of the trajectory; an adjoint that is not exact gives way to one that is."""
    sampler = mixture_sampler(5).replace(adjoint=adjoint)
    noise, cond = start(sampler)
    seen = []
    monkeypatch.setattr(trajectory, "_moved", lambda z, gradient, length: seen.append((z, gradient)) or z)
    guided(sampler, GOAL, noise, cond, LookAhead(look_ahead=3))
    model = sampler.model
    flow = ProbabilityFlow(model.schedule, model.denoiser)
    grid = adp.grids.TimeGrid.checked(model.schedule, sampler.times())
    assert len(seen) == 5
    for i, (z, gradient) in enumerate(seen):
        path = adp.grids.TimeGrid(model.schedule, grid.times[i:]).resampled(min(3, 5 - i))
        leaf = z.clone().requires_grad_()
        end = leaf
        for j in range(len(path)):
            end = end + (path[j + 1].tau - path[j].tau) * flow.velocity(end, path[j], cond)
        values = GOAL(model.decode(flow.sample(end, path[len(path)])))
        (expected,) = torch.autograd.grad(values.sum(), leaf)
        assert gradient.dtype == torch.float64
        assert torch.allclose(gradient, expected, rtol=1e-12, atol=0)


def test_an_image_at_its_target_is_left_alone_to_the_bit_beside_others_that_are_moved():
    sampler = mixture_sampler(6)
    noise, cond = start(sampler, 8)
    plain = guided(sampler, GOAL, noise, cond, LookAhead(look_ahead=2, target=1e3)).images
    with torch.no_grad():
        assert torch.equal(plain, sampler(noise, cond))

    def alone(i, target):
        one = sampler.encode(["x"])
        return guided(sampler, GOAL, noise[i : i + 1], one, LookAhead(look_ahead=2, target=target))

    # What each image's look-aheads say where nothing is moved; the target lies between those of the images.
    worst = torch.tensor([max(alone(i, 1e3).losses) for i in range(8)])
    target = float(worst.sort().values[3:5].mean())
    found = guided(sampler, GOAL, noise, cond, LookAhead(look_ahead=2, target=target)).images
    assert torch.equal(found[worst <= target], plain[worst <= target])
    for i in torch.nonzero(worst > target).flatten().tolist():
        assert not torch.allclose(found[i], plain[i], rtol=1e-3)
    for i in range(8):
        assert torch.allclose(found[i], alone(i, target).images[0], rtol=1e-10)


@pytest.mark.parametrize("strength", [1e6, 0.01])
def test_a_move_to_a_target_is_that_of_polyak_and_no_longer_than_the_strength(strength):
    """The first state alone is moved, by the gradient of plain autograd; then come the sampler's own steps."""
    sampler = mixture_sampler(4).replace(solver=adp.Euler())
    noise, cond = start(sampler)
    model, target = sampler.model, 0.01
    flow = ProbabilityFlow(model.schedule, model.denoiser)
    grid = adp.grids.TimeGrid.checked(model.schedule, sampler.times())

    def reached(z):
        for i in range(4):
            z = z + (grid[i + 1].tau - grid[i].tau) * flow.velocity(z, grid[i], cond)
        return model.decode(flow.sample(z, grid[4]))

    leaf = flow.initial(noise, grid[0]).requires_grad_()
    values = GOAL(reached(leaf))
    (g,) = torch.autograd.grad(values.sum(), leaf)
    norm = g.norm(dim=1)
    assert (values > target).all()
    most = strength * float(grid[0].tau) * 2**0.5  # the root of the number of latents
    length = ((values - target) / norm).clamp(max=most)
    assert (length == most).all() if strength < 1 else (length < most).all()
    expected = reached((leaf - (length / norm)[:, None] * g).detach())
    ahead = LookAhead(look_ahead=4, strength=strength, last=0.1, target=target)
    assert torch.allclose(guided(sampler, GOAL, noise, cond, ahead).images, expected.detach(), rtol=1e-10)


def test_no_slope_is_no_move():
    """A metric above its target that no pixel changes leaves the images as they are, without a NaN."""
    sampler = mixture_sampler(4)
    noise, cond = start(sampler)
    ahead = LookAhead(look_ahead=2, target=0.5)
    found = guided(sampler, lambda images: 7 + 0 * images.mean((1, 2, 3)), noise, cond, ahead)
    with torch.no_grad():
        assert torch.equal(found.images, sampler(noise, cond))


def test_a_look_ahead_holds_the_memory_of_one_graph_whatever_its_length():
    """At the bundled size, by the account and by following every storage: no more than 1.1 times a sampling's."""
    sampler = adp.load_bundled("emoji", steps=8, adjoint=adp.Checkpointed())
    noise, cond = sampler.noise(1), sampler.encode("a cat")

    def whole():
        leaf = noise.clone().requires_grad_()
        sampler(leaf, cond).mean().backward()

    def peak(work):
        work()
        gc.collect()
        with LiveBytes() as live:
            work()
        return live.peak

    most = peak(whole)
    accounted = sampler.stats.bytes_saved
    for n in (1, 2, 4, 8):
        found = []
        ahead = LookAhead(look_ahead=n, last=0.1)  # before the first step alone

        def look(ahead=ahead, found=found):
            found.append(guided(sampler, lambda x: x.mean((1, 2, 3)), noise, cond, ahead))

        assert peak(look) <= 1.1 * most
        assert 0.5 * accounted < found[-1].bytes_saved <= 1.1 * accounted
        assert found[-1].calls == 8 + 2 * n
