"""A decoder that a budget cannot hold is refused, and diffusers' own tiling is differentiated exactly."""

import pytest
import torch

import adjointdpm as adp


def test_a_decoder_that_does_not_fit_is_refused_and_fits_in_the_users_own_tiles():
    """No plan changes the image. With diffusers' tiling on, the gradient is that of the tiled image, in less memory."""
    whole = adp.load_bundled("emoji", steps=2, guidance_scale=1.0, solver=adp.Euler())
    noise, cond = whole.noise(1).requires_grad_(), whole.encode("a cat")
    image = whole(noise, cond)
    decoder, states = whole.stats.decoder, whole.stats.states
    budget = adp.Checkpointed(budget=states + int(0.9 * decoder))
    with pytest.raises(adp.InputError, match=r"enable_tiling\(\)"):
        whole.replace(adjoint=budget)(noise, cond)
    vae = whole.model.vae
    vae.tile_latent_min_size, vae.tile_sample_min_size = 8, 32
    vae.enable_tiling()
    tiled = whole(noise, cond)
    assert 0 < float((tiled - image).detach().abs().mean()) < 0.05
    cotangent = torch.randn_like(tiled)
    (a,) = torch.autograd.grad((tiled * cotangent).sum(), noise)
    plain = whole.replace(adjoint=adp.Backprop())(noise, cond)
    (b,) = torch.autograd.grad((plain * cotangent).sum(), noise)
    assert torch.equal(plain, tiled)
    assert float((a - b).norm() / b.norm()) < 1e-5
