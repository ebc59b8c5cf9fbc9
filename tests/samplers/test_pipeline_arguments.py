"""No argument of a pipeline's call has two sources or is left out, and no noise that is given goes unused."""

import diffusers
import pytest
import torch

import adjointdpm as adp
from adjointdpm.pipelines.call_signature import arguments_of
from adjointdpm.samplers.pipeline_arguments import call_arguments, check_frames, check_start, checked_cond
from tests.samplers.test_pipeline_sampler import cond, sampler_of, small
from tests.tiny.pipelines import draw, vp

TAKES = arguments_of(diffusers.StableDiffusionPipeline)


def test_the_call_gets_each_argument_from_its_source():
    given = cond(step_noise=torch.zeros(1, 2, 4, 8, 8))
    found = call_arguments(TAKES, {"num_inference_steps": 3, "frame_rate": 8.0}, {"eta": 0.5}, given)
    assert {
        name: found.pop(name) for name in ("num_inference_steps", "eta", "output_type", "return_dict")
    } == {
        "num_inference_steps": 3,
        "eta": 0.5,
        "output_type": "pt",
        "return_dict": False,
    }
    assert found.pop("negative_prompt") is None
    assert found.keys() == given.keys() - {"step_noise"}  # and Stable Diffusion takes no frame_rate
    assert all(found[name] is given[name] for name in found)


def test_names_with_another_source_or_none_raise():
    pipe = small()
    sampler = sampler_of(pipe)
    with pytest.raises(adp.InputError, match="takes no colour"):
        adp.PipelineSampler(pipe, arguments={"colour": 1})
    for name, value in (("latents", sampler.noise(1)), ("num_inference_steps", 3), ("guidance_scale", 2.0)):
        with pytest.raises(adp.InputError, match=f"the sampler itself passes {name}"):
            adp.PipelineSampler(pipe, arguments={name: value})
    with pytest.raises(adp.InputError, match="the sampler itself passes latents"):
        sampler(sampler.noise(1), cond(latents=sampler.noise(1)))
    with pytest.raises(adp.InputError, match="takes no mood"):
        sampler(sampler.noise(1), cond(mood=torch.ones(1)))


def test_a_conditioning_that_does_not_fit_raises():
    sampler = sampler_of(small())
    for bad, message in (
        (torch.tensor([4.0, 4.0]), "one number"),
        (torch.tensor(torch.nan), "NaN or infinity"),
    ):
        with pytest.raises(adp.InputError, match=message):
            sampler(sampler.noise(2), cond(guidance_scale=bad))
    with pytest.raises(adp.InputError, match="for a batch of 2"):
        sampler(sampler.noise(3), cond(2))
    with pytest.raises(
        adp.InputError, match=r"cond\['prompt_embeds'\] must be floating point, but is torch.int64"
    ):
        checked_cond(
            TAKES, "StableDiffusionPipeline", adp.Cond({"prompt_embeds": torch.ones(1, 5, 8).long()}), 1
        )


def test_the_conditioning_of_one_prompt_gets_a_row_for_each_image():
    found = checked_cond(TAKES, "StableDiffusionPipeline", cond(), 3)
    assert found["prompt_embeds"].shape == (3, 5, 8)
    assert found["guidance_scale"].shape == ()


def test_images_that_no_sampling_can_start_from_raise():
    images, shape = torch.full((2, 3, 8, 8), 0.5), (3, 8, 8)
    check_start(images, shape, [0, 0], cond())
    for start, seeds, given, message in (
        (images[:, :, :4], [0, 1], cond(), "but was given .3, 4, 8."),
        (3 * images, [0, 1], cond(), "must lie in .0, 1.*from 1.5 to 1.5"),
        (images, [0], cond(), "there are 2 images and 1 seeds"),
        (images, [0, 1], cond(step_noise=draw(2, 1, 4, 8, 8)), "leave cond.'step_noise'. out"),
    ):
        with pytest.raises(adp.InputError, match=message):
            check_start(start, shape, seeds, given)


@pytest.mark.parametrize("frames", [[], [3], [0, -1]])
def test_frames_that_there_are_not_raise(frames):
    check_frames([2, 0], 3)
    with pytest.raises(adp.InputError, match="numbers from 0 to 2"):
        check_frames(frames, 3)


@pytest.mark.parametrize("wanted", [True, False], ids=["variable", "constant"])
def test_step_noise_that_no_step_draws_is_an_error(wanted):
    sampler = sampler_of(small())
    given = cond(step_noise=sampler.step_noise(1).requires_grad_(wanted))
    with pytest.raises(adp.InputError, match="step_noise"):
        sampler(sampler.noise(1), given)
    given = given.map(torch.Tensor.detach)
    with (
        torch.no_grad(),
        pytest.raises(adp.InputError, match="DDIMScheduler drew 0 times within its 3 steps"),
    ):
        sampler(sampler.noise(1), given)


def test_more_step_noise_than_steps():
    sampler = sampler_of(small(vp(diffusers.EulerAncestralDiscreteScheduler)))
    for count, fits in ((3, True), (5, False)):
        given = cond(step_noise=draw(1, count, 4, 8, 8).detach())
        if fits:
            assert sampler(sampler.noise(1), given).requires_grad
        else:
            with pytest.raises(adp.InputError, match=r"for 5 draws, .* drew 3 times"):
                sampler(sampler.noise(1), given)
