"""What is trained in a network: a LoRA, or weights by name; and what it is trained for.

    min_theta  E_noise L(x_theta(noise, c); x_0(noise, c))     x_0 the untuned model's image of the same noise

The noise is fresh in each step, so that weights learn the metric and not some images.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ..._types import InputError
from ...files.atomic_write import write_file
from ...files.diffusers_files import as_written, network_in, plain_name, save_lora, unwrapped
from ...files.kohya import save_kohya
from ...optimization.seeds import forked
from .adapters import NetworkState, tuner_layers
from .precision import HALF, Master, master_of

__all__ = ["Lora", "Subset", "Weights"]

ADAPTER = "adjointdpm"


class Weights(ABC):
    """Which weights of the denoising network are trained, in float32 whatever the network's dtype is."""

    @abstractmethod
    def attach(self, network: Any, seed: int) -> dict[str, Tensor]:
        """The leaves to train, by name; the network as such is unchanged until they change.

        Adapters that are loaded stay loaded and active. `adapters.NetworkState` takes back what this adds.
        """

    @abstractmethod
    def settle(self, network: Any, leaves: Mapping[str, Tensor], before: NetworkState) -> None:
        """End the training: the network keeps what was learned, and has its own flags, modes and dtype again."""

    @abstractmethod
    def save(self, folder: Path, pipe: Any, leaves: Mapping[str, Tensor]) -> Path:
        """Write them where other tools find them; returns where."""

    def loading(self, path: Path) -> list[str]:
        """Return lines of Python or of a shell, each of which loads what was saved."""
        return [f'weights = safetensors.torch.load_file("{path}")']


@dataclass(frozen=True)
class Lora(Weights):
    """Low-rank updates W + (alpha / r) B A of named layers (Hu et al., 2021, arXiv 2106.09685).

    A and B are float32 over a network of any dtype, as those of peft's `autocast_adapter_dtype`.

    Args:
        rank: r >= 1.
        lora_alpha: alpha, above 0; r by default.
        lora_layers: ends of the names of the layers that get one.

    Raises:
        InputError: rank < 1, or an alpha that is no positive number; when attached, no layer of these names, a
            network that takes no adapters, or peft is missing.
    """

    rank: int = 4
    lora_alpha: float | None = None
    lora_layers: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"a LoRA's rank is at least 1, but is {self.rank}")
        if self.lora_alpha is not None and not 0 < self.lora_alpha < math.inf:
            raise InputError(f"a LoRA's lora_alpha is above 0 and finite, but is {self.lora_alpha}")
        if isinstance(self.lora_layers, str) or not self.lora_layers:
            raise InputError(
                f"a LoRA's lora_layers are a tuple of names such as ('to_q',), but are {self.lora_layers!r}"
            )

    def attach(self, network: Any, seed: int) -> dict[str, Tensor]:
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise InputError("tuning weights needs peft: pip install 'adjointdpm[lora]'") from error
        network = unwrapped(network)
        if not hasattr(network, "add_adapter"):
            raise InputError(
                f"a LoRA needs a network of diffusers, but {type(network).__name__} has no add_adapter; "
                "train weights by name with Subset"
            )
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.rank if self.lora_alpha is None else self.lora_alpha,  # type: ignore[arg-type]
            target_modules=list(self.lora_layers),
        )
        before, known = NetworkState.of(network), getattr(network, "peft_config", {})
        adapter = next(each for each in _names() if each not in known)
        for layer in before.layers:  # else peft would take fused adapters out of the weights
            layer.merged_adapters = []
        with forked(seed, "lora"), warnings.catch_warnings():
            # Several adapters are meant.
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            try:
                network.add_adapter(config, adapter_name=adapter)
            except (ValueError, NotImplementedError) as error:
                before.restore()
                raise InputError(
                    f"no LoRA for the layers {', '.join(self.lora_layers)}: {error}"
                ) from error
        before.join(adapter)
        network.requires_grad_(False)
        leaves: dict[str, Tensor] = {}
        for name, parameter in network.named_parameters():
            if f".{adapter}." in f".{name}." and any(f".{part}." in name for part in ("lora_A", "lora_B")):
                if parameter.dtype.itemsize < 4:
                    parameter.data = parameter.data.float()
                # By one name whatever the adapter is called, so that a checkpoint is of any run with these settings.
                leaves[plain_name(name).replace(f".{adapter}.", f".{ADAPTER}.")] = (
                    parameter.requires_grad_()
                )
        return leaves

    def settle(self, network: Any, leaves: Mapping[str, Tensor], before: NetworkState) -> None:
        before.settle(_adapter(unwrapped(network), leaves))
        before.reset_flags()

    def save(self, folder: Path, pipe: Any, leaves: Mapping[str, Tensor]) -> Path:
        save_lora(folder, pipe, _adapter(network_in(pipe)[1], leaves))
        path = folder / "pytorch_lora_weights.safetensors"
        save_kohya(folder / "kohya_lora.safetensors", path, pipe)  # pyright: ignore[reportUnusedCallResult]
        return path

    def loading(self, path: Path) -> list[str]:
        return [
            f'pipe.load_lora_weights("{path.parent}")',
            f'adjointdpm sample --prompt "a prompt" --lora {path.parent}',
        ]


def _names() -> Iterator[str]:
    yield ADAPTER
    yield from (f"{ADAPTER}_{n}" for n in count(2))


def _adapter(network: Any, leaves: Mapping[str, Tensor]) -> str:
    """Return the name of the adapter that some leaves belong to.

    Raises:
        InputError: the network no longer has it.
    """
    first = next(iter(leaves.values()))
    for _, layer in tuner_layers(network):
        for part in layer.adapter_layer_names:
            for adapter, inside in getattr(layer, part).items():
                if isinstance(inside, nn.Module) and any(each is first for each in inside.parameters()):
                    return adapter
    raise InputError("the network no longer has the adapter that was trained; load the model again")


@dataclass(frozen=True)
class Subset(Weights):
    """Weights of the network itself, by patterns on their names, such as "*.attn2.to_k.weight".

    The names are those of the network's own `state_dict`, without what compiling or an adapter puts into them.
    Where the network is in float16 or bfloat16, float32 masters are trained and it runs their rounded copies.

    Args:
        patterns: as of a shell.

    Raises:
        InputError: no patterns; when attached, one that matches no weight, or a weight that cannot be trained.
    """

    patterns: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.patterns, str) or not self.patterns or not all(self.patterns):
            raise InputError(
                f"patterns are a tuple of names such as ('*.to_k.weight',), but are {self.patterns!r}"
            )

    def attach(self, network: Any, seed: int) -> dict[str, Tensor]:
        network = unwrapped(network)
        foreign = {
            id(each)
            for _, layer in tuner_layers(network)
            for part in (*layer.adapter_layer_names, *layer.other_param_names)
            if isinstance(getattr(layer, part, None), nn.Module)
            for each in getattr(layer, part).parameters()
        }
        named = {plain_name(n): p for n, p in network.named_parameters() if id(p) not in foreign}
        buffers = {plain_name(name) for name, _ in network.named_buffers()}
        for pattern in self.patterns:
            if any(fnmatchcase(name, pattern) for name in named):
                continue
            if found := [name for name in sorted(buffers) if fnmatchcase(name, pattern)]:
                raise InputError(f"{pattern!r} matches {found[0]}, a buffer; only weights can be trained")
            some = ", ".join(list(named)[:5])
            raise InputError(
                f"no weight's name matches {pattern!r} in the denoising network, a {type(network).__name__}; "
                f"the first names are {some}"
            )
        chosen = {n: p for n, p in named.items() if any(fnmatchcase(n, each) for each in self.patterns)}
        for name, weight in chosen.items():
            if not weight.is_floating_point() or (weight.dtype.itemsize < 4 and weight.dtype not in HALF):
                raise InputError(
                    f"the weight {name} is of {weight.dtype}, which cannot be trained; load the network in "
                    "float32, bfloat16 or float16, or train a LoRA"
                )
        network.requires_grad_(False)
        return {
            name: master_of(network, weight) if weight.dtype in HALF else weight.requires_grad_()
            for name, weight in chosen.items()
        }

    def settle(self, network: Any, leaves: Mapping[str, Tensor], before: NetworkState) -> None:
        with torch.no_grad():
            for module in unwrapped(network).modules():
                for chain in getattr(module, "parametrizations", {}).values():
                    for each in chain:
                        if isinstance(each, Master):
                            chain.original.copy_(each.master)
        before.restore()

    def save(self, folder: Path, pipe: Any, leaves: Mapping[str, Tensor]) -> Path:
        path = folder / "weights.safetensors"
        tensors = {name: as_written(name, leaf) for name, leaf in leaves.items()}
        write_file(path, save(tensors, {"format": "pt"}))
        return path

    def loading(self, path: Path) -> list[str]:
        return [f'network.load_state_dict(safetensors.torch.load_file("{path}"), strict=False)']
