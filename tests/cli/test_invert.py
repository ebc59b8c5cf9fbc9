"""`adjointdpm invert`: files, the same bits from the saved config, and what is refused."""

import torch
from safetensors.torch import load_file

from tests.tiny.commands import SMALL, TWO, refused, run, without_seconds


def test_invert_repeats_to_the_bit_from_its_config(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    ended = run(
        ["invert", *TWO, *SMALL, "--target_word", "sepia", "--output_dir", str(first)],
        ["invert", "--config", str(first / "config.yaml"), "--output_dir", str(second)],
    )
    assert ended == ["done", "done"]
    assert without_seconds(first) == without_seconds(second)
    one, two = (load_file(folder / "learned_embeds.safetensors") for folder in (first, second))
    assert torch.equal(one["<effect>"], two["<effect>"])
    assert (first / "seen-noise.png").read_bytes() == (second / "seen-noise.png").read_bytes()
    page = (first / "index.html").read_text()
    assert "a &lt;effect&gt; cat" in page
    assert "<effect>" not in page


def test_another_process_goes_on(tmp_path):
    """What a checkpoint says of its run must not hold what belongs to a process, such as addresses."""
    given = ["invert", *TWO, *SMALL, "--target_effect", "sepia", "--output_dir", str(tmp_path)]
    assert run(given) == ["done"]
    learned = load_file(tmp_path / "learned_embeds.safetensors")["<effect>"]
    assert run([*given, "--resume"]) == ["done"]
    # The tensor and not the file: safetensors writes its metadata in an order of the process's own.
    assert torch.equal(load_file(tmp_path / "learned_embeds.safetensors")["<effect>"], learned)
    assert " at 0x" not in (tmp_path / "result.json").read_text()


def test_flags_that_contradict_one_another_are_refused(tmp_path):
    sepia = ["invert", *TWO, "--target_effect", "sepia"]
    word = ["invert", *TWO, "--target_word", "x"]
    refused(
        tmp_path,
        {
            "--target_word or --target_effect": ["invert", *TWO],
            "give --target_word": [*word, "--target_effect", "sepia"],
            "no effect": ["invert", *TWO, "--target_effect", "glow"],
            "Chroma has a goal of its own": [*sepia, "--metric", "pixels", "--metric", "chroma"],
            "EffectDistance has a goal": [*sepia, "--metric", "effect:night"],
            "--judge is not used without --label": [*word, "--judge", "emoji/judge"],
            "--num_vectors is not used": [*word, "--learn", "rows", "--num_vectors", "2"],
            "must hold the token": [
                *("invert", "--prompt", "a cat", "--validation_prompt", "a car", "--target_word", "sepia"),
            ],
        },
    )
