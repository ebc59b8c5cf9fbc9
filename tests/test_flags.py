"""The audit's command line: a config for every flag, and the same bits from the resolved one."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

import adjointdpm as adp
from adjointdpm.models import adjoint_of, sampler_of
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
