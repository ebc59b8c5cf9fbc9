"""The audit's command line: a config for every flag, and the same bits from the resolved one."""

import json
import re

import pytest
import torch
import yaml
from safetensors.torch import load_file

import adjointdpm as adp
from adjointdpm.models import adjoint_of, sampler_of
from adjointdpm.zoo import load_classifier
from tests.test_cli import adjointdpm


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
    record = json.loads((tmp_path / "hardened" / "result.json").read_text())
    after, before = (record[each]["hits"] for each in ("after", "before"))
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("after hardening")]
    assert [int(hits) for hits in re.findall(r"(\d+) of \d+", line)] == [after, before]
    assert record["kept_after"] is None
    assert record["others_after"]["of"] == 4
    files = [path.name for path in (tmp_path / "hardened" / "train").glob("*/*.png")]
    found = json.loads((tmp_path / "result.json").read_text())["after"]["success"]
    assert sum(name.startswith("found") for name in files) == found["hits"] > 0
    assert sum(name.startswith("clean") for name in files) == 3 + 4
    hard, original = (
        load_classifier(str(tmp_path / "hardened" / "classifier")),
        load_classifier("emoji/resnet"),
    )
    assert hard.labels == original.labels
    assert any(not torch.equal(a, b) for a, b in zip(hard.parameters(), original.parameters(), strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_train_step: 3", "unknown key 'max_train_step'; did you mean 'max_train_steps'?"),
        ("just words", "flag: value"),
        ("a: [", "not YAML"),
    ],
)
def test_configs_that_are_none(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    done = adjointdpm("audit", "--config", str(path))
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_adjoints_by_name():
    assert adjoint_of("checkpointed:3") == adp.Checkpointed(keep=3)
    assert adjoint_of("truncated:2") == adp.Truncated(last=2)
    assert adjoint_of("continuous:7") == adp.Continuous(steps=7)
    assert adjoint_of("backprop") == adp.Backprop()
    for text in ("truncated", "backprop:2", "continuous:x"):
        with pytest.raises(adp.InputError, match="cannot be read"):
            adjoint_of(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"solver": "magic"}, "solver is one of"),
        ({"mixed_precision": "fp8"}, "mixed_precision is one of no, fp16, bf16"),
        ({"name": "/nowhere"}, "no pipeline could be loaded"),
    ],
)
def test_models_that_are_none(given, message):
    with pytest.raises(adp.InputError, match=message):
        sampler_of(**{"name": "emoji", "steps": 2, "guidance_scale": 1.0, **given})
