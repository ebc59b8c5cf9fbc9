"""A training leaves everything of a network but what it trained as it was: adapters, flags, modes, names."""

import warnings

import peft
import pytest
import torch

import adjointdpm as adp
from adjointdpm.metrics import Chroma
from adjointdpm.tasks import RunOptions
from adjointdpm.tasks.sampling import network_of
from adjointdpm.tasks.tune.adapters import NetworkState
from adjointdpm.tasks.tune.trainable_weights import Lora, Subset
from adjointdpm.tasks.tune.tune import TuneSettings, tune
from tests.tiny.families import of

SETTINGS = TuneSettings(max_train_steps=2, learning_rate=0.01, num_validation_images=1, validation_steps=1)


def sampler(pipe):
    return of("sd").sampler(pipe, steps=2, guidance_scale=3.0)


def with_adapters(*names):
    """A pipeline with adapters of a user's own, the first at half its strength, and layers of their own."""
    pipe = of("sd").make()
    for i, name in enumerate(names):
        torch.manual_seed(i)
        layers = ["to_q", "conv1"] if i == 0 else ["to_v"]
        config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=layers, init_lora_weights=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of peft, that there are several
            pipe.unet.add_adapter(config, adapter_name=name)
    pipe.set_adapters(list(names), [0.5] + [1.0] * (len(names) - 1))
    return pipe


def described(network):
    """Everything of a network that a training may not change, apart from the values of its weights."""
    tuners = [m for m in network.modules() if hasattr(m, "merged_adapters")]
    return (
        {n: (p.requires_grad, p.dtype) for n, p in network.named_parameters()},
        {n: (type(m).__name__, m.training) for n, m in network.named_modules()},
        [(m._active_adapter, m.merged_adapters, m._disable_adapters, dict(m.scaling)) for m in tuners],
        list(getattr(network, "peft_config", {})),
    )


def image(ours):
    noise = ours.noise(1, 3)
    with torch.no_grad():
        return ours(noise, ours.encode("a pear"))


def run(ours, folder, metric=None, **more):
    return tune(
        ours,
        metric or Chroma(),
        ["a cat"],
        ["a pear"],
        output=folder,
        settings=SETTINGS,
        run=RunOptions(quiet=True),
        **more,
    )


@pytest.mark.parametrize("state", ["active", "fused", "disabled"])
def test_earlier_adapters_stay_in_training_in_the_reference_and_afterwards(tmp_path, state):
    pipe = with_adapters("first", "adjointdpm")  # the second has the name that ours would have
    network, ours = pipe.unet, sampler(pipe)
    network.train()
    network.conv_in.eval()
    network.conv_out.requires_grad_(False)
    if state == "fused":
        pipe.fuse_lora()
    if state == "disabled":
        pipe.disable_lora()
    before, plain = described(network), image(ours)
    leaves = Lora(rank=1).attach(network_of(ours), 0)
    assert torch.equal(image(ours), plain)  # B is zero: the reference has all that was active
    assert len(leaves) > 0
    now = described(network)
    assert all(now[0][name][1] == dtype for name, (_, dtype) in before[0].items() if name in now[0])
    gradient = torch.autograd.grad(
        ours(ours.noise(1, 3), ours.encode("a pear")).sum(), list(leaves.values())
    )
    assert any(bool(each.any()) for each in gradient)
    state_of = NetworkState.of(network)
    assert "adjointdpm_2" in state_of.adapters


@pytest.mark.parametrize("fail", [False, True])
def test_a_tune_adds_its_adapter_beside_the_others_or_nothing_if_it_fails(tmp_path, fail):
    pipe = with_adapters("first", "adjointdpm")
    network, ours, calls = pipe.unet, sampler(pipe), []
    before, plain = described(network), image(ours)

    def metric(images):
        calls.append(1)
        if fail and len(calls) > 6:
            raise RuntimeError("a metric that breaks")
        return images.square().mean((1, 2, 3))

    if fail:
        with pytest.raises(adp.AdjointDPMError, match="a metric that breaks"):
            run(ours, tmp_path, metric)
        assert described(network) == before
        assert torch.equal(image(ours), plain)
        return
    found = run(ours, tmp_path, metric, instance_image=torch.rand(3, 8, 8))
    after = described(network)
    assert after[3] == ["first", "adjointdpm", "adjointdpm_2"]
    assert network.up_blocks[0].resnets[0].conv1.active_adapters == ["first", "adjointdpm"]
    assert {n: after[0][n] for n in before[0] if n in after[0]} == {
        n: each for n, each in before[0].items() if n in after[0]
    }
    assert torch.equal(
        found.methods["untuned"].images, sampled_with(with_adapters("first", "adjointdpm"), ours)
    )
    # The file holds the new adapter alone: with the earlier two it gives the same image.
    fresh = with_adapters("first", "adjointdpm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fresh.load_lora_weights(found.artefact.parent, adapter_name="new")
    (adapter,) = (fresh.unet.peft_config[n] for n in fresh.unet.peft_config if n == "new")
    assert adapter.r == 4
    fresh.set_adapters(["first", "adjointdpm", "new"], [0.5, 1.0, 1.0])
    assert torch.equal(image(sampler(fresh)), image(ours))


def sampled_with(pipe, ours):
    from adjointdpm.optimization.seeds import key
    from adjointdpm.tasks.sampling import noise_of

    again = sampler(pipe)
    with torch.no_grad():
        return again(noise_of(again, [key(0, "held out", 0, 0)]), again.encode(["a pear"]))


def test_fused_adapters_stay_fused_and_the_new_one_joins_them(tmp_path):
    pipe = with_adapters("first", "other")
    network, ours = pipe.unet, sampler(pipe)
    weight = network.conv_in.weight.detach().clone()
    pipe.fuse_lora()
    found = run(ours, tmp_path)
    assert (found.methods["metric"].images - sampled_with(pipe, ours)).abs().max() < 1e-5
    layers = [m for m in network.modules() if hasattr(m, "merged_adapters") and "other" in m.lora_A]
    assert layers
    assert all(layer.merged_adapters == ["other", "adjointdpm"] for layer in layers)
    assert torch.equal(network.conv_in.weight, weight)


@pytest.mark.parametrize("weights", [Lora(), Subset(("*.to_k.weight", "conv_in.*"))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_without_adapters_has_its_own_names_and_values_again_after_an_error(
    tmp_path, weights, dtype
):
    pipe = of("sd").make().to(dtype)
    network, ours = pipe.unet, sampler(pipe)
    before = described(network), {n: p.clone() for n, p in network.state_dict().items()}

    calls = []

    def metric(images):
        calls.append(1)
        if len(calls) > 6:
            raise KeyboardInterrupt
        return images.square().mean((1, 2, 3))

    with pytest.raises(BaseException, match=r"interrupted|^$"):
        run(ours, tmp_path, metric, weights=weights)
    assert described(network) == before[0]
    assert not hasattr(network, "peft_config")
    assert not network._hf_peft_config_loaded
    assert all(torch.equal(p, before[1][n]) for n, p in network.state_dict().items())
    assert set(network.state_dict()) == set(before[1])
