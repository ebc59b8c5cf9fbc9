"""DRTune: a few calls at equal distances are differentiated, each at an input without a graph.

    v_i = v(sg(z_i), tau_i)    for K equally spaced i <= e with a random offset, sg(v_i) for the others
    xhat = z_e + (tau_N - tau_e) v_e          e the early stop, at random in the last part of the calls

The sampler's steps up to z_e carry the gradient of the v_i. The last line is the data prediction at z_e; where e is the
last call of an Euler sampler it is the last step.
"""

import random
from dataclasses import dataclass

from .._types import InputError, in_range
from ..solvers.integrate import IVP
from .surrogate import DetachedCalls, Plan, Planned, Quadrature, equally_spaced

__all__ = ["DRTune"]


@dataclass(frozen=True)
class DRTune(Planned):
    """The gradient through K equally spaced calls whose inputs are detached (Wu et al., 2024, arXiv 2405.00760).

        xhat = z_e + (tau_N - tau_e) v_e,     v_i = v(sg(z_i)) for K calls i <= e

        memory: K states + 1 graph;    time: N f + K (f + b)

    It reaches the early calls at the cost of K, and leaves out that a change of an early velocity changes the later
    ones. Use it to train weights with many steps, and compare it with the exact gradient first (`compare`). Do not use
    it for noise, whose gradient is refused.

    The published method evaluates the reward on the data prediction at the early stop. Here the image is the
    sampler's own, and the gradient of that prediction is taken at it; with `early_stop=0.0` the sampling itself is
    differentiated, and both are the same. The data prediction is an Euler step to the end of the grid. For a model of
    noise the noise is detached and DDIM's steps carry the gradient, for a rectified flow the velocity and
    Euler's steps: both are the published form.

    Args:
        steps: K >= 1, the number of calls that are differentiated; all if there are fewer.
        early_stop: the share of the calls, 0 to 1, in which the stop is drawn, counted from the last; with 0 there is
            no stop. A pipeline's own scheduler (`differentiable`, `PipelineSampler`) needs 0.
        seed: decides offset and stop, together with the noise: the same for the same noise, so that a run can be
            repeated; for one noise again and again give another seed each time.

    Raises:
        InputError: steps < 1; early_stop outside [0, 1]; or the noise or the time grid requires a gradient.

    References:
        Wu et al., 2024, arXiv 2405.00760; as in the comparison of FlowBP, Wang et al., 2026, arXiv 2606.11075.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=6, adjoint=adp.DRTune(steps=2))
        >>> cond = sampler.encode("a cat").requires_grad_()
        >>> sampler(sampler.noise(1), cond).mean().backward()
        >>> sampler.stats.nfe_backward
        2
    """

    steps: int = 3
    early_stop: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps is a number of denoiser calls, at least 1, but is {self.steps}")
        in_range("early_stop, a share of the calls,", self.early_stop, 0, 1)

    def plan(self, ivp: IVP, quadrature: Quadrature, choices: random.Random) -> Plan:
        calls = quadrature.useful
        last = round(len(calls) * self.early_stop)
        own = quadrature.weights(quadrature.calls)
        if last:
            calls = calls[: len(calls) - choices.randint(1, last) + 1]
            e = calls[-1]
            own = quadrature.weights(e)
            own[e] = quadrature.end - quadrature.taus[e]
        chosen = (calls[place] for place in equally_spaced(self.steps, len(calls), choices))
        return Plan({i: own[i] for i in chosen})

    def in_pipeline(self) -> DetachedCalls:
        if self.early_stop:
            raise InputError(
                f"{self!r} stops before the last step, which a pipeline's own call cannot; use "
                f"DRTune(steps={self.steps}, early_stop=0.0) here, or FlowSampler.from_pipeline(pipe, adjoint=...)"
            )
        return DetachedCalls(
            self, lambda calls, choices: equally_spaced(self.steps, calls, choices), self.seed
        )
