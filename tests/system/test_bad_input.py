"""Each mistake is one clear error, raised before any long work."""

import json

import pytest
import torch

import adjointdpm as adp
from adjointdpm.analysis.gradients import gradients
from adjointdpm.files.images import output_folder
from adjointdpm.flow.denoisers import Prediction
from adjointdpm.pipelines.pipeline_model import UNetDenoiser
from adjointdpm.zoo import verified
from tests.conftest import BareModel, scaled_linear, tiny_unet, unet_sampler


class Image(BareModel):
    """Latents shown as three channels, so that metrics apply."""

    def decode(self, latents, run=adp._types.direct):
        return latents[:, [0, 1, 0]]


def image_sampler(**settings):
    schedule = adp.VPDiscrete(scaled_linear())
    model = Image(schedule, UNetDenoiser(tiny_unet(), Prediction.EPS), (2, 4, 4))
    model.image_shape = (3, 4, 4)
    return adp.FlowSampler(model, steps=4, **settings)


def ask(sampler, metric=lambda images: images.mean((1, 2, 3)), variables=("noise",)):
    return gradients(sampler, metric, sampler.noise(2), sampler.encode(["a", "b"]), variables)


def calls_of(sampler):
    """Counts denoiser calls, to show that an error came before the work."""
    calls = []
    sampler.model.denoiser.network.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps(steps):
    with pytest.raises(adp.InputError, match="at least 1"):
        unet_sampler(steps=steps)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([999.0, 500, 600, 0], r"time 2 \(600\) follows time 1 \(500\)"),
        ([999.0, 500, 500, 0], "decrease strictly"),
        ([0.0, 500, 999], "decrease strictly"),
        ([999.0], "at least two times"),
        ([1200.0, 0.0], "from -1 to 999"),
        ([999.0, -2.0], "from -1 to 999"),
        ([999.0, float("nan"), 0.0], "decrease strictly"),
    ],
)
def test_grids_that_are_none(times, message):
    with pytest.raises(adp.InputError, match=message):
        unet_sampler(grid=torch.tensor(times))


def test_a_log_snr_grid_from_infinite_noise():
    with pytest.raises(adp.InputError, match="uniform"):
        adp.grids.log_snr(adp.RectifiedFlow(), 5)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (torch.zeros(1, 2, 4, 5, dtype=torch.float64), r"\(batch, 2, 4, 4\)"),
        (torch.zeros(2, 4, 4, dtype=torch.float64), r"\(batch, 2, 4, 4\)"),
        (torch.zeros(1, 2, 4, 4, dtype=torch.float16), "float32 or float64"),
        (torch.zeros(1, 2, 4, 4, dtype=torch.int64), "float32 or float64"),
    ],
)
def test_noise_of_the_wrong_shape_or_dtype(noise, message):
    sampler = unet_sampler()
    calls = calls_of(sampler)
    with pytest.raises(adp.InputError, match=message):
        sampler(noise, sampler.encode("a"))
    assert not calls


def test_conditioning_for_another_batch_or_of_integers():
    sampler = unet_sampler()
    with pytest.raises(adp.InputError, match="batch of 2 and the noise for 3"):
        sampler(sampler.noise(3), sampler.encode(["a", "b"]))
    with pytest.raises(adp.InputError, match="floating point"):
        sampler(sampler.noise(1), sampler.encode("a").map(lambda t: t.long()))


def test_a_name_the_conditioning_does_not_have():
    with pytest.raises(KeyError, match="it holds prompt_embeds"):
        unet_sampler().encode("a")["prompt"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_from_the_denoiser_names_the_step(bad):
    sampler = unet_sampler(steps=6, solver=adp.Euler())
    calls = []

    def spoil(module, args, out):
        calls.append(1)
        return (out[0] * bad,) if len(calls) == 4 else out

    sampler.model.denoiser.network.register_forward_hook(spoil)
    with pytest.raises(adp.NonFiniteError, match="step 3 of 6"):
        sampler.latents(sampler.noise(1), sampler.encode("a"))
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda images: images.mean(), r"shape \(2,\), but returned \(\)"),
        (lambda images: images.mean((2, 3)), r"but returned \(2, 3\)"),
        (lambda images: 1.0, "but returned float"),
        (lambda images: images.detach().mean((1, 2, 3)), "no gradient"),
        (lambda images: (images > 0.5).float().mean((1, 2, 3)), "no gradient"),
    ],
)
def test_metrics_that_cannot_be_used(metric, message):
    sampler = image_sampler()
    calls = calls_of(sampler)
    with pytest.raises(adp.InputError, match=message):
        ask(sampler, metric)
    assert not calls


def test_a_metric_that_is_nan():
    sampler = image_sampler()
    calls = calls_of(sampler)
    with pytest.raises(adp.NonFiniteError, match="metric"):
        ask(sampler, lambda images: images.mean((1, 2, 3)) * float("nan"))
    assert not calls


def test_gradients_switched_off():
    sampler = image_sampler()
    calls = calls_of(sampler)
    with torch.no_grad(), pytest.raises(adp.InputError, match="switched off"):
        ask(sampler)
    assert not calls


def test_unknown_variables_and_frozen_weights():
    sampler = image_sampler()
    with pytest.raises(adp.InputError, match="noise, prompt_embeds"):
        ask(sampler, variables=("nose",))
    sampler.requires_grad_(False)
    with pytest.raises(adp.InputError, match="no weight requires a gradient"):
        ask(sampler, variables=("weights",))


def test_noise_gradient_of_truncated():
    sampler = image_sampler(adjoint=adp.Truncated(last=1))
    calls = calls_of(sampler)
    with pytest.raises(adp.InputError, match="Checkpointed"):
        ask(sampler)
    assert not calls
    assert ask(sampler, variables=("prompt_embeds",)).variables["prompt_embeds"].abs().max() > 0
    everything = ask(sampler.replace(adjoint=adp.Truncated(last=4)))
    assert torch.equal(
        everything.variables["noise"], ask(sampler.replace(adjoint=adp.Backprop())).variables["noise"]
    )


def test_time_gradient_of_truncated_and_continuous():
    for adjoint in (adp.Truncated(last=1), adp.CoarseAdjoint()):
        sampler = unet_sampler(adjoint=adjoint)
        grid = adp.grids.uniform(sampler.model.schedule, 4).requires_grad_()
        with pytest.raises(adp.InputError, match="time grid"):
            sampler.replace(grid=grid).latents(sampler.noise(1), sampler.encode("a"))


def test_weights_captured_by_a_closure():
    sampler = unet_sampler(steps=4, adjoint=adp.CoarseAdjoint())
    hidden = torch.ones((), dtype=torch.float64, requires_grad=True)
    calls = calls_of(sampler)
    sampler.model.denoiser.network.register_forward_hook(lambda module, args, out: (out[0] * hidden,))
    noise = sampler.noise(1).requires_grad_()
    with pytest.raises(adp.InputError, match=r"nn\.Parameter"):
        sampler.latents(noise, sampler.encode("a"))
    assert len(calls) == 1
    # The exact adjoints differentiate it like everything else.
    exact = [
        torch.autograd.grad(
            sampler.replace(adjoint=each).latents(noise, sampler.encode("a")).sum(), hidden
        )[0]
        for each in (adp.Backprop(), adp.Checkpointed())
    ]
    assert torch.equal(*exact)
    assert exact[0].abs() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adp.Checkpointed(keep=-1), "at least 0"),
        (lambda: adp.Checkpointed(keep=1, budget=10), "not both"),
        (lambda: adp.Checkpointed(budget="lots"), "8GiB"),
        (lambda: adp.Checkpointed(budget=0), "8GiB"),
        (lambda: adp.Truncated(last=0), "at least 1"),
        (lambda: adp.CoarseAdjoint(steps=0), "at least 1"),
        (lambda: adp.Continuous(trajectory="guessed"), "resolved"),
        (lambda: unet_sampler().replace(step=3), "unexpected keyword argument 'step'"),
        (lambda: unet_sampler().encode([]), "at least one prompt"),
    ],
)
def test_settings_that_cannot_be_used(make, message):
    with pytest.raises((adp.InputError, Exception), match=message) as error:
        make()
    assert isinstance(error.value, adp.InputError | TypeError) or "guessed" in str(error.value)


def test_unknown_prompt_words(emoji):
    with pytest.raises(adp.InputError, match="xylophone"):
        emoji.encode("a xylophone on a blue background")
    with pytest.raises(adp.InputError, match="quickly"):
        emoji.encode("a red apple", negative="quickly")


def test_missing_and_corrupt_model_files(tmp_path):
    (tmp_path / "weights").write_bytes(b"1234")
    (tmp_path / "MANIFEST.json").write_text(json.dumps({"weights": "0" * 64}))
    with pytest.raises(adp.InputError, match="damaged"):
        verified(tmp_path)
    (tmp_path / "weights").unlink()
    with pytest.raises(adp.InputError, match="missing"):
        verified(tmp_path)
    with pytest.raises(adp.InputError, match="emoji"):
        adp.load_bundled("imagenet")


def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(adp.InputError, match="cannot write"):
        output_folder(tmp_path / "file" / "folder")
