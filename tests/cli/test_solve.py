"""`adjointdpm solve` reads a photo of any kind, or a measurement, and refuses what does not fit."""

import torch
from PIL import Image

from adjointdpm.files.checkpoint import load_checkpoint
from adjointdpm.files.images import png
from adjointdpm.tasks import load_result
from tests.tiny.commands import refused, run

FEW = [
    "--num_inference_steps",
    "2",
    "--calls",
    "20",
    "--num_validation_images",
    "1",
    "--method",
    "flowchef",
]


def test_a_photo_and_a_measurement_are_reconstructed(tmp_path):
    photo, small = tmp_path / "photo.png", tmp_path / "small.png"
    Image.new("RGBA", (64, 64), (200, 40, 40, 128)).save(photo)  # on white where it is transparent
    small.write_bytes(png(torch.full((1, 16, 16), 128, dtype=torch.uint8)))
    outs = [str(tmp_path / name) for name in ("a", "b")]
    done = run(
        ["solve", "--image", str(photo), "--operator", "blur:sigma=1", *FEW, "--output_dir", outs[0]],
        [
            "solve",
            "--image",
            str(small),
            "--operator",
            "downsample",
            "--measured",
            *FEW,
            "--output_dir",
            outs[1],
        ],
    )
    assert done == ["done", "done"]
    found = [load_result(out)["result"]["methods"]["flowchef"]["means"] for out in outs]
    assert set(found[0]) == {"metric", "squared error", "PSNR", "SSIM"}
    assert set(found[1]) == {"metric"}


def test_a_folder_is_solved_as_its_files_and_resumed(tmp_path):
    photos, prompts, outs = tmp_path / "photos", tmp_path / "prompts.txt", [str(tmp_path / n) for n in "ab"]
    photos.mkdir()
    for name, colour in {"b.png": (200, 40, 40), "a.jpg": (10, 90, 200)}.items():
        Image.new("RGB", (64, 64), colour).save(photos / name)
    prompts.write_text("a blue cat\na red car\n")
    solve = ["solve", "--operator", "downsample", *FEW]
    whole = [*solve, "--image", str(photos), "--prompt", str(prompts), "--output_dir", outs[0]]
    done = run(
        whole,
        [*whole, "--resume", "--method", "dps"],
        [*whole, "--resume", "--calls", "30"],
        [*solve, "--image", str(photos / "b.png"), "--prompt", "a red car", "--output_dir", outs[1]],
    )
    assert done[:2] == ["done", "done"]
    assert "config.yaml was made with calls = 20, but this run has 30; resume with the same" in done[2]
    assert done[3] == "done"
    both, alone = (load_result(out)["result"]["images"] for out in outs)
    assert [(each["file"], each["prompt"]) for each in both] == [
        ("a.jpg", "a blue cat"),
        ("b.png", "a red car"),
    ]
    assert list(both[1]["methods"]) == ["no measurement", "dps"]  # those of the newest run
    assert both[1]["methods"]["no measurement"] == alone[0]["methods"]["no measurement"]
    state = [tmp_path / out / "state" for out in outs]
    kept = [
        load_checkpoint(folder / f"000{i}-flowchef.safetensors")[0]
        for folder, i in zip(state, (1, 0), strict=True)
    ]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_what_does_not_fit_is_refused(tmp_path):
    image, many, empty = tmp_path / "wide.png", tmp_path / "many", tmp_path / "empty"
    image.write_bytes(png(torch.zeros(3, 64, 96, dtype=torch.uint8)))
    many.mkdir(), empty.mkdir()
    for name in ("a.png", "c.png"):
        (many / name).write_bytes(png(torch.zeros(3, 64, 64, dtype=torch.uint8)))
    (many / "b.png").write_bytes(b"no image")
    solve = ["solve", "--image", str(image), *FEW]
    several = ["solve", "--operator", "gray", *FEW, "--image", str(many / "a.png"), "--image"]
    refused(
        tmp_path,
        {
            "no operator is called 'smear'": [*solve, "--operator", "smear"],
            "crop and resize it": [*solve, "--operator", "gray"],
            "but the measurement y is": [*solve, "--operator", "downsample", "--measured"],
            "cannot read the image": ["solve", "--image", str(tmp_path / "none.png"), "--operator", "gray"],
            f"cannot read the image {many}/b.png": [*several, str(many)],
            f"{image} is 96 x 64 pixels, but the model": [*several, str(image)],
            f"{image}: the operator gives (1, 64, 64)": [*several, str(image), "--measured"],
            "the folder holds no image": [*several, str(empty)],
            "there are 3 prompts, but 2 images": [
                *(*several, str(many / "c.png"), "--prompt", "a", "--prompt", "b", "--prompt", "c"),
            ],
            "our own steps": [*solve, "--operator", "gray", "--solver", "pipeline"],
            "noise_level must be above 0": [*solve, "--operator", "gray", "--noise_level", "0"],
        },
    )
