"""What a tuning reports."""

import math

import pytest
import torch

from adjointdpm.tasks.evaluation import Rate
from adjointdpm.tasks.methods import MethodResult
from adjointdpm.tasks.tune.result import TuneResult


def test_the_reduction_is_relative_to_the_untuned_model(tmp_path):
    images = torch.zeros(1, 3, 2, 2)

    def made(style, content, judged=None):
        return MethodResult(
            images, {"style": torch.tensor([style]), "content": torch.tensor([content])}, judged
        )

    methods = {
        "untuned": made(4.0, 0.0),
        "metric": made(1.0, 0.3, Rate(3, 4)),
        "denoising": made(3.0, 0.1),
    }
    result = TuneResult(tmp_path, tmp_path / "lora.safetensors", methods, {})
    assert result.reduction("style") == pytest.approx(0.75)
    assert result.reduction("style", "denoising") == pytest.approx(0.25)
    assert math.isnan(result.reduction("content"))
    assert methods["metric"].as_dict()["judged"]["hits"] == 3
