"""The audit: balls, what counts as a success, its controls, its files; and the faults it must not have."""

import csv

import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm.files.images import read_image
from adjointdpm.tasks import Ball, RunOptions, load_result
from adjointdpm.tasks.audit.attack import pixels
from adjointdpm.tasks.evaluation import labels_of
from adjointdpm.tasks.harden.augmentation import variants
from tests.tiny.audits import LABELS, Constant, Nearest, Plain, audited, classifier, settings
from tests.tiny.tasks import mixture_sampler


def test_a_success_is_that_of_the_saved_image_of_the_saved_noise(result):
    """With steps so long that the last iterate is not the best."""
    noise, _ = adp.load_noise(result.folder / "noise.safetensors")
    assert torch.equal(noise, result.after.noise)
    sampler, model = mixture_sampler(4), classifier()
    with torch.no_grad():
        again = sampler(noise, sampler.encode(["x"] * len(noise)))
    files = sorted((result.folder / "after").glob("*.png"))
    images = torch.stack([read_image(path.read_bytes()) for path in files])
    assert float((images - again.clamp(0, 1)).abs().max()) <= 0.5 / 255 + 1e-6
    says = [LABELS[i] for i in model(images).argmax(1)]
    fooled = [a != b for a, b in zip(says, result.labels, strict=True)]
    assert fooled == result.after.fooled.tolist()
    listed = load_result(result.folder)["result"]
    assert [each["fooled"] for each in listed["images"]] == fooled
    assert sum(fooled) > 0


def test_the_smallest_change_still_fools_and_is_nearer(result):
    noise, _ = adp.load_noise(result.folder / "smallest.safetensors")
    files = sorted((result.folder / "smallest").glob("*.png"))
    images = torch.stack([read_image(path.read_bytes()) for path in files])
    says = [LABELS[i] for i in classifier()(images).argmax(1)]
    rows = load_result(result.folder)["result"]["images"]
    listed = list(csv.DictReader((result.folder / "images.csv").read_text().splitlines()))
    for i, row in enumerate(rows):
        moved = float((noise[i] - result.start[i]).norm() / result.start[i].norm())
        if not row["fooled"]:
            assert row["smallest_distance"] is None
            assert torch.equal(noise[i], result.after.noise[i])
            continue
        assert says[i] != result.labels[i]
        assert row["smallest_distance"] == pytest.approx(moved)
        assert moved <= row["distance"]
        before = read_image((result.folder / "before" / f"{i:04d}.png").read_bytes())
        levels = round(255 * float((images[i] - before).abs().max()))
        assert row["smallest_pixel_difference"] == levels <= row["pixel_difference"]
        assert float(listed[i]["smallest_distance"]) == row["smallest_distance"]
    # A little nearer, where the last halving was, the classifier is right.
    sampler, fooled = mixture_sampler(4), result.after.fooled
    step = 2**-6 * (result.after.noise - result.start)
    with torch.no_grad():
        made = sampler(noise - step, sampler.encode(["x"] * len(noise)))
    nearer = [LABELS[i] for i in classifier()((255 * made.clamp(0, 1)).round() / 255).argmax(1)]
    right = [a == b for a, b, f in zip(nearer, result.labels, fooled.tolist(), strict=True) if f]
    assert sum(right) >= len(right) / 2 > 0


def test_larger_balls_fool_more_and_nothing_leaves_its_ball(result):
    assert list(result.curve) == [0.2, 0.6]
    small, large = result.curve.values()
    assert small.success.hits < large.success.hits
    for radius, found in result.curve.items():
        assert float(found.distances.max()) <= radius * (1 + 1e-9)


def test_the_judge_and_transfer_are_counted_on_the_right_images(result):
    # The judge is the classifier's equal here: nothing can be misclassified, label preserved.
    assert result.kept.hits == 0
    hits, of = result.transfer["<b>other</b>"]
    assert hits == of == result.success.hits  # the same decision boundaries


def test_towards_a_target(tmp_path):
    with pytest.warns(UserWarning, match=r"2 of 'south' \(south: is the target itself\)"):
        found = audited(
            tmp_path, target="south", settings=settings(ball=Ball(1.2), max_train_steps=15, controls=False)
        )
    assert "south" not in found.labels
    assert found.success.hits == found.after.says.count("south") > 0


def test_an_interrupted_audit_goes_on_to_the_same_bits(tmp_path, result):
    class Interrupting(Nearest):
        calls = stop = 0

        def forward(self, pixel):
            Interrupting.calls += 1
            if Interrupting.calls == Interrupting.stop:
                raise KeyboardInterrupt
            return super().forward(pixel)

    given = settings(radii=(0.2,))
    for stop in (20, 45, 150):
        Interrupting.calls, Interrupting.stop = 0, stop
        with pytest.raises((KeyboardInterrupt, adp.tasks.InterruptedRunError)):
            audited(tmp_path, classifier(Interrupting()), settings=given, run=RunOptions(resume=True))
    again = audited(tmp_path, settings=given, run=RunOptions(resume=True))
    for name, found in result.controls.items():
        assert torch.equal(again.controls[name].noise, found.noise)
    for radius, found in result.curve.items():
        assert torch.equal(again.curve[radius].noise, found.noise)
    with pytest.raises(adp.InputError, match=r"confidence = 0\.2, but this run has 0\.3"):
        audited(tmp_path, settings=settings(confidence=0.3), run=RunOptions(resume=True))


# --- bad input


def test_labels_stand_in_prompts():
    model = classifier()
    assert labels_of(model, ["the North East wing", "go south"], None) == [0, 2]
    with pytest.raises(adp.InputError, match="'upwards'"):
        labels_of(model, ["upwards"], None)
    with pytest.raises(adp.InputError, match="no label 'up'"):
        labels_of(model, ["x"], ["up"])
    with pytest.raises(adp.InputError, match="1 prompts and 2 labels"):
        labels_of(model, ["x"], ["south", "east"])


def test_a_prompt_that_names_two_things_is_not_guessed():
    model = classifier(Nearest(names=["cat", "red cat", "dog", "0"]))
    assert labels_of(model, ["a Red cat, sitting", "a cat.", "two (0)"], None) == [1, 0, 3]
    with pytest.raises(adp.InputError, match=r"several labels of the classifier \(cat, dog\)"):
        labels_of(model, ["a cat and a dog"], None)
    with pytest.raises(adp.InputError, match="no label of the classifier stands"):
        labels_of(model, ["a caterpillar, or a hot-dog"], None)
    with pytest.raises(adp.InputError, match="one label a prompt"):
        labels_of(model, ["x"], "cat")
    with pytest.raises(adp.InputError, match=r"no names for its classes; wrap it: .*PlainClassifier"):
        labels_of(nn.Flatten(), ["x"], [0])


def test_any_module_is_a_classifier(tmp_path, result):
    found = adp.tasks.audit(
        mixture_sampler(4), Plain(), LABELS, [0, 1, 2, 3], output=tmp_path, judge=Plain(), features=pixels,
        settings=settings(controls=False), transfer={"other": Plain()}, run=RunOptions(quiet=True),
    )  # fmt: skip
    assert found.labels == [str(LABELS.index(label)) for label in result.labels]
    assert torch.equal(found.after.noise, result.after.noise)
    assert torch.equal(found.after.fooled, result.after.fooled)
    assert found.transfer["other"] == (found.success.hits, found.success.hits)


def grey_sampler():
    class Grey(type(mixture_sampler().model)):
        def decode(self, latents, run=adp._types.direct):
            return (0.5 + 0.25 * latents)[:, None, :, None]

    model = Grey(mixture_sampler().model.schedule)
    model.image_shape = (1, 2, 1)
    return adp.FlowSampler(model, steps=4)


def test_images_of_one_channel(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).double()
    network.labels = ["a", "b"]
    sampler = grey_sampler()
    found = adp.tasks.audit(
        sampler,
        network,
        ["a", "b"],
        output=tmp_path,
        settings=settings(tries=30),
        run=RunOptions(quiet=True),
    )
    file = read_image((tmp_path / "after" / "0000.png").read_bytes())
    assert file.shape == (1, 2, 1)
    assert torch.equal(file * 255, found.after.images[0].float())
    with pytest.raises(adp.InputError, match="the classifier fails on images as"):
        adp.tasks.audit(sampler, nn.Linear(6, 2), ["a"], [0], output=tmp_path / "other")
    images, draws = torch.rand(2, 1, 8, 8), torch.zeros(2, 62)
    draws[:, 6] = 1.0
    torch.testing.assert_close(variants(images, draws), (1.2 * (images - 0.5) + 0.5).clamp(0, 1))


class Own(adp.Sampler):
    """Somebody's own sampler: a point is a pixel."""

    image_shape = (3, 1, 1)

    def __init__(self, count=True, attached=True):
        super().__init__()
        self.count, self.attached = count, attached

    def encode(self, prompts, negative=""):
        return adp.Cond({})

    def noise(self, batch=1, seed=0):
        return torch.randn(batch, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def forward(self, noise, cond):
        if self.count:
            self.stats = adp._types.Stats(nfe_forward=1)
        noise = noise if self.attached else noise.detach()
        return (0.5 + 0.25 * noise)[:, :, None, None]


def test_a_sampler_of_ones_own(tmp_path):
    given = {"output": tmp_path, "settings": settings(tries=30), "run": RunOptions(quiet=True)}
    found = adp.tasks.audit(Own(), classifier(), LABELS, LABELS, **given)
    assert found.success.hits > 0
    given["output"] = tmp_path / "refused"
    with pytest.raises(adp.InputError, match="a Own does not count its denoiser calls"):
        adp.tasks.audit(Own(count=False), classifier(), LABELS, LABELS, **given)
    with pytest.raises(adp.InputError, match="no gradient with respect to the noise"):
        adp.tasks.audit(Own(attached=False), classifier(), LABELS, LABELS, **given)
    odd = Own()
    odd.image_shape = (4, 1, 1)
    with pytest.raises(
        adp.InputError, match=r"image_shape must be \(1 or 3, height, width\), but is \(4, 1, 1\)"
    ):
        adp.tasks.audit(odd, classifier(), LABELS, LABELS, **given)


def test_what_the_judge_cannot_say_is_an_error_before_the_work(tmp_path):
    for role, word in (("judge", "judge"), ("transfer", "classifier t of transfer")):
        other = classifier(Nearest(names=["north east", "n", "south", "e"]))
        with pytest.raises(adp.InputError, match=f"{word} has no label 'east', 'north'"):
            audited(tmp_path, **{role: other if role == "judge" else {"t": other}})
    assert not (tmp_path / "before").exists()


def test_dropped_prompts_are_named_everywhere(tmp_path):
    with pytest.warns(UserWarning, match="6 of 8 starts are dropped") as caught:
        found = audited(
            tmp_path,
            classifier(Constant()),
            judge=None,
            settings=settings(controls=False, max_train_steps=1),
        )
    assert [(each.label, each.starts, each.why) for each in found.dropped] == [
        (label, 2, "read as north east") for label in LABELS[1:]
    ]
    listed = load_result(tmp_path)["result"]["dropped"]
    assert [each["prompt"] for each in listed] == LABELS[1:]
    page = (tmp_path / "index.html").read_text()
    for label in LABELS[1:]:
        assert f"2 of '{label}' ({label}: read as north east)" in str(caught[0].message)
        assert f"<td>{label}</td><td>{label}</td><td>2</td><td>read as north east</td>" in page


def test_no_image_that_is_read_right(tmp_path):
    with pytest.raises(adp.InputError, match="nothing to audit"):
        adp.tasks.audit(mixture_sampler(2), classifier(Constant()), ["x"], ["south"], output=tmp_path,
                        settings=settings(tries=1), run=RunOptions(quiet=True))  # fmt: skip


def test_more_steps_go_on_to_the_bits_of_one_audit(tmp_path):
    """The controls, too, which have as many calls as the attack and are made anew."""
    audited(tmp_path / "a", settings=settings(max_train_steps=3))
    longer = audited(tmp_path / "a", settings=settings(max_train_steps=6), run=RunOptions(resume=True))
    truth = audited(tmp_path / "b", settings=settings(max_train_steps=6))
    assert longer.losses == truth.losses
    for name, found in {"after": truth.after, **truth.controls}.items():
        mine = longer.after if name == "after" else longer.controls[name]
        assert torch.equal(mine.noise, found.noise)
