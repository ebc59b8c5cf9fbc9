"""A decoder that a budget cannot hold is refused, and diffusers' own tiling is differentiated exactly."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.pipelines.decoding import encoded_image


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


def test_an_image_becomes_the_latents_that_decode_to_it():
    """The mode of the encoder, scaled as the pipeline scales it; with the gradient of plain autograd."""
    model = adp.load_bundled("emoji", steps=2).model
    vae, image = model.vae, torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    given = image.clone().requires_grad_()
    found = model.encode_image(given)
    by_hand = vae.encode(2 * given - 1).latent_dist.mode() * vae.config.scaling_factor
    assert torch.equal(found, by_hand)
    (gradient,) = torch.autograd.grad(found.square().sum(), given)
    assert float(gradient.norm()) > 0
    with torch.no_grad():
        latents = adp.load_bundled("emoji", steps=8).latents(
            torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(1)),
            adp.load_bundled("emoji", steps=8).encode("a cat"),
        )
        shown = model.decode(latents)
        again = model.decode(model.encode_image(shown))
    assert float((again - shown).abs().mean()) < 0.05


def test_latents_that_are_scaled_in_another_way_are_refused():
    model = adp.load_bundled("emoji", steps=2).model
    image = torch.rand(1, 3, 64, 64)
    with pytest.raises(adp.InputError, match="packs its latents"):
        encoded_image(model.vae, image, (4, 4, 4))
    model.vae.register_to_config(latents_mean=[0.0])
    with pytest.raises(adp.InputError, match="no single scaling_factor"):
        model.encode_image(image)
    assert torch.equal(encoded_image(None, image, (3, 64, 64)), 2 * image - 1)
