"""Flags, config keys and settings are one thing: the fields of the commands' dataclasses."""

import subprocess
import sys
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from typing import get_args, get_type_hints

import click
import pytest
import yaml
from click.testing import CliRunner

from adjointdpm.cli.flags import Given, Group, command_of, flags_of
from adjointdpm.cli.main import COMMANDS, app
from adjointdpm.tasks import AuditSettings, GuideSettings, InvertSettings, Lora, TuneSettings

NEEDED = {
    "sample": ["--prompt", "a cat"],
    "compare": ["--prompt", "a cat"],
    "demo": [],
    "tune": ["--metric", "chroma", "--prompt", "a cat", "--validation_prompt", "a dog"],
    "invert": ["--prompt", "a <effect> cat", "--validation_prompt", "a <effect> dog"],
    "audit": ["--prompt", "a cat"],
    "guide": ["--metric", "style:a + b.png", "--metric", "0.3*clip-text:a + b", "--prompt", "a cat"],
    "solve": ["--image", "a.png", "--operator", "gray"],
    "studio": [],
}


def settings_of(name):
    return getattr(import_module(f"adjointdpm.cli.{name}"), name.capitalize())


def leaves(settings, group=None):
    """The names of all fields that are flags; what is said about a group is kept in its annotation."""
    group = group or Group()
    hints = get_type_hints(settings, include_extras=True)
    for each in fields(settings):
        if each.name in group.without:
            continue
        kind, *notes = get_args(hints[each.name]) or [hints[each.name]]
        if is_dataclass(kind):
            yield from leaves(kind, next((note for note in notes if isinstance(note, Group)), None))
        else:
            yield group.prefix + each.name


def printed(*arguments):
    """The config that a command prints."""
    result = CliRunner().invoke(app, [*arguments, "--print_config"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_is_a_flag_with_its_default_and_a_sentence(name):
    settings = settings_of(name)
    flags = {flag.name: flag for flag in flags_of(settings)}
    assert list(flags) == list(leaves(settings))
    command = command_of(name, settings, "")
    parameters = {each.name: each for each in command.params}
    assert set(parameters) == {*flags, "config", "print_config"}
    for flag in flags.values():
        parameter = parameters[flag.name]
        assert parameter.required == (flag.default is MISSING)
        assert f"--{flag.name}" in parameter.opts
        assert flag.about[0].isupper()
        assert flag.about.rstrip("]").endswith((".", "own")), flag.about


@pytest.mark.parametrize("name", COMMANDS)
def test_the_defaults_are_those_of_the_fields(name):
    found = yaml.safe_load(printed(name, *NEEDED[name]))
    for flag in flags_of(settings_of(name)):
        given = f"--{flag.name}" in NEEDED[name]
        if flag.default is not MISSING and flag.default is not None and flag.name in found and not given:
            assert found[flag.name] == Given(name, {flag.name: flag.default}).resolved()[flag.name]


def test_the_defaults_are_those_of_the_tasks():
    tasks = {"tune": TuneSettings, "invert": InvertSettings, "audit": AuditSettings, "guide": GuideSettings}
    for name, settings in tasks.items():
        flags = {flag.name: flag.default for flag in flags_of(settings_of(name))}
        for field in ("max_train_steps", "learning_rate", "seed", "checkpointing_steps"):
            assert flags[field] == getattr(settings, field)
    assert {f.name: f.default for f in flags_of(settings_of("tune"))}["rank"] == Lora.rank


@pytest.mark.parametrize("name", COMMANDS)
def test_a_printed_config_read_back_is_the_same(name, tmp_path):
    more = ["--num_inference_steps", "7", "--seed", "11"]
    more = {"demo": [], "studio": ["--guidance_scale", "3", "--port", "8000"]}.get(name, more)
    first = printed(name, *NEEDED[name], *more, "--output_dir", str(tmp_path / "out"))
    (tmp_path / "config.yaml").write_text(first)
    assert printed(name, "--config", str(tmp_path / "config.yaml")) == first
    assert not (tmp_path / "out").exists()


def test_what_is_typed_wins_over_the_config(tmp_path):
    (tmp_path / "config.yaml").write_text("metric: [chroma, effect:night]\nprompt: a dog\nseed: 3\n")
    found = yaml.safe_load(
        printed("guide", "--config", str(tmp_path / "config.yaml"), "--metric", "chroma")
    )
    assert (found["metric"], found["prompt"], found["seed"]) == (["chroma"], ["a dog"], 3)


def test_a_metric_may_be_repeated_and_hold_a_plus():
    found = yaml.safe_load(printed("guide", *NEEDED["guide"]))
    assert found["metric"] == ["style:a + b.png", "0.3*clip-text:a + b"]


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)])
def test_the_help_is_whole_at_80_columns(arguments):
    text = CliRunner().invoke(app, [*arguments, "--help"], terminal_width=80).output
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.replace("PROMPT...", "").replace("[ARGS]...", "")
    assert "…" not in text
    if arguments:
        words = " ".join(text.split())
        for flag in flags_of(settings_of(*arguments)):
            assert " ".join(flag.about.split()) in words
        headings = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
        assert headings[-1] == "Output:"
        assert len(headings) == len(set(headings))


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["tunes"], "'tune'"),
        (["tune", "--max_train_step", "3"], "--max_train_steps"),
        (["guide", "--metrics", "chroma"], "--metric"),
    ],
)
def test_the_nearest_name_is_suggested(arguments, near):
    with pytest.raises(click.UsageError) as caught:
        app.main(arguments, standalone_mode=False)
    assert near in caught.value.format_message()


def test_help_and_version_need_no_torch():
    """Importing it takes seconds, and the help a tenth of one."""
    script = "import sys; sys.modules['torch'] = None; from adjointdpm.cli.main import main; main()"
    for arguments in (["--help"], ["--version"], []):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
