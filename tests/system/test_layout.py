"""Promises about the code itself."""

import ast
import re
from pathlib import Path

import pytest

from tests import PACKAGE

TESTS = Path(__file__).parents[1]
FILES = sorted(PACKAGE.rglob("*.py"))
# The order of packages, as CONTRIBUTING.md's map has it: one row a package.
PACKAGES = re.findall(
    r"^\| `(\w+)/` \|", (PACKAGE.parents[1] / "CONTRIBUTING.md").read_text(), re.MULTILINE
)


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


def test_the_map_of_contributing_names_every_package():
    there = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(PACKAGES) == there
    top = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert top - there == {"__init__.py", "__main__.py", "_types.py", "py.typed"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_package_imports_only_from_those_above_it(path):
    order = ["_types", *PACKAGES, "__init__", "__main__"]
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in imports_of(path):
        parts = module.split(".")[1:]
        if parts and parts[0] in order:
            assert order.index(parts[0]) <= order.index(own), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_gradient_policy_lives_with_the_adjoints(path):
    """no_grad, detach and checkpoint decide what a gradient is: in adjoints/, or on finished results."""
    allowed = {
        "flow/influence.py",  # in a message, and of copies that a call is looked at with
        "solvers/integrate.py",  # in an error message
        "files/diffusers_files.py", "files/images.py", "files/sounds.py", "files/checkpoint.py",  # finished results
        "pipelines/token_embeddings.py", "pipelines/prompt_encoding.py",  # leaves to be optimized
        "metrics/style_content.py", "metrics/clip.py", "metrics/image_classifier.py",
        "metrics/sliced_wasserstein.py",  # what a metric compares with
        "metrics/check.py",  # in an error message
        "samplers/purified.py",  # of labels, which have no gradient
    }  # fmt: skip
    package = path.relative_to(PACKAGE).parts[0]
    if (
        package == "adjoints"
        or package in PACKAGES[PACKAGES.index("samplers") + 1 :]
        or package == "optimization"
    ):
        return  # everything above the samplers is free
    found = re.findall(r"\bno_grad\(|\.detach\(|\bcheckpoint\(|\.data\b", path.read_text())
    assert not found or str(path.relative_to(PACKAGE)) in allowed


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_unpickles(path):
    assert not re.search(r"\bpickle\b|torch\.(load|save)\(", path.read_text())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_small(path):
    """A file is as long as its noun; past this length it is likely to be two."""
    assert len(path.read_text().splitlines()) <= 600


def test_every_module_has_a_test_file_of_its_own_name():
    missing = []
    for path in FILES:
        place = path.relative_to(PACKAGE)
        if path.name not in ("__init__.py", "__main__.py"):
            test = TESTS / place.parent / f"test_{path.name}"
            if not test.exists():
                missing.append(str(test.relative_to(TESTS)))
    assert not missing


def test_words_that_say_too_little_do_not_occur():
    words = (
        r"\b(?:twins?|ledger|witness|strangers?|wants a gradient|misreads?|still shown|told|heard)\b"
        r"|\bpictures?\b"
    )
    tags = r'</?picture>|"picture"'  # HTML's own name
    found = {name_of(path): set(re.findall(words, re.sub(tags, "", path.read_text()))) for path in FILES}
    assert not {name: each for name, each in found.items() if each}
