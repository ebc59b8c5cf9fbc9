import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.grids import TimeGrid
from adjointdpm.flow.probability_flow import ProbabilityFlow
from adjointdpm.solvers.integrate import integrate
from adjointdpm.solvers.inversion import (
    Backwards,
    check_invertible,
    check_steps_apart,
    coupled_inverse,
    inverted,
)
from tests.conftest import standard_mixture

SCHEDULE = adp.VPLinear()
ONE_STEP = [adp.Euler(), adp.Midpoint(), adp.Heun(), adp.RK4(), adp.DPMSolverPP(1), adp.AdamsBashforth(1)]


def problem(steps=8):
    flow = ProbabilityFlow(SCHEDULE, standard_mixture(SCHEDULE))
    grid = TimeGrid(SCHEDULE, adp.grids.log_snr(SCHEDULE, steps, end=0.05))
    start = flow.initial(
        torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), grid[0]
    )
    return lambda state, time: (flow.velocity(state[0], time, adp.Cond()),), grid, start


@pytest.mark.parametrize("solver", ONE_STEP, ids=repr)
@torch.no_grad()
def test_the_states_of_a_sampling_are_found_again(solver):
    f, grid, start = problem()
    passed = []
    (end,) = integrate(f, (start,), grid, solver, lambda i, state: passed.append(state[0]))
    found = inverted(f, end, grid, solver, 1e-10)
    assert max(found.residuals) <= 1e-10
    for there, here in zip(passed, found.states, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_a_coupled_sampling_from_both_copies_returns_to_rounding():
    f, grid, start = problem()
    solver = adp.Coupled(adp.Euler(), 0.9)
    clean = start / start.norm(dim=1, keepdim=True)
    y, w = coupled_inverse(f, clean, grid, solver)
    (back,) = integrate(f, (y,), grid, adp.Coupled(adp.Euler(), 0.9, second=w))
    torch.testing.assert_close(back, clean, rtol=1e-10, atol=1e-10)
    (other,) = integrate(f, (y,), grid, solver)  # with one copy alone it is another sampling
    assert float((other - clean).norm()) > 1e-3


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (adp.EulerMaruyama(), "adds noise"),
        (adp.SDEDPMSolverPP(2), "adds noise"),
        (adp.Coupled(adp.Euler()), "invert_coupled"),
    ],
    ids=repr,
)
def test_solvers_without_an_inverse_of_one_state_are_refused(solver, words):
    with pytest.raises(adp.InputError, match=words):
        check_invertible(solver)


@pytest.mark.parametrize("solver", [adp.DPMSolverPP(2), adp.AdamsBashforth(3)], ids=repr)
def test_a_step_that_depends_on_others_is_not_inverted_alone(solver):
    f, grid, start = problem()
    with pytest.raises(adp.InputError, match="depends on the steps before it"):
        inverted(f, start, grid, solver)


@torch.no_grad()
def test_the_flow_backwards_meets_a_sampling_at_second_order():
    away = []
    for steps in (40, 80):
        f, grid, start = problem(steps)
        (end,) = integrate(f, (start,), grid, adp.RK4())
        (back,) = integrate(f, (end,), grid.reversed(), Backwards())
        away.append(float((back - start).norm()))
    assert 3.2 < away[0] / away[1] < 5.0


@torch.no_grad()
def test_the_flow_is_not_evaluated_at_clean_data():
    schedule = adp.RectifiedFlow()
    times = []

    def f(state, time):
        times.append(float(time.t))
        return state

    grid = TimeGrid(schedule, adp.grids.uniform(schedule, 3)).reversed()
    assert float(grid[0].sigma) == 0
    integrate(f, (torch.ones(1, 2),), grid, Backwards())
    assert min(times) > 0
    assert len(times) == 5


@pytest.mark.parametrize("solver", ONE_STEP, ids=repr)
def test_a_time_belongs_to_one_step_unless_a_step_is_evaluated_at_its_end(solver):
    _, grid, _ = problem()
    times = []

    def f(state, time):
        times.append(float(time.t))
        return state

    integrate(f, (torch.zeros(1, dtype=torch.float64),), grid, solver)
    if len(set(times)) == len(times):
        check_steps_apart(solver, grid)
    else:
        with pytest.raises(adp.InputError, match=r"at the end of a step.*solver=Euler\(\)"):
            check_steps_apart(solver, grid)
    assert isinstance(solver, adp.Heun | adp.RK4) == (len(set(times)) < len(times))
