"""A gradient needs neither the command line's packages nor the pages': they are extras."""

import subprocess
import sys

import pytest

EXTRAS = ("jinja2", "matplotlib", "click", "yaml", "peft", "kornia")
# Not yaml, which huggingface_hub needs.
BLOCKED = f"import sys\nfor name in {EXTRAS!r}:\n    if name != 'yaml': sys.modules[name] = None\n"


def python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options
    )


def test_importing_the_library_imports_no_extra():
    done = python(f"import adjointdpm, sys; print([n for n in {EXTRAS!r} if n in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_a_gradient_without_any_extra():
    done = python(
        BLOCKED + "import adjointdpm as adp\n"
        "from adjointdpm.metrics import Chroma\n"
        "sampler = adp.load_bundled('emoji', steps=2)\n"
        "found = adp.gradients(sampler, Chroma(), sampler.noise(1), sampler.encode('a cat'))\n"
        "print(float(found.variables['noise'].norm()) > 0)\n"
    )
    assert done.stdout.strip() == "True", done.stderr


def test_every_name_at_the_top_is_there():
    done = python("import adjointdpm as adp; print([n for n in adp.__all__ if not hasattr(adp, n)])")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("code", "needed"),
    [
        ("import adjointdpm.tasks", "adjointdpm[report]"),
        ("import runpy; runpy.run_module('adjointdpm', run_name='__main__')", "adjointdpm[all]"),
    ],
)
def test_what_is_missing_is_named_with_its_extra(code, needed):
    done = python(BLOCKED + code)
    assert done.returncode != 0
    assert needed in done.stderr.splitlines()[-1]


def test_the_command_line_without_its_packages_exits_2_with_one_line():
    done = python(BLOCKED + "import runpy; runpy.run_module('adjointdpm', run_name='__main__')")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_command_without_a_package_it_needs_exits_2_with_one_line():
    """The help does not need it."""
    blocked = "import runpy, sys\nsys.modules['jinja2'] = None\nsys.argv = ['adjointdpm', *{!r}]\n"
    run = "runpy.run_module('adjointdpm', run_name='__main__')"
    assert python(blocked.format(["--help"]) + run).returncode == 0
    done = python(blocked.format(["guide", "--metric", "chroma", "--prompt", "a cat"]) + run)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "adjointdpm[report]" in line or "adjointdpm[all]" in line
