"""`adjointdpm sample` makes the images of the sampler, of any model and with what the other commands wrote."""

import io
import json

import peft
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import adjointdpm as adp
from adjointdpm.files.diffusers_files import load_textual_inversion
from adjointdpm.files.images import as_8_bit, encoded, png
from adjointdpm.files.pretrained import load_pretrained_pipeline
from tests.tiny.commands import ONE_IMAGE, adjointdpm, refused, run
from tests.tiny.families import of

STEPS = {"steps": 2, "guidance_scale": 3.0}
FLAGS = ["--num_inference_steps", "2", "--guidance_scale", "3", "--batch", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with tiny models, a LoRA, a token and noise that this library saved."""
    folder = tmp_path_factory.mktemp("sample")
    for name in ("sd", "sdxl"):
        of(name).make().save_pretrained(folder / name)
    pipe = load_pretrained_pipeline(folder / "sd")
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    adp.save_lora(folder / "lora", pipe)
    generator = torch.Generator().manual_seed(0)
    token = 3 * torch.randn(2, 8, generator=generator)
    adp.save_textual_inversion(folder / "learned_embeds.safetensors", "<new>", token)
    pair = [3 * torch.randn(1, 8, generator=generator) for _ in range(2)]
    adp.save_textual_inversion(folder / "pair.safetensors", "<new>", *pair)
    noise = torch.randn(2, *of("sd").latents, generator=generator)
    adp.save_noise(folder / "noise.safetensors", noise, scheduler="DPMSolverPP", steps=2)
    return folder


def bytes_of(sampler, prompt, noise=None, negative=""):
    """The files of a sampler's images."""
    with torch.no_grad():
        images = sampler(sampler.noise(1, 0) if noise is None else noise, sampler.encode(prompt, negative))
    return [png(image) for image in as_8_bit(images)]


def files(folder):
    return [path.read_bytes() for path in sorted(folder.glob("*.png"))]


def test_the_images_and_the_list_of_them(tmp_path):
    done = adjointdpm(
        "sample",
        "--prompt",
        "a cat",
        "--prompt",
        "a car",
        "--output_dir",
        str(tmp_path),
        "--batch",
        "2",
        "--num_inference_steps",
        "3",
    )
    assert done.returncode == 0, done.stderr
    names = ["00-00.png", "00-01.png", "01-00.png", "01-01.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*names, "config.yaml", "index.html", "result.json"]
    )
    *paths, page = done.stdout.splitlines()
    assert paths == [str(tmp_path / name) for name in names]
    assert page == f"page: {tmp_path / 'index.html'}"
    sampler = adp.load_bundled("emoji", steps=3, guidance_scale=4.0)
    assert files(tmp_path)[2:] == bytes_of(sampler, "a car", sampler.noise(2, 0))
    found = json.loads((tmp_path / "result.json").read_text())
    assert [each["file"] for each in found] == names
    assert found[2] == {"file": "01-00.png", "prompt": "a car", "seed": 0, "index": 0}
    text = (tmp_path / "index.html").read_text()
    for part in ("2 images of each of 2 prompts.", "emoji (StableDiffusionPipeline)", "3 steps of", *names):
        assert part in text, part
    assert text.count("data:image/png;base64") == 4


def test_a_config_repeats_the_images_also_of_the_same_prompt_twice(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    ended = run(
        ["sample", "--prompt", "a cat", "--prompt", "a cat", *FLAGS, "--output_dir", str(first)],
        ["sample", "--config", str(first / "config.yaml"), "--output_dir", str(second)],
    )
    assert ended == ["done", "done"]
    assert files(first) == files(second)
    assert len(files(first)) == 2


def test_any_model_with_every_option_has_the_bytes_of_the_python_api(place, tmp_path):
    """The LoRA, the token, the noise, the size, the negative prompt and the scheduler each change the image."""

    def command(name, model, prompt, *more):
        given = [
            "--pretrained_model_name_or_path",
            str(place / model),
            "--output_dir",
            str(tmp_path / name),
        ]
        return ["sample", "--prompt", prompt, *FLAGS, "--quiet", *given, *map(str, more)]

    token = ["--learned_embeds", place / "learned_embeds.safetensors"]
    noise = [each for each in FLAGS if each not in ("--batch", "1")]
    ended = run(
        command("plain", "sd", "a cat"),
        command("lora", "sd", "a cat", "--lora", place / "lora"),
        command("token", "sd", "a <new>", *token),
        command("negative", "sd", "a cat", "--negative_prompt", "a dog"),
        command("size", "sd", "a cat", "--height", "16", "--width", "24"),
        command("scheduler", "sd", "a cat", "--solver", "pipeline", "--height", "16"),
        command("pair", "sdxl", "a <new>", "--learned_embeds", place / "pair.safetensors"),
        [
            "sample",
            "--prompt",
            "a cat",
            *noise,
            *command("noise", "sd", "")[9:],
            "--noise",
            str(place / "noise.safetensors"),
        ],
    )
    assert ended == ["done"] * 8

    def sampler(model="sd", **settings):
        return adp.FlowSampler.from_pipeline(load_pretrained_pipeline(place / model), **settings, **STEPS)

    plain, changed = sampler(), sampler()
    changed.pipe.load_lora_weights(place / "lora")
    learned = sampler()
    learned.pipe.load_textual_inversion(place / "learned_embeds.safetensors")
    both = sampler("sdxl")
    assert load_textual_inversion(both.pipe, place / "pair.safetensors") == "<new>"
    saved, _ = adp.load_noise(place / "noise.safetensors")
    own = adp.PipelineSampler(plain.pipe, arguments={"height": 16}, **STEPS)
    expected = {
        "plain": bytes_of(plain, "a cat"),
        "lora": bytes_of(changed, "a cat"),
        "token": bytes_of(learned, "a <new>"),
        "negative": bytes_of(plain, "a cat", negative="a dog"),
        "size": bytes_of(sampler(height=16, width=24), "a cat"),
        "scheduler": bytes_of(own, "a cat"),
        "pair": bytes_of(both, "a <new>"),
        "noise": bytes_of(plain, "a cat", saved),
    }
    assert {name: files(tmp_path / name) for name in expected} == expected
    assert len({images[0] for images in expected.values()}) == len(expected)
    (first, second) = json.loads((tmp_path / "noise" / "result.json").read_text())
    assert (first["noise"], second["index"]) == (str(place / "noise.safetensors"), 1)


def test_a_lora_and_a_token_change_the_bundled_model(tmp_path):
    """The new word joins its closed vocabulary."""
    pipe = adp.load_bundled("emoji").pipe
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    adp.save_lora(tmp_path / "lora", pipe)
    width = pipe.text_encoder.config.hidden_size
    adp.save_textual_inversion(tmp_path / "token.safetensors", "<new>", torch.ones(1, width))
    given = [
        "sample",
        "--prompt",
        "a <new> cat",
        "--num_inference_steps",
        "2",
        "--batch",
        "1",
        "--output_dir",
    ]
    token, lora = (
        ["--learned_embeds", str(tmp_path / "token.safetensors")],
        ["--lora", str(tmp_path / "lora")],
    )
    ended = run(
        [*given, str(tmp_path / "one"), *token],
        [*given, str(tmp_path / "two"), *token, *lora],
        [*given, str(tmp_path / "none"), *lora],
    )
    assert ended[:2] == ["done", "done"]
    assert "not trained on the words <new>" in ended[2]
    assert files(tmp_path / "one") != files(tmp_path / "two")


def test_every_format_is_written(tmp_path):
    given = [*ONE_IMAGE, "--num_inference_steps", "1", "--overwrite", "--output_dir"]
    formats = ("png", "jpg", "webp")
    assert run(*([*given, str(tmp_path), "--output_format", each] for each in formats)) == ["done"] * 3
    opened = {each: Image.open(io.BytesIO((tmp_path / f"00-00.{each}").read_bytes())) for each in formats}
    assert [each.format for each in opened.values()] == ["PNG", "JPEG", "WEBP"]
    assert opened["webp"].convert("RGB").tobytes() == opened["png"].tobytes()
    assert encoded(torch.zeros(1, 4, 4, dtype=torch.uint8), "jpg")[:2] == b"\xff\xd8"


def test_earlier_images_are_kept(tmp_path):
    given = [*ONE_IMAGE, "--num_inference_steps", "1", "--output_dir", str(tmp_path)]
    first, second, third = run(given, [*given, "--seed", "1"], [*given, "--seed", "1", "--overwrite"])
    assert (first, third) == ("done", "done")
    assert second.startswith("InputError: the output folder")


def test_what_cannot_be_loaded_is_refused(place, tmp_path):
    cat, sd = ["sample", "--prompt", "a cat"], ["--pretrained_model_name_or_path", str(place / "sd")]
    embeds, noise = place / "learned_embeds.safetensors", place / "noise.safetensors"
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_lora_weights.bin").write_bytes(b"x")
    (tmp_path / "x.safetensors").write_bytes(b"x")
    with safe_open(place / "lora" / "pytorch_lora_weights.safetensors", "pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    tensors |= {f"unet.elsewhere.to_q.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    save_file(tensors, tmp_path / "more.safetensors", about)
    refused(
        tmp_path / "out",
        {
            "lora nowhere: there is no such file": [*cat, "--lora", "nowhere"],
            "pytorch_lora_weights.safetensors cannot be read": [
                *cat,
                *sd,
                "--lora",
                str(tmp_path / "pickled"),
            ],
            "x.safetensors cannot be read as a LoRA": [
                *cat,
                *sd,
                "--lora",
                str(tmp_path / "x.safetensors"),
            ],
            "does not fit": [*cat, "--lora", str(place / "lora")],
            "does not fit StableDiffusionPipeline": [*cat, *sd, "--lora", str(embeds)],
            "has 16 of its 17 layers": [*cat, *sd, "--lora", str(tmp_path / "more.safetensors")],
            "but no token": [
                *cat,
                *sd,
                "--learned_embeds",
                str(place / "lora" / "pytorch_lora_weights.safetensors"),
            ],
            "the token '<new>' of": [*cat, "--learned_embeds", str(embeds)],
            "but no noise": [*cat, *sd, "--noise", str(embeds)],
            "noise must be (batch, 8, 16, 16)": [*cat, "--noise", str(noise)],
            "--batch is not used with --noise": [*cat, "--noise", str(noise), "--batch", "2"],
            "images of 7 x 64 cannot be made": [*cat, "--height", "7"],
            "is that of a model on a hub": [*cat, *sd, "--revision", "main"],
            "no model of": [*cat, *sd, "--variant", "fp16"],
            "are not used with a bundled model": [*cat, "--variant", "fp16"],
        },
    )
