"""An audit from given images starts at the noise from which the sampler makes them, and refuses what has none."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.schedules import VPDiscrete
from adjointdpm.tasks import Ball, RunOptions, load_result
from tests.conftest import scaled_linear
from tests.tiny.audits import LABELS, Nearest, classifier, settings
from tests.tiny.tasks import Dots


class Seen(Dots):
    """A point is read off its pixel."""

    def encode_image(self, images):
        return (images[:, :2, 0, 0] - 0.5) / 0.25


SAMPLER = adp.FlowSampler(Seen(VPDiscrete(scaled_linear())), steps=8, solver=adp.Heun(), guidance_scale=1.0)


def pixels_at(points):
    pixel = torch.cat([points, points.mean(1, keepdim=True)], 1)
    return (0.5 + 0.25 * pixel)[:, :, None, None]


def given(off=0.05):
    """An image near the centre of each blob."""
    return pixels_at(Nearest().means.detach().double() + off).clamp(0, 1)


def audited(folder, images, sampler=SAMPLER, **changes):
    settings_ = settings(max_train_steps=10, **{"num_starts": 1, "ball": Ball(0.8), **changes})
    return adp.tasks.audit(
        sampler, classifier(), LABELS, LABELS, output=folder, images=images, settings=settings_,
        run=RunOptions(quiet=True, resume=True),
    )  # fmt: skip


def test_the_starts_are_the_noise_of_the_images(tmp_path):
    images = given()
    found = audited(tmp_path, images)
    with torch.no_grad():
        made = SAMPLER(found.start, SAMPLER.encode(["x"] * len(images)))
    assert float((made - images).abs().max()) < 1e-3
    assert found.tried == len(images)
    assert found.labels == LABELS
    assert found.success.hits > 0
    assert bool((found.after.distances <= 0.8 * (1 + 1e-6)).all())
    assert load_result(tmp_path)["settings"]["images"] > 0
    again = audited(tmp_path, images)
    assert torch.equal(again.start, found.start)
    assert torch.equal(again.after.noise, found.after.noise)
    with pytest.raises(adp.InputError, match="images = "):
        audited(tmp_path, given(0.1))


def test_images_that_are_misread_or_cannot_be_inverted_are_dropped(tmp_path, monkeypatch):
    images = given()
    images[0] = images[1]  # what the classifier reads is another label

    def invert(self, images, cond, **_):
        if torch.allclose(images, given()[3:]):
            raise adp.InversionError("step 3 does not converge")
        return adp.FlowSampler.invert(self, images, cond)

    monkeypatch.setattr(Sometimes, "invert", invert)
    sampler = Sometimes(Seen(VPDiscrete(scaled_linear())), steps=8, solver=adp.Heun(), guidance_scale=1.0)
    with pytest.warns(
        UserWarning, match=r"2 of 4 starts are dropped, 1 of 'north east' .*read as north.*inverted"
    ):
        found = audited(tmp_path, images, sampler)
    assert found.labels == LABELS[1:3]
    assert [each.why for each in found.dropped][1] == "the sampler's steps cannot be inverted to it"


class Sometimes(adp.FlowSampler):
    """Cannot be inverted to every image."""


def test_what_has_no_start_is_refused(tmp_path):
    with pytest.raises(adp.InputError, match=r"use sampler\.invert_coupled"):
        audited(tmp_path / "a", given(), SAMPLER.replace(solver=adp.Coupled(adp.Euler())))
    with pytest.raises(adp.InputError, match="takes a one-step solver of our own"):
        audited(tmp_path / "b", given(), SAMPLER.replace(solver=adp.DPMSolverPP(2)))
    with pytest.raises(adp.InputError, match="adds noise in its steps"):
        audited(tmp_path / "b", given(), SAMPLER.replace(solver=adp.EulerMaruyama()))
    with pytest.raises(adp.InputError, match="for each of 4 prompts"):
        audited(tmp_path / "c", given()[:2])
    with pytest.raises(adp.InputError, match=r"lie in \[0, 1\]"):
        audited(tmp_path / "d", given() - 1)
    with pytest.raises(adp.InputError, match="an image has one start"):
        audited(tmp_path / "e", given(), num_starts=2)
