"""Files written here are read by diffusers, and give the same images."""

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import adjointdpm as adp
from tests.tiny.families import WORDS, of


def image(pipe, noise, **given):
    return pipe(latents=noise, num_inference_steps=2, output_type="latent", **given).images


def test_textual_inversion_loads_in_stable_diffusion(tmp_path):
    family, file = of("sd"), tmp_path / "learned_embeds.safetensors"
    vectors = torch.randn(1, 8)
    adp.save_textual_inversion(file, "<new>", vectors.clone().requires_grad_())
    pipe = family.make()
    pipe.load_textual_inversion(str(file))
    index = pipe.tokenizer.convert_tokens_to_ids("<new>")
    assert index >= len(WORDS)
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[index], vectors[0])
    # In a prompt it is the same as writing the vector over the row of a word.
    other = family.make()
    with torch.no_grad():
        other.text_encoder.get_input_embeddings().weight[WORDS.index("pear")] = vectors[0]
    assert torch.equal(
        image(pipe, family.noise(), prompt="a <new> on"),
        image(other, family.noise(), prompt="a pear on"),
    )


def test_textual_inversion_of_both_encoders_loads_in_sdxl(tmp_path):
    family, file = of("sdxl"), tmp_path / "learned_embeds.safetensors"
    first, second = torch.randn(2, 8), torch.randn(2, 8)
    adp.save_textual_inversion(file, "<new>", first, second)
    state, pipe = load_file(file), family.make()
    assert set(state) == {"clip_l", "clip_g"}
    for key, suffix, vectors in (("clip_l", "", first), ("clip_g", "_2", second)):
        encoder, tokenizer = getattr(pipe, f"text_encoder{suffix}"), getattr(pipe, f"tokenizer{suffix}")
        pipe.load_textual_inversion(state[key], token="<new>", text_encoder=encoder, tokenizer=tokenizer)
        rows = tokenizer.convert_tokens_to_ids(["<new>", "<new>_1"])
        assert torch.equal(encoder.get_input_embeddings().weight[rows], vectors)


@pytest.mark.parametrize("vectors", [(), (torch.zeros(1, 2, 3),), (torch.zeros(1, 3), torch.zeros(2, 3))])
def test_textual_inversion_of_the_wrong_shape(tmp_path, vectors):
    with pytest.raises(adp.InputError, match="as many"):
        adp.save_textual_inversion(tmp_path / "x", "<new>", *vectors)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_lora_loads_and_reproduces_the_image(tmp_path, name):
    """With an alpha that is not the rank, which a loader takes for the rank if it is not told."""
    family = of(name)
    pipe, noise, cond = family.make(), family.noise(), family.cond()
    given = family.arguments(cond)
    part = "transformer" if hasattr(pipe, "transformer") else "unet"
    without = image(pipe, noise, **given)
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, lora_alpha=7, target_modules=["to_q", "to_v"], init_lora_weights=False)
    getattr(pipe, part).add_adapter(config)
    expected = image(pipe, noise, **given)
    assert not torch.equal(expected, without)
    adp.save_lora(tmp_path, pipe)
    fresh = family.make()
    fresh.load_lora_weights(tmp_path)
    (adapter,) = getattr(fresh, part).peft_config.values()
    assert (adapter.r, adapter.lora_alpha) == (2, 7)
    assert torch.equal(image(fresh, noise, **given), expected)


def test_lora_of_a_network_that_has_none(tmp_path):
    with pytest.raises(adp.InputError, match="add_adapter"):
        adp.save_lora(tmp_path, of("sd").make())


def test_noise_with_what_it_takes_to_use_it(tmp_path):
    file, noise = tmp_path / "noise.safetensors", of("sd").noise(2)
    adp.save_noise(
        file, noise.transpose(0, 1).requires_grad_(), scheduler="DDIMScheduler", steps=25, seed=9
    )
    read, about = adp.load_noise(file)
    assert torch.equal(read, noise.transpose(0, 1))
    assert (about["scheduler"], about["steps"], about["seed"]) == ("DDIMScheduler", "25", "9")
    with safe_open(str(file), "pt") as raw:
        assert raw.keys() == ["noise"]
    adp.save_textual_inversion(file, "<new>", torch.zeros(3))
    with pytest.raises(adp.InputError, match="no noise"):
        adp.load_noise(file)
    file.write_bytes(b"no safetensors")
    with pytest.raises(adp.InputError, match="cannot be read as noise"):
        adp.load_noise(file)
    with pytest.raises(adp.InputError, match="cannot be read as noise"):
        adp.load_noise(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux"])
def test_rows_of_the_embedding_table_through_a_string_prompt(name):
    """Against autograd on the whole table: the chosen rows get its gradient there, and nothing else."""
    family = of(name)
    pipe = family.make()
    sampler, noise = family.sampler(pipe, steps=2, guidance_scale=3.0), family.noise()
    rows = adp.TokenRows(pipe, ["cat", "dog"])
    with rows:
        cond = sampler.encode("a cat on cat", negative="dog")
    found = torch.autograd.grad(sampler(noise, cond).square().sum(), rows.values)
    plain = sampler.encode("a cat on cat", negative="dog", graph=True)
    for name_, tensor in plain.items():
        assert torch.equal(tensor, cond[name_])
    encoders = [getattr(pipe, n) for n in ("text_encoder", "text_encoder_2") if getattr(pipe, n, None)]
    tables = [encoder.get_input_embeddings().weight for encoder in encoders]
    whole = torch.autograd.grad(sampler(noise, plain).square().sum(), tables)
    ids = [WORDS.index("cat"), WORDS.index("dog")]
    for g, table in zip(found, whole, strict=True):
        assert float(g.norm(dim=1).min()) > 0
        assert float((g - table[ids]).norm()) < 1e-5 * float(table[ids].norm())


def test_words_that_are_no_token():
    with pytest.raises(adp.InputError, match="aardvark is no token"):
        adp.TokenRows(of("sd").make(), ["cat", "aardvark"])


ADAPTERS = {
    "ranks": {"r": 2, "lora_alpha": 7, "rank_pattern": {"to_v": 3}, "alpha_pattern": {"to_q": 5}},
    "dora": {"r": 2, "use_dora": True},
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True},
    "convolutions": {"r": 2, "lora_alpha": 1, "target_modules": ["conv1", "conv_in", "to_q"]},
}


@pytest.mark.parametrize("kind", list(ADAPTERS))
@pytest.mark.parametrize("compiled", ["", "network", "blocks"])
def test_every_kind_of_lora_of_compiled_networks_gives_the_same_image_in_a_stock_pipeline(
    tmp_path, kind, compiled
):
    family = of("sd")
    pipe, noise, given = family.make(), family.noise(), family.arguments(family.cond())
    torch.manual_seed(3)
    config = {"target_modules": ["to_q", "to_v"], "init_lora_weights": False} | ADAPTERS[kind]
    pipe.unet.add_adapter(peft.LoraConfig(**config))
    expected = image(pipe, noise, **given)
    if compiled == "network":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    if compiled == "blocks":
        pipe.unet.mid_block = torch.compile(pipe.unet.mid_block, backend="eager")
        for i, block in enumerate(pipe.unet.down_blocks):
            pipe.unet.down_blocks[i] = torch.compile(block, backend="eager")
    adp.save_lora(tmp_path, pipe)
    assert not any("_orig_mod" in name for name in load_file(tmp_path / "pytorch_lora_weights.safetensors"))
    fresh = family.make()
    fresh.load_lora_weights(tmp_path)
    assert torch.equal(image(fresh, noise, **given), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": "lora_only"}, "biases"),
        ({"lora_bias": True, "target_modules": ["to_out.0"]}, "biases of its own"),
        ({"init_lora_weights": "pissa"}, "network's own weights"),
        ({"modules_to_save": ["conv_out"]}, "modules_to_save"),
    ],
)
def test_a_lora_that_would_load_as_something_else_is_refused(tmp_path, change, message):
    pipe = of("sd").make()
    pipe.unet.add_adapter(peft.LoraConfig(**({"r": 2, "target_modules": ["to_q"]} | change)))
    with pytest.raises(adp.InputError, match=message):
        adp.save_lora(tmp_path, pipe)
    assert not list(tmp_path.iterdir())


def test_values_and_scales_that_a_file_cannot_hold(tmp_path):
    pipe = of("sd").make()
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    pipe.unet.set_adapters("default", 0.5)
    with pytest.raises(adp.InputError, match=r"0\.5 times its scale"):
        adp.save_lora(tmp_path, pipe)
    pipe.unet.set_adapters("default", 1.0)
    adp.save_lora(tmp_path, pipe)
    before = (tmp_path / "pytorch_lora_weights.safetensors").read_bytes()
    weight = next(p for n, p in pipe.unet.named_parameters() if "lora_B" in n)
    weight.data[0, 0] = float("nan")
    with pytest.raises(adp.InputError, match="NaN or infinity"):
        adp.save_lora(tmp_path, pipe)
    assert (tmp_path / "pytorch_lora_weights.safetensors").read_bytes() == before
    with pytest.raises(adp.InputError, match="NaN or infinity"):
        adp.save_textual_inversion(tmp_path / "x", "<a>", torch.full((2, 3), float("inf")))
    with pytest.raises(adp.InputError, match="emb_params"):
        adp.save_textual_inversion(tmp_path / "x", "emb_params", torch.zeros(2, 3))
    for noise in (torch.zeros(3), torch.zeros(1, 2, dtype=torch.long), torch.zeros(0, 2)):
        with pytest.raises(adp.InputError, match="floating point"):
            adp.save_noise(tmp_path / "x", noise, scheduler="DDIM", steps=2)
