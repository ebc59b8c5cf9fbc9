"""The optimized embeddings against steps that are written by hand, and what cannot be optimized."""

from dataclasses import replace

import pytest
import torch

import adjointdpm as adp
from adjointdpm.adjoints.inversion import solution
from adjointdpm.adjoints.null_text import check_null_text, checked_null_texts, null_texts, unguided
from tests.conftest import unet_sampler

W = 2.0


def problems(batch=2, **settings):
    """The problems with and without guidance, in float64, from a clean state."""
    sampler = unet_sampler(**{"solver": adp.Euler(), "steps": 4, "guidance_scale": W, **settings})
    latents = torch.randn(batch, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ivp, _ = sampler.problem_from(latents, sampler.encode([""] * batch))
    return ivp, replace(ivp, cond=unguided(ivp.cond, "guidance_scale"))


def by_hand(ivp, z, i, null):
    """One step of Euler in dy/drho = eps, with guidance by two calls of the network."""
    now, then = ivp.grid[i], ivp.grid[i + 1]
    x, network = now.alpha * z, ivp.flow.denoiser.network
    time = now.t.float()
    against, towards = (
        network(x, time, encoder_hidden_states=each, return_dict=False)[0]
        for each in (null, ivp.cond["prompt_embeds"])
    )
    return z + (then.sigma / then.alpha - now.sigma / now.alpha) * (against + W * (towards - against))


def far(a, b):
    return (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)


def test_the_residuals_are_those_of_steps_by_hand():
    ivp, free = problems()
    stats = adp.Stats()
    found = null_texts(ivp, free, stats, 5, 1e-12)
    pivot = solution(free, adp.Stats(), 1e-4).states
    assert torch.equal(found.start, pivot[0])
    z, given = found.start, ivp.cond["negative_prompt_embeds"]
    with torch.no_grad():
        for i in range(4):
            before = far(by_hand(ivp, z, i, found.denoiser.nulls[i - 1] if i else given), pivot[i + 1])
            z = by_hand(ivp, z, i, found.denoiser.nulls[i])
            assert far(z, pivot[i + 1]).max().item() == pytest.approx(found.residuals[i], rel=1e-9)
            assert bool((far(z, pivot[i + 1]) < before).all())
    assert far(z, ivp.initial).max().item() == pytest.approx(stats.drift, rel=1e-9)


def test_no_grad_outside_does_not_change_the_result():
    ivp, free = problems()
    found = null_texts(ivp, free, adp.Stats(), 2, 1e-12)
    with torch.no_grad():
        again = null_texts(ivp, free, adp.Stats(), 2, 1e-12)
    assert torch.equal(found.denoiser.nulls, again.denoiser.nulls)
    assert not found.denoiser.nulls.requires_grad


def test_an_optimized_embedding_is_a_stationary_point():
    ivp, free = problems(batch=1, steps=1)
    found = null_texts(ivp, free, adp.Stats(), 250, 1e-12)
    norms = []
    for null in (ivp.cond["negative_prompt_embeds"], found.denoiser.nulls[0]):
        null = null.clone().requires_grad_()
        loss = far(by_hand(ivp, found.start, 0, null), ivp.initial).square().sum()
        norms.append(torch.autograd.grad(loss, null)[0].norm())
    assert norms[1] < 1e-4 * norms[0]


def test_an_image_does_not_depend_on_the_others(monkeypatch):
    monkeypatch.setattr("adjointdpm.adjoints.null_text._PIVOT", 1e-12)
    ivp, free = problems()
    both = null_texts(ivp, free, adp.Stats(), 4, 1e-3)

    def row(each, k):
        cond = each.cond.map(lambda tensor: tensor[k : k + 1] if tensor.ndim else tensor)
        return replace(each, initial=each.initial[k : k + 1], cond=cond)

    for k in range(2):
        alone = null_texts(row(ivp, k), row(free, k), adp.Stats(), 4, 1e-3)
        torch.testing.assert_close(
            alone.denoiser.nulls[:, 0], both.denoiser.nulls[:, k], rtol=1e-5, atol=1e-5
        )


def test_an_embedding_that_is_near_enough_is_left_alone():
    ivp, free = problems()
    found = null_texts(ivp, free, adp.Stats(), 5, 1e6)
    for null in found.denoiser.nulls:
        assert torch.equal(null, ivp.cond["negative_prompt_embeds"])


def test_the_prompt_as_the_negative_one_needs_no_iteration():
    ivp, free = problems()
    ivp = replace(ivp, cond=ivp.cond.replace(negative_prompt_embeds=ivp.cond["prompt_embeds"]))
    stats = adp.Stats()
    found = null_texts(ivp, free, stats, 5, 1e-3)
    assert stats.nfe_backward == 0
    assert torch.equal(found.denoiser.nulls[-1], ivp.cond["prompt_embeds"])
    assert stats.drift < 1e-3


def test_calls_are_those_of_the_network():
    ivp, free = problems()
    calls = []
    handle = ivp.flow.denoiser.network.register_forward_hook(lambda *_: calls.append(None))
    stats = adp.Stats()
    null_texts(ivp, free, stats, 3, 1e-12)
    handle.remove()
    assert stats.nfe_forward == len(calls)
    assert stats.nfe_backward == 4 * 3


@pytest.mark.parametrize("solver", [adp.Euler(), adp.Midpoint()], ids=repr)
def test_a_prediction_that_is_held_changes_no_bit(solver, monkeypatch):
    ivp, free = problems(solver=solver)
    stats, again = adp.Stats(), adp.Stats()
    held = null_texts(ivp, free, stats, 3, 1e-12)
    monkeypatch.setattr("adjointdpm.adjoints.evaluation._same", lambda *_: False)
    made = null_texts(ivp, free, again, 3, 1e-12)
    assert torch.equal(held.denoiser.nulls, made.denoiser.nulls)
    assert held.residuals == made.residuals
    assert again.nfe_forward - stats.nfe_forward == 4 * 3  # once in a step in place of once in an iterate
    assert again.nfe_backward == stats.nfe_backward


def test_of_a_guidance_in_one_batch_the_iterates_are_the_same_to_rounding(monkeypatch):
    """A batch of both halves rounds otherwise than each half alone."""
    ivp, free = problems()
    assert ivp.flow.denoiser.splittable
    held = null_texts(ivp, free, adp.Stats(), 3, 1e-12)
    monkeypatch.setattr(ivp.flow.denoiser, "splittable", False)
    whole = null_texts(ivp, free, adp.Stats(), 3, 1e-12)
    torch.testing.assert_close(held.denoiser.nulls, whole.denoiser.nulls, rtol=1e-9, atol=1e-9)


def test_a_network_that_returns_nan_is_an_error_of_its_own():
    ivp, free = problems()
    cond = ivp.cond.replace(guidance_scale=torch.tensor(torch.inf, dtype=torch.float64))
    with pytest.raises(adp.NonFiniteError, match="step 0 of 4"):
        null_texts(replace(ivp, cond=cond), free, adp.Stats(), 1, 1e-9)


def test_what_does_not_come_back_is_an_error():
    ivp, free = problems()
    with pytest.raises(adp.InversionError, match=r"tolerance = 1e-09: step \d of 4 .* than 1,"):
        checked_null_texts(ivp, free, adp.Stats(), 1, 1e-9)


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (adp.EulerMaruyama(), "adds noise"),
        (adp.Coupled(adp.Euler()), "invert_coupled"),
        (adp.DPMSolverPP(2), "depends on the steps before it"),
        (adp.Heun(), "at the end of a step"),
    ],
    ids=repr,
)
def test_solvers_without_steps_of_their_own_are_refused(solver, words):
    ivp, _ = problems()
    with pytest.raises(adp.InputError, match=words):
        check_null_text(replace(ivp, solver=solver), ivp.initial)


def test_without_guidance_there_is_nothing_to_optimize():
    ivp, free = problems()
    with pytest.raises(adp.InputError, match=r"does not have one, and the guidance scale is none"):
        check_null_text(free, ivp.initial)
    one = ivp.cond.replace(guidance_scale=torch.ones((), dtype=torch.float64))
    with pytest.raises(
        adp.InputError, match=r"has one, and the guidance scale is 1; .* guidance_scale > 1"
    ):
        check_null_text(replace(ivp, cond=one), ivp.initial)


def test_a_gradient_that_it_does_not_have_is_refused():
    ivp, _ = problems()
    images = ivp.initial.clone().requires_grad_()
    prompt = ivp.cond["prompt_embeds"].clone().requires_grad_()
    attached = replace(ivp, cond=ivp.cond.replace(prompt_embeds=prompt))
    with pytest.raises(adp.InputError, match=r"cond\['prompt_embeds'\], images requires"):
        check_null_text(attached, images)
    with torch.no_grad():
        check_null_text(attached, images)
