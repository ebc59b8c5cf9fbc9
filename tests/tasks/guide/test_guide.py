"""Guidance: the look-ahead's gradient against finite differences, norms, and calls that are counted."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.metrics.rewards import FunctionReward
from adjointdpm.tasks import RunOptions, load_result
from adjointdpm.tasks.guide import look_ahead as trajectory
from adjointdpm.tasks.guide.guide import GuideSettings, guide
from adjointdpm.tasks.guide.look_ahead import LookAhead, guided
from adjointdpm.tasks.sampling import noise_of
from tests.tiny.guides import GOAL, start
from tests.tiny.metrics import bright_for_long_prompts
from tests.tiny.tasks import mixture_sampler


def test_guidance_lowers_the_metric_at_the_norm_of_the_noise():
    z, g = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    moved = trajectory._moved(z, g, 0.3)
    assert torch.allclose(moved.flatten(1).norm(dim=1), z.flatten(1).norm(dim=1))
    assert float(((moved - z) * g).sum()) < 0
    sampler = mixture_sampler(6)
    noise, cond = start(sampler, 4)
    plain = float(GOAL(sampler(noise, cond)).mean().detach())
    for steps in (1, 3):
        found = guided(sampler, GOAL, noise, cond, LookAhead(look_ahead=steps, strength=0.3))
        assert float(GOAL(found.images).mean()) < 0.8 * plain


def test_a_reward_reads_the_prompt_of_each_image(tmp_path):
    """Every method's metric is that of its own images and their prompts, two for each."""
    sampler, prompts = mixture_sampler(5), ["x", "xyz"]
    reward = FunctionReward(bright_for_long_prompts)
    settings = GuideSettings(max_train_steps=2, ahead=LookAhead(look_ahead=2), train_batch_size=3)
    found = guide(sampler, reward, prompts, output=tmp_path, settings=settings, run=RunOptions(quiet=True))
    for each in found.methods.values():
        expected = -each.images.mean((1, 2, 3)) * torch.tensor([1.0, 1.0, 3.0, 3.0])
        assert torch.allclose(each.values["metric"], expected)
    assert found.methods["noise"].losses[0] == pytest.approx(
        float(found.methods["no guidance"].means["metric"])
    )
    blind = FunctionReward(lambda images, prompts: images.mean((1, 2, 3)))
    with pytest.raises(adp.InputError, match="ignores the prompt"):
        guide(sampler, blind, prompts, output=tmp_path / "blind", settings=settings)


def test_three_methods_at_equal_calls(tmp_path):
    sampler = mixture_sampler(5)
    settings = GuideSettings(max_train_steps=8, ahead=LookAhead(look_ahead=2), num_validation_images=3)
    found = guide(sampler, GOAL, ["x"], output=tmp_path, settings=settings, run=RunOptions(quiet=True))
    noise, _ = adp.load_noise(found.artefact)
    first = noise_of(sampler, [adp.optimization.seeds.key(0, "guide", i) for i in range(3)])
    assert torch.allclose(noise.norm(dim=1), first.norm(dim=1))
    assert not torch.allclose(noise, first, rtol=1e-2)
    plain = float(found.methods["no guidance"].means["metric"])
    assert float(found.methods["noise"].means["metric"]) < 0.9 * plain
    calls = {name: each.calls for name, each in found.methods.items() if name != "no guidance"}
    assert calls["noise"] == 8 * 10 + 5
    assert max(calls.values()) <= 1.25 * min(calls.values())
    assert load_result(tmp_path)["result"]["methods"]["one step"]["calls"] == calls["one step"]
    again = guide(
        sampler, GOAL, ["x"], output=tmp_path, settings=settings, run=RunOptions(quiet=True, resume=True)
    )
    for name, each in found.methods.items():
        assert torch.equal(again.methods[name].images, each.images)


def test_without_baselines_a_stopped_run_counts_the_calls_it_made(tmp_path):
    asked = iter([False, False, True])
    settings = GuideSettings(max_train_steps=8, num_validation_images=1, baselines=False)
    run = RunOptions(quiet=True, stop=lambda: next(asked))
    found = guide(mixture_sampler(5), GOAL, ["x"], output=tmp_path, settings=settings, run=run)
    assert list(found.methods) == ["no guidance", "noise"]
    assert found.methods["noise"].calls == 2 * 2 * 5 + 5
    assert len(found.methods["noise"].losses) == 3
    assert load_result(tmp_path)["settings"]["baselines"] is False


def test_settings_out_of_range():
    for value in (float("nan"), float("inf"), 0.0, -1.0):
        with pytest.raises(adp.InputError, match="learning_rate must be above 0"):
            GuideSettings(learning_rate=value)
        with pytest.raises(adp.InputError, match="strength must be above 0"):
            LookAhead(strength=value)
    with pytest.raises(adp.InputError, match="at least 1"):
        LookAhead(look_ahead=0)
    with pytest.raises(adp.InputError, match="first < last"):
        LookAhead(first=0.5, last=0.5)
