"""`adjointdpm guide` ends in noise on its sphere and in losses for tensorboard."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import adjointdpm as adp
from adjointdpm.files.images import png
from adjointdpm.optimization import seeds
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
        },
    )
