"""Where the loop stands: what a checkpoint holds besides its settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .._types import InputError

__all__ = ["State"]


@dataclass(eq=False)
class State:
    """The loop's own state; variables and optimizer are beside it.

    best, best_rank, best_loss, best_step   the best iterate (rows of it, where items have rows)
    losses   mean loss of each iterate so far
    stale    iterates since one was better
    """

    best: dict[str, Tensor]
    best_rank: Tensor
    best_loss: Tensor
    best_step: Tensor
    step: int = 0
    stale: int = 0
    finished: bool = False
    losses: list[float] = field(default_factory=list)

    @classmethod
    def fresh(cls, variables: Mapping[str, Tensor], rows: int) -> "State":
        """Before the first step."""
        never = torch.full((rows,), torch.inf, dtype=torch.float64)
        best = {name: leaf.detach().clone() for name, leaf in variables.items()}
        return cls(best, never, never.clone(), torch.zeros(rows, dtype=torch.int64))

    def note(
        self,
        variables: Mapping[str, Tensor],
        mean: float,
        losses: Tensor,
        ranks: Tensor,
        items: list[int] | None,
    ) -> None:
        """An iterate has been scored: copy it (or the rows of `items`) where its rank is the lowest so far."""
        losses, ranks = losses.cpu(), ranks.cpu()
        rows = torch.tensor([0] if items is None else items)
        better = ranks < self.best_rank[rows]
        chosen = rows[better]
        self.best_rank[chosen], self.best_loss[chosen] = ranks[better], losses[better]
        self.best_step[chosen] = self.step
        for name, leaf in variables.items():
            if items is None and len(chosen):
                self.best[name].copy_(leaf.detach())
            elif items is not None:
                at = chosen.to(leaf.device)
                self.best[name][at] = leaf.detach()[at]
        self.stale = 0 if len(chosen) else self.stale + 1
        self.losses.append(mean)

    def packed(
        self, variables: Mapping[str, Tensor], optimizer: Optimizer
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All of it as named tensors, and the rest as JSON."""
        tensors = {f"variables/{name}": leaf for name, leaf in variables.items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        tensors |= {"best_rank": self.best_rank, "best_loss": self.best_loss, "best_step": self.best_step}
        plain: dict[str, dict[str, Any]] = {}
        for i, entries in optimizer.state_dict()["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{i}/{name}"] = value
                else:
                    plain.setdefault(str(i), {})[name] = value
        about = {"step": self.step, "stale": self.stale, "finished": self.finished, "losses": self.losses}
        return tensors, {**about, "optimizer": plain}

    def restore(
        self,
        tensors: Mapping[str, Tensor],
        about: Mapping[str, Any],
        variables: Mapping[str, Tensor],
        optimizer: Optimizer,
    ) -> None:
        """Put everything back as it was packed.

        Raises:
            InputError: a variable is missing or has another shape.
        """
        for name, leaf in variables.items():
            saved = tensors.get(f"variables/{name}")
            if (
                saved is None
                or saved.shape != leaf.shape
                or len(tensors["best_rank"]) != len(self.best_rank)
            ):
                had = "none" if saved is None else f"of shape {tuple(saved.shape)}"
                raise InputError(
                    f"the checkpoint's variable {name!r} is {had}, but this run's has shape {tuple(leaf.shape)}; "
                    "resume with the same settings, or use another output folder"
                )
            with torch.no_grad():
                leaf.copy_(saved)
            self.best[name].copy_(tensors[f"best/{name}"])
        self.best_rank, self.best_loss = tensors["best_rank"], tensors["best_loss"]
        self.best_step = tensors["best_step"]
        self.step, self.stale = about["step"], about["stale"]
        self.finished, self.losses = about["finished"], list(about["losses"])
        entries = {int(i): dict(values) for i, values in about["optimizer"].items()}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, i, key = name.split("/", 2)
                entries.setdefault(int(i), {})[key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
