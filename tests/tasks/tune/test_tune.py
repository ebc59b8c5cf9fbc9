"""Tuning weights: the untuned model is untouched by it, files load elsewhere, the loss is the textbook's."""

import json
import math

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import Prediction
from adjointdpm.metrics import Chroma, Content, Style
from adjointdpm.tasks.sampling import network_of
from adjointdpm.tasks.tune.denoising_loss import Denoise
from adjointdpm.tasks.tune.trainable_weights import Lora, Subset
from adjointdpm.tasks.tune.tune import TuneSettings, tune
from adjointdpm.tasks.tune.tune_to_metric import TuneToMetric, untuned
from tests.tiny.families import FAMILIES


def family(name="sd"):
    return next(each for each in FAMILIES if each.name == name)


def sampler(pipe=None, **settings):
    return family().sampler(pipe or family().make(), **{"steps": 2, "guidance_scale": 3.0} | settings)


def colours(images):
    return [images]


PROMPTS, HELD_OUT = ["a cat", "a dog"], ["a pear"]


def test_a_tuned_lora_lowers_the_metric_and_gives_the_same_picture_elsewhere(tmp_path):
    pipe = family().make()
    ours = sampler(pipe)
    settings = TuneSettings(
        max_train_steps=10, learning_rate=0.005, num_validation_images=1, validation_steps=2
    )
    found = tune(ours, Chroma(), PROMPTS, HELD_OUT, output=tmp_path, settings=settings, quiet=True)
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
    read = json.loads((tmp_path / "result.json").read_text())
    assert read["ways"]["metric"]["distances"]["metric"] == found.ways["metric"].distances["metric"]
    assert "http" not in (tmp_path / "index.html").read_text()


def test_what_is_kept_is_the_untuned_models_picture_of_the_same_noise(tmp_path):
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


def test_weights_come_back_after_an_error():
    ours = sampler()
    leaves = Subset(("*.to_k.weight",)).attach(network_of(ours), 0)
    start = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    before = {name: leaf.detach().clone() for name, leaf in leaves.items()}

    def fail():
        with untuned(leaves, start):
            assert all(not leaf.any() for leaf in leaves.values())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(torch.equal(leaf, before[name]) for name, leaf in leaves.items())


def test_the_denoising_loss_is_the_textbooks():
    """Zero for a network that knows the answer, and the mean square of the error otherwise."""
    ours = sampler()
    model = ours.model
    picture = torch.rand(ours.image_shape)
    task = Denoise(ours, picture, "a cat", {}, items=3, seed=1)
    seen = []

    class Known(torch.nn.Module):
        prediction = Prediction.EPS

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, t, cond):
            (time,) = model.schedule.at(t.reshape(1))
            assert "negative_prompt_embeds" not in cond
            seen.append(float(t))
            return (x - time.alpha * task.x0) / time.sigma + 0.5

    model.denoiser = Known()
    values = task.losses(0, [0, 1, 2]).values
    assert values.tolist() == pytest.approx([0.25] * 3, rel=1e-2)
    assert len(set(seen)) == 3
    Known.prediction = Prediction.X0
    assert float(task.losses(0, [0]).values) > 0.3


def test_beside_the_denoising_loss_and_a_resumption(tmp_path):
    settings = TuneSettings(
        max_train_steps=3, learning_rate=0.01, num_validation_images=1, checkpointing_steps=1
    )
    picture = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    metric = Style(colours, picture) + 0.1 * Content(colours)

    def run(**more):
        ours = sampler()
        return tune(
            ours, metric, PROMPTS, HELD_OUT, output=tmp_path, settings=settings, picture=picture,
            measures={"style": Style(colours, picture), "content": Content(colours)},
            picture_prompt="a dog", quiet=True, **more,
        )  # fmt: skip

    first = run()
    assert list(first.ways) == ["untuned", "denoising", "metric"]
    assert (
        first.ways["untuned"].distances["content"] == 0
    )  # nothing to be less than: no percentage, no error
    assert math.isnan(first.reduction("content"))
    assert "nan" not in (tmp_path / "index.html").read_text()
    again = run(resume=True)
    for way in first.ways:
        assert torch.equal(first.ways[way].images, again.ways[way].images)
    other = TuneSettings(max_train_steps=4, num_validation_images=1)
    with pytest.raises(adp.InputError, match="was made with"):
        tune(sampler(), metric, PROMPTS, HELD_OUT, output=tmp_path, settings=other, quiet=True, resume=True)


@pytest.mark.parametrize(
    ("weights", "message"), [(Subset(("*.nothing",)), "no weight"), (Lora(modules=("nothing",)), "no LoRA")]
)
def test_weights_that_are_not_there(tmp_path, weights, message):
    with pytest.raises(adp.InputError, match=message):
        tune(sampler(), Chroma(), PROMPTS, HELD_OUT, output=tmp_path, weights=weights, quiet=True)


def test_a_metric_without_a_gradient_is_refused_before_the_work(tmp_path):
    for metric in (lambda images: images.detach().mean((1, 2, 3)), lambda images: images.mean()):
        with pytest.raises(adp.InputError, match="metric"):
            tune(sampler(), metric, PROMPTS, HELD_OUT, output=tmp_path, quiet=True)


def test_weights_that_cannot_be_attached_are_refused_before_the_first_sampling(tmp_path):
    ours = sampler()
    network = network_of(ours)
    before = [(name, weight.requires_grad) for name, weight in network.named_parameters()]
    calls = []
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    for weights in (Subset(("no_such_weight",)), Lora(2, modules=("no_such_layer",))):
        with pytest.raises(adp.InputError, match="no_such"):
            tune(ours, Chroma(), PROMPTS, HELD_OUT, output=tmp_path, weights=weights)
    handle.remove()
    assert not calls
    assert [(name, weight.requires_grad) for name, weight in network.named_parameters()] == before
