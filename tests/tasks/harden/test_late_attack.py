"""Attacks of the last steps: the worst point of the ball, from a clean image, for a fraction of the calls."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import adjointdpm as adp
from adjointdpm.files.images import as_8_bit
from adjointdpm.flow.schedules import VPDiscrete
from adjointdpm.metrics import Margin
from adjointdpm.optimization.seeds import key
from adjointdpm.samplers.from_time import from_time, noised
from adjointdpm.tasks import AuditSettings, Ball, HardenSettings, InterruptedRunError, RunOptions
from adjointdpm.tasks.harden.dataset import clean_images
from adjointdpm.tasks.harden.late_attack import LateAttack
from tests.conftest import scaled_linear
from tests.samplers.test_purified import Own
from tests.tiny.audits import LABELS, Nearest, Plain, audited, classifier, settings
from tests.tiny.tasks import Dots, mixture_sampler

QUIET = RunOptions(quiet=True)


class Encoded(Dots):
    """The same with the way back from an image, as an autoencoder has."""

    def encode_image(self, images):
        return (images[:, :2, 0, 0].double() - 0.5) / 0.25


class Weighted(Nearest):
    """The same with a weight, as hardening needs one."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, pixel):
        return SimpleNamespace(logits=self.weight * super().forward(pixel).logits)


def encoded(steps=8):
    return adp.FlowSampler(Encoded(VPDiscrete(scaled_linear())), steps=steps)


def test_it_finds_the_worst_point_of_the_ball_around_the_noised_image():
    how = AuditSettings(
        ball=Ball(0.5), max_train_steps=30, learning_rate=0.3, momentum=0.5, train_batch_size=3
    )
    sampler = encoded()
    clean = clean_images(sampler, {"x": "north", "y": "south"}, 2, 0, how, quiet=True)
    attack = LateAttack.of(sampler, 0.4, how)
    model = classifier(Weighted())
    found = attack(model, clean, ["x", "x", "y", "y"], 7, quiet=True)
    images, labels = clean.of(model)
    last = from_time(sampler, 0.4)
    centres = noised(last, sampler.model.encode_image(images), [key(7, "noise", i) for i in range(4)])
    angles, radii = torch.linspace(0, 2 * math.pi, 181)[:-1], torch.linspace(0, 1, 21)
    ring = torch.stack([angles.cos(), angles.sin()], 1).double()
    for i in range(4):
        disc = (radii[:, None, None] * 0.5 * centres[i].norm() * ring).reshape(-1, 2)
        with torch.no_grad():
            made = last(centres[i] + disc, sampler.encode(["x"] * len(disc)))
            all_margins = Margin(model, labels[i].expand(len(disc)))(as_8_bit(made).double() / 255)
            mine = Margin(model, labels[i : i + 1])(found[i : i + 1].double() / 255)
        span = float(all_margins.max() - all_margins.min())
        assert span > 0.1, "all points of the ball are the same to the classifier, so this tests nothing"
        # A level of a pixel is worth up to a tenth of the span.
        assert float(mine) <= float(all_margins.min()) + 0.1 * span


def test_hardening_by_it_is_resumed_to_the_bit_and_trains_on_what_it_found(tmp_path, monkeypatch):
    given = settings(controls=False, max_train_steps=4, ball=Ball(1.0))
    how = HardenSettings(
        rounds=3, steps=4, batch_size=8, clean=2, held_out=2, t=0.5, variants=0,
        attack=replace(given, num_starts=3, learning_rate=0.5),
    )  # fmt: skip

    def hardened(folder, run=QUIET, how=how):
        model = Plain()
        found = adp.tasks.audit(
            encoded(), model, LABELS, ["0", "1", "2", "3"], output=folder, settings=given, run=run
        )
        return found, adp.tasks.harden(found, encoded(), model, given, how, run=run)

    found, whole = hardened(tmp_path / "whole")
    files = [path.name for path in (whole.folder / "train").glob("*/*.png")]
    attacked = sum(name.startswith(("found", "near")) for name in files)
    prompts = len(set(found.prompts))
    # Two rounds after the first, with three images a prompt.
    assert attacked == len(found.labels) + 2 * 3 * prompts
    assert not (whole.folder / "round-2" / "result.json").exists()

    plain, calls = LateAttack.__call__, []

    def stopped(self, *args, **more):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, *args, **more)

    monkeypatch.setattr(LateAttack, "__call__", stopped)
    with pytest.raises((KeyboardInterrupt, InterruptedRunError)):
        hardened(tmp_path / "run")
    resumed = RunOptions(quiet=True, resume=True)
    _, again = hardened(tmp_path / "run", resumed)
    assert len(calls) == 3, "the round that was attacked is not attacked again"
    weights = "classifier/model.safetensors"
    assert (again.folder / weights).read_bytes() == (whole.folder / weights).read_bytes()
    with pytest.raises(adp.InputError, match=r"t = 0\.5, but this run has 0\.25"):
        hardened(tmp_path / "run", resumed, replace(how, t=0.25))


def test_samplers_without_last_steps_or_an_encoder_are_refused_before_the_work(tmp_path):
    how = AuditSettings()
    with pytest.raises(adp.InputError, match="which a Own cannot; use a FlowSampler, or leave out t"):
        LateAttack.of(Own(), 0.2, how)
    model = classifier(Weighted())
    found = audited(tmp_path, model, settings=settings(controls=False))
    with pytest.raises(adp.InputError, match=r"override encode_image\(images\)"):
        adp.tasks.harden(found, mixture_sampler(4), model, how, HardenSettings(t=0.2), run=QUIET)
    with pytest.raises(adp.InputError, match="t must be"):
        HardenSettings(t=1.5)
