"""Attacks late in the sampling: the worst point of the ball around a clean image, in every step of a fine-tuning."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.schedules import VPDiscrete
from adjointdpm.metrics import Margin
from adjointdpm.optimization.seeds import key
from adjointdpm.samplers.from_time import from_time, noised
from adjointdpm.tasks import AuditSettings, Ball, HardenSettings, InterruptedRunError, RunOptions
from adjointdpm.tasks.harden.dataset import clean_images
from adjointdpm.tasks.harden.finetune import FineTune
from adjointdpm.tasks.harden.late_attack import LateAttack
from adjointdpm.tasks.sampling import saved
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


def clean_of(sampler, model, each=2):
    clean = clean_images(sampler, {"x": "north", "y": "south"}, each, 0, AuditSettings(), quiet=True)
    return clean.of(model)


def late(sampler, t, radius, steps, prompts, half=False):
    how = HardenSettings(late_steps=steps, late_half=half)
    attack = AuditSettings(ball=Ball(radius), train_batch_size=3)
    return LateAttack.of(sampler, t, how, attack, prompts, None)


@pytest.mark.parametrize("t", [0.0, 0.4])
def test_it_finds_the_worst_point_of_the_ball_around_the_image(t):
    sampler, model = encoded(), classifier(Weighted())
    images, labels = clean_of(sampler, model)
    found = late(sampler, t, 0.5, 30, ["x", "x", "y", "y"])(model, images, labels, [0, 1, 2, 3], 7)
    latents, make = sampler.model.encode_image(images), sampler.decode
    if t:
        last = from_time(sampler, t)
        latents = noised(last, latents, [key(7, "noise", i) for i in range(4)])
        make = lambda x: last(x, sampler.encode(["x"] * len(x)))  # noqa: E731
    angles, radii = torch.linspace(0, 2 * math.pi, 181)[:-1], torch.linspace(0, 1, 21)
    ring = torch.stack([angles.cos(), angles.sin()], 1).double()
    for i in range(4):
        disc = (radii[:, None, None] * 0.5 * latents[i].norm() * ring).reshape(-1, 2)
        with torch.no_grad():
            made = saved(make(latents[i] + disc))
            every = Margin(model, labels[i].expand(len(disc)))(made)
            mine = Margin(model, labels[i : i + 1])(found[i : i + 1])
        span = float(every.max() - every.min())
        assert span > 0.1, "all points of the ball are the same to the classifier, so this tests nothing"
        # A level of a pixel is worth up to a tenth of the span.
        assert float(mine) <= float(every.min()) + 0.1 * span


def test_images_beyond_the_first_and_those_that_the_judge_does_not_recognize_stay_as_they_are():
    sampler, model = encoded(), classifier(Weighted())
    images, labels = clean_of(sampler, model)
    attack = late(sampler, 0.0, 1.5, 10, ["x", "x", "y"])
    found = attack(model, images[:3], labels[:3], [3, 0, 5], 7)
    changed = (found != images[:3]).flatten(1).any(1)
    assert changed.tolist() == [False, True, False]
    others = attack(model, images[:3], labels[:3], [3, 4, 5], 7)
    assert torch.equal(others, images[:3])
    # A judge that is the classifier itself recognizes nothing in what misleads it.
    images, labels = clean_of(sampler, model, 8)
    attack, items = late(sampler, 0.0, 0.5, 10, ["x"] * 8 + ["y"] * 8), list(range(16))
    found = attack(model, images, labels, items, 7)
    misled = model(found).argmax(1) != labels
    assert bool(misled.any())
    assert bool(((found != images).flatten(1).any(1) & ~misled).any())
    judged = replace(attack, judge=model)(model, images, labels, items, 7)
    assert torch.equal(judged[misled], images[misled])
    assert torch.equal(judged[~misled], found[~misled])


def test_a_fine_tuning_with_it_takes_the_loss_of_what_it_found_beside_that_of_the_images():
    sampler, model = encoded(), classifier(Weighted())
    images, labels = clean_of(sampler, model)
    attack = late(sampler, 0.0, 0.8, 3, ["x", "x", "y", "y"])
    task = FineTune(model, images, labels, 0, 5, [late(sampler, 0.4, 0.8, 3, ["x", "x", "y", "y"]), attack])
    given, right = images[[2, 0]], labels[[2, 0]]
    worse = attack(model, given, right, [2, 0], key(5, "attack", 9))
    entropy = partial(torch.nn.functional.cross_entropy, reduction="none")
    with torch.no_grad():  # as the last iterate is scored
        clean, attacked = entropy(model(given), right), entropy(model(worse), right)
        assert torch.equal(task.losses(9, [2, 0]).values, (clean + attacked) / 2)
    assert bool((attacked > clean).all())
    assert not torch.equal(worse, attack(model, given, right, [2, 0], key(5, "attack", 8)))


def test_half_precision_is_the_samplings_alone():
    seen = {}

    class Half(Encoded):
        def decode(self, latents, run=None):
            found = super().decode(latents).float().flatten(1) @ torch.eye(3)
            seen["made"] = found.dtype
            return found[:, :, None, None].to(latents)

    class Seen(Weighted):
        def forward(self, pixel):
            seen["judged"] = pixel.dtype, torch.is_autocast_enabled("cpu")
            return super().forward(pixel)

    sampler, model = adp.FlowSampler(Half(VPDiscrete(scaled_linear())), steps=4), classifier(Seen())
    images, labels = clean_of(sampler, model, 1)
    found = {
        half: late(sampler, 0.0, 0.5, 3, ["x", "y"], half)(model, images, labels, [0, 1], 7)
        for half in (True, False)
    }
    assert seen == {"made": torch.float32, "judged": (torch.float32, False)}
    late(sampler, 0.0, 0.5, 3, ["x", "y"], True)(model, images, labels, [0, 1], 7)
    assert seen == {"made": torch.bfloat16, "judged": (torch.float32, False)}
    assert 0 < float((found[True] - found[False]).abs().max()) <= 2**-7


def test_hardening_by_it_is_resumed_to_the_bit(tmp_path, monkeypatch):
    given = settings(controls=False, max_train_steps=4, ball=Ball(1.0))
    how = HardenSettings(
        steps=6, batch_size=8, clean=2, held_out=2, t=(0.0, 0.5), variants=0, learning_rate=0.01
    )

    def hardened(folder, run=QUIET, how=how):
        model = Plain()
        found = adp.tasks.audit(
            encoded(), model, LABELS, ["0", "1", "2", "3"], output=folder, settings=given, run=run
        )
        return adp.tasks.harden(found, encoded(), model, given, how, run=run)

    def weights(hard):
        return (hard.folder / "classifier" / "model.safetensors").read_bytes()

    whole = hardened(tmp_path / "whole")
    call, calls = LateAttack.__call__, []

    def stopped(self, *args, **more):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return call(self, *args, **more)

    monkeypatch.setattr(LateAttack, "__call__", stopped)
    with pytest.raises((KeyboardInterrupt, InterruptedRunError)):
        hardened(tmp_path / "run")
    resumed = RunOptions(quiet=True, resume=True)
    again = hardened(tmp_path / "run", resumed)
    assert weights(again) == weights(whole)
    with pytest.raises(adp.InputError, match=r"t = "):
        hardened(tmp_path / "run", resumed, replace(how, t=(0.25,)))


def test_samplers_without_latents_or_an_encoder_are_refused_before_the_work(tmp_path):
    with pytest.raises(
        adp.InputError, match="which a Own does not give; use a FlowSampler, or leave out t"
    ):
        late(Own(), 0.2, 0.1, 3, ["x"])
    model = classifier(Weighted())
    found = audited(tmp_path, model, settings=settings(controls=False))
    with pytest.raises(adp.InputError, match=r"override encode_image\(images\)"):
        adp.tasks.harden(
            found, mixture_sampler(4), model, AuditSettings(), HardenSettings(t=(0.2,)), run=QUIET
        )
