"""`adjointdpm guide` ends in noise on its sphere and in losses for tensorboard."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import adjointdpm as adp
from adjointdpm.files.images import png
from adjointdpm.optimization import seeds
from adjointdpm.optimization.white_noise import projected
from adjointdpm.tasks import load_result
from tests.tiny.commands import SMALL, refused, run


def test_guide_ends_in_noise_on_its_sphere_and_reports_its_losses(tmp_path):
    given = ["--prompt", "a cat", "--metric", "background:0.9,0.8,0.2", "--report_to", "tensorboard"]
    assert run(["guide", *SMALL, *given, "--output_dir", str(tmp_path)]) == ["done"]
    noise, about = adp.load_noise(tmp_path / "noise.safetensors")
    start = adp.load_bundled("emoji").noise(1, seeds.key(0, "guide", 0))
    assert about["scheduler"] == "DPMSolverPP"
    assert float(noise.norm()) == pytest.approx(float(start.norm()), rel=1e-5)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = [(each.step, each.value) for each in events.Scalars("loss")]
    losses = load_result(tmp_path)["result"]["methods"]["noise"]["losses"]
    assert logged == [(i + 1, pytest.approx(losses[i])) for i in range(2)]


def test_a_config_with_the_budgets_settings_goes_on_to_the_same_bits(tmp_path):
    """The names of the flags are the keys of the file; the resumed run changes no bit."""
    config = tmp_path / "config.yaml"
    config.write_text(
        "prompt: [a cat]\nmetric: ['background:0.9,0.8,0.2']\nnum_inference_steps: 3\ncoarse_steps: [2]\n"
        "calls: 40\nbest_of: 2\nwhite_noise: true\njudge_patience: 3\nnum_validation_images: 1\n"
        "baselines: false\ncheckpointing_steps: 1\n"
    )
    out = tmp_path / "out"
    assert run(["guide", "--config", str(config), "--output_dir", str(out)]) == ["done"]
    found = load_result(out)
    settings, made = found["settings"], found["result"]["methods"]["noise"]
    assert (settings["coarse_steps"], settings["calls"], settings["best_of"]) == ([2], 40, 2)
    assert settings["white_noise"] is True
    assert made["calls"] <= 40
    noise, _ = adp.load_noise(out / "noise.safetensors")
    assert torch.allclose(projected(noise), noise, atol=1e-3)
    assert run(["guide", "--config", str(config), "--output_dir", str(out), "--resume"]) == ["done"]
    again, _ = adp.load_noise(out / "noise.safetensors")
    assert torch.equal(again, noise)


def test_flags_that_cannot_be_used_are_refused(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(png(torch.zeros(3, 8, 8, dtype=torch.uint8))[:30])
    cat = ["--prompt", "a cat"]
    chroma = ["guide", "--metric", "chroma", *cat]
    refused(
        tmp_path,
        {
            "no metric 'glow'": ["guide", "--metric", "glow", *cat],
            "our own steps": [*chroma, "--solver", "pipeline"],
            "--layer is not used by these metrics": [*chroma, "--layer", "1"],
            "--label is not used without a judge": [*chroma, *SMALL, "--label", "cat"],
            "broken.png": ["guide", "--metric", f"style:{broken}", *cat],
            "strength must be above 0": [*chroma, "--strength", "0"],
            "--target is not used with --no_baselines": [*chroma, "--no_baselines", "--target", "0.1"],
            "--max_train_steps is not used with --calls": [
                *chroma,
                "--calls",
                "50",
                "--max_train_steps",
                "3",
            ],
            "--judge_patience is not used without a judge": [
                *[*chroma, "--judge", "none"],
                *["--judge_patience", "2"],
            ],
            "coarse_steps must not fall": [*chroma, "--coarse_steps", "4", "--coarse_steps", "2"],
            "coarse_steps are fewer than the sampler's own steps (2), but hold 3": [
                *[*chroma, "--num_inference_steps", "2"],
                *["--coarse_steps", "3"],
            ],
            "calls = 4 allow no step": [*chroma, "--num_inference_steps", "2", "--calls", "4"],
            "best_of must be at least 1": [*chroma, "--best_of", "0"],
        },
    )
