"""The state that a recomputation reads besides its arguments, compared with that at the end of the forward pass.

Plain autograd saves the tensors that it needs, or detects by a version counter that they have changed. A recomputed
call reads the model at the time of the backward pass, so that must be the model that ran. These are compared:

    weights, buffers     the same tensors, versions, addresses and sampled values; the same `requires_grad`
    modules              the same ones; train or eval, hooks, own `forward`, attention processors
    settings             numbers, names and switches of each module: a dropout's rate, an adapter's scale, the
                         active adapters
    arguments            the versions of the tensors that the sampling was given

The state is read once in a sampling and compared once in a backward pass, not in each call.
"""

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._types import RecomputationError

__all__ = ["ModelState"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_Value = bool | int | float | complex
_SIMPLE = (bool, float, str, type(None))  # not int: a counter that nothing depends on is no change
# Settings that change how a graph is made and not its function, and the internal attributes of torch's modules.
_NOT_SETTINGS = frozenset({"gradient_checkpointing", "training", *vars(nn.Module())})


class ModelState:
    """The state of some modules and tensors; `check` compares it with their present state.

    Args:
        modules: the modules that a backward pass runs again, by the names for messages.
        tensors: the arguments that it reads again, by name.
        restored: attributes of modules that a recomputation restores, so that they may change.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        tensors: Mapping[str, Tensor],
        restored: frozenset[str] = frozenset(),
    ) -> None:
        self._modules, self._restored = dict(modules), restored
        self._arguments = {name: (weakref.ref(t), _version(t)) for name, t in tensors.items()}
        parts = self._each_module()
        self._parts = {name: (weakref.ref(m), self._settings(m)) for name, m in parts.items()}
        # Addresses change where models are moved between devices; FSDP gathers and frees its weights at any time.
        self._moves = any(hasattr(module, "_hf_hook") for module in modules.values())
        self._sharded = any(hasattr(m, "unshard") and hasattr(m, "reshard") for m in parts.values())
        own = {} if self._sharded else _tensors(parts)
        self._tensors = {name: (weakref.ref(t), *self._place(t)) for name, t in own.items()}
        self._sampled = _sampled(own)

    def follow(self, out: Tensor) -> None:
        """Compare as soon as a backward pass reaches a tensor, before it goes on.

        Args:
            out: the tensor; it requires a gradient.
        """

        def compare(cotangent: Tensor) -> None:
            self.check()

        out.register_hook(compare)

    def check(self) -> None:
        """Raise if the present state differs.

        Raises:
            RecomputationError: it does; the message names the first change.
        """
        change = next(self._changes(), None)
        if change is not None:
            raise RecomputationError(
                f"{change} between the forward and the backward pass, which recomputes the model's calls and would "
                "differentiate another model than the one that ran; call backward() before the change, or use "
                "adjoint=Backprop(), which recomputes nothing"
            )

    def _changes(self) -> Iterator[str]:
        for name, (reference, version) in self._arguments.items():
            tensor = reference()
            if tensor is not None and _version(tensor) != version:
                yield f"the argument {name} was changed in place"
        parts = self._each_module()
        for name, (reference, settings) in self._parts.items():
            module = parts.get(name)
            if module is None or reference() is not module:
                yield f"the module {name} was {'removed' if module is None else 'replaced'}"
                continue
            now = self._settings(module)
            if now == settings:
                continue
            for key in sorted(settings.keys() | now.keys()):
                if settings.get(key) != now.get(key):
                    yield f"{name} changed: {_change(key, settings.get(key), now.get(key))}"
        for name in sorted(parts.keys() - self._parts.keys()):
            yield f"the module {name} was added"
        if not self._sharded:
            yield from self._changed_tensors(_tensors(parts))

    def _changed_tensors(self, tensors: dict[str, Tensor]) -> Iterator[str]:
        sampled = _sampled(tensors)
        for name, (reference, *place) in self._tensors.items():
            tensor = tensors.get(name)
            if _sharded(tensor) or _sharded(reference()):
                continue
            if tensor is None or reference() is not tensor:
                yield f"the tensor {name} was {'removed' if tensor is None else 'replaced'}"
                continue
            for what, then, now in zip(_PLACE, place, self._place(tensor), strict=True):
                if then != now:
                    yield f"the tensor {name} {what}"
            if name in self._sampled and not _same(self._sampled[name], sampled.get(name)):
                yield f"the values of the tensor {name} changed"

    def _each_module(self) -> dict[str, nn.Module]:
        found = dict(self._modules)
        queue, seen = list(found.items()), set(found.values())
        for (
            name,
            module,
        ) in queue:  # named_modules() would be slower: it passes each name up through one generator a level
            for inner, part in module._modules.items():
                if part is not None and part not in seen and inner not in self._restored:
                    found[f"{name}.{inner}"] = part
                    queue.append((f"{name}.{inner}", part))
                    seen.add(part)
        return found

    def _settings(self, module: nn.Module) -> dict[str, Any]:
        return _settings(module, _NOT_SETTINGS | self._restored)

    def _place(self, tensor: Tensor) -> tuple[int, int | None, bool]:
        """Version, address and `requires_grad`."""
        return _version(tensor), None if self._moves else _address(tensor), tensor.requires_grad


_PLACE = ("was changed in place", "got other data", "got another requires_grad")


def _tensors(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The weights and buffers of modules, by name."""
    return {
        f"{name}.{key}": tensor
        for name, module in parts.items()
        for own in (module._parameters, module._buffers)
        for key, tensor in own.items()
        if tensor is not None
    }


def _settings(module: nn.Module, other: frozenset[str]) -> dict[str, Any]:
    """The settings that decide a module's function, besides tensors, submodules and the attributes in `other`."""
    state = vars(module)
    own: dict[str, Any] = {key: tuple(state[key]) for key in _HOOKS if state.get(key)}
    own["train mode"] = module.training
    for key in state.keys() - other:
        value = state[key]
        if key in ("processor", "forward"):
            own[key] = (type(value).__qualname__, id(value))
        elif (value := _simple(value)) is not _OTHER:
            own[key] = value
    return own


_OTHER = object()


def _simple(value: Any) -> Any:
    """A setting that can be compared, copied one level deep; `_OTHER` for anything else."""
    if isinstance(value, _SIMPLE):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(value) if all(isinstance(each, _SIMPLE) for each in value) else _OTHER
    if isinstance(value, dict):
        simple = all(isinstance(each, (*_SIMPLE, int)) for each in value.values())
        return tuple(value.items()) if simple else _OTHER
    return _OTHER


def _change(key: str, then: Any, now: Any) -> str:
    """A change of a setting, in words."""
    if key in _HOOKS:
        return f"its {key.strip('_').replace('_', ' ')} are {len(now or ())}, and were {len(then or ())}"
    if key in ("processor", "forward"):
        return f"its {key} is another one"
    return f"{key} is {now!r}, and was {then!r}"


def _sampled(tensors: Mapping[str, Tensor]) -> dict[str, _Value]:
    """One value of each tensor, to detect writes that bypass the version counters (through `.data`).

    The values are read in one stack for each device and dtype, so that a model of hundreds of weights costs a few
    milliseconds.

    Args:
        tensors: the tensors, by name.

    Returns:
        the values, by name; none of quantized or sharded tensors and of placeholders.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name, tensor in tensors.items():
        # Subclasses (quantized, sharded) have no plain elements, and placeholders have none at all.
        if type(tensor) in (Tensor, nn.Parameter) and tensor.numel() and not tensor.is_meta:
            groups.setdefault((tensor.device, tensor.dtype), []).append(name)
    found: dict[str, _Value] = {}
    with torch.no_grad():
        for (_, dtype), names in groups.items():
            picked = [tensors[name][tuple(n // 2 for n in tensors[name].shape)] for name in names]
            values = torch.stack(picked)
            values = values.float() if dtype.is_floating_point and dtype.itemsize == 1 else values
            found |= dict(zip(names, values.tolist(), strict=True))
    return found


def _sharded(tensor: Tensor | None) -> bool:
    """Whether a tensor is a shard (DTensor); while FSDP has gathered it, the whole weight replaces it."""
    return hasattr(tensor, "full_tensor")


def _same(then: _Value, now: _Value | None) -> bool:
    return then == now or (now is not None and then != then and now != now)  # NaN counts as equal to NaN


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _address(tensor: Tensor) -> int | None:
    return tensor.data_ptr() if type(tensor) in (Tensor, nn.Parameter) else None
