"""Losses and images reach tensorboard; what is missing is one line."""

import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import adjointdpm as adp
from adjointdpm.cli.trackers import tracker_of


def test_losses_and_images_are_in_tensorboards_files(tmp_path):
    tracker = tracker_of("tensorboard", tmp_path)
    tracker.images(0, "validation", torch.rand(2, 3, 8, 8))
    for step in range(3):
        tracker.report(step, {"loss": 0.5 * step})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss")] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    names = events.Tags()["images"]
    assert [name.partition("/")[0] for name in names] == ["validation"] * len(names)
    (first, *_) = events.Images(names[0])
    assert (first.step, first.width, first.height) == (0, 16, 8)  # both, side by side


@pytest.mark.parametrize("missing", ["accelerate.tracking", "wandb"])
def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(adp.InputError, match="pip install accelerate wandb"):
        tracker_of("wandb", tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(adp.InputError, match="tensorboard cannot"):
        tracker_of("tensorboard", tmp_path)
