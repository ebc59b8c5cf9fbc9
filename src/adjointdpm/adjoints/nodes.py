"""Which of the forward nodes a backward pass with fewer steps visits.

    place_i = 1/2 i / N + 1/2 (lambda_i - lambda_0) / (lambda_N - lambda_0),     lambda = log(alpha / sigma)

Equal fractions of the index leave too few nodes where the noise level changes fast, at the clean end; equal
fractions of lambda, in which the data prediction changes evenly (Lu et al., 2022, arXiv 2206.00927), too
few in the middle, where guidance bends the flow. Nodes are the forward ones nearest to equal fractions of
the mean of both. Where lambda is infinite (sigma = 0, alpha = 0) the last step is taken as long as its neighbour.
"""

import torch
from torch import Tensor

from ..grids import TimeGrid

__all__ = ["coarser", "even_nodes"]


def even_nodes(grid: TimeGrid, steps: int) -> list[int]:
    """`steps` distinct departure nodes of a forward grid, the first included, even in `place`.

    Where the forward grid is too coarse for an even spacing, neighbours are taken; so all N of N steps
    are the grid itself.
    """
    N = len(grid)
    snr, index = _log_snr(grid), torch.linspace(0, 1, N + 1, dtype=torch.float64)
    place = index / 2 + (snr - snr[0]) / (snr[-1] - snr[0]) / 2
    wanted = torch.linspace(float(place[0]), float(place[-1]), steps + 1, dtype=torch.float64)[:-1]
    nodes = [int((place - each).abs().argmin()) for each in wanted]
    for k in reversed(range(steps)):  # no node after the last departure, no two the same
        nodes[k] = min(nodes[k], nodes[k + 1] - 1 if k + 1 < steps else N - 1)
    for k in range(steps):
        nodes[k] = max(nodes[k], nodes[k - 1] + 1 if k else 0)
    return nodes


def coarser(grid: TimeGrid, nodes: list[int]) -> TimeGrid:
    """The grid that departs from those nodes alone, and ends where the whole one does."""
    return TimeGrid(grid.schedule, grid.times[[*nodes, len(grid)]])


def _log_snr(grid: TimeGrid) -> Tensor:
    place = torch.stack([grid[i].log_snr_half for i in range(len(grid) + 1)])
    if not bool(torch.isfinite(place[0])):
        place[0] = 2 * place[1] - place[2] if len(place) > 3 else place[1] - 1
    if not bool(torch.isfinite(place[-1])):
        place[-1] = 2 * place[-2] - place[-3] if len(place) > 3 else place[-2] + 1
    return place if bool(torch.isfinite(place).all()) else torch.arange(len(place), dtype=torch.float64)
