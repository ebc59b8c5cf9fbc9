"""MMPS against closed forms: one Gaussian, whose posterior given a state and a measurement is known exactly."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import GaussianMixture
from adjointdpm.metrics import Measured
from adjointdpm.tasks.solve.moment_matching import moment_matched
from tests.tiny.tasks import Dots, mixture_sampler

MEAN, SPREAD, SIGMA = torch.tensor([0.4, -0.3], dtype=torch.float64), 0.3, 0.05
B = 0.25 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
"""An image of `Dots` is 0.5 + B u."""


def gaussian(steps, schedule=None):
    sampler = mixture_sampler(steps)
    schedule = sampler.model.schedule if schedule is None else schedule
    model = Dots(schedule)
    kind = adp.Prediction.VELOCITY if schedule.bounded else adp.Prediction.EPS
    model.denoiser = GaussianMixture(schedule, MEAN[None], SPREAD, kind)
    return sampler.replace(model=model)


def posterior(weights, y, mean, spread):
    """Mean and covariance of u, N(mean, spread^2 I), given y = weights (0.5 + B u) + noise."""
    A = weights @ B
    gain = (
        spread**2
        * A.T
        @ torch.linalg.inv(spread**2 * A @ A.T + SIGMA**2 * torch.eye(len(y), dtype=torch.float64))
    )
    rest = y - 0.5 * weights.sum(1) - A @ mean
    return mean + gain @ rest, spread**2 * (torch.eye(2, dtype=torch.float64) - gain @ A)


def measured(weights, y):
    return Measured(lambda images: images.flatten(1) @ weights.T, y[None], SIGMA)


WEIGHTS = {
    1: torch.tensor([[1.0, 2.0, -0.5]], dtype=torch.float64),
    2: torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -2.0]], dtype=torch.float64),
}


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("schedule", [None, adp.RectifiedFlow()])
def test_a_step_has_the_exact_mean_given_state_and_measurement(number, schedule):
    sampler = gaussian(3, schedule)
    weights, y = WEIGHTS[number], torch.tensor([1.1, -0.4], dtype=torch.float64)[:number]
    noise, cond = torch.tensor([[0.3, -1.2]], dtype=torch.float64), sampler.encode("x")
    ivp = sampler.problem(noise, cond)
    z = ivp.initial
    for i in range(3):
        time = ivp.grid[i]
        x0 = (z - time.tau * ivp.velocity(z, time))[0]
        expected = x0
        if time.alpha > 0:
            spread = float((1 / (1 / SPREAD**2 + time.alpha**2 / time.sigma**2)) ** 0.5)
            expected, _ = posterior(weights, y, x0, spread)
        z = z + (ivp.grid[i + 1].tau - time.tau) * (z - expected) / time.tau
    wanted = sampler.decode(ivp.flow.sample(z, ivp.grid[3]))
    found = moment_matched(sampler, measured(weights, y), noise, cond, iterations=number)
    assert found.calls == 3 * (1 + number)
    torch.testing.assert_close(found.images, wanted, rtol=1e-9, atol=1e-9)


def test_many_steps_sample_the_posterior():
    """The steps are affine in the noise: their value at 0 is the mean, and their slopes are the deviations."""
    sampler = gaussian(400)
    weights, y = WEIGHTS[1], torch.tensor([1.1], dtype=torch.float64)
    noise = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = moment_matched(sampler, measured(weights, y), noise, sampler.encode(["x"] * 3), iterations=1)
    points = (found.images.flatten(1)[:, :2] - 0.5) / 0.25
    mean, covariance = posterior(weights, y, MEAN, SPREAD)
    slopes = (points[1:] - points[0]).T
    torch.testing.assert_close(points[0], mean, rtol=0, atol=0.05 * SPREAD)
    torch.testing.assert_close(slopes @ slopes.T, covariance, rtol=0, atol=0.05 * SPREAD**2)


def test_an_operator_that_is_not_linear_is_linearized_at_the_prediction():
    sampler = gaussian(1)
    operator = lambda images: images.flatten(1).square() + images.flatten(1).prod(1, keepdim=True)  # noqa: E731
    y = torch.tensor([[0.3, 0.1, 0.2]], dtype=torch.float64)
    noise, cond = torch.tensor([[0.3, -1.2]], dtype=torch.float64), sampler.encode("x")
    ivp = sampler.problem(noise, cond)
    z, time = ivp.initial, ivp.grid[0]
    x0 = z - time.tau * ivp.velocity(z, time)
    measure = lambda u: operator(sampler.decode(u[None]))[0]  # noqa: E731
    A = torch.autograd.functional.jacobian(measure, x0[0])
    variance = 1 / (1 / SPREAD**2 + time.alpha**2 / time.sigma**2)
    inner = variance * A @ A.T + SIGMA**2 * torch.eye(3, dtype=torch.float64)
    expected = x0 + (variance * A.T @ torch.linalg.solve(inner, y[0] - measure(x0[0])))[None]
    z = z + (ivp.grid[1].tau - time.tau) * (z - expected) / time.tau
    found = moment_matched(sampler, Measured(operator, y, SIGMA), noise, cond, iterations=3)
    torch.testing.assert_close(
        found.images, sampler.decode(ivp.flow.sample(z, ivp.grid[1])), rtol=1e-8, atol=1e-8
    )


def test_samples_are_solved_each_by_itself():
    sampler, weights = gaussian(5), WEIGHTS[2]
    y = torch.tensor([1.1, -0.4], dtype=torch.float64)
    noise = torch.tensor([[0.3, -1.2], [1.5, 0.2]], dtype=torch.float64)
    both = moment_matched(sampler, measured(weights, y), noise, sampler.encode(["x"] * 2), 1).images
    for i in range(2):
        one = moment_matched(sampler, measured(weights, y), noise[i : i + 1], sampler.encode("x"), 1).images
        torch.testing.assert_close(both[i : i + 1], one, rtol=1e-12, atol=1e-12)


class NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x * 1.0

    @staticmethod
    def backward(context, cotangent):
        return cotangent


def test_a_metric_without_a_measurement_and_an_operator_without_a_derivative_are_refused():
    sampler = gaussian(2)
    noise, cond = torch.zeros(1, 2, dtype=torch.float64), sampler.encode("x")
    with pytest.raises(adp.InputError, match=r"needs a Measured.*choose dps"):
        moment_matched(sampler, lambda images: images.mean((1, 2, 3)), noise, cond, 1)
    metric = Measured(NoForwardMode.apply, torch.zeros(1, 3, 1, 1, dtype=torch.float64), SIGMA)
    with pytest.raises(adp.InputError, match=r"forward-mode derivative.*choose dps"):
        moment_matched(sampler, metric, noise, cond, 1)
