"""Files are whole or not there, whatever the disk says; every writer of the library is one of these."""

import ast
import os
import resource
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import adjointdpm as adp
from adjointdpm.analysis.comparison_report import Comparison
from adjointdpm.files.atomic_write import SavingError, whole_files, write_file
from adjointdpm.files.html_report import Page
from adjointdpm.files.images import output_folder
from tests.conftest import tiny_pipeline

PACKAGE = Path(adp.__file__).parent


@contextmanager
def at_most(size):
    """No file can be longer than this: as many bytes as the disk takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def mounted(tmp_path):
    """A file system of 64 KiB, which is remounted with the options that it is called with."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield folder, lambda how: subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def page(folder):
    made = Page("a page")
    made.text("x" * 5000)
    made.write(folder / "index.html")


def lora(folder):
    from peft import LoraConfig

    pipe = tiny_pipeline()
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"]))
    adp.save_lora(folder, pipe)


WRITERS = {
    "index.html": page,
    "noise.safetensors": lambda folder: adp.save_noise(
        folder / "noise.safetensors", torch.zeros(1, 5000), scheduler="Euler", steps=3
    ),
    "learned_embeds.safetensors": lambda folder: adp.save_textual_inversion(
        folder / "learned_embeds.safetensors", "<x>", torch.zeros(1, 5000)
    ),
    "compare.png": lambda folder: Comparison(()).plot(folder / "compare.png"),
    "pytorch_lora_weights.safetensors": lora,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_file_before_and_no_other(tmp_path, name):
    pytest.importorskip("peft", reason="peft is an optional dependency")
    WRITERS[name](tmp_path)
    path = tmp_path / name
    before = path.read_bytes()
    with (
        at_most(1000),
        pytest.raises(SavingError, match=r"cannot write .*File too large.*free some space") as caught,
    ):
        WRITERS[name](tmp_path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    path.unlink()
    with at_most(1000), pytest.raises(adp.AdjointDPMError):
        WRITERS[name](tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_or_read_only_file_system(mounted):
    folder, remount = mounted
    path = folder / "file"
    write_file(path, b"first")
    with pytest.raises(
        SavingError, match=r"No space left on device; the earlier file is intact.*free some space"
    ):
        write_file(path, bytes(100_000))
    assert path.read_bytes() == b"first"
    assert [each.name for each in folder.iterdir()] == ["file"]
    with pytest.raises(SavingError, match="No space left"), whole_files(folder / "more") as beside:
        (beside / "a").write_bytes(bytes(100_000))
    assert list((folder / "more").iterdir()) == []
    write_file(folder / "filling", bytes(os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize))
    with pytest.raises(adp.InputError, match=r"cannot write to the output folder .*: No space left"):
        output_folder(folder)
    (folder / "filling").unlink()
    remount("ro")
    with pytest.raises(SavingError, match=r"Read-only file system; .* is intact. To go on, see to it"):
        write_file(path, b"second")
    with pytest.raises(adp.InputError, match="Read-only file system"):
        output_folder(folder)
    with pytest.raises(SavingError, match="Read-only"), whole_files(folder):
        pass
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize(
    ("name", "words"),
    [("gone/file", "No such file"), ("file/file", "Not a directory"), ("x" * 300, "too long")],
)
def test_places_where_nothing_can_be(tmp_path, name, words):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SavingError, match=words):
        write_file(tmp_path / name, b"x")


def test_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(SavingError, match="Is a directory"):
        write_file(tmp_path / "file", b"x")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_an_interruption_leaves_no_part(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "file", b"x", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_files(tmp_path) as beside:
        write_file(beside / "a", b"x", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_files_of_other_writers_move_to_their_places(tmp_path):
    (tmp_path / "kept").write_bytes(b"kept")
    (tmp_path / "a").write_bytes(b"before")
    with whole_files(tmp_path) as beside:
        (beside / "a").write_bytes(b"after")
        (beside / "sub").mkdir()
        (beside / "sub" / "b").write_bytes(b"b")
        assert (tmp_path / "a").read_bytes() == b"before"
    found = {
        str(each.relative_to(tmp_path)): each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()
    }
    assert found == {"kept": b"kept", "a": b"after", "sub/b": b"b"}


def test_the_probe_of_an_output_folder_leaves_nothing(tmp_path):
    assert list(output_folder(tmp_path / "new" / "one").iterdir()) == []
    with pytest.raises(adp.InputError, match="cannot write to the output folder"):
        output_folder(str(tmp_path / "a\0b"))


def test_a_lora_has_its_settings_after_the_move(tmp_path):
    pytest.importorskip("peft", reason="peft is an optional dependency")
    lora(tmp_path)
    assert any("lora_A" in name for name in load_file(tmp_path / "pytorch_lora_weights.safetensors"))
    assert [each.name for each in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]


def test_no_other_way_of_writing_is_used():
    """What writes at once would leave half a file on a full disk."""
    allowed = {("cli/main.py", "open")} | {
        ("files/atomic_write.py", "open"),
        ("metrics/image_classifier.py", "save_model"),  # inside `whole_files`
        ("files/images.py", "write_bytes"),
        ("files/sounds.py", "open"),  # a WAV in memory
        ("optimization/run_folder.py", "open"),
    }
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            modes = [
                a.value
                for a in (*node.args, *(k.value for k in node.keywords))
                if isinstance(a, ast.Constant)
            ]
            writes = name in ("write_bytes", "write_text", "save_file", "save_model", "imsave", "dump")
            writes |= name == "open" and any(
                isinstance(m, str) and set(m) & set("wax+") and len(m) < 4 for m in modes
            )
            writes |= name == "savefig" and "path" in ast.dump(node.args[0])
            assert not writes or (str(path.relative_to(PACKAGE)), name) in allowed, (path, node.lineno)
