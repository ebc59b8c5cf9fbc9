"""What a watch keeps is what happened: images, values, gradients and calls."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.metrics import BackgroundColour, Pixels, beside, for_prompts
from adjointdpm.metrics.rewards import FunctionReward
from adjointdpm.metrics.rewards.reward import reads_prompts
from adjointdpm.studio.watch import Watch, heat
from adjointdpm.tasks.invert.goals import MetricGoal

METRIC = BackgroundColour((0.0, 0.0, 1.0))


def test_heat_is_the_norm_over_channels_relative_to_the_largest():
    gradient = torch.zeros(2, 2, 2)
    gradient[:, 0, 1] = torch.tensor([3.0, 4.0])
    gradient[0, 1, 0] = 1.0
    assert heat(gradient).tolist() == [[0.0, 1.0], [pytest.approx(0.2), 0.0]]
    assert heat(torch.zeros(3, 2, 2)).sum() == 0


def test_a_watched_gradient_is_the_gradient_and_its_maps_are_kept(emoji):
    sampler = emoji.replace(steps=2)
    watch, first = Watch(METRIC, "blue"), []
    watched = sampler.replace(steps=2)
    watch.attach(watched, first.append)
    noise, cond = sampler.noise(1, seed=3), sampler.encode("a cat")
    expected = adp.gradients(sampler, METRIC, noise, cond)
    with torch.no_grad():
        watched(noise, cond)
    assert len(first) == 1
    assert watch.bytes_saved is None
    assert watch.calls == 2
    found = adp.gradients(watched, watch, noise, cond)
    assert torch.equal(found.variables["noise"], expected.variables["noise"])
    assert torch.equal(watch.images, expected.images)
    assert watch.value == pytest.approx(float(expected.values))
    assert torch.equal(watch.maps["noise"], heat(expected.variables["noise"][0]))
    leaf = expected.images.clone().requires_grad_()
    (of_image,) = torch.autograd.grad(METRIC(leaf).sum(), leaf)
    assert torch.allclose(watch.maps["image"], heat(of_image[0]))
    assert watch.calls == 2 + 4 + 2  # two forward before, then two twice forward and backward
    assert watch.bytes_saved == watched.stats.bytes_saved
    assert len(first) == 1


def test_a_paired_metric_is_watched_beside_its_images():
    watch = Watch(0.5 * Pixels() + METRIC, "pixels + blue")
    images, others = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    expected = beside(0.5 * Pixels() + METRIC, others)(images)
    assert torch.equal(beside(watch, others)(images), expected)
    assert torch.equal(watch.images, images)
    assert watch.value == pytest.approx(float(expected.mean()))


def test_a_reward_is_watched_for_its_prompts():
    lengths = FunctionReward(
        lambda images, prompts: images.mean((1, 2, 3)) * torch.tensor([len(p) for p in prompts])
    )
    metric, images = lengths + Pixels(), torch.rand(2, 3, 8, 8)
    watch, prompts = Watch(metric, "lengths + pixels"), ["a cat", "a red apple"]
    expected = beside(for_prompts(metric, prompts), 0 * images)(images)
    assert torch.equal(beside(for_prompts(watch, prompts), 0 * images)(images), expected)
    assert torch.equal(for_prompts(beside(watch, 0 * images), prompts)(images), expected)
    assert watch.value == pytest.approx(float(expected.mean()))
    assert reads_prompts(watch)


def test_reports_name_the_metric_that_is_watched():
    assert (
        repr(MetricGoal(Watch(METRIC, "label:cat + 0.3*content"))) == "MetricGoal(label:cat + 0.3*content)"
    )
