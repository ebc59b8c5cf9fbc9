"""Tuning weights: the untuned model is untouched by it, files load elsewhere, the loss is the textbook's."""

import math

import pytest
import torch
from safetensors.torch import load_file

import adjointdpm as adp
from adjointdpm.metrics import Chroma, Content, Style
from adjointdpm.metrics.rewards import FunctionReward
from adjointdpm.tasks import RunOptions, StoppedRunError, load_result
from adjointdpm.tasks.sampling import network_of
from adjointdpm.tasks.tune.trainable_weights import Lora, Subset
from adjointdpm.tasks.tune.tune import TuneSettings, tune
from tests.tiny.tunes import HELD_OUT, PROMPTS, colours, family, sampler


def test_a_tuned_lora_lowers_the_metric_and_gives_the_same_image_elsewhere(tmp_path):
    pipe = family().make()
    ours = sampler(pipe)
    settings = TuneSettings(
        max_train_steps=10, learning_rate=0.005, num_validation_images=1, validation_steps=2
    )
    found = tune(
        ours, Chroma(), PROMPTS, HELD_OUT, output=tmp_path, settings=settings, run=RunOptions(quiet=True)
    )
    assert found.reduction("metric") > 0  # on a prompt and noise that were not trained on
    fresh = family().make()
    fresh.load_lora_weights(tmp_path)
    with torch.no_grad():
        noise = ours.noise(1, 3)
        expected = ours(noise, ours.encode("a pear"))
        again = sampler(fresh)
        assert torch.equal(again(noise, again.encode("a pear")), expected)
        plain = sampler()
        assert not torch.equal(plain(noise, plain.encode("a pear")), expected)
    read = load_result(tmp_path)["result"]["methods"]["metric"]
    assert read["means"]["metric"]["mean"] == pytest.approx(found.methods["metric"].means["metric"])
    assert "http" not in (tmp_path / "index.html").read_text()


def test_beside_the_denoising_loss_and_a_resumption(tmp_path):
    settings = TuneSettings(
        max_train_steps=3, learning_rate=0.01, num_validation_images=1, checkpointing_steps=1
    )
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    metric = Style(colours, image) + 0.1 * Content(colours)

    def run(**more):
        ours = sampler()
        return tune(
            ours, metric, PROMPTS, HELD_OUT, output=tmp_path, settings=settings, instance_image=image,
            measures={"style": Style(colours, image), "content": Content(colours)},
            instance_prompt="a dog", run=RunOptions(quiet=True, **more),
        )  # fmt: skip

    first = run()
    assert list(first.methods) == ["untuned", "denoising", "metric"]
    assert (
        first.methods["untuned"].means["content"] == 0
    )  # nothing to be less than: no percentage, no error
    assert math.isnan(first.reduction("content"))
    assert "nan" not in (tmp_path / "index.html").read_text()
    again = run(resume=True)
    for name, each in first.methods.items():
        assert torch.equal(each.images, again.methods[name].images)
    other = TuneSettings(max_train_steps=4, num_validation_images=1)
    with pytest.raises(adp.InputError, match="was made with"):
        tune(
            sampler(),
            metric,
            PROMPTS,
            HELD_OUT,
            output=tmp_path,
            settings=other,
            run=RunOptions(quiet=True, resume=True),
        )


def test_batches_that_accumulate_are_one_large_batch(tmp_path):
    """Steps are the same to rounding, and no graph of more than one image is held."""

    def run(name, **sizes):
        ours = sampler()
        settings = TuneSettings(max_train_steps=3, num_validation_images=1, **sizes)
        found = tune(
            ours, Chroma(), PROMPTS, HELD_OUT, output=tmp_path / name, settings=settings,
            run=RunOptions(quiet=True),
        )  # fmt: skip
        return found.methods["metric"].losses

    assert len(PROMPTS) > 1
    whole = run("whole")
    parts = run("parts", train_batch_size=1, gradient_accumulation_steps=len(PROMPTS))
    single = run("single", train_batch_size=1)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert single != pytest.approx(whole, rel=1e-3)


def test_a_metric_without_a_gradient_is_refused_before_the_work(tmp_path):
    for metric in (lambda images: images.detach().mean((1, 2, 3)), lambda images: images.mean()):
        with pytest.raises(adp.InputError, match="metric"):
            tune(sampler(), metric, PROMPTS, HELD_OUT, output=tmp_path, run=RunOptions(quiet=True))


def test_weights_that_cannot_be_attached_are_refused_before_the_first_sampling(tmp_path):
    ours = sampler()
    network = network_of(ours)
    before = [(name, weight.requires_grad) for name, weight in network.named_parameters()]
    calls = []
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    for weights in (Subset(("no_such_weight",)), Lora(2, lora_layers=("no_such_layer",))):
        with pytest.raises(adp.InputError, match="no_such"):
            tune(ours, Chroma(), PROMPTS, HELD_OUT, output=tmp_path, weights=weights)
    handle.remove()
    assert not calls
    assert [(name, weight.requires_grad) for name, weight in network.named_parameters()] == before


WAYS = {
    "matching and an average": {
        "loss": "matching",
        "reward_scale": 50.0,
        "matching_steps": 1,
        "ema_decay": 0.5,
    },
    "value matching": {"loss": "value-matching", "matching_steps": 2},
    "guards and a warmup": {
        "kl_weight": 0.1,
        "norm_weight": 0.5,
        "lr_scheduler": "cosine_with_restarts",
        "lr_warmup_steps": 1,
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_bits(tmp_path, way):
    settings = TuneSettings(
        max_train_steps=4,
        learning_rate=0.01,
        num_validation_images=1,
        validation_steps=2,
        checkpointing_steps=1,
        **WAYS[way],
    )

    class EndError(Exception):
        pass

    def end(step, _):
        if step == 2:
            raise EndError

    def run(name, **more):
        return tune(
            sampler(), Chroma(), PROMPTS, HELD_OUT, output=tmp_path / name, settings=settings,
            run=RunOptions(quiet=True, **more),
        )  # fmt: skip

    whole = run("whole")
    with pytest.raises((EndError, StoppedRunError)):
        run("parts", report=end)
    parts = run("parts", resume=True)
    for name, each in whole.methods.items():
        assert torch.equal(each.images, parts.methods[name].images)
    assert len(set(whole.methods["metric"].losses)) == 5
    # Tensors rather than files: safetensors writes its metadata in any order.
    first, second = load_file(whole.artefact), load_file(parts.artefact)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    names = [each.name for each in sorted((tmp_path / "whole" / "validation").iterdir())]
    assert names == ["step_000000.png", "step_000002.png", "step_000004.png"]


def test_a_judge_that_is_in_no_loss_keeps_the_weights_and_ends_the_training(tmp_path):
    """The judge wants what the metric lowers, so the first weights are its best and two validations end the run."""
    settings = TuneSettings(
        max_train_steps=30, learning_rate=0.01, num_validation_images=1, validation_steps=1, patience=2
    )
    seen = []
    found = tune(
        sampler(), Chroma(), PROMPTS, HELD_OUT, output=tmp_path, settings=settings, validation_metric=-Chroma(),
        run=RunOptions(quiet=True, images=lambda step, name, images: seen.append((step, name, len(images)))),
    )  # fmt: skip
    assert len(found.methods["metric"].losses) == 3
    assert torch.equal(found.methods["metric"].images, found.methods["untuned"].images)
    assert seen == [(step, "validation", 1) for step in range(3)]


def test_what_does_not_fit_together_is_refused_before_the_work(tmp_path):
    with pytest.raises(adp.InputError, match="lower reward_scale"):
        TuneSettings(loss="matching", kl_weight=1.0)
    ours = adp.PipelineSampler(family().make(), steps=2)
    for settings in (TuneSettings(loss="matching"), TuneSettings(norm_weight=1.0)):
        with pytest.raises(adp.InputError, match="steps one by one"):
            tune(ours, Chroma(), PROMPTS, HELD_OUT, output=tmp_path, settings=settings)


def test_a_metric_that_is_not_finite_at_a_step_says_which(tmp_path):
    calls = []

    def metric(images):
        calls.append(1)
        return images.mean((1, 2, 3)) * (float("nan") if len(calls) > 12 else 1.0)

    settings = TuneSettings(max_train_steps=20, num_validation_images=1, validation_steps=100)
    with pytest.raises(
        StoppedRunError, match=r"stopped at step \d+ of 20: NonFiniteError: the metric returned \[nan"
    ):
        tune(
            sampler(),
            metric,
            PROMPTS,
            HELD_OUT,
            output=tmp_path,
            settings=settings,
            run=RunOptions(quiet=True),
        )


@pytest.mark.parametrize("wrong", ["dtype", "shape"])
def test_a_reward_of_another_dtype_is_refused_before_the_work(tmp_path, wrong):
    """Its message names the reward's own error, in one line."""
    weight = torch.ones(3, dtype=torch.float64)

    def reward(images, prompts):
        flat = images.mean((2, 3))
        return flat @ weight if wrong == "dtype" else flat.mean()

    with pytest.raises(adp.InputError, match="metric") as found:
        tune(sampler(), FunctionReward(reward), PROMPTS, HELD_OUT, output=tmp_path)
    assert "\n" not in str(found.value)
