import math

import pytest
import torch

import adjointdpm as adp
from tests.conftest import scaled_linear

SCHEDULES = [
    adp.VPDiscrete(scaled_linear()),
    adp.VPDiscrete(scaled_linear(), bounded=True),
    adp.VPLinear(),
    adp.VPCosine(),
    adp.EDMSchedule(),
    adp.RectifiedFlow(),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_time_is_the_inverse_of_tau_everywhere(schedule):
    t = torch.linspace(schedule.limit, schedule.start, 997, dtype=torch.float64)
    s = schedule.sigma(t) / (schedule.alpha(t) + schedule.sigma(t))
    span = schedule.start - schedule.limit
    torch.testing.assert_close(schedule.time(s), t, rtol=0, atol=1e-13 * span + 1e-14)
    instant = schedule.at(t[500:501])[0]
    again = schedule.at_tau(instant.tau)
    assert abs(float(again.t - instant.t)) < 1e-12 * span


@pytest.mark.parametrize("schedule", SCHEDULES[:4], ids=lambda s: type(s).__name__)
def test_variance_is_preserved(schedule):
    t = torch.linspace(schedule.limit, schedule.start, 97, dtype=torch.float64)
    total = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
    torch.testing.assert_close(total, torch.ones_like(t), rtol=0, atol=1e-15)


def test_vp_discrete_is_exact_at_training_steps_and_log_linear_between():
    bar = scaled_linear()
    schedule = adp.VPDiscrete(bar)
    t = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t), bar.sqrt(), rtol=1e-14, atol=0)
    torch.testing.assert_close(schedule.sigma(t), (1 - bar).sqrt(), rtol=1e-12, atol=0)
    half = schedule.log_alpha_bar(torch.tensor([400.5], dtype=torch.float64))
    assert float(half) == pytest.approx(float(bar[400].log() + bar[401].log()) / 2, rel=1e-14)
    assert float(schedule.sigma(torch.tensor([-1.0], dtype=torch.float64))) == 0


def test_vp_linear_is_the_integral_of_its_beta():
    schedule = adp.VPLinear(beta_min=0.1, beta_max=20.0)
    u = torch.linspace(0, 0.7, 20001, dtype=torch.float64)
    integral = torch.trapezoid(0.1 + u * 19.9, u)
    assert float(schedule.alpha(u[-1])) == pytest.approx(math.exp(-float(integral) / 2), rel=1e-9)


def test_zero_terminal_snr_runs_in_bounded_coordinates():
    bar = scaled_linear()
    bar = (bar.sqrt() - bar[-1].sqrt()) * bar[0].sqrt() / (bar[0].sqrt() - bar[-1].sqrt())
    schedule = adp.VPDiscrete(bar**2)
    assert schedule.bounded
    assert float(schedule.at(torch.tensor([999.0], dtype=torch.float64))[0].tau) <= 1


@pytest.mark.parametrize(
    "bad", [[0.5], [0.5, 0.7], [1.0, 0.5], [[0.9, 0.5]]], ids=["one", "rising", "one at 0", "matrix"]
)
def test_vp_discrete_refuses_what_is_no_schedule(bad):
    with pytest.raises(adp.InputError, match="decreasing vector"):
        adp.VPDiscrete(torch.tensor(bad, dtype=torch.float64))


def test_rectified_flow_refuses_the_unbounded_clock():
    with pytest.raises(adp.InputError, match="bounded=True"):
        adp.RectifiedFlow(bounded=False)
