"""Checks for what makes a pipeline's gradient wrong or absent, before a run or from the graph that it made.

Most functions raise `InputError`. The message names what was found, why there is no gradient, and what to do.
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
from .call_signature import LENGTHS, call_names, default_of, own_call

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
    """Rows of an embedding have no influence on the image, so their gradient is zero.

    Examples:
        >>> import warnings
        >>> import adjointdpm as adp
        >>> warnings.simplefilter("error", adp.UnusedRowsWarning)  # raise instead of warning
    """


class WeightsWarning(UserWarning):
    """Every weight of a pipeline requires a gradient, which is the default of stock pipelines.

    A backward pass then computes the gradients of all weights besides those that are needed.

    Examples:
        >>> import warnings
        >>> import adjointdpm as adp
        >>> warnings.simplefilter("ignore", adp.WeightsWarning)  # where all weights are trained on purpose
    """


_WARNED: "weakref.WeakSet[Any]" = weakref.WeakSet()  # the pipelines that have been warned of


def warn_of_weights(pipe: Any, networks: Mapping[str, nn.Module]) -> None:
    """Warn once for each pipeline whose weights all require a gradient.

    There is no warning if some weights are frozen, since then the others are trained on purpose.

    Args:
        pipe: the pipeline.
        networks: its modules, by name.
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
    """The same tensors by name, with a warning in the backward pass if rows of an embedding have no influence.

    A pipeline cuts off the rows that exceed what its encoder or network takes. Rows that a mask turns off, and rows
    that pad a list, are not warned of.

    Args:
        arguments: a Cond or a dictionary.

    Returns:
        a container of the same kind.
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
    """A mask of the rows of an embedding that should have an influence; None if that is unknown."""
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
    # Rows are cut off at the end; a row of zeros elsewhere is an underflow. A loss may depend on some images only.
    last = (~used).flip(1).cumprod(1).flip(1).bool()
    lost = meant & last & used.any(1, keepdim=True)
    if bool(lost.any()):
        numbers = lost.any(0).nonzero().flatten().tolist()
        which = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
        warnings.warn(
            f"rows {which} of {name} ({len(numbers)} of {cotangent.shape[1]}) have no influence on the image, and a "
            "gradient of zero: the pipeline or its network cuts them off or masks them out. Give fewer rows, or check "
            "the pipeline's max_sequence_length",
            UnusedRowsWarning,
            stacklevel=2,
        )


def refuse_untracked() -> None:
    """Raise if gradients are disabled where the call is made.

    Raises:
        InputError: they are.
    """
    if not torch.is_grad_enabled():
        raise InputError(
            "gradients are switched off here (torch.no_grad, torch.inference_mode or "
            "torch.set_grad_enabled(False)); call inside torch.enable_grad()"
        )


def refuse_output(pipe: Any, arguments: dict[str, Any]) -> None:
    """Raise if the output type of a pipeline's call, given or by default, is not a tensor.

    Args:
        pipe: the pipeline.
        arguments: the arguments of the call, by name.

    Raises:
        InputError: the output would be numpy or a file format.
    """
    kind = arguments.get("output_type", default_of(pipe, "output_type"))
    if kind not in (None, "latent", "pt", "latents"):
        raise InputError(
            f'output_type={kind!r} ends the graph in numpy or a file format; pass output_type="pt" (pixels '
            'that the pipeline clamps, see .stats.clamped) or output_type="latent"'
        )


def refuse_batch(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Raise if the arguments of a call are unknown to the pipeline, or are for different numbers of images.

    Args:
        pipe: the pipeline.
        arguments: the arguments of the call, by name.

    Raises:
        InputError: they are.
    """
    unknown = sorted(set(arguments) - _taken(pipe))
    if unknown and own_call(type(pipe)).__module__.startswith(
        "diffusers."
    ):  # the **kwargs of a class outside diffusers are not checked
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
    """The names of the arguments of a pipeline's call, including those that it reads from its **kwargs."""
    own = own_call(type(pipe))
    modular = {each.name for each in getattr(getattr(pipe, "_blocks", None), "inputs", [])}
    return {
        *inspect.signature(own).parameters,
        *(c for c in own.__code__.co_consts if isinstance(c, str)),
        *modular,
    }


def refuse_pipeline(pipe: Any, arguments: dict[str, Any]) -> None:
    """Raise if a part of the pipeline has no gradient, or casts weights that the backward pass needs.

    Args:
        pipe: the pipeline.
        arguments: the arguments of the call, by name.

    Raises:
        InputError: it has no VAE, or has a safety checker, a watermark, or a float16 VAE that it casts to float32.
    """
    if arguments.get("output_type") == "latent":
        return
    refuse_undecodable(pipe)
    if getattr(pipe, "safety_checker", None) is not None:
        raise InputError(
            "the safety checker reads images as numpy arrays and blackens some, which has no gradient; set "
            'pipe.safety_checker = None and check the finished image, or pass output_type="latent"'
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
            "pass reads it; call pipe.vae.to(torch.float32) first"
        )


def refuse_undecodable(pipe: Any) -> None:
    """Raise if a pipeline decodes with a VAE and has none.

    Args:
        pipe: the pipeline.

    Raises:
        InputError: its `vae` is None.
    """
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
    """Raise if weights are moved away between the calls of their modules, and replaced by placeholders.

    Args:
        parts: the modules, by name.

    Raises:
        InputError: a weight is on the meta device.
    """
    for name, part in parts.items():
        if any(weight.is_meta for weight in part.parameters()):
            raise InputError(
                f"the weights of {name} are offloaded between its calls (sequential offloading), so their storage is "
                "gone when the backward pass needs it; use pipe.enable_model_cpu_offload() or keep it on one device"
            )


def refuse_hooks(name: str, modules: Iterable[nn.Module], repeated: bool, kept: bool) -> None:
    """Raise if a denoiser has hooks of diffusers or accelerate that make a gradient through it wrong.

    Hooks that keep state are refused in any case.

    Args:
        name: the denoiser's name.
        modules: the modules inside it.
        repeated: whether the call is to be recomputed; then every hook of diffusers is refused.
        kept: whether its graph is kept; then hooks that move the weights away are refused.

    Raises:
        InputError: there is such a hook.
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
                    f"{name} has the cache hook {kind!r}, which reuses results of earlier calls, so that a gradient "
                    f"through it would be wrong; call pipe.{name}.disable_cache()"
                )
            if repeated:
                raise InputError(
                    f"{name} has the hook {kind!r} ({type(hook).__name__}), which may be absent when the "
                    "call is recomputed in the backward pass; remove it, or use adjoint=Backprop()"
                )


def _leaves_its_device(hook: Any) -> bool:
    """Whether a hook is accelerate's for model offloading, with any execution device but the CPU."""
    if not hasattr(hook, "prev_module_hook"):
        return False
    return torch.device(hook.execution_device).type != "cpu"


def refuse_blind(name: str, out: Any, state: Tensor) -> None:
    """Raise if a denoiser's output does not depend on its state.

    Args:
        name: the denoiser's name.
        out: its output.
        state: the state that it received.

    Raises:
        InputError: it does not.
    """
    graphs = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.requires_grad]
    if graphs and not reached(graphs, {"state": state}):
        raise InputError(
            f"the output of {name} does not depend on its input (a detach, a no_grad or numpy inside it cuts the "
            "graph), so every gradient through it would be wrong; use differentiable operations alone"
        )


def refuse_cut(outputs: list[Tensor], given: dict[str, Tensor], calls: dict[str, list[Any]]) -> None:
    """Raise if a tensor that requires a gradient, or a denoiser call, is not in the graph of the outputs.

    Args:
        outputs: the tensors with a graph that the pipeline returned.
        given: the call's tensors that require a gradient, by argument.
        calls: the graph nodes of each denoiser call's outputs, by the call's name.

    Raises:
        InputError: one is missing, or an operator on the way has no derivative.
    """
    if not outputs:
        raise InputError(
            "nothing that the pipeline returned has a gradient: the pipeline left torch, or disabled gradients itself"
        )
    needed = {name: [get_gradient_edge(tensor).node] for name, tensor in given.items()} | calls
    missing = {name: set(nodes) for name, nodes in needed.items()}
    seen: set[Any] = {get_gradient_edge(tensor).node for tensor in outputs} | {None}
    queue: list[Any] = list(seen - {None})
    left = {node for nodes in missing.values() for node in nodes}
    while queue and left:
        node = queue.pop()
        left.discard(node)
        if underivable(node):
            raise InputError(
                "the pipeline computes with an operator that has no derivative, as int8 and other quantized layers do, "
                "so a gradient through it would be lost without a warning; load its parts without quantization"
            )
        for parent, _ in node.next_functions:
            if parent not in seen:
                seen.add(parent)
                queue.append(parent)
    lost = [name for name, nodes in needed.items() if left.issuperset(nodes)]
    if lost:
        raise InputError(
            f"the result does not depend on {', '.join(lost[:4])}{' and more' if len(lost) > 4 else ''}: either "
            "the pipeline does not use it with these arguments, or detaches it, or converts it to plain numbers; "
            "its gradient would be missing or wrong"
        )


def explained(
    error: Exception, pipe: Any, parts: Mapping[str, Any], given: Mapping[str, Tensor]
) -> InputError | None:
    """Translate an error about a scheduler, an argument, a cut graph or dtypes into an `InputError`.

    Args:
        error: the error that the pipeline's call raised.
        pipe: the pipeline.
        parts: its denoisers, by name.
        given: the tensors that it received, by name.

    Returns:
        the error to raise instead; None if the error is about something else.
    """
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
    """Translate an error that a pipeline itself raised about its arguments into an `InputError`.

    Args:
        error: the error.
        pipe: the pipeline.

    Returns:
        the error to raise instead; None if the pipeline's own code did not raise it.
    """
    frame = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    own = ".pipelines." in frame.f_globals.get("__name__", "") and not isinstance(error, AdjointDPMError)
    if not own or not isinstance(error, ValueError | TypeError):
        return None
    return InputError(f"{type(pipe).__name__} refuses its arguments: {' '.join(str(error).split())}")


def _unfit(error: Exception, pipe: Any) -> Any:
    """The scheduler that an error comes from; None if it comes from elsewhere."""
    scheduler = getattr(pipe, "scheduler", None)
    if isinstance(error, AttributeError):
        of_config = scheduler is not None and error.obj is scheduler.config
        source = scheduler if of_config else error.obj
    else:
        source = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    return source if hasattr(source, "set_timesteps") else None


def tensors_of(arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Find the tensors that require a gradient among the arguments of a call.

    Args:
        arguments: the arguments, by name.

    Returns:
        the tensors, by the argument's name, with a number if an argument holds several.
    """
    found = {}
    for name, value in arguments.items():
        variables = [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.requires_grad]
        found |= {name if len(variables) == 1 else f"{name}[{i}]": t for i, t in enumerate(variables)}
    return found
