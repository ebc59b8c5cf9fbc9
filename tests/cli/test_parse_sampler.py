"""Models, devices and adjoints by name."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.cli.parse_sampler import adjoint_of, check_memory, device_of, sampler_of
from adjointdpm.pipelines.text_device import encoders_apart
from tests.tiny.families import of
from tests.tiny.second_device import opened


def test_devices_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device_of("auto") == torch.device("cpu")
    for text in ("foo", "cuda:99", "", "meta", "cpu:-3x"):
        with pytest.raises(adp.InputError, match="cannot be used here"):
            device_of(text)
    monkeypatch.setenv("LOCAL_RANK", "77")
    with pytest.raises(adp.InputError, match="'cuda:77' cannot be used here"):
        device_of("cuda")


def test_memory_is_estimated_before_the_work(emoji):
    check_memory(emoji, 4, 4)
    with pytest.raises(
        adp.InputError, match=r"1000000000 images of 3 x 64 x 64 in 10 steps need at least .* GiB"
    ):
        check_memory(emoji, 10**9, 1)


def test_an_image_that_cannot_fit_is_refused_before_it_is_tried():
    """A map of the decoder's 32 channels at 60,000 x 60,000 pixels alone is 429 GiB."""
    with pytest.raises(
        adp.InputError, match=r"1 image of 3 x 60000 x 60000 .* at least 6.. GiB .* smaller ones"
    ):
        sampler_of("emoji", steps=2, guidance_scale=None, height=60_000, width=60_000)


@pytest.mark.parametrize("name", ["", "/dev/null", "a/b/c", "../x", "no such"])
def test_what_can_be_no_model(name):
    with pytest.raises(adp.InputError, match="neither a bundled one nor a folder"):
        sampler_of(name, steps=1, guidance_scale=None)


def test_adjoints_by_name():
    assert adjoint_of("checkpointed:3") == adp.Checkpointed(keep=3)
    assert adjoint_of("truncated:2") == adp.Truncated(last=2)
    assert adjoint_of("coarse:7") == adp.CoarseAdjoint(steps=7)
    assert adjoint_of("backprop") == adp.Backprop()
    assert adjoint_of("reversible") == adp.Reversible()
    assert adjoint_of("checkpointed:8GiB") == adp.Checkpointed(budget="8GiB")
    assert adjoint_of("drtune") == adp.DRTune()
    assert adjoint_of("drtune:5") == adp.DRTune(steps=5)
    assert adjoint_of("flowbp:sparse") == adp.FlowBP()
    assert adjoint_of("flowbp:bridge:6") == adp.FlowBP(connector="bridge", steps=6)
    assert adjoint_of("flowbp:lagrange") == adp.FlowBP(connector="lagrange")
    assert adjoint_of("leapalign") == adp.LeapAlign()
    assert adjoint_of("directalign") == adp.DirectAlign()
    assert adjoint_of("checkpointed:auto") == adp.Checkpointed(budget="auto")
    unreadable = ("truncated", "backprop:2", "coarse:x", "reversible:2", "checkpointed:8Gx", "coarse:8GiB")
    for text in (
        *unreadable,
        "flowbp",
        "flowbp:4",
        "flowbp:lagrange:4",
        "flowbp:bridge:x",
        "leapalign:2",
        "drtune:x",
    ):
        with pytest.raises(adp.InputError, match="cannot be read"):
            adjoint_of(text)
    for text in ("truncated:0", "coarse:0", "drtune:0", "flowbp:sparse:0", "checkpointed:99999999"):
        with pytest.raises(adp.InputError, match="the number of the adjoint"):
            adjoint_of(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"solver": "magic"}, "solver is one of"),
        ({"mixed_precision": "fp8"}, "mixed_precision is one of no, fp16, bf16"),
        ({"name": "/nowhere"}, "neither a bundled one nor a folder"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"name": "emoji/resnet", "solver": "pipeline"}, "whole pipeline"),
        (
            {"adjoint": "reversible"},
            "needs a reversible solver, but the solver is dpm\\+\\+; choose coupled:euler",
        ),
        ({"adjoint": "continuous", "solver": "pipeline"}, "need our own steps, but the solver is pipeline"),
        ({"adjoint": "leapalign", "solver": "pipeline"}, "choose another solver, or adjoint flowbp:sparse"),
        ({"adjoint": "drtune", "solver": "pipeline"}, "choose another solver, or adjoint flowbp:sparse"),
        ({"text_device": "moon"}, "the device 'moon' cannot be used here"),
    ],
)
def test_models_that_are_none(given, message):
    with pytest.raises(adp.InputError, match=message):
        sampler_of(**{"name": "emoji", "steps": 2, "guidance_scale": 1.0, **given})


def test_a_reversible_solver_and_a_budget_by_their_names():
    shared = {"steps": 2, "guidance_scale": 1.0, "solver": "coupled:midpoint"}
    sampler = sampler_of("emoji", adjoint="reversible", **shared)
    assert sampler.solver == adp.Coupled(adp.Midpoint())
    image = sampler(sampler.noise(1), sampler.encode("a cat").requires_grad_())
    image.mean().backward()
    assert sampler.stats.drift < 1e-4
    assert sampler_of("emoji", adjoint="checkpointed:1GiB", **shared).adjoint == adp.Checkpointed(
        budget="1GiB"
    )


@pytest.mark.parametrize("solver", ["dpm++", "pipeline"])
def test_text_encoders_on_a_device_of_their_own(monkeypatch, solver):
    there = opened(monkeypatch)
    shared = {"steps": 2, "guidance_scale": None, "solver": solver}
    whole, parted = sampler_of("emoji", **shared), sampler_of("emoji", text_device="lazy", **shared)
    assert not encoders_apart(whole.pipe)
    assert {weight.device for weight in parted.pipe.text_encoder.parameters()} == {there}
    assert parted.noise(1).device == torch.device("cpu")
    images = [each(each.noise(1), each.encode("a cat")) for each in (whole, parted)]
    torch.testing.assert_close(*images, rtol=0, atol=1e-5)


def test_a_device_for_the_text_encoders_of_a_model_without_any_raises(tmp_path):
    of("ddpm").make().save_pretrained(tmp_path)
    with pytest.raises(adp.InputError, match="DDPMPipeline has no text encoder to be put on cpu"):
        sampler_of(str(tmp_path), steps=1, guidance_scale=None, text_device="cpu")
