"""A network sharded over two and three processes is tuned as in one; a process that dies ends the others."""

import os
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import adjointdpm as adp
from adjointdpm.tasks import InterruptedRunError, shard
from tests import ROOT
from tests.tiny import sharded, tunes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What one, two and three processes made of the same tuning."""
    pytest.importorskip("peft", reason="peft is an optional dependency")
    place = tmp_path_factory.mktemp("sharded")
    with pytest.raises(InterruptedRunError):
        sharded.tuned(place / "begun", 2, split=False, fails=1)
    for world in (2, 3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(sharded.work, (world, port, str(place)), nprocs=world)
    return place


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The LoRA of one process whose network is whole, and the number of its frozen weights."""
    return sharded.tuned(tmp_path_factory.mktemp("alone"), 2, split=False)


def off(found, truth):
    return max(float((found[name] - each).norm() / each.norm()) for name, each in truth.items())


@pytest.mark.parametrize("world", [2, 3])
def test_a_sharded_network_gets_the_lora_of_one_process(folder, alone, world):
    truth, _ = alone
    found = [load_file(folder / f"lora-{world}-{rank}") for rank in range(world)]
    assert all(torch.equal(each[name], found[0][name]) for each in found for name in truth)
    assert off(found[0], truth) < 1e-5  # of weights in float32
    assert (folder / f"run-{world}" / "pytorch_lora_weights.safetensors").exists()


@pytest.mark.parametrize("world", [2, 3])
def test_each_process_holds_its_share(folder, alone, world):
    _, whole = alone
    held = [int((folder / f"held-{world}-{rank}").read_text()) for rank in range(world)]
    assert sum(held) == whole
    assert max(held) < 1.3 * whole / world  # rows are spread whole


def test_a_run_of_one_process_goes_on_in_two(folder, alone):
    assert off(load_file(folder / "resumed-0"), alone[0]) < 1e-5


@pytest.mark.parametrize("loss", sharded.LOSSES)
def test_two_processes_agree_with_one_on_each_loss(folder, alone, tmp_path, loss):
    truth, _ = sharded.tuned(tmp_path, 2, split=False, loss=loss)
    found = [load_file(folder / f"{loss}-{rank}") for rank in range(2)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in truth)
    assert off(found[0], truth) < 1e-5 < 1e-3 < off(alone[0], truth)  # it is another loss


def test_unequal_shares_are_refused(folder):
    """In a sampler whose text encoders were put on a device of their own (`sampler_of_a_kind`)."""
    for rank in range(2):
        said = (folder / f"odd-{rank}").read_text()
        assert "train_batch_size must be a multiple of the 2 processes, but is 5" in said


def test_one_process_alone_has_nothing_to_shard():
    with pytest.raises(adp.InputError, match="torchrun"):
        shard(tunes.sampler())


def test_a_process_that_is_killed_ends_the_others_with_a_line(tmp_path):
    pytest.importorskip("peft", reason="peft is an optional dependency")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "-m", "tests.tiny.sharded", str(tmp_path), "4", "2"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode
    assert time.perf_counter() - began < 60
    # Which of the two comes first, the closed connection or torchrun's signal, is a matter of chance.
    assert "has ended or cannot be reached" in done.stderr or "interrupted at step" in done.stderr
    assert "--resume" in done.stderr
    assert list((tmp_path / "state").rglob("checkpoint.safetensors"))
