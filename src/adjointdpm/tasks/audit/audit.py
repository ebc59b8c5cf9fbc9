"""Audit a classifier: initial noise -> images of a known thing that the classifier takes for another.

    result = adp.tasks.audit(sampler, classifier, ["a cat", "a car"], output="outputs/audit", judge=judge)

Only starts whose own image is read right count. A success is scored on the 8-bit image that was saved, of
the very noise that was saved; it is kept if an independent judge still sees the thing. Beside it stand random
noise and SPSA in the same ball with the same number of denoiser calls.
"""

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..._types import Cond, InputError, Stats
from ...files.atomic_write import write_file
from ...files.checkpoint import check_config, load_checkpoint, save_checkpoint
from ...files.diffusers_files import save_noise
from ...files.images import output_folder
from ...metrics.image_classifier import Labelled, as_classifier
from ...metrics.style_content import Features
from ...optimization.distributed import Processes
from ...optimization.loop import optimize
from ...optimization.run_folder import alone
from ...optimization.seeds import key
from ...optimization.task import Loop
from ...samplers.base import Sampler
from ..evaluation import example, labels_of, predict
from ..sampling import noise_of, on_file, rows, sampled
from .attack import Attack, Objective
from .baselines import random_search, spsa
from .norm_ball import Ball
from .report import write_page
from .result import AuditResult, Dropped
from .scoring import Evaluator
from .settings import AuditSettings

__all__ = ["AuditSettings", "audit", "labels_of"]


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
    resume: bool = False,
    quiet: bool = False,
    config: Mapping[str, Any] | None = None,
    repeat: str = "",
    report: Callable[[int, dict[str, float]], None] | None = None,
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
        target: the label that everything is to be taken for; any other than its own by default.
        judge: an independent classifier, never part of a loss, that says what an image still shows; it has every label
            that is audited.
        transfer: other classifiers by name, tried on what fooled this one.
        features: another network's features, which keep the image near the original; neither the judge's
            nor the classifier's own, which would be the same as moving less far.
        resume: go on from the folder's checkpoints.
        quiet: without progress bars.
        config: further settings that a checkpoint must agree on.
        repeat: a command that repeats the run, for the page.
        report: see `Loop`.

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
    audit_ = _Audit(sampler, audited, list(prompts), labels_of(audited, prompts, labels), settings)
    audit_.folder, audit_.features = folder, features
    if target is not None:
        target = audited.labels[audited.index(target)]
    audit_.target = target
    shown = sorted({audited.labels[i] for i in audit_.labels})
    if judge is not None:
        audit_.judge = as_classifier(judge, like, "judge")
        lacks = [label for label in shown if label not in audit_.judge.labels]
        if lacks:
            raise InputError(
                f"the judge has no label {', '.join(map(repr, lacks))}, so it could never say that an image still "
                "shows it; give a judge of the same labels, or none"
            )
    others = {
        name: as_classifier(each, like, f"classifier {name}") for name, each in (transfer or {}).items()
    }
    for name, each in others.items():
        lacks = [label for label in shown if label not in each.labels]
        if lacks:
            raise InputError(
                f"the classifier {name} of transfer has no label {', '.join(map(repr, lacks))}, so it cannot be tried; "
                "leave it out"
            )
    audit_.config = {**_about(sampler, settings, prompts, audit_.labels, target), **(config or {})}
    audit_.loop = {"resume": resume, "quiet": quiet, "report": report}
    result = audit_.result(others, began)
    if Processes.here().first:
        _write(folder, sampler, settings, result)
        write_page(folder / "index.html", result, asdict(settings), repeat)
    return result


def _about(
    sampler: Sampler, settings: AuditSettings, prompts: Sequence[str], labels: list[int], target: str | None
) -> dict[str, Any]:
    own: dict[str, Any] = {
        f"sampler_{n}": repr(getattr(sampler, n)) for n in ("steps", "solver", "adjoint")
    }
    own["sampler_guidance_scale"] = sampler.guidance_scale
    given = {"prompts": list(prompts), "labels": labels, "target": target}
    return {**own, **given, **{k: v for k, v in asdict(settings).items() if k != "checkpointing_steps"}}


class _Audit:
    """One audit under way."""

    folder: Path
    target: str | None
    judge: Labelled | None = None
    features: Features | None
    config: dict[str, Any]
    loop: dict[str, Any]

    def __init__(
        self,
        sampler: Sampler,
        classifier: Labelled,
        prompts: list[str],
        labels: list[int],
        s: AuditSettings,
    ) -> None:
        self.sampler, self.classifier, self.prompts, self.labels, self.s = (
            sampler,
            classifier,
            prompts,
            labels,
            s,
        )

    def result(self, transfer: dict[str, Labelled], began: float) -> AuditResult:
        s = self.s
        which, start, cond, tried, dropped = self.starts()
        labels = torch.tensor([self.labels[i] for i in which], device=start.device)
        originals = sampled(self.sampler, start, cond, s.train_batch_size)
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
            originals,
        )
        evaluator = Evaluator(
            self.sampler, self.classifier, self.judge, self.target, self.folder, s.train_batch_size
        )
        before = evaluator.found("before", start, start, cond, labels, s.ball)
        costs = self.costs(start, cond, objective)
        noise, losses = self.attacked(s.ball, start, cond, objective)
        after = evaluator.found("after", noise, start, cond, labels, s.ball)
        curve = {s.ball.radius: after}
        for radius in s.radii:
            ball = Ball(radius, s.ball.norm, s.ball.shell)
            at, _ = self.attacked(ball, start, cond, objective)
            curve[radius] = evaluator.found(None, at, start, cond, labels, ball)
        controls = {}
        if s.controls:
            draws = max(2, round(s.max_train_steps * costs["calls_a_step"] / costs["calls_a_sampling"]))
            for name, control in (("random noise", random_search), ("SPSA", spsa)):
                more = (s.learning_rate,) if control is spsa else ()
                at = self.once(
                    name,
                    lambda control=control, more=more: control(
                        self.sampler,
                        cond,
                        start,
                        s.ball,
                        objective,
                        draws,
                        s.seed,
                        s.train_batch_size,
                        *more,
                    ),
                )
                controls[name] = evaluator.found(None, at.to(start), start, cond, labels, s.ball)
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
        """Noise whose images are read right: each one's prompt, the noise, how many were tried, what is missing."""
        s, kept, tried = self.s, [], 0
        names = [self.classifier.labels[label] for label in self.labels]
        why = dict.fromkeys(range(len(names)), "is the target itself")
        missing = [s.num_starts] * len(self.prompts)
        wanted = [0 if name == self.target else s.num_starts for name in names]
        for turn in range(s.num_starts * s.tries):
            open_ = [i for i, n in enumerate(wanted) if n]
            if not open_:
                break
            noise = noise_of(self.sampler, [key(s.seed, "start", i, turn) for i in open_])
            cond = self.sampler.encode([self.prompts[i] for i in open_])
            images = on_file(sampled(self.sampler, noise, cond, s.train_batch_size))
            says = predict(self.classifier, images.to(noise)).argmax(1).tolist()
            tried += len(open_)
            for row, i in enumerate(open_):
                if says[row] == self.labels[i]:
                    missing[i], wanted[i] = missing[i] - 1, wanted[i] - 1
                    kept.append((i, turn, noise[row]))
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
        """The best noise in a ball, and the mean losses."""
        s, shares = self.s, -(-len(start) // Processes.here().world)
        task = Attack(self.sampler, cond, start, ball, objective)
        loop = Loop(
            steps=s.max_train_steps,
            accumulation=-(-shares // s.train_batch_size),
            seed=s.seed,
            folder=output_folder(self.folder / "state" / f"radius-{ball.radius:g}"),
            checkpointing_steps=s.checkpointing_steps,
            config={**self.config, "radius": ball.radius},
            **self.loop,
        )
        # Plain descent without weight decay: decay would pull the noise towards zero, off its shell.
        outcome = optimize(
            task, lambda leaves: torch.optim.SGD(leaves, s.learning_rate, momentum=s.momentum), loop
        )
        return outcome.best["noise"], outcome.losses

    def costs(self, start: Tensor, cond: Cond, objective: Objective) -> dict[str, Any]:
        """What one step and one sampling take, counted on one image; and that a step has a gradient."""
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
        stats = self.sampler.stats
        return {
            "calls_a_sampling": calls,
            "calls_a_step": stats.nfe_forward + stats.nfe_backward,
            "bytes_saved": stats.bytes_saved,
        }

    def once(self, name: str, work: Callable[[], Tensor]) -> Tensor:
        """A control's noise; made once, if the run is resumed."""
        path = output_folder(self.folder / "state") / f"{name.replace(' ', '-')}.safetensors"
        if self.loop["resume"] and path.exists():
            tensors, about = load_checkpoint(path)
            check_config(path, about["config"], self.config, free=("max_train_steps",))
            if (
                about["config"]["max_train_steps"] == self.config["max_train_steps"]
            ):  # a control has as many calls as the attack
                return tensors["noise"]
        noise = work()
        if Processes.here().first:
            save_checkpoint(path, {"noise": noise}, {"config": self.config})
        return noise


def _write(folder: Path, sampler: Sampler, settings: AuditSettings, result: AuditResult) -> None:
    """The noise and result.json."""
    solver = type(sampler if sampler.solver is None else sampler.solver).__name__
    steps = sampler.steps
    save_noise(folder / "noise.safetensors", result.after.noise, scheduler=solver, steps=steps)
    save_noise(
        folder / "start.safetensors", result.start, scheduler=solver, steps=steps, seed=settings.seed
    )
    about = {"settings": asdict(settings), **result.as_dict()}
    write_file(folder / "result.json", json.dumps(about, indent=1).encode())
