"""What a tuning reports."""

import math

import pytest
import torch

from adjointdpm.tasks.evaluation import Rate
from adjointdpm.tasks.tune.result import Tuned, TuneResult


def test_the_reduction_is_relative_to_the_untuned_model(tmp_path):
    images = torch.zeros(1, 3, 2, 2)
    ways = {
        "untuned": Tuned(images, {"style": 4.0, "content": 0.0}, None, []),
        "metric": Tuned(images, {"style": 1.0, "content": 0.3}, Rate(3, 4), [2.0, 1.0]),
        "denoising": Tuned(images, {"style": 3.0, "content": 0.1}, None, []),
    }
    result = TuneResult(tmp_path, tmp_path / "lora.safetensors", ways, {})
    assert result.reduction("style") == pytest.approx(0.75)
    assert result.reduction("style", "denoising") == pytest.approx(0.25)
    assert math.isnan(result.reduction("content"))
    assert ways["metric"].as_dict()["judged"]["hits"] == 3
