"""Weights that a network does not have are refused."""

import pytest

import adjointdpm as adp
from adjointdpm.metrics import Chroma
from adjointdpm.tasks import RunOptions
from adjointdpm.tasks.tune.trainable_weights import Lora, Subset
from adjointdpm.tasks.tune.tune import tune
from tests.tiny.tunes import HELD_OUT, PROMPTS, sampler


@pytest.mark.parametrize(
    ("weights", "message"),
    [(Subset(("*.nothing",)), "no weight"), (Lora(lora_layers=("nothing",)), "no LoRA")],
)
def test_weights_that_are_not_there(tmp_path, weights, message):
    with pytest.raises(adp.InputError, match=message):
        tune(
            sampler(),
            Chroma(),
            PROMPTS,
            HELD_OUT,
            output=tmp_path,
            weights=weights,
            run=RunOptions(quiet=True),
        )
