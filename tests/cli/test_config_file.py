"""Configs are read as if each value were typed, and nothing in them costs or runs anything."""

import os
from dataclasses import MISSING
from pathlib import Path

import pytest

import adjointdpm as adp
from adjointdpm.cli.config_file import read_config
from adjointdpm.cli.flags import Flag
from tests.tiny.commands import adjointdpm


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
