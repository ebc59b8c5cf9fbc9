"""Goals of an inversion: what the loss of a token is, and which goals agree."""

import pytest
import torch
from safetensors.torch import load_file

import adjointdpm as adp
from adjointdpm.files.images import image_file
from adjointdpm.metrics import Chroma, Content, Pixels, Style, effect
from adjointdpm.metrics.rewards import FunctionReward
from adjointdpm.tasks import RunOptions
from adjointdpm.tasks.invert.goals import EffectGoal, ImageGoal, MetricGoal, PromptGoal
from adjointdpm.tasks.invert.invert import Invert, InvertSettings, invert
from adjointdpm.tasks.invert.learned_token import PromptRows, TokenVectors
from adjointdpm.tasks.sampling import saved
from tests.tiny.inversions import sampler
from tests.tiny.metrics import bright_for_long_prompts

PROMPTS, HELD_OUT = ["a <new> cat", "a <new> dog"], ["a <new> pear"]
SETTINGS = InvertSettings(max_train_steps=3, learning_rate=0.05, num_validation_images=1)


def features(images):
    """Two feature maps that mix the channels, so that style and content have gradients in all of them."""
    mixed = torch.einsum("dc,bchw->bdhw", torch.linspace(-1, 1, 12).view(4, 3), images)
    return [torch.tanh(mixed), torch.nn.functional.avg_pool2d(mixed, 2).square()]


def style_and_content():
    reference = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(3))
    return Style(features, reference) + 0.3 * Content(features)


def run(goal, folder):
    ours = sampler()
    learned = TokenVectors(ours, "<new>", "and")
    found = invert(
        ours, learned, goal, PROMPTS, HELD_OUT, token="<new>", output=folder, settings=SETTINGS,
        run=RunOptions(quiet=True),
    )  # fmt: skip
    return found, learned


def test_a_reward_reads_the_prompt_without_the_token(tmp_path):
    ours, read = sampler(), set()

    def noted(images, prompts):
        read.update(prompts)
        return bright_for_long_prompts(images, prompts)

    learned, goal = TokenVectors(ours, "<new>", "and"), MetricGoal(FunctionReward(noted))
    found = invert(
        ours, learned, goal, ["a <new> cat", "a <new> and dog"], ["a <new> red dog"], token="<new>", output=tmp_path,
        settings=SETTINGS, run=RunOptions(quiet=True),
    )  # fmt: skip
    assert read == {"a cat", "an and dog", "a red dog"}
    bright = found.reports["unseen concepts"].after.mean((1, 2, 3))
    assert found.reports["unseen concepts"].metric_after == pytest.approx(-9 * float(bright.mean()))


def test_the_gradient_of_the_rows_is_that_of_plain_autograd():
    """The same metric written out by hand: style of the image with the token, content beside the one without."""
    ours, exact = sampler(), sampler()
    exact = exact.replace(adjoint=adp.Backprop())
    metric, gradients = style_and_content(), []
    for each in (ours, exact):
        learned = TokenVectors(each, "<new>", "red")
        noise = torch.cat([each.noise(1, 1), each.noise(1, 2)])
        with torch.no_grad():
            without = each(noise, each.encode(["a cat", "a dog"]))
        if each is ours:
            compared = MetricGoal(metric).compared(lambda word, known=without: {"": known}[word])
            task = Invert(each, learned, PROMPTS, PROMPTS, noise, compared, MetricGoal(metric).loss, 2)
            values = task.losses(0, [0, 1]).values
        else:
            images = each(noise, learned.encode(PROMPTS))
            (_, style), (weight, _) = metric.terms
            away = [
                ((a - b).flatten(1).square().sum(1) / b.flatten(1).square().sum(1))
                for a, b in zip(features(images), features(without), strict=True)
            ]
            values = style(images) + weight * torch.stack(away).mean(0)
        values.sum().backward()
        gradients.append([each.grad for each in learned.variables.values()])
    for ours_grad, plain in zip(*gradients, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(ours_grad, plain, rtol=1e-5, atol=1e-9)


def test_pixels_as_a_metric_have_their_minimum_without_the_token(tmp_path):
    """What is reported before is the metric of the image without the token beside itself: 0, and no reduction."""
    found, _ = run(MetricGoal(Pixels()), tmp_path)
    for each in found.reports.values():
        assert each.metric_before == 0.0
        assert each.metric_after is not None
        assert each.reduction is None
        assert each.target is None
    files = sorted((tmp_path / "without-token").iterdir())
    read = torch.stack([image_file(each) for each in files])
    assert torch.equal(read, saved(found.reports["seen noise"].before))


def test_a_metric_beside_an_effect_is_the_goal_of_that_effect(tmp_path):
    """EffectDistance as a metric and EffectGoal: the same losses and the same token, bit for bit."""
    inverted = effect("inverted")
    one, first = run(EffectGoal(inverted), tmp_path / "goal")
    two, second = run(MetricGoal(adp.metrics.EffectDistance(inverted)), tmp_path / "metric")
    assert one.losses == two.losses
    for a, b in zip(first.variables.values(), second.variables.values(), strict=True):
        assert torch.equal(a, b)


def test_given_images_of_a_word_are_the_goal_of_that_word(tmp_path):
    one, first = run(PromptGoal("blue"), tmp_path / "word")
    target = one.reports["seen noise"].target
    assert target is not None
    two, second = run(ImageGoal(target), tmp_path / "images")
    assert one.losses == two.losses
    for a, b in zip(first.variables.values(), second.variables.values(), strict=True):
        assert torch.equal(a, b)
    assert two.reports["seen noise"].metric_after == one.reports["seen noise"].metric_after
    for name in ("unseen noise", "unseen concepts"):
        assert two.reports[name].metric_after is None
        assert torch.equal(two.reports[name].after, one.reports[name].after)


def test_a_token_learned_from_a_metric_loads_to_the_same_bits(tmp_path):
    """The metric falls on the noise that was trained on, and the file holds the rows that are reported."""
    found, learned = run(MetricGoal(style_and_content()), tmp_path)
    assert min(found.losses) < found.losses[0]
    read = load_file(found.artefact)
    assert torch.equal(read["<new>"].flatten(), learned.rows.values[0].flatten())
    assert found.reports["seen noise"].metric_after == pytest.approx(min(found.losses), abs=1e-6)


def test_images_of_another_number_or_size_raise_before_any_sampling(tmp_path):
    ours = sampler()
    ours.forward = None  # nothing may be sampled
    learned = PromptRows(ours, "<new>", "red")
    _, height, width = ours.image_shape
    for images in (torch.zeros(3, 3, height, width), torch.zeros(2, 3, height + 1, width)):
        with pytest.raises(adp.InputError, match="2 prompts with 1 noises each need 2 of shape"):
            invert(
                ours, learned, ImageGoal(images), PROMPTS, HELD_OUT, token="<new>", output=tmp_path,
                settings=SETTINGS, run=RunOptions(quiet=True),
            )  # fmt: skip


def test_effects_are_of_the_image_without_the_token():
    asked, image = [], torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def images_with(word):
        asked.append(word)
        return image

    assert torch.equal(EffectGoal(effect("inverted")).compared(images_with), 1 - image)
    assert PromptGoal("sepia").compared(images_with) is image
    assert asked == ["", "sepia"]


def test_a_distance_with_a_goal_of_its_own_raises():
    for make in (lambda d: PromptGoal("red", d), lambda d: EffectGoal(effect("sepia"), d)):
        with pytest.raises(adp.InputError, match="Chroma has a goal of its own"):
            make(Pixels() + Chroma())


def test_names_of_goals_are_the_same_in_every_process():
    assert repr(MetricGoal(style_and_content())) == "MetricGoal(Style + 0.3*Content)"
    assert repr(PromptGoal("sepia")) == "PromptGoal('sepia', Pixels)"
    assert repr(ImageGoal(torch.zeros(2, 3, 8, 8))) == "ImageGoal(images of shape (2, 3, 8, 8), Pixels)"
