"""Null-text optimization: the negative embeddings with which a guided sampling follows the states of an inversion.

    S_i(z*_i) = z*_{i+1}                          without guidance: the pivot, which an inversion finds easily
    null_i  =  argmin |z*_{i+1} - S_i(z_i; null)|^2 / |z*_{i+1}|^2,     z_{i+1} = S_i(z_i; null_i),     z_0 = z*_0

S_i is a step of the sampler's own solver, with guidance in the second line. The paper inverts DDIM approximately and
takes 10 iterations of Adam; here the pivot is exact, and the iterations are those of L-BFGS, for each image by itself.
Where no pair of L-BFGS has a positive curvature yet, its length is Polyak's, L / |g|^2; a trial that is not better is
followed by one at a quarter of the length. The prediction for the prompt does not depend on the embedding, and is
evaluated once in a step that begins with its state (all of Euler's; the first evaluation of Midpoint's).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._types import Cond, InputError, State, Stats, Time
from ..flow.denoisers import Denoiser, SplitGuidance
from ..flow.null_text import NEGATIVE, NullText
from ..flow.per_sample import chosen, dot, widened
from ..solvers.integrate import IVP, integrate
from ..solvers.inversion import InversionError, check_invertible, check_steps_apart
from ..solvers.lbfgs import Pair, lbfgs_move
from .evaluation import Counted, Held
from .inversion import solution

__all__ = ["NullTexts", "check_null_text", "checked_null_texts", "null_texts", "unguided"]

_PAIRS = 10
_SHORTER = 0.25
_PIVOT = 1e-4  # of the residual of each step of the pivot


@dataclass(frozen=True, eq=False)
class NullTexts:
    """What an optimization found.

    start       the first state, (batch, *shape)
    denoiser    the denoiser with the embeddings of all steps
    residuals   of each step, the largest |z*_{i+1} - z_{i+1}| / |z*_{i+1}| of the batch
    """

    start: Tensor
    denoiser: NullText
    residuals: list[float]


def check_null_text(ivp: IVP, images: Tensor) -> None:
    """Raise unless null-text optimization can be made for a sampling.

    Args:
        ivp: the problem of the sampling, its conditioning with the guidance scale.
        images: what is inverted.

    Raises:
        InputError: a solver that is stochastic, multistep or `Coupled`, or evaluates a step at its end; no guidance to
            optimize; or a gradient of images, conditioning or time grid is required.
    """
    solver, guidance = ivp.solver, ivp.cond.get(ivp.flow.denoiser.guidance)
    check_invertible(solver)
    if not solver.one_step:
        raise InputError(
            f"a step of {solver!r} depends on the steps before it, but null-text optimization goes step by step; use "
            "sampler.replace(solver=Euler())"
        )
    check_steps_apart(solver, ivp.grid)
    if NEGATIVE not in ivp.cond or guidance is None or not float(guidance.max()) > 1:
        has = "has" if NEGATIVE in ivp.cond else "does not have"
        scale = "none" if guidance is None else f"{float(guidance.max()):g}"
        raise InputError(
            f"null-text optimization fits {NEGATIVE} to a guided sampling, but the conditioning {has} one, and the "
            f"guidance scale is {scale}; use a sampler with guidance_scale > 1 and encode the prompt by it, or invert"
        )
    attached = [f"cond[{name!r}]" for name, tensor in ivp.cond.items() if tensor.requires_grad]
    attached += ["images"] if images.requires_grad else []
    attached += ["the time grid"] if ivp.grid.times.requires_grad else []
    if attached and torch.is_grad_enabled():
        raise InputError(
            f"null-text optimization has no gradient, but {', '.join(attached)} requires one; call it under "
            "torch.no_grad(), and pass what requires a gradient to the sampler that it returns; or use invert, which "
            "has one"
        )


def unguided(cond: Cond, guidance: str) -> Cond:
    """Return a conditioning without its negative tensors and its guidance scale.

    Args:
        cond: the conditioning.
        guidance: the name of the scale.

    Returns:
        the conditioning of a sampling at guidance 1.
    """
    return Cond({k: v for k, v in cond.items() if not k.startswith("negative_") and k != guidance})


def null_texts(ivp: IVP, free: IVP, stats: Stats, iterations: int, aim: float) -> NullTexts:
    """Find the pivot, and the negative embedding of each step that keeps a guided sampling on it.

    Args:
        ivp: the problem of the guided sampling; its `initial` holds the clean state.
        free: the same without guidance.
        stats: counts the calls; `drift` receives the distance of the sampling's end from the clean state, as a fraction
            of its norm.
        iterations: the most iterations of each step.
        aim: the distance from the pivot, as a fraction of its norm, at which the iterations of an image end in a step.

    Returns:
        the first state and the denoiser that leads from it towards the clean state, however far the iterations come.

    Raises:
        InputError: a guided step does not depend on its negative embedding.
    """
    ivp, free = (replace(each, initial=each.initial.detach()) for each in (ivp, free))
    pivot = solution(free, stats, _PIVOT).states
    counted, differentiated = ivp.wrapped(lambda each: Counted(each, stats, None)), Stats()

    def held(denoiser: Denoiser) -> Denoiser:
        return Held(Counted(denoiser, stats, None), differentiated)

    split = ivp.wrapped(SplitGuidance) if ivp.flow.denoiser.splittable else ivp
    guided = split.wrapped(held)
    z, given = pivot[0], ivp.cond[NEGATIVE].detach()
    null = given.to(torch.promote_types(given.dtype, torch.float32))  # float16 has no room for small moves
    nulls, residuals = list[Tensor](), list[float]()
    for i in range(len(ivp.grid)):
        step = _Step(guided, i, z, pivot[i + 1], stats, differentiated)
        null, z, away = _optimized(step, null, iterations, aim)
        nulls.append(null)
        residuals.append(float(away.max()))
    denoiser = NullText(ivp.flow.denoiser, ivp.grid.times.detach(), torch.stack(nulls))
    stats.drift = _drift(ivp, NullText(counted.flow.denoiser, denoiser.times, denoiser.nulls), pivot[0])
    return NullTexts(pivot[0], denoiser, residuals)


def checked_null_texts(ivp: IVP, free: IVP, stats: Stats, iterations: int, tolerance: float) -> NullTexts:
    """Like `null_texts`, and raise unless the sampling comes back.

    Args:
        ivp: as in `null_texts`.
        free: likewise.
        stats: likewise.
        iterations: likewise.
        tolerance: the largest distance that is accepted; the iterations aim at a tenth of it.

    Returns:
        as `null_texts`.

    Raises:
        InputError: a guided step does not depend on its negative embedding.
        InversionError: the sampling does not come back to the clean state within the tolerance.
    """
    found = null_texts(ivp, free, stats, iterations, 0.1 * tolerance)
    assert stats.drift is not None
    if not stats.drift <= tolerance:
        worst = max(range(len(found.residuals)), key=lambda i: found.residuals[i])
        raise InversionError(
            f"null-text optimization did not converge to tolerance = {tolerance:g}: step {worst} of {len(ivp.grid)} "
            f"leaves a residual of {found.residuals[worst]:.1e}, and sampling with the embeddings that were found ends "
            f"{stats.drift:.1e} of the latents' norm away. Take more iterations than {iterations}, more steps, a lower "
            "guidance scale or a larger tolerance"
        )
    return found


@dataclass(frozen=True, eq=False)
class _Step:
    """One guided step as a function of its negative embedding."""

    ivp: IVP
    i: int
    z: Tensor
    target: Tensor
    stats: Stats
    differentiated: Stats

    def __call__(self, null: Tensor) -> tuple[Tensor, Tensor]:
        """Return the state after the step, and the square of its distance from the target of each image, relative."""
        cond = self.ivp.cond.replace(**{NEGATIVE: null.to(self.ivp.cond[NEGATIVE].dtype)})
        ivp = replace(self.ivp, cond=cond)

        def f(state: State, time: Time) -> State:
            return (ivp.velocity(state[0], time),)

        ((after,), _) = ivp.solver.step(f, (self.z,), ivp.grid, self.i, ())
        away = after - self.target
        return after, dot(away, away) / dot(self.target, self.target).clamp(min=1e-30)


def _optimized(step: _Step, null: Tensor, iterations: int, aim: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best embedding of each image, the state after its step, and what is left of the distance."""
    best, gradient = null, torch.zeros_like(null)
    scale = torch.ones_like(widened(null[:, 0, 0], null))
    value, after = null.new_full((len(null),), torch.inf), step.target
    pairs: list[Pair] = []
    for k in range(iterations + 1):
        open_ = value.sqrt() > aim
        before = step.differentiated.nfe_forward
        with torch.enable_grad():
            trial = null.clone().requires_grad_()
            state, squares = step(trial)
            total = squares.sum()
        found = squares.detach().to(value)
        better = (found < value) & open_
        calls = step.differentiated.nfe_forward - before
        slope = gradient
        done = k == iterations or bool((torch.minimum(found, value).sqrt() <= aim).all())
        if not done and bool(better.any()):
            slope = _gradient(total, trial)
            step.stats.nfe_backward += calls
            moved = widened((better & value.isfinite()).to(null), null)  # a pair of zeros has no effect
            pairs = [*pairs, (moved * (null - best), moved * (slope - gradient))][-_PAIRS:]
        gradient = chosen(better, slope, gradient)
        scale = chosen(better, torch.ones_like(scale), _SHORTER * scale)
        best, after = chosen(better, null, best), chosen(better, state.detach(), after)
        value = torch.where(better, found, value)
        if done:
            break
        length = value / dot(gradient, gradient).clamp(min=1e-30)
        null = best - scale * lbfgs_move(gradient, pairs, length)
    return best, after, value.sqrt()


def _gradient(total: Tensor, null: Tensor) -> Tensor:
    """Return the gradient of an embedding, and raise where the step does not depend on it."""
    found = torch.autograd.grad(total, null, allow_unused=True)[0] if total.requires_grad else None
    if found is None:
        raise InputError(
            f"a guided step does not depend on cond[{NEGATIVE!r}], so there is nothing to optimize: the denoiser does "
            "not use it, or the sampler is one that invert_null_text returned, which holds embeddings of its own; call "
            "it on the sampler that this one came from"
        )
    return found


def _drift(ivp: IVP, denoiser: NullText, start: Tensor) -> float:
    """Return the largest distance of the batch at which a sampling with null embeddings ends, relative."""
    ivp = replace(ivp, flow=replace(ivp.flow, denoiser=denoiser))
    with torch.no_grad():
        (end,) = integrate(
            lambda state, time: (ivp.velocity(state[0], time),), (start,), ivp.grid, ivp.solver
        )
    away = end - ivp.initial
    return float((dot(away, away) / dot(ivp.initial, ivp.initial).clamp(min=1e-30)).max().sqrt())
