"""A small velocity field with weights, and the sampling of a rectified flow by hand, step by step.

    x' = x + (s' - s) v(x, s)

References for surrogates are written with it as their papers have them, by `detach`.
"""

import torch
from torch import nn

import adjointdpm as adp
from adjointdpm.flow.denoisers import Denoiser, Prediction
from tests.conftest import BareModel, scaled_linear


class Field(Denoiser):
    """tanh(x A + b + push) + t x / 2, or one of its parts: "constant" b + push, "linear" m x."""

    def __init__(self, kind="bent", prediction=Prediction.VELOCITY, unit=1.0):
        super().__init__()
        self.kind, self.prediction, self.unit, self.calls = kind, prediction, unit, 0
        generator = torch.Generator().manual_seed(3)
        self.matrix = nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64))
        self.slope = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x, t, cond):
        self.calls += 1
        if self.kind == "constant":
            return (self.bias + cond["push"]).expand_as(x) + 0 * x * self.slope
        if self.kind == "linear":
            return self.slope * x
        return torch.tanh(x @ self.matrix + self.bias + cond["push"]) + t / self.unit * x / 2


def flow(kind="bent", steps=7, **settings):
    """A sampler of a rectified flow by Euler's method."""
    model = BareModel(adp.RectifiedFlow(), Field(kind), (3,))
    return adp.FlowSampler(model, **{"solver": adp.Euler(), "steps": steps, **settings})


def noise_model(steps=7, **settings):
    """A sampler of a model of noise, in the coordinates of the paper."""
    model = BareModel(adp.VPDiscrete(scaled_linear()), Field(prediction=Prediction.EPS, unit=999.0), (3,))
    return adp.FlowSampler(model, **{"solver": adp.Euler(), "steps": steps, **settings})


def start(batch=2, seed=0):
    """Noise without a gradient, and a conditioning with one."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 3, generator=generator, dtype=torch.float64)
    push = torch.randn(batch, 3, generator=generator, dtype=torch.float64)
    return noise, adp.Cond({"push": push.requires_grad_()})


WEIGHT = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.8, -1.0]], dtype=torch.float64)


def leaves_of(sampler, cond):
    field = sampler.model.denoiser
    parts = {"constant": [field.bias], "linear": [field.slope], "bent": [field.matrix, field.bias]}
    return [*parts[field.kind], *([] if field.kind == "linear" else [cond["push"]])]


def gradients_of(sampler, noise, cond):
    """Of a linear loss of the latents, by weights and conditioning."""
    return gradients_to(sampler.latents(noise, cond), sampler, cond)


def gradients_to(latents, sampler, cond):
    return torch.autograd.grad((latents * WEIGHT[: len(latents)]).sum(), leaves_of(sampler, cond))


def by_hand(sampler, noise, cond):
    """States, velocities and noise levels of the sampling, and the field as v(x, i)."""
    s = sampler.times()

    def v(x, i):
        return sampler.model.denoiser(x, s[i], cond)

    x, states, velocities = noise, [noise], []
    with torch.no_grad():
        for i in range(len(s) - 1):
            velocities.append(v(x, i))
            x = x + (s[i + 1] - s[i]) * velocities[-1]
            states.append(x)
    return states, velocities, s, v


def close(found, truth):
    for g, exact in zip(found, truth, strict=True):
        torch.testing.assert_close(g, exact, rtol=1e-12, atol=1e-13)
        assert float(exact.abs().max()) > 1e-4
