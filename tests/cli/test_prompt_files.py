"""Prompts that are typed, or that stand in a file."""

import os
from pathlib import Path

import pytest

import adjointdpm as adp
from adjointdpm.cli.flags import LabelsOf, PromptTexts


def read(texts):
    return list(PromptTexts()("--prompt", tuple(texts)))


def test_prompts_in_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\ufeffa cat\n\n  a dog \r\n", encoding="utf-8")
    Path("table.csv").write_text('label,prompt\ncat,"a cat, red"\ndog,a dog\n')
    Path("lines.jsonl").write_text(
        '{"prompt": "a cat", "label": "cat"}\n\n{"prompt": "a dog", "other": 1}\n'
    )
    Path("cats").mkdir()
    assert read(["a car", "prompts.txt", "cats"]) == ["a car", "a cat", "a dog", "cats"]
    assert read(["x" * 9000, "a/b c.txt"]) == ["x" * 9000, "a/b c.txt"]
    assert read(["table.csv"]) == ["a cat, red", "a dog"]
    assert read(["lines.jsonl"]) == ["a cat", "a dog"]
    assert LabelsOf("prompt").labels(("table.csv",)) == ("cat", "dog")
    assert LabelsOf("prompt").labels(("prompts.txt", "a car")) == ()
    for texts, prompt in ((("table.csv", "a car"), "a car"), (("lines.jsonl",), "a dog")):
        with pytest.raises(adp.InputError, match=f"--prompt: the prompt '{prompt}' has no label"):
            LabelsOf("prompt").labels(texts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b" \n", ": the file holds no prompts"),
        ("binary.txt", b"\xff\x00", ": the file is not a text in UTF-8"),
        ("escape.txt", b"a cat\n\na \x1b dog\n", ", line 3: the prompt must be a printable text"),
        ("table.md", b"prompt\na cat", ": prompts are read from files of the formats txt, csv and jsonl"),
        ("column.csv", b"text\na cat\n", ", line 1: there must be a column `prompt`"),
        ("none.csv", b"", ", line 1: there must be a column `prompt`"),
        ("cell.csv", b"label,prompt\ncat,a cat\ndog,\n", ", line 3: the prompt is empty"),
        ("short.csv", b"label,prompt\ncat,a cat\ndog\n", ", line 3: the prompt must be a printable text"),
        ("quote.csv", b'prompt\n"a cat\n', ", line 2: unexpected end of data"),
        ("word.jsonl", b'{"prompt": "a cat"}\n"a dog"\n', ", line 2 must be an object"),
        ("json.jsonl", b'{"prompt": "a cat"}\n{prompt}\n', ", line 2 is not JSON"),
        ("deep.jsonl", b"[" * 100_000, ", line 1 is not JSON"),
        ("key.jsonl", b'{"text": "a cat"}\n', ", line 1: the prompt must be a printable text"),
        (
            "label.jsonl",
            b'{"prompt": "a cat", "label": 3}\n',
            ", line 1: the label must be a printable text",
        ),
    ],
)
def test_a_file_that_holds_no_prompts(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    with pytest.raises(adp.InputError, match=f"^--prompt {name}{message}"):
        read(["a cat", name])


def test_what_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    for name, message in {"none.csv": "no such file", "pipe": "ordinary file"}.items():
        with pytest.raises(adp.InputError, match=f"--prompt {name}: .*{message}"):
            read(["a cat", name])
