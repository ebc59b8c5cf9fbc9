"""What makes a pipeline's gradient wrong or absent, found before the long work or told from its traces.

Each function raises `InputError`: what was found, why it has no gradient, what to do.
"""

import inspect
import traceback
import warnings
import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_leaves

from .._types import AdjointDPMError, Cond, InputError
from ..flow.denoisers import explained as explained_call
from ..flow.influence import reached, underivable
from .call_signature import LENGTHS, call_names, own_call

__all__ = [
    "UnusedRowsWarning",
    "WeightsWarning",
    "explained",
    "followed",
    "refuse_batch",
    "refuse_blind",
    "refuse_cut",
    "refuse_hooks",
    "refuse_output",
    "refuse_pipeline",
    "refuse_placeholders",
    "refuse_undecodable",
    "refuse_untracked",
    "refused",
    "tensors_of",
    "warn_of_weights",
]


class UnusedRowsWarning(UserWarning):
    """Rows of an embedding have no influence on the image."""


class WeightsWarning(UserWarning):
    """Every weight of a pipeline requires a gradient, as stock pipelines come."""


_WARNED: "weakref.WeakSet[Any]" = weakref.WeakSet()  # the pipelines whose user knows


def warn_of_weights(pipe: Any, networks: Mapping[str, nn.Module]) -> None:
    """Say once for each pipeline that the gradient of noise or conditioning is paid for with that of every weight.

    Where weights are trained on purpose others are frozen: then nothing is said.
    """
    if pipe in _WARNED or not all(w.requires_grad for part in networks.values() for w in part.parameters()):
        return
    _WARNED.add(pipe)
    count = sum(weight.numel() for part in networks.values() for weight in part.parameters())
    lines = "; ".join(f"pipe.{name}.requires_grad_(False)" for name in networks)
    warnings.warn(
        f"every weight of {type(pipe).__name__} requires a gradient ({count:,} of them), so a backward pass computes "
        "and keeps all of these gradients besides those of noise and conditioning. Freeze what you do not train: "
        f"{lines}",
        WeightsWarning,
        stacklevel=4,
    )


def followed(arguments: Any) -> Any:
    """The same tensors by name, with a warning in the backward pass if rows of an embedding had no influence.

    A pipeline cuts off rows that are more than its encoder or network takes. Rows that a mask turns off, or that only
    fill up a list, are meant to have none.
    """
    kept = {}
    for name, each in arguments.items():
        embeds = (
            name.endswith("embeds") and isinstance(each, Tensor) and each.ndim == 3 and each.requires_grad
        )
        if embeds and torch.is_grad_enabled():
            kept[name] = each.view_as(each)
            kept[name].register_hook(partial(_look_at_rows, name, _meant(name, each, arguments)))
    return arguments.replace(**kept) if isinstance(arguments, Cond) else {**arguments, **kept}


def _meant(name: str, embeds: Tensor, arguments: Mapping[str, Any]) -> Tensor | None:
    """Which rows of an embedding are meant to have an influence; None if that is not known."""
    rows = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    if (lengths := arguments.get(name + LENGTHS)) is not None:
        return rows & (torch.arange(rows.shape[1], device=rows.device) < lengths[:, None])
    negative = name.startswith("negative_")
    masks = [
        each
        for key, each in arguments.items()
        if "mask" in key
        and key.startswith("negative_") == negative
        and isinstance(each, Tensor)
        and each.ndim == 2
    ]
    for mask in masks:
        if mask.shape[-1] != rows.shape[1]:
            return None
        rows = rows & mask.bool()
    return rows


def _look_at_rows(name: str, meant: Tensor | None, cotangent: Tensor) -> None:
    used = (cotangent != 0).any(-1)
    if meant is None or bool(used.all()):
        return
    # What is cut off is at the end: elsewhere a row of zeros is an underflow. And a loss may be of some of the images.
    last = (~used).flip(1).cumprod(1).flip(1).bool()
    lost = meant & last & used.any(1, keepdim=True)
    if bool(lost.any()):
        numbers = lost.any(0).nonzero().flatten().tolist()
        which = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
        warnings.warn(
            f"rows {which} of {name} ({len(numbers)} of {cotangent.shape[1]}) have no influence on the image, and a "
            "gradient of zero: the pipeline or its network cuts them off or masks them out. Give fewer rows, or see "
            "the pipeline's max_sequence_length",
            UnusedRowsWarning,
            stacklevel=2,
        )


def refuse_untracked() -> None:
    """Gradients are off where the call is made."""
    if not torch.is_grad_enabled():
        raise InputError(
            "gradients are switched off here (torch.no_grad, torch.inference_mode or "
            "torch.set_grad_enabled(False)); call inside torch.enable_grad()"
        )


def refuse_output(pipe: Any, arguments: dict[str, Any]) -> None:
    """The pipeline is asked, or asked by default, for something that is not a tensor."""
    kind = arguments.get("output_type", _default(pipe, "output_type"))
    if kind not in (None, "latent", "pt", "latents"):
        raise InputError(
            f'output_type={kind!r} ends the graph in numpy or a file format; pass output_type="pt" (pixels '
            'that the pipeline clamps, see .stats.clamped) or output_type="latent"'
        )


def refuse_batch(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """A call's arguments are none of the pipeline's, or are for different numbers of images."""
    unknown = sorted(set(arguments) - _taken(pipe))
    if unknown and own_call(type(pipe)).__module__.startswith(
        "diffusers."
    ):  # another's **kwargs are their business
        raise InputError(
            f"{type(pipe).__name__} takes no {', '.join(unknown)}; it takes {', '.join(call_names(type(pipe)))}"
        )
    repeats = [k for k in arguments if k.startswith("num_") and k.endswith("_per_prompt") and arguments[k]]
    each, prompt = (arguments[repeats[0]] if repeats else 1), arguments.get("prompt")
    counts = {"prompt": len(prompt) if isinstance(prompt, list) else int(isinstance(prompt, str))}
    for name, value in arguments.items():
        if name.endswith("prompt_embeds") and isinstance(value, Tensor | list):
            counts[name] = len(value)
    counts = {name: count * each for name, count in counts.items() if count}
    for name in ("latents", "generator"):
        value = arguments.get(name)
        if isinstance(value, Tensor | list):
            counts[name] = len(value)
    if len(set(counts.values())) > 1:
        given = ", ".join(f"{name} for {count}" for name, count in counts.items())
        times = f" ({repeats[0]}={each})" if each != 1 else ""
        raise InputError(f"the arguments are for different numbers of images: {given}{times}")


def _taken(pipe: Any) -> set[str]:
    """The arguments of a pipeline's call, those among them that it reads from its **kwargs."""
    own = own_call(type(pipe))
    modular = {each.name for each in getattr(getattr(pipe, "_blocks", None), "inputs", [])}
    return {
        *inspect.signature(own).parameters,
        *(c for c in own.__code__.co_consts if isinstance(c, str)),
        *modular,
    }


def refuse_pipeline(pipe: Any, arguments: dict[str, Any]) -> None:
    """A part of the pipeline has no gradient, or changes weights after the denoiser has used them."""
    if arguments.get("output_type") == "latent":
        return
    refuse_undecodable(pipe)
    if getattr(pipe, "safety_checker", None) is not None:
        raise InputError(
            "the safety checker looks at numpy pictures and blackens some, which has no gradient; set "
            'pipe.safety_checker = None and check the finished picture, or pass output_type="latent"'
        )
    if getattr(pipe, "watermark", None) is not None:
        raise InputError(
            "the invisible watermark is drawn in numpy, which has no gradient; set pipe.watermark = None"
        )
    vae: Any = getattr(pipe, "vae", None)
    half = getattr(vae, "dtype", None) == torch.float16
    if half and vae.config.get("force_upcast") and _casts_its_vae(type(pipe)):
        raise InputError(
            "the pipeline casts this float16 VAE to float32 for decoding and back again, before the backward "
            "pass needs it; call pipe.vae.to(torch.float32) first"
        )


def refuse_undecodable(pipe: Any) -> None:
    """A pipeline that decodes with a VAE has none."""
    if "vae" in inspect.signature(type(pipe).__init__).parameters and getattr(pipe, "vae", None) is None:
        raise InputError(
            f"{type(pipe).__name__} has no VAE (its vae is None), so it cannot decode; load it with one, or take "
            'latents: output_type="latent" in differentiable(pipe)'
        )


def _casts_its_vae(kind: type) -> bool:
    """Whether any of a pipeline's methods reads the VAE's `force_upcast`."""
    methods = (inspect.unwrap(method) for _, method in inspect.getmembers(kind, inspect.isfunction))
    return any("force_upcast" in method.__code__.co_names for method in methods)


def refuse_placeholders(parts: Mapping[str, nn.Module]) -> None:
    """Weights are moved away between the calls of their modules, and leave placeholders behind."""
    for name, part in parts.items():
        if any(weight.is_meta for weight in part.parameters()):
            raise InputError(
                f"the weights of {name} are offloaded between its calls (sequential offloading), so their storage is "
                "gone when the backward pass needs it; use pipe.enable_model_cpu_offload() or keep it on one device"
            )


def refuse_hooks(name: str, modules: Iterable[nn.Module], repeated: bool, kept: bool) -> None:
    """A denoiser carries hooks of diffusers with which a repeated call is another function.

    Args:
        repeated: whether the call is to be recomputed.
        kept: whether its graph is kept; hooks that take the weights away from under it are refused.
    Those that keep state are refused in any case.
    """
    for module in modules:
        if kept and _leaves_its_device(vars(module).get("_hf_hook")):
            raise InputError(
                f"the weights of {name} are moved away when another model runs (model offloading), and the backward "
                "pass through a graph that is kept needs them; use Checkpointed(), whose recomputation fetches them"
            )
        registry = vars(module).get("_diffusers_hook")
        for kind, hook in getattr(registry, "hooks", {}).items():
            if hook._is_stateful:
                raise InputError(
                    f"{name} has the cache hook {kind!r}, which answers from earlier calls, so that a gradient "
                    f"through it would be wrong; call pipe.{name}.disable_cache()"
                )
            if repeated:
                raise InputError(
                    f"{name} carries the hook {kind!r} ({type(hook).__name__}), which need not be there when the "
                    "call is recomputed in the backward pass; remove it, or use adjoint=Backprop()"
                )


def _leaves_its_device(hook: Any) -> bool:
    """Whether it is accelerate's hook of model offloading, to anywhere but the CPU."""
    if not hasattr(hook, "prev_module_hook"):
        return False
    return torch.device(hook.execution_device).type != "cpu"


def refuse_blind(name: str, out: Any, state: Tensor) -> None:
    """A denoiser's output does not depend on the state it was given."""
    graphs = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.requires_grad]
    if graphs and not reached(graphs, {"state": state}):
        raise InputError(
            f"the output of {name} does not depend on its input (a detach, a no_grad or numpy inside it cuts the "
            "graph), so every gradient through it would be wrong; make it of differentiable operations"
        )


def refuse_cut(outputs: list[Tensor], given: dict[str, Tensor], calls: dict[str, list[Any]]) -> None:
    """Something that wants a gradient, or a denoiser call, is not in the graph of the outputs.

    Args:
        given: the call's tensors that require a gradient, by where they were given.
        calls: the graph nodes of one denoiser call's outputs, by its name.
    """
    if not outputs:
        raise InputError(
            "nothing that the pipeline returned has a gradient: it left torch, or switched gradients off itself"
        )
    wanted = {name: [get_gradient_edge(tensor).node] for name, tensor in given.items()} | calls
    missing = {name: set(nodes) for name, nodes in wanted.items()}
    seen: set[Any] = {get_gradient_edge(tensor).node for tensor in outputs} | {None}
    queue: list[Any] = list(seen - {None})
    left = {node for nodes in missing.values() for node in nodes}
    while queue and left:
        node = queue.pop()
        left.discard(node)
        if underivable(node):
            raise InputError(
                "the pipeline computes with an operator that has no derivative, as int8 and other quantized layers do, "
                "so a gradient through it would be lost without a sign; load its parts without quantization"
            )
        for parent, _ in node.next_functions:
            if parent not in seen:
                seen.add(parent)
                queue.append(parent)
    lost = [name for name, nodes in wanted.items() if left.issuperset(nodes)]
    if lost:
        raise InputError(
            f"the result does not depend on {', '.join(lost[:4])}{' and more' if len(lost) > 4 else ''}: either "
            "the pipeline does not use it with these arguments, or it detaches it, or turns it into numbers on "
            "the way, and its gradient would be missing or wrong"
        )


def explained(
    error: Exception, pipe: Any, parts: Mapping[str, Any], given: Mapping[str, Tensor]
) -> InputError | None:
    """The error of this library for one that means an unfit scheduler or argument, a cut graph or mixed dtypes."""
    text = str(error)
    scheduler = _unfit(error, pipe)
    if scheduler is not None:
        return InputError(
            f"{type(pipe).__name__} and {type(scheduler).__name__} do not fit together, with or without gradients: "
            f"{type(error).__name__}: {text}"
        )
    if (reason := refused(error, pipe)) is not None:
        return reason
    dtypes = ", ".join(f"{name} {getattr(part, 'dtype', '?')}" for name, part in parts.items())
    return explained_call(error, given, f"{type(pipe).__name__} ({dtypes})")


def refused(error: Exception, pipe: Any) -> InputError | None:
    """The error of this library for one that a pipeline raised itself, about what it was given."""
    frame = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    own = ".pipelines." in frame.f_globals.get("__name__", "") and not isinstance(error, AdjointDPMError)
    if not own or not isinstance(error, ValueError | TypeError):
        return None
    return InputError(f"{type(pipe).__name__} refuses its arguments: {' '.join(str(error).split())}")


def _unfit(error: Exception, pipe: Any) -> Any:
    """The scheduler that an error comes from, if it does."""
    scheduler = getattr(pipe, "scheduler", None)
    if isinstance(error, AttributeError):
        of_config = scheduler is not None and error.obj is scheduler.config
        asked = scheduler if of_config else error.obj
    else:
        asked = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    return asked if hasattr(asked, "set_timesteps") else None


def tensors_of(arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor among a call's arguments that requires a gradient, by the argument's name."""
    found = {}
    for name, value in arguments.items():
        wanting = [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.requires_grad]
        found |= {name if len(wanting) == 1 else f"{name}[{i}]": t for i, t in enumerate(wanting)}
    return found


def _default(pipe: Any, name: str) -> Any:
    known = inspect.signature(own_call(type(pipe))).parameters
    if name in known:
        return known[name].default
    for each in getattr(getattr(pipe, "_blocks", None), "inputs", []):  # Modular Diffusers
        if each.name == name:
            return each.default
    return None
