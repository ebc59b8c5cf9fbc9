"""Checkpoints: no damage is accepted, and at no moment of saving is there none."""

import os
import random
import re
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch

import adjointdpm as adp
from adjointdpm.files import atomic_write as writing
from adjointdpm.files import checkpoint
from adjointdpm.files.checkpoint import load_checkpoint, previous, save_checkpoint
from adjointdpm.optimization.state import check
from tests.tiny.tasks import digest, run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the two last checkpoints of a run."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def newest(folder):
    return folder / "checkpoint.safetensors"


def test_no_flipped_bit_is_accepted(folder):
    """One bit of every fourth byte, and every bit of the header's beginning."""
    path, draw = newest(folder), random.Random(0)
    previous(path).unlink()
    content = path.read_bytes()
    flips = [(i, draw.randrange(8)) for i in range(draw.randrange(4), len(content), 4)]
    flips += [(i, bit) for i in range(100) for bit in range(8)]
    for i, bit in flips:
        path.write_bytes(content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :])
        with pytest.raises(adp.InputError, match="damaged"):
            load_checkpoint(path)
    path.write_bytes(content)
    load_checkpoint(path)


def test_no_cut_or_longer_file_is_accepted(folder):
    path = newest(folder)
    previous(path).unlink()
    content = path.read_bytes()
    for length in {*range(80), *range(0, len(content), 37), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(adp.InputError, match="damaged"):
            load_checkpoint(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(adp.InputError, match="damaged"):
        load_checkpoint(path)


def test_a_missing_or_exchanged_entry_is_named(folder):
    """With a checksum that fits: as of a program that wrote something else."""
    path = newest(folder)
    tensors, about = load_checkpoint(path)
    assert {"variables/noise", "best/noise", "unscored/best/noise", "optimizer/0/exp_avg"} <= set(tensors)
    for name, tensor in tensors.items():
        without = {other: each for other, each in tensors.items() if other != name}
        for given in (without, without | {name: tensor[..., None]}, without | {name: tensor.half()}):
            previous(path).unlink(missing_ok=True)
            path.unlink()
            save_checkpoint(path, given, about)
            with pytest.raises(adp.InputError, match=rf"damaged \({name} should be"):
                run(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": 11}, "step 11 and should have 12 losses"),
        ({"step": -1}, "do not lie between 0 and -1"),
        ({"step": 12.0}, "no step"),
        ({"step": 1000}, "step 1000"),
        ({"losses": [1.0]}, "has 1"),
        ({"losses": None}, "no losses"),
        ({"stale": "none"}, "no stale"),
        ({"finished": 1}, "no finished"),
        ({"unscored": None}, "step 12 and should have 12 losses"),
        ({"entries": {}}, "should be missing"),
        ({"optimizer": []}, "no optimizer"),
        ({"config": None}, "no config"),
        ({"loop": 3}, "no loop"),
    ],
)
def test_metadata_that_does_not_fit_is_named(folder, change, words):
    path = newest(folder)
    tensors, about = load_checkpoint(path)
    for each in (path, previous(path)):
        each.unlink()
    save_checkpoint(path, tensors, about | change)
    with pytest.raises(adp.InputError, match=words):
        run(folder)


def test_a_file_of_an_earlier_version_is_refused_by_name(folder):
    path = newest(folder)
    tensors, about = load_checkpoint(path)
    path.write_bytes(checkpoint.save(tensors, {"about": checkpoint.json.dumps(about)}))
    previous(path).unlink()
    with pytest.raises(adp.InputError, match="no checksum"):
        run(folder)


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing entry", "empty"])
def test_the_one_before_is_used_and_ends_in_the_same_bits(folder, damage):
    path, truth = newest(folder), digest(run(None))
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "missing entry":
        tensors, about = load_checkpoint(path)
        tensors.pop("optimizer/0/step")
        path.unlink()
        save_checkpoint(path, tensors, about)
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:middle], "flipped": flipped, "empty": b""}[damage])
    words = f"{re.escape(str(path))} is damaged .*going on from the one before it, {re.escape(str(previous(path)))}$"
    with pytest.warns(UserWarning, match=words) as caught:
        found = run(folder)
    assert len(caught) == 1
    assert digest(found) == truth
    assert digest(run(folder)) == truth  # without a warning: the damaged file was replaced


def test_both_damaged_is_one_error_that_names_both(folder):
    path = newest(folder)
    for each in (path, previous(path)):
        each.write_bytes(each.read_bytes()[:-1])
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    with pytest.raises(adp.InputError) as caught:
        run(folder)
    assert "\n" not in str(caught.value)
    for each in (path, previous(path)):
        assert f"{each} is not a checkpoint of a task, or is damaged" in str(caught.value)
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before


@pytest.mark.parametrize("start", ["both", "newest alone", "one before alone", "newest damaged", "none"])
def test_a_kill_at_every_line_of_saving_leaves_a_whole_checkpoint(tmp_path, start):
    path, files = tmp_path / "checkpoint.safetensors", {checkpoint.__file__, writing.__file__}

    def made(value, path=path):
        return save_checkpoint(path, {"v": torch.tensor([value])}, {"v": value})

    def begin():
        for each in tmp_path.iterdir():
            each.unlink()
        if start == "none":
            return
        made(1.0)
        if start != "newest alone":
            made(2.0)
        if start == "one before alone":
            path.unlink()
        if start == "newest damaged":
            path.write_bytes(path.read_bytes()[:-1])

    for last in range(1, 1000):
        begin()
        left = last

        def at_lines(frame, event, _):
            nonlocal left
            if frame.f_code.co_filename not in files:
                return None
            left -= event == "line"
            if left == 0:
                os._exit(9)
            return at_lines

        child = os.fork()
        if child == 0:
            try:
                sys.settrace(at_lines)
                made(3.0)
                os._exit(0)
            finally:
                os._exit(1)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended in (0, 9)
        killed = ended == 9
        if start == "none" and not path.exists():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors, about = load_checkpoint(path)
        old = {"both": 2.0, "newest alone": 1.0, "one before alone": 1.0, "newest damaged": 1.0}.get(start)
        assert about["v"] in ((old, 3.0) if killed else (3.0,))
        assert float(tensors["v"]) == about["v"]
        if not killed:
            break
    assert 20 < last < 999


def test_nan_in_a_config_is_itself(tmp_path):
    found = run(tmp_path, config={"x": float("nan")})
    assert digest(run(tmp_path, config={"x": float("nan")})) == digest(found)
    with pytest.raises(adp.InputError, match="x = nan, but this run has 1"):
        run(tmp_path, config={"x": 1})


def test_a_config_that_json_does_not_know_is_refused_before_the_work(tmp_path):
    with pytest.raises(adp.InputError, match="what JSON knows"):
        run(tmp_path, config={"x": {1, 2}})


def test_check_accepts_what_was_saved(folder):
    for path in (newest(folder), previous(newest(folder))):
        check(*load_checkpoint(path))
