"""LeapAlign: two leaps over many steps each, the second one's input with a part of its gradient.

zhat_j = z_k + (tau_j - tau_k) v_k,     zhat_N = zconn_j + (tau_N - tau_j) v_j        k < j at random
zconn_j = zhat_j + sg(z_j - zhat_j),    v_j = v(a zconn_j + (1 - a) sg(zconn_j))
gradient / (max(d_j, t) + max(d_N, t)),    d = mean |x - xhat|
"""

import random
from dataclasses import dataclass

from .._types import InputError, in_range
from ..solvers.integrate import IVP
from .surrogate import Leap, Plan, Planned, Quadrature

__all__ = ["LeapAlign"]


@dataclass(frozen=True)
class LeapAlign(Planned):
    """The gradient of two leaps, from call k to call j and from j to the end (Liang et al., 2026, arXiv 2604.15311).

        zhat_j = z_k + (tau_j - tau_k) v_k,     zhat_N = zconn_j + (tau_N - tau_j) v_j

        memory: 2 states + 1 graph;    time: N f + 2 (f + b)

    k < j are two calls at random, each pair as likely as any other. Both leaps are pinned to the sampled states
    (straight-through), so the image is the sampler's own, and a sample whose leaps miss these states by much has a
    smaller gradient. Use it to train weights at any step for the cost of two. Do not use it for noise, whose gradient
    is refused, nor where the length of the gradient matters: a leap is longer than the sampler's own steps.

    A leap is an Euler step in the coordinates z and tau of this library, hence a step of DDIM. For a rectified flow
    z = x and tau = sigma, which is the published form; for a model of noise z = x / alpha, tau = sigma / alpha and
    v = eps. Distances are those of x.

    Args:
        coupling: a, 0 to 1, the part of the gradient that passes through the input of the second leap.
        similarity: t > 0, the least distance by which the gradient is divided; None leaves the division out. Each
            distance has this bound, as in the published code.
        seed: decides k and j, together with the noise: the same for the same noise; see `DRTune`.

    Raises:
        InputError: coupling or similarity outside their range; the noise or the time grid requires a gradient; a
            solver that adds noise or makes several calls a step; or fewer than two steps.

    References:
        Liang et al., 2026, arXiv 2604.15311; coupling and similarity as in arXiv 2606.11075.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=6, adjoint=adp.LeapAlign())
        >>> cond = sampler.encode("a cat").requires_grad_()
        >>> sampler(sampler.noise(1), cond).mean().backward()
        >>> sampler.stats.nfe_backward
        2
    """

    coupling: float = 0.3
    similarity: float | None = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        in_range("coupling", self.coupling, 0, 1)
        if self.similarity is not None:
            in_range("similarity, a distance,", self.similarity, 0, open_low=True)

    def plan(self, ivp: IVP, quadrature: Quadrature, choices: random.Random) -> Plan:
        quadrature.refuse_leaps(ivp, self)
        N = quadrature.calls
        if N < 2:
            raise InputError(f"{self!r} needs at least 2 steps for its two leaps, but the sampler has {N}")
        k, j = sorted(choices.sample(range(N), 2))
        tau = quadrature.taus
        first, second = {k: tau[j] - tau[k]}, {j: quadrature.end - tau[j]}
        leaps = (Leap(k, j, first), Leap(j, N, second))
        scaled = {} if self.similarity is None else {"leaps": leaps, "floor": self.similarity}
        return Plan(first | second, j, self.coupling, first, **scaled)
