"""Each step of a sampling receives its own negative embedding, whatever evaluates it."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import Denoiser
from adjointdpm.flow.null_text import NullText
from tests.conftest import BareModel, scaled_linear, unet_sampler

STEPS = 5


class Recording(Denoiser):
    """Of standard normal data; it keeps what it is called with."""

    prediction = adp.Prediction.EPS

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, t, cond):
        self.calls.append((float(t), cond["negative_prompt_embeds"]))
        return 0.5 * x


def numbered(batch=1):
    """Embeddings that hold the numbers of their steps."""
    return torch.arange(float(STEPS)).view(-1, 1, 1, 1).expand(STEPS, batch, 3, 6)


def sampler_of(solver, grid):
    schedule = adp.VPDiscrete(scaled_linear())
    inner = Recording()
    times = grid(schedule, STEPS)
    model = BareModel(schedule, NullText(inner, times, numbered()), (2, 4, 4))
    return adp.FlowSampler(model, solver=solver, grid=times), inner


@pytest.mark.parametrize("grid", [adp.grids.uniform, adp.grids.karras, adp.grids.log_snr])
@pytest.mark.parametrize(
    ("solver", "calls"), [(adp.Euler(), 1), (adp.DPMSolverPP(1), 1), (adp.Midpoint(), 2)], ids=repr
)
def test_every_evaluation_receives_the_embedding_of_its_step(solver, calls, grid):
    sampler, inner = sampler_of(solver, grid)
    with torch.no_grad():
        sampler.latents(torch.ones(1, 2, 4, 4, dtype=torch.float64), sampler.encode([""], ""))
    found = [float(null[0, 0, 0]) for _, null in inner.calls]
    assert found == [float(i) for i in range(STEPS) for _ in range(calls)]
    for i, (_, null) in zip(found, inner.calls, strict=True):
        assert torch.equal(null, numbered()[int(i)])


def test_a_time_outside_the_grid_belongs_to_the_nearest_step():
    times = torch.tensor([800.0, 500.0, 100.0], dtype=torch.float64)
    denoiser = NullText(Recording(), times, numbered()[:2])
    at = [denoiser.step_at(torch.tensor(t, dtype=torch.float64)) for t in (900, 800, 500.1, 500, 100, 0)]
    assert at == [0, 0, 0, 1, 1, 1]


def test_a_cast_does_not_move_the_steps():
    times = adp.grids.log_snr(adp.VPDiscrete(scaled_linear()), STEPS)
    denoiser = NullText(Recording(), times, numbered()).half()
    assert denoiser.nulls.dtype == torch.float16
    assert [denoiser.step_at(t) for t in times[:-1]] == list(range(STEPS))


def test_the_embedding_has_the_dtype_of_the_conditioning():
    inner = Recording()
    times = adp.grids.uniform(adp.VPDiscrete(scaled_linear()), STEPS)
    cond = adp.Cond({"negative_prompt_embeds": torch.zeros(1, 3, 6, dtype=torch.float16)})
    NullText(inner, times, numbered())(torch.ones(1, 2, 4, 4), times[3], cond)
    assert torch.equal(inner.calls[0][1], numbered()[3].half())


def test_split_guidance_inside_is_two_evaluations_to_the_same_image():
    found = []
    for split in (False, True):
        sampler = unet_sampler(split=split, solver=adp.Euler(), steps=STEPS)
        nulls = torch.randn(STEPS, 1, 3, 6, generator=torch.Generator().manual_seed(0)).double()
        denoiser = NullText(sampler.model.denoiser, sampler.times(), nulls)
        sampler = sampler.replace(model=sampler.model.with_denoiser(denoiser))
        with torch.no_grad():
            found.append(sampler.latents(sampler.noise().double(), sampler.encode([""])))
        assert sampler.stats.nfe_forward == STEPS * (1 + split)
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_another_batch_or_number_of_tokens_is_refused():
    times = adp.grids.uniform(adp.VPDiscrete(scaled_linear()), STEPS)
    denoiser = NullText(Recording(), times, numbered(2))
    x, t = torch.ones(3, 2, 4, 4), times[0]
    for shape in ((3, 3, 6), (2, 4, 6)):
        with pytest.raises(adp.InputError, match=r"are \(2, 3, 6\) in each step, but .* together"):
            denoiser(x, t, adp.Cond({"negative_prompt_embeds": torch.zeros(shape)}))


def test_a_conditioning_without_guidance_is_passed_on():
    sampler = unet_sampler()
    denoiser, x = sampler.model.denoiser, torch.ones(1, 2, 4, 4, dtype=torch.float64)
    times = adp.grids.uniform(sampler.model.schedule, STEPS)
    cond = adp.Cond({"prompt_embeds": sampler.encode([""])["prompt_embeds"]})
    with torch.no_grad():
        assert torch.equal(
            NullText(denoiser, times, numbered())(x, times[0], cond), denoiser(x, times[0], cond)
        )
