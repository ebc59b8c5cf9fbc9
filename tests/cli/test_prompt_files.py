"""Prompts that are typed, or that stand in a file."""

import os
from pathlib import Path

import pytest

import adjointdpm as adp
from adjointdpm.cli.flags import PromptTexts


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
