"""Learning rates are those of diffusers' schedulers, step by step."""

from typing import get_args

import pytest
import torch
from diffusers.optimization import get_scheduler

import adjointdpm as adp
from adjointdpm.tasks.tune.learning_rate import Schedule, rate_of
from adjointdpm.tasks.tune.tune import TuneSettings


@pytest.mark.parametrize("name", get_args(Schedule))
def test_each_name_is_diffusers_own(name):
    warmup = 0 if name == "constant" else 3
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.02)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=10)
    ours = rate_of(name, 0.02, warmup, 10)
    for step in range(10):
        assert 0.02 * ours(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        theirs.step()


def test_bad_settings_raise():
    with pytest.raises(adp.InputError, match="constant_with_warmup"):
        TuneSettings(lr_scheduler="constant", lr_warmup_steps=2)
    with pytest.raises(adp.InputError, match="polynomial"):
        TuneSettings(lr_scheduler="polynomial", learning_rate=1e-9)
