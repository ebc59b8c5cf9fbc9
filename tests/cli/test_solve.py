"""`adjointdpm solve` reads a photo of any kind, or a measurement, and refuses what does not fit."""

import torch
from PIL import Image

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
    assert set(found[0]) == {"metric", "squared error"}
    assert set(found[1]) == {"metric"}


def test_what_does_not_fit_is_refused(tmp_path):
    image = tmp_path / "wide.png"
    image.write_bytes(png(torch.zeros(3, 64, 96, dtype=torch.uint8)))
    solve = ["solve", "--image", str(image), *FEW]
    refused(
        tmp_path,
        {
            "no operator is called 'smear'": [*solve, "--operator", "smear"],
            "crop and resize it": [*solve, "--operator", "gray"],
            "but the measurement y is": [*solve, "--operator", "downsample", "--measured"],
            "cannot read the image": ["solve", "--image", str(tmp_path / "none.png"), "--operator", "gray"],
            "our own steps": [*solve, "--operator", "gray", "--solver", "pipeline"],
            "noise_level must be above 0": [*solve, "--operator", "gray", "--noise_level", "0"],
        },
    )
