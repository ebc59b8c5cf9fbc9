"""Half-precision weights, autocast, dropout, compiled networks and offloading, with float32 states."""

import pytest
import torch

import adjointdpm as adp
from tests.tiny.families import of

BIT_EQUAL = (adp.Backprop(), adp.Checkpointed())


def gradients(sampler, family, adjoint, weights=()):
    noise, cond = family.noise().requires_grad_(), family.cond().requires_grad_()
    leaves = [noise, *(cond[name] for name in cond.differentiable), *weights]
    latents = sampler.replace(adjoint=adjoint).latents(noise, cond)
    assert latents.dtype == torch.float32
    return torch.autograd.grad(latents.square().sum(), leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_half_weights_with_float32_states_and_gradients(name, dtype):
    family = of(name)
    exact = gradients(family.sampler(steps=3), family, adp.Backprop())
    pipe = family.make().to(dtype)
    sampler = family.sampler(pipe, steps=3, guidance_scale=3.0)
    found = [gradients(sampler, family, adjoint) for adjoint in BIT_EQUAL]
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
        assert a.dtype == torch.float32
    assert torch.cosine_similarity(found[0][0].flatten(), exact[0].flatten(), dim=0) > 0.98
    read = sampler.encode("a cat", negative="dog")
    assert all(tensor.dtype == torch.float32 for tensor in read.values())
    assert sampler(family.noise(), read).dtype == torch.float32


def test_rescaling_saves_small_cotangents_from_float16():
    """A loss of size 1e-9: its products vanish in half precision, unless they are scaled on the way."""
    family = of("sd")
    sampler = family.sampler(family.make().to(torch.float16), steps=2, guidance_scale=3.0)
    found = []
    for adjoint, size in (
        (adp.Backprop(), 1.0),
        (adp.CoarseAdjoint(), 1e-9),
        (adp.CoarseAdjoint(rescale=True), 1e-9),
    ):
        cond = family.cond().requires_grad_()
        latents = sampler.replace(adjoint=adjoint).latents(family.noise(), cond)
        loss = size * latents.square().sum()
        found.append(torch.autograd.grad(loss, cond["prompt_embeds"])[0] / size)
    exact, lost, kept = found
    assert float((kept - exact).norm()) < 0.02 * float(exact.norm())
    assert float((lost - exact).norm()) > 0.5 * float(exact.norm())


@pytest.mark.parametrize("trajectory", ["stored", "resolved"])
def test_autocast_is_entered_again_in_the_backward_pass(trajectory):
    """The backward pass is called outside of the user's autocast, and must not compute otherwise for it."""
    family = of("sd")
    sampler = family.sampler(steps=3)
    seen = []
    unet = sampler.model.denoiser.network
    unet.conv_in.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    adjoint = adp.Continuous(trajectory=trajectory)
    found = []
    for inside in (True, False):
        noise = family.noise().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = sampler.replace(adjoint=adjoint).latents(noise, family.cond()).square().sum()
            if inside:
                found.append(torch.autograd.grad(loss, noise)[0])
        if not inside:
            found.append(torch.autograd.grad(loss, noise)[0])
    assert torch.equal(*found)
    assert set(seen) == {torch.bfloat16}
    seen.clear()
    gradients(sampler, family, adjoint)
    assert set(seen) == {torch.float32}


def test_autocast_checkpointed_is_backprop():
    family = of("sd")
    sampler = family.sampler(steps=3)
    with torch.autocast("cpu", torch.bfloat16):
        found = [gradients(sampler, family, adjoint) for adjoint in BIT_EQUAL]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_dropout_is_replayed_through_the_pipelines_call():
    family = of("sd")
    pipe = family.make()
    for module in pipe.unet.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    sampler, found, after = family.sampler(pipe, steps=3), [], []
    for adjoint in BIT_EQUAL:
        torch.manual_seed(6)
        found.append(gradients(sampler, family, adjoint))
        after.append(torch.rand(1))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert torch.equal(*after)
    torch.manual_seed(7)
    assert not torch.equal(gradients(sampler, family, adp.Backprop())[0], found[0][0])


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_network():
    family = of("sd")
    exact = gradients(family.sampler(steps=2), family, adp.Backprop())
    pipe = family.make()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    sampler = family.sampler(pipe, steps=2)
    for adjoint in BIT_EQUAL:
        for a, e in zip(gradients(sampler, family, adjoint), exact, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-6 * float(e.abs().max()))


def test_weights_that_are_offloaded_between_calls():
    """accelerate's hooks leave placeholders behind, whose gradient would be lost: a clear refusal."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is an optional dependency")
    family = of("sd")
    pipe = family.make()
    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    with pytest.raises(adp.InputError, match="enable_model_cpu_offload"):
        family.sampler(pipe)
