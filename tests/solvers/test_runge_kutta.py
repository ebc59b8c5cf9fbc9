"""One-step solvers against the published algorithms."""

import itertools

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import Prediction
from tests.tiny.solvers import down_to_zero


def test_heun_is_algorithm_1_of_edm():
    """Karras et al., 2022, with S_churn = 0, down to sigma = 0; and the data prediction is where it ends."""
    end, _, _, sampler = down_to_zero(adp.EDMSchedule(sigma_max=10.0), adp.Heun(), Prediction.X0)
    denoise = lambda x, sigma: sampler.model.denoiser(x, sigma, adp.Cond())  # noqa: E731
    times = sampler.times()
    x = torch.ones(1, 2, dtype=torch.float64) * times[0]
    for sigma, after in itertools.pairwise(times):
        d = (x - denoise(x, sigma)) / sigma
        ahead = x + (after - sigma) * d
        if after != 0:
            ahead = x + (after - sigma) * (d / 2 + (ahead - denoise(ahead, after)) / (2 * after))
        x = ahead
    torch.testing.assert_close(end, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "order"), [(adp.Euler(), 1), (adp.Midpoint(), 2), (adp.Heun(), 2), (adp.RK4(), 4)], ids=repr
)
def test_the_tableau_satisfies_the_order_conditions(solver, order):
    """sum b = 1, c = sum a, sum b c^(q-1) = 1/q up to the order (Butcher, 1963)."""
    a, b, c = solver.a, solver.b, solver.c
    for row, node in zip(a, c, strict=True):
        assert sum(row) == pytest.approx(node)
    for q in range(1, order + 1):
        assert sum(w * node ** (q - 1) for w, node in zip(b, c, strict=True)) == pytest.approx(1 / q)
