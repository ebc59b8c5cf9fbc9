"""Sampling in parts gives the images of the whole, and saved images are those of their files."""

import torch

from adjointdpm.files.images import as_8_bit, png, read_image
from adjointdpm.tasks.sampling import each_of, noise_of, parts, sampled, saved
from tests.tiny.tasks import mixture_sampler


def test_parts_of_a_batch_are_the_whole():
    sampler = mixture_sampler()
    noise, cond = noise_of(sampler, [4, 5, 6]), sampler.encode(["x"] * 3)
    with torch.no_grad():
        torch.testing.assert_close(sampled(sampler, noise, cond, 2), sampler(noise, cond))
    assert torch.equal(noise_of(sampler, [5])[0], noise[1])


def test_saved_images_are_those_of_their_files():
    images = 1.4 * torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) - 0.2
    files = torch.stack([read_image(png(each)) for each in as_8_bit(images)])
    assert torch.equal(saved(images), files)
    assert float((saved(images) - images.clamp(0, 1)).abs().max()) <= 0.5 / 255 + 1e-6


def test_parts_hold_every_number_once_and_in_order():
    assert parts(5, 2) == [[0, 1], [2, 3], [4]]
    assert parts(3, None) == [[0, 1, 2]]
    assert parts(0, 4) == [] or parts(0, 4) == [[]]
    assert each_of(["a", "b"], 2) == ["a", "a", "b", "b"]
