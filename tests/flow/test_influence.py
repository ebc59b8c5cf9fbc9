"""Tensors without influence, cut graphs and operators without a derivative are refused, in every adjoint."""

import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm.flow.denoisers import Denoiser, Prediction
from tests.conftest import Mixture, scaled_linear, unet_sampler
from tests.tiny.families import of
from tests.tiny.gradients import inputs

ADJOINTS = [
    adp.Backprop(),
    adp.Checkpointed(),
    adp.Checkpointed(keep=2),
    adp.Truncated(last=2),
    adp.CoarseAdjoint(),
    adp.Reversible(),
]
QUANTIZING = pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is", "ignore:torch.quantize_per_tensor"
)
EACH = pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)


@torch.library.custom_op("adjointdpm_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


class Layers(nn.Module):
    """A network with a residual connection, around which its graph goes on."""

    def __init__(self, middle):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(2, 8), middle, nn.Linear(8, 2)

    def forward(self, x, *shifts):
        h = self.first(x) + sum(shift.sum(1, keepdim=True) for shift in shifts)
        return self.last((h + self.middle(h)).tanh())


class Function(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x)


class Own(Denoiser):
    prediction = Prediction.EPS

    def __init__(self, network, names=("shift",), when=lambda t: True):
        super().__init__()
        self.network, self.names, self.when = network, names, when

    def forward(self, x, t, cond):
        given = [cond[name] for name in self.names] if self.when(float(t)) else []
        return self.network(x, *given)


def gradient(denoiser, adjoint):
    """Of noise, where the adjoint has one, and conditioning."""
    solver = adp.Coupled(adp.Euler()) if isinstance(adjoint, adp.Reversible) else adp.Euler()
    model = Mixture(adp.VPDiscrete(scaled_linear()), denoiser, (2,))
    sampler = adp.FlowSampler(model, solver=solver, steps=4, adjoint=adjoint)
    noise = torch.ones(1, 2, requires_grad=not isinstance(adjoint, adp.Truncated))
    cond = adp.Cond({"shift": torch.ones(1, 3, requires_grad=True)})
    sampler.latents(noise, cond).square().sum().backward()
    return noise.grad, cond["shift"].grad


@EACH
def test_what_has_an_influence_has_a_gradient(adjoint):
    noise, shift = gradient(Own(Layers(nn.Linear(8, 8))), adjoint)
    assert float(shift.abs().min()) > 0
    assert noise is None or float(noise.abs().min()) > 0


@EACH
def test_a_tensor_that_no_call_depends_on(adjoint):
    with pytest.raises(adp.InputError, match=r"no denoiser call depends on cond\['shift'\]"):
        gradient(Own(Layers(nn.Linear(8, 8)), names=()), adjoint)
    cut = Function(lambda h: h)
    with pytest.raises(adp.InputError, match=r"no denoiser call depends on cond\['shift'\]"):
        gradient(Own(Layers(cut), when=lambda t: False), adjoint)


@pytest.mark.parametrize("adjoint", [ADJOINTS[1], ADJOINTS[4]], ids=repr)
def test_one_that_only_a_later_call_depends_on(adjoint):
    """As where guidance acts in an interval: its gradient is plain backpropagation's."""
    denoiser = Own(Layers(nn.Linear(8, 8)), when=lambda t: t < 500)
    exact, found = gradient(denoiser, adp.Backprop()), gradient(denoiser, adjoint)
    for g, e in zip(found, exact, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-6 * float(e.abs().max()))
        assert float(e.abs().max()) > 0


def without_graph(h):
    with torch.no_grad():
        return h * 2


@EACH
@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x.detach(),
        lambda x: torch.from_numpy(x.detach().numpy()),
        without_graph,
        lambda x: x.detach() * torch.ones(1, requires_grad=True),
    ],
    ids=["detach", "numpy", "no_grad", "connected elsewhere"],
)
def test_a_network_that_detaches_its_input(adjoint, cut):
    network = nn.Sequential(Function(cut), Layers(nn.Identity()))
    with pytest.raises(adp.InputError, match="does not depend on its input"):
        gradient(Own(network, names=()), adjoint)


def quantized():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 8)), {nn.Linear}, torch.qint8)


@QUANTIZING
@EACH
@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (quantized, r"network\.middle\.0 \(Linear\) computes with quantized\.linear_dynamic"),
        (
            lambda: Function(lambda h: (8 * h).to(torch.int8).float()),
            r"middle \(Function\) computes with .*\.to:",
        ),
        (lambda: Function(doubled), r"middle \(Function\) computes with adjointdpm_tests"),
        (lambda: Function(lambda h: torch.histc(h, 8)[None]), r"computes with torch\.histc"),
    ],
    ids=["quantized", "int8", "custom_op", "histc"],
)
def test_an_operator_without_a_derivative(adjoint, middle, message):
    with pytest.raises(adp.InputError, match=message):
        gradient(Own(Layers(middle())), adjoint)


def in_way(way, pipe):
    """One sampling of a pipeline of Stable Diffusion's kind, by each of the three ways in."""
    family = of("sd")
    noise, cond = family.noise().requires_grad_(), family.cond()
    if way == "FlowSampler":
        return family.sampler(pipe, steps=2)(noise, cond)
    if way == "PipelineSampler":
        return adp.PipelineSampler(pipe, steps=2)(noise, cond)
    with adp.differentiable(pipe) as call:
        return call(**family.arguments(cond), latents=noise, num_inference_steps=2, output_type="latent")


WAYS = pytest.mark.parametrize("way", ["differentiable", "PipelineSampler", "FlowSampler"])


@QUANTIZING
@WAYS
def test_a_quantized_layer_of_a_pipeline(way):
    pipe = of("sd").make()
    layers = pipe.unet.mid_block.attentions[0].transformer_blocks[0].ff.net
    whole = nn.Sequential(layers[2])
    layers[2] = torch.ao.quantization.quantize_dynamic(whole, {nn.Linear}, torch.qint8)[0]
    with pytest.raises(
        adp.InputError, match=r"ff\.net\.2 \(Linear\) computes with quantized\.linear_dynamic"
    ):
        in_way(way, pipe)


@QUANTIZING
def test_a_quantized_layer_beyond_the_calls_without_a_graph():
    """`Truncated` makes the first ones for their value alone."""
    family, pipe = of("sd"), of("sd").make()
    layers = pipe.unet.mid_block.attentions[0].transformer_blocks[0].ff.net
    layers[2] = torch.ao.quantization.quantize_dynamic(nn.Sequential(layers[2]), {nn.Linear}, torch.qint8)[
        0
    ]
    sampler = adp.PipelineSampler(pipe, steps=3, adjoint=adp.Truncated(last=1))
    with pytest.raises(adp.InputError, match=r"ff\.net\.2 \(Linear\)"):
        sampler(family.noise(), family.cond().requires_grad_())


@WAYS
def test_a_pipeline_without_a_vae(way):
    pipe = of("sd").make()
    pipe.register_modules(vae=None)
    if way == "differentiable":
        assert in_way(way, pipe).images.requires_grad  # latents
    else:
        with pytest.raises(adp.InputError, match="has no VAE"):
            in_way(way, pipe)


@WAYS
def test_a_pipelines_network_that_detaches_its_input(way):
    """The scheduler's own path to the latents goes on, so that nothing is missing from outside."""
    pipe = of("sd").make()
    pipe.unet.register_forward_pre_hook(lambda module, args: (args[0].detach(), *args[1:]))
    with pytest.raises(adp.InputError, match="does not depend on its input"):
        in_way(way, pipe)


@pytest.mark.parametrize("name", ["guidance_scale", "eta"])
def test_a_number_that_a_pipeline_ignores(name):
    """A guidance scale without negative embeddings, and an argument of schedulers that are not asked."""
    family = of("sd")
    sampler = family.sampler(steps=2).replace(guidance_scale=1.0)
    cond = family.cond(guided=False).replace(**{name: torch.tensor(3.0, requires_grad=True)})
    with pytest.raises(adp.InputError, match=rf"no denoiser call depends on cond\['{name}'\]"):
        sampler(family.noise(), cond)
    sampler(family.noise(), cond.map(torch.Tensor.detach))  # no gradient is asked for it


def test_looking_changes_no_bit():
    """And costs no call: the same sampling where nothing is left to look for."""
    sampler = unet_sampler(steps=3, solver=adp.Euler())
    noise, cond = inputs(sampler)
    image = sampler.latents(noise, cond)
    calls = sampler.stats.nfe_forward
    with torch.no_grad():
        assert torch.equal(image, sampler.latents(noise, cond))
    assert sampler.stats.nfe_forward == calls == 3


@pytest.mark.parametrize("name", ["to", "type_as", "expand_as", "view_as", "reshape_as"])
def test_a_tensor_that_is_only_an_example_of_a_dtype_or_shape_is_no_lost_gradient(name):
    class Timed(torch.nn.Module):
        def forward(self, x, t):
            steps = torch.linspace(0, 1, x.numel(), dtype=x.dtype).reshape(x.shape)
            return x * getattr(steps + t.mean().to(x.dtype), name)(x)

    class Model(adp.DiffusionModel):
        def __init__(self):
            super().__init__()
            self.schedule, self.latent_shape, self.image_shape = adp.VPLinear(), (1, 2, 2), (1, 2, 2)
            self.denoiser = adp.NetworkDenoiser(Timed(), adp.Prediction.EPS)

    sampler = adp.FlowSampler(Model(), steps=2)
    noise = sampler.noise(1).requires_grad_()
    assert float(torch.autograd.grad(sampler(noise, adp.Cond()).sum(), noise)[0].abs().max()) > 0
