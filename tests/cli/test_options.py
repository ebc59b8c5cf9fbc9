"""Groups of flags that commands share, and the folder that they keep."""

import pytest
import yaml

import adjointdpm as adp
from adjointdpm.cli.flags import Given
from adjointdpm.cli.options import OutputOptions, free_folder, in_one_process
from adjointdpm.optimization import run_folder
from adjointdpm.tasks import load_result
from tests.tiny.commands import SMALL, run
from tests.tiny.families import of


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
    assert saved["clip_model"] == "openai/clip-vit-base-patch32"
    assert saved["guidance_scale"] is saved["features"] is saved["classifier"] is None
    methods = load_result(tmp_path / "out")["result"]["methods"]
    assert all(each["judged"] is None for each in methods.values())


def test_one_process_is_needed_where_files_would_be_written_twice(monkeypatch):
    for world in ("", "1"):
        monkeypatch.setenv("WORLD_SIZE", world)
        in_one_process("sample")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(adp.InputError, match="sample runs in one process, but was started in 2"):
        in_one_process("sample")


@pytest.fixture
def command(monkeypatch):
    """A command under way, whose folder is free again at the end of the test."""
    with run_folder.ExitStack() as stack:
        monkeypatch.setattr(run_folder, "_command", stack)
        yield


def test_only_what_a_run_leaves_is_kept_from_being_written_over(tmp_path, command):
    (tmp_path / "notes.txt").write_text("mine")
    assert free_folder(tmp_path, "*.png") == tmp_path
    (tmp_path / "one.png").write_bytes(b"")
    with pytest.raises(adp.InputError, match=r"holds an earlier run \(.*one.png\)"):
        free_folder(tmp_path, "*.png")
    for wanted in ("resume", "overwrite"):
        assert free_folder(tmp_path, "*.png", **{wanted: True}) == tmp_path


def test_a_run_is_resumed_with_the_flags_it_was_made_with(tmp_path, command):
    """Those that change no result are free, and more steps may be taken, not fewer."""

    def start(**changes):
        values = {"max_train_steps": 4, "seed": 3, "judge": "none", "resume": False, "output_dir": tmp_path}
        values |= changes
        options = OutputOptions(tmp_path, resume=values["resume"])
        return options.start(Given("guide", values))

    folder, first = start()
    assert folder == tmp_path
    assert first.config == {"seed": 3}
    assert first.repeat == f"adjointdpm guide --config {tmp_path / 'config.yaml'}"
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["max_train_steps"] == 4
    _, again = start(resume=True, max_train_steps=9, judge="emoji/judge")
    assert again.resume
    assert again.config == first.config
    with pytest.raises(adp.InputError, match="seed"):
        start(resume=True, seed=4, max_train_steps=9)
    with pytest.raises(adp.InputError, match="as many steps or more, but this run has 2"):
        start(resume=True, max_train_steps=2)
