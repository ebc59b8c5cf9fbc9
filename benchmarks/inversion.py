"""Image -> noise -> image on fresh renders: the usual inversion of DDIM beside the solver's own steps inverted.

    python benchmarks/inversion.py --record docs/inversion.json

Of each method: the PSNR of the image that comes back, and of the latents that come back the error relative to their
norm, beside the denoiser calls of the inversion. "Autoencoder" is the PSNR of an image that is encoded and decoded
only, which no inversion of latents can pass except by chance. DDIM's takes z_i = z_{i+1} - h f(z_{i+1}, t_i); the
others solve step(z_i) = z_{i+1}, and DPM++(2M) its whole sampling at once. Nothing is left out where an iteration does
not converge: the states are the best that were found, and `converged` is the share of the images whose latents come
back within 1e-3. The calls are of a batch, whose iterations end when its slowest image has converged. Started again, it
goes on where it ended.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from protocol import flags_of, model
from record import write_record
from renders import psnr, renders
from torch import Tensor

import adjointdpm as adp
from adjointdpm.adjoints.inversion import solution
from adjointdpm.samplers.inversion import whole_inverse
from adjointdpm.solvers.integrate import IVP

METHODS: dict[str, adp.Solver] = {
    "DDIM": adp.Euler(),
    "Euler": adp.Euler(),
    "Heun": adp.Heun(),
    "DPM++(2M)": adp.DPMSolverPP(2),
    "Coupled(Euler)": adp.Coupled(adp.Euler()),
}


def ddim(ivp: IVP, stats: adp.Stats) -> Tensor:
    """Return the first state of the usual inversion: each slope is taken at the state that is known."""
    z = ivp.initial
    for i in reversed(range(len(ivp.grid))):
        z = z + (ivp.grid[i].tau - ivp.grid[i + 1].tau) * ivp.velocity(z, ivp.grid[i])
        stats.nfe_forward += 1
    return z


def returned(
    method: str, sampler: adp.FlowSampler, images: Tensor, texts: list[str]
) -> tuple[Tensor, Tensor, int, Tensor]:
    """Return the images and the relative errors of the latents that come back, the calls, and the noise's deviation."""
    cond = sampler.encode(texts)
    if isinstance(sampler.solver, adp.Coupled):
        noise, sampler = sampler.invert_coupled(images, cond)
        calls = sampler.solver.calls(sampler.steps)
    elif not sampler.solver.one_step:
        stats = adp.Stats()
        inverse = whole_inverse(sampler, sampler, cond, stats)
        y, _ = inverse.found(sampler.model.encode_image(images), 1e-4)
        noise, calls = inverse.noise(y, y), stats.nfe_forward
    else:
        ivp, prior = sampler.backwards(images, cond)
        stats = adp.Stats()
        start = ddim(ivp, stats) if method == "DDIM" else solution(ivp, stats, 1e-4).states[0]
        noise, calls = start * prior, stats.nfe_forward
    latents = sampler.model.encode_image(images)
    back = sampler.latents(noise, cond)
    away = (back - latents).flatten(1).norm(dim=1) / latents.flatten(1).norm(dim=1)
    return sampler.decode(back), away, calls, noise.flatten(1).std(1)


def main() -> None:
    """Run the protocol."""
    parser = flags_of(__doc__, images=100, batch=25, sampling=25)
    parser.add_argument("--guidances", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 25, 50])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    flags = parser.parse_args()
    images, captions, _ = renders(flags.images)
    path: Path | None = flags.record
    record = json.loads(path.read_text()) if path is not None and path.exists() else {}
    rows: list[dict[str, Any]] = record.get("rows", []) if record.get("images") == flags.images else []
    done = {(row["method"], row["guidance"], row["steps"]) for row in rows}
    with torch.no_grad():
        base = model(flags)
        back = base.decode(base.model.encode_image(images))
        limit = float(psnr(back, images).mean())
        for steps in flags.steps:
            for guidance in flags.guidances:
                for method in flags.methods:
                    if (method, guidance, steps) in done:
                        continue
                    solver = METHODS[method]
                    sampler = base.replace(steps=steps, guidance_scale=guidance, solver=solver)
                    parts: list[tuple[Tensor, Tensor, int, Tensor]] = []
                    for k in range(0, len(images), flags.batch):
                        rest = slice(k, k + flags.batch)
                        parts.append(returned(method, sampler, images[rest], captions[rest]))
                    found = psnr(torch.cat([each[0] for each in parts]), images)
                    away = torch.cat([each[1] for each in parts])
                    row = {
                        "method": method,
                        "guidance": guidance,
                        "steps": steps,
                        "psnr": float(found.mean()),
                        "worst": float(found.min()),
                        "error": float(away.median()),
                        "converged": float((away < 1e-3).float().mean()),
                        "calls": sum(each[2] for each in parts) / len(parts),
                        "deviation": float(torch.cat([each[3] for each in parts]).mean()),
                    }
                    print(row, flush=True)
                    rows.append(row)
                    write_record(
                        path,
                        "inversion.py",
                        sys.argv[1:],
                        images=flags.images,
                        autoencoder=limit,
                        rows=rows,
                    )


if __name__ == "__main__":
    main()
