"""Initial words: which one a token starts from, and that a run that is resumed starts from the same."""

from dataclasses import replace

import pytest
import torch

import adjointdpm as adp
from adjointdpm.optimization.loop import InterruptedRunError, LoopSettings, Losses, RunOptions, Task
from adjointdpm.tasks import load_result
from adjointdpm.tasks.invert.goals import PromptGoal
from adjointdpm.tasks.invert.invert import InvertSettings, invert
from adjointdpm.tasks.invert.learned_token import Learned, PromptRows, TokenVectors
from adjointdpm.tasks.invert.starts import choose_start
from tests.tiny.inversions import sampler

PROMPTS, HELD_OUT = ["a <new> cat", "a <new> dog"], ["a <new> pear"]
SETTINGS = InvertSettings(max_train_steps=3, learning_rate=0.05, num_validation_images=1, start_steps=2)
QUIET = RunOptions(quiet=True)
PLACES = {"far": 3.0, "near": 0.9, "between": -0.2, "right": -0.7}


class Well(Learned):
    """A number v whose initial words are places on the line."""

    def __init__(self, *words):
        self.initializers = words
        self.variables = {"v": torch.tensor([PLACES[words[0]]], dtype=torch.float64)}

    def start_from(self, word):
        with torch.no_grad():
            self.variables["v"].fill_(PLACES[word])

    def encode(self, prompts):
        raise NotImplementedError

    def save(self, folder):
        raise NotImplementedError


class TwoWells(Task):
    """(v^2 - 1)^2 + 0.3 v has its lower minimum near -1, and one near 1 in which a descent from there ends."""

    def __init__(self, learned, fail_at=None):
        self.variables, self.items, self.fail_at, self.calls = learned.variables, 1, fail_at, 0

    def losses(self, step, items):
        if torch.is_grad_enabled():
            self.calls += 1
            if self.calls == self.fail_at:
                raise KeyboardInterrupt
        v = self.variables["v"]
        return Losses((v.square() - 1).square() + 0.3 * v)

    def validate(self, step):
        return float(self.losses(step, [0]).values)


def choose(words, folder=None, *, starts=1, steps=30, fail_at=None, resume=False):
    learned = Well(*words)
    loop = LoopSettings(steps=1, folder=folder, run=RunOptions(quiet=True, resume=resume))
    found = choose_start(
        TwoWells(learned, fail_at),
        learned,
        lambda leaves: torch.optim.SGD(leaves, 0.05),
        loop,
        num_starts=starts,
        start_steps=steps,
    )
    return found, learned.variables["v"].detach().clone()


def learn(folder, initializers, *, kind=TokenVectors, run=QUIET, **settings):
    ours = sampler()
    learned = kind(ours, "<new>", initializers)
    found = invert(
        ours, learned, PromptGoal("red"), PROMPTS, HELD_OUT, token="<new>", output=folder,
        settings=replace(SETTINGS, **settings), run=run,
    )  # fmt: skip
    return found, learned


def test_the_word_with_the_lowest_metric_is_chosen():
    found, v = choose(("far", "near", "right"))
    assert [each.word for each in found] == ["right", "near", "far"]
    assert [each.metric for each in found] == sorted(each.metric for each in found)
    assert found[0].metric == pytest.approx((0.49 - 1) ** 2 - 0.21)
    assert [each.chosen for each in found] == [True, False, False]
    assert float(v) == PLACES["right"]


def test_a_short_run_finds_the_lower_minimum_where_the_words_alone_do_not():
    alone, v = choose(("near", "between"))
    assert (alone[0].word, float(v)) == ("near", PLACES["near"])
    found, v = choose(("near", "between"), starts=2)
    assert [each.chosen for each in found] == [False, True]
    assert 4 * float(v) * (float(v) ** 2 - 1) + 0.3 == pytest.approx(0, abs=1e-3)
    assert float(v) < -1
    assert found[1].metric_after == pytest.approx(-0.3055, abs=1e-3)
    assert found[0].metric_after < found[0].metric < found[1].metric


def test_only_the_best_words_have_a_short_run():
    found, _ = choose(("far", "near", "between"), starts=2)
    assert [each.word for each in found] == ["near", "between", "far"]
    assert found[2].metric_after is None


def test_one_word_is_not_screened():
    learned = Well("near")
    task = TwoWells(learned)
    task.validate = None  # nothing may be computed
    assert choose_start(task, learned, torch.optim.SGD, LoopSettings(), num_starts=1, start_steps=1) == []


def test_short_runs_that_are_interrupted_end_in_the_same_bits(tmp_path):
    """Interrupted in the second of two, which goes on; the first is not run again."""
    whole, v = choose(("near", "between"), tmp_path / "whole", starts=2)
    with pytest.raises(InterruptedRunError):
        choose(("near", "between"), tmp_path / "parts", starts=2, fail_at=45)
    again, w = choose(("near", "between"), tmp_path / "parts", starts=2, resume=True, fail_at=20)
    assert again == whole
    assert torch.equal(v, w)


@pytest.mark.parametrize("kind", [TokenVectors, PromptRows])
def test_a_token_starts_from_a_word_as_if_it_were_the_only_one(kind):
    ours, theirs = sampler(), sampler()
    learned, alone = kind(ours, "<new>", ["and", "red"]), kind(theirs, "<new>", "red")
    learned.start_from("red")
    for one, two in zip(learned.variables.values(), alone.variables.values(), strict=True):
        assert torch.equal(one, two)
    one, two = (each.encode(PROMPTS)["prompt_embeds"] for each in (learned, alone))
    assert torch.equal(one, two)


@pytest.mark.parametrize("kind", [TokenVectors, PromptRows])
def test_invert_starts_from_the_answer_if_it_is_among_the_words(tmp_path, kind):
    """The metric of a word is the mean over all pairs of what its images are away from the goal's."""
    found, learned = learn(tmp_path, ("and", "red", "blue"), kind=kind)
    assert learned.initializers == ("and", "red", "blue")
    assert found.starts[0].word == "red"
    assert found.starts[0].chosen
    if kind is TokenVectors:  # a row alone does not change the rows after it, as the word itself does
        assert found.starts[0].metric == found.losses[0] == 0
    alone, _ = learn(tmp_path / "alone", "blue", kind=kind)
    assert alone.starts == []
    (blue,) = (each for each in found.starts if each.word == "blue")
    assert blue.metric == pytest.approx(alone.losses[0], rel=1e-6)
    read = load_result(tmp_path)["result"]["starts"]
    assert [each["word"] for each in read] == [each.word for each in found.starts]
    assert "the token starts from it" in (tmp_path / "index.html").read_text()


def test_a_run_goes_on_from_the_best_short_run_to_the_same_bits_if_it_is_resumed(tmp_path):
    def stop(step, values):
        if step == 1:
            raise KeyboardInterrupt

    words = {"initializers": ("and", "blue"), "num_starts": 2}
    whole, one = learn(tmp_path / "whole", **words)
    best = min(whole.starts, key=lambda each: each.metric_after)
    assert best.chosen
    assert whole.losses[0] == pytest.approx(best.metric_after, rel=1e-6)
    alone, _ = learn(tmp_path / "alone", best.word, max_train_steps=SETTINGS.start_steps)
    assert best.metric_after == pytest.approx(alone.reports["seen noise"].metric_after, rel=1e-6)
    with pytest.raises(InterruptedRunError):
        learn(tmp_path / "parts", run=replace(QUIET, report=stop), **words)
    again, two = learn(tmp_path / "parts", run=replace(QUIET, resume=True), **words)
    assert again.starts == whole.starts
    assert again.losses == whole.losses
    for a, b in zip(one.variables.values(), two.variables.values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(adp.InputError, match="initializers"):
        learn(tmp_path / "parts", ("and", "red"), num_starts=2, run=replace(QUIET, resume=True))


def test_words_that_cannot_be_raise_before_any_sampling(tmp_path):
    ours = sampler()
    ours.forward = None  # nothing may be sampled
    for words in ((), ("red", "red")):
        for kind in (TokenVectors, PromptRows):
            with pytest.raises(adp.InputError, match="each once"):
                kind(ours, "<new>", words)
    learned = PromptRows(ours, "<new>", ("red", "blue"))
    with pytest.raises(adp.InputError, match="num_starts is 3, but the token has 2 initial words"):
        invert(
            ours, learned, PromptGoal("red"), PROMPTS, HELD_OUT, token="<new>", output=tmp_path,
            settings=replace(SETTINGS, num_starts=3), run=QUIET,
        )  # fmt: skip
