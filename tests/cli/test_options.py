"""The audit's command line: a config for every flag, and the same bits from the resolved one."""

import json
import os
import re
from dataclasses import MISSING
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import adjointdpm as adp
from adjointdpm._types import in_range
from adjointdpm.cli.config_file import read_config
from adjointdpm.cli.flags import Flag, PromptTexts
from adjointdpm.cli.parse_sampler import adjoint_of, check_memory, device_of, sampler_of
from adjointdpm.optimization.distributed import Processes
from adjointdpm.zoo import load_classifier
from tests.cli.test_main import adjointdpm


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


FLAGS = {
    "seed": Flag("x", "Task", str, False, 0, "", ()),
    "prompt": Flag("x", "Task", str, True, MISSING, "", ()),
    "mixed_precision": Flag("x", "Task", str, False, "no", "", ()),
    "label": Flag("x", "Task", str, False, None, "", ()),
}


def test_a_config_is_read_as_if_it_were_typed(tmp_path):
    """Words that YAML 1.1 takes for something else stay words, and one value is a list of one."""
    path = tmp_path / "config.yaml"
    path.write_text("mixed_precision: no\nseed: 1e-3\nprompt: a cat\nlabel: null\n")
    assert read_config(path, FLAGS) == {"mixed_precision": "no", "seed": "1e-3", "prompt": ["a cat"]}
    path.write_text('prompt: [yes, 3, "null"]\nlabel: "~"\n')
    assert read_config(path, FLAGS) == {"prompt": ["yes", "3", "null"], "label": "~"}


BOMB = "prompt: &a [x, x]\n" + "".join(
    f"k{i}: &b{i} [*{f'b{i - 1}' if i else 'a'}, *a]\n" for i in range(40)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "unknown key 'k0'"),
        ("prompt: [&a [x, x], *a]", "plain value"),
        ("[" * 100_000, "not YAML"),
        ("seed: [1, 2]", "plain value"),
        ("seed: {a: 1}", "plain value"),
        ("seed:", "has no value"),
        ("prompt: []", "at least one value"),
        ("prompt: [a, null]", "no empty ones"),
        ("seed: 1\nseed: 2", "twice"),
        ("seed: !!python/name:os.system", "plain value"),
        ('label: "a\\0b"', "null character"),
        ("? [a, b]\n: c", "unknown key"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("a" * 300_000, "bytes"),
        (b"\xff\xfe\x00", "cannot read"),
    ],
)
def test_a_config_that_costs_or_means_something_else(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(adp.InputError, match=message):
        read_config(path, FLAGS)


def test_a_config_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), tmp_path / "none", Path("x" * 5000)):
        with pytest.raises(adp.InputError, match="cannot read the config"):
            read_config(path, FLAGS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1, 11, 10**400, True, "3"])
def test_numbers_out_of_range(value):
    with pytest.raises(adp.InputError, match="--x must be at least 0 and at most 10, but is"):
        in_range("--x", value, 0, 10)
    in_range("--x", 0, 0, 10)
    with pytest.raises(adp.InputError, match="above 0"):
        in_range("--x", 0, 0, open_low=True)


def test_prompts_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\ufeffa cat\n\n  a dog \r\n", encoding="utf-8")
    Path("cats").mkdir()

    def read(texts):
        return list(PromptTexts()("--prompt", tuple(texts)))

    assert read(["a car", "prompts.txt", "cats"]) == ["a car", "a cat", "a dog", "cats"]
    assert read(["x" * 9000, "a/b c.txt"]) == ["x" * 9000, "a/b c.txt"]
    Path("empty.txt").write_text(" \n")
    Path("binary.txt").write_bytes(b"\xff\x00")
    Path("table.csv").write_text("prompt\na cat")
    os.mkfifo("pipe")
    for name, message in {
        "none.txt": "no such file",
        "empty.txt": "one printable prompt",
        "binary.txt": "UTF-8",
        "table.csv": "plain text",
        "pipe": "ordinary file",
    }.items():
        with pytest.raises(adp.InputError, match=f"--prompt {name}: .*{message}"):
            read(["a cat", name])


def test_devices_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device_of("auto") == torch.device("cpu")
    for text in ("foo", "cuda:99", "", "meta", "cpu:-3x"):
        with pytest.raises(adp.InputError, match="cannot be used here"):
            device_of(text)
    monkeypatch.setenv("LOCAL_RANK", "77")
    with pytest.raises(adp.InputError, match="'cuda:77' cannot be used here"):
        device_of("cuda")


def test_a_launcher_that_is_none(monkeypatch):
    for world in ("two", "2"):
        monkeypatch.setenv("WORLD_SIZE", world)
        monkeypatch.delenv("RANK", raising=False)
        with pytest.raises(adp.InputError, match="torchrun"):
            Processes.here()


def test_memory_is_estimated_before_the_work(emoji):
    check_memory(emoji, 4, 4)
    with pytest.raises(
        adp.InputError, match=r"1000000000 images of 3 x 64 x 64 in 10 steps need at least .* GiB"
    ):
        check_memory(emoji, 10**9, 1)


@pytest.mark.parametrize("name", ["", "/dev/null", "a/b/c", "../x", "no such"])
def test_what_can_be_no_model(name):
    with pytest.raises(adp.InputError, match="neither a bundled one nor a folder"):
        sampler_of(name, steps=1, guidance_scale=None)


def test_adjoints_by_name():
    assert adjoint_of("checkpointed:3") == adp.Checkpointed(keep=3)
    assert adjoint_of("truncated:2") == adp.Truncated(last=2)
    assert adjoint_of("coarse:7") == adp.CoarseAdjoint(steps=7)
    assert adjoint_of("backprop") == adp.Backprop()
    for text in ("truncated", "backprop:2", "coarse:x"):
        with pytest.raises(adp.InputError, match="cannot be read"):
            adjoint_of(text)
    for text in ("truncated:0", "coarse:0", "checkpointed:99999999"):
        with pytest.raises(adp.InputError, match="the number of the adjoint"):
            adjoint_of(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"solver": "magic"}, "solver is one of"),
        ({"mixed_precision": "fp8"}, "mixed_precision is one of no, fp16, bf16"),
        ({"name": "/nowhere"}, "neither a bundled one nor a folder"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"name": "emoji/resnet", "solver": "pipeline"}, "whole pipeline"),
    ],
)
def test_models_that_are_none(given, message):
    with pytest.raises(adp.InputError, match=message):
        sampler_of(**{"name": "emoji", "steps": 2, "guidance_scale": 1.0, **given})
