"""A call that is ended early leaves the pipeline as it was, and its error messages to the caller."""

import pytest
import torch

from adjointdpm.pipelines.run_until import StopAtFirstCall, run_until, stop
from tests.conftest import tiny_pipeline


def arguments(pipe):
    generator = torch.Generator().manual_seed(0)
    width = pipe.unet.config.cross_attention_dim
    return {
        "prompt_embeds": torch.randn(1, 3, width, generator=generator),
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        "generator": generator,
    }


def state_of(pipe):
    return {name: id(value) for name, value in vars(pipe).items()}


def test_an_exchanged_part_ends_the_call_with_its_value():
    pipe = tiny_pipeline()
    before = state_of(pipe)
    latents = run_until(pipe, lambda _: {"prepare_latents": lambda *_, **__: stop(7)}, arguments(pipe))
    assert latents == 7
    assert state_of(pipe) == before


def test_the_handlers_end_it_before_the_network_runs():
    pipe = tiny_pipeline()
    calls = []
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    before = state_of(pipe)
    assert run_until(pipe, lambda _: {}, arguments(pipe), StopAtFirstCall()) is None
    assert (calls, state_of(pipe)) == ([], before)


def test_an_exchange_can_use_the_copys_own_part():
    pipe = tiny_pipeline()

    def exchanged(copy):
        own = copy.prepare_latents
        return {"prepare_latents": lambda *args, **kwargs: stop(own(*args, **kwargs))}

    latents = run_until(pipe, exchanged, arguments(pipe))
    assert torch.equal(latents, torch.randn(latents.shape, generator=arguments(pipe)["generator"]))


def test_a_call_that_ends_by_itself_has_no_value_and_other_errors_pass_through():
    pipe = tiny_pipeline()
    assert run_until(pipe, lambda _: {}, {**arguments(pipe), "output_type": "latent"}) is None
    with pytest.raises(ValueError, match="prompt"):
        run_until(pipe, lambda _: {}, {})
