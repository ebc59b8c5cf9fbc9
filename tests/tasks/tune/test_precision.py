"""Weights are trained in float32 over a network of any dtype, with plain autograd's gradient."""

import itertools

import pytest
import torch
from safetensors.torch import load_file

import adjointdpm as adp
from adjointdpm.metrics import Chroma
from adjointdpm.tasks import RunOptions
from adjointdpm.tasks.sampling import network_of
from adjointdpm.tasks.tune.adjoint_matching import AdjointMatching
from adjointdpm.tasks.tune.precision import scaled
from adjointdpm.tasks.tune.reference_distance import ReferenceDistance
from adjointdpm.tasks.tune.trainable_weights import Lora, Subset
from adjointdpm.tasks.tune.tune import TuneSettings, tune
from adjointdpm.tasks.tune.tune_to_metric import TuneToMetric
from tests.tiny.families import of

WEIGHTS = [Lora(rank=2), Subset(("*.to_k.weight", "conv_in.*"))]


def half(dtype, **settings):
    pipe = of("sd").make().to(dtype)
    return of("sd").sampler(pipe, steps=3, guidance_scale=3.0, **settings)


def gradient(ours, weights, **way):
    leaves = weights.attach(network_of(ours), 0)
    with torch.no_grad():
        for i, leaf in enumerate(leaves.values()):
            leaf.add_(0.02 * torch.randn(leaf.shape, generator=torch.Generator().manual_seed(i)))
    loss = TuneToMetric(ours, Chroma(), ["a cat"], leaves, **way).losses(0, [0]).values.sum()
    return leaves, torch.autograd.grad(loss, list(leaves.values()))


@pytest.mark.parametrize("weights", WEIGHTS, ids=["lora", "subset"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gradient_is_plain_autograds(weights, dtype):
    leaves, plain = gradient(half(dtype, adjoint=adp.Backprop()), weights)
    assert {leaf.dtype for leaf in leaves.values()} == {torch.float32}
    for adjoint in (adp.Checkpointed(), adp.Checkpointed(keep=1)):
        _, found = gradient(half(dtype, adjoint=adjoint), weights)
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert all(bool(each.any()) for each in plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "way",
    [{"matching": AdjointMatching(10.0, 2)}, {"guards": ReferenceDistance(1.0, 1.0)}],
    ids=["matching", "guards"],
)
def test_a_float32_lora_over_a_half_network_has_plain_autograds_gradient_of_every_loss(way, dtype):
    leaves, plain = gradient(half(dtype, adjoint=adp.Backprop()), WEIGHTS[0], **way)
    _, found = gradient(half(dtype), WEIGHTS[0], **way)
    assert {leaf.dtype for leaf in leaves.values()} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert all(bool(each.isfinite().all()) for each in plain)
    assert any(bool(each.any()) for each in plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_small_steps_are_not_rounded_away_and_the_network_keeps_its_dtype(tmp_path, dtype):
    ours = half(dtype)
    network = network_of(ours)
    before = {n: p.clone() for n, p in network.state_dict().items()}
    settings = TuneSettings(
        max_train_steps=3, learning_rate=3e-3, num_validation_images=1, validation_steps=1
    )
    validations = itertools.count()
    found = tune(
        ours, lambda images: images.square().mean((1, 2, 3)), ["a cat"], ["a pear"], output=tmp_path,
        weights=Subset(("*.to_k.weight",)), settings=settings, run=RunOptions(quiet=True),
        # The last weights are the best: what three small steps gain may be less than the images' rounding.
        validation_metric=lambda images: 0 * images.flatten(1).sum(1) - next(validations),
    )  # fmt: skip
    assert {n: p.dtype for n, p in network.state_dict().items()} == {n: p.dtype for n, p in before.items()}
    for name, master in load_file(found.artefact).items():
        assert master.dtype == torch.float32
        assert torch.equal(
            network.state_dict()[name], master.to(dtype)
        )  # what is run is the rounded master
        moved = (master != before[name].float()).float().mean()
        assert moved > 0.9
    noise = ours.noise(1, 5)
    other = half(dtype)
    network_of(other).load_state_dict(load_file(found.artefact), strict=False)
    with torch.no_grad():
        assert torch.equal(ours(noise, ours.encode("a pear")), other(noise, other.encode("a pear")))


def test_a_gradient_below_float16s_smallest_number_is_not_zero():
    """Of 1e-9 times a linear map: every entry of the cotangent is below 6e-8."""
    network = torch.nn.Linear(4, 4, bias=False).half()
    leaf = torch.randn(4, 4, requires_grad=True)
    x = torch.randn(1, 4)
    values = 1e-9 * (x.half() @ leaf.half()).float().sum(1)
    expected = 1e-9 * x.half().float().T.expand(4, 4)
    (plain,) = torch.autograd.grad(values.sum(), leaf, retain_graph=True)
    assert not plain.any()
    (found,) = torch.autograd.grad(scaled(values, [leaf], network).sum(), leaf)
    assert float((found - expected).norm()) < 0.01 * float(expected.norm())
    (large,) = torch.autograd.grad(
        scaled(values * 1e13, [leaf], network).sum(), leaf
    )  # 2^16 would overflow
    assert float((large / 1e13 - expected).norm()) < 0.01 * float(expected.norm())
    with pytest.raises(adp.NonFiniteError, match="overflows float16"):
        torch.autograd.grad(scaled(values * 1e20, [leaf], network).sum(), leaf)
