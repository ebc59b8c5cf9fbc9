"""Multistep solvers: textbook coefficients, exact integrals of polynomials, and DDIM."""

import itertools

import pytest
import torch

import adjointdpm as adp
from tests.conftest import Mixture, scaled_linear, standard_mixture


def test_euler_adams_1_and_dpm_1_are_ddim():
    schedule = adp.VPDiscrete(scaled_linear())
    model = Mixture(schedule, standard_mixture(schedule), (2,))
    noise = torch.randn(3, 2, dtype=torch.float64)
    x, times = noise, adp.grids.uniform(schedule, 7)
    for t, after in itertools.pairwise(times):
        bar, bar_after = schedule.log_alpha_bar(t).exp(), schedule.log_alpha_bar(after).exp()
        eps = model.denoiser(x, t, adp.Cond())
        x0 = (x - (1 - bar).sqrt() * eps) / bar.sqrt()
        x = bar_after.sqrt() * x0 + (1 - bar_after).sqrt() * eps  # equation 12 of arXiv 2010.02502
    for solver in (adp.Euler(), adp.AdamsBashforth(1), adp.DPMSolverPP(1)):
        image = adp.FlowSampler(model, solver=solver, steps=7).latents(noise, adp.Cond())
        torch.testing.assert_close(image, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("order", "textbook"),
    [
        (1, [1]),
        (2, [3 / 2, -1 / 2]),
        (3, [23 / 12, -16 / 12, 5 / 12]),
        (4, [55 / 24, -59 / 24, 37 / 24, -9 / 24]),
    ],
)
def test_adams_bashforth_has_the_textbook_coefficients_on_an_even_grid(order, textbook):
    taus = [torch.tensor(3.0 - 0.1 * -j, dtype=torch.float64) for j in range(order)]
    weights = adp.AdamsBashforth._weights(taus, torch.tensor(2.9, dtype=torch.float64))
    torch.testing.assert_close(weights, -0.1 * torch.tensor(textbook, dtype=torch.float64))


def test_adams_bashforth_integrates_polynomials_exactly_on_an_uneven_grid():
    taus = torch.tensor([1.0, 1.3, 1.9, 2.0], dtype=torch.float64)
    weights = adp.AdamsBashforth._weights(list(taus), torch.tensor(0.4, dtype=torch.float64))
    for m in range(4):
        assert float(weights @ taus**m) == pytest.approx((0.4 ** (m + 1) - 1) / (m + 1), rel=1e-12)


@pytest.mark.parametrize("solver", [adp.AdamsBashforth, adp.DPMSolverPP])
@pytest.mark.parametrize("order", [0, 5])
def test_unknown_orders_are_refused(solver, order):
    with pytest.raises(adp.InputError, match="order"):
        solver(order)
