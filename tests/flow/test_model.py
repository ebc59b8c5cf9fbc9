"""A model of one's own: what it takes and refuses, and the gradient through it."""

import pytest
import torch

import adjointdpm as adp


class Network(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(channels, channels, 3, padding=1).double()

    def forward(self, x, t, *prompt):
        shift = sum(each.mean((1, 2))[:, None, None, None] for each in prompt)
        return self.layer(x + shift) * (1 + t / 1000).view(-1, 1, 1, 1)


class Model(adp.DiffusionModel):
    def __init__(self, channels, takes=()):
        super().__init__()
        self.schedule = adp.VPLinear()
        self.denoiser = adp.NetworkDenoiser(Network(channels), adp.Prediction.EPS, takes)
        self.latent_shape = self.image_shape = (channels, 4, 4)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels_has_the_gradient_of_finite_differences(channels):
    sampler = adp.FlowSampler(Model(channels), steps=5)
    noise = sampler.noise(1, 3).double().requires_grad_()
    (found,) = torch.autograd.grad(sampler(noise, adp.Cond()).square().sum(), noise)
    way, h = torch.randn(noise.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), 1e-6
    with torch.no_grad():
        up, down = (float(sampler(noise + s * h * way, adp.Cond()).square().sum()) for s in (1, -1))
    assert float((found * way).sum()) == pytest.approx((up - down) / (2 * h), rel=1e-7)


def test_a_model_decodes_pixels_of_minus_one_to_one():
    latents = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1)
    assert Model(3).decode(latents).flatten().tolist() == [0.0, 0.5, 1.0]


def test_guidance_is_linear_in_its_scale():
    denoiser = Model(2, ["prompt_embeds"]).denoiser
    x, t = torch.randn(1, 2, 4, 4, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    prompt, negative = (torch.randn(1, 3, 6, dtype=torch.float64) for _ in range(2))

    def guided(w):
        scale = torch.tensor(w, dtype=torch.float64)
        names = {"prompt_embeds": prompt, "negative_prompt_embeds": negative, "guidance_scale": scale}
        return denoiser(x, t, adp.Cond(names))

    alone = denoiser(x, t, adp.Cond({"prompt_embeds": prompt}))
    against = denoiser(x, t, adp.Cond({"prompt_embeds": negative}))
    torch.testing.assert_close(guided(1.0), alone)
    torch.testing.assert_close(guided(0.0), against)
    torch.testing.assert_close(guided(3.0), against + 3 * (alone - against))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: s.encode("a cat"), "takes no prompts, but got 'a cat'"),
        (lambda s: s(s.noise(1), adp.Cond()), "takes prompt_embeds, which the conditioning does not hold"),
    ],
)
def test_what_a_model_does_not_take_is_refused(call, says):
    with pytest.raises(adp.InputError, match=says):
        call(adp.FlowSampler(Model(2, ["prompt_embeds"]), steps=2))


def test_the_decoders_weights_are_those_outside_the_denoiser():
    model = Model(2)
    assert model.decoder_weights() == []
    model.decoder = torch.nn.Conv2d(2, 3, 1)
    assert [id(w) for w in model.decoder_weights()] == [id(w) for w in model.decoder.parameters()]
    assert model.decoders() == {"decoder": model.decoder}


def test_a_copy_with_another_denoiser_leaves_the_model_alone():
    model = Model(2)
    own, other = model.denoiser, adp.NetworkDenoiser(Network(2), adp.Prediction.V)
    copy = model.with_denoiser(other)
    assert copy.denoiser is other
    assert model.denoiser is own
    assert dict(model.named_modules())["denoiser"] is own
    assert copy.schedule is model.schedule
    assert copy.latent_shape == model.latent_shape
