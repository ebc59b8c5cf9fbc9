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
STEPS = ["--steps", "9", "--batch", "4"]


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    """Three images in place of the font."""
    folder = tmp_path_factory.mktemp("glyphs")
    for name, colour in {"ball": "red", "leaf": "green", "stone": "gray"}.items():
        picture = Image.new("RGBA", (40, 40))
        ImageDraw.Draw(picture).ellipse((4, 4, 30 + len(name), 34), fill=colour)
        picture.save(folder / f"{name}.png")
    return folder


def command(script, glyphs, runs, *arguments):
    quick = ["--glyphs", str(glyphs), "--runs", str(runs), "--save_every", "3", *STEPS]
    return [sys.executable, str(TRAINING / script), *arguments, *quick]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def weights(runs, name):
    return load_file(runs / name / "checkpoint.safetensors")


@pytest.mark.parametrize(
    ("script", "arguments", "name", "before"),
    [
        ("vae.py", [], "vae", ()),
        ("text.py", [], "text", ("vae.py",)),
        ("diffusion.py", ["--cache", "12"], "diffusion", ("vae.py", "text.py")),
        ("diffusion.py", ["--cache", "12", "--optimizer", "muon"], "diffusion", ("vae.py", "text.py")),
        ("classifier.py", ["judge-style"], "judge-style", ()),
    ],
    ids=["vae", "text", "diffusion", "diffusion-muon", "classifier"],
)
def test_a_killed_run_ends_in_the_same_weights(tmp_path, glyphs, script, arguments, name, before):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = {"env": environment(), "check": True, "capture_output": True}
    for earlier in before:
        subprocess.run(command(earlier, glyphs, whole), **run)
    if before:
        shutil.copytree(whole, killed)
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
