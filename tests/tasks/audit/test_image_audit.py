"""An audit of given images: the saved files are what is judged; resuming; purified classifiers; what is refused."""

import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm.attacks import ImageBall, judged
from adjointdpm.files.images import read_image
from adjointdpm.optimization.seeds import key
from adjointdpm.tasks import Ball, RunOptions, load_result
from tests.samplers.test_purified import Classify, sampler
from tests.tiny.image_audits import LABELS, Channels, attack, audited, images


def test_a_success_is_that_of_the_saved_file_on_fresh_draws(image_result):
    files = sorted((image_result.folder / "found").glob("*.png"))
    read = torch.stack([read_image(path.read_bytes()) for path in files])
    given = images()[image_result.right]
    assert float((read - given).abs().max()) <= 8 / 255 + 1e-6
    labels = image_result.labels[image_result.right]
    again = judged(Channels(0.3), read, labels, draws=3, seed=key(0, "found"), batch=2)
    assert torch.equal(again.said, image_result.after.said)
    assert image_result.right.tolist() == [True] * 5 + [
        False
    ]  # the last label is wrong: it is not attacked
    found = load_result(image_result.folder)["result"]
    assert found["clean"]["majority"]["hits"] == 5
    assert found["robust"]["majority"]["hits"] == int((~again.majority).sum())
    assert found["robust"]["majority"]["of"] == 6
    assert found["randomized"]
    assert found["images"][5]["says"] is None


def test_closer_images_are_misled_and_random_noise_does_less(image_result):
    """Channel i is brighter by 4 + 3 i levels; 8 levels each way close a gap of 16."""
    plain = image_result.after.majority.tolist()
    assert plain[:4] == [True] * 4
    assert image_result.misled(image_result.random)["majority"].hits < sum(plain)


def test_an_interrupted_audit_goes_on_to_the_same_bits(tmp_path, image_result):
    class Interrupting(Channels):
        calls = stop = 0

        def forward(self, images):
            Interrupting.calls += 1
            if Interrupting.calls == Interrupting.stop:
                raise KeyboardInterrupt
            return super().forward(images)

    for stop in (25, 40):
        Interrupting.calls, Interrupting.stop = 0, stop
        with pytest.raises(KeyboardInterrupt):
            audited(tmp_path, Interrupting(0.3), run=RunOptions(quiet=True, resume=True))
    assert len(list((tmp_path / "state").glob("*.safetensors"))) > 0
    again = audited(tmp_path, Channels(0.3), run=RunOptions(quiet=True, resume=True))
    assert torch.equal(again.found, image_result.found)
    assert torch.equal(again.after.said, image_result.after.said)
    assert again.losses == image_result.losses
    with pytest.raises(adp.InputError, match="steps = 5, but this run has 6"):
        audited(tmp_path, Channels(0.3), attack=attack(steps=6), run=RunOptions(quiet=True, resume=True))


def test_a_purified_classifier_is_audited_with_its_own_gradient(tmp_path):
    ours = sampler(adp.EulerMaruyama(), steps=4)
    whole = adp.Purified(ours, Classify(), t=0.2, steps=2, votes=4)
    given = torch.rand(2, *ours.image_shape, dtype=torch.float64)
    given = (255 * given).round() / 255
    labels = judged(whole.replace(votes=1), given, torch.zeros(2, dtype=torch.long), draws=9).voted.tolist()
    shared = {"attack": attack(steps=1), "votes": 2, "run": RunOptions(quiet=True)}
    found = adp.tasks.audit_images(whole, given, labels, output=tmp_path, **shared)
    assert found.costs["calls_a_draw"] == 2
    assert found.costs["calls_a_gradient"] == 6
    assert found.costs["candidates"] == 3  # as many calls as one gradient
    assert "Purification" in (tmp_path / "index.html").read_text()
    wrong = adp.tasks.audit_images(
        whole, given, labels, output=tmp_path / "bpda", gradient="bpda", controls=False, **shared
    )
    assert wrong.costs["calls_a_gradient"] == 2
    assert "wrong gradient (bpda)" in (tmp_path / "bpda" / "index.html").read_text()


# --- bad input


class Cut(Channels):
    def forward(self, images):
        return super().forward(images.detach())


def test_what_cannot_be_audited_is_refused(tmp_path):
    def with_labels(*labels):
        return adp.tasks.audit_images(Channels(), images(2), labels, output=tmp_path)

    for message, call in {
        r"no label 'gren' among its 4, .*did you mean green\?": lambda: with_labels("red", "gren"),
        "2 images and 1 labels": lambda: with_labels("red"),
        "reads none of 2 images right": lambda: with_labels("blue", "blue"),
        "before the softmax": lambda: audited(tmp_path, nn.Sequential(Channels(), nn.Softmax(1))),
        "have no gradient with respect to the image": lambda: audited(tmp_path, Cut()),
        "attacked in an ImageBall": lambda: audited(tmp_path, attack=attack(ball=Ball(0.1))),
        "votes must be at least 1": lambda: audited(tmp_path, votes=0),
        "is about a purification": lambda: audited(tmp_path, gradient="bpda"),
        "reach from 100 to 116": lambda: adp.tasks.audit_images(
            Channels(), 255 * images(2), ["red", "green"], output=tmp_path
        ),
        "finite logits": lambda: audited(tmp_path, nn.Flatten(0)),
    }.items():
        with pytest.raises(adp.InputError, match=message):
            call()


def test_a_randomized_classifier_without_a_mean_over_draws_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="robustness will seem higher than it is"):
        audited(tmp_path, Channels(0.3), attack=attack(draws=1), controls=False)


class Saturated(Channels):
    def forward(self, images):
        return 1e4 * super().forward(images)


def test_zero_gradients_are_reported_as_a_share(tmp_path):
    found = audited(tmp_path, Saturated(), attack=attack(loss="ce", ball=ImageBall(1 / 255)))
    assert found.zero_gradients > 0.5
    assert load_result(tmp_path)["result"]["zero_gradients"] == found.zero_gradients
    assert "gradients were exactly zero" in (tmp_path / "index.html").read_text()


def test_classes_without_names_are_called_by_their_numbers(tmp_path):
    class Nameless(Channels):
        labels = None

    found = adp.tasks.audit_images(
        Nameless(), images(2), [0, "1"], output=tmp_path, attack=attack(), run=RunOptions(quiet=True)
    )
    assert found.names == [str(i) for i in range(len(LABELS))]
    assert not found.randomized
