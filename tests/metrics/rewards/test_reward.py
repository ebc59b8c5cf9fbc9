"""Rewards as metrics: their sign, weights and thresholds, row by row, and prompts that must matter."""

import pytest
import torch
from torch.autograd import gradcheck

import adjointdpm as adp
from adjointdpm.metrics import Pixels, beside, for_prompts
from adjointdpm.metrics.rewards import FunctionReward, Reward, check_prompts_matter
from adjointdpm.metrics.rewards.reward import reads_prompts
from tests.tiny.metrics import random_images

PROMPTS = ["a cat", "a long-haired cat"]


def counted(images, prompts):
    """The image's mean square times the prompt's length."""
    return images.square().mean((1, 2, 3)) * images.new_tensor([len(each) for each in prompts])


class Plainly(Reward):
    reads_prompts = False

    def scores(self, images, prompts):
        return images.mean((1, 2, 3))


def test_a_sum_of_rewards_and_paired_metrics_is_the_sum_row_by_row():
    x, others = random_images(), random_images(seed=1)
    metric = 0.5 * FunctionReward(counted) + 2 * Pixels() - FunctionReward(counted).at_least(0.0)
    bound = beside(for_prompts(metric, PROMPTS), others)
    scores = counted(x, PROMPTS)
    expected = -0.5 * scores + 2 * (x - others).square().mean((1, 2, 3))
    assert torch.allclose(bound(x), expected, rtol=1e-12)
    assert gradcheck(bound, x.clone().requires_grad_(), fast_mode=True)
    swapped = for_prompts(FunctionReward(counted), PROMPTS[::-1])
    assert torch.equal(swapped(x), -counted(x, PROMPTS[::-1]))
    assert torch.equal(for_prompts(Pixels(), PROMPTS).beside(others)(x), Pixels().beside(others)(x))


def test_a_threshold_has_no_gradient_where_it_is_reached():
    x = random_images(4).requires_grad_()
    scores = counted(x, PROMPTS[:1] * 4)
    middle = float(scores.detach().median())
    values = FunctionReward(counted).at_least(middle).for_prompts(PROMPTS[:1])(x)
    assert torch.allclose(values, (middle - scores).clamp(min=0), rtol=1e-12)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    reached = scores >= middle
    assert 0 < int(reached.sum()) < 4
    assert not gradient[reached].any()
    assert gradient[~reached].abs().amax((1, 2, 3)).gt(0).all()


def test_a_reward_without_prompts_is_an_error_unless_it_reads_none():
    x = random_images()
    for metric in (FunctionReward(counted), FunctionReward(counted).at_least(1.0)):
        with pytest.raises(adp.InputError, match="reads the prompts of the images"):
            metric(x)
    assert torch.equal(Plainly()(x), -x.mean((1, 2, 3)))
    assert torch.equal(Plainly().at_least(0.6)(x), (0.6 - x.mean((1, 2, 3))).relu())
    for wrong in ("a cat", []):
        with pytest.raises(adp.InputError, match="prompts are a list of at least one text"):
            FunctionReward(counted).for_prompts(wrong)
    with pytest.raises(adp.InputError, match="3 prompts for 2 images"):
        FunctionReward(counted).for_prompts(["a"] * 3)(x)


def test_a_reward_that_ignores_different_prompts_is_refused():
    def blind(images, prompts):
        return images.mean((1, 2, 3))

    device = torch.device("cpu")
    check_prompts_matter(FunctionReward(counted) + Pixels(), PROMPTS, device)
    check_prompts_matter(FunctionReward(blind), PROMPTS[:1] * 2, device)
    check_prompts_matter(Plainly(), PROMPTS, device)
    for metric in (FunctionReward(blind) + Pixels(), FunctionReward(blind).at_least(3.0)):
        with pytest.raises(adp.InputError, match="the reward blind gives the same value for 'a cat' and"):
            check_prompts_matter(metric, PROMPTS, device)
    assert reads_prompts(Pixels() + FunctionReward(blind))
    assert not reads_prompts(Pixels())
