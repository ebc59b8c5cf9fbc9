"""D-Flow by L-BFGS: its noise stays on the sphere, and its calls within the budget."""

import pytest
import torch

from adjointdpm.metrics import Measured
from adjointdpm.tasks.sampling import noise_of
from adjointdpm.tasks.solve.noise_space import optimized_noise
from tests.tiny.tasks import mixture_sampler


def test_the_best_noise_meets_a_measurement_on_its_sphere():
    sampler, batch = mixture_sampler(6), 4
    noise = noise_of(sampler, list(range(batch))).double()
    cond = sampler.encode(["x"] * batch)
    with torch.no_grad():
        truth = sampler(noise_of(sampler, [99]).double(), sampler.encode("x"))
        before = sampler(noise, cond)
    metric = Measured(lambda images: images[:, :1], truth[:, :1], 0.005)
    norms, inner = [], sampler.problem

    def watched(noise, cond):
        norms.append(noise.detach().norm(dim=1))
        return inner(noise, cond)

    sampler.problem = watched
    found = optimized_noise(sampler, metric, noise, cond, 120, 0.5)
    assert found.calls <= 120
    assert (metric(found.images) <= metric(before)).all()
    assert found.losses == sorted(found.losses, reverse=True)
    assert found.losses[-1] == pytest.approx(float(metric(found.images).mean()), rel=1e-6)
    assert found.losses[-1] < 0.3 * found.losses[0]
    for each in norms:
        torch.testing.assert_close(each, noise.norm(dim=1))
