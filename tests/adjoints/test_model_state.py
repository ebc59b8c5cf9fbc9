"""Between the forward and the backward pass anything may change: the gradient is plain autograd's, or an error."""

import copy
import os
import warnings
from functools import cache

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import nn

import adjointdpm as adp
from tests.conftest import tiny_pipeline

diffusers.utils.logging.set_verbosity_error()  # it warns of each cast

WAYS = ("differentiable", "FlowSampler", "PipelineSampler")
ADJOINTS = {
    "Checkpointed": adp.Checkpointed(),
    "keep": adp.Checkpointed(keep=2),
    "keep all": adp.Checkpointed(keep=9),
    "budget": adp.Checkpointed(budget="1GiB"),
    "small budget": adp.Checkpointed(budget="180KB"),
    "Truncated": adp.Truncated(last=2),
    "CoarseAdjoint": adp.CoarseAdjoint(),
    "fewer": adp.CoarseAdjoint(steps=2),
    "resolved": adp.Continuous(solver=adp.Euler(), trajectory="resolved"),
    "Reversible": adp.Reversible(),
}


class Louder(AttnProcessor):
    """Another attention: everything that it says, twice."""

    def __call__(self, attn, hidden_states, *args, **kwargs):
        return 2 * super().__call__(attn, hidden_states, *args, **kwargs)


class Counting(AttnProcessor):
    """An attention control with a step counter."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __call__(self, attn, hidden_states, *args, **kwargs):
        self.calls += 1
        return super().__call__(attn, hidden_states, *args, **kwargs) * (1.5 if self.calls % 7 < 3 else 1.0)


def blocks_of(pipe):
    return [m for m in pipe.unet.modules() if type(m).__name__ == "BasicTransformerBlock"]


def merging(pipe):
    """Token merging with a random generator of its own."""
    generator = torch.Generator().manual_seed(0)

    def wrapped(own):
        def forward(h, *args, **kwargs):
            kept = torch.randperm(h.shape[1], generator=generator)[: h.shape[1] // 2]
            return h.index_copy(1, kept, own(h[:, kept], *args, **kwargs))

        return forward

    for block in blocks_of(pipe):
        block.forward = wrapped(block.forward)


def caching(pipe):
    """Every second answer is the last one's residual again."""
    own, known = pipe.unet.forward, {"calls": 0, "residual": None}

    def forward(x, *args, **kwargs):
        known["calls"] += 1
        if known["calls"] % 2 == 0:
            return (x + known["residual"],)
        out = own(x, *args, **{**kwargs, "return_dict": False})[0]
        known["residual"] = out - x
        return (out,)

    pipe.unet.forward = forward


def replaced(module, name="weight"):
    setattr(module, name, nn.Parameter(1.1 * getattr(module, name).detach()))


def past_the_counter(module):
    for weight in module.parameters():
        weight.data.mul_(1.1)


def other_data(module):
    for weight in module.parameters():
        weight.data = 1.1 * weight.data


def in_place(module):
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(1.1)


def written(tensor):
    with torch.no_grad():
        tensor.mul_(1.1)


def loaded(module):
    module.load_state_dict({name: 1.1 * each for name, each in module.state_dict().items()})


def moving_average(module):
    """An EMA swap as training scripts write it."""
    for weight, average in zip(module.parameters(), [p.clone() for p in module.parameters()], strict=True):
        weight.data.copy_(0.9 * average)


# What a pipeline has before the forward pass, and what happens after it: (pipe, {argument: tensor}).
SETUPS = {
    "plain": lambda pipe: None,
    "hooked": lambda pipe: setattr(
        pipe, "handle", pipe.unet.mid_block.register_forward_hook(lambda m, a, out: 1.5 * out)
    ),
    "processed": lambda pipe: pipe.unet.set_attn_processor(Louder()),
    "adapted": lambda pipe: adapted(pipe),
    "dropout": lambda pipe: pipe.unet.train(),
}
IMPURE = {
    "merging": merging,
    "counting": lambda pipe: pipe.unet.set_attn_processor(Counting()),
    "caching": caching,
}
CHANGES = {
    "optimizer step": lambda pipe, given: in_place(pipe.unet),
    "load_state_dict": lambda pipe, given: loaded(pipe.unet),
    "EMA": lambda pipe, given: moving_average(pipe.unet),
    "data multiplied": lambda pipe, given: past_the_counter(pipe.unet),
    "data swapped": lambda pipe, given: other_data(pipe.unet),
    "parameter replaced": lambda pipe, given: replaced(pipe.unet.conv_in),
    "module replaced": lambda pipe, given: setattr(
        pipe.unet, "conv_out", copy.deepcopy(pipe.unet.conv_out)
    ),
    "mode": lambda pipe, given: pipe.unet.train(not pipe.unet.training),
    "dropout rate": lambda pipe, given: [
        setattr(m, "p", 0.9) for m in pipe.unet.modules() if hasattr(m, "p")
    ],
    "processors": lambda pipe, given: pipe.unet.set_attn_processor(Louder()),
    "stock processors": lambda pipe, given: pipe.unet.set_attn_processor(AttnProcessor()),
    "hook": lambda pipe, given: pipe.unet.mid_block.register_forward_hook(lambda m, a, out: 2 * out),
    "hook removed": lambda pipe, given: pipe.handle.remove() if hasattr(pipe, "handle") else None,
    "pre-hook": lambda pipe, given: pipe.unet.conv_out.register_forward_pre_hook(
        lambda m, args: (2 * args[0],)
    ),
    "own forward": lambda pipe, given: merging(pipe),
    "frozen": lambda pipe, given: pipe.unet.requires_grad_(False),
    "unfrozen": lambda pipe, given: pipe.unet.requires_grad_(True),
    "prompt": lambda pipe, given: written(given["prompt_embeds"]),
    "negative prompt": lambda pipe, given: written(given["negative_prompt_embeds"]),
    "noise": lambda pipe, given: written(given["noise"]),
    "VAE": lambda pipe, given: in_place(pipe.vae),
    "VAE's data": lambda pipe, given: past_the_counter(pipe.vae),
    "VAE's data swapped": lambda pipe, given: other_data(pipe.vae),
    "VAE's mode": lambda pipe, given: pipe.vae.train(not pipe.vae.training),
    "VAE's hook": lambda pipe, given: pipe.vae.decoder.conv_out.register_forward_hook(
        lambda m, a, out: 2 * out
    ),
    "adapter switched": lambda pipe, given: pipe.unet.set_adapter("second") if has_adapters(pipe) else None,
    "adapter off": lambda pipe, given: pipe.unet.disable_adapters() if has_adapters(pipe) else None,
    "adapter scaled": lambda pipe, given: (
        pipe.unet.set_adapters("first", 0.3) if has_adapters(pipe) else None
    ),
    "adapter fused": lambda pipe, given: pipe.unet.fuse_lora() if has_adapters(pipe) else None,
    "adapter deleted": lambda pipe, given: (
        pipe.unet.delete_adapters("first") if has_adapters(pipe) else None
    ),
}
HARMLESS = {
    "nothing": lambda pipe, given: None,
    "weights read": lambda pipe, given: {k: v.clone() for k, v in pipe.unet.state_dict().items()},
    "grads dropped": lambda pipe, given: pipe.unet.zero_grad(set_to_none=True),
    "a copy trained": lambda pipe, given: in_place(copy.deepcopy(pipe.unet)),
    "text encoder trained": lambda pipe, given: in_place(pipe.text_encoder),
    "global random numbers": lambda pipe, given: torch.randn(3),
}


@cache
def stock():
    """A pipeline with dropout in its UNet, of which each example gets a copy: building one takes longer."""
    pipe = tiny_pipeline(dtype=torch.float64)
    for module in pipe.unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    for part in (pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    return pipe


def adapted(pipe):
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's, of a second adapter
            pipe.unet.add_adapter(config, adapter_name=name)
    pipe.unet.set_adapter("first")


def has_adapters(pipe):
    return getattr(pipe.unet, "_hf_peft_config_loaded", False)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(way, adjoint, setup, frozen, trained, steps, seed, change):
    """Gradients of noise, prompt and, if trained, one weight, with something done between the two passes."""
    pipe = copy.deepcopy(stock())
    {**SETUPS, **IMPURE}[setup](pipe)
    pipe.unet.requires_grad_(not frozen)
    truncated = isinstance(adjoint, adp.Truncated)
    given = {"noise": draw(seed, 1, 2, 4, 4).requires_grad_(not truncated)}
    given |= {"prompt_embeds": draw(seed + 1, 1, 3, 6).requires_grad_()}
    given |= {"negative_prompt_embeds": draw(seed + 2, 1, 3, 6)}
    cond = {name: given[name] for name in ("prompt_embeds", "negative_prompt_embeds")}
    leaves = [tensor for tensor in given.values() if tensor.requires_grad]
    leaves += [pipe.unet.conv_in.bias] if trained else []
    torch.manual_seed(seed)
    if way == "differentiable":
        with adp.differentiable(pipe, adjoint) as call:
            image = call(
                **cond,
                latents=given["noise"],
                num_inference_steps=steps,
                guidance_scale=3.0,
                height=8,
                width=8,
                output_type="pt",
            ).images
    else:
        if way == "FlowSampler":
            solver = adp.Coupled(adp.Euler()) if isinstance(adjoint, adp.Reversible) else adp.DPMSolverPP(2)
            sampler = adp.FlowSampler.from_pipeline(
                pipe, steps=steps, guidance_scale=3.0, adjoint=adjoint, solver=solver, height=8, width=8
            )
            cond["guidance_scale"] = torch.tensor(3.0, dtype=torch.float64)
        else:
            sampler = adp.PipelineSampler(
                pipe, steps=steps, guidance_scale=3.0, adjoint=adjoint, arguments={"height": 8, "width": 8}
            )
        image = sampler(given["noise"], adp.Cond(cond))
    change(pipe, given)
    return torch.autograd.grad(image.square().sum(), leaves)


@cache
def truth(way, name, setup, frozen, trained, steps, seed):
    """The adjoint's own gradient of an undisturbed run; of exact ones it is plain autograd's."""
    adjoint = ADJOINTS[name]
    exact = isinstance(adjoint, adp.Checkpointed)
    return run(
        way, adp.Backprop() if exact else adjoint, setup, frozen, trained, steps, seed, lambda *_: None
    )


# The first ones of a fixed sequence; 170 were run for each way in, see CONTRIBUTING.md.
EXAMPLES = int(os.environ.get("ADJOINTDPM_EXAMPLES", "90"))


def allowed(way, name):
    """A pipeline's own steps have no ODE to solve backwards."""
    return way == "FlowSampler" or not isinstance(
        ADJOINTS[name], adp.CoarseAdjoint | adp.Continuous | adp.Reversible
    )


def examples(way):
    return {
        "name": st.sampled_from([name for name in ADJOINTS if allowed(way, name)]),
        "setup": st.sampled_from([*SETUPS, *IMPURE]),
        "frozen": st.booleans(),
        "steps": st.integers(3, 4),
        "seed": st.integers(0, 1),
        "change": st.sampled_from([*CHANGES, *HARMLESS]),
    }


@pytest.mark.parametrize("way", WAYS)
def test_a_gradient_is_plain_autograds_or_an_error(way):
    seen = {"equal": 0, "refused": 0}

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(**examples(way))
    def holds(name, setup, frozen, steps, seed, change):
        case = (setup, frozen, not frozen and change != "frozen", steps, seed)
        try:
            found = run(way, ADJOINTS[name], *case, {**CHANGES, **HARMLESS}[change])
        except adp.AdjointDPMError:
            seen["refused"] += 1
            pure = setup in ("plain", "hooked", "processed", "adapted")
            assert not (pure and change in HARMLESS), "nothing has changed"
            return
        exact = truth(way, name, *case)
        for ours, theirs in zip(found, exact, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8 * float(theirs.abs().max()))
        seen["equal"] += 1

    holds()
    assert min(seen.values()) >= EXAMPLES // 10, seen
