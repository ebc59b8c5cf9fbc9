"""A learned word and its rows of the prompt."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.tasks.invert.learned_token import PromptRows, worded
from tests.tiny.inversions import sampler


def test_words_and_articles():
    assert worded("a <new> red apple on a <new>x", "<new>", "") == "a red apple on a <new>x"
    assert worded("an <new> cat", "<new>", "") == "a cat"
    assert worded("a <new> cat", "<new>", "inverted") == "an inverted cat"
    with pytest.raises(adp.InputError, match="must hold the token"):
        worded("a cat", "<new>", "")


def test_rows_of_the_prompt_are_those_of_the_word():
    ours = sampler()
    learned = PromptRows(ours, "<new>", "red")
    with torch.no_grad():
        learned.row.fill_(7.0)
    embeds = learned.encode(["a <new> on red", "on a <new> dog"])["prompt_embeds"]
    plain = ours.encode(["a red on red", "on a red dog"])["prompt_embeds"]
    assert (embeds == 7.0).all(2).nonzero().tolist() == [
        [0, learned.places(["a <new> cat"], "<new>")[0]],
        [1, 3],
    ]
    changed = (embeds != plain).any(2)
    assert int(changed.sum()) == 2


def test_a_row_that_is_the_answer_gives_the_answers_prompt():
    ours = sampler()
    learned, goal = PromptRows(ours, "<new>", "cat"), ours.encode(["a red cat"])["prompt_embeds"]
    with torch.no_grad():
        learned.row.copy_(goal[0, learned.places(["a <new> cat"], "<new>")[0]])
        embeds = learned.encode(["a <new> cat"])["prompt_embeds"]
    same = (embeds == goal).all(2)[0]
    assert bool(
        same[: learned.places(["a <new> cat"], "<new>")[0] + 1].all()
    )  # later words saw another one
