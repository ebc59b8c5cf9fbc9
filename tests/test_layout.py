"""Promises about the code itself."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "adjointdpm"
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Modules of this package that a file imports, at its top or inside."""
    package = name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            if node.module:
                yield ".".join([*base, *node.module.split(".")])
            else:  # from . import module
                yield from (".".join([*base, alias.name]) for alias in node.names)


def test_imports_run_one_way():
    graph = {name_of(path): set(imports_of(path)) for path in FILES}
    done, under_way = set(), []

    def visit(module):
        assert module not in under_way, f"a circle of imports: {' -> '.join([*under_way, module])}"
        if module in done or module not in graph:
            return
        under_way.append(module)
        for other in graph[module]:
            visit(other)
        under_way.pop()
        done.add(module)

    for module in graph:
        visit(module)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_gradient_policy_lives_with_the_adjoints(path):
    """no_grad, detach and checkpoint decide what a gradient is: in adjoints/, or on finished results."""
    allowed = {
        "adjoints/base.py", "adjoints/model_state.py", "adjoints/repetition.py",
        "adjoints/continuous.py", "adjoints/discrete.py", "adjoints/meter.py",
        "adjoints/products.py", "adjoints/recompute.py", "adjoints/reversible.py", "adjoints/trace.py",
        "influence.py",  # in a message, and of copies that a call is looked at with
        "ivp.py",  # in an error message
        "formats.py", "tokens.py", "prompts.py",  # files, and leaves to be optimized
        "gradients.py", "finite.py", "pictures.py", "demo.py", "cli.py",  # above the sampler: leaves and results
        "models.py", "specs.py",  # trials before the work
        "metrics/features.py", "metrics/clip.py", "metrics/image_classifier.py",  # what a metric compares with
        "tasks/tune.py", "tasks/tuning.py", "tasks/denoising.py", "tasks/invert.py", "tasks/guide.py",
        "tasks/trajectory.py", "tasks/inversion.py",
        "tasks/loop.py", "tasks/batch.py", "tasks/state.py", "tasks/checkpoint.py", "tasks/attack.py",
        "tasks/controls.py", "tasks/scores.py", "tasks/witness.py", "tasks/harden.py", "tasks/task.py",
        "tasks/finetune.py", "tasks/precision.py",
    }  # fmt: skip
    found = re.findall(r"\bno_grad\(|\.detach\(|\bcheckpoint\(|\.data\b", path.read_text())
    assert not found or str(path.relative_to(PACKAGE)) in allowed


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_unpickles(path):
    assert not re.search(r"\bpickle\b|torch\.(load|save)\(", path.read_text())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_small(path):
    """A file is as long as its noun; past this length it is likely to be two."""
    assert len(path.read_text().splitlines()) <= 450
