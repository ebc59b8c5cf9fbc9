"""Tuning for a metric leaves the untuned model as it was."""

import torch

from adjointdpm.metrics import Content
from adjointdpm.metrics.rewards import FunctionReward
from adjointdpm.tasks.sampling import network_of
from adjointdpm.tasks.tune.trainable_weights import Subset
from adjointdpm.tasks.tune.tune_to_metric import TuneToMetric
from tests.tiny.metrics import bright_for_long_prompts
from tests.tiny.tunes import PROMPTS, colours, sampler


def test_what_is_kept_is_the_untuned_models_image_of_the_same_noise(tmp_path):
    ours = sampler()
    leaves = Subset(("*.to_k.weight",)).attach(network_of(ours), 0)
    task = TuneToMetric(ours, Content(colours), PROMPTS, leaves, seed=4)
    assert task.losses(0, [0, 1]).values.tolist() == [0.0, 0.0]  # nothing has changed yet
    with torch.no_grad():
        for leaf in leaves.values():
            leaf.add_(0.3 * torch.randn_like(leaf))
    moved = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    away = task.losses(0, [0, 1]).values.detach()
    assert bool((away > 0).all())
    assert all(torch.equal(leaf, moved[name]) for name, leaf in leaves.items())
    # Fresh noise each step, the same for the same step, item by item.
    assert not torch.equal(task.losses(1, [0, 1]).values.detach(), away)
    assert float((task.losses(0, [1]).values.detach() - away[1:]).abs()) < 1e-3 * float(away[1])


def test_a_reward_reads_the_prompt_of_each_item():
    ours = sampler()
    leaves = Subset(("*.to_k.weight",)).attach(network_of(ours), 0)
    reward, prompts = FunctionReward(bright_for_long_prompts), [PROMPTS[0], PROMPTS[0] + " " + PROMPTS[1]]
    plain = TuneToMetric(ours, lambda images: images.mean((1, 2, 3)), prompts, leaves, seed=4)
    asked = TuneToMetric(ours, reward, prompts, leaves, seed=4)
    for items in ([0, 1], [1]):
        values, bright = (each.losses(0, items).values.detach() for each in (asked, plain))
        assert torch.allclose(values, -bright * torch.tensor([len(prompts[i]) for i in items]))
