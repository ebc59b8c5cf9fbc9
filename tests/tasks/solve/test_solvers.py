"""Solvers of inverse problems, on a mixture whose images are points of three coordinates."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm import InputError
from adjointdpm.flow.denoisers import GaussianMixture
from adjointdpm.metrics import Measured
from adjointdpm.tasks.guide.look_ahead import polyak
from adjointdpm.tasks.sampling import noise_of
from adjointdpm.tasks.solve.solvers import METHODS, solved
from tests.tiny.tasks import Dots, mixture_sampler


def problem(batch=4):
    sampler = mixture_sampler(6)
    noise = noise_of(sampler, list(range(batch))).double()
    cond = sampler.encode(["x"] * batch)
    with torch.no_grad():
        truth = sampler(noise_of(sampler, [99]).double(), sampler.encode("x"))
    operator = lambda images: images[:, :1]  # noqa: E731
    return sampler, Measured(operator, operator(truth), 0.005), noise, cond


@pytest.mark.parametrize("method", METHODS)
def test_a_measurement_is_met_within_the_calls(method):
    sampler, metric, noise, cond = problem()
    with torch.no_grad():
        before = float(metric(sampler(noise, cond)).mean())
    found = solved(method, sampler, metric, noise, cond, 120)
    after = float(metric(found.images).mean())
    assert after < 0.4 * before
    assert found.calls <= 120
    assert found.images.shape == (4, *sampler.image_shape)


def test_no_network_is_differentiated_by_flowchef():
    sampler, metric, noise, cond = problem(1)
    seen = []
    inner = sampler.model.denoiser.forward

    def watched(x, t, c):
        seen.append(torch.is_grad_enabled())
        return inner(x, t, c)

    sampler.model.denoiser.forward = watched
    assert solved("flowchef", sampler, metric, noise, cond, 10).calls == 10
    assert seen == [False] * 10
    seen.clear()
    assert solved("dps", sampler, metric, noise, cond, 10).calls == 10
    assert seen == [True] * 5


def test_a_move_of_polyaks_length_takes_a_linear_metric_to_its_target():
    slope = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    x = torch.tensor([[1.0, 1.0], [1.0, -4.0]])
    value = (slope * x).sum(1)
    moved = x - polyak(value - 0.5, slope)
    assert (slope * moved).sum(1).tolist() == [
        pytest.approx(0.5),
        pytest.approx(-8.0),
    ]  # below is left alone
    assert float(polyak(value - 0.5, slope, 0.1)[0].norm()) == pytest.approx(0.1 * 2**0.5)


def test_a_time_grid_of_ones_own_gives_way_to_the_steps_of_a_method():
    sampler, metric, noise, cond = problem(1)
    sampler = sampler.replace(grid=sampler.times())
    assert solved("dps", sampler, metric, noise, cond, 8).calls == 8
    assert isinstance(sampler, adp.FlowSampler)


def test_the_mean_has_no_part_that_is_affine_in_the_noise():
    """Of one Gaussian, and with nothing to correct, a sampling is affine: the mean is the image of no noise."""
    sampler = mixture_sampler(6)
    model = Dots(sampler.model.schedule)
    model.denoiser = GaussianMixture(model.schedule, torch.tensor([[0.4, -0.3]], dtype=torch.float64), 0.3)
    sampler = sampler.replace(model=model, solver=adp.Euler())
    noise, cond = noise_of(sampler, [1, 2]).double(), sampler.encode(["x"] * 2)
    metric = Measured(lambda images: images, torch.zeros(1, 3, 1, 1, dtype=torch.float64), 100.0)
    found = solved("dps-mean", sampler, metric, noise, cond, 40)
    assert found.calls == 40
    with torch.no_grad():
        middle = sampler.replace(steps=5)(torch.zeros_like(noise), cond)
    torch.testing.assert_close(found.images, middle, rtol=1e-10, atol=1e-10)
    one = solved("dps", sampler, metric, noise, cond, 10).images
    assert float((one - middle).abs().max()) > 0.01


def test_the_mean_is_of_four_starts_with_a_quarter_of_the_calls_and_moves_to_the_measurement():
    sampler, metric, noise, cond = problem(2)
    reverse = noise.flip(1)
    parts = [solved("dps", sampler, metric, n, cond, 10) for n in (noise, -noise, reverse, -reverse)]
    mean = sum(each.images for each in parts) / 4
    moved = solved("dps-mean", sampler, metric, noise, cond, 43)
    assert moved.calls == sum(each.calls for each in parts) == 40
    assert torch.equal(moved.images, solved("dps-mean", sampler, metric, noise, cond, 43).images)
    before, after = metric(mean), metric(moved.images)
    assert (before > 1).all()
    # Polyak's length halves the distance of a quadratic metric of one number, down to its target.
    assert (after < 0.6).all()
    still = solved("dps-mean", sampler, metric, noise, cond, 43, decoder_moves=0)
    torch.testing.assert_close(still.images, mean)


def test_decoder_moves_of_dps_and_flowchef_take_no_call_and_others_refuse_them():
    sampler, metric, noise, cond = problem(2)
    for name in ("dps", "flowchef"):
        still, moved = (solved(name, sampler, metric, noise, cond, 8, decoder_moves=n) for n in (0, 12))
        assert torch.equal(still.images, solved(name, sampler, metric, noise, cond, 8).images)
        assert moved.calls == still.calls
        # Polyak's length leads to the target of 0.5, and leaves alone what is below.
        target = metric(still.images).clamp(max=0.5)
        torch.testing.assert_close(metric(moved.images), target, rtol=0, atol=0.01)
    with pytest.raises(
        InputError, match="decoder_moves are of dps-mean, dps, flowchef, but the solver is mmps"
    ):
        solved("mmps", sampler, metric, noise, cond, 8, decoder_moves=2)
