"""Which of 16 prompts has the highest log-likelihood of a fresh render.

    python benchmarks/likelihood.py --record docs/likelihood.json

The choices of each render are its own caption and those of 15 other renders, at guidance 1, and the same probes serve
all of them. The likelihood is that of the latents. Started again, it goes on where it ended.
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

import adjointdpm as adp
from adjointdpm.tasks.evaluation import Rate

CHOICES = 16


def main() -> None:
    """Run the protocol."""
    parser = flags_of(__doc__, images=48, probes=1, sampling=10)
    parser.set_defaults(guidance=1.0)
    flags = parser.parse_args()
    images, captions, _ = renders(flags.images + CHOICES)
    path: Path | None = flags.record
    record = json.loads(path.read_text()) if path is not None and path.exists() else {}
    settings = {"images": flags.images, "probes": flags.probes, "sampling": flags.sampling}
    rows: list[dict[str, Any]] = record.get("rows", []) if record.get("settings") == settings else []
    sampler = model(flags)
    for i in range(len(rows), flags.images):
        begun = time.perf_counter()
        texts = captions[i : i + CHOICES]
        with torch.no_grad():
            found = sampler.log_likelihood(
                images[i : i + 1].repeat(CHOICES, 1, 1, 1),
                sampler.encode(texts),
                probes=flags.probes,
                solver=adp.Heun(),
            )
        values = found.value.tolist()
        rows.append(
            {
                "caption": texts[0],
                "chosen": texts[int(found.value.argmax())],
                "bits": float(found.bits_per_dimension[0]),
                "margin": values[0] - max(values[1:]),
                "calls": sampler.stats.nfe_forward,
                "seconds": time.perf_counter() - begun,
            }
        )
        print(rows[-1], flush=True)
        right = Rate(sum(row["chosen"] == row["caption"] for row in rows), len(rows))
        write_record(
            path, "likelihood.py", sys.argv[1:], settings=settings, right=right.as_dict(), rows=rows
        )


if __name__ == "__main__":
    main()
