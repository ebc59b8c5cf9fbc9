"""What the probe reads from a pipeline's own call is what the pipeline computes."""

import torch

from adjointdpm.pipelines.step_probe import ProbedPipeline
from tests.tiny.families import of


def test_the_output_is_the_networks_with_the_pipelines_guidance():
    family = of("sd")
    pipe, cond, x = family.make(), family.cond(), family.noise()
    t = torch.tensor(500.0)
    found = ProbedPipeline(pipe).output(x, t, dict(cond))
    with torch.no_grad():
        embeds = torch.cat([cond["negative_prompt_embeds"], cond["prompt_embeds"]])
        unguided, aimed = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=embeds).sample.chunk(2)
    assert torch.allclose(
        found, unguided + cond["guidance_scale"] * (aimed - unguided), rtol=1e-6, atol=1e-7
    )


def test_the_decoding_is_the_pipelines_without_its_clamp():
    family = of("sd")
    pipe, latents = family.make(), family.noise()
    pipe.vae.decoder.conv_out.weight.data.mul_(20)  # pixels far beyond their range
    found = ProbedPipeline(pipe).decode(latents, pipe.vae)
    exact = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample / 2 + 0.5
    assert torch.allclose(found, exact, rtol=1e-6, atol=1e-7)
    assert float(found.detach().max()) > 1 or float(found.detach().min()) < 0


def test_the_pipeline_is_left_as_it_was():
    pipe = of("sd").make()
    before = {name: id(part) for name, part in vars(pipe).items()}
    scheduler = dict(vars(pipe.scheduler))
    ProbedPipeline(pipe).times(4, torch.zeros(1))
    assert {name: id(part) for name, part in vars(pipe).items()} == before
    assert vars(pipe.scheduler).keys() == scheduler.keys()
    assert pipe.scheduler.num_inference_steps == scheduler["num_inference_steps"]
