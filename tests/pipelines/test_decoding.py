"""Decoding in tiles is what diffusers does, with its exact gradient."""

import pytest
import torch

import adjointdpm as adp


def test_a_decoder_that_does_not_fit_decodes_in_tiles():
    """As diffusers would, exactly differentiated, below what is held for the whole; and refused below that."""
    whole = adp.load_bundled("emoji", steps=2, guidance_scale=1.0, solver=adp.Euler())
    noise, cond = whole.noise(1).requires_grad_(), whole.encode("a cat")
    picture = whole(noise, cond)
    decoder, states = whole.stats.decoder, whole.stats.states
    tiled = whole.replace(adjoint=adp.Checkpointed(budget=states + int(0.7 * decoder)))
    with pytest.warns(UserWarning, match="tiles of 8 latents"):
        pieces = tiled(noise, cond)
    assert tiled.stats.tile == 8
    assert tiled.stats.bytes_saved <= states + int(0.7 * decoder)
    assert tiled.stats.predicted == pytest.approx(tiled.stats.bytes_saved, rel=0.1)
    cotangent = torch.randn_like(pieces)
    (a,) = torch.autograd.grad((pieces * cotangent).sum(), noise)
    vae = whole.model.vae
    vae.tile_latent_min_size, vae.tile_sample_min_size = 8, 32
    vae.enable_tiling()
    theirs = whole(noise, cond)
    assert torch.equal(pieces, theirs)
    assert 0 < float((pieces - picture).detach().abs().mean()) < 0.05
    (b,) = torch.autograd.grad((theirs * cotangent).sum(), noise)
    assert float((a - b).norm() / b.norm()) < 1e-5
    with pytest.raises(adp.InputError, match="decoder's backward pass needs"):
        whole.replace(adjoint=adp.Checkpointed(budget=states + int(0.1 * decoder)))(noise, cond)
