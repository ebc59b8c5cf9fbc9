"""The commands tune, invert and guide, on the bundled model: files, and a repetition from the saved config."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import adjointdpm as adp
from adjointdpm.files.images import png
from adjointdpm.optimization import seeds
from tests.tiny.families import of

SMALL = [
    "--num_inference_steps",
    "2",
    "--max_train_steps",
    "2",
    "--num_validation_images",
    "1",
    "--judge",
    "none",
]
TWO = ["--prompt", "a <effect> cat", "--validation_prompt", "a <effect> car"]


# In one process of its own, since imports take seconds.
SCRIPT = """
import json, sys
from adjointdpm.cli.main import app
for arguments in json.loads(sys.argv[1]):
    try:
        app.main(arguments, standalone_mode=False)
        print("#done")
    except Exception as error:
        print("#" + type(error).__name__ + ": " + " ".join(str(error).split()))
"""


def run(*commands):
    """What became of each command: "done", or the error that ended it."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return [line[1:] for line in done.stdout.splitlines() if line.startswith("#")]


def without_seconds(folder):
    found = json.loads((folder / "result.json").read_text())
    found["costs"].pop("seconds")
    found["settings"].pop("output_dir", None)
    return found


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


def test_tune_ends_in_a_lora_and_guide_in_noise_on_its_sphere(tmp_path):
    one, two = tmp_path / "tune", tmp_path / "guide"
    tune = [
        "--prompt",
        "a cat",
        "--validation_prompt",
        "a car",
        "--validation_steps",
        "1",
        "--learning_rate",
        "1e-4",
    ]
    ended = run(
        ["tune", *SMALL, *tune, "--metric", "chroma", "--metric", "0.1*content", "--output_dir", str(one)],
        [
            "guide",
            *SMALL,
            "--prompt",
            "a cat",
            "--metric",
            "background:0.9,0.8,0.2",
            "--report_to",
            "tensorboard",
            "--output_dir",
            str(two),
        ],
    )
    assert ended == ["done", "done"]
    weights = load_file(one / "pytorch_lora_weights.safetensors")
    assert any(bool(each.any()) for name, each in weights.items() if "lora_B" in name)
    noise, about = adp.load_noise(two / "noise.safetensors")
    start = adp.load_bundled("emoji").noise(1, seeds.key(0, "guide", 0))
    assert about["scheduler"] == "DPMSolverPP"
    events = EventAccumulator(str(two / "tensorboard"))
    events.Reload()
    told = [(each.step, each.value) for each in events.Scalars("loss")]
    losses = json.loads((two / "result.json").read_text())["losses"]
    assert told == [(i + 1, pytest.approx(losses[i])) for i in range(2)]
    assert float(noise.norm()) == pytest.approx(float(start.norm()), rel=1e-5)


def test_bad_input_before_the_work(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(png(torch.zeros(3, 8, 8, dtype=torch.uint8))[:30])
    cat = ["--prompt", "a cat"]
    wrong = {
        "--target_word or --target_effect": ["invert", *TWO],
        "give --target_word": ["invert", *TWO, "--target_word", "x", "--target_effect", "sepia"],
        "no effect": ["invert", *TWO, "--target_effect", "glow"],
        "cannot read the image /nowhere.png": ["tune", "--metric", "style:/nowhere.png", *TWO],
        "no metric 'glow'": ["guide", "--metric", "glow", *cat],
        "our own steps": ["guide", "--metric", "chroma", *cat, "--solver", "pipeline"],
        "Chroma has a goal of its own": [
            "invert",
            *TWO,
            "--target_effect",
            "sepia",
            "--metric",
            "pixels",
            "--metric",
            "chroma",
        ],
        "EffectDistance has a goal": [
            "invert",
            *TWO,
            "--target_effect",
            "sepia",
            "--metric",
            "effect:night",
        ],
        "--judge is not used without --label": [
            "invert",
            *TWO,
            "--target_word",
            "x",
            "--judge",
            "emoji/judge",
        ],
        "--num_vectors is not used": [
            "invert",
            *TWO,
            "--target_word",
            "x",
            "--learn",
            "rows",
            "--num_vectors",
            "2",
        ],
        "--layer is not used by these metrics": ["guide", "--metric", "chroma", *cat, "--layer", "1"],
        "--rank is not used": ["tune", "--metric", "chroma", *TWO, "--weights", "*", "--rank", "3"],
        "--instance_prompt is not used": ["tune", "--metric", "chroma", *TWO, "--instance_prompt", "a cat"],
        "--label is not used without a judge": [
            "guide",
            "--metric",
            "chroma",
            *cat,
            *SMALL,
            "--label",
            "cat",
        ],
        "--harden_steps is not used without --harden": ["audit", *cat, "--harden_steps", "3"],
        "needs a --classifier": ["audit", *cat, "--pretrained_model_name_or_path", "somebody/else"],
        "broken.png": ["guide", "--metric", f"style:{broken}", *cat],
        "must hold the token": ["invert", *cat, "--validation_prompt", "a car", "--target_word", "sepia"],
    }
    ended = run(*([*arguments, "--output_dir", str(tmp_path)] for arguments in wrong.values()))
    for message, end in zip(wrong, ended, strict=True):
        assert end.startswith("InputError: "), end
        assert message in end


def test_a_second_run_does_not_write_over_the_first(tmp_path):
    guide = ["guide", *SMALL, "--metric", "chroma", "--prompt", "a cat", "--output_dir", str(tmp_path)]
    guide += ["--look_ahead", "1"]
    first, second, third = run(guide, [*guide, "--seed", "1"], [*guide, "--seed", "1", "--overwrite"])
    assert (first, third) == ("done", "done")
    assert second.startswith("InputError: the output folder")
    assert "--overwrite" in second
    assert "overwrite" not in (tmp_path / "config.yaml").read_text()


def test_defaults_of_the_bundled_model_are_for_it_alone(tmp_path):
    """Prompts are read from a file; a model of one's own has its own guidance, and no judge unless one is named."""
    of("sd").make().save_pretrained(tmp_path / "model")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")
    small = ["--num_inference_steps", "1", "--max_train_steps", "1", "--num_validation_images", "1"]
    small += ["--look_ahead", "1", "--pretrained_model_name_or_path", str(tmp_path / "model")]
    guide = ["guide", *small, "--prompt", str(prompts), "--output_dir", str(tmp_path / "out")]
    done, style, label = run(
        [*guide, "--metric", "chroma"],
        [*guide, "--metric", "style:x.png", "--overwrite"],
        [*guide, "--metric", "label:cat", "--overwrite"],
    )
    assert done == "done"
    assert "give --features" in style
    assert "give --classifier" in label
    saved = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert saved["prompt"] == ["a cat", "a dog"]
    assert saved["judge"] == "none"
    assert saved["guidance_scale"] is saved["features"] is saved["classifier"] is None
    ways = json.loads((tmp_path / "out" / "result.json").read_text())["ways"]
    assert all(way["judged"] is None for way in ways.values())
