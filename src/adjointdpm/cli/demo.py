"""The main job on the bundled model, in minutes on a CPU: the tasks themselves with small settings, and an index.

Five parts: sample; audit a classifier (gradient of the noise); learn a word (of the prompt); tune a LoRA (of the
weights); and compare the error and the cost of every way to differentiate. Each task writes its own page.
"""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from ..analysis.comparison import compare
from ..files.atomic_write import write_file
from ..files.html_report import ImageTable, Page
from ..files.images import as_8_bit, output_folder
from ..metrics import EffectDistance, HiddenStates, Margin, effect
from ..optimization.task import RunOptions
from ..samplers.flow_sampler import FlowSampler
from ..tasks import AuditSettings, InvertSettings, Lora, PromptGoal, TokenVectors, TuneSettings
from ..tasks.audit import audit
from ..tasks.evaluation import predict
from ..tasks.invert import invert
from ..tasks.sampling import saved
from ..tasks.tune import tune
from ..zoo import load_bundled, load_classifier
from .flags import Given
from .options import FolderOptions, free_folder, in_one_process

__all__ = ["Demo", "Scale", "demo"]

SUBJECTS = ("red apple", "car", "mushroom", "banana")
PROMPTS = tuple(f"a {subject} on a blue background" for subject in SUBJECTS)


@dataclass(frozen=True)
class Scale:
    """How the demonstration runs: steps of sampling and of each optimization, timed rounds, and whether it is quiet."""

    sampling: int = 15
    noise: int = 28
    prompt: int = 40
    weights: int = 20
    repeats: int = 2
    quiet: bool = False


@dataclass(frozen=True)
class Demo:
    """The flags of `adjointdpm demo`."""

    output: FolderOptions = FolderOptions(Path("outputs/demo"))

    def run(self, given: Given) -> None:
        """Run the demonstration, and print where its page is."""
        in_one_process(given.command)
        folder = free_folder(
            self.output.output_dir, "index.html", "*/result.json", overwrite=self.output.overwrite
        )
        print(f"page: {demo(folder, Scale(quiet=self.output.quiet)).resolve()}")


def demo(output: str | Path, scale: Scale | None = None) -> Path:
    """Run the five parts.

    Args:
        output: a folder for the index and the tasks' folders.
        scale: how much work is done; a few minutes' by default.

    Returns:
        Path: that of the index page.

    Raises:
        InputError: the folder cannot be written, a bundled file is damaged, or peft is not installed.
    """
    folder, scale, began = output_folder(output), scale or Scale(), perf_counter()
    page = Page("adjointdpm: gradients through a diffusion sampler")
    page.text(
        "Every image below was made by the bundled 64 x 64 text-to-image model, and every gradient went through all "
        f"{scale.sampling} steps of its sampler, guidance included, and through its decoder."
    )
    for part in (_sample, _noise, _prompt, _weights, _compare):
        part(_sampler(scale), page, folder, scale)  # Each has a model of its own, since tasks change it.
    page.heading("How to repeat this")
    page.code(f"adjointdpm demo --output_dir {folder}")
    page.text(f"It took {perf_counter() - began:.0f} seconds. Each task's figures are in its result.json.")
    return page.write(folder / "index.html")


def _sampler(scale: Scale) -> FlowSampler:
    return load_bundled("emoji", steps=scale.sampling, guidance_scale=4.0)


def _sample(sampler: FlowSampler, page: Page, folder: Path, scale: Scale) -> None:
    classifier = load_classifier("emoji/resnet")
    with torch.no_grad():
        images = [sampler(sampler.noise(5, seed=1), sampler.encode(prompt)) for prompt in PROMPTS]
    labels = [
        [classifier.labels[int(i)] for i in predict(classifier, saved(each)).argmax(1)] for each in images
    ]
    page.heading("1. Sampling")
    page.text(
        "There is one prompt in each row. The caption is the label that a classifier gives the image."
    )
    rows = [ImageTable(*each) for each in zip(PROMPTS, map(as_8_bit, images), labels, strict=True)]
    page.images(*rows, file=folder / "samples.png")


def _noise(sampler: FlowSampler, page: Page, folder: Path, scale: Scale) -> None:
    kept = load_classifier("emoji/hgnet")
    found = audit(
        sampler,
        load_classifier("emoji/resnet"),
        PROMPTS,
        SUBJECTS,
        output=folder / "audit",
        settings=AuditSettings(max_train_steps=scale.noise, momentum=0.5, controls=False),
        judge=load_classifier("emoji/judge"),
        features=HiddenStates(kept.model, kept.normalized, None),
        run=RunOptions(quiet=scale.quiet),
    )
    page.heading("2. Noise: which images does a classifier get wrong?")
    page.text(
        "The initial noise moves by at most 10 % of its norm, down the gradient of the classifier's margin. "
        f"Misclassified, scored on the saved 8-bit images: {found.success}. The label is preserved if an "
        f"independent judge still recognizes the object: {found.kept}."
    )
    before, after = found.before, found.after
    page.images(
        ImageTable("before", before.images, [f"classified as {label}" for label in before.says]),
        ImageTable("after", after.images, [f"classified as {label}" for label in after.says]),
        file=folder / "noise.png",
    )
    page.link("The audit's page", "audit/index.html")


def _prompt(sampler: FlowSampler, page: Page, folder: Path, scale: Scale) -> None:
    token = "<color>"
    found = invert(
        sampler,
        TokenVectors(sampler, token, "blue"),
        PromptGoal("yellow"),
        [f"a {subject} on a {token} background" for subject in ("red apple", "car", "cat", "star")],
        [f"a {subject} on a {token} background" for subject in SUBJECTS[2:]],
        token=token,
        output=folder / "invert",
        settings=InvertSettings(max_train_steps=scale.prompt, learning_rate=0.1, num_validation_images=1),
        run=RunOptions(quiet=scale.quiet),
    )
    seen, _, unseen = found.reports.values()
    page.heading("3. Prompt: from images to a word")
    page.text(
        f"The new word {token} starts as “blue” and learns what “yellow” does to images, without ever seeing that "
        f"word. The squared distance to the target falls from {seen.metric_before:.3f} to "
        f"{seen.metric_after:.3f}, and from {unseen.metric_before:.3f} to {unseen.metric_after:.3f} for objects "
        "and noise that it was not trained on (below)."
    )
    rows = {"without the word": unseen.before, "with it": unseen.after, "target": unseen.target}
    page.images(
        *(ImageTable(name, as_8_bit(images), unseen.prompts) for name, images in rows.items()),
        file=folder / "prompt.png",
    )
    page.link("The inversion's page", "invert/index.html")


def _weights(sampler: FlowSampler, page: Page, folder: Path, scale: Scale) -> None:
    found = tune(
        sampler,
        EffectDistance(effect("sepia")),
        PROMPTS[:2],
        PROMPTS[2:],
        output=folder / "tune",
        weights=Lora(lora_layers=(*Lora.lora_layers, "conv1")),
        settings=TuneSettings(max_train_steps=scale.weights, learning_rate=0.01),
        run=RunOptions(quiet=scale.quiet),
    )
    before, after = found.methods["untuned"], found.methods["metric"]
    page.heading("4. Weights: tune the model to a metric")
    page.text(
        f"A LoRA of {found.costs['weights']:,} weights is trained for {scale.weights} steps to make the images of two "
        "prompts sepia. On objects and noise that it was not trained on (below), the squared distance to their own "
        f"sepia goes from {before.means['metric']:.4f} to {after.means['metric']:.4f}."
    )
    images = before.images
    rows = {"before": images, "after": after.images, "goal": effect("sepia")(images)}
    captions = [prompt for prompt in PROMPTS[2:] for _ in range(2)]
    page.images(
        *(ImageTable(name, as_8_bit(each), captions) for name, each in rows.items()),
        file=folder / "weights.png",
    )
    page.link("The tuning's page", "tune/index.html")


def _compare(sampler: FlowSampler, page: Page, folder: Path, scale: Scale) -> None:
    classifier = load_classifier("emoji/resnet")
    metric = Margin(classifier, torch.tensor([classifier.index(SUBJECTS[0])]))
    noise, cond = sampler.noise(1, seed=1), sampler.encode(PROMPTS[0])
    found = compare(
        sampler, metric, noise=noise, cond=cond, repeats=scale.repeats, check=False, quiet=scale.quiet
    )
    page.heading("5. How true is each gradient, and what does it cost?")
    page.text(
        "Error is |g - g*| / |g*| against the exact gradient of the same sampler; memory is what was saved for "
        "the backward pass; calls are denoiser calls forward (recomputation included) and backward. The last "
        "line is the scheme of the paper's release."
    )
    head, *rows = found.cells()
    page.table(head, rows)
    write_file(folder / "compare.json", found.to_json().encode())
    print(found)
