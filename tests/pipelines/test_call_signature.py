"""Arguments that do not fit a pipeline's call are named."""

import pytest
import torch

import adjointdpm as adp
from tests.tiny.calls import image, small
from tests.tiny.pipelines import draw


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "takes no colour; it takes prompt, height"),
        ({"latents": draw(2, 4, 8, 8)}, "prompt_embeds for 1, .*latents for 2"),
        ({"num_images_per_prompt": 2}, r"latents for 1 \(num_images_per_prompt=2\)"),
        ({"generator": [torch.Generator(), torch.Generator()]}, "generator for 2"),
        ({"prompt_embeds": draw(2, 5, 8)}, "prompt_embeds for 2, negative_prompt_embeds for 1"),
        ({"prompt": "a cat"}, r"refuses its arguments: Cannot forward both `prompt`"),
        (
            {"prompt_embeds": draw(1, 5, 9), "negative_prompt_embeds": draw(1, 5, 9)},
            r"shapes do not fit .*prompt_embeds \(1, 5, 9\)",
        ),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_arguments_that_do_not_fit(changes, message):
    with pytest.raises(adp.InputError, match=message):
        image(small(), **changes)
