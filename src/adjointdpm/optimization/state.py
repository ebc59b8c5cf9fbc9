"""Where the loop stands: what a checkpoint holds besides its settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .._types import InputError
from .task import Standing

__all__ = ["LoopState", "check"]


@dataclass(eq=False)
class LoopState:
    """The loop's own state; variables and optimizer are beside it.

    best, best_rank, best_loss, best_step   the best iterate (rows of it, where items have rows)
    active, fallen   which items are optimized, and how many iterates of each were unwanted in a row
    losses   mean loss of each iterate so far
    taken    number of items of each step
    stale    iterates since one was better
    average  the moving average of the variables, where there is one
    unscored what it was before the last iterate was scored, once the run is finished: more steps go on from there,
             so that they end as one run of all of them would
    """

    best: dict[str, Tensor]
    best_rank: Tensor
    best_loss: Tensor
    best_step: Tensor
    active: Tensor
    fallen: Tensor
    step: int = 0
    stale: int = 0
    finished: bool = False
    losses: list[float] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    average: dict[str, Tensor] | None = None
    unscored: "LoopState | None" = None

    @classmethod
    def fresh(cls, variables: Mapping[str, Tensor], rows: int, averaged: bool = False) -> "LoopState":
        """Return the state before the first step."""
        never = torch.full((rows,), torch.inf, dtype=torch.float64)
        best, average = (
            {name: leaf.detach().clone() for name, leaf in variables.items()} for _ in range(2)
        )
        zeros, all_ = torch.zeros(rows, dtype=torch.int64), torch.ones(rows, dtype=torch.bool)
        state = cls(best, never, never.clone(), zeros, all_, zeros.clone())
        state.average = average if averaged else None
        return state

    def follow(self, variables: Mapping[str, Tensor], decay: float) -> None:
        """Move the average towards the variables, after the optimizer's step k and before k is raised.

            average = d average + (1 - d) v,     d = min(decay, (1 + k) / (10 + k))

        The second bound, which diffusers' `EMAModel` has too, lets it leave the initial values.
        """
        d = min(decay, (1 + self.step) / (10 + self.step))
        for name, mean in (self.average or {}).items():
            mean.lerp_(variables[name].detach(), 1 - d)

    def copy(self) -> "LoopState":
        """Return a copy of the state as it is now."""
        best = {name: tensor.clone() for name, tensor in self.best.items()}
        rows = {name: getattr(self, name).clone() for name in (*_BESTS, *_ITEMS)}
        lists = {"losses": list(self.losses), "taken": list(self.taken)}
        return LoopState(best, **rows, **lists, step=self.step, stale=self.stale)

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

    def retain(
        self, fallen: Tensor | None, items: list[int], going_on: Callable[[int, Standing], Tensor]
    ) -> None:
        """Decide which items are optimized further, after the step that scored some of them."""
        if fallen is not None:
            self.fallen[items] = torch.where(fallen.cpu(), self.fallen[items] + 1, 0)
        standing = Standing(self.best_rank.clone(), self.fallen.clone(), self.active.clone())
        self.active = self.active & going_on(self.step, standing).cpu()

    def packed(
        self, variables: Mapping[str, Tensor], optimizer: Optimizer
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors by name, and the rest as JSON."""
        tensors = {f"variables/{name}": leaf for name, leaf in variables.items()} | self._bests("")
        tensors |= {name: getattr(self, name) for name in _ITEMS}
        tensors |= {f"average/{name}": mean for name, mean in (self.average or {}).items()}
        if self.unscored is not None:
            tensors |= self.unscored._bests("unscored/")
        values: dict[str, dict[str, Any]] = {}
        for i, entries in optimizer.state_dict()["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{i}/{name}"] = value
                else:
                    values.setdefault(str(i), {})[name] = value
        about = {
            "step": self.step,
            "stale": self.stale,
            "finished": self.finished,
            "losses": self.losses,
            "taken": self.taken,
            "unscored": None if self.unscored is None else self.unscored.stale,
            "optimizer": values,
            "entries": {name: _kind(tensor) for name, tensor in tensors.items()},
        }
        return tensors, about

    def _bests(self, prefix: str) -> dict[str, Tensor]:
        found = {f"{prefix}best/{name}": tensor for name, tensor in self.best.items()}
        return found | {f"{prefix}{name}": getattr(self, name) for name in _BESTS}

    def restore(
        self,
        tensors: Mapping[str, Tensor],
        about: Mapping[str, Any],
        variables: Mapping[str, Tensor],
        optimizer: Optimizer,
        more: bool,
    ) -> None:
        """Put everything back as it was packed.

        Args:
            tensors, about: that `check` has found to be sound.
            variables, optimizer: of this run; changed in place.
            more: whether there are steps to come after those of a run that was finished.

        Raises:
            InputError: the variables, or the rows of the best iterate, are not those of this run.
        """
        saved = {name.removeprefix("variables/") for name in tensors if name.startswith("variables/")}
        todo = "resume with the same settings, or use another output folder"
        for name in sorted({*saved, *variables}):
            theirs = _kind(tensors[f"variables/{name}"]) if name in saved else None
            ours = _kind(variables[name]) if name in variables else None
            if theirs != ours:
                raise InputError(
                    f"the checkpoint's variable {name!r} is {_said(theirs)}, but this run's is {_said(ours)}; {todo}"
                )
        rows = len(tensors["best_rank"])
        if rows != len(self.best_rank):
            raise InputError(
                f"the checkpoint is of {rows} items, but this run has {len(self.best_rank)}; {todo}"
            )
        stale, losses, prefix = about["stale"], about["losses"], ""
        if more and about["unscored"] is not None:
            stale, losses, prefix = about["unscored"], losses[: about["step"]], "unscored/"
        for name, leaf in variables.items():
            with torch.no_grad():
                leaf.copy_(tensors[f"variables/{name}"])
            self.best[name].copy_(tensors[f"{prefix}best/{name}"])
            if self.average is not None:
                self.average[name].copy_(tensors[f"average/{name}"])
        for name in _BESTS:
            setattr(self, name, tensors[prefix + name])
        for name in _ITEMS:
            setattr(self, name, tensors[name])
        self.step, self.finished = about["step"], about["finished"] and not more
        self.stale, self.losses, self.taken = stale, list(losses), list(about["taken"])
        entries = {int(i): dict(values) for i, values in about["optimizer"].items()}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, i, key = name.split("/", 2)
                entries.setdefault(int(i), {})[key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})


def check(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """See to it that what was packed is complete and fits together.

    Raises:
        ValueError: an entry is missing, or another one than it should be.
    """
    kinds = {
        "step": int,
        "stale": int,
        "finished": bool,
        "losses": list,
        "taken": list,
        "optimizer": dict,
        "entries": dict,
    }
    for name, kind in {**kinds, "unscored": int | None, "config": dict, "loop": dict}.items():
        if name not in about or not isinstance(about[name], kind):
            raise ValueError(f"its metadata has no {name}, or one of the wrong kind")
    entries, step = about["entries"], about["step"]
    for name in sorted({*entries, *tensors}):
        has = _kind(tensors[name]) if name in tensors else None
        if has != entries.get(name):
            raise ValueError(f"{name} should be {_said(entries.get(name))}, but is {_said(has)}")
    variables = [name.removeprefix("variables/") for name in entries if name.startswith("variables/")]
    for name in _ITEMS:
        if name not in entries:
            raise ValueError(f"{name} is missing")
    for prefix in ("",) if about["unscored"] is None else ("", "unscored/"):
        for name in (*_BESTS, *(f"best/{each}" for each in variables)):
            if prefix + name not in entries:
                raise ValueError(f"{prefix}{name} is missing")
        when = tensors[f"{prefix}best_step"]
        if not bool(((when >= 0) & (when <= step)).all()):
            raise ValueError(f"its best iterates are of steps that do not lie between 0 and {step}")
    scored = step + (about["unscored"] is not None)
    if step < 0 or len(about["losses"]) != scored:
        raise ValueError(
            f"it is of step {step} and should have {scored} losses, but has {len(about['losses'])}"
        )
    if len(about["taken"]) != step:
        raise ValueError(f"it is of step {step}, but has the items of {len(about['taken'])} steps")


_BESTS = ("best_rank", "best_loss", "best_step")
_ITEMS = ("active", "fallen")


def _kind(tensor: Tensor) -> list[Any]:
    """Return what a tensor's dtype and shape must be, for JSON."""
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


def _said(kind: list[Any] | None) -> str:
    return "missing" if kind is None else f"{kind[0]} of shape {tuple(kind[1])}"
