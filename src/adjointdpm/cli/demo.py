"""The main job on the bundled model, in minutes on a CPU, ending in one page.

Five parts: sample; noise -> a classifier changes its mind; prompt -> a target image; weights (LoRA)
-> a metric; and what each way of differentiating costs and how true it is.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .._types import InputError
from ..analysis.comparison import compare
from ..analysis.comparison_report import Comparison
from ..files.atomic_write import write_file
from ..files.html_report import ImageTable, Page
from ..files.images import as_8_bit, output_folder, png, read_image, sheet
from ..metrics import Margin, PixelDistance, effect
from ..metrics.check import check_metric, score
from ..metrics.image_classifier import Classifier
from ..samplers.flow_sampler import FlowSampler
from ..zoo import load_bundled, load_classifier
from .flags import Given
from .options import FolderOptions, free_folder, in_one_process

__all__ = ["Demo", "Scale", "demo"]

SUBJECTS = ("red apple", "cat", "car", "mushroom")


@dataclass(frozen=True)
class Scale:
    """How much work the demonstration does: steps of sampling, and of each optimization."""

    sampling: int = 15
    noise: int = 25
    prompt: int = 40
    weights: int = 15
    repeats: int = 2


@dataclass(frozen=True)
class Demo:
    """The flags of `adjointdpm demo`."""

    output: FolderOptions = FolderOptions(Path("outputs/demo"))

    def run(self, given: Given) -> None:
        """Run the demonstration, and print where its page is."""
        in_one_process(given.command)
        folder = free_folder(self.output.output_dir, "result.json", overwrite=self.output.overwrite)
        print(f"page: {demo(folder).resolve()}")


def demo(output: str | Path, scale: Scale | None = None) -> Path:
    """Run the five parts; returns the path of the page.

    Raises:
        InputError: the folder cannot be written, or a bundled file is damaged.
    """
    folder, scale = output_folder(output), scale or Scale()
    start = time.perf_counter()
    sampler = load_bundled("emoji", steps=scale.sampling, guidance_scale=4.0)
    classifier = load_classifier("emoji/resnet")
    page = Page("adjointdpm: gradients through a diffusion sampler")
    page.text(
        "Every image below was made by the bundled 64 x 64 text-to-image model, and every gradient went "
        f"through all {scale.sampling} steps of its sampler, guidance included, and through its decoder."
    )
    results = {
        "sample": sample(sampler, classifier, page, folder),
        "noise": tune_noise(sampler, classifier, page, folder, scale.noise),
        "prompt": tune_prompt(sampler, page, folder, scale.prompt),
        "weights": tune_weights(sampler, page, folder, scale.weights),
    }
    comparison = compare_gradients(sampler, classifier, page, scale.repeats)
    results |= {"compare": comparison.as_dicts(), "seconds": time.perf_counter() - start}
    print(comparison)
    page.heading("How to repeat this")
    page.code(f"adjointdpm demo --output_dir {folder}")
    page.text(f"It took {results['seconds']:.0f} seconds. The figures are in result.json beside this page.")
    write_file(folder / "result.json", json.dumps(results, indent=1).encode())
    return page.write(folder / "index.html")


def sample(sampler: FlowSampler, classifier: Classifier, page: Page, folder: Path) -> dict[str, Any]:
    """Part 1: a grid of prompts and seeds."""
    prompts = [f"a {subject} on a blue background" for subject in SUBJECTS]
    rows, right = [], 0
    for prompt, subject in zip(_bar(prompts, "sample"), SUBJECTS, strict=True):
        with torch.no_grad():
            images = sampler(sampler.noise(5, seed=1), sampler.encode(prompt))
            labels = _says(classifier, images)
        right += labels.count(subject)
        rows.append(ImageTable(prompt, as_8_bit(images), [f"read as {label}" for label in labels]))
    page.heading("1. Sampling")
    page.text("One prompt a row; the noise decides place, size and angle. The caption is the classifier's.")
    _show(page, folder / "samples.png", *rows)
    return {"right": right, "of": len(prompts) * 5}


def tune_noise(
    sampler: FlowSampler, classifier: Classifier, page: Page, folder: Path, steps: int
) -> dict[str, Any]:
    """Part 2: move the initial noise, by at most a tenth of its norm, until a classifier changes its mind."""
    cond = sampler.encode([f"a {subject} on a green background" for subject in SUBJECTS])
    start = sampler.noise(len(SUBJECTS), seed=7)
    with torch.no_grad():
        labels = classifier(_saved(sampler(start, cond))).argmax(1)  # the mind that is to be changed
    metric = Margin(classifier, labels)
    radius = 0.1 * start.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    def project(noise: Tensor) -> Tensor:
        moved = noise - start
        length = moved.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return start + moved * (radius / length.clamp(min=1e-12)).clamp(max=1)

    def step(noise: Tensor, gradient: Tensor) -> Tensor:
        size = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp(min=1e-12)
        return project(noise - 0.25 * radius * gradient / size)

    check_metric(metric, sampler.image_shape, len(start), start)
    noise, best, lowest = start.clone(), start.clone(), torch.full((len(start),), torch.inf)
    losses = []
    for _ in (bar := _bar(range(steps), "noise")):
        leaf = noise.detach().requires_grad_()
        values = score(metric, sampler(leaf, cond))
        better = values.detach() < lowest
        best[better], lowest[better] = noise[better], values.detach()[better]
        noise = step(noise, torch.autograd.grad(values.sum(), leaf)[0])
        losses.append(float(values.detach().mean()))
        bar.set_postfix(margin=f"{losses[-1]:.2f}")
    with torch.no_grad():
        before, after = sampler(start, cond), sampler(best, cond)
    # Scored on what a PNG file holds, not on the tensors that were optimized.
    was, now = (_says(classifier, _saved(images)) for images in (before, after))
    changed = [b != n for b, n in zip(was, now, strict=True)]
    page.heading("2. Noise: where does a classifier change its mind?")
    page.text(
        "The initial noise moves by at most 10 % of its norm, down the gradient of the classifier's margin. "
        f"{sum(changed)} of {len(changed)} images are read as another thing afterwards than before, scored on "
        "the saved 8-bit image."
    )
    _show(
        page,
        folder / "noise.png",
        ImageTable("before", as_8_bit(before), [f"read as {label}" for label in was]),
        ImageTable("after", as_8_bit(after), [f"read as {label}" for label in now]),
    )
    page.curve(losses, "step", "margin")
    return {"changed": changed, "before": was, "after": now, "margins": losses}


def tune_prompt(sampler: FlowSampler, page: Page, folder: Path, steps: int) -> dict[str, Any]:
    """Part 3: learn an embedding that makes a target image, and try it on noise it has not seen."""
    prompt, target_prompt = "a cat on a blue background", "a cat on a yellow background"
    seen, unseen = sampler.noise(3, seed=11), sampler.noise(3, seed=12)
    cond, goal = sampler.encode(prompt), sampler.encode(target_prompt)
    with torch.no_grad():
        start, start_unseen = sampler(seen, cond), sampler(unseen, cond)
        target, target_unseen = sampler(seen, goal), sampler(unseen, goal)
    metric = PixelDistance(target)
    check_metric(metric, sampler.image_shape, len(seen), seen)
    embedding = cond["prompt_embeds"].clone().requires_grad_()
    learned = cond.replace(prompt_embeds=embedding)
    losses = _descend(
        [embedding], lambda: score(metric, sampler(seen, learned)).mean(), steps, 0.02, "prompt"
    )
    with torch.no_grad():
        after, after_unseen = sampler(seen, learned), sampler(unseen, learned)
    distances = {
        name: (float(PixelDistance(goal)(a).mean()), float(PixelDistance(goal)(b).mean()))
        for name, goal, a, b in (
            ("seen noise", target, start, after),
            ("unseen noise", target_unseen, start_unseen, after_unseen),
        )
    }
    page.heading("3. Prompt: from an image to an embedding")
    page.text(
        f"Starting from the embedding of “{prompt}”, it is moved towards the images on the right, which the "
        "same noise gives under a prompt that it never sees. Distances: "
        + "; ".join(f"{name} {a:.3f} to {b:.3f}" for name, (a, b) in distances.items())
        + "."
    )
    _show(
        page,
        folder / "prompt.png",
        *(
            ImageTable(name, as_8_bit(torch.cat(images)), ["before"] * 3 + ["learned"] * 3 + ["target"] * 3)
            for name, images in (
                ("seen noise", (start, after, target)),
                ("unseen noise", (start_unseen, after_unseen, target_unseen)),
            )
        ),
    )
    page.curve(losses, "step", "squared distance")
    return {"distances": distances, "losses": losses}


def tune_weights(sampler: FlowSampler, page: Page, folder: Path, steps: int) -> dict[str, Any]:
    """Part 4: LoRA weights towards the same images in sepia, tried on concepts and noise it has not seen."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise InputError("tuning weights needs peft: pip install 'adjointdpm[lora]'") from error
    torch.manual_seed(0)
    unet: Any = sampler.model.denoiser.network
    unet.add_adapter(
        LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1"])
    )
    lora: list[Tensor] = [p for p in unet.parameters() if p.requires_grad]
    prompts = ["a red apple on a blue background", "a car on a yellow background"]
    held_out = ["a cat on a green background", "a mushroom on a red background"]
    noise, cond = sampler.noise(2, seed=21), sampler.encode(prompts)
    unseen, unseen_cond = sampler.noise(2, seed=22), sampler.encode(held_out)
    with torch.no_grad():
        before = torch.cat([sampler(noise, cond), sampler(unseen, unseen_cond)])
        goal = effect("sepia")(before)
    metric = PixelDistance(goal[:2])
    check_metric(metric, sampler.image_shape, 2, noise)
    losses = _descend(lora, lambda: score(metric, sampler(noise, cond)).mean(), steps, 0.01, "weights")
    with torch.no_grad():
        after = torch.cat([sampler(noise, cond), sampler(unseen, unseen_cond)])
    unet.delete_adapters("default")
    values = [float(PixelDistance(goal[2:])(images[2:]).mean()) for images in (before, after)]
    page.heading("4. Weights: tune the model to a metric")
    page.text(
        f"A LoRA of {sum(p.numel() for p in lora):,} weights, trained for {steps} steps to make two images sepia. "
        "On concepts, colours and noise it has not seen, the squared distance to their own sepia goes from "
        f"{values[0]:.4f} to {values[1]:.4f}."
    )
    captions = [*(f"trained: {p}" for p in prompts), *(f"unseen: {p}" for p in held_out)]
    _show(
        page,
        folder / "weights.png",
        ImageTable("before", as_8_bit(before), captions),
        ImageTable("after", as_8_bit(after), captions),
        ImageTable("goal", as_8_bit(goal), ["trained on"] * 2 + ["never shown"] * 2),
    )
    page.curve(losses, "step", "squared distance")
    return {"held_out": values, "losses": losses}


def compare_gradients(sampler: FlowSampler, classifier: Classifier, page: Page, repeats: int) -> Comparison:
    """Part 5: every adjoint's error and cost on one image."""
    label = torch.tensor([classifier.index(SUBJECTS[0])])
    cond = sampler.encode(f"a {SUBJECTS[0]} on a blue background")
    noise = sampler.noise(1, seed=1)
    comparison = compare(
        sampler, Margin(classifier, label), noise=noise, cond=cond, repeats=repeats, check=False
    )
    page.heading("5. How true is each gradient, and what does it cost?")
    page.text(
        "Error is |g - g*| / |g*| against the exact gradient of the same sampler; memory is what was saved for "
        "the backward pass; calls are denoiser calls forward (recomputation included) and backward. The last "
        "line is the scheme of the paper's release."
    )
    head, *rows = comparison.cells()
    page.table(head, rows)
    return comparison


def _descend(
    variables: list[Tensor], loss: Callable[[], Tensor], steps: int, rate: float, name: str
) -> list[float]:
    """Adam on some variables, with a progress bar; returns the losses."""
    optimiser = torch.optim.Adam(variables, lr=rate)
    losses = []
    for _ in (bar := _bar(range(steps), name)):
        optimiser.zero_grad()
        value = loss()
        value.backward()
        optimiser.step()
        losses.append(float(value.detach()))
        bar.set_postfix(loss=f"{losses[-1]:.4f}")
    return losses


def _show(page: Page, path: Path, *rows: ImageTable) -> None:
    """Put rows of images on the page, and beside it in one file, at twice their size."""
    page.images(*rows)
    images = torch.cat([row.images for row in rows]).repeat_interleave(2, 2).repeat_interleave(2, 3)
    write_file(path, png(sheet(images, len(rows[0].images), gap=4)))


def _bar(items: Iterable[Any], name: str) -> Any:
    return tqdm(list(items), desc=f"{name:8}", ncols=90)


def _saved(images: Tensor) -> Tensor:
    """Images as they come back from PNG files."""
    return torch.stack([read_image(png(image)) for image in as_8_bit(images)])


def _says(classifier: Classifier, images: Tensor) -> list[str]:
    with torch.no_grad():
        return [classifier.labels[int(i)] for i in classifier(images).argmax(1)]
