"""How others differentiate the same sampler, each as its documentation or its authors' code has it.

All share one problem: the bundled model's guided UNet, a grid, a noise, a prompt; what differs is the way
back. A peer is a function of (noise, prompt) to latents.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint_adjoint
from torchsde import BrownianInterval, sdeint, sdeint_adjoint

import adjointdpm as adp
from adjointdpm.flow.grids import TimeGrid

Latents = Callable[[Tensor, Tensor], Tensor]


def guided(sampler: adp.FlowSampler, cond: adp.Cond) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The guided UNet, as one would write it."""
    unet: Any = sampler.model.denoiser.network
    w = float(sampler.guidance_scale)

    def eps(x: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        text = torch.cat([cond["negative_prompt_embeds"], prompt])
        out = unet(torch.cat([x, x]), t, encoder_hidden_states=text, return_dict=False)[0]
        unguided, aimed = out.chunk(2)
        time = sampler.model.schedule.at(t.double().reshape(1))[0]
        return sampler.model.denoiser.prediction.eps(unguided + w * (aimed - unguided), x, time)

    return eps


def nodes_of(sampler: adp.FlowSampler) -> TimeGrid:
    """The sampler's uniform grid."""
    schedule = sampler.model.schedule
    return TimeGrid.checked(schedule, adp.grids.uniform(schedule, sampler.steps))


def by_hand(sampler: adp.FlowSampler, cond: adp.Cond, recompute: bool) -> Latents:
    """DDIM as a loop; with `recompute`, torch.utils.checkpoint round the UNet."""
    eps, nodes = guided(sampler, cond), nodes_of(sampler)
    plan = [
        (
            nodes[i].t.float(),
            float(nodes[i].alpha),
            float(nodes[i + 1].alpha),
            float(nodes[i + 1].tau - nodes[i].tau),
        )
        for i in range(len(nodes))
    ]

    def latents(noise: Tensor, prompt: Tensor) -> Tensor:
        x = noise
        for t, alpha, after, h in plan:
            e = checkpoint(eps, x, t, prompt, use_reentrant=False) if recompute else eps(x, t, prompt)
            x = after * (x / alpha + h * e)
        return x

    return latents


class OdeField(nn.Module):
    """dy/drho = eps for torchdiffeq, which differentiates what are parameters: the prompt is one."""

    def __init__(self, sampler: adp.FlowSampler, cond: adp.Cond, prompt: Tensor) -> None:
        super().__init__()
        self.schedule, self.eps = sampler.model.schedule, guided(sampler, cond)
        self.prompt = nn.Parameter(prompt)
        self.network = sampler.model.denoiser.network
        self.nfe = 0

    def forward(self, rho: Tensor, y: Tensor) -> Tensor:
        self.nfe += 1
        now = self.schedule.at_tau(rho.double())
        return self.eps(y * now.alpha, now.t.float(), self.prompt)


def torchdiffeq_peer(
    sampler: adp.FlowSampler, cond: adp.Cond, adaptive: bool = False
) -> tuple[Latents, OdeField]:
    """odeint_adjoint over rho: Euler on the sampler's grid, as the paper's release, or adaptive dopri5.

    With Euler, states are solved again and products taken at the arrival.
    """
    nodes = nodes_of(sampler)
    rhos = torch.stack([nodes[i].tau for i in range(len(nodes) + 1)]).float()
    model = OdeField(sampler, cond, cond["prompt_embeds"].detach().clone())

    def steps(function: Any, y: Tensor, span: Tensor) -> Tensor:
        # torchdiffeq turns a falling time into a rising one by its sign.
        signed = rhos if span[0] * rhos[0] > 0 else -rhos
        return signed if signed[0] == span[0] else signed.flip(0)

    def latents(noise: Tensor, prompt: Tensor) -> Tensor:
        # Only the ends are asked for: at every time that is asked for, torchdiffeq stores the state.
        span, start = rhos[[0, -1]], noise / nodes[0].alpha.float()
        if adaptive:
            y: Any = odeint_adjoint(model, start, span, method="dopri5", rtol=1e-3, atol=1e-3)
        else:
            y = odeint_adjoint(model, start, span, method="euler", options={"grid_constructor": steps})
        return y[-1] * nodes[len(nodes)].alpha.float()

    return latents, model


class SdeField(nn.Module):
    """dy = 2 eps drho + sqrt(2 rho) dW for torchsde, whose time rises from 0: rho = rho_T - time."""

    noise_type, sde_type = "diagonal", "stratonovich"

    def __init__(self, ode: OdeField, top: float, shape: torch.Size) -> None:
        super().__init__()
        self.ode, self.top, self.shape = ode, top, shape

    def f(self, time: Tensor, y: Tensor) -> Tensor:
        """The drift, in rising time."""
        return -2 * self.ode(self.top - time, y.view(-1, *self.shape[1:])).flatten(1)

    def g(self, time: Tensor, y: Tensor) -> Tensor:
        """The noise level of each entry."""
        return (2 * (self.top - time)).clamp(min=0).sqrt() * torch.ones_like(y)


def torchsde_peer(
    sampler: adp.FlowSampler, cond: adp.Cond, shape: torch.Size, exact: bool
) -> tuple[Latents, OdeField]:
    """The reverse SDE by torchsde's midpoint method; its adjoint, or plain autograd through the same path."""
    nodes = nodes_of(sampler)
    top, low = float(nodes[0].tau), float(nodes[len(nodes)].tau)
    ode = OdeField(sampler, cond, cond["prompt_embeds"].detach().clone())
    sde = SdeField(ode, top, shape)
    span = torch.tensor([0.0, top - low])

    def latents(noise: Tensor, prompt: Tensor) -> Tensor:
        y = (noise / nodes[0].alpha.float()).flatten(1)
        path = BrownianInterval(t0=0.0, t1=top - low, size=tuple(y.shape), entropy=0)
        solve: Any = sdeint if exact else sdeint_adjoint
        out = solve(sde, y, span, bm=path, method="midpoint", dt=(top - low) / len(nodes))
        return out[-1].view(shape) * nodes[len(nodes)].alpha.float()

    return latents, ode


class _Edict(torch.autograd.Function):
    """EDICT's coupled DDIM (Wallace et al., 2022, arXiv 2211.12446), run back without stored states as DOODL does."""

    @staticmethod
    def forward(ctx: Any, eps: Any, plan: list[Any], p: float, y: Tensor, prompt: Tensor) -> Tensor:
        a, b = y, y
        for here, h in plan:
            a, b = edict_step(eps, here, h, p, a, b, prompt)
        ctx.eps, ctx.plan, ctx.p = eps, plan, p
        ctx.save_for_backward(a, b, prompt)
        return a

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        a, b, prompt = ctx.saved_tensors
        a_bar, b_bar, prompt_bar = bar, torch.zeros_like(bar), torch.zeros_like(prompt)
        p = ctx.p
        for here, h in reversed(ctx.plan):
            with torch.no_grad():
                b_mid = (b - (1 - p) * a) / p
                a_mid = (a - (1 - p) * b_mid) / p
                b = b_mid - h * ctx.eps(here, a_mid, prompt)
                a = a_mid - h * ctx.eps(here, b, prompt)
            with torch.enable_grad():
                leaves = [tensor.detach().requires_grad_() for tensor in (a, b, prompt)]
                after = edict_step(ctx.eps, here, h, p, *leaves)
            a_bar, b_bar, share = torch.autograd.grad(after, leaves, [a_bar, b_bar])
            prompt_bar = prompt_bar + share
        return None, None, None, a_bar + b_bar, prompt_bar


def edict_step(
    eps: Any, here: Any, h: float, p: float, a: Tensor, b: Tensor, prompt: Tensor
) -> tuple[Tensor, Tensor]:
    """One coupled step in (y, rho)."""
    a = a + h * eps(here, b, prompt)
    b = b + h * eps(here, a, prompt)
    a = p * a + (1 - p) * b
    return a, p * b + (1 - p) * a


def edict(sampler: adp.FlowSampler, cond: adp.Cond, exact: bool, p: float = 0.93) -> Latents:
    """EDICT by its reversal, or by plain autograd through the same steps."""
    plain, nodes = guided(sampler, cond), nodes_of(sampler)
    plan = [(nodes[i], float(nodes[i + 1].tau - nodes[i].tau)) for i in range(len(nodes))]

    def eps(here: Any, y: Tensor, prompt: Tensor) -> Tensor:
        return plain(y * here.alpha, here.t.float(), prompt)

    def latents(noise: Tensor, prompt: Tensor) -> Tensor:
        y = noise / nodes[0].alpha.float()
        if exact:
            a, b = y, y
            for here, h in plan:
                a, b = edict_step(eps, here, h, p, a, b, prompt)
        else:
            a: Any = _Edict.apply(eps, plan, p, y, prompt)
        return a * nodes[len(nodes)].alpha.float()

    return latents
