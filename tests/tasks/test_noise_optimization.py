"""What guide and audit share: stages, budgets, starts, and the judge that ends an image's optimization."""

from itertools import pairwise

import pytest
import torch

import adjointdpm as adp
from adjointdpm.metrics import Pixels
from adjointdpm.optimization.seeds import key
from adjointdpm.optimization.white_noise import projected
from adjointdpm.tasks import Ball, GuideSettings, InterruptedRunError, RunOptions, guide
from adjointdpm.tasks.noise_optimization import NoiseSettings, Stages
from adjointdpm.tasks.sampling import noise_of
from tests.tasks.audit.test_audit import Own
from tests.tiny.audits import LABELS, Nearest, audited, classifier, settings
from tests.tiny.guides import GOAL
from tests.tiny.tasks import mixture_sampler

QUIET = RunOptions(quiet=True)
RESUMED = RunOptions(quiet=True, resume=True)
EVERYTHING = {"coarse_steps": (2, 3), "best_of": 3, "judge_patience": 2}


class Watched:
    """A metric that notes how many images it was asked about with a gradient."""

    def __init__(self, stop=None):
        self.seen, self.calls, self.stop = [], 0, stop

    def __call__(self, images):
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        if images.requires_grad:
            self.seen.append(len(images))
        return GOAL(images)


def guided(folder, metric=GOAL, count=3, run=QUIET, judge=None, labels=None, sampler=None, **changes):
    quick = {"max_train_steps": 6, "num_validation_images": 1, "baselines": False, "learning_rate": 0.3}
    return guide(
        sampler or mixture_sampler(5),
        metric,
        [f"x{i}" for i in range(count)],
        output=folder,
        settings=GuideSettings(**quick | changes),
        judge=judge,
        labels=labels,
        run=run,
    )


def labels_of_originals(count=3):
    sampler = mixture_sampler(5)
    noise = noise_of(sampler, [key(0, "guide", i) for i in range(count)])
    with torch.no_grad():
        says = classifier()(sampler(noise, sampler.encode(["x"] * count)).clamp(0, 1)).argmax(1)
    return [LABELS[i] for i in says]


def test_sampling_steps_grow_and_the_last_stage_decides(tmp_path, monkeypatch):
    made, plain = [], adp.FlowSampler.forward

    def watched(self, noise, cond):
        if torch.is_grad_enabled():
            made.append(self.steps)
        return plain(self, noise, cond)

    monkeypatch.setattr(adp.FlowSampler, "forward", watched)
    found = guided(tmp_path, coarse_steps=(2, 3))
    assert made == [2, 2, 3, 3, 5, 5]
    assert found.methods["noise"].calls == 2 * 2 * (2 + 3 + 5) + 5
    noise, _ = adp.load_noise(found.artefact)
    sampler = mixture_sampler(5)
    with torch.no_grad():
        values = GOAL(sampler(noise, sampler.encode(["x"] * 3)))
    # The best is one of the last stage, whatever the losses before were: steps 4, 5 and the last iterate.
    losses = found.methods["noise"].losses
    assert torch.allclose(values, found.methods["noise"].values["metric"])
    assert float(values.mean()) <= min(losses[4:]) + 1e-12
    assert float(values.mean()) < 0.8 * found.methods["no guidance"].means["metric"]


@pytest.mark.parametrize(
    "how", [{}, {"coarse_steps": (2,)}, {"best_of": 4}, {"best_of": 4, "coarse_steps": (2, 3)}]
)
def test_a_budget_of_calls_is_used_up_and_kept(tmp_path, how):
    sampler = mixture_sampler(5)
    for calls in (60, 97):
        stages = Stages.of(sampler, NoiseSettings(calls=calls, **how), "x", None)
        longer = Stages(stages.samplers, stages.calls, stages.steps + 1, stages.best_of, stages.extra)
        assert stages.planned <= calls < longer.planned
    found = guided(tmp_path, calls=97, max_train_steps=1, **how)
    assert found.methods["noise"].calls == stages.planned
    with pytest.raises(adp.InputError, match=r"calls = 5 allow no step of the optimization; one takes \d+"):
        Stages.of(sampler, NoiseSettings(calls=5, **how), "x", None)


def test_the_worse_half_of_the_starts_is_dropped_after_each_step(tmp_path):
    metric = Watched()
    found = guided(tmp_path / "a", metric, train_batch_size=100, best_of=5)
    assert metric.seen[-6:] == [15, 9, 6, 3, 3, 3]
    one = guided(tmp_path / "b", best_of=1)
    assert torch.equal(found.methods["no guidance"].images, one.methods["no guidance"].images)
    assert found.methods["noise"].means["metric"] < one.methods["noise"].means["metric"]
    assert found.methods["noise"].calls == -(-(10 * (15 + 9 + 6 + 3 + 3 + 3)) // 3) + 5
    # A step so short that nothing moves: the best of five draws is left.
    still = guided(tmp_path / "c", best_of=5, learning_rate=1e-9)
    sampler = mixture_sampler(5)
    for i, value in enumerate(still.methods["noise"].values["metric"]):
        seeds = [key(0, "guide", i), *(key(0, "guide", i, j) for j in range(1, 5))]
        with torch.no_grad():
            drawn = GOAL(sampler(noise_of(sampler, seeds), sampler.encode(["x"] * 5)))
        assert float(value) == pytest.approx(float(drawn.min()), rel=1e-6)


def test_a_paired_metric_sees_the_original_of_its_own_start(tmp_path):
    """Nothing moves, so each start is its own original, whichever is chosen."""
    found = guided(tmp_path, Pixels(), best_of=3, learning_rate=1e-9, max_train_steps=2)
    assert float(found.methods["noise"].values["metric"].max()) < 1e-12
    assert found.methods["noise"].calls == 2 * 5 + 10 * (3 + 2) + 5  # with the originals of two more starts


def test_an_image_that_the_judge_loses_is_given_up_and_keeps_what_it_recognized(tmp_path):
    labels = labels_of_originals()
    free = guided(tmp_path / "a", judge=classifier(), labels=labels)
    assert free.methods["noise"].judged.hits < 3
    metric = Watched()
    found = guided(tmp_path / "b", metric, judge=classifier(), labels=labels, judge_patience=1)
    assert found.methods["noise"].judged.hits == 3
    assert found.methods["noise"].calls < free.methods["noise"].calls
    assert all(a >= b for a, b in pairwise(metric.seen[-4:]))
    # An image that it did not recognize before cannot fall.
    wrong = [LABELS[LABELS.index(label) - 1] for label in labels]
    other = guided(tmp_path / "c", judge=classifier(), labels=wrong, judge_patience=1)
    assert torch.equal(other.methods["noise"].images, free.methods["noise"].images)


def test_an_interrupted_guidance_goes_on_to_the_same_bits(tmp_path):
    labels = labels_of_originals()
    given = {"judge": classifier(), "labels": labels, "checkpointing_steps": 1, "train_batch_size": 4}
    whole = guided(tmp_path / "whole", Watched(), **given, **EVERYTHING)
    for stop in (6, 5, 5):
        with pytest.raises((KeyboardInterrupt, InterruptedRunError)):
            guided(tmp_path / "run", Watched(stop), run=RESUMED, **given, **EVERYTHING)
    again = guided(tmp_path / "run", Watched(), run=RESUMED, **given, **EVERYTHING)
    assert torch.equal(again.methods["noise"].images, whole.methods["noise"].images)
    assert again.methods["noise"].losses == whole.methods["noise"].losses
    assert again.methods["noise"].calls == whole.methods["noise"].calls
    for name, other in (("coarse_steps", (2, 2)), ("best_of", 2), ("judge_patience", 3)):
        with pytest.raises(adp.InputError, match=f"{name} = .* but this run has"):
            guided(tmp_path / "run", run=RESUMED, **given, **EVERYTHING | {name: other})
    with pytest.raises(adp.InputError, match=r"stages = \[0, 2, 4\], but this run has \[0, 3, 6\]"):
        guided(tmp_path / "run", run=RESUMED, max_train_steps=9, **given, **EVERYTHING)


class Grid(adp.DiffusionModel):
    """Its noise has enough values for a spectrum."""

    def __init__(self):
        super().__init__()

        class Network(torch.nn.Conv2d):
            def forward(self, x, t):
                return super().forward(x)

        torch.manual_seed(0)
        self.schedule = adp.VPLinear()
        self.denoiser = adp.NetworkDenoiser(Network(3, 3, 1).requires_grad_(False), adp.Prediction.EPS)
        self.latent_shape = self.image_shape = (3, 8, 8)

    def encode(self, prompts, negative, guidance_scale):
        return adp.Cond()


def test_white_noise_stays_white(tmp_path):
    sampler = adp.FlowSampler(Grid(), steps=3)
    for white in (False, True):
        found = guided(
            tmp_path / str(white), lambda x: x.mean((1, 2, 3)), sampler=sampler, white_noise=white
        )
        noise, _ = adp.load_noise(found.artefact)
        assert torch.allclose(projected(noise), noise, atol=1e-4) == white
        assert found.methods["noise"].means["metric"] < found.methods["no guidance"].means["metric"]


def test_an_audit_has_the_same_settings(tmp_path):
    """Starts whose margin is lowest are attacked on; every figure is of the start that was chosen."""
    given = {"controls": False, "max_train_steps": 4, "radii": (0.2,)}
    plain = audited(tmp_path / "a", settings=settings(**given))
    more = {"coarse_steps": (2,), "best_of": 4}
    found = audited(tmp_path / "b", settings=settings(**given, **more))
    assert len(found.labels) == len(plain.labels)
    assert found.labels == plain.labels
    assert found.success.hits >= plain.success.hits
    assert float(found.after.margins.mean()) < float(plain.after.margins.mean())
    assert plain.costs["calls"] == 2 * 4 * 4
    starts = [-(-4 // 2**k) for k in range(4)]
    assert found.costs["calls"] == 3 * 4 + sum(2 * c * n for c, n in zip((2, 2, 4, 4), starts, strict=True))
    for radius, each in found.curve.items():
        assert float(each.distances.max()) <= radius * (1 + 1e-9)
    with torch.no_grad():
        sampler = mixture_sampler(4)
        says = classifier()(sampler(found.start, sampler.encode(["x"] * len(found.start)))).argmax(1)
    assert [LABELS[i] for i in says] == found.labels
    capped = audited(tmp_path / "c", settings=settings(controls=True, calls=30, radii=()))
    assert capped.costs["calls"] <= 30 - 4
    assert capped.costs["samplings_a_control"] == round(capped.costs["calls"] * 1.5 / 4)


def test_an_audits_judge_ends_the_attack_of_an_image(tmp_path):
    """The judge is another classifier of the same labels, which the attack soon loses."""
    judge = classifier(Nearest(2.0))
    given = {"controls": False, "max_train_steps": 6}
    plain = audited(tmp_path / "a", judge=judge, settings=settings(**given))
    assert plain.kept.hits == 0 < plain.success.hits
    found = audited(tmp_path / "b", judge=judge, settings=settings(**given, judge_patience=1))
    assert bool(found.after.shows.all())
    assert found.costs["calls"] < plain.costs["calls"]


def test_an_audit_stops_an_image_at_its_first_success_and_finds_as_many(tmp_path):
    """The iterates are those of an attack that goes on, so that its first success is the same one."""
    given = {"controls": False, "num_starts": 2}
    plain = {
        steps: audited(tmp_path / str(steps), settings=settings(**given, max_train_steps=steps))
        for steps in range(1, 7)
    }
    stopped = {**given, "max_train_steps": 6, "stop_at_success": True, "radii": (2.0,)}
    found = audited(tmp_path / "stopped", settings=settings(**stopped))
    assert torch.equal(found.after.fooled, plain[6].after.fooled)
    count = len(found.labels)
    first = [next((n for n in plain if plain[n].after.fooled[i]), 7) for i in range(count)]
    assert min(first) < max(first), "images fall at different steps, or this tests nothing"
    # The iterate after step n is scored in step n + 1, or without a gradient after the last one.
    taken = sum(min(n + 1, 6) for n in first)
    assert found.costs["calls"] == -(-2 * 4 * taken // count)
    wider = audited(tmp_path / "wider", settings=settings(**{**stopped, "ball": Ball(2.0), "radii": ()}))
    assert [found.curve[r].calls for r in (0.6, 2.0)] == [found.costs["calls"], wider.costs["calls"]]
    assert wider.costs["calls"] < found.costs["calls"]
    noise, last = found.after.noise, plain[6].after.noise
    for i, n in enumerate(first):
        assert torch.equal(noise[i], plain[min(n, 6)].after.noise[i]), f"start {i} fell at step {n}"
    assert not torch.equal(noise, last), "steps after a success bring it nearer"
    starts = audited(tmp_path / "starts", settings=settings(**stopped, best_of=4))
    assert starts.success.hits >= found.success.hits


def test_what_cannot_be_done_is_refused_before_the_work(tmp_path):
    for bad, words in [
        ({"coarse_steps": (3, 2)}, "must not fall"),
        ({"coarse_steps": (0,)}, "coarse_steps must be at least 1"),
        ({"calls": 0}, "calls must be at least 1"),
        ({"best_of": 0}, "best_of must be at least 1"),
        ({"judge_patience": 0}, "judge_patience must be at least 1"),
    ]:
        with pytest.raises(adp.InputError, match=words):
            GuideSettings(**bad)
    metric = Watched()
    for bad, words in [
        ({"coarse_steps": (5,)}, r"fewer than the sampler's own steps \(5\), but hold 5"),
        ({"judge_patience": 1}, "waits for a judge"),
        ({"white_noise": True}, "at least 64, but it has 2"),
        ({"calls": 3}, "calls = 3 allow no step"),
        (
            {"coarse_steps": (2,), "sampler": mixture_sampler(5).replace(solver=adp.Ancestral())},
            "adds noise",
        ),
        (
            {"coarse_steps": (2,), "sampler": mixture_sampler(5).replace(grid=mixture_sampler(5).times())},
            "is a list of 6 times",
        ),
    ]:
        with pytest.raises(adp.InputError, match=words):
            guided(tmp_path / "x", metric, **bad)
    assert metric.seen == [1] * len(metric.seen)  # on gray images alone
    with pytest.raises(adp.InputError, match="has no number of steps to exchange"):
        adp.tasks.audit(
            Own(), classifier(), LABELS, LABELS, output=tmp_path / "y", settings=settings(coarse_steps=(1,))
        )
