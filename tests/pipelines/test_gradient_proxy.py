"""A pipeline under `differentiable` stays as it is: afterwards, nested, and in two threads."""

import threading

import diffusers
import pytest
import torch

import adjointdpm as adp
from tests.tiny.calls import arguments, image, small
from tests.tiny.pipelines import first, vp


def test_the_pipeline_is_as_it_was():
    pipe = small()
    before = {k: (v, dict(vars(v)) if hasattr(v, "__dict__") else None) for k, v in vars(pipe).items()}
    unet, kind = dict(vars(pipe.unet)), type(pipe)
    held = image(pipe)
    with pytest.raises(adp.NonFiniteError):
        image(pipe, latents=torch.full((1, 4, 8, 8), float("inf"), requires_grad=True))
    assert type(pipe) is kind
    assert vars(pipe).keys() == before.keys()
    assert all(vars(pipe)[k] is v for k, (v, _) in before.items())
    assert vars(pipe.scheduler) == before["scheduler"][1]
    assert vars(pipe.unet) == unet
    assert not pipe.vae.is_gradient_checkpointing
    held.sum().backward()


def test_nested_contexts_and_a_call_after_them():
    pipe, given = small(), arguments()
    with adp.differentiable(pipe) as outer:
        with adp.differentiable(pipe, adp.Backprop()) as inner:
            a = first(inner(**given))
        b = first(outer(**given))
        assert inner.stats.kept > 0
        assert outer.stats.kept == 0
    c, d = first(inner(**given)), first(adp.differentiable(pipe)(**given))
    g = [torch.autograd.grad(each.sum(), given["latents"])[0] for each in (a, b, c, d)]
    assert all(torch.equal(g[0], each) for each in g)


def test_two_threads_share_one_pipeline():
    pipe = small(scheduler=vp(diffusers.DPMSolverMultistepScheduler))
    steps = (2, 5)

    def gradient(steps):
        given = arguments(num_inference_steps=steps)
        with adp.differentiable(pipe) as call:
            out = first(call(**given))
        return torch.autograd.grad(out.sum(), given["latents"])[0]

    alone = [gradient(n) for n in steps]
    together = {}

    def kept(n):
        try:
            together[n] = gradient(n)
        except Exception as error:
            together[n] = error

    threads = [threading.Thread(target=kept, args=(n,)) for n in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for exact, n in zip(alone, steps, strict=True):
        if isinstance(together[n], Exception):
            raise together[n]
        assert torch.equal(exact, together[n])


def test_keep_and_budget_mean_what_they_mean_elsewhere():
    pipe = small()
    with adp.differentiable(pipe, adp.Backprop()) as call:
        call(**arguments())
    graph = call.stats.kept // 2
    calls = []
    for adjoint in (adp.Checkpointed(keep=2), adp.Checkpointed(budget=int(3.5 * graph))):
        with adp.differentiable(pipe, adjoint) as call:
            first(call(**arguments(num_inference_steps=5))).sum().backward()
        calls.append(call.stats.nfe_forward)
    assert calls == [5 + 3, 5 + 2]
