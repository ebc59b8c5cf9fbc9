"""Methods are measured in the same way, in parts as in one."""

import math

import pytest
import torch

from adjointdpm.files.html_report import Page
from adjointdpm.files.images import read_image
from adjointdpm.metrics import Chroma, Pixels
from adjointdpm.metrics.rewards import FunctionReward
from adjointdpm.tasks.evaluation import Rate
from adjointdpm.tasks.methods import Evaluation, MethodResult, MethodsResult, verdict_of, write_methods
from tests.tiny.metrics import bright_for_long_prompts


def images(seed):
    return torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_measures_in_parts_are_those_of_the_whole():
    originals, made = images(0), images(1)
    whole, in_parts = (
        Evaluation(
            {"pixels": Pixels(), "chroma": Chroma()}, ["a"] * len(made), originals, None, None, batch
        )(made)
        for batch in (None, 2)
    )
    expected = (made - originals).square().mean((1, 2, 3))
    torch.testing.assert_close(whole.values["pixels"], expected)
    for name, values in whole.values.items():
        torch.testing.assert_close(in_parts.values[name], values)
        assert whole.means[name] == pytest.approx(float(values.mean()))


def test_intervals_are_over_what_was_tried_several_times():
    values = torch.tensor([1.0, 3.0, 5.0, 9.0, 6.0, 8.0])  # of three images, each made twice
    found = MethodResult(images(0), {"metric": values}, None, tries=2).intervals["metric"]
    means = torch.tensor([2.0, 7.0, 7.0])
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.high - found.mean == pytest.approx(1.96 * float(means.std()) / 3**0.5)


def test_a_reward_reads_the_prompt_of_each_image_in_parts_too():
    made, prompts = images(1), ["a", "bc", "def"]
    reward = FunctionReward(bright_for_long_prompts)
    found = Evaluation({"reward": reward}, prompts, images(0), None, None, 2)(made).values["reward"]
    assert torch.allclose(found, -made.mean((1, 2, 3)) * torch.tensor([1.0, 2.0, 3.0]))


def test_a_judge_counts_on_saved_images():
    """Values beyond white are cut in the file, so the judge must not see them."""

    class Bright(torch.nn.Module):
        def forward(self, batch):
            return torch.stack([1.5 - batch.mean((1, 2, 3)), batch.mean((1, 2, 3))], 1)

    made = torch.stack([torch.full((3, 2, 2), value) for value in (0.2, 1.0, 3.0)])
    evaluate = Evaluation({}, ["a"] * 3, made, Bright(), torch.tensor([0, 1, 0]), None)
    assert (evaluate(made).judged.hits, evaluate(made).judged.of) == (1 + 1, 3)


def test_the_page_has_every_method_and_its_images_are_saved(tmp_path):
    originals, made = images(0), images(1)
    evaluate = Evaluation({"distance": Pixels()}, ["a"] * len(originals), originals, None, None, None)
    methods = {"none": evaluate(originals), "<b>ours": evaluate(made, [2.0, 1.0], calls=1234)}
    result = MethodsResult(tmp_path, tmp_path, methods, {})
    page = Page("a title")
    write_methods(result, page, ["one", "two", "three"])
    text = page.write(tmp_path / "index.html").read_text()
    assert "<b>ours" not in text
    for word in ("&lt;b&gt;ours", "1234", "three", "loss (&lt;b&gt;ours)"):
        assert word in text
    sheet = read_image((tmp_path / "images.png").read_bytes())
    assert sheet.shape == (3, 2 * 4 + 2, 3 * 4 + 2 * 2)
    torch.testing.assert_close(sheet[:, :4, :4], originals[0], rtol=0, atol=0.51 / 255)


def test_the_reduction_is_relative_to_the_untuned_model(tmp_path):
    zeros = torch.zeros(1, 3, 2, 2)

    def made(style, content, judged=None):
        return MethodResult(
            zeros, {"style": torch.tensor([style]), "content": torch.tensor([content])}, judged
        )

    methods = {
        "untuned": made(4.0, 0.0),
        "metric": made(1.0, 0.3, Rate(3, 4)),
        "denoising": made(3.0, 0.1),
    }
    result = MethodsResult(tmp_path, tmp_path / "lora.safetensors", methods, {})
    assert result.reduction("style") == pytest.approx(0.75)
    assert result.reduction("style", "denoising") == pytest.approx(0.25)
    assert math.isnan(result.reduction("content"))
    assert methods["metric"].as_dict()["judged"]["hits"] == 3


def test_a_change_has_its_sign_and_the_verdict_its_direction(tmp_path):
    """A metric that rises is not "less by -24 %", and a first method or a zero has no change at all."""
    values = {"untuned": (1.0, 0.0), "metric": (0.25, 0.2), "denoising": (1.24, 0.1)}
    methods = {
        name: MethodResult(
            torch.zeros(1, 3, 2, 2), {"style": torch.tensor([a]), "content": torch.tensor([b])}, Rate(1, 1)
        )
        for name, (a, b) in values.items()
    }
    result = MethodsResult(tmp_path, tmp_path, methods, {})
    page = Page("a title")
    write_methods(result, page, ["one"])
    (table,) = (part for part in page.parts if part["kind"] == "table")
    assert [row[2] for row in table["rows"]] == ["", "-75 %", "+24 %"]
    assert [row[4] for row in table["rows"]] == ["", "", ""]
    assert "On 1 images, style is 75 % lower after all (1 before, 0.25 after" in verdict_of(
        result, "style", "metric", "images", "after all"
    )
    worse = verdict_of(result, "style", "denoising", "images", "so")
    assert "24 % higher" in worse
    assert "lower is better" in worse
    assert "recognizes 1 of 1" in worse
    assert worse.endswith("With so few images, look at the intervals.")
