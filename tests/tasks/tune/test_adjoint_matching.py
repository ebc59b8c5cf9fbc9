"""Adjoint matching: its gradient at the untuned weights, its minimum, and that rows do not depend on their batch."""

import math

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import GaussianMixture
from adjointdpm.flow.grids import log_snr
from adjointdpm.metrics import Chroma
from adjointdpm.solvers.step_noise import NoiseOfItems
from adjointdpm.tasks.sampling import network_of
from adjointdpm.tasks.tune.adjoint_matching import AdjointMatching, strata
from adjointdpm.tasks.tune.trainable_weights import Lora, Subset
from adjointdpm.tasks.tune.tune_to_metric import TuneToMetric
from tests.tiny.tunes import PROMPTS, sampler

SEEDS = (11, 12)


def gradient_of(values, leaves):
    return torch.autograd.grad(values.sum(), list(leaves.values()))


def moved(leaves):
    with torch.no_grad():
        for i, leaf in enumerate(leaves.values()):
            leaf.add_(0.05 * torch.randn(leaf.shape, generator=torch.Generator().manual_seed(i)))


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("adjoint", [adp.Backprop(), adp.Checkpointed()])
def test_at_the_untuned_weights_its_gradient_is_that_of_the_metric_through_all_steps(adjoint, stochastic):
    """Plain autograd through the whole sampling, memoryless or the ODE's by Euler, is the same sum of products."""
    ours = sampler(steps=5, adjoint=adjoint)
    leaves = Subset(("*.to_k.weight", "conv_out.*")).attach(network_of(ours), 0)
    start = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    noise, cond = ours.noise(2, 3), ours.encode(PROMPTS)
    loss = AdjointMatching(scale=7.0, steps=99, stochastic=stochastic)
    found = gradient_of(loss(ours, Chroma(), noise, cond, leaves, start, SEEDS, 0), leaves)
    solver = adp.Ancestral(noise=NoiseOfItems(seeds=SEEDS)) if stochastic else adp.Euler()
    plainly = ours.replace(solver=solver, adjoint=adp.Backprop())
    plain = gradient_of(7.0 * Chroma()(plainly(noise, cond)), leaves)
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-4 * float(b.abs().max()))
    assert all(float(each.abs().max()) > 0 for each in plain)


def test_away_from_them_it_is_plain_autograd_of_the_regression_at_fixed_targets():
    """The whole loss is written out again with ordinary autograd and two copies of the network."""
    ours, untuned = sampler(steps=4), sampler(steps=4)
    leaves = Subset(("*.to_k.weight",)).attach(network_of(ours), 0)
    start = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    moved(leaves)
    noise, cond = ours.noise(2, 3), ours.encode(PROMPTS)
    values = AdjointMatching(3.0, 99)(ours, Chroma(), noise, cond, leaves, start, SEEDS, 0)
    found = gradient_of(values, leaves)

    solver = adp.Ancestral(noise=NoiseOfItems(seeds=SEEDS))
    new, old = (each.replace(solver=solver).problem(noise, cond) for each in (ours, untuned))
    grid = new.grid

    def step(ivp, z, k):
        return solver.step(lambda s, t: (ivp.velocity(s[0], t),), (z,), grid, k, ())[0][0]

    states = [new.initial]
    for k in range(4):
        states.append(step(new, states[-1], k).detach())
    z = states[-1].requires_grad_()
    (a,) = torch.autograd.grad(3.0 * Chroma()(ours.decode(new.flow.sample(z, grid[4]))).sum(), z)
    total = torch.zeros(2)
    for k in (3, 2, 1, 0):
        z = states[k].detach().requires_grad_()
        now, then = grid[k], grid[k + 1]
        std = (
            then.sigma * (1 - (then.sigma * now.alpha / (then.alpha * now.sigma)) ** 2).sqrt() / then.scale
        )
        control = (step(new, z.detach(), k) - step(old, z, k).detach()) / std
        total = total + (control + std * a).square().flatten(1).sum(1) / 2
        (a,) = (torch.autograd.grad((step(old, z, k) - z).flatten(), z, a.flatten())[0] + a,)
    torch.testing.assert_close(values, total, rtol=1e-4, atol=0)
    for one, other in zip(found, gradient_of(total, leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


class Gaussian(adp.DiffusionModel):
    """One Gaussian of two dimensions, whose mean is trained; "images" are its samples."""

    def __init__(self):
        super().__init__()
        self.schedule = adp.VPLinear()
        self.denoiser = GaussianMixture(
            self.schedule, torch.tensor([[0.3, -0.2]], dtype=torch.float64), 0.5
        )
        self.latent_shape, self.image_shape = (2,), (1, 1, 2)

    def decode(self, latents, run=None):
        return latents[:, None, None]


def test_its_minimum_is_the_distribution_tilted_by_the_metric():
    """N(m, s^2) times exp(lambda b x) is N(m + s^2 lambda b, s^2); the loss there is 0 but for the step's square."""
    model, b, scale = Gaussian(), torch.tensor([1.0, -0.5], dtype=torch.float64), 2.0
    means = model.denoiser.means
    start = {"means": means.detach().clone()}

    def found(steps, shift):
        ours = adp.FlowSampler(model, steps=steps, grid=log_snr)
        with torch.no_grad():
            means.copy_(start["means"] + shift * scale * b)
        values = AdjointMatching(scale, 10**6)(
            ours, lambda images: -(images[:, 0, 0] @ b), ours.noise(8, 1).double(), adp.Cond(), {"means": means}, start,
            tuple(range(8)), 0,
        )  # fmt: skip
        return values.mean().detach(), torch.autograd.grad(values.mean(), means)[0].norm()

    ratios = []
    for steps in (40, 160):
        untuned, short, optimum, beyond = (found(steps, shift) for shift in (0, 0.2, 0.25, 0.3))
        assert optimum[1] < 13 / steps * untuned[1]
        assert min(short[0], beyond[0]) > optimum[0] or steps == 40
        ratios.append(float(optimum[0] / untuned[0]))
    assert math.log(ratios[0] / ratios[1]) / math.log(4) == pytest.approx(2, abs=0.2)


class Controlled(GaussianMixture):
    """The exact denoiser of one Gaussian, plus the optimal control of a linear metric times what is trained."""

    def __init__(self, schedule, mean, std):
        super().__init__(schedule, mean, std)
        self.control = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x, t, cond):
        (time,) = self.schedule.at(t.reshape(1))
        rho = time.sigma / time.alpha
        return super().forward(x, t, cond) + rho * self.std / (self.std**2 + rho**2).sqrt() * self.control


def test_the_minimum_for_the_ode_is_its_optimal_control():
    """With L(x) = -<b, x>: a = -lambda b s / sqrt(s^2 + rho^2), from the Gaussian's flow, and eps - eps_0 = rho a.

    The loss and its gradient vanish there as the steps shrink, the loss with their square.
    """
    model, b, scale = Gaussian(), torch.tensor([1.0, -0.5], dtype=torch.float64), 2.0
    model.denoiser = Controlled(model.schedule, torch.tensor([[0.3, -0.2]], dtype=torch.float64), 0.5)
    control = model.denoiser.control
    start = {"control": control.detach().clone()}

    def found(steps, share):
        ours = adp.FlowSampler(model, steps=steps, grid=log_snr)
        with torch.no_grad():
            control.copy_(-share * scale * b)
        values = AdjointMatching(scale, 10**6, stochastic=False)(
            ours, lambda images: -(images[:, 0, 0] @ b), ours.noise(8, 1).double(), adp.Cond(), {"control": control},
            start, tuple(range(8)), 0,
        )  # fmt: skip
        return values.mean().detach(), torch.autograd.grad(values.mean(), control)[0].norm()

    ratios = []
    for steps in (80, 320):
        untuned, optimum = found(steps, 0), found(steps, 1)
        assert optimum[1] < 22 / steps * untuned[1]
        ratios.append(float(optimum[0] / untuned[0]))
    assert math.log(ratios[0] / ratios[1]) / math.log(4) == pytest.approx(2, abs=0.2)
    assert min(found(320, 0.8)[0], found(320, 1.2)[0]) > optimum[0]


def test_a_row_does_not_depend_on_its_batch():
    ours = sampler(steps=4)
    leaves = Lora(2).attach(network_of(ours), 0)
    moved(leaves)
    task = TuneToMetric(ours, Chroma(), PROMPTS, leaves, seed=4, matching=AdjointMatching(1.0, 2))
    both, one = task.losses(3, [0, 1]).values, task.losses(3, [1]).values
    torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=0)
    assert float(both.detach().min()) > 0


def test_one_step_of_each_part_is_drawn():
    for draw in range(20):
        found = strata(10, 4, draw)
        assert [int(each >= bound) for each, bound in zip(found, (0, 2, 5, 7), strict=True)] == [1] * 4
        assert [int(each <= bound) for each, bound in zip(found, (2, 4, 7, 9), strict=True)] == [1] * 4
    assert strata(3, 4, 0) == [0, 1, 2]
    assert {tuple(strata(10, 1, draw)) for draw in range(200)} == {(each,) for each in range(10)}
