"""Guide, tune and invert on tiny pipelines of videos and sound, end to end; the frames that a step differentiates."""

from itertools import combinations

import pytest
import torch

import adjointdpm as adp
from adjointdpm.files.films import read_film
from adjointdpm.files.sounds import as_16_bit, read_wav
from adjointdpm.metrics import for_medium
from adjointdpm.tasks import (
    EffectGoal,
    GuideSettings,
    InvertSettings,
    Lora,
    MetricGoal,
    RunOptions,
    Subset,
    TokenVectors,
    TuneSettings,
    guide,
    invert,
    load_result,
    tune,
)
from adjointdpm.tasks.evaluation import predict
from adjointdpm.tasks.frames import FrameDraws
from adjointdpm.tasks.sampling import saved
from tests.tiny.families import of
from tests.tiny.media import SIZES, VIDEOS, pipeline, sampler

QUIET = RunOptions(quiet=True)


def dark(images):
    return images.square().mean((1, 2, 3))


def still(waveforms):
    return waveforms.square().mean((1, 2))


def metric_of(name):
    return still if name == "StableAudioPipeline" else dark


def test_the_mean_over_all_draws_is_the_gradient_of_the_whole_video():
    made, metric = sampler("AnimateDiffPipeline"), for_medium(dark, "video")
    noise, cond = made.noise(1).requires_grad_(), made.encode("a cat")
    exact = torch.autograd.grad(metric(made(noise, cond)).sum(), noise)[0]
    drawn = [
        torch.autograd.grad(metric(made(noise, cond, frames)).sum(), noise)[0]
        for frames in combinations(range(3), 2)
    ]
    torch.testing.assert_close(torch.stack(drawn).mean(0), exact, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(drawn[0], exact, rtol=1e-2)


def test_draws_are_replayed_and_reach_every_frame_equally():
    draws = FrameDraws(sampler("WanPipeline"), 2, 7, dark)
    steps = [draws.at(step) for step in range(600)]
    assert steps == [FrameDraws(draws.sampler, 2, 7, dark).at(step) for step in range(600)]
    assert steps[:20] != [FrameDraws(draws.sampler, 2, 8, dark).at(step) for step in range(20)]
    assert all(len(set(each)) == 2 and tuple(sorted(each)) == each for each in steps)
    shares = [sum(frame in each for each in steps) / 600 for frame in range(5)]
    assert max(abs(share - 2 / 5) for share in shares) < 0.08  # four standard deviations
    assert FrameDraws(draws.sampler, None, 7, dark).at(3) is None


@pytest.mark.parametrize(
    ("name", "per_step", "message"),
    [
        ("sd", 1, "frames_per_step is of videos, but this sampler makes image"),
        ("StableAudioPipeline", 1, "frames_per_step is of videos, but this sampler makes audio"),
        ("AnimateDiffPipeline", 4, "frames_per_step is 4, but the videos have 3 frames"),
    ],
)
def test_frames_that_there_are_not_are_refused_before_the_work(name, per_step, message, tmp_path):
    made = adp.PipelineSampler(of("sd").make(), steps=2) if name == "sd" else sampler(name)
    settings = GuideSettings(frames_per_step=per_step, baselines=False)
    with pytest.raises(adp.InputError, match=message):
        guide(made, metric_of(name), ["a cat"], output=tmp_path, settings=settings, run=QUIET)
    assert not list(tmp_path.iterdir())


def test_what_a_sampler_cannot_do_is_refused_in_a_line(tmp_path):
    video, sound = sampler("AnimateDiffPipeline"), sampler("StableAudioPipeline")
    with pytest.raises(adp.InputError, match=r"baselines .* need a FlowSampler, but got PipelineSampler"):
        guide(video, dark, ["a cat"], output=tmp_path)
    whole = adp.metrics.WholeVideo(lambda x: x.diff(dim=1).square().mean((1, 2, 3, 4)))
    few = GuideSettings(frames_per_step=1, baselines=False)
    with pytest.raises(adp.InputError, match="leaves out frames that the metric of whole videos"):
        guide(video, whole, ["a cat"], output=tmp_path, settings=few)
    alone, judge = GuideSettings(baselines=False), adp.load_classifier("emoji/resnet")
    with pytest.raises(adp.InputError, match="a judge classifies images, but this sampler makes audio"):
        guide(sound, still, ["a cat"], output=tmp_path, settings=alone, judge=judge)
    with pytest.raises(adp.InputError, match=r"the metric fails on quiet noise of shape \(1, 2, 12\)"):
        guide(sound, adp.metrics.Chroma(), ["a cat"], output=tmp_path, settings=alone)
    with pytest.raises(
        adp.InputError, match="StableAudioDiTModel has no add_adapter; train weights by name"
    ):
        tune(sound, still, ["a cat"], ["a dog"], output=tmp_path, run=RunOptions(overwrite=True))
    for made, medium in ((video, "video"), (sound, "audio")):
        with pytest.raises(
            adp.InputError, match=f"this task is of images, but this sampler makes {medium}"
        ):
            adp.tasks.audit(made, torch.nn.Identity(), ["a cat"], output=tmp_path / medium)
        with pytest.raises(adp.InputError, match=f"image_to_image is of images, but .* makes {medium}"):
            made.check_image_to_image()


@pytest.mark.parametrize("name", SIZES)
def test_guide_lowers_the_metric_and_saves_what_it_measured(name, tmp_path):
    made, metric = sampler(name), metric_of(name)
    settings = GuideSettings(max_train_steps=4, num_validation_images=2, baselines=False)
    found = guide(made, metric, ["a cat"], output=tmp_path, settings=settings, run=QUIET)
    before, after = (found.methods[each].values["metric"] for each in ("no guidance", "noise"))
    assert (after < before).all()
    whole = for_medium(metric, made.medium)
    with torch.no_grad():
        noise, _ = adp.load_noise(found.artefact)
        torch.testing.assert_close(after, whole(made(noise, made.encode("a cat"))), rtol=1e-4, atol=1e-6)
    for method, each in found.methods.items():
        for i, sample in enumerate(each.images):
            stem = tmp_path / "samples" / f"{method.replace(' ', '-')}-{i:05}"
            if made.medium == "audio":
                read, rate = read_wav(stem.with_suffix(".wav").read_bytes())
                assert torch.equal(as_16_bit(read), as_16_bit(sample))
                again = still(read[None])
            else:
                read, rate = read_film(stem.with_suffix(".webp").read_bytes(), made.rate), made.rate
                assert torch.equal(read, saved(sample))
                again = whole(read[None])
            assert rate == made.rate
            torch.testing.assert_close(again, whole(_kept(sample)), rtol=1e-3, atol=1e-5)
    assert load_result(tmp_path)["settings"]["frames_per_step"] is None


def _kept(sample):
    """As a file keeps it, but for the rounding."""
    low = -1 if sample.ndim == 2 else 0
    return sample.clamp(low, 1)[None]


@pytest.mark.parametrize("name", ["AnimateDiffPipeline", "WanPipeline"])
def test_a_resumed_guide_of_some_frames_ends_in_the_same_bits(name, tmp_path):
    made = sampler(name)
    settings = GuideSettings(
        max_train_steps=4,
        num_validation_images=1,
        baselines=False,
        frames_per_step=1,
        checkpointing_steps=1,
    )

    def run(folder, options):
        found = guide(made, dark, ["a cat"], output=folder, settings=settings, run=options)
        return adp.load_noise(found.artefact)[0], found.methods["noise"].losses

    def end(step, _):
        if step == 2:
            raise RuntimeError("the end")

    whole, losses = run(tmp_path / "whole", QUIET)
    with pytest.raises(adp.tasks.StoppedRunError, match="stopped at step 2 of 4"):
        run(tmp_path / "parts", RunOptions(quiet=True, report=end))
    resumed, again = run(tmp_path / "parts", RunOptions(quiet=True, resume=True))
    assert torch.equal(whole, resumed)
    assert losses == again


def test_with_some_frames_the_last_iterate_is_kept(tmp_path):
    """Losses of different frames say nothing of which iterate is better."""
    made = sampler("AnimateDiffPipeline")
    settings = GuideSettings(
        max_train_steps=3, num_validation_images=1, baselines=False, frames_per_step=1, learning_rate=0.05
    )
    found = guide(made, dark, ["a cat"], output=tmp_path, settings=settings, run=QUIET)
    measured = found.methods["noise"].values["metric"]
    assert float(measured[0]) == pytest.approx(found.methods["noise"].losses[-1], rel=1e-5)
    assert float(measured[0]) < float(found.methods["no guidance"].values["metric"][0])


@pytest.mark.parametrize("name", ["AnimateDiffPipeline", "LTXPipeline"])
@pytest.mark.parametrize("per_step", [None, 2])
def test_a_tuned_lora_loads_into_a_new_pipeline(name, per_step, tmp_path):
    made = sampler(name)
    settings = TuneSettings(
        max_train_steps=4,
        num_validation_images=1,
        learning_rate=0.05,
        validation_steps=2,
        frames_per_step=per_step,
    )
    found = tune(
        made,
        dark,
        ["a cat"],
        ["a dog"],
        output=tmp_path,
        weights=Lora(rank=2),
        settings=settings,
        run=QUIET,
    )
    assert found.reduction("metric") > 0
    pipe = pipeline(name)
    pipe.load_lora_weights(tmp_path)
    fresh = sampler(name, pipe)
    noise, cond = fresh.noise(1), fresh.encode("a dog")
    with torch.no_grad():
        torch.testing.assert_close(fresh(noise, cond), made(noise, cond), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(fresh(noise, cond), sampler(name)(noise, cond), atol=1e-5)
    shown = sorted(path.name for path in (tmp_path / "validation").iterdir())
    assert shown == ["step_000000.webp", "step_000002.webp", "step_000004.webp"]
    content = (tmp_path / "validation" / shown[-1]).read_bytes()
    assert torch.equal(read_film(content, made.rate), saved(found.methods["metric"].images[0]))


def test_weights_are_tuned_to_sound(tmp_path):
    made = sampler("StableAudioPipeline")
    settings = TuneSettings(max_train_steps=4, num_validation_images=2, learning_rate=0.05)
    found = tune(
        made,
        still,
        ["a cat"],
        ["a dog"],
        output=tmp_path,
        weights=Subset(("*to_q.weight",)),
        settings=settings,
        run=QUIET,
    )
    assert found.reduction("metric") > 0.05


@pytest.mark.parametrize("name", [each for each in SIZES if each != "WanPipeline"])
def test_a_token_is_learned_from_videos_and_sound(name, tmp_path):
    made, metric = sampler(name), metric_of(name)
    learned = TokenVectors(made, "<effect>", "a")
    settings = InvertSettings(max_train_steps=5, num_validation_images=2, learning_rate=0.1)
    prompts = ["a <effect> cat"], ["a <effect> dog"]
    found = invert(
        made, learned, MetricGoal(metric), *prompts, output=tmp_path, settings=settings, run=QUIET
    )
    report = found.reports["seen noise"]
    assert report.metric_after < report.metric_before
    whole = for_medium(metric, made.medium)
    with torch.no_grad():
        again = float(whole(report.after).mean())
    assert report.metric_after == pytest.approx(again, rel=1e-5)
    suffix = "wav" if made.medium == "audio" else "webp"
    assert [each.name for each in sorted((tmp_path / "without-token").iterdir())] == [
        f"0000{i}.{suffix}" for i in range(2)
    ]


def test_an_effect_is_applied_frame_by_frame(tmp_path):
    made = sampler("AnimateDiffPipeline")
    goal = EffectGoal(adp.metrics.effect("inverted"))
    learned = TokenVectors(made, "<effect>", "a")
    settings = InvertSettings(max_train_steps=2, num_validation_images=1, frames_per_step=1)
    prompts = ["a <effect> cat"], ["a <effect> dog"]
    found = invert(made, learned, goal, *prompts, output=tmp_path, settings=settings, run=QUIET)
    report = found.reports["seen noise"]
    assert torch.equal(report.target, 1 - report.before)
    by_hand = (report.after - report.target).square().mean()
    assert report.metric_after == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize("name", VIDEOS)
def test_a_judge_reads_the_mean_of_its_logits_over_frames(name):
    made = sampler(name)
    video = torch.rand(2, *made.output_shape, generator=torch.Generator().manual_seed(0))
    logits = predict(lambda images: images.mean((2, 3)), video, batch=2)
    torch.testing.assert_close(logits, video.mean((1, 3, 4)))
