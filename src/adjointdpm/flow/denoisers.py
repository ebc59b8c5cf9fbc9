"""Denoisers: the output of a network at (x, t, cond), and how eps and x0 follow from it.

A network's output F is one of four quantities. With x = alpha x0 + sigma eps each of them determines eps and x0:

    EPS        eps = F                                x0 = (x - sigma F) / alpha
    X0         eps = (x - alpha F) / sigma            x0 = F
    V          eps = (sigma x + alpha F) / n          x0 = (alpha x - sigma F) / n     n = alpha^2 + sigma^2
    VELOCITY   eps = (x + alpha F) / (alpha + sigma)  x0 = (x - sigma F) / (alpha + sigma)      F = eps - x0

V is the parameterization of Salimans and Ho, 2022, arXiv 2202.00512; VELOCITY is that of rectified flow.
Classifier-free guidance (Ho and Salimans, 2022, arXiv 2207.12598) is F = F_neg + w (F_pos - F_neg). It is part of
the denoiser, so gradients pass through it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import Cond, InputError, Scalar, Time
from .schedules import Schedule

__all__ = [
    "Denoiser",
    "GaussianMixture",
    "NetworkDenoiser",
    "Prediction",
    "SplitGuidance",
    "WrappedDenoiser",
    "check_output",
    "explained",
    "network_time",
    "weight_of",
]

Batch = Float[Tensor, "batch *shape"]


class Prediction(Enum):
    """The quantity that a network predicts: noise, data, v or velocity.

    The equations are at the head of this module. The values are the names that diffusers uses.

    Examples:
        >>> import adjointdpm as adp
        >>> adp.Prediction("v_prediction")
        <Prediction.V: 'v_prediction'>
    """

    EPS = "epsilon"
    X0 = "sample"
    V = "v_prediction"
    VELOCITY = "flow_prediction"

    def eps(self, out: Batch, x: Batch, time: Time) -> Batch:
        """The noise in x.

        Args:
            out: the network's output F, (batch, *shape).
            x: the sample that the network received, (batch, *shape).
            time: the instant of x.

        Returns:
            eps, (batch, *shape).
        """
        alpha, sigma = time.alpha, time.sigma
        match self:
            case Prediction.EPS:
                return out
            case Prediction.X0:
                return (x - alpha * out) / sigma
            case Prediction.V:
                return (sigma * x + alpha * out) / (alpha**2 + sigma**2)
            case Prediction.VELOCITY:
                return (x + alpha * out) / (alpha + sigma)

    def x0(self, out: Batch, x: Batch, time: Time) -> Batch:
        """The clean sample that x is a noisy version of.

        Args:
            out: the network's output F, (batch, *shape).
            x: the sample that the network received, (batch, *shape).
            time: the instant of x.

        Returns:
            x0, (batch, *shape).
        """
        alpha, sigma = time.alpha, time.sigma
        match self:
            case Prediction.EPS:
                return (x - sigma * out) / alpha
            case Prediction.X0:
                return out
            case Prediction.V:
                return (alpha * x - sigma * out) / (alpha**2 + sigma**2)
            case Prediction.VELOCITY:
                return (x - sigma * out) / (alpha + sigma)

    def drift(self, out: Batch, x: Batch, time: Time) -> Batch:
        """The direction of the straight path from data to noise, eps - x0.

        Args:
            out: the network's output F, (batch, *shape).
            x: the sample that the network received, (batch, *shape).
            time: the instant of x.

        Returns:
            eps - x0, (batch, *shape).
        """
        if self is Prediction.VELOCITY:
            return out
        return self.eps(out, x, time) - self.x0(out, x, time)


class Denoiser(nn.Module, ABC):
    """A network with its guidance, F(x, t, cond); `prediction` says which quantity F is.

    Derive from it to sample from a network of your own: implement `forward` and set `prediction`. The adjoint decides
    what happens to the graph of each evaluation, so `forward` is ordinary differentiable code. It may depend on x, on
    the tensors in `cond` and on this module's own parameters, and on no other differentiable tensor. For a pipeline of
    diffusers use `PipelineModel`, which contains a denoiser.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> class Shrink(adp.Denoiser):
        ...     prediction = adp.Prediction.X0
        ...
        ...     def forward(self, x, t, cond):
        ...         return 0.5 * x
        >>> Shrink()(torch.ones(1, 2), torch.tensor(0.3, dtype=torch.float64), adp.Cond())
        tensor([[0.5000, 0.5000]])
    """

    prediction: Prediction
    """The quantity that the output is."""

    masks: frozenset[str] = frozenset()
    """The names of the tensors in a conditioning that are integers (masks, class labels) and have no gradient."""

    guidance: str = "guidance_scale"
    """The name of the guidance scale in a conditioning."""

    splittable: bool = False
    """Whether one evaluation guides by F_neg + w (F_pos - F_neg), so that `SplitGuidance` can make two of it."""

    network: nn.Module | None
    """The network inside, for tuning it and for recomputing its blocks; None where there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.network = None

    @abstractmethod
    def forward(self, x: Batch, t: Scalar, cond: Cond) -> Batch:
        """The network's output F, guidance included.

        Args:
            x: the noisy sample, (batch, *shape).
            t: the time in the network's own unit, a 0-dimensional float64 tensor.
            cond: the conditioning; each tensor has the batch first, or is 0-dimensional.

        Returns:
            F, (batch, *shape).
        """

    def wrapped(self, wrap: "Callable[[Denoiser], Denoiser]") -> "Denoiser":
        """The same function, with a wrapper around each evaluation that has a graph of its own.

        Args:
            wrap: makes a wrapper of a denoiser.

        Returns:
            the denoiser that evaluates by the wrapper; a single evaluation if a subclass does not override this.
        """
        return wrap(self)

    @property
    def innermost(self) -> "Denoiser":
        """The denoiser inside all wrappers, which messages name."""
        return self


class WrappedDenoiser(Denoiser):
    """A denoiser that evaluates another one. Subclasses say how.

    Args:
        denoiser: the other one.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.prediction, self.masks, self.guidance = denoiser.prediction, denoiser.masks, denoiser.guidance
        # Not `self.network = `, which would register the network a second time.
        object.__setattr__(self, "network", denoiser.network)

    @property
    def innermost(self) -> Denoiser:
        return self.denoiser.innermost


class SplitGuidance(WrappedDenoiser):
    """Classifier-free guidance in two evaluations of a denoiser, each with half the graph.

        F = F_neg + w (F_pos - F_neg)

    F_neg is the output for the tensors whose names begin with `negative_`, and for all others where there is none of
    that name. Use it to halve the memory of `Checkpointed`; a batch of both halves is usually faster.

    Args:
        denoiser: the denoiser, which is called without negative tensors.

    Raises:
        InputError: when it is called, if the conditioning holds negative tensors and no guidance scale.

    References:
        Ho and Salimans, 2022, arXiv 2207.12598.
    """

    def forward(self, x: Batch, t: Scalar, cond: Cond) -> Batch:
        positive = {k: v for k, v in cond.items() if not k.startswith("negative_") and k != self.guidance}
        if not any(name.startswith("negative_") for name in cond):
            return self.denoiser(x, t, Cond(positive))
        negative = {k: cond.get(f"negative_{k}", v) for k, v in positive.items()}
        unguided = self.denoiser(x, t, Cond(negative))
        return unguided + cond[self.guidance] * (self.denoiser(x, t, Cond(positive)) - unguided)

    def wrapped(self, wrap: Callable[[Denoiser], Denoiser]) -> Denoiser:
        return SplitGuidance(self.denoiser.wrapped(wrap))


def check_output(denoiser: Denoiser, out: Any, x: Tensor) -> None:
    """Raise unless a denoiser returned one tensor of its input's shape.

    Args:
        denoiser: the denoiser.
        out: what it returned.
        x: its input.

    Raises:
        InputError: it returned anything else.
    """
    if not isinstance(out, Tensor) or out.shape != x.shape:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(
            f"{type(denoiser.innermost).__name__} must return one tensor of its input's shape {tuple(x.shape)}, but "
            f"returned {got}"
        )


def network_time(t: Scalar, x: Tensor) -> Tensor:
    """The time in the form that networks take: on x's device, and never below float32, whatever the dtype of x is."""
    return t.to(x.device, torch.promote_types(x.dtype, torch.float32))


def weight_of(module: nn.Module) -> Tensor:
    """A floating-point weight of a module, for its dtype and device.

    Args:
        module: the module.

    Returns:
        the first floating-point parameter, else the first floating-point buffer, else a zero.
    """
    tensors = chain(module.parameters(), module.buffers())
    return next((each for each in tensors if each.is_floating_point()), torch.zeros(()))


def explained(error: Exception, given: Mapping[str, Tensor], network: str) -> InputError | None:
    """Translate torch's error about numpy, dtypes or shapes in a network's call into an `InputError`.

    Args:
        error: the error that was raised.
        given: the tensors that the network received, by name.
        network: a description of the network and its dtype, for the message.

    Returns:
        the error to raise instead; None if the error is about something else.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return None
    text = " ".join(str(error).split())[:300]
    if "requires grad" in text and ("numpy" in text or "detach" in text):
        return InputError(
            f"{network} converts a tensor that requires a gradient to numpy inside its forward pass, so it cannot be "
            f"differentiated: {text}"
        )
    received = ", ".join(
        f"{k} {tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for k, t in given.items()
    )
    if any(each in text.lower() for each in ("dtype", "expected scalar type", "input type", "data type")):
        return InputError(
            f"dtypes do not fit ({network}, given {received}); give each network one dtype, and noise of that dtype "
            f"(or cast in the network's forward and cast back, or run under torch.autocast): {text}"
        )
    if any(
        each in text.lower()
        for each in ("shape", "size", "dimension", "must match", "channels", "out of range")
    ):
        return InputError(f"shapes do not fit ({network}, given {received}): {text}")
    return None


class NetworkDenoiser(Denoiser):
    """A network of your own: F(x, t, cond) = network(x, t, *conditioning).

    Use it to make a `DiffusionModel` of any PyTorch network. With negative tensors in the conditioning it guides,
    F = F_neg + w (F_pos - F_neg), in two evaluations.

    Args:
        network: called as network(x, t, *conditioning), with t a vector (batch,) in the network's own unit and x's
            dtype; it returns F in x's shape.
        prediction: what F stands for.
        takes: the names of the conditioning, in the order of the network's arguments.
        masks: those of them that are integers, such as class labels.

    Examples:
        >>> import adjointdpm as adp, torch
        >>> class Shrink(torch.nn.Module):
        ...     def forward(self, x, t):
        ...         return x * 0.5
        >>> denoiser = NetworkDenoiser(Shrink(), adp.Prediction.EPS)
        >>> denoiser(torch.ones(1, 2), torch.tensor(3.0, dtype=torch.float64), adp.Cond())
        tensor([[0.5000, 0.5000]])
    """

    def __init__(
        self,
        network: nn.Module,
        prediction: Prediction,
        takes: Sequence[str] = (),
        masks: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.network, self.prediction = network, prediction
        self.takes, self.masks = tuple(takes), frozenset(masks)

    def forward(self, x: Batch, t: Scalar, cond: Cond) -> Batch:
        if any(name.startswith("negative_") for name in cond):
            return SplitGuidance(self)(x, t, cond)
        missing = [name for name in self.takes if name not in cond]
        if missing:
            raise InputError(
                f"the network takes {', '.join(missing)}, which the conditioning does not hold"
            )
        assert self.network is not None
        return self.network(x, network_time(t, x).expand(len(x)), *(cond[name] for name in self.takes))

    def wrapped(self, wrap: Callable[[Denoiser], Denoiser]) -> Denoiser:
        return SplitGuidance(wrap(self))


class GaussianMixture(Denoiser):
    """The exact denoiser of a mixture of isotropic Gaussians, in closed form.

        p(x0) = sum_k w_k N(x0; m_k, s^2 I)
        E[x0 | x] = sum_k r_k(x) (m_k + alpha s^2 / (alpha^2 s^2 + sigma^2) (x - alpha m_k))
        r_k(x) proportional to w_k N(x; alpha m_k, (alpha^2 s^2 + sigma^2) I)

    With one component the flow itself is known (`exact_flow`). Use it to compare a solver or an adjoint with the exact
    result; it is not a model of images. The conditioning may hold `shift` (batch, dim), which is added to every mean.

    Args:
        schedule: gives alpha and sigma at t.
        means: (components, dim); a parameter, so that weight gradients can be checked too.
        std: s > 0, the components' common standard deviation.
        prediction: the quantity that the output is.
    """

    def __init__(
        self,
        schedule: Schedule,
        means: Float[Tensor, "components dim"],
        std: float,
        prediction: Prediction = Prediction.EPS,
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.means = nn.Parameter(means.clone())
        self.std = std
        self.prediction = prediction

    def forward(self, x: Batch, t: Scalar, cond: Cond) -> Batch:
        shift = cond.get("shift")
        (time,) = self.schedule.at(t.reshape(1))
        alpha, sigma = time.alpha, time.sigma
        means = self.means if shift is None else self.means + shift[:, None]
        variance = alpha**2 * self.std**2 + sigma**2
        away = x[:, None] - alpha * means
        r = (-(away**2).sum(-1) / (2 * variance)).softmax(dim=1)[..., None]
        x0 = (r * (means + alpha * self.std**2 / variance * away)).sum(1)
        eps = (r * away).sum(1) * (sigma / variance)  # = (x - alpha x0) / sigma, and finite at 0
        match self.prediction:
            case Prediction.EPS:
                return eps
            case Prediction.X0:
                return x0
            case Prediction.V:
                return alpha * eps - sigma * x0
            case Prediction.VELOCITY:
                return eps - x0

    def exact_flow(self, x: Batch, start: Time, end: Time) -> Batch:
        """The exact solution of the ODE from `start` to `end`; known for one component only.

        x_end = alpha_end m + (x_start - alpha_start m) sqrt(v_end / v_start),  v = alpha^2 s^2 + sigma^2

        Args:
            x: the state at `start`, (batch, dim).
            start: the first instant.
            end: the last instant.

        Returns:
            the state at `end`, (batch, dim).

        Raises:
            InputError: there is more than one component.
        """
        if len(self.means) != 1:
            raise InputError(f"the flow of {len(self.means)} components has no closed form; use one")
        v = [time.alpha**2 * self.std**2 + time.sigma**2 for time in (start, end)]
        return end.alpha * self.means + (x - start.alpha * self.means) * (v[1] / v[0]).sqrt()
