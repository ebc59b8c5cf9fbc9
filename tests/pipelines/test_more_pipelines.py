"""Pipeline classes that nobody prepared for: built from their signatures, a true gradient or a refusal.

A class is counted when the untouched pipeline runs with the parts and arguments that its signatures name;
then `differentiable` must give plain autograd's bits, or an error of this library.
"""

import inspect
import re
import warnings

import diffusers
import torch

import adjointdpm as adp
from adjointdpm.pipelines.checks import tensors_of
from tests.tiny.pipelines import CASES, draw, first, masks, sd_vae, text_unet, vp, weights

FLOW = ("SD3Transformer", "FluxTransformer", "SanaTransformer", "LTXVideoTransformer", "WanTransformer")
EMPTY = ("tokenizer", "text_encoder", "image_encoder", "feature_extractor", "safety_checker")


def donors():
    """The tiny parts there are, by the name of their class."""
    found = {}
    for make in CASES.values():
        for part in vars(make()[0]).values():
            if isinstance(part, torch.nn.Module):
                found.setdefault(type(part).__name__, part)
    found["UNet2DConditionModel"] = text_unet()
    found["AutoencoderKL"] = sd_vae(shift_factor=0.06)
    return found


def built(kind, parts):
    """The pipeline, if every part that its constructor wants can be told from the annotation."""
    given, wide = {}, "text_encoder_2" in inspect.signature(kind.__init__).parameters
    for name, each in list(inspect.signature(kind.__init__).parameters.items())[1:]:
        told = str(each.annotation)
        fit = [part for known, part in parts.items() if re.search(rf"\b{known}\b", told)]
        if name == "scheduler":
            flow = any(known in str(inspect.signature(kind.__init__)) for known in FLOW)
            kinds = (
                diffusers.LCMScheduler if "LatentConsistency" in kind.__name__ else diffusers.DDIMScheduler
            )
            given[name] = diffusers.FlowMatchEulerDiscreteScheduler() if flow else vp(kinds)
        elif name == "unet" and wide and "UNet2DConditionModel" in told:
            given[name] = CASES["StableDiffusionXLPipeline"]()[0].unet
        elif name.startswith(EMPTY):
            given[name] = None
        elif name.startswith("requires"):
            given[name] = False
        elif fit:
            given[name] = fit[0]
        elif each.default is each.empty:
            return None
    pipe = kind(**given)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def called(kind, pipe):
    """Arguments by their names; two steps."""
    names = inspect.signature(inspect.unwrap(kind.__call__)).parameters
    wide = "pooled_prompt_embeds" in names
    side = 32 if kind.__name__.startswith(("Sana", "LTX", "Wan")) else 16
    image = draw(1, 3, side, side, seed=5).detach().sigmoid().requires_grad_()
    offered = {
        "prompt_embeds": draw(1, 5, 8, seed=1),
        "negative_prompt_embeds": draw(1, 5, 8, seed=2),
        "pooled_prompt_embeds": draw(1, 8, seed=3),
        "negative_pooled_prompt_embeds": draw(1, 8, seed=4),
        **masks(),
        "image": image,
        "control_image": image,
        "mask_image": torch.ones(1, 1, side, side).tril(),
        "num_inference_steps": 2,
        "strength": 1.0,
        "height": side,
        "width": side,
        "num_frames": 5,
        "max_area": 16 * 16,
        "_auto_resize": False,
        "generator": torch.Generator(),
        "output_type": "pt",
        "negative_prompt": None,
        "use_resolution_binning": False,
    }
    if not wide:
        offered["guidance_scale"] = torch.tensor(4.0, requires_grad=True)
    return {name: value for name, value in offered.items() if name in names}


def again(given):
    torch.manual_seed(1)
    if "generator" in given:
        given["generator"].manual_seed(3)
    return given


def outcome(kind, parts):
    """ "gradient", "refused", or None where the class cannot be tried with these parts."""
    plain = inspect.unwrap(kind.__call__)
    try:
        pipe = built(kind, parts)
        if pipe is None:
            return None
        given = called(kind, pipe)
        with torch.no_grad():
            untouched = first(pipe(**{k: _off(v) for k, v in again(given).items()}))
    except Exception:  # whatever it misses, it misses without us
        return None
    leaves = [*tensors_of(given).values(), *weights(pipe)]
    try:
        with adp.differentiable(pipe) as call:
            out = first(call(**again(given)))
    except adp.InputError:
        return "refused"
    assert torch.equal(out, untouched), kind.__name__
    found = _tried(out, leaves)
    truth = _tried(lambda: first(plain(pipe, **again(given))), leaves)
    if (
        truth is None
    ):  # written into in place: torch says so in the backward pass, ours as in plain autograd's
        assert found is None, kind.__name__
        return "refused"
    for g, exact in zip(found, truth, strict=True):
        assert (g is None) == (exact is None), kind.__name__
        assert g is None or torch.equal(g, exact), kind.__name__
    assert all(g is not None for g in found[: len(tensors_of(given))]), kind.__name__
    return "gradient"


def _tried(out, leaves):
    """The gradient, or None where torch itself refuses it."""
    try:
        out = out() if callable(out) and not isinstance(out, torch.Tensor) else out
        return torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)
    except RuntimeError:
        return None


def _off(value):
    return value.detach() if isinstance(value, torch.Tensor) else value


def test_more_classes_give_plain_autograds_gradient_or_a_refusal():
    seen: dict[str, list[str]] = {"gradient": [], "refused": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        parts = donors()
        for name in sorted(dir(diffusers)):
            kind = getattr(diffusers, name, None) if name.endswith("Pipeline") else None
            if (
                name in CASES
                or not inspect.isclass(kind)
                or not issubclass(kind, diffusers.DiffusionPipeline)
            ):
                continue
            result = outcome(kind, parts)
            if result:
                seen[result].append(name)
    print(f"{len(seen['gradient'])} more with a gradient: {', '.join(seen['gradient'])}")
    print(f"{len(seen['refused'])} more refused: {', '.join(seen['refused'])}")
    assert len(seen["gradient"]) + len(seen["refused"]) >= 30
