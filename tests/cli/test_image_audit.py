"""`adjointdpm audit --images`: from flags to files, to the bit from the saved config; and what is refused."""

import pytest
import torch
import yaml

import adjointdpm as adp
from adjointdpm.cli.image_audit import _defense, _radius
from adjointdpm.files.images import png
from adjointdpm.tasks import load_result
from adjointdpm.zoo import load_classifier
from tests.tiny.commands import adjointdpm, refused


@pytest.fixture
def folder(tmp_path):
    """Two images, called what the bundled classifier takes them for."""
    images = torch.zeros(2, 3, 64, 64)
    images[0, :, 16:48, 16:48] = 1
    images[1, 0] = 1
    classifier = load_classifier("emoji/resnet")
    for image, i in zip(images, classifier(images).argmax(1), strict=True):
        path = tmp_path / "images" / classifier.labels[i] / "1.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(png((255 * image).to(torch.uint8)))
    return tmp_path / "images"


def test_a_defence_is_audited_and_the_saved_config_repeats_it(folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    done = adjointdpm(
        "audit", "--defense", "purify:t=0.02,steps=1,votes=3,eta=1", "--images", str(folder), "--attack", "apgd",
        "--eps", "8/255", "--norm", "linf", "--draws", "2", "--max_train_steps", "2", "--no_controls",
        "--output_dir", str(first),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = load_result(first)
    found = record["result"]
    assert f"right before the attack: {100 * found['clean']['majority']['share']:.1f} %" in done.stdout
    assert (
        f"right after it, every one of 3 draws: {100 * found['robust']['worst']['share']:.1f} %"
        in done.stdout
    )
    assert record["settings"]["solver"].startswith("EulerMaruyama")  # what ran, not the default of a flag
    assert "t = 0.02, 1 steps of EulerMaruyama" in (first / "index.html").read_text()
    assert len(found["images"]) == 2
    again = adjointdpm("audit", "--config", str(first / "config.yaml"), "--output_dir", str(second))
    assert again.returncode == 0, again.stderr
    assert load_result(second)["result"]["images"] == found["images"]
    assert yaml.safe_load((second / "config.yaml").read_text())["eps"] == "8/255"


def test_a_pipelines_own_scheduler_purifies(folder, tmp_path):
    done = adjointdpm(
        "audit", "--defense", "purify:t=0.08,votes=3", "--solver", "pipeline", "--images", str(folder), "--draws", "2",
        "--max_train_steps", "2", "--no_controls", "--output_dir", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = load_result(tmp_path / "out")
    assert record["settings"]["solver"] == "'DDIMScheduler'"
    assert record["result"]["costs"]["calls_a_draw"] == 2
    assert "t = 0.08, 2 steps of DDIMScheduler" in (tmp_path / "out" / "index.html").read_text()


def test_a_plain_classifier_needs_no_model(folder, tmp_path):
    done = adjointdpm(
        "audit", "--images", str(folder), "--attack", "pgd", "--momentum", "0.5", "--norm", "l2", "--eps", "1",
        "--max_train_steps", "3", "--output_dir", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = load_result(tmp_path / "out")
    assert not record["result"]["randomized"]
    assert record["result"]["largest_distance"] <= 1 + 1e-5
    assert record["settings"]["draws"] == 1
    assert "single draw" not in done.stdout


def test_what_cannot_be_audited_is_refused_in_a_line(folder, tmp_path):
    images = ["--images", str(folder)]
    prompts = [word for each in folder.iterdir() for word in ("--prompt", f"a {each.name}")]
    small = tmp_path / "small"
    (small / "cat").mkdir(parents=True)
    (small / "cat" / "1.png").write_bytes(png(torch.zeros(3, 8, 8, dtype=torch.uint8)))
    unknown = tmp_path / "unknown"
    (unknown / "caat").mkdir(parents=True)
    (unknown / "caat" / "1.png").write_bytes(png(torch.zeros(3, 64, 64, dtype=torch.uint8)))
    refused(
        tmp_path / "out",
        {
            "needs a --prompt": ["audit"],
            "--eps is not used without --images": ["audit", "--prompt", "a cat", "--eps", "1"],
            "--radius is not used with --images": ["audit", *images, "--radius", "0.1"],
            "--momentum is not used with --attack apgd": ["audit", *images, "--momentum", "0.1"],
            "--solver is not used without --defense purify": ["audit", *images, "--solver", "euler"],
            "--defense: t must be": ["audit", *images, "--defense", "purify:t=1.5"],
            "with --norm l2 is less than one level": ["audit", *images, "--norm", "l2", "--eps", "8/255"],
            "is 8 x 8 pixels, but 64 x 64 are needed": [
                "audit",
                "--images",
                str(small),
                "--defense",
                "purify",
            ],
            "--start images needs a folder": ["audit", "--start", "images", "--prompt", "a cat"],
            "--draws is not used with --start images": [
                *("audit", *images, "--start", "images", "--draws", "2", "--prompt", "a cat"),
            ],
            "but no --prompt with that label": [
                *("audit", *images, "--start", "images", "--solver", "heun", "--prompt", "a zebra"),
            ],
            "takes a one-step solver of our own": [
                *("audit", *images, "--start", "images", "--solver", "dpm++", *prompts),
            ],
            "did you mean cat": ["audit", "--images", str(unknown)],
            "and --solver pipeline takes those of the pipeline's": [
                *("audit", *images, "--defense", "purify:eta=1", "--solver", "pipeline"),
            ],
        },
    )


def test_defenses_are_read():
    assert _defense("none") == {}
    assert _defense("purify") == {"t": 0.1}
    assert _defense("purify:t=0.2,steps=20,votes=5,eta=1") == {"t": 0.2, "steps": 20, "votes": 5, "eta": 1}
    for text, message in (
        ("blur", "there is no defense 'blur'; write none, purify"),
        ("purify:s=3", "has no setting 's'"),
        ("purify:t", "'t' is no setting with a number"),
        ("purify:steps=2.5", "steps is a whole number, but is 2.5"),
        ("purify:t=0", "t must be"),
    ):
        with pytest.raises(adp.InputError, match=message):
            _defense(text)


def test_radii_are_read():
    assert _radius("8/255", "linf") == 8 / 255
    assert (_radius(None, "linf"), _radius(None, "l2")) == (8 / 255, 0.5)
    for text, norm, message in (
        ("8", "linf", "give 8/255 for levels"),
        ("0", "linf", "above 0"),
        ("8/0", "linf", "above 0"),
        ("eight", "l2", "above 0"),
        ("8/255", "l2", "give --norm linf"),
    ):
        with pytest.raises(adp.InputError, match=message):
            _radius(text, norm)
