"""LoRA, half-precision weights, autocast, dropout, compiled networks, offloading and strings in stock pipelines."""

import accelerate
import peft
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module

import adjointdpm as adp
from adjointdpm.pipelines.call_signature import own_call
from tests.tiny.families import WORDS, of

WAYS = pytest.mark.parametrize("way", ["differentiable", "PipelineSampler"])
EXACT = (adp.Backprop(), adp.Checkpointed())
STEPS = 3


def image(way, pipe, adjoint, noise, cond, **more):
    """One image through one of the two ways; `plain` is the undecorated call under autograd."""
    if way == "PipelineSampler":
        return adp.PipelineSampler(pipe, steps=STEPS, adjoint=adjoint, arguments=more)(noise, cond)
    given = {**cond, "latents": noise, "num_inference_steps": STEPS, "output_type": "pt", **more}
    if way == "plain":
        return own_call(type(pipe))(pipe, **given).images
    with adp.differentiable(pipe, adjoint) as call:
        return call(**given).images


def gradients(way, pipe, adjoint=None, weights=(), **more):
    """Of the noise, both embeddings, the guidance scale and some weights."""
    noise, cond = of("sd").noise().requires_grad_(), of("sd").cond().requires_grad_()
    loss = image(way, pipe, adjoint, noise, cond, **more).clamp(0, 1).square().sum()
    return torch.autograd.grad(loss, [noise, *cond.values(), *weights])


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@WAYS
def test_lora_weights_get_plain_autograds_gradient_alone(way):
    pipe = of("sd").make()
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    lora = [weight for weight in pipe.unet.parameters() if weight.requires_grad]
    truth = gradients("plain", pipe, weights=lora)
    assert all(float(g.abs().max()) > 0 for g in truth)
    for adjoint in EXACT:
        assert same(gradients(way, pipe, adjoint, lora), truth)
    assert len(lora) == 2 * 2 * sum(
        "attn" in n and n.endswith("to_v") for n, _ in pipe.unet.named_modules()
    )


@WAYS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_weights_with_float32_states_and_gradients(way, dtype):
    exact = gradients(way, of("sd").make(), adp.Checkpointed())
    pipe, states, shown = of("sd").make().to(dtype), set(), set()
    pipe.unet.register_forward_pre_hook(lambda unet, args: shown.add(args[0].dtype))

    def look(pipe, i, t, tensors):
        states.add(tensors["latents"].dtype)
        return {}

    found = [gradients(way, pipe, adjoint, callback_on_step_end=look) for adjoint in EXACT]
    assert same(*found)
    assert {g.dtype for g in found[0]} == states == {torch.float32}
    assert shown == {dtype}
    for g, e in zip(found[0][:3], exact, strict=False):
        assert torch.cosine_similarity(g.flatten(), e.flatten(), dim=0) > 0.98


def test_prompts_of_half_precision_encoders_are_float32_variables():
    sampler = adp.PipelineSampler(of("sd").make().to(torch.bfloat16), steps=2)
    cond = sampler.encode("a cat", "dog")
    assert {tensor.dtype for tensor in cond.values()} == {torch.float32}
    assert sampler(sampler.noise(1), cond).dtype == torch.float32


@WAYS
def test_autocast_is_entered_again_in_the_backward_pass(way):
    pipe, seen, found = of("sd").make(), set(), []
    pipe.unet.conv_in.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    for adjoint in EXACT:
        noise, cond = of("sd").noise().requires_grad_(), of("sd").cond()
        with torch.autocast("cpu", torch.bfloat16):
            loss = image(way, pipe, adjoint, noise, cond).float().square().sum()
        found.append(torch.autograd.grad(loss, noise))  # outside
    assert same(*found)
    assert found[0][0].dtype == torch.float32
    assert seen == {torch.bfloat16}


@WAYS
def test_dropout_is_replayed(way):
    pipe, found, after = of("sd").make(), [], []
    for module in pipe.unet.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    weights = list(pipe.unet.parameters())
    for adjoint in EXACT:
        torch.manual_seed(6)
        found.append(gradients(way, pipe, adjoint, weights))
        after.append(torch.rand(1))
    assert same(*found)
    assert torch.equal(*after)
    if way == "differentiable":
        torch.manual_seed(6)
        assert same(gradients("plain", pipe, weights=weights), found[1])
        torch.manual_seed(7)
        assert not same(gradients(way, pipe, adp.Backprop(), weights), found[1])


@pytest.mark.filterwarnings("ignore")  # dynamo's
def test_a_compiled_network():
    exact = gradients("plain", of("sd").make())
    pipe = of("sd").make()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    for way in ("differentiable", "PipelineSampler"):
        for a, e in zip(gradients(way, pipe, adp.Checkpointed()), exact, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-6 * float(e.abs().max()))


class Away(ModelHook):
    """Offloading where there is one device: what is not in use has zeros for weights."""

    def __init__(self, module, before):
        self.module, self.before = module, before
        self.kept = [weight.data for weight in module.parameters()]
        self.leave()

    def leave(self):
        for weight in self.module.parameters():
            weight.data = torch.zeros_like(weight)

    def pre_forward(self, module, *args, **kwargs):
        if self.before is not None:
            self.before.leave()
        for weight, data in zip(self.module.parameters(), self.kept, strict=True):
            weight.data = data
        return args, kwargs


@WAYS
def test_a_module_that_its_hooks_fetch_is_fetched_again_for_the_backward_pass(way):
    pipe = of("sd").make()
    truth, before = gradients(way, pipe, adp.Checkpointed()), None
    for part in (pipe.text_encoder, pipe.unet, pipe.vae):
        before = Away(part, before)
        add_hook_to_module(part, before)
    assert same(gradients(way, pipe, adp.Checkpointed()), truth)


@WAYS
def test_model_offload_hooks_stay_the_pipelines_own(way):
    pipe = of("sd").make()
    truth = gradients(way, pipe, adp.Checkpointed())
    pipe.enable_model_cpu_offload(device="cpu")
    hooks, held = list(pipe._all_hooks), dict(vars(pipe.unet))
    # Its weights are other memory now, and kernels round by alignment.
    for found, exact in zip(gradients(way, pipe, adp.Checkpointed()), truth, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))
    assert pipe._all_hooks == hooks
    assert vars(pipe.unet) == held
    assert pipe._all_hooks[1].model is pipe.unet


def test_a_kept_graph_of_weights_that_move_away_is_refused():
    pipe = of("sd").make()
    _, hook = accelerate.cpu_offload_with_hook(pipe.unet, torch.device("meta"))
    for adjoint in (adp.Backprop(), adp.Checkpointed(keep=3)):
        with pytest.raises(adp.InputError, match=r"moved away.*Checkpointed\(\)"):
            gradients("differentiable", pipe, adjoint)
    hook.remove()


@WAYS
def test_weights_that_are_offloaded_between_calls(way):
    pipe = of("sd").make()
    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    with pytest.raises(adp.InputError, match="enable_model_cpu_offload"):
        gradients(way, pipe)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_rows_of_the_embedding_table_through_the_calls_own_string(name):
    """Everything frozen but the rows; against plain autograd, on the rows and on the whole table."""
    family = of(name)
    pipe, noise = family.make(), family.noise()
    encoders = [getattr(pipe, n) for n in ("text_encoder", "text_encoder_2") if getattr(pipe, n, None)]
    for part in (pipe.unet, pipe.vae, *encoders):
        part.requires_grad_(False)
    given = {
        "prompt": "a cat on cat",
        "negative_prompt": "dog",
        "guidance_scale": 3.0,
        "latents": noise,
        "num_inference_steps": 2,
        "output_type": "pt",
    }
    rows = adp.TokenRows(pipe, ["cat", "dog"])
    with rows, adp.differentiable(pipe) as call:
        found = torch.autograd.grad(call(**given).images.square().sum(), rows.values)
    with rows:
        plain = own_call(type(pipe))(pipe, **given).images
        assert same(found, torch.autograd.grad(plain.square().sum(), rows.values))
    sampler = adp.PipelineSampler(pipe, steps=2, guidance_scale=3.0)
    with rows:
        cond = sampler.encode("a cat on cat", "dog")
    sampled = torch.autograd.grad(sampler(noise, cond).clamp(0, 1).square().sum(), rows.values)
    tables = [encoder.get_input_embeddings().weight.requires_grad_() for encoder in encoders]
    whole = torch.autograd.grad(own_call(type(pipe))(pipe, **given).images.square().sum(), tables)
    ids = [WORDS.index("cat"), WORDS.index("dog")]
    for g, s, table in zip(found, sampled, whole, strict=True):
        assert float(g.norm(dim=1).min()) > 0
        for each in (g, s):
            assert float((each - table[ids]).norm()) < 1e-5 * float(table[ids].norm())


def test_a_string_alone_has_no_gradient():
    pipe = of("sd").make()
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    with pytest.raises(adp.InputError, match="what its denoiser is first given"):
        image("differentiable", pipe, None, of("sd").noise(), {"prompt": "a cat"})
