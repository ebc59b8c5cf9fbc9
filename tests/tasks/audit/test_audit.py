"""The audit: balls, what counts as a success, its controls, its files; and the faults it must not have."""

import json
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm.files.images import read_image
from adjointdpm.metrics import HiddenStates
from adjointdpm.metrics.image_classifier import Classifier
from adjointdpm.tasks import AuditSettings, Ball, HardenSettings, Loop, NoiseClassifier, optimize
from adjointdpm.tasks.audit import baselines
from adjointdpm.tasks.audit.attack import Attack, Objective, pixels
from adjointdpm.tasks.evaluation import Rate, labels_of
from adjointdpm.tasks.harden.augmentation import drawn, variants
from adjointdpm.tasks.harden.finetune import FineTune
from adjointdpm.zoo import load_classifier
from tests.conftest import scaled_linear, standard_mixture
from tests.system.test_bad_input import picture_sampler
from tests.tiny.tasks import mixture_sampler

LABELS = ["north east", "north", "south", "east"]


class Nearest(nn.Module):
    """Logits: minus the squared distance to each of the four blobs of the mixture, as a pixel shows them."""

    def __init__(self, scale=4.0, names=LABELS):
        super().__init__()
        self.scale = scale
        self.register_buffer("means", standard_mixture(adp.VPDiscrete(scaled_linear())).means.detach())
        self.config = SimpleNamespace(id2label=dict(enumerate(names)), num_labels=len(names))

    def forward(self, pixel):
        points = (pixel[:, :2].flatten(1) - 0.5) * 4
        return SimpleNamespace(
            logits=-self.scale * (points[:, None] - self.means.to(points)).square().sum(2)
        )


def classifier(model=None):
    return Classifier(Nearest() if model is None else model, [0.0] * 3, [1.0] * 3, None)


def settings(**changes):
    quick = {
        "max_train_steps": 6,
        "num_starts": 2,
        "tries": 12,
        "train_batch_size": 3,
        "ball": Ball(0.6),
        "confidence": 0.2,
    }
    return AuditSettings(**{**quick, **changes})


def audited(folder, audited_=None, **changes):
    given = {"judge": classifier(), "features": pixels, "quiet": True, "settings": settings()} | changes
    return adp.tasks.audit(
        mixture_sampler(4), audited_ or classifier(), LABELS, LABELS, output=folder, **given
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    given = settings(radii=(0.2,))
    return audited(
        folder, settings=given, transfer={"<b>other</b>": classifier(Nearest(2.0))}, repeat="<i>again</i>"
    )


# --- balls


@pytest.mark.parametrize("ball", [Ball(0.3), Ball(0.3, shell=True), Ball(0.3, "linf")])
def test_projection_is_the_nearest_point(ball):
    torch.manual_seed(0)
    centre = torch.randn(1, 3, dtype=torch.float64)
    x = centre + torch.randn(1, 3, dtype=torch.float64)
    near = ball.project(x, centre)
    assert float(ball.distance(near, centre)) <= ball.radius + 1e-12
    assert float((ball.project(near, centre) - near).abs().max()) < 1e-12
    others = ball.project(centre + torch.randn(20000, 3, dtype=torch.float64), centre.expand(20000, 3))
    if ball.shell:
        assert float((others.norm(dim=1) - centre.norm()).abs().max()) < 1e-12
        # Along the sphere, the nearest is the one of the smallest angle.
        angles = nn.functional.cosine_similarity(others, x.expand_as(others))
        assert float(angles.max()) <= float(nn.functional.cosine_similarity(near, x)) + 1e-12
    else:
        assert float((others - x).norm(dim=1).min()) >= float((near - x).norm()) - 1e-12
    inside = centre + 1e-3 * torch.ones_like(centre)
    if not ball.shell:
        assert float((ball.project(inside, centre) - inside).abs().max()) < 1e-15


def test_the_rim_of_the_shell_is_as_far_as_the_ball_goes():
    centre = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    rim = Ball(0.5, shell=True).project(torch.tensor([[-30.0, 1.0]], dtype=torch.float64), centre)
    assert float((rim - centre).norm()) == pytest.approx(0.5 * 5)
    assert float(rim.norm()) == pytest.approx(5)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [((0.0,), "above 0"), ((0.1, "l1"), "l2 or linf"), ((0.1, "linf", True), "shell")],
)
def test_balls_that_are_none(arguments, word):
    with pytest.raises(adp.InputError, match=word):
        Ball(*arguments)


# --- known faults


def test_the_ball_does_not_move_with_the_noise(tmp_path):
    """A centre that aliases the noise bounds nothing: steps of the ball's own size would add up."""
    sampler = mixture_sampler(3)
    start = sampler.noise(3, 0)
    kept = start.clone()
    far = Objective(
        classifier(), torch.zeros(3, dtype=torch.long), False, math.inf, None, 0.0, torch.zeros(3)
    )
    task = Attack(sampler, sampler.encode(["x"] * 3), start, Ball(0.1), far)
    seen = []

    def report(step, values):
        seen.append(task.ball.distance(task.variables["noise"].detach(), kept).max())

    sgd = lambda leaves: torch.optim.SGD(leaves, 3.0)  # noqa: E731
    optimize(task, sgd, Loop(steps=5, quiet=True, report=report))
    assert max(seen) == pytest.approx(0.1)
    assert torch.equal(start, kept)
    assert torch.equal(task.centre, kept)


def test_a_success_is_that_of_the_saved_picture_of_the_saved_noise(result):
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
    listed = json.loads((result.folder / "result.json").read_text())
    assert [each["fooled"] for each in listed["pictures"]] == fooled
    assert sum(fooled) > 0


def test_the_loss_is_on_logits():
    """A softmax of these logits is 1 to the last bit; its cross-entropy has no gradient."""
    images = torch.full((1, 3, 1, 1), 0.75, requires_grad=True)
    sure = classifier(Nearest(scale=1e4))
    logits = sure(images)
    entropy = nn.functional.cross_entropy(logits.softmax(1), logits.argmax(1))
    assert float(torch.autograd.grad(entropy, images)[0].norm()) == 0
    objective = Objective(sure, sure(images).argmax(1), False, 1.0, None, 0.0, images.detach())
    gradient = torch.autograd.grad(objective(images, [0]).values.sum(), images)[0]
    assert float(gradient.norm()) > 1


def test_guidance_is_in_the_gradient():
    """Against finite differences, with a guidance scale at which a detached half would be far off."""
    sampler = picture_sampler(guidance_scale=6.0)
    cond = sampler.encode(["a", "b"])
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    module = NoiseClassifier(sampler, cond, head)
    noise, d = sampler.noise(2, 1).requires_grad_(), sampler.noise(2, 2)
    (gradient,) = torch.autograd.grad(module(noise)[:, 1].sum(), noise)
    with torch.no_grad():
        up, down = (module(noise + s * 1e-5 * d)[:, 1].sum() for s in (1, -1))
    assert float((gradient * d).sum()) == pytest.approx(float(up - down) / 2e-5, rel=1e-6)


def test_pixels_out_of_range_have_a_gradient():
    images = torch.tensor([1.4, -0.3, 1.1]).view(1, 3, 1, 1).requires_grad_()
    objective = Objective(classifier(), torch.tensor([3]), False, 1e9, None, 0.0, images.detach())
    gradient = torch.autograd.grad(objective(images, [0]).values.sum(), images)[0]
    assert float(gradient[:, :2].abs().min()) > 0


class Constant(Nearest):
    """Says the first label whatever it sees."""

    def forward(self, pixel):
        return SimpleNamespace(logits=super().forward(pixel).logits * 0 + torch.tensor([1.0, 0, 0, 0]))


def test_nothing_pulls_the_noise_but_the_loss(tmp_path):
    """No weight decay: where the loss is flat, the noise keeps its bits."""
    with pytest.warns(UserWarning, match="6 of 8 starts are dropped"):
        found = audited(tmp_path, classifier(Constant()), judge=None, features=None,
                        settings=settings(controls=False))  # fmt: skip
    assert torch.equal(found.after.noise, found.start)
    assert found.success.hits == 0
    assert set(found.labels) == {LABELS[0]}


# --- what it reports


def test_wilson_intervals():
    assert Rate(0, 10).interval == pytest.approx((0, 0.27753), abs=1e-5)
    assert Rate(9, 10).interval == pytest.approx((0.59585, 0.98212), abs=1e-5)
    assert Rate(0, 0).interval == (0, 1)


def test_only_starts_that_are_read_right(result):
    assert result.before.success.hits == 0
    assert result.before.says == result.labels
    assert result.tried >= len(result.labels) > 3


def test_larger_balls_fool_more_and_nothing_leaves_its_ball(result):
    assert list(result.curve) == [0.2, 0.6]
    small, large = result.curve.values()
    assert small.success.hits < large.success.hits
    for radius, found in result.curve.items():
        assert float(found.distances.max()) <= radius * (1 + 1e-9)


def test_controls_have_the_same_number_of_denoiser_calls(tmp_path):
    """Counted at the denoiser: every sampling of a control is one of 4 calls."""
    sampler, draws = mixture_sampler(4), []
    given = settings(num_starts=1, train_batch_size=10)
    found = adp.tasks.audit(
        sampler, classifier(), LABELS[:1], LABELS[:1], output=tmp_path, settings=given, quiet=True,
        judge=None,
    )  # fmt: skip
    costs = found.costs
    assert costs["calls_a_sampling"] == 4
    assert costs["calls_a_step"] == 12
    draws = costs["samplings_a_control"]
    assert draws * costs["calls_a_sampling"] == given.max_train_steps * costs["calls_a_step"]
    assert float(found.controls["random noise"].distances) == pytest.approx(0.6)
    assert float(found.controls["SPSA"].distances.max()) <= 0.6 + 1e-9
    calls = []
    sampler.model.denoiser.register_forward_hook(lambda *_: calls.append(1))
    for control, more in (
        (baselines.random_search, ()),
        (baselines.spsa, (0.25,)),
    ):
        calls.clear()
        objective = Objective(classifier(), torch.tensor([0]), False, 0.2, None, 0.0, torch.zeros(1))
        control(sampler, sampler.encode("x"), found.start, Ball(0.6), objective, draws, 0, 10, *more)
        assert len(calls) == draws * 4


def test_the_judge_and_transfer_are_counted_on_the_right_pictures(result):
    # The judge is the classifier's equal here: nothing can be misread and still shown.
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


def test_the_likeness_term_keeps_pictures_near(tmp_path):
    far = audited(tmp_path / "0", settings=settings(keep_weight=0.0, confidence=9.0, controls=False))
    near = audited(tmp_path / "1", settings=settings(keep_weight=30.0, confidence=9.0, controls=False))

    def moved(found):
        return float((found.after.images.float() - found.before.images).square().mean())

    assert moved(near) < 0.8 * moved(far)


def test_the_page_has_no_links_and_escapes_names(result):
    text = (result.folder / "index.html").read_text()
    assert "<b>other" not in text
    assert "<i>again" not in text
    assert "http" not in text.replace("data:", "")
    for word in ("random noise", "SPSA", "How to repeat this", "By label"):
        assert word in text


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
            audited(tmp_path, classifier(Interrupting()), settings=given, resume=True)
    again = audited(tmp_path, settings=given, resume=True)
    for name, found in result.controls.items():
        assert torch.equal(again.controls[name].noise, found.noise)
    for radius, found in result.curve.items():
        assert torch.equal(again.curve[radius].noise, found.noise)
    with pytest.raises(adp.InputError, match=r"confidence = 0\.2, but this run has 0\.3"):
        audited(tmp_path, settings=settings(confidence=0.3), resume=True)


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


class Plain(nn.Module):
    """The same decisions as a bare module, to train a little of."""

    def __init__(self):
        super().__init__()
        self.nearest = Nearest()
        self.bias = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, images):
        return self.nearest(images).logits + self.bias


def test_any_module_is_a_classifier(tmp_path, result):
    found = adp.tasks.audit(
        mixture_sampler(4), Plain(), LABELS, [0, 1, 2, 3], output=tmp_path, judge=Plain(), features=pixels,
        settings=settings(controls=False), transfer={"other": Plain()}, quiet=True,
    )  # fmt: skip
    assert found.labels == [str(LABELS.index(label)) for label in result.labels]
    assert torch.equal(found.after.noise, result.after.noise)
    assert torch.equal(found.after.fooled, result.after.fooled)
    assert found.transfer["other"] == (found.success.hits, found.success.hits)


def test_a_module_of_ones_own_is_hardened_and_saved(tmp_path):
    model, sampler, given = (
        Plain(),
        mixture_sampler(4),
        settings(controls=False, max_train_steps=4, ball=Ball(1.0)),
    )
    found = adp.tasks.audit(
        sampler, model, LABELS, ["0", "1", "2", "3"], output=tmp_path, settings=given, quiet=True
    )
    hard = adp.tasks.harden(
        found, sampler, model, given, HardenSettings(steps=3, batch_size=8, clean=2, held_out=2), quiet=True
    )
    from safetensors.torch import load_file

    assert not bool(model.bias.any())  # the copy was trained
    saved = load_file(hard.folder / "classifier" / "model.safetensors")
    assert float(saved["bias"].abs().max()) > 0
    assert json.loads((hard.folder / "classifier" / "labels.json").read_text()) == ["0", "1", "2", "3"]
    assert {path.name for path in (hard.folder / "train").iterdir()} == {"0", "1", "2", "3"}
    with pytest.raises(adp.InputError, match="no weights that could be trained"):
        adp.tasks.harden(found, sampler, Bare(), given)


class Bare(nn.Module):
    """Logits without a weight."""

    def forward(self, images):
        return torch.cat([images.flatten(1), images.flatten(1)[:, :1]], 1)


def test_labels_of_one_folder_name_stay_apart(tmp_path):
    from adjointdpm.tasks.harden.dataset import Labelled

    names = ["a/b", "a_b", "", "x" * 300, "../y"]
    Labelled(torch.zeros(5, 3, 1, 1, dtype=torch.uint8), names, ["clean"] * 5).export(tmp_path / "train")
    folders = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert folders == {"train/_", "train/a_b", "train/a_b (2)", f"train/{'x' * 60}", "train/___y"}


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
        sampler, network, ["a", "b"], output=tmp_path, settings=settings(tries=30), quiet=True
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
    given = {"output": tmp_path, "settings": settings(tries=30), "quiet": True}
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
    listed = json.loads((tmp_path / "result.json").read_text())["dropped"]
    assert [each["prompt"] for each in listed] == LABELS[1:]
    page = (tmp_path / "index.html").read_text()
    for label in LABELS[1:]:
        assert f"2 of '{label}' ({label}: read as north east)" in str(caught[0].message)
        assert f"<td>{label}</td><td>{label}</td><td>2</td><td>read as north east</td>" in page


def test_no_picture_that_is_read_right(tmp_path):
    with pytest.raises(adp.InputError, match="nothing to audit"):
        adp.tasks.audit(mixture_sampler(2), classifier(Constant()), ["x"], ["south"], output=tmp_path,
                        settings=settings(tries=1), quiet=True)  # fmt: skip


# --- hardening


class Linear(nn.Module):
    """Two classes of pictures of 3 x 2 x 2, by known weights."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(12, 2, dtype=torch.float64)
        self.config = SimpleNamespace(id2label={0: "a", 1: "b"}, num_labels=2)

    def forward(self, pictures):
        return SimpleNamespace(logits=self.map(pictures.flatten(1)))


def test_variants_move_mirror_tint_and_bend_as_told():
    torch.manual_seed(0)
    images, draws = torch.rand(2, 3, 8, 8, dtype=torch.float64), torch.zeros(2, 62, dtype=torch.float64)

    def varied(**columns):
        told = draws.clone()
        for name, value in columns.items():
            told[:, int(name[1:])] = value
        return variants(images, told)

    torch.testing.assert_close(varied(), images)
    torch.testing.assert_close(varied(_3=-1.0), images.flip(3))
    left = images[..., [1, 2, 3, 4, 5, 6, 7, 7]]  # by an eighth of the side, the border repeated
    torch.testing.assert_close(varied(_4=1.0), left)
    torch.testing.assert_close(varied(_5=-1.0)[:, :, 1:], images[:, :, :-1])
    tinted = images.clone()
    tinted[:, 1] = (1.2 * (images[:, 1] - 0.5) + 0.5).clamp(0, 1)
    tinted[:, 2] = (images[:, 2] - 0.1).clamp(0, 1)
    torch.testing.assert_close(varied(_7=1.0, _11=-1.0), tinted)
    # A bend that is the same everywhere is a shift, here by a tenth of half the side: 0.4 pixels.
    torch.testing.assert_close(
        varied(**{f"_{i}": 1.0 for i in range(12, 37)})[..., :-1],
        0.6 * images[..., :-1] + 0.4 * images[..., 1:],
    )
    # A picture of radii is the same after a turn, where the turned corners do not matter.
    axis = torch.linspace(-1, 1, 65, dtype=torch.float64)
    radii = (axis[:, None] ** 2 + axis**2).div(2).expand(1, 3, -1, -1)
    turn = torch.zeros(1, 62, dtype=torch.float64)
    turn[:, 0] = 1.0
    inside = (slice(None), slice(None), slice(20, 45), slice(20, 45))
    torch.testing.assert_close(variants(radii, turn)[inside], radii[inside], rtol=0, atol=1e-3)


def test_a_variants_draws_are_its_seeds_own():
    both, one = drawn([3, 4]), drawn([4])
    assert torch.equal(both[1:], one)
    assert float(both.abs().max()) <= 1
    assert float(drawn(range(200)).mean()) == pytest.approx(0, abs=0.02)
    assert float(drawn(range(200)).var()) == pytest.approx(1 / 3, abs=0.01)


def test_hardening_finds_the_worst_variant_of_plain_pictures_for_a_linear_classifier():
    torch.manual_seed(0)
    model, labels = classifier(Linear()), torch.tensor([0, 1, 1])
    colours = torch.rand(3, 3, 1, 1, dtype=torch.float64) * 0.4 + 0.3
    images = colours.expand(-1, -1, 2, 2)
    task = FineTune(model, images, labels, 4)
    # Moves and bends leave plain pictures as they are, and cross-entropy falls along w_y - w_other: so the worst tint
    # has its gains and offsets at their ends, against it.
    w = model.model.map.weight.detach().view(2, 3, 2, 2).sum((2, 3))
    against = torch.stack([w[1 - y] - w[y] for y in labels])[..., None, None].sign()
    worst = colours + against * (0.2 * (colours - 0.5).abs() + 0.1)
    torch.testing.assert_close(task.worst(0, [0, 1, 2]), worst.expand_as(images), rtol=0, atol=1e-12)
    entropy = partial(nn.functional.cross_entropy, reduction="none")
    want = (entropy(model(images), labels) + entropy(model(worst.expand_as(images)), labels)) / 2
    torch.testing.assert_close(task.losses(0, [0, 1, 2]).values, want)
    assert task.validate(0) == pytest.approx(float(want.detach().mean()))
    plain = FineTune(model, images, labels, 0)
    torch.testing.assert_close(plain.losses(0, [2]).values, entropy(model(images[2:]), labels[2:]))


@pytest.mark.parametrize(("name", "value"), [("variant_steps", -1), ("clean", 0), ("rounds", 0)])
def test_a_hardening_says_which_setting_is_out_of_range(name, value):
    with pytest.raises(adp.InputError, match=name):
        HardenSettings(**{name: value})


def test_hardening_exports_trains_and_measures(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=1, patch_size=1,
        num_labels=4, id2label=dict(enumerate(LABELS)), attn_implementation="eager",
    )  # fmt: skip
    model = classifier(ViTForImageClassification(config).eval())
    sampler = mixture_sampler(4)
    with torch.no_grad():
        images = sampler(sampler.noise(64, 3), sampler.encode(["x"] * 64)).float()
    task = FineTune(model, images, classifier()(images).argmax(1), 0)
    optimize(task, lambda leaves: torch.optim.Adam(leaves, 0.03), Loop(steps=60, quiet=True))
    model.requires_grad_(False)
    model = model.double()
    given = settings(controls=False, keep_weight=0.0)
    found = audited(
        tmp_path,
        model,
        settings=given,
        judge=None,
        features=HiddenStates(model.model, model.normalized, None),
    )
    before = [p.clone() for p in model.parameters()]
    hard = adp.tasks.harden(
        found,
        sampler,
        model,
        given,
        HardenSettings(
            rounds=2,
            steps=5,
            batch_size=8,
            clean=2,
            others=3,
            held_out=2,
            attack=replace(given, ball=Ball(0.9)),
        ),
        others={"z": "south"},
        quiet=True,
    )
    assert (hard.clean_before.of, hard.others_before.of) == (2 * len(set(found.prompts)), 2)
    again = json.loads((hard.folder / "round-2" / "result.json").read_text())
    assert again["settings"]["ball"]["radius"] == 0.9
    assert 0.6 < again["after"]["largest_distance"] <= 0.9 + 1e-6  # the round's own ball
    measured = json.loads((hard.folder / "after" / "result.json").read_text())
    assert measured["settings"]["ball"]["radius"] == 0.6  # the audit's
    more = again["after"]["success"]["hits"]
    assert more > 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    files = sorted((hard.folder / "train").glob("*/*.png"))
    assert sum(path.name.startswith("found") for path in files) == found.success.hits + more > more
    near = found.success.of + again["after"]["success"]["of"] - found.success.hits - more
    assert sum(path.name.startswith("near") for path in files) == near
    assert sum(path.name.startswith("clean") for path in files) == 2 * len(set(found.prompts)) + 3
    for path in files:
        if path.name.startswith("clean"):
            assert path.parent.name in LABELS
    saved = load_classifier(str(hard.folder / "classifier"))
    assert saved.labels == LABELS
    tuned = dict(saved.named_parameters())["model.classifier.weight"]
    assert float((tuned - model.model.classifier.weight).abs().max()) > 1e-6
    assert hard.before.of >= 4
    assert hard.clean_before.of == hard.clean_after.of == 8
    assert hard.kept_before is None  # no judge
    record = json.loads((hard.folder / "result.json").read_text())
    assert record["after"] == hard.after.as_dict()
    assert record["kept_after"] is None


def test_more_steps_go_on_to_the_bits_of_one_audit(tmp_path):
    """The controls, too, which have as many calls as the attack and are made anew."""
    audited(tmp_path / "a", settings=settings(max_train_steps=3))
    longer = audited(tmp_path / "a", settings=settings(max_train_steps=6), resume=True)
    truth = audited(tmp_path / "b", settings=settings(max_train_steps=6))
    assert longer.losses == truth.losses
    for name, found in {"after": truth.after, **truth.controls}.items():
        mine = longer.after if name == "after" else longer.controls[name]
        assert torch.equal(mine.noise, found.noise)
