"""A preference is its network's own number, through the pixels of transformers' own image processor."""

import json

import pytest
import torch
from torch.autograd import gradcheck

import adjointdpm as adp
from adjointdpm.metrics.rewards import Preference, read_preference
from tests.tiny.classifiers import MEAN, PLAIN, STD, folder, resnet  # noqa: F401
from tests.tiny.metrics import random_images


def test_the_reward_is_the_networks_own_number_and_differentiable(folder):  # noqa: F811
    path = str(folder(PLAIN, names=("preference",)))
    reward, x = read_preference(path), random_images(side=32)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    own = resnet(names=("preference",))((x.float() - mean) / std).logits[:, 0]
    assert torch.allclose(reward.scores(x.float()), own, rtol=1e-5)
    assert torch.equal(reward(x.float()), -reward.scores(x.float()))
    assert torch.equal(reward.for_prompts(["a", "b"])(x.float()), reward(x.float()))
    bar = float(own.mean().detach())
    assert torch.allclose(reward.at_least(bar)(x.float()), (bar - own).relu(), atol=1e-6)
    assert not any(each.requires_grad for each in reward.model.parameters())
    exact = Preference(reward.model.double(), reward.preprocess)
    assert gradcheck(exact, random_images(side=40).requires_grad_(), fast_mode=True)


def test_what_is_no_preference_is_refused(folder, tmp_path):  # noqa: F811
    with pytest.raises(adp.InputError, match=r"one number an image, but .* has 4; pass a classifier with"):
        read_preference(str(folder(PLAIN)))
    with pytest.raises(adp.InputError, match=r"the preference .* fails on an image"):
        read_preference(str(folder(PLAIN, channels=1, names=("a",))))
    with pytest.raises(adp.InputError, match="cannot be read"):
        read_preference(str(folder(None, names=("a",))))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(adp.InputError):
        read_preference(str(tmp_path))
