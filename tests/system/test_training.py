"""Training can be cut off at any moment and goes on as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from tests import ROOT

TRAINING = ROOT / "training"
STEPS = 5


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    """Three images in place of the font."""
    folder = tmp_path_factory.mktemp("glyphs")
    for name, colour in {"ball": "red", "leaf": "green", "stone": "gray"}.items():
        image = Image.new("RGBA", (40, 40))
        ImageDraw.Draw(image).ellipse((4, 4, 30 + len(name), 34), fill=colour)
        image.save(folder / f"{name}.png")
    return folder


def command(script, glyphs, runs, *arguments, steps=STEPS):
    quick = [
        "--glyphs",
        str(glyphs),
        "--runs",
        str(runs),
        "--save_every",
        "2",
        "--steps",
        str(steps),
        "--batch",
        "4",
    ]
    return [sys.executable, str(TRAINING / script), *arguments, *quick]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def stages(tmp_path_factory, glyphs):
    """An autoencoder and a text encoder, as the diffusion model needs them, after two steps."""
    runs = tmp_path_factory.mktemp("stages")
    for script in ("vae.py", "text.py"):
        subprocess.run(
            command(script, glyphs, runs, steps=2), env=environment(), check=True, capture_output=True
        )
    return runs


def weights(runs, name):
    return load_file(runs / name / "checkpoint.safetensors")


@pytest.mark.parametrize(
    ("script", "arguments", "name"),
    [
        ("vae.py", [], "vae"),
        ("text.py", [], "text"),
        ("diffusion.py", ["--cache", "12"], "diffusion"),
        ("diffusion.py", ["--cache", "12", "--optimizer", "muon"], "diffusion"),
        ("classifier.py", ["judge-style"], "judge-style"),
        ("clip.py", ["clip", "--cache", "12", "--halved", "3"], "clip"),
    ],
    ids=["vae", "text", "diffusion", "diffusion-muon", "classifier", "clip"],
)
def test_a_killed_run_ends_in_the_same_weights(tmp_path, glyphs, request, script, arguments, name):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = {"env": environment(), "check": True, "capture_output": True}
    if name == "diffusion":
        for folder in (whole, killed):
            shutil.copytree(request.getfixturevalue("stages"), folder)
    subprocess.run(command(script, glyphs, whole, *arguments), **run)
    checkpoint = killed / name / "checkpoint.safetensors"
    process = subprocess.Popen(
        command(script, glyphs, killed, *arguments),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
    subprocess.run(command(script, glyphs, killed, *arguments), **run)
    expected, found = weights(whole, name), weights(killed, name)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
