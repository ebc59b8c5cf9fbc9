"""Every scheduler of diffusers in a stock pipeline: exact, flat in memory, or refused by name."""

import functools
import gc
import weakref

import diffusers
import pytest
import torch

import adjointdpm as adp
from benchmarks.live import held_by
from tests import ROOT
from tests.tiny.pipelines import draw, embeds, first, sd, text_unet, vp
from tests.tiny.scheduler_table import CLASSES, NAMES, row, table

PAGE = ROOT / "docs" / "schedulers.md"
# torchsde says so of its own rounding.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Should have t:UserWarning",
    "ignore::FutureWarning",
    "ignore:__array_wrap__ must accept:DeprecationWarning",  # diffusers' schedulers under numpy 2
)


@pytest.mark.parametrize("name", NAMES)
def test_exact_or_refused_by_name(name):
    seen = row(name)
    if seen.refusal:
        assert name.split(" ")[0] in seen.refusal or "cannot be made" in seen.refusal
        return
    assert seen.image
    assert seen.gradient
    assert seen.growth <= 1.15


def test_every_scheduler_that_stable_diffusion_names_works():
    compatible = {kind.__name__ for kind in vp().compatibles}
    assert len(compatible) >= 14
    assert compatible <= set(CLASSES)
    assert not [name for name in compatible if row(name).refusal]
    assert sum(not row(name).refusal for name in CLASSES) >= 25


def test_the_table_in_the_documentation_is_this_runs():
    assert PAGE.read_text() == table(), "run: python -m tests.tiny.scheduler_table > docs/schedulers.md"


@pytest.mark.parametrize(
    "kind",
    [
        diffusers.DDIMScheduler,
        diffusers.DPMSolverMultistepScheduler,
        diffusers.EulerAncestralDiscreteScheduler,
    ],
)
def test_what_waits_for_the_backward_pass_does_not_grow(kind):
    """Without the library's accounts: storages alive after a call of 4 and of 16 steps."""
    pipe = sd(diffusers.StableDiffusionPipeline, vp(kind), text_unet(block_out_channels=(8, 16)))
    pipe.set_progress_bar_config(disable=True)
    given = {**embeds(), "latents": draw(1, 4, 8, 8), "output_type": "pt"}
    alive = []
    with adp.differentiable(pipe) as call:
        for steps in (4, 16):
            out, held = held_by(functools.partial(call, **given, num_inference_steps=steps))
            alive.append(held)
            assert first(out).requires_grad
    assert alive[1] - alive[0] <= 0.3 * call.stats.recomputed  # of one graph, for twelve steps more


class Marker:
    """Lives as long as the node of a graph that it is put in."""


def test_no_graph_outlives_a_run_in_its_scheduler():
    pipe = sd(diffusers.StableDiffusionPipeline, vp(diffusers.LMSDiscreteScheduler))
    pipe.set_progress_bar_config(disable=True)
    before, markers = dict(vars(pipe.scheduler)), []

    def mark(unet, inputs, out):
        out[0].grad_fn.metadata["marker"] = marker = Marker()
        markers.append(weakref.ref(marker))

    pipe.unet.register_forward_hook(mark)
    gc.collect()
    gc.disable()  # what only a collection frees is a leak, too
    try:
        with adp.differentiable(pipe) as call:
            image = call(
                **embeds(), latents=draw(1, 4, 8, 8), num_inference_steps=3, output_type="pt"
            ).images
        assert [marker() is None for marker in markers] == [False] * 3
        assert isinstance(image, torch.Tensor)
        del image
        assert [marker() is None for marker in markers] == [True] * 3
    finally:
        gc.enable()
    assert vars(pipe.scheduler) == before
