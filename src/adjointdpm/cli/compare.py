"""`adjointdpm compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from .._types import InputError, Range
from ..analysis.comparison import compare as compare_gradients
from ..files.atomic_write import write_file
from ..files.html_report import Page
from ..metrics import beside, for_prompts
from ..tasks.report import facts_of
from ..tasks.sampling import network_of, sampled
from ..tasks.tune.trainable_weights import Lora
from .flags import Given, Group
from .options import (
    FolderOptions,
    ModelOptions,
    NetworkOptions,
    check_networks,
    free_folder,
    in_one_process,
)
from .parse_metric import metric_of
from .parse_sampler import adjoint_of, check_memory, check_steps

__all__ = ["Compare", "CompareOptions"]


@dataclass(frozen=True)
class CompareOptions:
    """What is compared.

    Args:
        prompt: Prompt of the image.
        metric: Metric whose gradients are compared, as [weight*]kind[:argument], such as "background:0.9,0.8,0.2".
            May be repeated; the metrics are added up.
        adjoint: Way of computing a gradient that is compared: checkpointed[:keep], checkpointed:8GiB (a budget of
            memory), checkpointed:auto, backprop, reversible (with a coupled solver), truncated:last, coarse[:steps],
            continuous[:steps], drtune[:steps], flowbp:sparse[:steps], flowbp:bridge[:steps], flowbp:lagrange, leapalign
            or directalign; those after continuous are surrogates of a weight gradient. May be repeated; all that the
            solver has are compared by default, the surrogates where weights are differentiated.
        seed: Random seed of the noise.
        repeats: Number of timed rounds.
        weights: Also differentiate the network's own weights.
        lora_rank: Also differentiate the weights of a new LoRA of this rank.
        check: Check the exact gradient by finite differences.
    """

    prompt: str
    metric: tuple[str, ...] = ("chroma",)
    adjoint: tuple[str, ...] = ()
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    repeats: Annotated[int, Range(1, 1000)] = 3
    weights: bool = False
    lora_rank: Annotated[int | None, Range(1, 1024)] = None
    check: bool = True


@dataclass(frozen=True)
class Compare:
    """The flags of `adjointdpm compare`."""

    task: CompareOptions
    networks: NetworkOptions
    model: Annotated[ModelOptions, Group(without=("adjoint",))]
    output: FolderOptions = FolderOptions(Path("outputs/compare"))

    def run(self, given: Given) -> None:
        """Measure, print the table, and write the files and the page."""
        in_one_process(given.command)
        task = self.task
        if task.weights and task.lora_rank is not None:
            raise InputError(
                "give --weights or --lora_rank, not both: a LoRA is compared with the other weights frozen"
            )
        adjoints = [adjoint_of(each) for each in task.adjoint]
        for each in adjoints:
            check_steps(self.model.solver, each)
        folder = free_folder(self.output.output_dir, "compare.json", overwrite=self.output.overwrite)
        sampler = self.model.sampler()
        check_memory(sampler, 1, 1)
        networks = self.networks.networks(sampler)
        metric = metric_of(task.metric, networks)
        check_networks(given, networks)
        network_of(sampler).requires_grad_(task.weights)
        if task.lora_rank is not None:
            Lora(task.lora_rank).attach(network_of(sampler), task.seed)
        noise, cond = sampler.noise(1, task.seed), sampler.encode(task.prompt)
        found = compare_gradients(
            sampler,
            beside(for_prompts(metric, [task.prompt]), sampled(sampler, noise, cond, 1)),
            adjoints or None,
            noise=noise,
            cond=cond,
            repeats=task.repeats,
            check=task.check,
            quiet=self.output.quiet,
        )
        print(found)
        write_file(folder / "compare.json", found.to_json().encode())
        write_file(folder / "compare.csv", found.to_csv().encode())
        plot = found.plot(folder / "compare.png")
        print(plot)
        page = Page("adjointdpm compare: the error and cost of every gradient")
        page.verdict = found.recommendation
        agreeing = [check.variable for check in found.checks if check.agrees]
        if agreeing:
            page.verdict += f" Finite differences agree with the exact gradient of {', '.join(agreeing)}."
        metric = f"{' + '.join(task.metric)}; lower is better"
        page.facts = {"Metric": metric, "Prompt": task.prompt}
        page.facts |= facts_of(sampler, given.resolved()) | {"Gradient": "each of those in the table"}
        head, *rows = found.cells()
        page.text(
            "Each row is one way to compute the gradient of the metric with respect to one variable. “error” is "
            "|g - g*| / |g*| and “cosine” that of the angle between g and g*, where g* is the exact gradient; “norm” "
            "is |g| / |g*|. “MB saved” is what is held for the backward pass, and “calls f/b” are the denoiser's calls "
            "forward, recomputation included, and backward."
        )
        page.table(head, rows)
        for sentence in found.confirmations:
            page.text(sentence)
        page.plot(
            "Left: error against seconds. Middle and right: error and norm along the trajectory.",
            plot.read_bytes(),
        )
        page.heading("How to load the result")
        page.code(f'rows = json.load(open("{folder / "compare.json"}"))["rows"]')
        page.heading("How to repeat this")
        write_file(folder / "config.yaml", given.as_yaml().encode())
        page.code(f"adjointdpm compare --config {folder / 'config.yaml'} --overwrite")
        print(f"page: {page.write(folder / 'index.html').resolve()}")
