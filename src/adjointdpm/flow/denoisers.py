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
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import Cond, InputError, Run, Scalar, Time, direct
from .schedules import Schedule

__all__ = [
    "Denoiser",
    "GaussianMixture",
    "GuidedDenoiser",
    "NetworkDenoiser",
    "Prediction",
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

    Derive from it to sample from a network of your own: implement `forward` and set `prediction`. Every evaluation of
    the network goes through `run(fn, *tensors)`, so that the adjoint decides whether the graph of the evaluation is
    kept, recomputed or not made. `fn` may depend on `tensors` and on this module's own parameters, and on no other
    differentiable tensor. For a pipeline of diffusers use `PipelineModel`, which contains a denoiser.

    Examples:
        >>> import torch
        >>> import adjointdpm as adp
        >>> class Shrink(adp.Denoiser):
        ...     prediction = adp.Prediction.X0
        ...
        ...     def forward(self, x, t, cond, run=lambda fn, *tensors: fn(*tensors)):
        ...         return run(lambda x: 0.5 * x, x)
        >>> Shrink()(torch.ones(1, 2), torch.tensor(0.3, dtype=torch.float64), adp.Cond())
        tensor([[0.5000, 0.5000]])
    """

    prediction: Prediction
    """The quantity that the output is."""

    masks: frozenset[str] = frozenset()
    """The names of the tensors in a conditioning that are integers (masks, class labels) and have no gradient."""

    network: nn.Module | None
    """The network inside, for tuning it and for recomputing its blocks; None where there is none."""

    blocks: Run
    """How the network's blocks are run, where it has a switch for checkpointing them. A planner sets it in a copy."""

    split: bool | None
    """Whether guidance takes two evaluations; None where it cannot be chosen. A planner sets it in a copy."""

    linear_guidance: bool
    """Whether guidance is F_neg + w (F_pos - F_neg) and nothing more, so that it may be split."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.blocks, self.split, self.linear_guidance = None, direct, None, True

    @abstractmethod
    def forward(self, x: Batch, t: Scalar, cond: Cond, run: Run = direct) -> Batch:
        """The network's output F, guidance included.

        Args:
            x: the noisy sample, (batch, *shape).
            t: the time in the network's own unit, a 0-dimensional float64 tensor.
            cond: the conditioning; each tensor has the batch first, or is 0-dimensional.
            run: executes each evaluation of the network.

        Returns:
            F, (batch, *shape).
        """


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


class GuidedDenoiser(Denoiser):
    """Classifier-free guidance of a network that can be evaluated with and without guidance.

        F = F_neg + w (F_pos - F_neg)

    With `split=False` both halves are one batch, as in pipelines. With `split=True` they are two calls of half the
    size, so one graph, and the memory of `Checkpointed` with it, is half as large.

    References:
        Ho and Salimans, 2022, arXiv 2207.12598.
    """

    @abstractmethod
    def plain(self, x: Batch, t: Scalar, prompt: Tensor) -> Batch:
        """The output without guidance, F_pos.

        Args:
            x: the noisy sample, (batch, *shape).
            t: the time in the network's own unit.
            prompt: the prompt embeddings, (batch, tokens, width).

        Returns:
            F_pos, (batch, *shape).
        """

    @abstractmethod
    def guided(self, x: Batch, t: Scalar, prompt: Tensor, negative: Tensor, w: Tensor) -> Batch:
        """The output with guidance, both halves in one batch.

        Args:
            x: the noisy sample, (batch, *shape).
            t: the time in the network's own unit.
            prompt: the prompt embeddings, (batch, tokens, width).
            negative: the negative embeddings, (batch, tokens, width).
            w: the guidance scale, 0-dimensional.

        Returns:
            F, (batch, *shape).
        """

    def forward(self, x: Batch, t: Scalar, cond: Cond, run: Run = direct) -> Batch:
        prompt = cond["prompt_embeds"]
        if "negative_prompt_embeds" not in cond:
            return run(self.plain, x, t, prompt)
        negative, w = cond["negative_prompt_embeds"], cond["guidance_scale"]
        if not self.split:
            return run(self.guided, x, t, prompt, negative, w)
        unguided = run(self.plain, x, t, negative)
        return unguided + w * (run(self.plain, x, t, prompt) - unguided)


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

    def forward(self, x: Batch, t: Scalar, cond: Cond, run: Run = direct) -> Batch:
        missing = [name for name in self.takes if name not in cond]
        if missing:
            raise InputError(
                f"the network takes {', '.join(missing)}, which the conditioning does not hold"
            )
        given = [cond[name] for name in self.takes]
        aimed = run(self._evaluate, x, t, *given)
        if not any(name.startswith("negative_") for name in cond):
            return aimed
        negative = [
            cond.get(f"negative_{name}", tensor) for name, tensor in zip(self.takes, given, strict=True)
        ]
        unguided = run(self._evaluate, x, t, *negative)
        return unguided + cond["guidance_scale"] * (aimed - unguided)

    def _evaluate(self, x: Tensor, t: Tensor, *given: Tensor) -> Tensor:
        assert self.network is not None
        return self.network(x, network_time(t, x).expand(len(x)), *given)


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

    def forward(self, x: Batch, t: Scalar, cond: Cond, run: Run = direct) -> Batch:
        return run(self._output, x, t, *([cond["shift"]] if "shift" in cond else []))

    def _output(self, x: Tensor, t: Scalar, shift: Tensor | None = None) -> Tensor:
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
