"""The image-to-image pipeline of a family shares the parts; where there is none, a line says so."""

import pytest

import adjointdpm as adp
from adjointdpm.pipelines.image_to_image import image_to_image
from tests.tiny.families import of


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "qwen", "z-image"])
def test_it_shares_every_part_and_takes_a_strength(name):
    pipe = of(name).make()
    before = dict(vars(pipe))
    made = image_to_image(pipe)
    assert made.components.keys() <= pipe.components.keys()
    assert all(part is pipe.components[each] for each, part in made.components.items())
    assert "Img2Img" in type(made).__name__
    assert vars(pipe) == before


@pytest.mark.parametrize("name", ["ddpm", "ddim", "pixart", "sana"])
def test_a_family_without_one_is_refused_in_a_line(name):
    pipe = of(name).make()
    with pytest.raises(
        adp.InputError, match=rf"for a {type(pipe).__name__}, so .*FlowSampler.from_pipeline"
    ):
        image_to_image(pipe)
