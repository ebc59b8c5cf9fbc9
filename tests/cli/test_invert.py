"""`adjointdpm invert`: files, the same bits from the saved config, and what is refused."""

import torch
from safetensors.torch import load_file

import adjointdpm as adp
from adjointdpm.files.images import as_8_bit, image_file, png
from adjointdpm.optimization.seeds import key
from adjointdpm.tasks import load_result
from adjointdpm.tasks.sampling import noise_of
from tests.tiny.commands import SMALL, TWO, refused, run, without_seconds


def test_invert_repeats_to_the_bit_from_its_config(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    ended = run(
        ["invert", *TWO, *SMALL, "--target_word", "sepia", "--output_dir", str(first)],
        ["invert", "--config", str(first / "config.yaml"), "--output_dir", str(second)],
    )
    assert ended == ["done", "done"]
    assert without_seconds(first) == without_seconds(second)
    one, two = (load_file(folder / "learned_embeds.safetensors") for folder in (first, second))
    assert torch.equal(one["<effect>"], two["<effect>"])
    assert (first / "seen-noise.png").read_bytes() == (second / "seen-noise.png").read_bytes()
    page = (first / "index.html").read_text()
    assert "a &lt;effect&gt; cat" in page
    assert "<effect>" not in page


def test_another_process_goes_on(tmp_path):
    """What a checkpoint says of its run must not hold what belongs to a process, such as addresses."""
    given = ["invert", *TWO, *SMALL, "--target_effect", "sepia", "--output_dir", str(tmp_path)]
    assert run(given) == ["done"]
    learned = load_file(tmp_path / "learned_embeds.safetensors")["<effect>"]
    assert run([*given, "--resume"]) == ["done"]
    # The tensor and not the file: safetensors writes its metadata in an order of the process's own.
    assert torch.equal(load_file(tmp_path / "learned_embeds.safetensors")["<effect>"], learned)
    assert " at 0x" not in (tmp_path / "result.json").read_text()


def test_a_run_that_ended_is_extended_to_more_steps(tmp_path):
    given = ["invert", *TWO, *SMALL, "--target_word", "sepia", "--output_dir", str(tmp_path)]
    more = ["--resume", "--config", str(tmp_path / "config.yaml"), "--max_train_steps"]
    first, second, third = run(given, ["invert", *more, "4"], ["invert", *more, "3"])
    assert (first, second) == ("done", "done")
    assert "made with max_train_steps = 4" in third
    found = load_result(tmp_path)
    assert len(found["result"]["losses"]) == 5
    assert found["settings"]["max_train_steps"] == 4


def test_all_images_of_a_task_are_guided_away_from_the_negative_prompt(tmp_path):
    """Those of the page, too: what is saved is what the sampler makes with this negative prompt."""
    given = ["invert", *TWO, *SMALL, "--target_word", "sepia", "--negative_prompt", "blue"]
    assert run([*given, "--output_dir", str(tmp_path)]) == ["done"]
    sampler = adp.load_bundled("emoji", steps=2, guidance_scale=4.0)
    noise = noise_of(sampler, [key(0, "seen noise", 0)])
    with torch.no_grad():
        away, plain = (
            sampler(noise, sampler.encode("a cat", each))[0].clamp(0, 1) for each in ("blue", "")
        )
    found = image_file(tmp_path / "without-token" / "00000.png")
    assert (
        float((found - away).abs().max()) < 2 / 255
    )  # the other process may have another number of threads
    assert float((found - plain).abs().max()) > 0.1


def test_a_metric_is_a_goal_and_repeats_to_the_bit(tmp_path):
    """The style of one image and the content without the token: nothing else says what the token is to do."""
    reference = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    (tmp_path / "effect.png").write_bytes(png(as_8_bit(reference)))
    first, second = tmp_path / "first", tmp_path / "second"
    goal = ["--metric", f"style:{tmp_path / 'effect.png'}", "--metric", "0.3*content", "--layer", "0"]
    judge = ["--judge", "emoji/judge/style", "--label", "sepia"]
    starts = [
        "--initializer_token",
        "a",
        "--initializer_token",
        "gray",
        "--num_starts",
        "2",
        "--start_steps",
        "1",
    ]
    ended = run(
        ["invert", *TWO, *SMALL, *goal, *judge, *starts, "--output_dir", str(first)],
        ["invert", "--config", str(first / "config.yaml"), "--output_dir", str(second)],
    )
    assert ended == ["done", "done"]
    assert without_seconds(first) == without_seconds(second)
    found = load_result(first)["result"]
    assert {each["word"] for each in found["starts"]} == {"a", "gray"}
    assert min(found["starts"], key=lambda each: each["metric_after"])["chosen"]
    reports = found["reports"]
    assert set(reports) == {"seen noise", "unseen noise", "unseen concepts"}
    for each in reports.values():
        assert each["before"] is not None
        assert each["after"] is not None
        assert each["judged_before"]["of"] == sum(each["named"].values()) == 1
        assert each["judged_target"] is None
    assert "Style + 0.3*Content" in (first / "index.html").read_text()


def test_target_images_are_one_for_each_prompt_and_noise(tmp_path):
    """A run's images without the token are targets of the next run; another number or size raises before the work."""
    first, second = tmp_path / "first", tmp_path / "second"
    many = ["invert", *TWO, "--prompt", "a <effect> dog", *SMALL]
    given = [*many, "--target_images", str(first / "without-token")]
    ended = run(
        [*many, "--target_effect", "sepia", "--output_dir", str(first)],
        [*given, "--output_dir", str(second)],
        [*given, "--num_validation_images", "3", "--output_dir", str(tmp_path / "third")],
    )
    assert ended[:2] == ["done", "done"]
    assert "holds 2 images, but 2 prompts with 3 noises each need 6" in ended[2]
    reports = load_result(second)["result"]["reports"]
    assert reports["seen noise"]["after"] is not None
    assert reports["unseen noise"]["after"] is None
    (first / "without-token" / "00001.png").write_bytes(png(as_8_bit(torch.zeros(3, 8, 8))))
    (end,) = run([*given, "--output_dir", str(tmp_path / "fourth")])
    assert "00001.png is 8 x 8 pixels, but 64 x 64 are compared with" in end


def test_flags_that_contradict_one_another_are_refused(tmp_path):
    sepia = ["invert", *TWO, "--target_effect", "sepia"]
    word = ["invert", *TWO, "--target_word", "x"]
    refused(
        tmp_path,
        {
            "no goal was given": ["invert", *TWO],
            "--target_word and --target_effect was given": [*word, "--target_effect", "sepia"],
            "--metric and --target_effect was given": [*sepia, "--metric", "chroma"],
            "no effect": ["invert", *TWO, "--target_effect", "glow"],
            "no folder of images": ["invert", *TWO, "--target_images", str(tmp_path / "nowhere")],
            "Chroma has a goal of its own": [*sepia, "--distance", "pixels", "--distance", "chroma"],
            "EffectDistance has a goal": [*sepia, "--distance", "effect:night"],
            "--distance is not used with --metric": [
                *("invert", *TWO, "--metric", "chroma", "--distance", "pixels"),
            ],
            "--num_starts is 2, but 1 initial word is given": [*word, "--num_starts", "2"],
            "--start_steps is not used without --num_starts": [*word, "--start_steps", "2"],
            "--num_vectors is not used": [*word, "--learn", "rows", "--num_vectors", "2"],
            "must hold the token": [
                *("invert", "--prompt", "a cat", "--validation_prompt", "a car", "--target_word", "sepia"),
            ],
        },
    )
