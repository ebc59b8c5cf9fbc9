"""Inverse problems on fresh renders: six solvers at equal denoiser calls, four linear operators.

    python benchmarks/solve.py --images 32 --record docs/solve.json --picture docs/solve.png

Each render is measured with noise of 0.02, and the prompt is its caption. PSNR and SSIM are against the render, of
images that are clamped; `left` is the metric, whose value at the measurement's own noise is 0.5. D-Flow samples in 10
steps, and the others in as many as the calls allow. dps-mean ends in 12 moves through the decoder alone, which are no
denoiser calls; with them dps and flowchef are rows of their own. No render and no noise was used to choose a setting.
Started again, it goes on where it ended. The folder --output holds the images of each row, one beside the other, and
--picture shows the first of them for every operator and solver.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from protocol import flags_of, model
from record import write_record
from renders import renders
from torch import Tensor
from torch.nn import functional

from adjointdpm.files.atomic_write import write_file
from adjointdpm.files.images import as_8_bit, image_file, png
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
    parser.add_argument("--operators", nargs="+", choices=list(OPERATORS), default=list(OPERATORS))
    parser.add_argument("--picture", type=Path, default=None, help="PNG of one render in all rows")
    flags = parser.parse_args()
    strips: Path = flags.output / "solve"
    strips.mkdir(parents=True, exist_ok=True)
    first = CHOSEN_ON[1]
    images, captions, _ = renders(first + flags.images)
    images, captions = images[first:], captions[first:]
    path: Path | None = flags.record
    record = json.loads(path.read_text()) if path is not None and path.exists() else {}
    settings = {name: getattr(flags, name) for name in ("images", "calls", "sampling", "guidance", "seed")}
    rows: list[dict[str, Any]] = record.get("rows", []) if record.get("settings") == settings else []
    sampler = model(flags)
    cond, noise = sampler.encode(captions), sampler.noise(flags.images, flags.seed)
    for name in flags.operators:
        operator = OPERATORS[name]
        exact = operator(images)
        draw = torch.randn(exact.shape, generator=torch.Generator().manual_seed(flags.seed))
        metric = Measured(operator, exact + SIGMA * draw, SIGMA)
        save(strips / f"{name}, measurement.png", seen(metric.y))
        for method, (solver, moves) in ROWS.items():
            if any((row["operator"], row["method"]) == (name, method) for row in rows):
                continue
            begun = time.perf_counter()
            found = solved(solver, sampler, metric, noise, cond, flags.calls, moves)
            made = found.images.clamp(0, 1)
            save(strips / f"{name}, {method}.png", made)
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
    save(strips / "render.png", images)
    if flags.picture is not None:
        picture(flags.picture, strips)


def save(path: Path, images: Tensor) -> None:
    """Write images, one beside the other."""
    write_file(path, png(as_8_bit(torch.cat(list(images), 2))))


def seen(y: Tensor) -> Tensor:
    """A measurement in three channels and at the size of the images."""
    return functional.interpolate(y.expand(-1, 3, -1, -1).clamp(0, 1), (64, 64))


def picture(path: Path, strips: Path) -> None:
    """One render: a row for each operator, the measurement and the image of each solver in the columns."""
    columns = ["measurement", *METHODS, "render"]
    figure = Figure(figsize=(1.05 * len(columns) + 0.9, 1.05 * len(OPERATORS) + 0.3))
    for i, operator in enumerate(OPERATORS):
        for j, name in enumerate(columns):
            axes = figure.add_subplot(len(OPERATORS), len(columns), len(columns) * i + j + 1)
            file = strips / ("render.png" if name == "render" else f"{operator}, {name}.png")
            axes.imshow(image_file(file)[:, :, :64].permute(1, 2, 0).numpy())
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if i == 0:
                axes.set_title(name, fontsize=9)
            if j == 0:
                axes.set_ylabel(operator, rotation=0, ha="right", va="center", fontsize=9)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
