"""A sampling by a multistep solver, inverted as a whole."""

import pytest
import torch
from torch import nn

import adjointdpm as adp


class Smooth(nn.Module):
    """Nearly the noise of standard normal data, and a smooth part that couples the pixels."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(1, 1, 3, padding=1, dtype=torch.float64)
        with torch.no_grad():
            self.mix.weight.copy_(torch.linspace(-0.6, 0.6, 9, dtype=torch.float64).view(1, 1, 3, 3))

    def forward(self, x, t, shift):
        return 0.6 * x + 0.3 * (self.mix(x) + shift[:, :, None, None]).tanh()


class Small(adp.DiffusionModel):
    def __init__(self):
        super().__init__()
        self.schedule = adp.VPLinear()
        self.denoiser = adp.NetworkDenoiser(Smooth(), adp.Prediction.EPS, ["shift"])
        self.latent_shape = self.image_shape = (1, 3, 3)


MULTISTEP = [adp.DPMSolverPP(2), adp.AdamsBashforth(2), adp.AdamsBashforth(3)]


def problem(solver, steps=8):
    torch.manual_seed(0)
    sampler = adp.FlowSampler(Small(), solver=solver, steps=steps)
    images = torch.rand(2, 1, 3, 3, dtype=torch.float64)
    return sampler, images, adp.Cond({"shift": torch.randn(2, 1, dtype=torch.float64)})


@pytest.mark.parametrize("solver", MULTISTEP, ids=repr)
@torch.no_grad()
def test_the_noise_of_an_image_makes_that_image_again(solver):
    sampler, images, cond = problem(solver)
    noise = sampler.invert(images, cond, tolerance=1e-9)
    stats = sampler.stats
    latents = 2 * images - 1
    away = (sampler.latents(noise, cond) - latents).flatten(1).norm(dim=1)
    assert bool((away <= 1e-9 * latents.flatten(1).norm(dim=1)).all())
    assert stats.drift <= 1e-9
    assert stats.nfe_forward >= 8 + 2 * 8  # a sampling, and the flow backwards


def test_gradients_of_images_and_conditioning_are_those_of_finite_differences():
    sampler, images, cond = problem(adp.DPMSolverPP(2))
    shift = cond["shift"].requires_grad_()
    weights = torch.linspace(-1, 1, 9, dtype=torch.float64).view(1, 1, 3, 3)

    def loss(images, shift):
        return (sampler.invert(images, adp.Cond({"shift": shift}), tolerance=1e-11) * weights).sum()

    gradients = torch.autograd.grad(loss(images.requires_grad_(), shift), [images, shift])
    with torch.no_grad():
        for i, at in enumerate((images, shift)):
            move, ends = 1e-5 * torch.randn_like(at), []
            for sign in (1, -1):
                pair = [images, shift]
                pair[i] = at + sign * move
                ends.append(loss(*pair))
            change = (ends[0] - ends[1]) / 2
            torch.testing.assert_close(change, (gradients[i] * move).sum(), rtol=1e-4, atol=1e-10)


def test_the_gradient_of_weights_is_that_of_a_finite_difference():
    sampler, images, cond = problem(adp.DPMSolverPP(2), steps=8)
    weight = sampler.network.mix.weight
    loss = lambda: sampler.invert(images, cond, tolerance=1e-11).square().sum()  # noqa: E731
    (gradient,) = torch.autograd.grad(loss(), weight)
    values = []
    with torch.no_grad():
        for step in (1e-5, -1e-5):
            weight[0, 0, 1, 2] += step
            values.append(float(loss()))
            weight[0, 0, 1, 2] -= step
    torch.testing.assert_close(
        float(gradient[0, 0, 1, 2]), (values[0] - values[1]) / 2e-5, rtol=1e-4, atol=1e-6
    )


def test_the_adjoint_of_the_sampler_does_not_change_the_gradient():
    sampler, images, cond = problem(adp.DPMSolverPP(2), steps=8)
    images.requires_grad_()
    found = []
    for adjoint in (adp.Checkpointed(), adp.Truncated(last=1)):
        noise = sampler.replace(adjoint=adjoint).invert(images, cond, tolerance=1e-9)
        found.append(torch.autograd.grad(noise.sum(), images)[0])
    assert torch.equal(*found)


def test_an_inversion_that_does_not_converge_says_what_to_do():
    sampler, images, cond = problem(adp.DPMSolverPP(2), steps=1)
    with torch.no_grad():
        sampler.network.mix.weight.mul_(1e4)
    with pytest.raises(
        adp.InversionError,
        match=r"did not converge to tolerance = 1e-09: .* leaves a residual of .*Heun\(\)",
    ):
        sampler.invert(images, cond, tolerance=1e-9)


def test_images_of_another_size_are_refused_before_any_call():
    sampler, images, cond = problem(adp.DPMSolverPP(2))
    with pytest.raises(
        adp.InputError, match=r"makes images of \(1, 3, 3\), but \(2, 1, 3, 2\) are to be inverted"
    ):
        sampler.invert(images[..., :2], cond)
    assert sampler.stats.nfe_forward == 0
