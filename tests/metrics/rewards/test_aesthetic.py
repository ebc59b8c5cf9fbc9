"""The aesthetic head is the linear layers of its file."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional

import adjointdpm as adp
from adjointdpm.metrics import Preprocess
from adjointdpm.metrics.rewards import Aesthetic, load_aesthetic
from tests.tiny.metrics import random_images, tiny_clip


def test_a_file_of_layers_is_their_composition_whatever_the_order_of_its_keys(tmp_path):
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Linear(5, 4), nn.Dropout(), nn.Linear(4, 3), *[nn.Dropout()] * 8, nn.Linear(3, 1)
    )
    tensors = {f"layers.{name}": each for name, each in reversed(layers.state_dict().items())}
    assert list(tensors)[-1].startswith("layers.0")
    assert any(name.startswith("layers.11.") for name in tensors)
    save_file(tensors, tmp_path / "head.safetensors")
    head = load_aesthetic(tmp_path / "head.safetensors")
    x = torch.randn(3, 5)
    assert torch.equal(head(x), layers.eval()(x))
    model, images = tiny_clip(), random_images(side=16)
    metric = Aesthetic(model, head.double(), Preprocess(16))
    embedded = model.get_image_features(pixel_values=images, return_dict=True).pooler_output
    own = head(functional.normalize(embedded, dim=1))[:, 0]
    assert torch.allclose(metric(images), -own, rtol=1e-10)
    assert torch.equal(metric.for_prompts(["a", "b"])(images), metric(images))
    assert gradcheck(metric, images.requires_grad_(), fast_mode=True)


def test_what_is_no_head_is_refused(tmp_path):
    with pytest.raises(adp.InputError, match="of a format that can run code"):
        load_aesthetic(tmp_path / "head.pth")
    with pytest.raises(adp.InputError, match="cannot be read"):
        load_aesthetic(tmp_path / "none.safetensors")
    for tensors, message in (
        (
            {"0.weight": torch.zeros(4, 5), "1.weight": torch.zeros(1, 3)},
            "no row of linear layers: 1.weight",
        ),
        ({"weight": torch.zeros(2, 5)}, "must end in one number"),
        ({"other": torch.zeros(2)}, "must end in one number; it holds other"),
    ):
        save_file(tensors, tmp_path / "wrong.safetensors")
        with pytest.raises(adp.InputError, match=message):
            load_aesthetic(tmp_path / "wrong.safetensors")
