"""Inversion: a word's gradient, its file elsewhere, and words whose answer is known."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.files.checkpoint import load_checkpoint
from adjointdpm.metrics import effect
from adjointdpm.tasks import RunOptions, load_result
from adjointdpm.tasks.invert.goals import EffectGoal, PromptGoal
from adjointdpm.tasks.invert.invert import InvertSettings, invert
from adjointdpm.tasks.invert.learned_token import PromptRows, TokenVectors
from tests.tiny.families import FAMILIES
from tests.tiny.inversions import sampler

PROMPTS, HELD_OUT = ["a <new> cat", "a <new> dog"], ["a <new> pear"]
SETTINGS = InvertSettings(max_train_steps=4, learning_rate=0.05, num_validation_images=1)


def make():
    return next(each for each in FAMILIES if each.name == "sd").make()


def test_a_word_that_starts_at_the_answer_stays_there(tmp_path):
    """The effect of "red", learned from "red": distance zero at once, and the best iterate is the first."""
    ours = sampler()
    learned = TokenVectors(ours, "<new>", "red")
    found = invert(
        ours, learned, PromptGoal("red"), PROMPTS, HELD_OUT, token="<new>", output=tmp_path, settings=SETTINGS,
        run=RunOptions(quiet=True),
    )  # fmt: skip
    assert found.losses[0] == 0.0
    for each in found.reports.values():
        assert torch.equal(each.after, each.target)
        assert each.metric_before > 0


@pytest.mark.parametrize("kind", [TokenVectors, PromptRows])
def test_learning_brings_images_nearer(tmp_path, kind):
    ours = sampler()
    found = invert(
        ours, kind(ours, "<new>", "and"), PromptGoal("blue"), PROMPTS, HELD_OUT, token="<new>", output=tmp_path,
        settings=SETTINGS, run=RunOptions(quiet=True),
    )  # fmt: skip
    assert min(found.losses) < 0.9 * found.losses[0]
    read = load_result(tmp_path)["result"]
    assert list(read["reports"]) == ["seen noise", "unseen noise", "unseen concepts"]
    assert found.artefact.is_file()


def test_the_best_iterate_is_the_best_over_all_pairs(tmp_path):
    """Not the one that met the easiest batch: its rank is the mean distance of all images that were trained on."""
    ours = sampler()
    settings = InvertSettings(
        max_train_steps=6,
        learning_rate=0.3,
        train_batch_size=1,
        num_validation_images=2,
        validation_steps=2,
    )
    learned = TokenVectors(ours, "<new>", "and")
    found = invert(
        ours, learned, PromptGoal("blue"), PROMPTS, HELD_OUT, token="<new>", output=tmp_path, settings=settings,
        run=RunOptions(quiet=True),
    )  # fmt: skip
    tensors, _ = load_checkpoint(tmp_path / "state" / "checkpoint.safetensors")
    reached = found.reports["seen noise"].metric_after
    assert float(tensors["best_rank"]) == pytest.approx(reached, rel=1e-5)
    assert min(found.losses) < 0.9 * reached  # an easy batch was there to be taken


def test_the_learned_token_is_the_same_elsewhere(tmp_path):
    ours = sampler()
    learned = TokenVectors(ours, "<new>", "and", vectors=2)
    goal = EffectGoal(effect("inverted"))
    invert(
        ours,
        learned,
        goal,
        PROMPTS,
        HELD_OUT,
        token="<new>",
        output=tmp_path,
        settings=SETTINGS,
        run=RunOptions(quiet=True),
    )
    fresh = make()
    fresh.load_textual_inversion(str(tmp_path / "learned_embeds.safetensors"))
    again = sampler(fresh)
    with torch.no_grad():
        noise = ours.noise(1, 5)
        expected = ours(noise, learned.encode(["a <new> pear"]))
        assert torch.equal(again(noise, again.encode(["a <new> pear"])), expected)


def test_tokens_that_cannot_be():
    ours = sampler()
    with pytest.raises(adp.InputError, match="a token already"):
        TokenVectors(ours, "cat", "red")
    with pytest.raises(adp.InputError, match="no token"):
        TokenVectors(ours, "<new>", "aardvark")
