"""A call that is made again gives what it gave, or is an error; tensors taken out of it have their gradient."""

import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm.adjoints.repetition import Checksum, Repeated, rounding
from adjointdpm.flow.denoisers import Denoiser, Prediction
from tests.conftest import BareModel, scaled_linear, tiny_pipeline, unet_sampler
from tests.tiny.gradients import inputs, loss_of

RECOMPUTING = [adp.Checkpointed(), adp.Checkpointed(keep=1), adp.CoarseAdjoint(), adp.Reversible()]


class Remembering(Denoiser):
    """A layer that keeps something of its calls, in one of several ways."""

    prediction = Prediction.EPS

    def __init__(self, way):
        super().__init__()
        self.layer = nn.Linear(3, 3, dtype=torch.float64)
        self.way, self.known, self.generator = way, {}, torch.Generator().manual_seed(0)

    def forward(self, x, t, cond):
        shift = cond["shift"]
        out = torch.tanh(self.layer(x) + shift)
        match self.way:
            case "noise":
                return out + 1e-4 * torch.randn(out.shape, generator=self.generator, dtype=out.dtype)
            case "answers":  # the same values, without their graph
                known, key = out.detach() + 0 * x, (float(t), x.detach().sum().item())
                out = self.known.get(key, out)
                self.known[key] = known
            case "projection":  # of the prompt, as caches of keys and values do
                first = "shift" not in self.known
                self.known.setdefault("shift", shift.detach().clone())
                return torch.tanh(self.layer(x) + (shift if first else self.known["shift"]))
            case "stored":
                self.known["map"] = out
        return out


def remembering(way, adjoint):
    torch.manual_seed(0)
    model = BareModel(adp.VPDiscrete(scaled_linear()), Remembering(way), (3,))
    solver = adp.Coupled(adp.Euler()) if isinstance(adjoint, adp.Reversible) else adp.Euler()
    sampler = adp.FlowSampler(model, solver=solver, steps=4, adjoint=adjoint)
    generator = torch.Generator().manual_seed(1)
    noise, shift = (torch.randn(2, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    return sampler, noise.requires_grad_(), adp.Cond({"shift": shift.requires_grad_()})


@pytest.mark.parametrize("adjoint", RECOMPUTING, ids=repr)
@pytest.mark.parametrize("way", ["noise", "answers", "projection"])
def test_a_denoiser_that_answers_differently_when_called_again_raises(way, adjoint):
    sampler, noise, cond = remembering(way, adjoint)
    with pytest.raises(adp.AdjointDPMError, match=r"Backprop\(\)"):
        loss_of(sampler, noise, cond).backward()


@pytest.mark.parametrize("adjoint", RECOMPUTING, ids=repr)
def test_a_map_that_the_network_stores_is_refused_where_it_would_have_no_gradient(adjoint):
    sampler, noise, cond = remembering("stored", adjoint)
    with pytest.raises(adp.InputError, match="keeps a tensor of the denoiser's graph"):
        sampler(noise, cond)


def attention_loss(run, network):
    """A metric of the image and of the attention's outputs, which a forward hook takes out."""
    taken = []
    blocks = [m for m in network.modules() if hasattr(m, "set_processor")]
    handles = [block.register_forward_hook(lambda m, args, out: taken.append(out)) for block in blocks]
    image = run()
    assert len(handles) == len(blocks) < len(taken)
    return image.square().sum() + sum(each.square().sum() for each in taken)


def test_attention_maps_of_a_hook_have_their_gradient_in_a_flow_sampler():
    found = []
    for adjoint in (adp.Checkpointed(), adp.Backprop()):
        sampler = unet_sampler(steps=3, adjoint=adjoint)
        noise, cond = inputs(sampler)
        loss = attention_loss(lambda: sampler.latents(noise, cond), sampler.model.denoiser)  # noqa: B023
        found.append(torch.autograd.grad(loss, [noise, cond["prompt_embeds"]]))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=0)
    alone = unet_sampler(steps=3).latents(noise, cond).square().sum()
    (of_image,) = torch.autograd.grad(alone, noise)
    assert float((found[0][0] - of_image).norm() / of_image.norm()) > 1e-3, "the maps count"


def test_attention_maps_of_a_hook_have_their_gradient_in_a_pipeline():
    found = []
    for adjoint in (adp.Checkpointed(), adp.Backprop()):
        pipe = tiny_pipeline(dtype=torch.float64)
        noise = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        embeds = torch.ones(1, 3, 6, dtype=torch.float64)
        noise.requires_grad_()
        with adp.differentiable(pipe, adjoint) as call:
            sizes = {"height": 8, "width": 8, "num_inference_steps": 3, "guidance_scale": 1.0}
            run = lambda: call(prompt_embeds=embeds, latents=noise, output_type="pt", **sizes).images  # noqa: B023, E731
            loss = attention_loss(run, pipe.unet)
        found.append(torch.autograd.grad(loss, noise)[0])
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(3,), (2, 4, 8, 8), (1, 5000), (2, 3, 4096, 5)])
def test_a_checksum_sees_a_change_of_its_size(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    change = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for size in (1e-9, 1e-4, 1.0):
        away = size * x.norm() / change.norm() * change
        seen = Checksum(x).distance(Checksum(x + away))
        assert size / 10 < seen < 10 * size
    last = x.clone()
    last.view(-1)[-1] += x.norm()  # one element
    assert Checksum(x).distance(Checksum(last)) > 0.05
    assert Checksum(x).distance(Checksum(x.clone())) == 0


def test_rounding_is_that_of_the_coarsest_dtype():
    tensors = [torch.ones(1), torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.long)]
    assert rounding(tensors) == torch.finfo(torch.float32).eps ** 0.7
    assert (
        rounding([*tensors, torch.ones(1, dtype=torch.bfloat16)]) == torch.finfo(torch.bfloat16).eps ** 0.7
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rounding(tensors) == torch.finfo(torch.bfloat16).eps ** 0.7


def test_what_a_repeated_call_raises_names_the_call():
    answers = iter([torch.ones(3)])
    call = Repeated(lambda: next(answers), "denoiser call 2", 1e-6)
    call()
    with pytest.raises(adp.RecomputationError, match=r"denoiser call 2 was recomputed.*StopIteration"):
        call()
