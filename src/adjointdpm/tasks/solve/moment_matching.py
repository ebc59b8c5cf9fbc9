"""MMPS, moment matching posterior sampling: each predicted image is corrected by what was measured.

    p(x0 | z_i) = N(x^, V),      x^ = x0(z_i),      V = sigma_i^2 / alpha_i  d x^ / d x_i        Tweedie's formulas
    (sigma^2 I + A V A^T) a = y - A(x^)             by a few iterations of conjugate gradients
    x^ <- x^ + V A^T a,      z_{i+1} = z_i + (tau_{i+1} - tau_i) (z_i - x^) / tau_i

The covariance V is symmetric for an ideal denoiser, so it is applied by one vector-Jacobian product of the network in
each iteration, and V A^T a is the sum of what the iterations computed. A is the measurement of the decoded latents,
linearized at x^: A^T by a vector-Jacobian product, and A by a Jacobian-vector product (forward mode), both without the
network. The steps are Euler's, without noise.

References: Rozet et al., 2024, arXiv 2405.13712.
"""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..._types import Cond, InputError, Time
from ...flow.per_sample import dot, widened
from ...metrics.measured import Measured
from ...samplers.flow_sampler import FlowSampler
from ..guide.look_ahead import Guided

__all__ = ["check_linearized", "moment_matched"]


def check_linearized(sampler: FlowSampler, metric: Measured, noise: Tensor) -> None:
    """Raise before any long work if the decoder or the operator cannot be linearized.

    Args:
        sampler: the model.
        metric: the measurement.
        noise: as of the sampler; for its shape, type and device.

    Raises:
        InputError: one of them has no forward-mode derivative.
    """
    _pushed(sampler, metric, torch.zeros_like(noise[:1]), torch.zeros_like(noise[:1]))


def moment_matched(sampler: FlowSampler, metric: Any, noise: Tensor, cond: Cond, iterations: int) -> Guided:
    """Sample from the posterior of a measurement, with the sampler's own time grid.

    Args:
        sampler: the model, its guidance and its steps.
        metric: the measurement; an operator that is not linear is linearized at each prediction.
        noise: as of the sampler.
        cond: as of the sampler.
        iterations: of conjugate gradients in each step; a step takes one denoiser call forward, and one backward for
            each of them.

    Returns:
        Guided: the images, the mean metric of the predictions before their corrections, and the calls.

    Raises:
        InputError: the metric is no `Measured`, or its operator or the decoder has no forward-mode derivative.
    """
    if not isinstance(metric, Measured):
        raise InputError(
            f"mmps solves for what was measured, so it needs a Measured, but got {type(metric).__name__}; "
            "choose dps or another solver, which need the metric's gradient alone"
        )
    ivp = sampler.problem(noise, cond)
    grid, z, losses = ivp.grid, ivp.initial, list[float]()
    for i in range(len(grid)):
        leaf = z.detach().requires_grad_()
        with torch.enable_grad():
            x0 = leaf - grid[i].tau * ivp.velocity(leaf, grid[i])
        variance = _variance(grid[i])
        found = x0.detach()
        if variance < torch.inf:  # elsewhere the state holds nothing of the image
            correction, loss = _corrected(sampler, metric, leaf, x0, variance, iterations)
            found = found + correction
            losses.append(loss)
        z = z + (grid[i + 1].tau - grid[i].tau) * (z - found) / grid[i].tau
    with torch.no_grad():
        images = sampler.decode(ivp.flow.sample(z, grid[len(grid)]))
    return Guided(images, losses, len(grid) * (1 + iterations))


def _variance(time: Time) -> float:
    """Return the factor of d x0 / d z in V: sigma^2 / (alpha scale), as x = scale z."""
    return float(time.sigma**2 / (time.alpha * time.scale))


def _corrected(
    sampler: FlowSampler, metric: Measured, leaf: Tensor, x0: Tensor, variance: float, iterations: int
) -> tuple[Tensor, float]:
    """Return V A^T a for the current state, and the mean metric of its prediction."""
    latents = x0.detach().requires_grad_()
    with torch.enable_grad():
        residual = metric.residual(sampler.decode(latents))

    def covariance(w: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(x0, leaf, w, retain_graph=True)
        return variance * product

    rest = -residual.detach()
    direction, correction = rest, torch.zeros_like(leaf)
    square = dot(rest, rest)
    for _ in range(iterations):
        (pulled,) = torch.autograd.grad(residual, latents, direction, retain_graph=True)
        step = covariance(pulled)
        product = metric.sigma**2 * direction + _pushed(sampler, metric, latents.detach(), step)
        curvature = dot(direction, product)
        # V of a trained network is not quite positive: such a direction is left alone.
        length = torch.where(curvature > 0, square / curvature.clamp(min=1e-30), 0.0)
        correction = correction + widened(length, step) * step
        rest = rest - widened(length, rest) * product
        left = dot(rest, rest)
        direction = rest + widened(left / square.clamp(min=1e-30), rest) * direction
        square = left
    return correction, float(residual.detach().square().mean() / (2 * metric.sigma**2))


def _pushed(sampler: FlowSampler, metric: Measured, latents: Tensor, tangent: Tensor) -> Tensor:
    """Return the derivative of the measurement of decoded latents along a tangent.

    Raises:
        InputError: a part of it has no forward-mode derivative.
        RuntimeError: the decoder or the operator raised it for another reason.
    """
    try:
        # PyTorch compiles its forward-mode rules by its own deprecated torch.jit.script when they are first used, and
        # its fused attention has none.
        with (
            warnings.catch_warnings(action="ignore", category=DeprecationWarning),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            forward_ad.dual_level(),
        ):
            found = metric.residual(sampler.decode(forward_ad.make_dual(latents, tangent)))
            pushed = forward_ad.unpack_dual(found).tangent
    except (NotImplementedError, RuntimeError) as error:
        if "forward" not in str(error).lower():
            raise
        raise InputError(
            f"mmps needs the forward-mode derivative of the operator and of the decoder, but one has none ({error}); "
            "choose dps or another solver"
        ) from error
    return torch.zeros_like(found) if pushed is None else pushed
