"""Inverse problems on fresh renders: six solvers at equal denoiser calls, four linear operators.

    python benchmarks/solve.py --record docs/solve.json

Each render is measured with noise of 0.02, and the prompt is its caption. PSNR and SSIM are against the render, of
images that are clamped; `left` is the metric, whose value at the measurement's own noise is 0.5. D-Flow samples in 10
steps, and the others in as many as the calls allow. dps-mean ends in 12 moves through the decoder alone, which are no
denoiser calls; with them dps and flowchef are rows of their own. No render and no noise was used to choose a setting.
Started again, it goes on where it ended.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from protocol import flags_of, model
from record import write_record
from renders import renders

from adjointdpm.metrics import Measured, psnr, ssim
from adjointdpm.metrics.operators import Downsample, GaussianBlur, Grayscale, Mask
from adjointdpm.tasks.evaluation import Mean
from adjointdpm.tasks.solve import METHODS, solved

OPERATORS = {
    "blur": GaussianBlur(2.0),
    "mask": Mask(0.5),
    "downsample": Downsample(4),
    "gray": Grayscale(),
}
SIGMA = 0.02
CHOSEN_ON = (40, 44)
"""Renders on which the settings were chosen."""
ROWS = {
    **{name: (name, None) for name in METHODS},
    **{f"{name}, 12 decoder moves": (name, 12) for name in ("dps", "flowchef")},
}
"""Each row's solver and its decoder moves."""


def main() -> None:
    """Run the protocol."""
    parser = flags_of(__doc__, images=8, calls=100, sampling=10)
    parser.set_defaults(guidance=2.0)
    flags = parser.parse_args()
    first = CHOSEN_ON[1]
    images, captions, _ = renders(first + flags.images)
    images, captions = images[first:], captions[first:]
    path: Path | None = flags.record
    record = json.loads(path.read_text()) if path is not None and path.exists() else {}
    settings = {name: getattr(flags, name) for name in ("images", "calls", "sampling", "guidance", "seed")}
    rows: list[dict[str, Any]] = record.get("rows", []) if record.get("settings") == settings else []
    sampler = model(flags)
    cond, noise = sampler.encode(captions), sampler.noise(flags.images, flags.seed)
    for name, operator in OPERATORS.items():
        exact = operator(images)
        draw = torch.randn(exact.shape, generator=torch.Generator().manual_seed(flags.seed))
        metric = Measured(operator, exact + SIGMA * draw, SIGMA)
        for method, (solver, moves) in ROWS.items():
            if any((row["operator"], row["method"]) == (name, method) for row in rows):
                continue
            begun = time.perf_counter()
            found = solved(solver, sampler, metric, noise, cond, flags.calls, moves)
            made = found.images.clamp(0, 1)
            with torch.no_grad():
                row = {
                    "operator": name,
                    "method": method,
                    "psnr": Mean.of(psnr(made, images)).as_dict(),
                    "ssim": Mean.of(ssim(made, images)).as_dict(),
                    "left": float(metric(found.images).mean()),
                    "calls": found.calls,
                    "seconds": time.perf_counter() - begun,
                }
            print(row, flush=True)
            rows.append(row)
            write_record(path, "solve.py", sys.argv[1:], settings=settings, rows=rows)


if __name__ == "__main__":
    main()
