"""What the first page shows runs, is there, and is short enough to be read."""

import re

from tests import ROOT

README = ROOT / "README.md"


def test_the_first_example_runs(capsys):
    first = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)[0]
    exec(compile(first.replace("num_inference_steps=25", "num_inference_steps=3"), "README.md", "exec"), {})
    norm, saved = re.fullmatch(r"tensor\((.+)\) (\d+)\s*", capsys.readouterr().out).groups()
    assert float(norm) > 0
    assert int(saved) > 0


def test_its_images_and_links_are_there():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README.read_text()):
        file, _, heading = target.partition("#")
        assert (README.parent / file).exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", (README.parent / file).read_text(), re.MULTILINE)
            assert heading in {title.lower().replace(" ", "-") for title in titles}, target


def test_it_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120
