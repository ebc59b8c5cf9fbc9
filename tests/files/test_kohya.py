"""A LoRA in kohya's layout is the same LoRA: stock diffusers makes the same image of it."""

import pytest
import torch
from safetensors import safe_open

import adjointdpm as adp
from adjointdpm.files import kohya
from adjointdpm.files.diffusers_files import save_lora
from adjointdpm.tasks.tune.trainable_weights import Lora
from tests.tiny.families import of
from tests.tiny.tunes import sampler


def trained(pipe, tmp_path, **settings):
    """The folder of a LoRA that changes the model."""
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    weights = Lora(rank=2, **settings)
    leaves = weights.attach(getattr(pipe, name), 0)
    with torch.no_grad():
        for i, leaf in enumerate(leaves.values()):
            leaf.add_(0.3 * torch.randn(leaf.shape, generator=torch.Generator().manual_seed(i)))
    return weights.save(tmp_path, pipe, leaves).parent


@pytest.mark.parametrize(
    ("family", "layers"), [("sd", ("to_q", "to_out.0", "conv1", "conv_in")), ("sdxl", ("to_k", "to_out.0"))]
)
def test_stock_diffusers_makes_the_same_image_of_it(tmp_path, family, layers):
    """An alpha other than the rank is in the file, which diffusers' converter would replace by the rank."""
    pipe = of(family).make()
    folder = trained(pipe, tmp_path, lora_alpha=3.0, lora_layers=layers)
    images = []
    for name in ("pytorch_lora_weights.safetensors", "kohya_lora.safetensors"):
        fresh = of(family).make()
        fresh.load_lora_weights(folder, weight_name=name)
        ours = of(family).sampler(fresh, steps=2, guidance_scale=3.0)
        with torch.no_grad():
            images.append(ours(ours.noise(1, 3), ours.encode("a pear")))
    assert torch.equal(*images)
    plain = of(family).sampler(of(family).make(), steps=2, guidance_scale=3.0)
    with torch.no_grad():
        assert not torch.equal(images[0], plain(plain.noise(1, 3), plain.encode("a pear")))
    with safe_open(str(folder / "kohya_lora.safetensors"), "pt") as read:
        names = set(read.keys())
        assert {name.rpartition(".")[0] for name in names if name.endswith(".alpha")} == {
            name.split(".")[0] for name in names
        }
        assert all(name.startswith("lora_unet_") for name in names)
        assert read.metadata()["ss_network_dim"] == "2"


def test_the_folder_still_loads_as_diffusers_lora(tmp_path):
    folder = trained(of("sd").make(), tmp_path)
    fresh = of("sd").make()
    fresh.load_lora_weights(folder)
    assert len(fresh.unet.peft_config) == 1


def test_a_transformer_has_no_such_file(tmp_path):
    folder = trained(of("sd3").make(), tmp_path)
    assert [each.name for each in folder.iterdir()] == ["pytorch_lora_weights.safetensors"]


def test_a_converter_that_loses_something_is_an_error(tmp_path, monkeypatch):
    pipe = sampler().pipe
    leaves = Lora(2).attach(pipe.unet, 0)
    save_lora(tmp_path, pipe, "adjointdpm")
    assert leaves

    def lossy(tensors):
        return {"lora_unet_conv_in.lora_down.weight": next(iter(tensors.values()))}

    monkeypatch.setattr("diffusers.utils.state_dict_utils.convert_state_dict_to_kohya", lossy)
    with pytest.raises((adp.InputError, ValueError, KeyError)):
        kohya.save_kohya(tmp_path / "k.safetensors", tmp_path / "pytorch_lora_weights.safetensors", pipe)
    assert not (tmp_path / "k.safetensors").exists()
