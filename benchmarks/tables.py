"""The tables of the documentation, from the records under docs/: rewritten in place between their marks.

    python benchmarks/tables.py            # rewrite
    python benchmarks/tables.py --check    # exit 1 if one is not what its record says

A mark is `<!-- table: NAME -->`; its table ends at `<!-- end -->`. A record that is not there leaves its table alone.
"""

import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/comparison.md",
    "docs/audit-a-defence.md",
    "docs/choosing-an-adjoint.md",
    "docs/inverse-problems.md",
    "docs/start-from-an-image.md",
    "docs/studio.md",
    "docs/surrogates.md",
    "docs/tasks.md",
    "docs/tune-to-a-reward.md",
)
Record = dict[str, Any]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, form: str = ".2f") -> str:
    """A figure, or nothing."""
    return "" if value is None else format(value, form)


def error(value: float | None) -> str:
    """A relative error to one or two digits."""
    if value is None:
        return ""
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-") if value < 0.01 else f"{value:.2g}"


def megabytes(value: float | None) -> str:
    """Bytes in MB."""
    return "" if value is None else f"{value / 1e6:.1f}"


def rate(found: Record | None) -> str:
    """A share of counted things with Wilson's interval."""
    if found is None:
        return ""
    low, high = 100 * found["low"], 100 * found["high"]
    return f"{100 * found['share']:.0f} % ({low:.0f} to {high:.0f})"


def mean(found: Record) -> str:
    """A mean with its interval."""
    return f"{found['mean']:.4f} ({found['low']:.4f} to {found['high']:.4f})"


def speed(record: Record) -> str:
    """Error, time and memory of one gradient."""
    head = ["", "error, noise", "cosine", "error, prompt", "time", "MB saved"]
    return markdown(
        head,
        [
            [
                row["method"],
                error(row["noise_error"]),
                number(row["noise_cosine"], ".4f"),
                error(row["prompt_error"]),
                number(row["time_ratio"]),
                megabytes(row["bytes_saved"]),
            ]
            for row in record["rows"]
        ],
    )


def gradients(record: Record) -> str:
    """Everyone, at each number of steps."""
    head = ["N", "", "error, noise", "cosine", "error, prompt", "MB alive at most", "calls", "time"]
    return markdown(
        head,
        [
            [
                str(row["steps"]),
                row["method"],
                error(row["noise_error"]),
                number(row["noise_cosine"], ".4f"),
                error(row["prompt_error"]),
                megabytes(row["live_bytes"]),
                str(row["network_calls"]),
                number(row["time_ratio"]),
            ]
            for row in record["rows"]
        ],
    )


def curve(record: Record) -> str:
    """M -> error, cosine, time."""

    def pair(row: Record, key: str, form: Callable[[float], str]) -> str:
        found = row.get(key)
        return "" if found is None else f"{form(found['median'])} / {form(found['worst'])}"

    def four(value: float) -> str:
        return f"{value:.4f}"

    head = ["", "error, noise: median / worst", "cosine", "error, prompt", "cosine", "time", "MB saved"]
    keys = (
        ("noise_error", error),
        ("noise_cosine", four),
        ("prompt_error", error),
        ("prompt_cosine", four),
    )
    return markdown(
        head,
        [
            [
                row["method"],
                *(pair(row, key, form) for key, form in keys),
                number(row.get("time_ratio")),
                megabytes(row.get("bytes_saved")),
            ]
            for row in record["rows"]
        ],
    )


def scaling(record: Record) -> str:
    """Exponents."""
    head = ["as this grows", "", "seconds", "bytes saved", "seconds at most", "MB at most"]
    return markdown(
        head,
        [
            [
                f"{row['axis']}, {row['sizes'][0]} to {row['sizes'][-1]}",
                row["adjoint"],
                *(f"n^{row['exponents'][key]:.2f}" for key in ("seconds", "bytes")),
                number(row["seconds"][-1]),
                megabytes(row["bytes"][-1]),
            ]
            for row in record["rows"]
        ],
    )


def real_size(record: Record) -> str:
    """Memory of Stable Diffusion's own sizes."""
    head = ["", "N", "GiB saved", "GiB planned", "GiB alive at most", "denoiser calls", "seconds"]
    return markdown(
        head,
        [
            [
                row["adjoint"],
                str(row["steps"]),
                number(row["bytes_saved"] / 2**30),
                number(row["predicted"] and row["predicted"] / 2**30),
                number(row["peak"] / 2**30),
                str(row["calls"]),
                number(row["seconds"], ".0f" if row["seconds"] > 9.5 else ".1f"),
            ]
            for row in record["rows"]
        ],
    )


def matters(record: Record) -> str:
    """Whether a cheaper gradient does."""
    head = [
        "gradient",
        "steps",
        "calls a step",
        "misclassified",
        "label preserved",
        "background colour",
        "sepia",
    ]
    return markdown(
        head,
        [
            [
                row["gradient"],
                str(row["steps"]),
                str(row["calls_a_step"]),
                rate(row["misclassified"]),
                rate(row["label preserved"]),
                mean(row["background colour"]),
                mean(row["sepia"]),
            ]
            for row in record["rows"]
        ],
    )


def audit(record: Record) -> str:
    """Success and preserved labels, against the ball's size; controls."""
    found = record["audit"]
    named = {f"gradient, ball of {100 * float(r):.0f} %": each for r, each in found["curve"].items()}
    columns: dict[str, Callable[[Record], str]] = {
        "misclassified": lambda each: rate(each["success"]),
        "label preserved": lambda each: rate(each["success_and_kept"]),
    }
    if all("calls" in each for each in named.values()):
        columns = {"calls an image": lambda each: number(each["calls"], "d")} | columns
    rows = [
        [name, *(cell(each) for cell in columns.values())]
        for name, each in {**named, **found["controls"]}.items()
    ]
    return markdown(["10 % ball where not said otherwise", *columns], rows)


def hardening(record: Record) -> str:
    """A classifier before and after."""
    named = {
        "misclassified": "",
        "misclassified, label preserved": "kept_",
        "clean images read right": "clean_",
        "those of labels that were not audited": "others_",
    }
    found = record["hardening"]
    rows = [
        [name, rate(found[f"{what}before"]), rate(found[f"{what}after"])] for name, what in named.items()
    ]
    if there := record.get("elsewhere"):
        verdicts = [there[when]["after"] for when in ("before", "after")]
        for name, what in (
            ("misclassified", "success"),
            ("misclassified, label preserved", "success_and_kept"),
        ):
            rows.append([f"elsewhere: {name}", *(rate(each[what]) for each in verdicts)])
    return markdown(["on fresh noise", "before", "after"], rows)


def invert(record: Record) -> str:
    """Six effects."""
    sets = ("seen noise", "unseen noise", "unseen concepts")
    head = ["effect", *(f"{name}: less by" for name in sets), *(f"judge, {name}" for name in sets[1:])]
    return markdown(
        head,
        [
            [
                effect,
                *(f"{100 * each[name]['reduction']:.0f} %" for name in sets),
                *(rate(each[name]["judged"]) for name in sets[1:]),
            ]
            for effect, each in record["effects"].items()
        ],
    )


def invert_metric(record: Record) -> str:
    """Tokens from one image each."""
    head = [
        "effect",
        "images",
        "distance of patches",
        "effect named by the judge",
        "concept named by the judge",
    ]
    rows = [
        [effect, name, f"{row['style']:.3f}", rate(row["effect_named"]), rate(row["concept_named"])]
        for effect, each in record["effects"].items()
        for name, row in each["images"].items()
    ]
    return markdown(head, rows)


def invert_survey(record: Record) -> str:
    """How well metrics of one image tell its effect from others."""
    effects = record["effects"]
    metrics = list(next(iter(effects.values()))["metrics"])

    def ratio(effect: str, name: str) -> str:
        each = effects[effect]["metrics"][name]
        return f"{each['next_value'] / each['own word']:.2f}"

    rows = [[name, *(ratio(effect, name) for effect in effects)] for name in metrics]
    rows += [
        [text, *(f"{each[what]['hits']} of {each[what]['of']}" for each in effects.values())]
        for text, what in (
            ("*own word: effect named by the judge*", "own_word_named"),
            ("*own word: concept named by the judge*", "own_word_concept"),
        )
    ]
    return markdown(["metric", *effects], rows)


def tune(record: Record) -> str:
    """Styles from one image."""
    head = ["style", "weights trained for", "style distance", "change", "concept seen by the judge"]
    rows = []
    for style, ways in record["styles"].items():
        before = ways["untuned"]["distances"]["style"]
        for way, each in ways.items():
            now = each["distances"]["style"]
            change = "" if way == "untuned" else f"{100 * (now / before - 1):+.0f} %"
            rows.append([style, way, f"{now:.3f}", change, rate(each["judged"])])
    return markdown(head, rows)


def guide(record: Record) -> str:
    """Four metrics, at equal calls."""
    rows = []
    for metric, strengths in record["metrics"].items():
        for i, (strength, ways) in enumerate(strengths.items()):
            for way, each in ways.items():
                if way == "no guidance" and i:
                    continue
                several = len(strengths) > 1 and way != "no guidance"
                name = f"{way}, moves of {strength}" if several else way
                rows.append([metric, name, str(each["calls"]), mean(each["reached"]), rate(each["judged"])])
    return markdown(
        ["metric", "", "calls an image", "reached, lower is better", "concept seen by the judge"], rows
    )


def studio(record: Record) -> str:
    """The studio under use."""
    found = record["figures"]
    moments = ("after one run of each kind", "at the end")
    memory = [f"{megabytes(found[f'resident bytes {each}'])} MB" for each in moments]
    rows = [
        ("first image after the start", f"{found['seconds to the first image']:.1f} s"),
        ("... of which the server computed", f"{found['of these, processor seconds of the server']:.1f} s"),
        ("... load average of the two cores", f"{found['processes that wanted a core meanwhile (load average)']:.0f}"),
        ("runs in a row, sessions at once, cancels",
         f"{found['runs in a row']}, {found['sessions at once']}, {found['cancels']}"),
        ("errors", str(len(found["errors"]))),
        ("processes left at the end", str(found["processes left after Ctrl-C"])),
        ("resident memory after one run of each kind", memory[0]),
        ("resident memory at the end", memory[1]),
    ]  # fmt: skip
    return markdown(["", ""], rows)


def purified(record: Record) -> str:
    """What each gradient claims of a defence; its error, bytes and time."""
    kinds = ("single", "worst", "majority")
    rows = [
        [
            f"{row['t']:g}",
            *(
                ("", "no attack", "")
                if row["gradient"] is None
                else (
                    f"{255 * row['eps']:g}/255" if row["norm"] == "linf" else f"{row['eps']:g} in L2",
                    row["gradient"],
                    str(row["steps"]),
                )
            ),
            *(rate(row[kind]) for kind in kinds),
        ]
        for row in record["robust"]["rows"]
    ]
    head = [
        *("t", "radius", "gradient of the attack", "steps"),
        *("right, single draw", "right, every draw", "right, vote"),
    ]
    if "gradient" not in record:
        return markdown(head, rows)
    exact = [
        [
            row["solver"],
            str(row["steps"]),
            error(row["error"]),
            megabytes(row["bytes"]),
            number(row["bytes_ratio"]),
        ]
        for row in record["gradient"]
    ]
    spent = [
        [
            *(row["gradient"], str(row["steps"]), number(row["seconds"])),
            *(number(row["time_ratio"]), number(row["of_calls"])),
        ]
        for row in record["time"]
    ]
    return "\n\n".join(
        (
            markdown(head, rows),
            markdown(
                ["", "steps", "error to plain autograd", "MB saved", "times those of a tenth of the steps"],
                exact,
            ),
            markdown(["", "steps", "seconds", "plain autograd = 1", "N (2f + b) = 1"], spent),
        )
    )


def purified_size(record: Record) -> str:
    """Memory of a purification at Stable Diffusion's own sizes."""
    head = [
        "steps",
        "GiB saved at most",
        "GiB alive at most",
        "denoiser calls",
        "backward steps done",
        "minutes",
    ]
    return markdown(
        head,
        [
            [
                str(row["steps"]),
                number(row["saved"] / 2**30),
                number(row["alive"] / 2**30),
                str(row["calls"]),
                str(row.get("stopped_after", row["steps"])),
                number(row["seconds"] / 60, ".0f" if row["seconds"] > 600 else ".1f"),
            ]
            for row in record["rows"]
        ],
    )


def surrogates(record: Record) -> str:
    """Surrogates of a weight gradient against the exact one."""
    head = [
        "N",
        "",
        "cosine: median / worst",
        "norm ratio: median",
        "of the sum: cosine",
        "norm ratio",
        "MB",
        "calls",
    ]
    exact = {row["steps"]: row["seconds"] for row in record["rows"] if row["method"] == "Checkpointed()"}
    return markdown(
        [*head, "time, exact = 1"],
        [
            [
                str(row["steps"]),
                row["method"],
                f"{row['cosine']['median']:.2f} / {row['cosine']['worst']:.2f}",
                f"{row['norm_ratio']['median']:.2f} ({row['norm_ratio']['lowest']:.2f} to "
                f"{row['norm_ratio']['highest']:.2f})",
                number(row["mean_cosine"]),
                number(row["mean_norm_ratio"]),
                megabytes(row["bytes_saved"]),
                f"{row['calls']} / {row['calls_differentiated']}",
                number(row["seconds"] / exact[row["steps"]]),
            ]
            for row in record["rows"]
        ],
    )


def rewards(record: Record) -> str:
    """Tuning to two rewards at equal calls, the curves of one without and with guards, and a step's cost."""
    runs: dict[tuple[str, str], list[Record]] = {}
    for row in record["runs"]:
        runs.setdefault((row["tuned_to"], row["method"]), []).append(row)

    def over(rows: list[Record], what: str, form: str = ".2f") -> str:
        """The mean over seeds, and the standard error over images, or over seeds where there are three."""
        means = [row[what]["mean"] for row in rows]
        error = rows[0][what]["error"] if len(rows) < 3 else statistics.stdev(means) / len(means) ** 0.5
        return f"{statistics.mean(means):{form}} ± {error:{form}}"

    names = ("reward", "judge", "concept", "diversity")
    table = markdown(
        [
            "reward",
            "gradient",
            "learning rate",
            "steps",
            "seeds",
            "trained reward",
            "judge",
            "concept recognized",
            "diversity",
            "judge's gain",
        ],
        [
            [
                reward,
                method,
                f"{rows[0]['rate']:g}" if "rate" in rows[0] else "",
                str(rows[0].get("steps", "")),
                str(len(rows)) if "steps" in rows[0] else "",
                *(over(rows, what) for what in names),
                over(rows, "judge_gain") if "judge_gain" in rows[0] else "",
            ]
            for (reward, method), rows in runs.items()
        ],
    )
    curves: dict[str, dict[str, list[Record]]] = {}
    for name, each in record["hacking"].items():
        reward, guards = name.split(", ", 1)
        curves.setdefault(reward, {})[guards] = each["curve"]
    hacking = [
        markdown(
            [f"tuned to {reward}: step", *(f"{name}: reward / judge / concept" for name in guarded)],
            [
                [
                    str(rows[0]["step"]),
                    *(" / ".join(f"{row[what]['mean']:.2f}" for what in names[:3]) for row in rows),
                ]
                for rows in zip(*guarded.values(), strict=True)
            ],
        )
        for reward, guarded in curves.items()
    ]
    cost = markdown(
        [
            "a step of",
            "seconds by hand",
            "seconds in tune",
            "ratio: median (lowest to highest)",
            "MB by hand",
            "MB in tune",
        ],
        [
            [
                row["method"],
                *(number(row["seconds"][who], ".3f") for who in ("by hand", "tune")),
                "{median:.3f} ({lowest:.2f} to {highest:.2f})".format(**row["ratio"]),
                *(megabytes(row["bytes_saved"][who]) for who in ("by hand", "tune")),
            ]
            for row in record["cost"] or ()
        ],
    )
    tried: dict[tuple[str, str], dict[float, Record]] = {}
    for row in record.get("rates", []):
        tried.setdefault((row["tuned_to"], row["method"]), {})[row["rate"]] = row
    every = sorted({rate for rows in tried.values() for rate in rows})

    def cell(row: Record | None) -> str:
        """The trained reward and the concept's share, in bold where the rate was chosen."""
        if row is None:
            return ""
        said = f"{row['reward']['mean']:.2f}, {100 * row['concept']['mean']:.0f} %"
        return f"**{said}**" if row["chosen"] else said

    rates = markdown(
        ["reward", "gradient", *(f"learning rate {rate:g}" for rate in every)],
        [[*names, *(cell(rows.get(rate)) for rate in every)] for names, rows in tried.items()],
    )
    return "\n\n".join([table, *([rates] if tried else []), *hacking, *([cost] if record["cost"] else [])])


def inversion(record: Record) -> str:
    """Image to noise and back, beside the autoencoder's own limit; and edits, where they were made."""
    head = ["guidance", "N", "", "PSNR", "lowest", "error", "converged", "deviation", "calls"]
    order = sorted(record["rows"], key=lambda row: (row["guidance"], row["steps"]))
    rows = [
        [
            f"{row['guidance']:g}",
            str(row["steps"]),
            row["method"],
            number(row["psnr"]),
            number(row["worst"]),
            error(row["error"]),
            f"{100 * row['converged']:.0f} %",
            number(row["deviation"]),
            f"{row['calls']:.0f}",
        ]
        for row in order
    ]
    if "edited" in order[0]:
        head = [*head, "edited", "kept"]
        rows = [
            [*cells, f"{100 * row['edited']:.0f} %", f"{100 * row['kept']:.0f} %"]
            for cells, row in zip(rows, order, strict=True)
        ]
    limit = ["", "", "autoencoder", number(record["autoencoder"]), *[""] * (len(head) - 4)]
    return markdown(head, [limit, *rows])


def likelihood(record: Record) -> str:
    """The share of renders whose own caption is the likeliest."""
    rows, settings = record["rows"], record["settings"]
    margin = sorted(row["margin"] for row in rows)[len(rows) // 2]
    return markdown(
        ["renders", "steps", "probes", "right caption of 16", "margin, median", "calls of a render"],
        [
            [
                str(len(rows)),
                str(settings["sampling"]),
                str(settings["probes"]),
                rate(record["right"]),
                f"{margin:.0f} nats",
                f"16 x {rows[0]['calls']}",
            ]
        ],
    )


def solve(record: Record) -> str:
    """Inverse problems."""
    head = ["operator", "solver", "PSNR", "SSIM", "metric", "calls"]
    return markdown(
        head,
        [
            [
                row["operator"],
                row["method"],
                number(row["psnr"]["mean"]),
                number(row["ssim"]["mean"], ".3f"),
                number(row["left"]),
                str(row["calls"]),
            ]
            for row in record["rows"]
        ],
    )


TABLES: dict[str, Callable[[Record], str]] = {
    each.__name__: each
    for each in (
        speed,
        gradients,
        curve,
        scaling,
        real_size,
        matters,
        audit,
        hardening,
        invert,
        invert_metric,
        invert_survey,
        tune,
        guide,
        studio,
        purified,
        purified_size,
        surrogates,
        rewards,
        inversion,
        likelihood,
        solve,
    )
}


def rewritten(text: str) -> str:
    """A page with its tables as the records say."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        path = ROOT / "docs" / f"{name}.json"
        kind = TABLES[name.split("-")[0]]
        made = kind(json.loads(path.read_text())) if path.exists() else match[2].strip()
        return f"<!-- table: {name} -->\n{made}\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w-]+) -->\n(.*?)<!-- end -->", table, text, flags=re.DOTALL)


def main(argv: list[str]) -> int:
    """Rewrite, or check."""
    stale = 0
    for page in PAGES:
        path = ROOT / page
        text = path.read_text() if path.exists() else ""
        if (made := rewritten(text)) != text:
            stale += 1
            print(f"{page}: {'not what its records say' if '--check' in argv else 'rewritten'}")
            if "--check" not in argv:
                path.write_text(made)
    return int("--check" in argv and stale > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
