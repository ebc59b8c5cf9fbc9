"""Pipeline classes that nobody prepared for: built from their signatures, a true gradient or a refusal.

A class is counted when the untouched pipeline runs with the parts and arguments that its signatures name;
then `differentiable` must give plain autograd's bits, or an error of this library.
"""

import inspect
import time
import warnings

import diffusers
import torch

import adjointdpm as adp
from adjointdpm.guards import tensors_of
from tests.tiny_pipelines import CASES, draw, first, masks, sd_vae, text_unet, vp, weights

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
    found["AutoencoderKL"] = sd_vae()
    return found


def built(kind, parts):
    """The pipeline, if every part that its constructor wants can be told from the annotation."""
    given, wide = {}, "text_encoder_2" in inspect.signature(kind.__init__).parameters
    for name, each in list(inspect.signature(kind.__init__).parameters.items())[1:]:
        told = str(each.annotation)
        fit = [part for known, part in parts.items() if known in told]
        if name == "scheduler":
            flow = any(known in str(inspect.signature(kind.__init__)) for known in FLOW)
            given[name] = diffusers.FlowMatchEulerDiscreteScheduler() if flow else vp()
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
    picture = draw(1, 3, 16, 16, seed=5).detach().sigmoid().requires_grad_()
    offered = {
        "prompt_embeds": draw(1, 5, 8, seed=1),
        "negative_prompt_embeds": draw(1, 5, 8, seed=2),
        "pooled_prompt_embeds": draw(1, 8, seed=3),
        "negative_pooled_prompt_embeds": draw(1, 8, seed=4),
        **masks(),
        "image": picture,
        "control_image": picture,
        "mask_image": torch.ones(1, 1, 16, 16).tril(),
        "num_inference_steps": 2,
        "strength": 1.0,
        "height": 16,
        "width": 16,
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
    found = torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)
    truth = torch.autograd.grad(
        first(plain(pipe, **again(given))).square().sum(), leaves, allow_unused=True
    )
    for g, exact in zip(found, truth, strict=True):
        assert (g is None) == (exact is None), kind.__name__
        assert g is None or torch.equal(g, exact), kind.__name__
    assert all(g is not None for g in found[: len(tensors_of(given))]), kind.__name__
    return "gradient"


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
            start = time.perf_counter()
            result = outcome(kind, parts)
            print(name, result, round(time.perf_counter() - start, 1), flush=True)
            if result:
                seen[result].append(name)
    print(f"{len(seen['gradient'])} more with a gradient: {', '.join(seen['gradient'])}")
    print(f"{len(seen['refused'])} more refused: {', '.join(seen['refused'])}")
    assert len(seen["gradient"]) + len(seen["refused"]) >= 30
    assert len(seen["gradient"]) >= 20
