"""Guards: the divergence is that in closed form, the norm's excess is zero where there is none."""

import math

import pytest
import torch

import adjointdpm as adp
from adjointdpm.flow.denoisers import Denoiser, Prediction
from adjointdpm.metrics import Chroma
from adjointdpm.tasks.sampling import network_of
from adjointdpm.tasks.tune.reference_distance import ReferenceDistance
from adjointdpm.tasks.tune.trainable_weights import Subset
from adjointdpm.tasks.tune.tune_to_metric import TuneToMetric
from tests.tiny.tunes import PROMPTS, sampler


class Shifted(Denoiser):
    """eps = x + shift, written as another prediction where that is asked for."""

    def __init__(self, schedule, prediction):
        super().__init__()
        self.schedule, self.prediction = schedule, prediction
        self.shift = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, t, cond):
        (time,) = self.schedule.at(t.reshape(1))
        eps = x + self.shift
        x0 = (x - time.sigma * eps) / time.alpha
        return eps - x0 if self.prediction is Prediction.VELOCITY else eps


class Model(adp.DiffusionModel):
    def __init__(self, schedule, prediction):
        super().__init__()
        self.schedule, self.denoiser = schedule, Shifted(schedule, prediction)
        self.latent_shape = self.image_shape = (3, 2, 2)


@pytest.mark.parametrize(
    ("schedule", "prediction", "ends"),
    [
        (adp.VPLinear(), Prediction.EPS, None),
        (adp.RectifiedFlow(), Prediction.VELOCITY, (1e-3, 1 - 1e-3)),
    ],
    ids=["variance preserving", "rectified flow"],
)
def test_a_constant_change_of_eps_has_the_divergence_of_girsanov(schedule, prediction, ends):
    """KL = int |d|^2 dlog rho, for d the same everywhere."""
    model = Model(schedule, prediction)
    ours = adp.FlowSampler(model, steps=4)
    ivp = ours.problem(ours.noise(2, 1), adp.Cond())
    leaves, start = {"shift": model.denoiser.shift}, {"shift": torch.zeros(())}
    with torch.no_grad():
        model.denoiser.shift.fill_(0.2)
    kl = ReferenceDistance(kl_weight=1.0)(ivp, ours.noise(2, 5), leaves, start, [1, 2], 3)
    first, last = (ivp.grid[0], ivp.grid[4])
    rho = [float(t.sigma / t.alpha) for t in (first, last)] if ends is None else [(1 - e) / e for e in ends]
    expected = 12 * 0.04 * abs(math.log(rho[0] / rho[1]))
    assert kl.tolist() == pytest.approx([expected] * 2, rel=1e-3)


def test_only_a_longer_velocity_is_penalized():
    model = Model(adp.VPLinear(), Prediction.EPS)
    ours = adp.FlowSampler(model, steps=4)
    ivp, latents = ours.problem(ours.noise(1, 1), adp.Cond()), ours.noise(1, 5)
    leaves, start = {"shift": model.denoiser.shift}, {"shift": torch.zeros(())}
    found = {}
    for shift in (-3.0, 0.0, 3.0):
        with torch.no_grad():
            model.denoiser.shift.fill_(shift)
        found[shift] = ReferenceDistance(norm_weight=1.0)(ivp, latents, leaves, start, [1], 3).item()
    assert found[0.0] == 0
    assert found[3.0] > 0.5
    with torch.no_grad():
        model.denoiser.shift.fill_(0.0)
    longer = {"shift": torch.tensor(3.0)}  # the untuned model's velocity is the longer one
    assert ReferenceDistance(norm_weight=1.0)(ivp, latents, leaves, longer, [1], 3).item() == 0


@pytest.mark.parametrize("adjoint", [adp.Checkpointed(), adp.Checkpointed(keep=1), adp.Truncated()])
def test_the_gradient_is_plain_autograds(adjoint):
    """The guards add theirs, and the untuned weights in between do not reach the recomputation."""

    def gradient(adjoint, kl=1.0, norm=1.0, reward=1.0):
        ours = sampler(steps=3, adjoint=adjoint)
        leaves = Subset(("*.to_k.weight", "conv_out.weight")).attach(network_of(ours), 0)
        guards = ReferenceDistance(kl, norm)
        task = TuneToMetric(
            ours, reward * adp.metrics.Sum(((1.0, Chroma()),)), PROMPTS, leaves, guards=guards
        )
        with torch.no_grad():
            for i, leaf in enumerate(leaves.values()):
                leaf.add_(0.1 * torch.randn(leaf.shape, generator=torch.Generator().manual_seed(i)))
        return torch.autograd.grad(task.losses(0, [0, 1]).values.sum(), list(leaves.values()))

    both, guards, reward = gradient(adjoint), gradient(adjoint, reward=0.0), gradient(adjoint, 0.0, 0.0)
    for a, b, c in zip(both, guards, reward, strict=True):
        torch.testing.assert_close(a, b + c, rtol=1e-3, atol=1e-4 * float(a.abs().max()))
        assert float(b.abs().max()) > 0
    if isinstance(adjoint, adp.Checkpointed):
        plain = gradient(adp.Backprop())
        assert all(torch.equal(a, b) for a, b in zip(both, plain, strict=True))


def test_a_sampler_without_steps_of_its_own_is_refused():
    from tests.tiny.tunes import family

    with pytest.raises(adp.InputError, match="kl_weight"):
        TuneToMetric(
            adp.PipelineSampler(family().make(), steps=2),
            Chroma(),
            PROMPTS,
            {},
            guards=ReferenceDistance(1.0),
        )
