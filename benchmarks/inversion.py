r"""Image -> noise -> image on fresh renders: the usual inversion of DDIM beside the solver's own steps inverted.

    python benchmarks/inversion.py --record docs/inversion.json
    python benchmarks/inversion.py --images 16 --batch 16 --steps 25 --guidances 4 --edits \
        --methods "no optimization" "negative prompt" "null-text" "Coupled(Euler)" Heun \
        --record docs/inversion-edits.json

Of each method: the PSNR of the image that comes back, and of the latents that come back the error relative to their
norm, beside the denoiser calls of the inversion. "Autoencoder" is the PSNR of an image that is encoded and decoded
only, which no inversion of latents can pass except by chance. DDIM's takes z_i = z_{i+1} - h f(z_{i+1}, t_i); the
others solve step(z_i) = z_{i+1}, and DPM++(2M) its whole sampling at once. Three methods solve it at guidance 1, by
Euler, and sample with guidance from that noise: with the prompt's own negative embedding ("no optimization"), with
those of null-text optimization, whose backward calls are counted, too, and with the caption as the negative prompt.
Nothing is left out where an iteration does not converge: the states are the best that were found, and `converged` is
the share of the images whose latents come back within 1e-3. The calls are of a batch, whose iterations end when its
slowest image has converged. Started again, it goes on where it ended.

With --edits each noise is sampled again with another color in the caption: `edited` is the share of the images whose
background the judge of colors reads as the new one, `kept` that of those in which the judge of objects reads the
concept of the caption.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from protocol import flags_of, model
from record import write_record
from renders import caption, psnr, renders
from torch import Tensor

import adjointdpm as adp
from adjointdpm.adjoints.inversion import solution
from adjointdpm.adjoints.null_text import null_texts, unguided
from adjointdpm.flow.null_text import NEGATIVE
from adjointdpm.samplers.inversion import whole_inverse
from adjointdpm.solvers.integrate import IVP

METHODS: dict[str, adp.Solver] = {
    "DDIM": adp.Euler(),
    "Euler": adp.Euler(),
    "Heun": adp.Heun(),
    "DPM++(2M)": adp.DPMSolverPP(2),
    "Coupled(Euler)": adp.Coupled(adp.Euler()),
    "no optimization": adp.Euler(),
    "null-text": adp.Euler(),
    "negative prompt": adp.Euler(),
}
GUIDED = ("no optimization", "null-text", "negative prompt")  # the same as Euler at guidance 1


def ddim(ivp: IVP, stats: adp.Stats) -> Tensor:
    """Return the first state of the usual inversion: each slope is taken at the state that is known."""
    z = ivp.initial
    for i in reversed(range(len(ivp.grid))):
        z = z + (ivp.grid[i].tau - ivp.grid[i + 1].tau) * ivp.velocity(z, ivp.grid[i])
        stats.nfe_forward += 1
    return z


def inverted(
    method: str, sampler: adp.FlowSampler, images: Tensor, cond: adp.Cond
) -> tuple[Tensor, adp.FlowSampler, dict[str, Tensor], int]:
    """Return the noise, the sampler that comes back from it, what it needs in the conditioning, and the calls."""
    if isinstance(sampler.solver, adp.Coupled):
        noise, back = sampler.invert_coupled(images, cond)
        return noise, back, {}, sampler.solver.calls(sampler.steps)
    stats = adp.Stats()
    if not sampler.solver.one_step:
        inverse = whole_inverse(sampler, sampler, cond, stats)
        y, _ = inverse.found(sampler.model.encode_image(images), 1e-4)
        return inverse.noise(y, y), sampler, {}, stats.nfe_forward
    ivp, prior = sampler.backwards(images, cond)
    free = replace(ivp, cond=unguided(ivp.cond, sampler.model.denoiser.guidance))
    if method == "null-text":
        found = null_texts(ivp, free, stats, iterations=10, aim=1e-3)
        back = sampler.replace(model=sampler.model.with_denoiser(found.denoiser))
        return found.start * prior, back, {}, stats.nfe_forward + stats.nfe_backward
    if method == "DDIM":
        start = ddim(ivp, stats)
    else:
        start = solution(free if method in GUIDED else ivp, stats, 1e-4).states[0]
    extra = {NEGATIVE: cond["prompt_embeds"]} if method == "negative prompt" else {}
    return start * prior, sampler, extra, stats.nfe_forward


def measured(
    method: str, sampler: adp.FlowSampler, images: Tensor, texts: list[str], edits: list[str] | None
) -> dict[str, Tensor]:
    """Return, for each image, what comes back, its relative error in latents, the noise's deviation, and the edit."""
    cond = sampler.encode(texts)
    noise, back, extra, calls = inverted(method, sampler, images, cond)
    latents = sampler.model.encode_image(images)
    end = back.latents(noise, cond.replace(**extra))
    found = {
        "image": back.decode(end),
        "away": (end - latents).flatten(1).norm(dim=1) / latents.flatten(1).norm(dim=1),
        "deviation": noise.flatten(1).std(1),
        "calls": torch.full((len(images),), float(calls)),
    }
    if edits is not None:
        found["edit"] = back(noise, back.encode(edits).replace(**extra)).clamp(0, 1)
    return found


def share(judge: Any, images: Tensor, names: list[str]) -> float:
    """Return the share of the images that a judge reads as they should be."""
    read = [judge.labels[int(k)] for k in judge(images).argmax(1)]
    return sum(a == b for a, b in zip(read, names, strict=True)) / len(names)


def main() -> None:
    """Run the protocol."""
    parser = flags_of(__doc__, images=100, batch=25, sampling=25)
    parser.add_argument("--guidances", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 25, 50])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument(
        "--edits", action="store_true", help="sample with another color in the caption, too"
    )
    flags = parser.parse_args()
    images, captions, labels = renders(flags.images)
    known = sorted(set(labels["colours"]))
    concepts, old, styles = (labels[each][: flags.images] for each in ("concepts", "colours", "styles"))
    colors = [known[(known.index(each) + 1) % len(known)] for each in old]
    edits = [caption(*each) for each in zip(concepts, colors, styles, strict=True)] if flags.edits else None
    judges = [adp.load_classifier(f"emoji/judge{kind}") for kind in ("/colour", "")] if flags.edits else []
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
                    if (method, guidance, steps) in done or (guidance <= 1 and method in GUIDED):
                        continue
                    solver = METHODS[method]
                    sampler = base.replace(steps=steps, guidance_scale=guidance, solver=solver)
                    parts: list[dict[str, Tensor]] = []
                    for k in range(0, len(images), flags.batch):
                        rest = slice(k, k + flags.batch)
                        wanted = None if edits is None else edits[rest]
                        parts.append(measured(method, sampler, images[rest], captions[rest], wanted))
                    made = {name: torch.cat([each[name] for each in parts]) for name in parts[0]}
                    found, away = psnr(made["image"], images), made["away"]
                    row = {
                        "method": method,
                        "guidance": guidance,
                        "steps": steps,
                        "psnr": float(found.mean()),
                        "worst": float(found.min()),
                        "error": float(away.median()),
                        "converged": float((away < 1e-3).float().mean()),
                        "calls": float(made["calls"].mean()),
                        "deviation": float(made["deviation"].mean()),
                    }
                    if judges:
                        row["edited"] = share(judges[0], made["edit"], colors)
                        row["kept"] = share(judges[1], made["edit"], concepts)
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
