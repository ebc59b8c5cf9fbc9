"""Models of folders: every weight comes from its file, and whatever does not fit is one line that names it."""

import json
import os
import shutil
import time

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    ResNetConfig,
    ResNetForImageClassification,
)

import adjointdpm as adp
from adjointdpm.cli.parse_sampler import sampler_of
from adjointdpm.files.pretrained import (
    first_of,
    load_pretrained,
    load_pretrained_pipeline,
    local_folder,
)
from adjointdpm.metrics import load_clip
from tests.tiny.families import FAMILIES, of

ENCODER, UNET = "text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    of("sd").make().save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def rewrite(file, change):
    tensors = {
        key: tensor.clone() for key, tensor in load_file(file).items()
    }  # the file is mapped, not read
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def key_of(file, ending):
    (key,) = [key for key in load_file(file) if key.endswith(ending)]
    return key


def refused(folder):
    """The one line with which a pipeline is refused."""
    with pytest.raises(adp.InputError) as error:
        load_pretrained_pipeline(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_every_weight_of_every_family_comes_back_bit_for_bit(family, tmp_path, capfd):
    """Tied weights (T5) and buffers included, and without a progress bar or a table."""
    pipe = family.make()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            with torch.no_grad():
                for n, weight in enumerate(part.parameters()):
                    weight.add_(0.01 * n)  # nothing that an initialisation would give
    pipe.save_pretrained(tmp_path)
    capfd.readouterr()
    loaded = load_pretrained_pipeline(tmp_path)
    assert type(loaded) is type(pipe)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            state, found = part.state_dict(), getattr(loaded, name).state_dict()
            assert state.keys() == found.keys()
            assert all(torch.equal(found[key], state[key]) for key in state)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("file", "ending"),
    [(ENCODER, "final_layer_norm.bias"), (UNET, "conv_in.weight"), (VAE, "decoder.conv_out.bias")],
    ids=["text encoder", "UNet", "VAE"],
)
@pytest.mark.parametrize("damage", ["renamed", "missing", "extra", "another size"])
def test_a_key_that_does_not_fit_is_named(copied, file, ending, damage):
    key = key_of(copied / file, ending)
    changes = {
        "renamed": lambda t: t.update({f"{key}_old": t.pop(key)}),
        "missing": lambda t: t.pop(key),
        "extra": lambda t: t.update({"another.weight": torch.zeros(2)}),
        "another size": lambda t: t.update({key: torch.zeros(7)}),
    }
    rewrite(copied / file, changes[damage])
    says = refused(copied)
    short = key.removeprefix("text_model.")  # as some releases of transformers call it
    expected = {
        "renamed": [f"{short}_old", "missing:", "not expected:"],
        "missing": [short, "missing:"],
        "extra": ["another.weight", "not expected:"],
        "another size": [short, "of another size:"],
    }
    assert all(each in says for each in [*expected[damage], str(copied / file.partition("/")[0])]), says


def test_many_missing_keys_are_counted(copied):
    rewrite(copied / ENCODER, lambda t: [t.pop(key) for key in list(t)[5:]])
    assert f"and {len(load_file(copied.parent / 'copy' / ENCODER))}" not in refused(copied)
    missing = len(CLIPTextModel.from_pretrained(copied / "text_encoder").state_dict()) - 5
    assert f"and {missing - 5} more" in refused(copied)


def test_a_buffer_that_older_releases_saved_is_no_weight(copied):
    """`position_ids` is in the published file of Stable Diffusion 1.5."""
    before = {key: tensor.clone() for key, tensor in load_file(copied / ENCODER).items()}
    prefix = "text_model." if any(key.startswith("text_model.") for key in before) else ""
    ids = {f"{prefix}embeddings.position_ids": torch.arange(6)[None]}
    rewrite(copied / ENCODER, lambda t: t.update(ids))
    loaded = load_pretrained(CLIPTextModel, copied / "text_encoder").state_dict()
    for key, tensor in before.items():
        found = loaded.get(
            key, loaded.get(key.removeprefix("text_model."), loaded.get(f"text_model.{key}"))
        )
        assert torch.equal(found, tensor)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def as_pickle(path):
    torch.save({}, path.with_name("pytorch_model.bin"))
    path.unlink()


def without_unet(path):
    index = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in index.items() if key != "unet"}))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (UNET, cut, f"{UNET} is cut or damaged"),
        (UNET, lambda path: path.write_bytes(b""), f"{UNET} is cut or damaged"),
        (UNET, lambda path: path.write_bytes(b"\xff" * 64), f"{UNET} is cut or damaged"),
        (UNET, as_pickle, "in pickled files only"),
        (UNET, lambda path: path.unlink(), "unet"),
        (UNET, lambda path: shutil.rmtree(path.parent), "unet"),
        ("unet/config.json", lambda path: path.write_text("{"), "unet/config.json cannot be read as JSON"),
        ("unet/config.json", lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read as JSON"),
        ("unet/config.json", lambda path: path.write_text("[" * 100_000), "cannot be read as JSON"),
        ("unet/config.json", lambda path: path.write_text("[]"), "UNet2DConditionModel"),
        ("unet/config.json", lambda path: path.unlink(), "unet"),
        ("text_encoder/config.json", lambda path: path.write_text("{}"), "text_encoder"),
        ("scheduler/scheduler_config.json", lambda path: path.write_text("{,}"), "scheduler"),
        ("tokenizer/tokenizer.json", lambda path: path.write_text('{"version": 1}'), "no pipeline could be loaded"),
        ("model_index.json", lambda path: path.unlink(), "model_index.json is missing"),
        ("model_index.json", lambda path: path.write_text("[]"), "no pipeline could be loaded"),
        ("model_index.json", lambda path: path.write_text("{}"), "no pipeline could be loaded"),
        ("model_index.json", without_unet, "no pipeline could be loaded"),
    ],
)  # fmt: skip
def test_a_broken_folder_is_one_line(copied, file, damage, message):
    damage(copied / file)
    assert message in refused(copied)


def test_what_is_no_folder_is_said_at_once(saved, tmp_path):
    began = time.monotonic()
    assert "which is a file" in refused(saved / UNET)
    assert "no such folder" in refused(tmp_path / "nowhere")
    assert "no such folder" in refused("../nowhere")
    assert "no such folder" in refused("some/folder/nowhere")
    assert time.monotonic() - began < 5


def test_without_a_network_a_name_that_is_no_folder_is_one_line_soon(tmp_path, monkeypatch, capfd):
    """The hub's client alone tries for a minute and writes a line each time."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in [each for each in os.environ if each.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    began = time.monotonic()
    assert "no pipeline could be loaded from 'nobody/nothing'" in refused("nobody/nothing")
    with pytest.raises(adp.InputError, match="nobody/nothing"):
        adp.load_classifier("nobody/nothing")
    assert time.monotonic() - began < 10
    assert capfd.readouterr() == ("", "")


def test_a_folder_stays_and_a_name_is_its_copy_on_this_machine(tmp_path, monkeypatch):
    """Whatever is in it: the caller says which files it reads."""
    for name in [each for each in os.environ if each.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    copy = tmp_path / "models--someone--words" / "snapshots" / ("0" * 40)
    copy.mkdir(parents=True)
    (copy / "weights.bin").write_bytes(b"a pickle")
    (copy.parents[1] / "refs").mkdir()
    (copy.parents[1] / "refs" / "main").write_text("0" * 40)
    for given in (copy, str(copy), "someone/words"):
        assert local_folder("tokenizer", given, ("vocab.txt",)) == copy
    with pytest.raises(adp.InputError, match="no tokenizer could be loaded from 'someone/other'"):
        local_folder("tokenizer", "someone/other", ("vocab.txt",))


def test_only_the_first_names_are_written_out():
    assert first_of(["b", "a"]) == "a, b"
    assert first_of([str(n) for n in range(8)]) == "0, 1, 2, 3, 4 and 3 more"


def test_the_command_lines_models_are_checked(copied):
    rewrite(copied / UNET, lambda t: t.pop("conv_in.bias"))
    for solver in ("dpm++", "pipeline"):
        with pytest.raises(adp.InputError, match=r"conv_in\.bias"):
            sampler_of(str(copied), steps=1, guidance_scale=1.0, solver=solver)


def test_classifiers_are_checked(tmp_path):
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=3)
    model = ResNetForImageClassification(config)
    model.save_pretrained(tmp_path)
    found = load_pretrained(AutoModelForImageClassification, tmp_path).state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in model.state_dict().items())
    file = tmp_path / "model.safetensors"
    rewrite(file, lambda t: t.update({"classifier.1.weight": torch.zeros(5, 4)}))
    with pytest.raises(adp.InputError, match=r"of another size: classifier\.1\.weight"):
        adp.load_classifier(str(tmp_path))
    rewrite(file, lambda t: t.pop("classifier.1.weight"))
    with pytest.raises(adp.InputError, match=r"missing: classifier\.1\.weight"):
        adp.load_classifier(str(tmp_path))
    cut(file)
    with pytest.raises(adp.InputError, match=r"model\.safetensors is cut or damaged"):
        adp.load_classifier(str(tmp_path))


def test_clip_models_are_checked(tmp_path):
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text, vision = {"vocab_size": 20}, {"image_size": 8, "patch_size": 4}
    CLIPModel(
        CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=8)
    ).save_pretrained(tmp_path)
    rewrite(tmp_path / "model.safetensors", lambda t: t.pop("visual_projection.weight"))
    with pytest.raises(adp.InputError, match=r"missing: visual_projection\.weight"):
        load_clip(str(tmp_path))


def test_a_variant_is_loaded_where_a_model_has_files_of_it(tmp_path):
    """The other models come from their usual files, and what cannot be meant is refused."""
    pipe = of("sd").make()
    pipe.save_pretrained(tmp_path)
    with torch.no_grad():
        next(pipe.unet.parameters()).add_(1)
    pipe.unet.save_pretrained(tmp_path / "unet", variant="fp16")
    usual, found = load_pretrained_pipeline(tmp_path), load_pretrained_pipeline(tmp_path, variant="fp16")
    first, second = (next(each.unet.parameters()) for each in (usual, found))
    assert torch.equal(first + 1, second)
    assert torch.equal(next(usual.vae.parameters()), next(found.vae.parameters()))
    for more, message in ({"variant": "bf16"}, "no model of"), ({"revision": "main"}, "a model on a hub"):
        with pytest.raises(adp.InputError, match=message):
            load_pretrained_pipeline(tmp_path, **more)
