"""What is saved for backward does not grow with the number of steps."""

import gc
import itertools
import weakref

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import Prediction
from adjointdpm.pipelines.pipeline_model import UNetDenoiser
from benchmarks.live import LiveBytes
from tests.conftest import BareModel, scaled_linear, tiny_unet


def sampler_of(trained, **settings):
    """A UNet whose graph is as large beside its latents as real ones are."""
    unet = tiny_unet(torch.float32, sample_size=8, block_out_channels=(32, 32), norm_num_groups=8)
    unet.requires_grad_(trained)
    schedule = adp.VPDiscrete(scaled_linear())
    model = BareModel(schedule, UNetDenoiser(unet, Prediction.EPS), (2, 8, 8))
    return adp.FlowSampler(model, solver=adp.DPMSolverPP(2), **settings)


def run(sampler):
    noise = sampler.noise(1).requires_grad_()
    cond = sampler.encode("a prompt").map(lambda t: t.float())
    sampler.latents(noise, cond).square().sum().backward()


def peak(sampler):
    """The most bytes alive at once in forward and backward, by following every storage."""
    run(sampler)  # gradients of the weights exist from now on
    gc.collect()
    with LiveBytes() as live:
        run(sampler)
    return live.peak


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
    half.model.denoiser.split = True
    assert peak(half) < 0.7 * peak(whole)
    assert half.stats.recomputed == pytest.approx(whole.stats.recomputed / 2, rel=0.1)


def test_budget_keeps_as_many_graphs_as_fit():
    probe = sampler_of(False, steps=8)
    run(probe)
    graph, states = probe.stats.recomputed, 8 * probe.noise(1).nbytes
    seen = []
    for graphs in (1.5, 3.5, 99):
        budget = states + int(graphs * graph)
        sampler = sampler_of(False, steps=8, adjoint=adp.Checkpointed(budget=budget))
        held = peak(sampler)
        kept = min(int(graphs), 7)
        assert sampler.stats.nfe_forward == 16 - kept
        assert sampler.stats.kept == kept * graph
        assert sampler.stats.predicted <= budget
        assert sampler.stats.predicted == pytest.approx(sampler.stats.bytes_saved, rel=0.1)
        seen.append((sampler.stats.predicted, held))
    # Counted by following every storage: what it holds besides is one call's temporaries, whatever is kept.
    for (planned, held), (planned_more, held_more) in itertools.pairwise(seen):
        assert held_more - held == pytest.approx(planned_more - planned, rel=0.02)


def test_a_budget_below_one_graph_splits_guidance_or_says_what_is_missing():
    probe = sampler_of(False, steps=3)
    run(probe)
    graph = probe.stats.recomputed
    sampler = sampler_of(False, steps=3, adjoint=adp.Checkpointed(budget=int(0.7 * graph)))
    noise = sampler.noise(1).requires_grad_()
    cond = sampler.encode("a prompt").map(lambda t: t.float())
    (found,) = torch.autograd.grad(sampler.latents(noise, cond).square().sum(), noise)
    (exact,) = torch.autograd.grad(probe.latents(noise, cond).square().sum(), noise)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-5 * float(exact.abs().max()))
    assert sampler.stats.predicted == pytest.approx(sampler.stats.bytes_saved, rel=0.1)
    assert sampler.stats.bytes_saved < 0.7 * graph
    assert not sampler.model.denoiser.split  # the user's own is left alone


@pytest.mark.parametrize("trained", [False, True])
def test_a_budget_below_half_a_graph_recomputes_blocks_or_says_what_is_missing(trained):
    probe = sampler_of(trained, steps=5)
    whole, graph = peak(probe), probe.stats.recomputed
    sampler = sampler_of(trained, steps=5, adjoint=adp.Checkpointed(budget=int(0.3 * graph)))
    held = peak(sampler)
    # Measured, too, without ever making a whole graph. Gradients of weights, two sets where guidance is split, weigh
    # more than the graph of this small network.
    assert trained or held < 0.6 * whole
    noise = sampler.noise(1).requires_grad_()
    cond = sampler.encode("a prompt").map(lambda t: t.float())
    leaves = [[noise, *(p for p in each.parameters() if p.requires_grad)] for each in (sampler, probe)]
    found = torch.autograd.grad(sampler.latents(noise, cond).square().sum(), leaves[0])
    exact = torch.autograd.grad(probe.latents(noise, cond).square().sum(), leaves[1])
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))
    assert sampler.stats.predicted == pytest.approx(sampler.stats.bytes_saved, rel=0.1)
    assert sampler.stats.bytes_saved < 0.3 * graph
    network = sampler.model.denoiser.network
    assert not network.is_gradient_checkpointing  # the user's own switch is left alone
    with pytest.raises(adp.InputError, match=r"KiB are missing"):
        run(sampler_of(trained, steps=5, adjoint=adp.Checkpointed(budget=int(0.1 * graph))))


def test_the_decoder_is_planned_for():
    from tests.conftest import tiny_pipeline

    sampler = adp.FlowSampler.from_pipeline(tiny_pipeline(), steps=4)
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


def test_a_decoder_that_does_not_fit_is_refused_and_fits_in_the_users_own_tiles():
    """No plan changes the image. With diffusers' tiling on, the gradient is that of the tiled image, in less memory."""
    whole = adp.load_bundled("emoji", steps=2, guidance_scale=1.0, solver=adp.Euler())
    noise, cond = whole.noise(1).requires_grad_(), whole.encode("a cat")
    image = whole(noise, cond)
    decoder, states = whole.stats.decoder, whole.stats.states
    budget = adp.Checkpointed(budget=states + int(0.9 * decoder))
    with pytest.raises(adp.InputError, match=r"enable_tiling\(\)"):
        whole.replace(adjoint=budget)(noise, cond)
    vae = whole.model.vae
    vae.tile_latent_min_size, vae.tile_sample_min_size = 8, 32
    vae.enable_tiling()
    tiled = whole(noise, cond)
    assert 0 < float((tiled - image).detach().abs().mean()) < 0.05
    cotangent = torch.randn_like(tiled)
    (a,) = torch.autograd.grad((tiled * cotangent).sum(), noise)
    plain = whole.replace(adjoint=adp.Backprop())(noise, cond)
    (b,) = torch.autograd.grad((plain * cotangent).sum(), noise)
    assert torch.equal(plain, tiled)
    assert float((a - b).norm() / b.norm()) < 1e-5


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
