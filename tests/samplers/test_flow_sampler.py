"""A network of one's own as a sampler: one channel, no decoder, no text encoder, no parameters, integer labels."""

import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm.flow.denoisers import Denoiser, Prediction
from adjointdpm.flow.model import DiffusionModel
from tests.conftest import BareModel, scaled_linear, unet_sampler

ADJOINTS = [adp.Checkpointed(), adp.Checkpointed(budget="1GiB"), adp.CoarseAdjoint(), adp.Reversible()]


class Network(nn.Module):
    """A one-channel image, its time and a class label."""

    def __init__(self, classes=0):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.labels = nn.Embedding(classes, 8) if classes else None

    def forward(self, x, t, label=None):
        h = self.first(torch.cat([x, (t / 999 * torch.ones_like(x)).to(x.dtype)], 1))
        return self.last((h if label is None else h + self.labels(label)[:, :, None, None]).tanh())


class Own(Denoiser):
    prediction = Prediction.V

    def __init__(self, network, masks=()):
        super().__init__()
        self.network, self.masks = network, frozenset(masks)

    def forward(self, x, t, cond):
        return self.network(x, t, *cond.values())


class ClosedForm(Denoiser):
    """Of standard normal data: v = 0 x, and eps = sigma x."""

    prediction = Prediction.X0

    def forward(self, x, t, cond):
        return 0.5 * x


class Grey(DiffusionModel):
    """One channel, and latents that are the image."""

    def __init__(self, denoiser, schedule=None):
        super().__init__()
        self.schedule = schedule or adp.VPDiscrete(scaled_linear())
        self.denoiser = denoiser
        self.latent_shape = self.image_shape = (1, 8, 8)

    def encode(self, prompts, negative, guidance_scale):
        return adp.Cond()

    def decode(self, latents, run=adp._types.direct):
        return latents / 2 + 0.5

    def decoder_weights(self):
        return []


def sampler_of(denoiser, adjoint=None, schedule=None):
    solver = adp.Coupled(adp.Euler()) if isinstance(adjoint, adp.Reversible) else adp.Heun()
    return adp.FlowSampler(Grey(denoiser, schedule), solver=solver, steps=4, adjoint=adjoint)


def gradient(denoiser, adjoint, cond=None):
    sampler = sampler_of(denoiser, adjoint)
    noise = sampler.noise(2).requires_grad_()
    image = sampler(noise, cond or sampler.encode(["", ""]))
    assert image.shape == (2, 1, 8, 8)
    return torch.autograd.grad(image.square().sum(), [noise, *denoiser.parameters()])


def same_as_backprop(make, adjoint, cond=None):
    """Of the same solver: `Reversible` has one of its own."""
    found = gradient(make(), adjoint, cond)
    sampler = sampler_of(make(), adjoint).replace(adjoint=adp.Backprop())
    noise = sampler.noise(2).requires_grad_()
    image = sampler(noise, cond or adp.Cond())
    exact = torch.autograd.grad(image.square().sum(), [noise, *sampler.model.denoiser.parameters()])
    for g, e in zip(found, exact, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-3, atol=1e-4 * float(e.abs().max()))
    assert float(found[0].abs().min()) > 0


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_one_channel_and_class_labels(adjoint):
    same_as_backprop(lambda: Own(Network()), adjoint)
    labels = adp.Cond({"label": torch.tensor([3, 1])})
    same_as_backprop(lambda: Own(Network(5), masks=["label"]), adjoint, labels)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_a_denoiser_without_parameters(adjoint):
    same_as_backprop(ClosedForm, adjoint)
    assert sampler_of(ClosedForm()).noise(2).dtype == torch.float32


def test_the_tasks_functions_take_it():
    metric = lambda image: image.mean((1, 2, 3))  # noqa: E731
    sampler = sampler_of(Own(Network()))
    found = adp.gradients(sampler, metric, sampler.noise(1), sampler.encode(""), ["noise", "weights"])
    assert float(found.variables["noise"].norm()) > 0
    assert adp.compare(sampler, metric, repeats=1).rows


def labelled(label):
    return sampler_of(Own(Network(5), masks=["label"])), adp.Cond({"label": label})


class Halves(Own):
    def forward(self, x, t, cond):
        return self.network(x, t)[..., :4]


class Pairs(Own):
    def forward(self, x, t, cond):
        return self.network(x, t), None


class Undecodable(Grey):
    def decode(self, latents, run=adp._types.direct):
        return torch.from_numpy(latents.detach().numpy()) / 2 + 0.5


class Absent(Own):
    def forward(self, x, t, cond):
        return self.network(x, t, cond["label"])


class Numpy(Own):
    def forward(self, x, t, cond):
        return torch.from_numpy(self.network(x, t).numpy())


def meaningless():
    denoiser = Own(Network())
    denoiser.prediction = "epsilon"
    return denoiser


def unwrapped():
    model = Grey(Own(Network()))
    model.denoiser = Network()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: (sampler_of(Own(Network(5))), labelled(torch.tensor([1]))[1]),
            "declares in its attribute `masks`",
        ),
        (lambda: labelled(torch.tensor([7])), r"shapes do not fit .*out of range"),
        (lambda: labelled(torch.tensor([1, 2])), "for a batch of 2 and the noise for 1"),
        (
            lambda: (sampler_of(Halves(Network())), adp.Cond()),
            r"its input's shape \(1, 1, 8, 8\), but returned \(1, 1, 8",
        ),
        (lambda: (sampler_of(Pairs(Network())), adp.Cond()), "returned tuple"),
        (lambda: (sampler_of(Absent(Network(5))), adp.Cond()), "no 'label'; it holds no tensors"),
        (lambda: (sampler_of(Numpy(Network())), adp.Cond()), "to numpy inside its forward pass"),
        (lambda: (sampler_of(meaningless()), adp.Cond()), r"one of Prediction\.EPS"),
        (
            lambda: (adp.FlowSampler(unwrapped()), adp.Cond()),
            r"Grey\.denoiser must be a Denoiser, but is Network",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(make, message):
    noise = torch.zeros(1, 1, 8, 8, requires_grad=True)
    with pytest.raises(adp.InputError, match=message) as error:
        _refused(make, noise)
    assert "\n" not in str(error.value)


def _refused(make, noise):
    sampler, cond = make()
    sampler(noise, cond)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (
            torch.zeros(1, 1, 8, 8, dtype=torch.float64),
            r"dtypes do not fit \(the Own \(torch\.float32\), given x",
        ),
        (torch.zeros(0, 1, 8, 8), r"noise must be \(batch, 1, 8, 8\), but is \(0,"),
        (torch.full((1, 1, 8, 8), torch.nan), "noise holds NaN"),
    ],
)
def test_noise_that_does_not_fit(noise, message):
    with pytest.raises(adp.InputError, match=message):
        sampler_of(Own(Network()))(noise, adp.Cond())


class Invertible(BareModel):
    def encode_image(self, images):
        return images


def invertible(**settings):
    sampler = unet_sampler(Prediction.EPS)
    model = Invertible(sampler.model.schedule, sampler.model.denoiser, sampler.model.latent_shape)
    return adp.FlowSampler(model, **settings)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_the_noise_of_an_image_makes_that_image_again(guidance):
    sampler = invertible(steps=10, solver=adp.Heun(), guidance_scale=guidance)
    images = torch.randn(2, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cond = sampler.encode(["", ""])
    with torch.no_grad():
        noise = sampler.invert(images, cond, tolerance=1e-8)
        stats = sampler.stats
        back = sampler(noise, cond)
    assert float((back - images).norm() / images.norm()) < 1e-8
    assert stats.drift < 1e-8
    assert stats.nfe_forward >= 10 * 2 * 2  # each step at least once, and the sampling that is the check


def test_the_gradient_of_an_inversion_reaches_the_image_and_the_prompt():
    sampler = invertible(steps=3, solver=adp.Euler(), guidance_scale=2.0)
    images = torch.randn(1, 2, 4, 4, dtype=torch.float64).requires_grad_()
    cond = sampler.encode([""]).requires_grad_()
    loss = lambda images, cond: sampler.invert(images, cond, tolerance=1e-9).square().sum()  # noqa: E731
    loss(images, cond).backward()
    step = 1e-5 * torch.randn_like(images)
    embeds = cond["prompt_embeds"]
    move = 1e-5 * torch.randn_like(embeds)
    with torch.no_grad():
        change = (loss(images + step, cond) - loss(images - step, cond)) / 2
        torch.testing.assert_close(change, (images.grad * step).sum(), rtol=1e-4, atol=0)
        change = (
            loss(images, cond.replace(prompt_embeds=embeds + move))
            - loss(images, cond.replace(prompt_embeds=embeds - move))
        ) / 2
        torch.testing.assert_close(change, (embeds.grad * move).sum(), rtol=1e-3, atol=1e-12)


def test_the_pair_of_a_coupled_inversion_is_exact_and_differentiable():
    sampler = invertible(steps=5, solver=adp.Coupled(adp.Heun()), guidance_scale=5.0)
    images, cond = torch.randn(1, 2, 4, 4, dtype=torch.float64).requires_grad_(), sampler.encode([""])
    noise, back = sampler.invert_coupled(images, cond)
    torch.testing.assert_close(back(noise, cond), images, rtol=1e-8, atol=1e-8)
    (gradient,) = torch.autograd.grad(back(noise, cond).sum(), images)
    torch.testing.assert_close(gradient, torch.ones_like(images), rtol=1e-6, atol=1e-6)
    with pytest.raises(adp.InputError, match="second copy"):
        back.replace(adjoint=adp.Reversible())(noise, cond)


def plain(sampler, nulls, noise, prompt):
    """A guided sampling by Euler from two calls of the network a step, with plain autograd."""
    schedule, network, w = sampler.model.schedule, sampler.network, sampler.guidance_scale
    nodes = list(schedule.at(sampler.times()))
    y = noise / nodes[0].alpha
    for now, then, null in zip(nodes[:-1], nodes[1:], nulls, strict=True):
        x, t = now.alpha * y, now.t.float()
        against, towards = (
            network(x, t, encoder_hidden_states=each, return_dict=False)[0] for each in (null, prompt)
        )
        y = y + (then.tau - now.tau) * (against + w * (towards - against))
    return nodes[-1].alpha * y


@pytest.mark.parametrize(
    "adjoint",
    [adp.Checkpointed(), adp.Backprop(), adp.CoarseAdjoint(), adp.Checkpointed(budget="1GiB")],
    ids=repr,
)
def test_gradients_through_null_texts_are_those_of_plain_autograd(adjoint):
    sampler = invertible(steps=3, solver=adp.Euler(), guidance_scale=2.0, adjoint=adjoint)
    images = torch.randn(2, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cond = sampler.encode(["", ""])
    noise, back = sampler.invert_null_text(images, cond, iterations=3, tolerance=5.0)
    assert not torch.equal(*back.model.denoiser.nulls[1:])
    weights = torch.linspace(-1, 1, 32, dtype=torch.float64).view(2, 4, 4)
    found = []
    for way in ("sampler", "plain"):
        z, prompt = noise.clone().requires_grad_(), cond["prompt_embeds"].flip(1).clone().requires_grad_()
        if way == "sampler":
            image = back(z, cond.replace(prompt_embeds=prompt))
        else:
            image = plain(sampler, back.model.denoiser.nulls, z, prompt)
        found.append((image, *torch.autograd.grad((image.tanh() * weights).sum(), [z, prompt])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    embeds = cond.replace(negative_prompt_embeds=cond["negative_prompt_embeds"].clone().requires_grad_())
    with pytest.raises(
        adp.InputError, match=r"no denoiser call depends on cond\['negative_prompt_embeds'\]"
    ):
        back(noise, embeds).sum().backward()


def test_the_original_sampler_keeps_its_own_denoiser():
    sampler = invertible(steps=2, solver=adp.Euler(), guidance_scale=2.0)
    images, cond = torch.randn(1, 2, 4, 4, dtype=torch.float64), sampler.encode([""])
    before = sampler(images, cond)
    _, back = sampler.invert_null_text(images, cond, iterations=1, tolerance=5.0)
    assert torch.equal(sampler(images, cond), before)
    assert not torch.equal(back(images, cond), before)
    with pytest.raises(adp.InputError, match="call it on the sampler that this one came from"):
        back.invert_null_text(images, cond, tolerance=1e-9)


def test_null_texts_lead_the_bundled_model_back_at_high_guidance(emoji):
    """A replay at guidance 4 of the noise that is the image's at guidance 1 does not."""
    sampler = emoji.replace(solver=adp.Euler(), steps=10)
    cond = sampler.encode("a cat on a blue background")
    with torch.no_grad():
        free = sampler.replace(guidance_scale=1.0)
        alone = free.encode("a cat on a blue background")
        image = free.replace(steps=20)(sampler.noise(seed=1), alone).clamp(0, 1)
        latents = sampler.model.encode_image(image)
        noise, back = sampler.invert_null_text(image, cond, iterations=12, tolerance=0.2)
        stats = sampler.stats
        ends = [back.latents(noise, cond), sampler.latents(noise, cond), free.latents(noise, alone)]
    optimized, replayed, pivot = (float((each - latents).norm() / latents.norm()) for each in ends)
    assert optimized == pytest.approx(stats.drift, rel=1e-3)
    assert replayed > 5 * optimized
    assert pivot < 0.01
    assert float(noise.std()) == pytest.approx(1.0, abs=0.2)
    assert stats.nfe_backward <= 12 * 10


def test_an_inversion_that_does_not_converge_says_what_to_do():
    sampler = invertible(steps=1, solver=adp.Euler(), guidance_scale=3000.0)
    images, cond = torch.randn(1, 2, 4, 4, dtype=torch.float64), sampler.encode([""])
    with pytest.raises(adp.InversionError, match=r"step 0 of 1 .* residual .* lower guidance scale"):
        sampler.invert(images, cond)


def test_what_cannot_be_inverted_is_refused_before_any_call():
    sampler = invertible(steps=2, solver=adp.EulerMaruyama())
    images, cond = torch.randn(1, 2, 4, 4, dtype=torch.float64), sampler.encode([""])
    with pytest.raises(adp.InputError, match="adds noise in its steps"):
        sampler.invert(images, cond)
    sampler = sampler.replace(solver=adp.Euler())
    with pytest.raises(adp.InputError, match="resized"):
        sampler.invert(images[..., :3], cond)
    with pytest.raises(adp.InputError, match="tolerance"):
        sampler.invert(images, cond, tolerance=0.0)
    with pytest.raises(adp.InputError, match="invert_coupled is for Coupled"):
        sampler.invert_coupled(images, cond)
    with pytest.raises(adp.InputError, match="guidance_scale > 1"):
        sampler.replace(guidance_scale=1.0).invert_null_text(images, cond)
    with pytest.raises(adp.InputError, match="at the end of a step"):
        sampler.replace(solver=adp.Heun()).invert_null_text(images, cond)
    with pytest.raises(adp.InputError, match="iterations"):
        sampler.invert_null_text(images, cond, iterations=0)
    with pytest.raises(adp.InputError, match="resized"):
        sampler.invert_null_text(images[..., :3], cond)
    with pytest.raises(adp.InputError, match="has no gradient, but images requires"):
        sampler.invert_null_text(images.clone().requires_grad_(), cond)
    with pytest.raises(adp.InputError, match="override encode_image"):
        unet_sampler(Prediction.EPS, steps=2, solver=adp.Euler()).invert(images, cond)
