"""A stock StableDiffusionPipeline as a vector field: the same bits as the pipeline itself."""

import diffusers
import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import Prediction
from adjointdpm.pipelines.pipeline_model import PipelineModel
from tests.conftest import tiny_pipeline

VP = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}


def cond_of(batch=1, scale=5.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    draw = lambda: torch.randn(batch, 5, 6, generator=generator).to(dtype)  # noqa: E731
    return adp.Cond(
        {
            "prompt_embeds": draw(),
            "negative_prompt_embeds": draw(),
            "guidance_scale": torch.tensor(scale, dtype=dtype),
        }
    )


def noise_of(batch=1, dtype=torch.float32):
    return torch.randn(batch, 2, 4, 4, generator=torch.Generator().manual_seed(9)).to(dtype)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("guided", [False, True])
def test_probe_and_direct_call_agree(guided, split):
    pipe, cond = tiny_pipeline(), cond_of()
    if not guided:
        cond = adp.Cond({"prompt_embeds": cond["prompt_embeds"]})
    results = []
    for direct in (False, True):
        sampler = adp.FlowSampler(
            PipelineModel(pipe, split, direct), steps=4, guidance_scale=5.0 if guided else 1.0
        )
        noise = noise_of().requires_grad_()
        leaves = [noise, *cond.requires_grad_().values(), *pipe.unet.parameters()]
        image = sampler(noise, cond)
        results.append((image, *torch.autograd.grad(image.square().sum(), leaves)))
    for a, b in zip(*(each[:2] for each in results), strict=True):
        assert torch.equal(a, b)
    # The pipeline repeats the embeddings in each call, so their gradients are added in another order.
    for a, b in zip(*(each[2:] for each in results), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * float(b.abs().max()) + 1e-9)


def ddim(**config):
    return diffusers.DDIMScheduler(**{**VP, "clip_sample": False, "steps_offset": 1, **config})


def dpm(**config):
    return diffusers.DPMSolverMultistepScheduler(**{**VP, "steps_offset": 1, **config})


@pytest.mark.parametrize(
    ("scheduler", "solver"),
    [
        (ddim(set_alpha_to_one=False), adp.Euler()),
        (ddim(prediction_type="v_prediction", timestep_spacing="trailing"), adp.Euler()),
        (ddim(beta_schedule="linear", prediction_type="sample"), adp.Euler()),
        (ddim(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing"), adp.Euler()),
        (dpm(), adp.DPMSolverPP(2)),
        (dpm(prediction_type="v_prediction", timestep_spacing="leading"), adp.DPMSolverPP(2)),
        (dpm(solver_order=1), adp.DPMSolverPP(1)),
    ],
    ids=["ddim", "ddim-v", "ddim-x0", "ddim-cosine", "dpm", "dpm-v", "dpm-1"],
)
def test_the_pipelines_own_sampler_is_reproduced(scheduler, solver):
    """The whole pipeline, its scheduler stepping, against our steps over the same times."""
    pipe, cond, noise = tiny_pipeline(scheduler), cond_of(), noise_of()
    theirs = pipe(
        prompt_embeds=cond["prompt_embeds"],
        negative_prompt_embeds=cond["negative_prompt_embeds"],
        guidance_scale=5.0,
        latents=noise,
        num_inference_steps=20,
        output_type="latent",
    ).images
    sampler = adp.FlowSampler.from_pipeline(pipe, solver=solver, grid=times_of(scheduler))
    with torch.no_grad():
        ours = sampler.latents(noise, cond)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def times_of(scheduler):
    """A scheduler's own times with the clean end it steps to."""
    times = scheduler.timesteps.to(torch.float64)
    if isinstance(scheduler, diffusers.DDIMScheduler) and not scheduler.config.set_alpha_to_one:
        return torch.cat([times, times.new_zeros(1)])
    return torch.cat([times, times.new_full((1,), -1)])


def test_from_pipeline_leaves_the_pipeline_as_it_was():
    pipe = tiny_pipeline()
    scheduler, config, names = pipe.scheduler, dict(pipe.config), set(vars(pipe))
    sampler = adp.FlowSampler.from_pipeline(pipe, steps=2)
    sampler(noise_of(), cond_of())
    assert pipe.scheduler is scheduler
    assert dict(pipe.config) == config
    assert set(vars(pipe)) == names
    assert not pipe.vae.is_gradient_checkpointing


def test_one_prompt_for_a_batch():
    sampler = adp.FlowSampler.from_pipeline(tiny_pipeline(), steps=2)
    single = torch.cat([sampler(noise_of(3)[i : i + 1], cond_of()) for i in range(3)])
    torch.testing.assert_close(sampler(noise_of(3), cond_of()), single, rtol=1e-4, atol=1e-5)


def test_weights_in_bfloat16_with_states_in_float32():
    sampler = adp.FlowSampler.from_pipeline(tiny_pipeline(dtype=torch.bfloat16), steps=3)
    noise = noise_of().requires_grad_()
    image = sampler(noise, cond_of())
    image.sum().backward()
    assert image.dtype == noise.grad.dtype == torch.float32
    whole = adp.FlowSampler.from_pipeline(tiny_pipeline(), steps=3)
    exact = torch.autograd.grad(whole(noise, cond_of()).sum(), noise)[0]
    assert torch.cosine_similarity(exact.flatten(), noise.grad.flatten(), dim=0) > 0.98


def test_lora_weights_get_their_gradient_alone():
    peft = pytest.importorskip("peft", reason="peft is an optional dependency")
    pipe, cond, noise = tiny_pipeline(), cond_of(), noise_of()
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    lora = [p for p in pipe.unet.parameters() if p.requires_grad]
    results = []
    for adjoint in (adp.Backprop(), adp.Checkpointed()):
        sampler = adp.FlowSampler.from_pipeline(pipe, steps=4, adjoint=adjoint)
        results.append(torch.autograd.grad(sampler(noise, cond).square().sum(), lora))
    assert len(lora) == 4 * sum(1 for name, _ in pipe.unet.named_modules() if name.endswith("attn1")) * 2
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert float(a.abs().max()) > 0


def test_the_decoder_is_recomputed_block_by_block_and_exact():
    pipe = tiny_pipeline()
    latents = noise_of().requires_grad_()
    results, decoder_bytes = [], []
    for adjoint in (adp.Backprop(), adp.Checkpointed()):
        sampler = adp.FlowSampler.from_pipeline(pipe, steps=1, adjoint=adjoint)
        results.append(torch.autograd.grad(sampler.decode(latents).square().sum(), latents)[0])
        decoder_bytes.append(sampler.stats.decoder)
    assert torch.equal(*results)
    assert decoder_bytes[1] < decoder_bytes[0]


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_prediction_is_the_schedulers(kind):
    pipe = tiny_pipeline(ddim(prediction_type=kind))
    assert adp.FlowSampler.from_pipeline(pipe).model.denoiser.prediction is Prediction(kind)
