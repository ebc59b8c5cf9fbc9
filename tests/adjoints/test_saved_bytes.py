"""What is saved for backward does not grow with the number of steps."""

import weakref

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import SplitGuidance
from tests.tiny.memory import peak, sampler_of


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("adjoint", "growth"),
    [
        (adp.Checkpointed(), 1.10),
        (adp.Checkpointed(keep=2), 1.10),
        (adp.CoarseAdjoint(), 1.10),
        (adp.Continuous(trajectory="resolved"), 1.00),
    ],
    ids=lambda value: repr(value),
)
def test_flat_in_the_number_of_steps(adjoint, growth, trained):
    bytes_saved, alive = [], []
    for steps in (4, 50):
        sampler = sampler_of(trained, steps=steps, adjoint=adjoint)
        alive.append(peak(sampler))
        bytes_saved.append(sampler.stats.bytes_saved)
    assert bytes_saved[1] <= growth * bytes_saved[0]
    assert alive[1] <= 1.10 * alive[0]


def test_backprop_does_grow():
    four, fifty = (peak(sampler_of(False, steps=n, adjoint=adp.Backprop())) for n in (4, 50))
    assert fifty > 10 * four


@pytest.mark.parametrize(
    "adjoint", [adp.Backprop(), adp.Checkpointed(), adp.Checkpointed(keep=3)], ids=repr
)
def test_the_account_is_what_autograd_saves(adjoint):
    """Against an independent count of the tensors packed in the forward pass, for kept graphs."""
    sampler = sampler_of(False, steps=6, adjoint=adjoint)
    noise = sampler.noise(1).requires_grad_()
    cond = sampler.encode("a prompt").map(lambda t: t.float())
    shared = {t.untyped_storage().data_ptr() for t in (*sampler.parameters(), *cond.values())}
    alive = weakref.WeakSet()

    class Packed:
        def __init__(self, tensor):
            self.tensor = tensor
            alive.add(self)

    with torch.autograd.graph.saved_tensors_hooks(Packed, lambda packed: packed.tensor):
        image = sampler.latents(noise, cond)
    kept = {p.tensor.untyped_storage().data_ptr(): p.tensor for p in alive if p.tensor.ndim}
    counted = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in shared)
    stats = sampler.stats
    assert image.requires_grad
    assert stats.kept + stats.states == pytest.approx(counted, rel=0.02)
    one = sampler.replace(steps=1, adjoint=adp.Backprop())
    one.latents(noise, cond)
    assert stats.recomputed in (0, one.stats.kept)


def test_split_guidance_halves_one_graph():
    whole, half = (sampler_of(False, steps=4) for _ in range(2))
    half.model.denoiser = SplitGuidance(half.model.denoiser)
    assert peak(half) < 0.7 * peak(whole)
    assert half.stats.recomputed == pytest.approx(whole.stats.recomputed / 2, rel=0.1)


def test_the_decoder_is_planned_for():
    from tests.conftest import tiny_pipeline

    sampler = adp.FlowSampler.from_pipeline(tiny_pipeline(), steps=4, guidance_scale=1.0)
    sampler.requires_grad_(False)
    noise = torch.randn(1, 2, 4, 4).requires_grad_()
    cond = adp.Cond({"prompt_embeds": torch.randn(1, 5, 6)})
    sampler(noise, cond)
    one, decoder = sampler.stats.recomputed, sampler.stats.decoder
    states = 4 * noise.nbytes
    for decoder_allowance, kept in (
        (decoder + int(2.5 * one), 2),
        (max(decoder, one) + 1, int(max(one - decoder, 0) / one)),
    ):
        planned = sampler.replace(adjoint=adp.Checkpointed(budget=states + decoder_allowance))
        planned(noise, cond)
        assert planned.stats.kept == kept * one
        assert planned.stats.predicted == pytest.approx(planned.stats.bytes_saved, rel=0.1)
    if decoder > one:
        with pytest.raises(adp.InputError, match="enable_tiling"):
            sampler.replace(adjoint=adp.Checkpointed(budget=(states + one + decoder) // 2))(noise, cond)
    auto = sampler.replace(adjoint=adp.Checkpointed(budget="auto"))
    auto(noise, cond)
    assert auto.stats.kept == 3 * one


def test_a_users_own_hooks_stay_in_force():
    packed = []
    sampler = sampler_of(False, steps=2, adjoint=adp.Backprop())
    noise = sampler.noise(1).requires_grad_()
    cond = sampler.encode("a prompt").map(lambda t: t.float())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
        sampler.latents(noise, cond)
    first, second = packed[: len(packed) // 2], packed[len(packed) // 2 :]
    assert abs(len(first) - len(second)) <= 1
    assert len(packed) > 100
