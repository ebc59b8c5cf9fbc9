"""`adjointdpm studio`: its flags, the flags that repeat a run, and what it refuses before it serves anything."""

import os
import socket
import subprocess
import sys

import pytest

import adjointdpm as adp
from adjointdpm.cli.options import ModelOptions
from adjointdpm.cli.studio import Studio, StudioNetworks, check_host, check_port
from tests.tiny.commands import adjointdpm, refused


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_alone_can_reach_the_page(host):
    check_host(host, allowed=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.org", ""])
def test_others_reach_it_only_if_that_is_wanted(host):
    with pytest.raises(adp.InputError, match="--allow_remote"):
        check_host(host, allowed=False)
    check_host(host, allowed=True)


def test_a_port_that_is_taken_is_refused_before_the_model_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(adp.InputError, match=f"port {port}: .*in use; give another --port"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)
    check_port("127.0.0.1", None)


def test_what_cannot_be_used_is_refused_before_the_page(tmp_path):
    refused(
        tmp_path,
        {
            "without a password": ["studio", "--host", "0.0.0.0"],
            "our own steps": ["studio", "--solver", "pipeline"],
            "neither a bundled one nor": [
                "studio",
                "--pretrained_model_name_or_path",
                "no such/model/here",
            ],
            "no metric 'glow'": ["studio", "--metric", "glow"],
            "no CLIPModel could be loaded": ["studio", "--clip_model", str(tmp_path)],
            "--port must be at least 1 and at most 65535": ["studio", "--port", "70000"],
        },
    )


def test_a_missing_gradio_is_one_line_that_names_the_extra(tmp_path):
    code = (
        "import runpy, sys\nsys.modules['gradio'] = None\nsys.argv = ['adjointdpm', 'studio']\n"
        "runpy.run_module('adjointdpm', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert 'pip install "adjointdpm[studio]"' in line


def test_the_help_imports_neither_gradio_nor_a_page():
    code = (
        "import sys\nfrom adjointdpm.cli.main import app\n"
        "app.main(['studio', '--help'], standalone_mode=False)\n"
        "print([n for n in ('gradio', 'starlette', 'pandas') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )
    assert done.stdout.rstrip().endswith("[]"), done.stdout[-300:] + done.stderr
    assert "--allow_remote" in done.stdout
    assert "--num_inference_steps" not in done.stdout
    assert "studio" in adjointdpm("--help").stdout


def test_flags_that_repeat_a_run_are_those_that_differ_and_are_needed():
    plain = Studio()
    plain = Studio(networks=StudioNetworks(features="emoji/resnet", classifier="emoji/resnet"))
    assert plain._flags(["label:cat", "style:a.png", "0.3*content"]) == []
    networks = StudioNetworks("emoji/hgnet", (1, 2), "clip", "emoji/bit")
    other = Studio(networks=networks, model=ModelOptions(guidance_scale=3.0, solver="euler"))
    assert other._flags(["chroma"]) == ["--guidance_scale=3.0"]
    assert other._flags(["2*label:a:b"]) == ["--guidance_scale=3.0", "--classifier=emoji/bit"]
    assert other._flags(["style:x", "0.3 * content"]) == [
        "--guidance_scale=3.0", "--features=emoji/hgnet", "--layer=1", "--layer=2",
    ]  # fmt: skip
    assert other._flags(["clip-text:style:x"]) == ["--guidance_scale=3.0", "--clip_model=clip"]
