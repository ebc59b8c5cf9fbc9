"""Audit a classifier: initial noise -> images of a known thing that the classifier takes for another.

    result = adp.tasks.audit(sampler, classifier, ["a cat", "a car"], output="outputs/audit", judge=judge)

Only starts whose own image is read right count. A success is scored on the 8-bit image that was saved, of
the very noise that was saved; it is kept if an independent judge still sees the thing. Beside it stand random
noise and SPSA in the same ball with the same number of denoiser calls.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..._types import Cond, InputError, Stats
from ...attacks.norm_ball import Ball
from ...files.checkpoint import check_config, load_checkpoint, save_checkpoint
from ...files.diffusers_files import save_noise
from ...files.images import output_folder
from ...metrics.image_classifier import Labelled, as_classifier
from ...metrics.style_content import Features
from ...optimization.distributed import Processes
from ...optimization.loop import optimize
from ...optimization.progress import progress
from ...optimization.run_folder import alone
from ...optimization.seeds import key
from ...optimization.task import RunOptions
from ...samplers.base import Sampler
from ..evaluation import example, labels_of, predict
from ..report import About, write_report
from ..sampling import noise_of, rows, sampled, saved
from ..settings import checkpointed
from .attack import Attack, Objective
from .baselines import random_search, spsa
from .report import page_of
from .result import AuditResult, Dropped
from .scoring import Evaluator
from .settings import AuditSettings

__all__ = ["AuditSettings", "audit"]


@alone
def audit(
    sampler: Sampler,
    classifier: nn.Module,
    prompts: Sequence[str],
    labels: Sequence[str | int] | None = None,
    *,
    output: str | Path,
    settings: AuditSettings | None = None,
    target: str | int | None = None,
    judge: nn.Module | None = None,
    transfer: Mapping[str, nn.Module] | None = None,
    features: Features | None = None,
    run: RunOptions = RunOptions(),
) -> AuditResult:
    """Look for noise near given noise whose image the classifier misclassifies.

    Use it for a classifier of your own, to find out where it is wrong; not as a measure of an image's realism.

    Args:
        sampler: makes the images.
        classifier: the one that is audited: of `load_classifier`, or any module from images in [0, 1] to logits, whose
            classes are called by its `labels` if it has some, else by their numbers.
        prompts: what the images show.
        labels: the classifier's label of each prompt, or its number; found in the prompts by default.
        output: a folder for the noise, the images, result.json and the page.
        settings: how.
        target: the label that the classifier should give all images; any label but the right one counts by default.
        judge: an independent classifier, never part of a loss, that says what an image still shows; it has every label
            that is audited.
        transfer: other classifiers by name, tried on what fooled this one.
        features: another network's features, which keep the image near the original; neither the judge's
            nor the classifier's own, which would be the same as moving less far.
        run: whether the run is resumed, and what it reports.

    Returns:
        AuditResult: the noise that was found, its saved images and what the classifiers say of them, and the controls.

    Raises:
        InputError: an unknown label, a module that is no classifier of the sampler's images, a judge without an audited
            label, no start that the classifier reads right, a folder that cannot be written, a checkpoint of another
            run.

    Warns:
        UserWarning: prompts that are dropped, as the classifier does not read enough of their images right.
    """
    if isinstance(prompts, str) or not prompts:
        raise InputError(f"prompts are a list of at least one, but are {prompts!r}")
    folder, settings, began = output_folder(output), settings or AuditSettings(), time.perf_counter()
    like = example(sampler)
    audited = as_classifier(classifier, like, "classifier")
    numbers = labels_of(audited, prompts, labels)
    names = sorted({audited.labels[i] for i in numbers})
    if target is not None:
        target = audited.labels[audited.index(target)]
    todo = "so it could never say that an image still shows it; give a judge of the same labels, or none"
    judge = None if judge is None else _with_labels(judge, like, "judge", names, todo)
    todo = "so it cannot be tried; leave it out"
    others = {
        name: _with_labels(each, like, f"classifier {name} of transfer", names, todo)
        for name, each in (transfer or {}).items()
    }
    about = checkpointed(
        {
            **{f"sampler_{n}": repr(getattr(sampler, n)) for n in ("steps", "solver", "adjoint")},
            "sampler_guidance_scale": sampler.guidance_scale,
            **{"prompts": list(prompts), "labels": numbers, "target": target},
            **asdict(settings),
            **run.config,
        }
    )
    work = _Audit(
        sampler,
        audited,
        judge,
        list(prompts),
        numbers,
        target,
        features,
        settings,
        folder,
        replace(run, config=about),
    )
    result = work.result(others, began)
    if Processes.here().first:
        solver = type(sampler if sampler.solver is None else sampler.solver).__name__
        given: dict[str, Any] = {"scheduler": solver, "steps": sampler.steps}
        save_noise(folder / "noise.safetensors", result.after.noise, **given)
        save_noise(folder / "start.safetensors", result.start, **given, seed=settings.seed)
        said = (
            "The loss on the classifier's logits, through its preprocessing, the decoder and every step of the "
            "sampler, guidance included, with respect to the initial noise."
        )
        loss = "margin of the logits" if target is None else f"margin of the logits towards {target}"
        path = folder / "noise.safetensors"
        closing = About(
            sampler,
            f"{loss}{'' if features is None else ' and distance of the features'}",
            "below 0 the classifier errs" if target is None else f"below 0 the classifier says {target}",
            said,
            "the optimized noise",
            [
                f'noise, about = adjointdpm.load_noise("{path}")',
                f'adjointdpm sample --prompt "{result.prompts[0]}" --noise {path}',
            ],
        )
        page = page_of(result, settings.ball)
        page.facts["Classifier"] = str(
            run.config.get("classifier") or type(getattr(audited, "model", audited)).__name__
        )
        write_report("audit", result, about, page, closing, run)
    return result


def _with_labels(network: nn.Module, like: Tensor, role: str, labels: Sequence[str], todo: str) -> Labelled:
    """Return a classifier that has every label that is audited.

    Raises:
        InputError: it lacks one.
    """
    found = as_classifier(network, like, role)
    lacks = [label for label in labels if label not in found.labels]
    if lacks:
        raise InputError(f"the {role} has no label {', '.join(map(repr, lacks))}, {todo}")
    return found


@dataclass(frozen=True, eq=False)
class _Audit:
    """One audit under way."""

    sampler: Sampler
    classifier: Labelled
    judge: Labelled | None
    prompts: list[str]
    labels: list[int]
    target: str | None
    features: Features | None
    settings: AuditSettings
    folder: Path
    run: RunOptions

    def result(self, transfer: dict[str, Labelled], began: float) -> AuditResult:
        s = self.settings
        which, start, cond, tried, dropped = self.starts()
        labels = torch.tensor([self.labels[i] for i in which], device=start.device)
        goal = labels
        if self.target is not None:
            goal = torch.full_like(labels, self.classifier.index(self.target))
        objective = Objective(
            self.classifier,
            goal,
            self.target is not None,
            s.confidence,
            self.features,
            s.keep_weight,
            sampled(self.sampler, start, cond, s.train_batch_size, what="originals", quiet=self.run.quiet),
        )
        evaluator = Evaluator(
            self.sampler,
            self.classifier,
            self.judge,
            self.target,
            self.folder,
            s.train_batch_size,
            self.run.quiet,
        )
        before = evaluator.found("before", start, start, cond, labels, s.ball)
        costs = self.costs(start, cond, objective)
        noise, losses = self.attacked(s.ball, start, cond, objective)
        after = evaluator.found("after", noise, start, cond, labels, s.ball)
        curve = {s.ball.radius: after}
        for radius in s.radii:
            ball = replace(s.ball, radius=radius)
            at, _ = self.attacked(ball, start, cond, objective)
            curve[radius] = evaluator.found(None, at, start, cond, labels, ball)
        controls = {}
        if s.controls:
            draws = max(2, round(s.max_train_steps * costs["calls_a_step"] / costs["calls_a_sampling"]))
            given = (self.sampler, cond, start, s.ball, objective, draws, s.seed, s.train_batch_size)
            searches: dict[str, Callable[[], Tensor]] = {
                "random noise": lambda: random_search(*given, quiet=self.run.quiet),
                "SPSA": lambda: spsa(*given, s.learning_rate, quiet=self.run.quiet),
            }
            for name, search in searches.items():
                at = self.once(name, search).to(start)
                controls[name] = evaluator.found(None, at, start, cond, labels, s.ball)
            costs["samplings_a_control"] = draws
        return AuditResult(
            folder=self.folder,
            prompts=[self.prompts[i] for i in which],
            labels=[self.classifier.labels[int(y)] for y in labels],
            start=start,
            tried=tried,
            dropped=dropped,
            before=before,
            after=after,
            curve=dict(sorted(curve.items())),
            controls=controls,
            transfer={name: evaluator.transferred(each, before, after) for name, each in transfer.items()},
            losses=losses,
            costs={**costs, "seconds": time.perf_counter() - began},
        )

    def starts(self) -> tuple[list[int], Tensor, Cond, int, list[Dropped]]:
        """Return noise whose images are classified correctly: the prompts, noise, conditioning, tries, what is missing.

        Raises:
            InputError: there is no such noise.
        """
        s, kept, tried = self.settings, [], 0
        names = [self.classifier.labels[label] for label in self.labels]
        why = dict.fromkeys(range(len(names)), "is the target itself")
        missing = [s.num_starts] * len(self.prompts)
        wanted = [0 if name == self.target else s.num_starts for name in names]
        with progress("starts", sum(wanted), self.run.quiet) as bar:
            for turn in range(s.num_starts * s.tries):
                open_ = [i for i, n in enumerate(wanted) if n]
                if not open_:
                    break
                noise = noise_of(self.sampler, [key(s.seed, "start", i, turn) for i in open_])
                cond = self.sampler.encode([self.prompts[i] for i in open_])
                images = saved(sampled(self.sampler, noise, cond, s.train_batch_size))
                says = predict(self.classifier, images).argmax(1).tolist()
                tried += len(open_)
                for row, i in enumerate(open_):
                    if says[row] == self.labels[i]:
                        missing[i], wanted[i] = missing[i] - 1, wanted[i] - 1
                        kept.append((i, turn, noise[row]))
                        bar.update()
                    else:
                        why[i] = f"read as {self.classifier.labels[says[row]]}"
        dropped = [Dropped(self.prompts[i], names[i], n, why[i]) for i, n in enumerate(missing) if n]
        if not kept:
            raise InputError(
                f"none of {tried} images is read as what it should show, so there is nothing to audit; look at "
                "the prompts and labels, or take more tries"
            )
        if dropped:
            warnings.warn(
                f"{sum(each.starts for each in dropped)} of {s.num_starts * len(self.prompts)} starts are dropped, "
                f"as none of {s.tries} tries each is read right: {'; '.join(map(str, dropped))}",
                stacklevel=4,
            )
        kept.sort(key=lambda each: each[:2])
        which = [i for i, _, _ in kept]
        cond = self.sampler.encode([self.prompts[i] for i in which])
        return which, torch.stack([noise for _, _, noise in kept]), cond, tried, dropped

    def attacked(
        self, ball: Ball, start: Tensor, cond: Cond, objective: Objective
    ) -> tuple[Tensor, list[float]]:
        """Return the best noise in a ball, and the mean losses."""
        s, shares = self.settings, -(-len(start) // Processes.here().world)
        task = Attack(self.sampler, cond, start, ball, objective)
        folder, config = self.folder / "state" / f"radius-{ball.radius:g}", self.run.config
        loop = replace(
            s.loop(folder, self.run, {**config, "radius": ball.radius}),
            accumulation=-(-shares // s.train_batch_size),
            decay="constant",
        )
        # Plain descent without weight decay: decay would pull the noise towards zero, off its shell.
        outcome = optimize(
            task, lambda leaves: torch.optim.SGD(leaves, s.learning_rate, momentum=s.momentum), loop
        )
        return outcome.best["noise"], outcome.losses

    def costs(self, start: Tensor, cond: Cond, objective: Objective) -> dict[str, Any]:
        """Return what a step and a sampling take, counted on one image, whose gradient is tried.

        Raises:
            InputError: the sampler counts no calls, or there is no gradient.
        """
        leaf = start[:1].clone().requires_grad_()
        images = self.sampler(leaf, rows(cond, [0]))
        stats = getattr(self.sampler, "stats", None)
        if not isinstance(stats, Stats) or not stats.nfe_forward:
            raise InputError(
                f"a {type(self.sampler).__name__} does not count its denoiser calls, which an audit compares; set "
                "self.stats = Stats(nfe_forward=...) in its forward"
            )
        calls, loss = stats.nfe_forward, objective(images, [0]).values.sum()
        (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True) if loss.requires_grad else (None,)
        if gradient is None:
            raise InputError(
                "the classifier's logits have no gradient with respect to the noise: look for a detached tensor, an "
                "argmax or a no_grad in the classifier or the sampler"
            )
        return {
            "calls_a_sampling": calls,
            "calls_a_step": stats.nfe_forward + stats.nfe_backward,
            "bytes_saved": stats.bytes_saved,
        }

    def once(self, name: str, work: Callable[[], Tensor]) -> Tensor:
        """Return a control's noise; made once, if the run is resumed."""
        path = output_folder(self.folder / "state") / f"{name.replace(' ', '-')}.safetensors"
        config = dict(self.run.config)
        if self.run.resume and path.exists():
            tensors, about = load_checkpoint(path)
            check_config(path, about["config"], config, free=("max_train_steps",))
            # A control has as many calls as the attack.
            if about["config"]["max_train_steps"] == config["max_train_steps"]:
                return tensors["noise"]
        noise = work()
        if Processes.here().first:
            save_checkpoint(path, {"noise": noise}, {"config": config})
        return noise
