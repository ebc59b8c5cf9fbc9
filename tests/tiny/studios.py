"""A studio on the bundled model, without a page, and what its runs do."""

import http.client
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from safetensors.torch import load_file

from adjointdpm.cli.parse_metric import Networks, metric_of
from adjointdpm.cli.parse_sampler import SOLVERS, adjoint_of, sampler_of
from adjointdpm.studio.choice import Choice
from adjointdpm.studio.jobs import Loaded, Model

BLUE = "background:0.18,0.44,0.88"


def load():
    sampler = sampler_of("emoji", steps=2, guidance_scale=None)
    networks = Networks(sampler)
    return Loaded(sampler, lambda texts: metric_of(texts, networks))


def model(**settings):
    given = {"name": "emoji", "load": load, "adjoint_of": adjoint_of, "labels": ("cat", "dog")}
    return Model(**given | {"solver_of": lambda name: SOLVERS[name](), "has_features": True} | settings)


def choice(**settings):
    return Choice(**{"prompt": "a cat", "metric": (BLUE,), "steps": 2, "sampling_steps": 2} | settings)


def tensors(path):
    """The bits of what a file holds, by name."""
    return {name: each.numpy().tobytes() for name, each in load_file(path).items()}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def serving(folder, end=signal.SIGINT):
    """The real command; yields the page's address, and ends it by a signal, which leaves no process."""
    command = [sys.executable, "-m", "adjointdpm", "studio", "--output_dir", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--port", str(free_port())], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            line = process.stdout.readline()
            assert line.startswith("studio: http://127.0.0.1:"), line + process.stderr.read()
            yield line.split()[1]
        finally:
            process.send_signal(end)
            try:
                out, err = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert (process.returncode, out) == (0, "studio: ended\n"), err
        assert "Traceback" not in err
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)


def get(url, path, headers=None, method="GET"):
    """The status, the content and the headers of an answer."""
    connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=30)
    connection.request(method, path, headers=headers or {})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content, response.headers
