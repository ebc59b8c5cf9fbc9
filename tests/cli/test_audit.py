"""The audit's command line: the same bits from the saved config, and hardening."""

import re

import torch
import yaml
from safetensors.torch import load_file

from adjointdpm.tasks import load_result
from adjointdpm.zoo import load_classifier
from tests.tiny.commands import adjointdpm, refused


def test_the_saved_config_repeats_the_run_to_the_bit(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    done = adjointdpm(
        "audit", "--prompt", "a red apple", "--prompt", "a cat", "--output_dir", str(first), "--no_controls",
        "--num_inference_steps", "3", "--max_train_steps", "1", "--tries", "6", "--seed", "5",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = adjointdpm("audit", "--config", str(first / "config.yaml"), "--output_dir", str(second))
    assert again.returncode == 0, again.stderr
    for name in ("noise.safetensors", "start.safetensors"):
        one, two = load_file(first / name), load_file(second / name)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    one, two = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (first, second))
    assert {**one, "output_dir": ""} == {**two, "output_dir": ""}
    assert one["seed"] == 5


def test_hardening_from_the_command_line_says_and_saves_what_it_measured(tmp_path):
    done = adjointdpm(
        "audit", "--prompt", "a red apple", "--output_dir", str(tmp_path), "--no_controls", "--learning_rate", "1",
        "--num_inference_steps", "3", "--max_train_steps", "1", "--radius", "0.8", "--judge", "none", "--tries", "6",
        "--harden", "--harden_steps", "2", "--harden_clean", "3", "--harden_variants", "0", "--harden_other", "a car",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = load_result(tmp_path / "hardened")["result"]
    after, before = (record[each]["hits"] for each in ("after", "before"))
    (line,) = [line for line in done.stdout.splitlines() if "fresh noise, misclassified:" in line]
    assert [int(hits) for hits in re.findall(r"(\d+) of \d+", line)] == [after, before]
    assert record["kept_after"] is None
    assert record["others_after"]["of"] == 4
    files = [path.name for path in (tmp_path / "hardened" / "train").glob("*/*.png")]
    found = load_result(tmp_path)["result"]["after"]["success"]
    assert sum(name.startswith("found") for name in files) == found["hits"] > 0
    assert sum(name.startswith("clean") for name in files) == 3 + 4
    hard, original = (
        load_classifier(str(tmp_path / "hardened" / "classifier")),
        load_classifier("emoji/resnet"),
    )
    assert hard.labels == original.labels
    assert any(not torch.equal(a, b) for a, b in zip(hard.parameters(), original.parameters(), strict=True))


def test_flags_that_would_be_ignored_are_refused(tmp_path):
    cat = ["--prompt", "a cat"]
    refused(
        tmp_path,
        {
            "--harden_steps is not used without --harden": ["audit", *cat, "--harden_steps", "3"],
            "--keep_weight is not used with --keep_features none": [
                *("audit", *cat, "--keep_features", "none", "--keep_weight", "2"),
            ],
            "needs a --classifier": ["audit", *cat, "--pretrained_model_name_or_path", "somebody/else"],
        },
    )
