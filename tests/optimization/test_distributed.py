"""Data parallel, FSDP2 and accelerate wrap a sampler: two gloo processes, the single process's gradients."""

import socket

import pytest
import torch

import adjointdpm as adp
from adjointdpm.optimization.distributed import Processes
from tests.tiny import two_processes

NAMES = list(two_processes.checks())


@pytest.fixture(scope="module")
def predict(tmp_path_factory):
    """What went wrong in each check, by name."""
    pytest.importorskip("accelerate", reason="accelerate is an optional dependency")
    pytest.importorskip("peft", reason="peft is an optional dependency")
    folder = tmp_path_factory.mktemp("said")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(two_processes.run, (port, str(folder)), nprocs=two_processes.WORLD)
    return {
        name: [(folder / f"{name}.{rank}").read_text() for rank in range(two_processes.WORLD)]
        for name in NAMES
    }


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_agree_with_one(predict, name):
    assert predict[name] == [""] * two_processes.WORLD, "\n".join(predict[name])


def test_a_launcher_that_is_none(monkeypatch):
    for world in ("two", "2"):
        monkeypatch.setenv("WORLD_SIZE", world)
        monkeypatch.delenv("RANK", raising=False)
        with pytest.raises(adp.InputError, match="torchrun"):
            Processes.here()
