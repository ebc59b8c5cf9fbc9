"""`adjointdpm sample` makes the images of the sampler."""

import torch

import adjointdpm as adp
from adjointdpm.files.images import as_8_bit, read_image
from tests.tiny.commands import adjointdpm, run


def test_sample_writes_the_images_of_the_sampler(tmp_path):
    done = adjointdpm(
        "sample", "a cat", "--output_dir", str(tmp_path), "--batch", "2", "--num_inference_steps", "3"
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00-00.png", "00-01.png"]
    sampler = adp.load_bundled("emoji", steps=3, guidance_scale=4.0)
    with torch.no_grad():
        expected = as_8_bit(sampler(sampler.noise(2, 0), sampler.encode("a cat")))
    saved = torch.stack([read_image((tmp_path / f"00-0{i}.png").read_bytes()) for i in range(2)])
    assert int((as_8_bit(saved).int() - expected.int()).abs().max()) <= 1


def test_earlier_images_are_kept(tmp_path):
    given = ["sample", "a cat", "--batch", "1", "--num_inference_steps", "1", "--output_dir", str(tmp_path)]
    first, second, third = run(given, [*given, "--seed", "1"], [*given, "--seed", "1", "--overwrite"])
    assert (first, third) == ("done", "done")
    assert second.startswith("InputError: the output folder")
