"""Audit a classifier: initial noise -> images of a known thing that the classifier takes for another.

    result = adp.tasks.audit(sampler, classifier, ["a cat", "a car"], output="outputs/audit", judge=judge)

Only starts whose own image is read right count. A success is scored on the 8-bit image that was saved, of
the very noise that was saved; it is kept if an independent judge still sees the thing. Beside it stand random
noise and SPSA in the same ball with the same number of denoiser calls. For each success, the smallest change on the way
to it that is one, too, is found by bisection.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..._types import Cond, InputError
from ...attacks.bisection import smallest
from ...attacks.norm_ball import Ball
from ...files.atomic_write import write_file
from ...files.checkpoint import save_checkpoint
from ...files.diffusers_files import save_noise
from ...files.images import as_8_bit, output_folder
from ...metrics.image_classifier import Labelled, as_classifier
from ...metrics.style_content import Features
from ...optimization.distributed import Processes
from ...optimization.loop import Outcome, optimize
from ...optimization.progress import progress
from ...optimization.run_folder import alone, finished_part
from ...optimization.seeds import key
from ...optimization.task import RunOptions
from ...samplers.base import Sampler
from ..evaluation import example, labels_of, predict
from ..noise_optimization import Judged, Stages
from ..report import About, as_csv, steps_of, write_report
from ..sampling import noise_of, rows, sampled, saved
from ..settings import checkpointed
from .attack import Attack, Objective
from .baselines import random_search, spsa
from .real_starts import check_images, inverted
from .report import page_of
from .result import AttackOutcome, AuditResult, Dropped
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
    images: Tensor | None = None,
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
        images: (prompts, *image_shape), in [0, 1], one for each prompt: the audit starts at the noise from which the
            sampler makes them, found by inverting its steps; at random noise if None. An image that cannot be
            inverted, or that the classifier misclassifies as the sampler makes it, is dropped.
        run: whether the run is resumed, and what it reports.

    Returns:
        AuditResult: the noise that was found, its saved images and what the classifiers say of them, and the controls.

    Raises:
        InputError: an unknown label, a module that is no classifier of the sampler's images, a judge without an audited
            label, no start that the classifier reads right, images of a sampler whose steps cannot be inverted
            (`FlowSampler.invert` says which can), a folder that cannot be written, a checkpoint of another
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
    if images is not None:
        check_images(images, sampler, len(prompts), settings)
    stages = Stages.of(sampler, settings, prompts[0], judge, extra=True)
    settings = replace(settings, max_train_steps=stages.steps)
    about = checkpointed(
        {
            **{f"sampler_{n}": repr(getattr(sampler, n)) for n in ("steps", "solver", "adjoint")},
            "sampler_guidance_scale": sampler.guidance_scale,
            **{"prompts": list(prompts), "labels": numbers, "target": target},
            **({} if images is None else {"images": int(as_8_bit(images).long().sum())}),
            **asdict(settings),
            **run.config,
            **stages.agreed,
        }
    )
    work = _Audit(
        sampler,
        stages,
        audited,
        judge,
        list(prompts),
        numbers,
        target,
        features,
        settings,
        folder,
        replace(run, config=about),
        images,
    )
    result = work.result(others, began)
    if Processes.here().first:
        given: dict[str, Any] = {"scheduler": steps_of(sampler), "steps": sampler.steps}
        save_noise(folder / "noise.safetensors", result.after.noise, **given)
        save_noise(folder / "start.safetensors", result.start, **given, seed=settings.seed)
        save_noise(folder / "smallest.safetensors", result.smallest.noise, **given)
        write_file(folder / "images.csv", as_csv(result.rows()))
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
    stages: Stages
    classifier: Labelled
    judge: Labelled | None
    prompts: list[str]
    labels: list[int]
    target: str | None
    features: Features | None
    settings: AuditSettings
    folder: Path
    run: RunOptions
    images: Tensor | None = None

    def result(self, transfer: dict[str, Labelled], began: float) -> AuditResult:
        s = self.settings
        which, groups, starts, conds, tried, dropped = self.starts()
        labels = torch.tensor([self.labels[i] for i in which], device=starts.device)
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
            sampled(
                self.sampler, starts, conds, s.train_batch_size, what="originals", quiet=self.run.quiet
            ),
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
        judged = None
        if self.judge is not None:
            seen = torch.tensor([self.judge.index(self.classifier.labels[int(y)]) for y in labels])
            judged = Judged.of(self.judge, seen, objective.originals, s.judge_patience)
        costs = self.costs(starts, conds, objective)
        given = (starts, conds, objective, groups, judged)
        noise, chosen, outcome = self.attacked(s.ball, *given)
        start, cond, mine = starts[chosen], rows(conds, chosen), labels[chosen]
        before = evaluator.found("before", start, start, cond, mine, s.ball)
        after = evaluator.found("after", noise, start, cond, mine, s.ball)
        nearest = self.smallest(evaluator, after, start, cond, mine)
        calls = self.stages.spent(outcome.taken, len(chosen))
        after = replace(after, calls=calls)
        curve = {s.ball.radius: after}
        for radius in s.radii:
            ball = replace(s.ball, radius=radius)
            at, those, other = self.attacked(ball, *given)
            found = evaluator.found(None, at, starts[those], rows(conds, those), labels[those], ball)
            curve[radius] = replace(found, calls=self.stages.spent(other.taken, len(those)))
        controls = {}
        if s.controls:
            # A step is recomputed, so that it takes more than its calls forward and backward.
            each = costs["calls_a_step"] / (2 * costs["calls_a_sampling"])
            draws = max(2, round(calls * each / costs["calls_a_sampling"]))
            args = (
                self.sampler,
                cond,
                start,
                s.ball,
                objective.of(chosen),
                draws,
                s.seed,
                s.train_batch_size,
            )
            searches: dict[str, Callable[[], Tensor]] = {
                "random noise": lambda: random_search(*args, quiet=self.run.quiet),
                "SPSA": lambda: spsa(*args, s.learning_rate, quiet=self.run.quiet),
            }
            for name, search in searches.items():
                at = self.once(name, draws, search).to(start)
                controls[name] = evaluator.found(None, at, start, cond, mine, s.ball)
            costs["samplings_a_control"] = draws
        return AuditResult(
            folder=self.folder,
            prompts=[self.prompts[which[i]] for i in chosen],
            labels=[self.classifier.labels[int(y)] for y in mine],
            start=start,
            tried=tried,
            dropped=dropped,
            before=before,
            after=after,
            smallest=nearest,
            curve=dict(sorted(curve.items())),
            controls=controls,
            transfer={name: evaluator.transferred(each, before, after) for name, each in transfer.items()},
            losses=outcome.losses,
            costs={**costs, "calls": calls, "seconds": time.perf_counter() - began},
        )

    def smallest(
        self, evaluator: Evaluator, after: AttackOutcome, start: Tensor, cond: Cond, labels: Tensor
    ) -> AttackOutcome:
        """Return what is found on the way to each success, as near to the start as it still is one."""
        noise, where = after.noise.clone(), after.fooled.nonzero()[:, 0].tolist()
        if where:
            of, given, names = start[where], rows(cond, where), labels[where]
            noise[where] = smallest(
                lambda x, _: evaluator.found(None, x, of, given, names, self.settings.ball).fooled,
                noise[where],
                of,
                self.settings.ball,
            )
        return evaluator.found("smallest", noise, start, cond, labels, self.settings.ball)

    def starts(self) -> tuple[list[int], list[int], Tensor, Cond, int, list[Dropped]]:
        """Return noise whose images are classified correctly: prompts, images, noise, cond, tries, what is missing.

        An image has up to `best_of` starts, and is missing where it has none.

        Raises:
            InputError: there is no such noise.
        """
        s, kept, tried = self.settings, [], 0
        given = None if self.images is None else self.inverted(self.images)
        names = [self.classifier.labels[label] for label in self.labels]
        why = dict.fromkeys(range(len(names)), "is the target itself")
        missing = [s.num_starts] * len(self.prompts)
        wanted = [0 if name == self.target else s.num_starts * s.best_of for name in names]
        with progress("starts", sum(wanted), self.run.quiet) as bar:
            for turn in range(s.num_starts * s.best_of * s.tries if given is None else 1):
                open_ = [i for i, n in enumerate(wanted) if n]
                if given is not None:
                    fine = given.flatten(1).isfinite().all(1).tolist()
                    why |= {i: "the sampler's steps cannot be inverted to it" for i in open_ if not fine[i]}
                    open_ = [i for i in open_ if fine[i]]
                if not open_:
                    break
                noise = (
                    noise_of(self.sampler, [key(s.seed, "start", i, turn) for i in open_])
                    if given is None
                    else given[open_]
                )
                cond = self.sampler.encode([self.prompts[i] for i in open_])
                images = saved(sampled(self.sampler, noise, cond, s.train_batch_size))
                says = predict(self.classifier, images).argmax(1).tolist()
                tried += len(open_)
                for row, i in enumerate(open_):
                    if says[row] == self.labels[i]:
                        missing[i], wanted[i] = max(0, missing[i] - 1), wanted[i] - 1
                        kept.append((i, turn, noise[row]))
                        bar.update()
                    else:
                        why[i] = f"read as {self.classifier.labels[says[row]]}"
        dropped = [Dropped(self.prompts[i], names[i], n, why[i]) for i, n in enumerate(missing) if n]
        if not kept:
            raise InputError(
                f"none of {tried} images is read as what it should show, so there is nothing to audit; look at "
                "the prompts and labels, or take more tries"
                + ("" if given is None else f" ({'; '.join(map(str, dropped))})")
            )
        if dropped:
            warnings.warn(
                f"{sum(each.starts for each in dropped)} of {s.num_starts * len(self.prompts)} starts are dropped, "
                + (f"as none of {s.tries} tries each is read right: " if given is None else "")
                + "; ".join(map(str, dropped)),
                stacklevel=4,
            )
        kept.sort(key=lambda each: each[:2])
        which = [i for i, _, _ in kept]
        cond = self.sampler.encode([self.prompts[i] for i in which])
        # The first starts of a prompt are those of its images, and each further one goes to the next image.
        groups = [i * s.num_starts + which[:row].count(i) % s.num_starts for row, i in enumerate(which)]
        return which, groups, torch.stack([noise for _, _, noise in kept]), cond, tried, dropped

    def inverted(self, images: Tensor) -> Tensor:
        """Return the noise of given images; found once, if the run is resumed."""
        cond = self.sampler.encode(self.prompts)
        return self.once("inverted", 0, lambda: inverted(self.sampler, images, cond, self.run.quiet))

    def attacked(
        self,
        ball: Ball,
        start: Tensor,
        cond: Cond,
        objective: Objective,
        groups: list[int],
        judged: Judged | None,
    ) -> tuple[Tensor, list[int], Outcome]:
        """Return the best noise of each image in a ball, the number of its start, and what the loop found."""
        s, shares = self.settings, -(-len(start) // Processes.here().world)
        task = Attack(
            self.stages, cond, start, ball, objective, groups, s.white_noise, judged, s.stop_at_success
        )
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
        chosen = task.chosen(outcome.best_rank)
        return outcome.best["noise"][chosen], chosen, outcome

    def costs(self, start: Tensor, cond: Cond, objective: Objective) -> dict[str, Any]:
        """Return what a step and a sampling take, counted on one image, whose gradient is tried.

        Raises:
            InputError: there is no gradient.
        """
        leaf = start[:1].clone().requires_grad_()
        images = self.sampler(leaf, rows(cond, [0]))
        stats = self.sampler.stats
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

    def once(self, name: str, draws: int, work: Callable[[], Tensor]) -> Tensor:
        """Return a control's noise of so many samplings; made once, if the run is resumed."""
        path = output_folder(self.folder / "state") / f"{name.replace(' ', '-')}.safetensors"
        config = {**self.run.config, "samplings": draws}
        part = finished_part(path, config, self.run.resume, free=("max_train_steps", "samplings"))
        # A control has as many calls as the attack.
        if part is not None and part[1]["config"]["samplings"] == draws:
            return part[0]["noise"]
        noise = work()
        if Processes.here().first:
            save_checkpoint(path, {"noise": noise}, {"config": config})
        return noise
