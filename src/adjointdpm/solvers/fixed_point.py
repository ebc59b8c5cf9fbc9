"""Roots of an equation r(z) = 0 whose residual is nearly the distance to the root, by evaluations of r alone.

    fixed point     z <- z + r(z)
    Anderson        z <- z + r - (dZ + dR) gamma,     gamma = argmin |r - dR gamma|
    Newton-Krylov   z <- z + s d,                     J d = -r by GMRES, J v = (r(z + e v) - r(z)) / e

The implicit equation of a solver's step is of this kind. Anderson's acceleration (Anderson, 1965; Walker and Ni, 2011)
combines the last few iterates and converges where the plain fixed point only just fails to. Where it stagnates,
Newton's method follows, with the linear systems solved by GMRES (Knoll and Keyes, 2004) and the length s of a step
halved until the residual falls. All samples of a batch are solved together, each with coefficients of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..flow.per_sample import widened

__all__ = ["Root", "gmres", "solve"]

_MEMORY = 6  # iterates that Anderson's acceleration combines
_PATIENCE = (
    6  # iterations without a fall to `_FALL` of the best residual, after which Newton's method follows
)
_FALL = 0.7
_KRYLOV = 30  # dimensions of GMRES
_HALVINGS = 6


@dataclass(frozen=True, eq=False)
class Root:
    """What was found.

    z           (batch, *shape), the iterate with the smallest residual of each sample
    residual    (batch,), the norms of its residuals, divided by those of `scale`
    """

    z: Tensor
    residual: Tensor


def solve(
    residual: Callable[[Tensor], Tensor],
    z: Tensor,
    scale: Tensor,
    tolerance: float,
    *,
    iterations: int = 40,
    newton: int = 6,
    memory: int = _MEMORY,
) -> Root:
    """Solve r(z) = 0 for each sample of a batch.

    Args:
        residual: r, from (batch, *shape) to the same shape; no sample depends on another.
        z: the first guess, (batch, *shape).
        scale: what the residual is compared with, (batch, *shape).
        tolerance: the largest |r| / |scale| at which an iteration stops.
        iterations: the most iterations of the accelerated fixed point, at least 1.
        newton: the most iterations of Newton's method; 0 for none.
        memory: how many iterates Anderson's acceleration combines; more where an iteration is expensive.

    Returns:
        the best iterates, whether or not they reach the tolerance.

    Examples:
        >>> import torch
        >>> root = solve(lambda z: z.cos() - z, torch.ones(1, 1), torch.ones(1, 1), 1e-6)
        >>> round(float(root.z), 4)
        0.7391
    """
    best = _Best(z, scale)
    zs: list[Tensor] = []
    rs: list[Tensor] = []
    marks: list[float] = []
    for _ in range(iterations):
        r = residual(z)
        best.offer(z, r)
        worst = best.worst
        if worst <= tolerance:
            return best.root
        marks.append(worst)
        if len(marks) > _PATIENCE and worst > _FALL * marks[-1 - _PATIENCE]:
            break
        zs, rs = [*zs[-memory:], z], [*rs[-memory:], r]
        z = z + r + _correction(zs, rs)
        if not bool(torch.isfinite(z).all()):
            break
    for _ in range(newton):
        if best.worst <= tolerance or not _newton_step(residual, best, tolerance):
            break
    return best.root


class _Best:
    """The iterate of each sample with the smallest residual so far."""

    def __init__(self, z: Tensor, scale: Tensor) -> None:
        self.z, self.r, self.scale = z, torch.full_like(z, torch.inf), _norm(scale).clamp(min=1e-30)
        self.size = torch.full((len(z),), torch.inf, dtype=torch.float64, device=z.device)

    @property
    def worst(self) -> float:
        return float(self.size.max())

    @property
    def root(self) -> Root:
        return Root(self.z, self.size)

    def offer(self, z: Tensor, r: Tensor) -> Tensor:
        """Keep what is better; return which samples are, (batch,)."""
        size = _norm(r) / self.scale
        better = size < self.size
        keep = widened(better, z)
        self.z, self.r = torch.where(keep, z, self.z), torch.where(keep, r, self.r)
        self.size = torch.where(better, size, self.size)
        return better


def _correction(zs: list[Tensor], rs: list[Tensor]) -> Tensor:
    """Return -(dZ + dR) gamma of Anderson's acceleration; zero for one iterate."""
    if len(zs) < 2:
        return torch.zeros_like(zs[-1])
    dz, dr = (torch.stack([(b - a).flatten(1).double() for a, b in pairwise(each)], 2) for each in (zs, rs))
    gram = dr.transpose(1, 2) @ dr
    size = gram.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-300)
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    gram = gram + (1e-10 * size)[:, None, None] * eye
    gamma = torch.linalg.solve(gram, dr.transpose(1, 2) @ rs[-1].flatten(1).double()[..., None])
    return -((dz + dr) @ gamma)[..., 0].view_as(zs[-1]).to(zs[-1].dtype)


def _newton_step(residual: Callable[[Tensor], Tensor], best: _Best, tolerance: float) -> bool:
    """Move the unsolved samples along Newton's direction; return whether the worst one improved enough."""
    z, r, before = best.z, best.r, best.size
    root = torch.finfo(z.dtype).eps ** 0.5

    def product(v: Tensor) -> Tensor:
        step = root * (1 + _norm(z)) / _norm(v).clamp(min=1e-30)
        step = widened(step.to(z.dtype), z)
        return (residual(z + step * v) - r) / step

    direction, _ = gmres(product, -r, tolerance=0.1, most=_KRYLOV)
    length = (before > tolerance).to(z.dtype)
    for _ in range(_HALVINGS):
        moved = z + widened(length, z) * direction
        better = best.offer(moved, residual(moved))
        # A sample that improved stays where it is.
        length = torch.where(better, torch.zeros_like(length), length / 2)
        if not bool((length > 0).any()):
            break
    open_ = before > tolerance
    return bool((best.size[open_] < 0.7 * before[open_]).any())


def gmres(
    product: Callable[[Tensor], Tensor], b: Tensor, tolerance: float, most: int = _KRYLOV
) -> tuple[Tensor, float]:
    """Solve A x = b for each sample by GMRES (Saad and Schultz, 1986), with A given by its products.

    Args:
        product: v to A v, of (batch, *shape); linear, and no sample depends on another.
        b: the right side, (batch, *shape).
        tolerance: the |A x - b| / |b| at which it stops.
        most: the most products.

    Returns:
        x, (batch, *shape), and the largest |A x - b| / |b|, whether or not it reaches the tolerance.

    Examples:
        >>> import torch
        >>> x, residual = gmres(lambda v: 2 * v, torch.ones(1, 3), 1e-6)
        >>> x, residual < 1e-6
        (tensor([[0.5000, 0.5000, 0.5000]]), True)
    """
    size = _norm(b)
    left = size
    unit = b / widened(size.clamp(min=1e-30), b).to(b.dtype)
    basis = [unit]
    batch = len(b)
    h = torch.zeros(batch, most + 1, most, dtype=torch.float64, device=b.device)
    y = torch.zeros(batch, 0, 1, dtype=torch.float64, device=b.device)
    for k in range(most):
        w = product(basis[k])
        for _ in range(2):  # twice, since float32 loses the orthogonality
            for j, v in enumerate(basis):
                part = (w.flatten(1).double() * v.flatten(1).double()).sum(1)
                h[:, j, k] += part
                w = w - widened(part, w).to(w.dtype) * v
        h[:, k + 1, k] = _norm(w)
        basis.append(w / widened(h[:, k + 1, k].clamp(min=1e-30), w).to(w.dtype))
        side = torch.zeros(batch, k + 2, 1, dtype=torch.float64, device=b.device)
        side[:, 0, 0] = size
        small = h[:, : k + 2, : k + 1]
        y = torch.linalg.lstsq(small, side, driver="gelsd" if b.device.type == "cpu" else None).solution
        left = (small @ y - side).norm(dim=(1, 2))
        if bool((left <= tolerance * size).all()):
            break
    total = torch.zeros_like(b)
    for j in range(y.shape[1]):
        total = total + widened(y[:, j, 0], b).to(b.dtype) * basis[j]
    return total, float((left / size.clamp(min=1e-30)).max())


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).double().norm(dim=1)
