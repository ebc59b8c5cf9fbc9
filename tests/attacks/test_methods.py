"""The step sizes of APGD on known sequences, its checkpoints, and PGD's momentum."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.attacks import APGD, PGD, ImageBall
from adjointdpm.attacks.expectation import Estimate
from adjointdpm.attacks.methods import checkpoints

CENTRE = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)


def known(values, seen=None, gradient=None):
    """Losses that are given, whatever the point."""

    def evaluate(x, k):
        if seen is not None:
            seen.append(x)
        slope = torch.ones_like(x) if gradient is None else gradient(x, k)
        return Estimate(torch.full((1,), float(values[k])), torch.zeros(1), slope)

    return evaluate


def test_checkpoints_are_the_papers():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(10) == [3, 5, 6, 7, 8, 9, 10, 10]


def test_the_step_is_halved_by_its_two_conditions():
    ball, steps = ImageBall(0.1), 100
    # Rising throughout: never halved.
    sizes = APGD().search(known(range(steps)), CENTRE, CENTRE, ball, steps)
    assert torch.equal(sizes, torch.full((steps, 1), 2.0))
    # Every second step falls: at most 3/4 of the steps raise the loss, at every checkpoint.
    zigzag = [k if k % 2 else k - 1.5 for k in range(steps)]
    sizes = APGD().search(known(zigzag), CENTRE, CENTRE, ball, steps)[:, 0]
    changed = [k for k in range(1, steps) if sizes[k] != sizes[k - 1]]
    assert changed == checkpoints(steps)
    assert sizes[-1] == 2.0 / 2 ** len(changed)
    # A single peak, then rising again below it: only the second condition halves, and only where the step was not
    # halved at the last checkpoint.
    peak = [float(k) for k in range(steps)]
    peak[10] = 1e6
    sizes = APGD().search(known(peak), CENTRE, CENTRE, ball, steps)[:, 0]
    changed = [k for k in range(1, steps) if sizes[k] != sizes[k - 1]]
    # After a halving the search goes on from the best point, whose value the next step does not reach.
    assert changed == [41, 70, 87, 99]


def test_after_halving_it_goes_on_from_the_best_point_with_its_gradient():
    steps, ball, seen = 10, ImageBall(0.4), []
    values = [0, 5, 1, 1, 1, 1, 1, 1, 1, 1]
    slopes = lambda x, k: torch.full_like(x, 1.0 if k == 1 else -1.0)  # noqa: E731
    APGD().search(known(values, seen, slopes), CENTRE, CENTRE, ball, steps)
    best, before = seen[1], seen[2]
    ahead = ball.project(best + 1.0 * ball.direction(torch.ones_like(best), CENTRE), CENTRE)
    expected = ball.project(best + 0.75 * (ahead - best) + 0.25 * (best - before), CENTRE)
    assert torch.allclose(seen[4], expected)


def test_the_first_steps_are_those_of_the_equations():
    ball, seen = ImageBall(0.4), []
    slopes = [torch.tensor([[[[1.0, -1.0], [1.0, 1.0]]]], dtype=torch.float64)]
    slopes += [-slopes[0]] * 3
    APGD().search(known(range(4), seen, lambda x, k: slopes[k]), CENTRE, CENTRE, ball, 4)
    x0, x1, x2, _ = seen
    assert torch.equal(x0, CENTRE)
    assert torch.allclose(x1, CENTRE + 0.4 * slopes[0])  # 2 radii, projected
    assert torch.allclose(
        x2, ball.project(x1 + 0.75 * (CENTRE - 0.4 * slopes[0] - x1) + 0.25 * (x1 - x0), CENTRE)
    )


def test_momentum_accumulates_normalized_gradients():
    seen, ball = [], ImageBall(0.4, "l2")
    slopes = [torch.randn(1, 1, 2, 2, dtype=torch.float64) * 10**k for k in range(3)]
    PGD(0.25, momentum=0.5).search(known(range(3), seen, lambda x, k: slopes[k]), CENTRE, CENTRE, ball, 3)
    first = slopes[0] / slopes[0].abs().sum()
    velocity = 0.5 * first + slopes[1] / slopes[1].abs().sum()
    assert torch.allclose(seen[1], CENTRE + 0.1 * first / first.norm())
    assert torch.allclose(seen[2], ball.project(seen[1] + 0.1 * velocity / velocity.norm(), CENTRE))


def test_settings_out_of_range_raise():
    for make in (lambda: PGD(0.0), lambda: PGD(momentum=1.5), lambda: APGD(rho=-1.0)):
        with pytest.raises(adp.InputError):
            make()
