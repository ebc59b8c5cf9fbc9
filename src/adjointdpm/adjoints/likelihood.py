"""The log-likelihood of an image under the probability flow, by the instantaneous change of variables.

    log p(z_N) = log p(z_0) - int_{tau_0}^{tau_N} div v(z) dtau        dz/dtau = v(z), z_0 noise, z_N data
    div v = E_e [e^T (dv/dz) e]                                        e of +1 and -1, Hutchinson's estimator

The state and the integral are solved together from data to noise. One probe e serves the whole trajectory, as in FFJORD
(Grathwohl et al., 2019, arXiv 1810.01367), so that each probe's estimate of the integral is unbiased. The exact
divergence takes one product for each dimension.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .._types import InputError, State, Stats, Time, in_range
from ..solvers import Heun, Solver
from ..solvers.integrate import IVP, integrate
from .base import wants_gradient
from .evaluation import Counted

__all__ = [
    "LogLikelihood",
    "change_of_variables",
    "check_likelihood",
    "log_likelihood",
    "rademacher",
    "summary",
]


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """The log-likelihood of images, or of their latents where the model has an autoencoder.

    Args:
        value: in nats, (batch,); the mean of the probes.
        standard_error: of the mean over the probes, (batch,); 0 of the exact divergence, NaN of one probe.
        bits_per_dimension: -value / (dimensions log 2), (batch,), of continuous data.
        noise: the noise at which the images arrive, (batch, *latent_shape).
    """

    value: Float[Tensor, "batch"]
    standard_error: Float[Tensor, "batch"]
    bits_per_dimension: Float[Tensor, "batch"]
    noise: Tensor


def check_likelihood(solver: Solver | None, probes: int | None) -> None:
    """Raise unless a likelihood can be integrated by a solver with so many probes.

    Args:
        solver: the solver; Heun() if None.
        probes: number of probes; None for the exact divergence.

    Raises:
        InputError: the solver adds noise in its steps, or there are no probes.
    """
    if probes is not None:
        in_range("probes", probes, 1)
    if solver is not None and solver.drift != 1:
        raise InputError(
            f"{type(solver).__name__} adds noise in its steps; a likelihood needs a solver of the ODE"
        )


def log_likelihood(
    ivp: IVP, prior: Tensor, solver: Solver | None, probes: int | None, seed: int, stats: Stats
) -> LogLikelihood:
    """Integrate the change of variables from a clean state to noise.

    Args:
        ivp: the problem of the sampling; its `initial` holds the clean state.
        prior: the factor from its first state to noise.
        solver: of the ODE; Heun() if None.
        probes: number of probes; None for the exact divergence.
        seed: of the probes.
        stats: counts the calls.

    Returns:
        the log-likelihood of the samples at the grid's clean end.
    """
    ivp, last = replace(ivp, solver=Heun() if solver is None else solver), ivp.grid[len(ivp.grid)]
    shape = tuple(ivp.initial.shape[1:])
    drawn = None if probes is None else rademacher(shape, probes, seed, ivp.initial)
    z, integral = change_of_variables(ivp, stats, drawn)
    noise = z * prior
    density = -0.5 * (noise.double().square() + math.log(2 * math.pi)).flatten(1).sum(1)
    volume = noise[0].numel() * (prior.log() - last.scale.log())
    return summary(density + volume - integral, noise, exact=probes is None)


def rademacher(shape: tuple[int, ...], number: int, seed: int, like: Tensor) -> Tensor:
    """Draw probes of +1 and -1, the same for each sample of a batch.

    Args:
        shape: of one sample.
        number: of probes.
        seed: another seed gives other probes.
        like: a tensor whose dtype and device they take.

    Returns:
        the probes, (number, 1, *shape).
    """
    draw = torch.randint(0, 2, (number, 1, *shape), generator=torch.Generator().manual_seed(seed))
    return (2 * draw - 1).to(like)


def change_of_variables(ivp: IVP, stats: Stats, probes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Solve the flow and the integral of its divergence from data to noise.

    Args:
        ivp: the problem of the sampling; its `initial` holds the clean state, its `solver` may be any of the ODE.
        stats: counts the calls.
        probes: (number, 1, *shape); None for the exact divergence.

    Returns:
        z at the first node, and int div v dtau from there to the last node, (number, batch); one row if it is exact.
        Both have a graph where an input requires a gradient: plain autograd's, with every call's graph in memory.
    """
    counted = ivp.wrapped(lambda each: Counted(each, stats, None))
    wanted, rows = wants_gradient(ivp), 1 if probes is None else len(probes)

    def f(state: State, time: Time) -> State:
        # The fused kernels of attention have no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH) if wanted else nullcontext():
            z = state[0] if wanted and state[0].requires_grad else state[0].detach().requires_grad_()
            slope = counted.velocity(z, time)
            parts: list[Tensor] = []
            for e in _units(z) if probes is None else probes:
                e = e.expand_as(z)
                stats.nfe_backward += 1
                (product,) = torch.autograd.grad(
                    slope, z, e, retain_graph=True, create_graph=wanted, materialize_grads=True
                )
                parts.append((product * e).flatten(1).double().sum(1))
        divergence = torch.stack(parts).sum(0, keepdim=True) if probes is None else torch.stack(parts)
        return (slope, divergence) if wanted else (slope.detach(), divergence.detach())

    start = torch.zeros(rows, len(ivp.initial), dtype=torch.float64, device=ivp.initial.device)
    z, integral = integrate(f, (ivp.initial, start), ivp.grid.reversed(), ivp.solver)
    return z, -integral


def summary(value: Tensor, noise: Tensor, exact: bool) -> LogLikelihood:
    """Average the probes.

    Args:
        value: log-likelihoods in nats, (number of probes, batch).
        noise: the noise at which the images arrive.
        exact: whether the divergence is exact.

    Returns:
        the mean, its standard error, and bits per dimension.
    """
    mean, dimensions = value.mean(0), noise[0].numel()
    if exact or len(value) == 1:
        spread = torch.full_like(mean, 0.0 if exact else math.nan)
    else:
        spread = value.detach().std(0) / math.sqrt(len(value))
    return LogLikelihood(mean, spread, -mean / (dimensions * math.log(2)), noise)


def _units(z: Tensor) -> Tensor:
    """Return the unit vectors of one sample, (dimensions, 1, *shape)."""
    return torch.eye(z[0].numel(), dtype=z.dtype, device=z.device).view(-1, 1, *z.shape[1:])
