"""`adjointdpm tune` ends in a LoRA and a page, and refuses what it would ignore."""

import torch
from safetensors.torch import load_file

from adjointdpm.tasks import load_result
from tests.tiny.commands import SMALL, TWO, refused, run


def test_tune_ends_in_a_lora_that_changes_the_model(tmp_path):
    given = ["--prompt", "a cat", "--validation_prompt", "a car", "--validation_steps", "1"]
    given += ["--metric", "chroma", "--metric", "0.1*content", "--measure", "chroma"]
    ended = run(["tune", *SMALL, *given, "--learning_rate", "1e-4", "--output_dir", str(tmp_path)])
    assert ended == ["done"]
    weights = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert any(bool(each.any()) for name, each in weights.items() if "lora_B" in name)
    found = load_result(tmp_path)
    methods = found["result"]["methods"]
    assert list(methods["metric"]["means"]) == ["chroma"]  # --measure in place of the metric itself
    assert methods["metric"]["values"] != methods["untuned"]["values"]
    assert found["settings"]["metric"] == ["chroma", "0.1*content"]
    weights = sum(each.numel() for each in map(torch.as_tensor, weights.values()))
    assert found["result"]["costs"]["weights"] == weights


def test_flags_that_would_be_ignored_are_refused(tmp_path):
    tune = ["tune", "--metric", "chroma", *TWO]
    refused(
        tmp_path,
        {
            "cannot read the image /nowhere.png": ["tune", "--metric", "style:/nowhere.png", *TWO],
            "--rank is not used": [*tune, "--weights", "*", "--rank", "3"],
            "--instance_prompt is not used": [*tune, "--instance_prompt", "a cat"],
            "--label is not used without a judge": [*tune, *SMALL, "--label", "cat"],
            "--reward_scale is not used without --loss matching or --loss value-matching": [
                *tune,
                "--reward_scale",
                "3",
            ],
            "lr_scheduler constant has no warmup": [
                *(*tune, "--lr_scheduler", "constant", "--lr_warmup_steps", "2"),
            ],
            "take the sampler's steps one by one": [
                *(*tune, *SMALL, "--solver", "pipeline", "--kl_weight", "1"),
            ],
            "--instance_image needs our own steps": [
                *(*tune, "--instance_image", "x.png", "--solver", "pipeline", "--num_inference_steps", "1"),
            ],
        },
    )
