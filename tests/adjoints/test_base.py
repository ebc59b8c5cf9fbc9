"""Gradients of an adjoint against a loop that is written by hand."""

import itertools

import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import Prediction
from tests.conftest import scaled_linear
from tests.tiny.gradients import gradient, inputs


def test_equal_to_a_hand_written_loop():
    """Plain autograd through DDIM as its paper writes it, sharing nothing but the UNet."""
    found, sampler = gradient(adp.Euler(), Prediction.EPS, adp.Checkpointed())
    noise, cond = inputs(sampler)
    unet, bar = sampler.model.denoiser.network, scaled_linear()
    steps = torch.linspace(999, 0, 7)
    x = noise
    schedule = adp.VPDiscrete(bar)
    for t, after in itertools.pairwise(steps):
        eps_negative, eps_prompt = (
            unet(x, t, encoder_hidden_states=cond[name]).sample
            for name in ("negative_prompt_embeds", "prompt_embeds")
        )
        eps = eps_negative + cond["guidance_scale"] * (eps_prompt - eps_negative)
        a, a_after = (schedule.log_alpha_bar(each.double()).exp() for each in (t, after))
        x = (a_after / a).sqrt() * (x - (1 - a).sqrt() * eps) + (1 - a_after).sqrt() * eps
    weight = torch.linspace(-1, 1, noise.numel(), dtype=torch.float64).view_as(noise)
    truth = torch.autograd.grad((x * weight).sum(), [noise, *cond.values(), *sampler.parameters()])
    for g, exact in zip(found, truth, strict=True):
        torch.testing.assert_close(g, exact, rtol=1e-9, atol=1e-12 * float(exact.abs().max()))
