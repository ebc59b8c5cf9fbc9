"""The bundled text encoder and tokenizer: the same bits and tokens with every release of transformers."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import models
from transformers import CLIPTextModel

import adjointdpm as adp
from adjointdpm import zoo
from adjointdpm.files.pretrained import load_pretrained

PROMPT = "a red apple on a blue background"


def weights():
    return load_file(zoo.folder("emoji") / "text_encoder" / "model.safetensors")


def plain(state):
    return {key.removeprefix("text_model."): tensor for key, tensor in state.items()}


def test_the_text_encoders_file_has_exactly_the_keys_of_the_class():
    """With the prefix, which every release reads; some have it in the module, too."""
    module = CLIPTextModel.from_pretrained(zoo.folder("emoji") / "text_encoder").state_dict()
    assert all(key.startswith("text_model.") for key in weights())
    assert plain(weights()).keys() == plain(module).keys()


def test_the_sampler_has_the_files_weights_to_the_bit(emoji):
    loaded = plain(emoji.model.pipe.text_encoder.state_dict())
    for key, tensor in plain(weights()).items():
        assert torch.equal(loaded[key], tensor.float()), key


def test_weights_of_another_layout_are_read_or_refused_never_drawn_at_random(tmp_path):
    """Without the prefix some releases would start from fresh weights and only log it."""
    folder = shutil.copytree(zoo.folder("emoji") / "text_encoder", tmp_path / "text_encoder")
    save_file(plain(weights()), folder / "model.safetensors", {"format": "pt"})
    try:
        found = plain(load_pretrained(CLIPTextModel, folder).state_dict())
    except adp.InputError as error:
        assert "final_layer_norm.bias" in str(error) or " more" in str(error)  # noqa: PT017
    else:
        assert all(
            torch.equal(found[key], tensor.to(found[key])) for key, tensor in plain(weights()).items()
        )


def test_vocabulary_and_merges_are_those_of_the_tokenizers_one_file():
    folder = zoo.folder("emoji") / "tokenizer"
    one = json.loads((folder / "tokenizer.json").read_text())["model"]
    vocabulary, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    assert vocabulary == one["vocab"]
    assert [list(pair) for pair in merges] == one["merges"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (PROMPT, [1280, 320, 673, 702, 550, 320, 791, 758, 1281]),
        ("A Zyzzyva, 3 µm", [1280, 320, 89, 88, 89, 89, 88, 85, 320, 267, 274, 126, 113, 332, 1281]),
        ("a  Pixel Art CAT's tree!", [1280, 320, 1183, 740, 841, 6, 338, 1251, 256, 1281]),
        ("café", [1280, 522, 69, 127, 358, 1281]),
        ("", [1280, 1281]),
    ],
)
def test_prompts_have_the_same_tokens(emoji, text, ids):
    assert emoji.model.pipe.tokenizer(text).input_ids == ids


def test_the_gradient_is_the_recorded_one(emoji):
    """To the rounding of another processor: fresh weights anywhere change its first digit."""
    sampler, noise = emoji.replace(steps=4), emoji.noise(1, seed=1).requires_grad_()
    cond = sampler.with_guidance(sampler.encode(PROMPT, negative="a pixel art cat")).requires_grad_()
    found = torch.autograd.grad(sampler(noise, cond).square().sum(), [noise, *cond.values()])
    recorded = [7489.885, 1027.814, 429.008, 1273.664]
    assert [float(each.norm()) for each in found] == pytest.approx(recorded, rel=1e-3)


def test_a_file_with_one_other_byte_or_none_is_refused(tmp_path):
    folder = shutil.copytree(zoo.folder("emoji/bit"), tmp_path / "bit")
    assert zoo.verified(folder) == folder
    path = folder / "config.json"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(adp.InputError, match=r"config.json is damaged \(its hash is wrong\)"):
        zoo.verified(folder)
    path.unlink()
    with pytest.raises(adp.InputError, match=r"config\.json is missing"):
        zoo.verified(folder)
