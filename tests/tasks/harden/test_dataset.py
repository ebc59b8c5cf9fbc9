"""Folders of a training set."""

import torch


def test_labels_of_one_folder_name_stay_apart(tmp_path):
    from adjointdpm.tasks.harden.dataset import Labelled

    names = ["a/b", "a_b", "", "x" * 300, "../y"]
    Labelled(torch.zeros(5, 3, 1, 1, dtype=torch.uint8), names, ["clean"] * 5).export(tmp_path / "train")
    folders = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert folders == {"train/_", "train/a_b", "train/a_b (2)", f"train/{'x' * 60}", "train/___y"}
