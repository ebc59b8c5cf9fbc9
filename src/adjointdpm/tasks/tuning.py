"""What is trained in a network: a LoRA, or weights by name; and what it is trained for.

    min_theta  E_noise L(x_theta(noise, c); x_0(noise, c))     x_0 the untuned model's picture of the same noise

The noise is fresh in each step, so that weights learn the metric and not some pictures.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from .._types import InputError
from ..formats import save_lora
from ..gradients import score
from ..metrics import beside
from ..sampler import FlowSampler, Sampler
from .checkpoint import write_file
from .scores import rows
from .seeds import key, noise_of
from .task import Losses, Task

__all__ = ["Lora", "Stylise", "Subset", "Weights", "network_of", "pipeline_of", "untuned"]

ADAPTER = "adjointdpm"


class Weights(ABC):
    """Which weights of the denoising network are trained."""

    @abstractmethod
    def attach(self, network: Any, seed: int) -> dict[str, Tensor]:
        """The leaves to train, by name; the network as such is unchanged until they change."""

    @abstractmethod
    def remove(self, network: Any, leaves: Mapping[str, Tensor]) -> None:
        """Stop training them; an adapter goes, other weights stay as they are."""

    @abstractmethod
    def save(self, folder: Path, pipe: Any, leaves: Mapping[str, Tensor]) -> Path:
        """Write them where other tools find them; returns where."""


@dataclass(frozen=True)
class Lora(Weights):
    """Low-rank updates W + (alpha / r) B A of named layers (Hu et al., 2021, arXiv 2106.09685).

    Args:
        rank: r >= 1.
        alpha: its scale; r by default.
        modules: ends of the names of layers that get one.
    Raises:
        InputError: rank < 1; when attached, no layer of these names, an adapter of ours, or peft is missing.
    """

    rank: int = 4
    alpha: float | None = None
    modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"a LoRA's rank is at least 1, but is {self.rank}")

    def attach(self, network: Any, seed: int) -> dict[str, Tensor]:
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise InputError("tuning weights needs peft: pip install 'adjointdpm[lora]'") from error
        if ADAPTER in getattr(network, "peft_config", {}):
            raise InputError(
                "this network was tuned before; load the model again, or delete the adapter with "
                f"delete_adapters({ADAPTER!r})"
            )
        network.requires_grad_(False)
        before = set(dict(network.named_parameters()))
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.rank if self.alpha is None else self.alpha,  # type: ignore[arg-type]
            target_modules=list(self.modules),
        )
        with torch.random.fork_rng([]):
            torch.manual_seed(key(seed, "lora"))
            try:
                network.add_adapter(config, adapter_name=ADAPTER)
            except ValueError as error:
                raise InputError(f"no LoRA for the layers {', '.join(self.modules)}: {error}") from error
        return {
            name: p
            for name, p in network.named_parameters()
            if p.requires_grad and f".{ADAPTER}." in name and name not in before
        }

    def remove(self, network: Any, leaves: Mapping[str, Tensor]) -> None:
        network.delete_adapters(ADAPTER)

    def save(self, folder: Path, pipe: Any, leaves: Mapping[str, Tensor]) -> Path:
        save_lora(folder, pipe, ADAPTER)
        return folder / "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Subset(Weights):
    """Weights of the network itself, by patterns on their names, such as "*.attn2.to_k.weight".

    Args:
        patterns: as of a shell.
    Raises:
        InputError: when attached, no weight matches one of them.
    """

    patterns: tuple[str, ...]

    def attach(self, network: Any, seed: int) -> dict[str, Tensor]:
        named = dict(network.named_parameters())
        for pattern in self.patterns:
            if not any(fnmatchcase(name, pattern) for name in named):
                some = ", ".join(list(named)[:5])
                raise InputError(f"no weight's name matches {pattern!r}; the first names are {some}")
        network.requires_grad_(False)
        return {n: p for n, p in named.items() if any(fnmatchcase(n, each) for each in self.patterns)}

    def remove(self, network: Any, leaves: Mapping[str, Tensor]) -> None:
        network.requires_grad_(False)

    def save(self, folder: Path, pipe: Any, leaves: Mapping[str, Tensor]) -> Path:
        path = folder / "weights.safetensors"
        tensors = {name: leaf.detach().cpu().contiguous() for name, leaf in leaves.items()}
        write_file(path, save(tensors, {"format": "pt"}))
        return path


def pipeline_of(sampler: Sampler) -> Any:
    """The stock pipeline behind a sampler.

    Raises:
        InputError: it has none.
    """
    pipe = getattr(getattr(sampler, "field", sampler), "pipe", None)
    if pipe is None:
        raise InputError(
            f"this task needs a sampler over a pipeline, but {type(sampler).__name__} has none"
        )
    return pipe


def network_of(sampler: Sampler) -> nn.Module:
    """The denoising network behind a sampler."""
    if isinstance(sampler, FlowSampler) and isinstance(
        getattr(sampler.field.denoiser, "network", None), nn.Module
    ):
        return sampler.field.denoiser.network  # type: ignore[return-value]
    pipe = pipeline_of(sampler)
    return pipe.transformer if getattr(pipe, "transformer", None) is not None else pipe.unet


@contextmanager
def untuned(leaves: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Iterator[None]:
    """The network as it was: the leaves hold what they held at the start."""
    kept = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(start[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(kept[name])


class Stylise(Task):
    """Weights towards a metric, on some prompts and fresh noise a step.

    Args:
        sampler: makes the pictures.
        metric: of a picture, or of it and the untuned model's (`metrics.Paired`).
        prompts: one item each.
        leaves: what is trained.
        seed: of the noise.
        batch: pictures at once in a validation.
    """

    def __init__(
        self,
        sampler: Sampler,
        metric: Any,
        prompts: Sequence[str],
        leaves: Mapping[str, Tensor],
        seed: int = 0,
        batch: int = 1,
    ) -> None:
        self.sampler, self.metric, self.seed, self.batch = sampler, metric, seed, batch
        self.variables, self.items = leaves, len(prompts)
        self.start = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        with torch.no_grad():
            self.cond = sampler.encode(prompts)

    def losses(self, step: int, items: list[int]) -> Losses:
        return self._of(f"step {step}", items)

    def validate(self, step: int) -> float:
        """The mean of all prompts with the same noise each time; a step's own noise would choose by chance."""
        parts = torch.arange(self.items).split(self.batch)
        with torch.no_grad():
            found = [self._of("validation", part.tolist()).values for part in parts]
        return float(torch.cat(found).mean())

    def _of(self, draw: str, items: list[int]) -> Losses:
        noise = noise_of(self.sampler, [key(self.seed, "tune", draw, i) for i in items])
        cond = rows(self.cond, items)
        with untuned(self.variables, self.start), torch.no_grad():
            originals = self.sampler(noise, cond)
        return Losses(score(beside(self.metric, originals), self.sampler(noise, cond)))
