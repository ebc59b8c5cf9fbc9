"""Of several measurements the nearest images are found one by one, and the best solver over all of them."""

from pathlib import Path

import torch

from adjointdpm.tasks.methods import MethodResult
from adjointdpm.tasks.solve.result import SolvedImage, SolveResult


def image(**metrics):
    """An image of which each method made two, with these metrics."""
    methods = {
        name.replace("_", " "): MethodResult(
            torch.full((2, 3, 1, 1), 0.5) + torch.tensor(values).view(2, 1, 1, 1),
            {"metric": torch.tensor(values)},
            None,
            [3.0, 2.0],
            calls=calls,
        )
        for calls, (name, values) in enumerate(metrics.items())
    }
    return SolvedImage("a.png", "a cat", methods)


FIRST = image(no_measurement=[0.1, 9.0], dps=[4.0, 3.0], mmps=[2.0, 7.0])
SECOND = image(no_measurement=[9.0, 9.0], dps=[1.0, 3.0], mmps=[5.0, 4.0])


def test_the_nearest_image_of_a_measurement_is_one_of_a_solver():
    assert (FIRST.best, FIRST.nearest("mmps"), FIRST.distance("dps")) == ("mmps", 0, 3.0)
    assert torch.equal(FIRST.image, torch.full((3, 1, 1), 2.5))
    assert SECOND.best == "dps"


def test_of_several_the_best_solver_has_the_lowest_sum_of_nearest_images():
    found = SolveResult.of(Path("out"), [FIRST, SECOND], {})
    assert found.best == "dps"  # 3 + 1 beside 2 + 4
    assert found.methods["dps"].values["metric"].tolist() == [4.0, 3.0, 1.0, 3.0]
    assert (found.methods["mmps"].calls, found.methods["mmps"].tries) == (2, 2)
    assert [str(each) for each in found.files] == ["out/solved/0000.png", "out/solved/0001.png"]
    assert [each["saved"] for each in found.as_dict()["images"]] == ["solved/0000.png", "solved/0001.png"]


def test_of_one_measurement_the_methods_are_its_own():
    found = SolveResult.of(Path("out"), [FIRST], {})
    assert all(found.methods[name] is each for name, each in FIRST.methods.items())
    assert found.files == [found.artefact] == [Path("out/solved.png")]
