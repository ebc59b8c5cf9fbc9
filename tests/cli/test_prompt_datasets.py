"""Prompts of a dataset: its rows and labels, and what is missing in one line."""

import sys

import pytest

import adjointdpm as adp
from adjointdpm.cli.flags import LabelsOf, PromptTexts


def read(text):
    return list(PromptTexts()("--prompt", (text,)))


def test_without_the_package_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(adp.InputError, match="pip install datasets; or write its prompts into a file"):
        read("dataset:some/prompts")
    with pytest.raises(adp.InputError, match="dataset:NAME:SPLIT"):
        read("dataset:")


def test_a_local_dataset(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "train.csv").write_text("prompt,label\na cat,cat\na dog,dog\n")
    (folder / "test.csv").write_text("prompt,label\na pear,\n")
    assert read(f"dataset:{folder}") == ["a cat", "a dog"]
    assert read(f"dataset:{folder}:test") == ["a pear"]
    assert LabelsOf("prompt").labels((f"dataset:{folder}",)) == ("cat", "dog")
    with pytest.raises(adp.InputError, match="cannot be loaded"):
        read(f"dataset:{folder}:validation")
    other = tmp_path / "other"
    other.mkdir()
    (other / "train.csv").write_text("text\na cat\n")
    with pytest.raises(adp.InputError, match="column `prompt`, but the columns are text"):
        read(f"dataset:{other}")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "train.jsonl").write_text('{"prompt": " "}\n{"prompt": "a dog"}\n')
    with pytest.raises(adp.InputError, match="row 1: the prompt is empty"):
        read(f"dataset:{empty}")
