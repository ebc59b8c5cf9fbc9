"""What makes a pipeline's gradient wrong or absent, found before the long work or told from its traces.

Each function raises `InputError`: what was found, why it has no gradient, what to do.
"""

import inspect
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_leaves

from ._types import InputError
from .arguments import own_call

__all__ = [
    "explained",
    "refuse_cut",
    "refuse_hooks",
    "refuse_output",
    "refuse_pipeline",
    "refuse_placeholders",
    "refuse_untracked",
    "tensors_of",
]


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


def refuse_pipeline(pipe: Any, arguments: dict[str, Any]) -> None:
    """A part of the pipeline has no gradient, or changes weights after the denoiser has used them."""
    if arguments.get("output_type") == "latent":
        return
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
    queue: list[Any] = [get_gradient_edge(tensor).node for tensor in outputs]
    seen: set[Any] = set()
    left = {node for nodes in missing.values() for node in nodes}
    while queue and left:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        left.discard(node)
        queue.extend(parent for parent, _ in node.next_functions)
    lost = [name for name, nodes in wanted.items() if left.issuperset(nodes)]
    if lost:
        raise InputError(
            f"the result does not depend on {', '.join(lost[:4])}{' and more' if len(lost) > 4 else ''}: either "
            "the pipeline does not use it with these arguments, or it detaches it, or turns it into numbers on "
            "the way, and its gradient would be missing or wrong"
        )


def explained(error: Exception, pipe: Any, parts: dict[str, nn.Module]) -> InputError | None:
    """The error of this library for one that means an unfit scheduler, a cut graph or mixed dtypes."""
    text = str(error)
    scheduler = _unfit(error, pipe)
    if scheduler is not None:
        return InputError(
            f"{type(pipe).__name__} and {type(scheduler).__name__} do not fit together, with or without gradients: "
            f"{type(error).__name__}: {text}"
        )
    if "requires grad" in text and ("numpy" in text or "detach" in text):
        return InputError(
            "the pipeline turns a tensor that has a gradient into numpy in the middle of its work, so it "
            f"cannot be differentiated: {text}"
        )
    if "dtype" in text or "expected scalar type" in text or "input type" in text.lower():
        kinds = ", ".join(f"{name} {getattr(part, 'dtype', '?')}" for name, part in parts.items())
        return InputError(
            f"dtypes do not fit ({kinds}); give each network one dtype, or run under torch.autocast: {text}"
        )
    return None


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
