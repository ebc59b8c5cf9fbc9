"""The page of inverse problems shows eight images of many and has a row for every one."""

import pytest
import torch

from adjointdpm.metrics import Measured
from adjointdpm.metrics.operators import Downsample
from adjointdpm.tasks.methods import MethodResult
from adjointdpm.tasks.solve.report import page_of
from adjointdpm.tasks.solve.result import SolvedImage, SolveResult


def page(tmp_path, number, known=True):
    draw = torch.Generator().manual_seed(number)
    truth = torch.rand(number, 3, 16, 16, generator=draw)
    images = []
    for i in range(number):
        methods = {}
        for name, lowest in {"no measurement": 8.0, "dps": 0.5, "mmps": 2.0}.items():
            values = {"metric": lowest + torch.rand(2, generator=draw)}
            if known:
                values |= {"PSNR": 20 + i + torch.rand(2, generator=draw), "SSIM": torch.tensor([0.5, 0.7])}
            made = torch.full((2, 3, 16, 16), i / 64)
            made[values["metric"].argmin()] += 0.25
            methods[name] = MethodResult(made, values, None, calls=20)
        images.append(SolvedImage(f"image-{i}.png", "a cat", methods))
    result = SolveResult.of(tmp_path, images, {})
    found = page_of(result, Measured(Downsample(4), Downsample(4)(truth)), truth if known else None)
    return result, found, found.write(tmp_path / "index.html").read_text()


@pytest.mark.parametrize("number", [2, 40])
def test_of_many_images_eight_are_shown_and_all_have_a_row(tmp_path, number):
    result, found, text = page(tmp_path, number)
    tables = [part for part in found.parts if part["kind"] == "table"]
    assert [row[0] for row in tables[-1]["rows"]] == [each.file for each in result.images]
    mean = result.images[1].methods["dps"].means["PSNR"]
    assert tables[-1]["rows"][1][1:3] == ["solved/0001.png", "dps"]
    assert tables[-1]["rows"][1][4] == f"{mean:.2f}"
    rows = [row for part in found.parts if part["kind"] == "images" for row in part["rows"]]
    assert [row.name for row in rows] == ["the image", "measurement", "no measurement", "dps", "mmps"]
    assert {len(row.images) for row in rows} == {min(8, number)}
    assert f"On {number} images" in found.verdict
    assert f"nearest one on {number} of them" in found.verdict
    assert ("The first 8 of 40 images" in text) == (number > 8)
    # Of two noises the image is shown that comes nearer.
    assert rows[3].images[1].unique().tolist() == [round(255 * (1 / 64 + 0.25))]


def test_of_one_image_every_noise_is_shown_with_what_is_left(tmp_path):
    _, found, text = page(tmp_path, 1)
    assert "dps: what is left" in text
    assert "noise 1" in text
    assert "Every image" not in text
    assert "PSNR against the image itself" in found.verdict


def test_of_unknown_images_the_rows_have_the_metric(tmp_path):
    result, found, text = page(tmp_path, 3, known=False)
    assert "PSNR" not in text
    rows = [part for part in found.parts if part["kind"] == "table"][-1]["rows"]
    assert rows[2][3] == f"{result.images[2].methods['no measurement'].means['metric']:.3g}"
