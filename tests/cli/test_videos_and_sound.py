"""Commands on saved pipelines of videos and sound: the same files as in Python, and what is refused."""

import json

import pytest
import torch

import adjointdpm as adp
from adjointdpm.files.films import film, read_film
from adjointdpm.files.images import as_8_bit
from adjointdpm.files.sounds import as_16_bit, wav
from adjointdpm.metrics import OverFrames
from adjointdpm.tasks import load_result
from tests.tiny.commands import refused, run
from tests.tiny.media import SIZES, pipeline, sampler

METRICS = """
import torch
from adjointdpm.metrics import WholeVideo

def dark(images):
    return images.square().mean((1, 2, 3))

def quiet(waveforms):
    return waveforms.square().mean((1, 2))

flicker = WholeVideo(lambda videos: videos.diff(dim=1).square().mean((1, 2, 3, 4)))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved pipeline of each class."""
    root = tmp_path_factory.mktemp("pipelines")
    for name in SIZES:
        pipeline(name).save_pretrained(root / name)
    return root


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with metrics of one's own."""
    (tmp_path / "own_metrics.py").write_text(METRICS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flags(folders, name, prompt="a cat"):
    size = [text for key, value in SIZES[name].items() for text in (f"--{key}", str(value))]
    model = [
        "--pretrained_model_name_or_path",
        str(folders / name),
        "--solver",
        "pipeline",
        "--device",
        "cpu",
    ]
    return [
        *model,
        *size,
        "--num_inference_steps",
        "2",
        "--guidance_scale",
        "3",
        "--prompt",
        prompt,
        "--quiet",
    ]


def test_sample_writes_what_the_sampler_makes(folders, here):
    names = list(SIZES)
    commands = [
        ["sample", *flags(folders, name), "--batch", "2", "--seed", "3", "--output_dir", str(here / name)]
        for name in names
    ]
    assert run(*commands) == ["done"] * len(names)
    for name in names:
        made = sampler(name)
        with torch.no_grad():
            samples = made(made.noise(2, 3), made.encode("a cat"))
        listed = json.loads((here / name / "result.json").read_text())
        for each, sample in zip(listed, samples, strict=True):
            content = (here / name / each["file"]).read_bytes()
            if made.medium == "audio":
                assert content == wav(as_16_bit(sample), made.rate)
            else:
                assert content == film(as_8_bit(sample), made.rate)
        page = (here / name / "index.html").read_text()
        noun = "waveforms" if made.medium == "audio" else "videos"
        assert f"2 {noun} of “a cat”" in page
        assert page.count("<audio controls" if made.medium == "audio" else "<picture>") == 2


def test_tasks_run_on_a_folder_and_go_on(folders, here):
    video, sound = "AnimateDiffPipeline", "StableAudioPipeline"
    dark, quiet = ["--metric", "own_metrics:dark"], ["--metric", "own_metrics:quiet"]
    few = ["--num_validation_images", "1", "--judge", "none"]
    both = [*dark, "--metric", "0.5 * own_metrics:flicker"]
    steps = ["--max_train_steps", "3"]
    each = ["--frames_per_step", "2", "--validation_steps", "1", "--checkpointing_steps", "1"]
    effect = ["--validation_prompt", "a <effect> dog"]
    commands = {
        "guide": ["guide", *flags(folders, video), *both, *few, "--no_baselines", *steps],
        "sound": ["guide", *flags(folders, sound), *quiet, *few, "--no_baselines", *steps],
        "tune": [
            "tune",
            *flags(folders, video),
            *dark,
            *few,
            "--validation_prompt",
            "a dog",
            *each,
            *steps,
        ],
        "invert": ["invert", *flags(folders, sound, "a <effect> cat"), *quiet, *few, *effect, *steps],
    }
    tune = commands["tune"]
    short = [*tune[:-1], "1", "--output_dir", str(here / "parts")]
    longer = [*tune, "--output_dir", str(here / "parts"), "--resume"]
    whole = [[*line, "--output_dir", str(here / key)] for key, line in commands.items()]
    assert run(*whole, short, longer) == ["done"] * 6
    results = {key: load_result(here / key)["result"] for key in commands}
    for key in ("guide", "sound"):
        means = {name: each["means"]["metric"]["mean"] for name, each in results[key]["methods"].items()}
        assert means["noise"] < means["no guidance"], key
    before, after = (results["invert"]["reports"]["seen noise"][when] for when in ("before", "after"))
    assert after < before
    one, two = (load_result(here / at)["result"]["methods"]["metric"] for at in ("tune", "parts"))
    assert one["losses"] == two["losses"]
    assert one["values"] == two["values"]
    # The saved file has the metric that is reported.
    made = sampler(video)
    read = read_film((here / "tune" / "samples" / "metric-00000.webp").read_bytes(), made.rate)
    value = OverFrames(lambda images: images.square().mean((1, 2, 3)))(read[None])
    ((measured,),) = one["values"].values()
    assert float(value) == pytest.approx(measured, rel=1e-2)


def test_what_does_not_fit_is_refused_in_a_line(folders, here):
    video, sound = (flags(folders, name) for name in ("AnimateDiffPipeline", "StableAudioPipeline"))
    without = [each for each in video if each not in ("--solver", "pipeline")]
    few = ["--metric", "own_metrics:quiet", "--judge", "none"]
    wrong = {
        "num_frames is of videos and sound, whose steps are the pipeline's own; give --solver pipeline": [
            "sample",
            *without,
        ],
        "StableAudioPipeline takes no num_frames": ["sample", *sound, "--num_frames", "3"],
        "StableAudioPipeline makes no video, so it has no frame_rate": [
            "sample",
            *sound,
            "--frame_rate",
            "8",
        ],
        "give --no_baselines": ["guide", *video, *few],
        "--output_format": ["sample", *video, "--output_format", "png"],
        "frames_per_step is of videos, but this sampler makes audio": [
            "guide",
            *sound,
            *few,
            "--no_baselines",
            "--frames_per_step",
            "1",
        ],
        "makes sound, (channels, samples), and no images": [
            "guide",
            *sound,
            "--metric",
            "own_metrics:quiet",
            "--judge",
            "emoji/judge",
            "--no_baselines",
            "--label",
            "apple",
        ],
        "this task is of images, but this sampler makes video": [
            "audit",
            *video,
            "--classifier",
            "emoji/resnet",
            "--label",
            "apple",
        ],
    }
    refused(here / "refused", wrong)
    for name in SIZES:
        with pytest.raises(adp.InputError, match=r"use PipelineSampler\(pipe\), or --solver pipeline"):
            adp.FlowSampler.from_pipeline(pipeline(name))
