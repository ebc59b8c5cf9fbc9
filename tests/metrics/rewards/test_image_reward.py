"""ImageReward is the published calculation on tensors of the published names, and no tensor is left over or missing."""

import math
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.autograd import gradcheck
from torch.nn import functional
from transformers import CLIPImageProcessor

import adjointdpm as adp
from adjointdpm.metrics import CLIP, for_prompts
from adjointdpm.metrics.image_processor import probe_image
from adjointdpm.metrics.rewards import ImageReward, check_prompts_matter, load_image_reward
from adjointdpm.metrics.rewards.image_reward import (
    middle_square,
    networks,
    published_config,
    published_names,
)
from tests import ROOT
from tests.tiny.image_reward import (
    WORDS,
    few_words,
    layout,
    random_tensors,
    save_folder,
    tiny_config,
    unused,
)
from tests.tiny.metrics import random_images

PROMPTS = ["a red apple", "Blue cats, [ENC] unheard of"]
IDS = [[2, 5, 6, 8, 3], [2, 7, 9, 11, 10, 13, 1, 1, 3]]


@pytest.fixture
def folder(tmp_path):
    save_folder(tmp_path)
    return tmp_path


def linear(x, tensors, name):
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def norm(x, tensors, name, epsilon):
    centered = x - x.mean(-1, keepdim=True)
    scaled = centered / (centered.square().mean(-1, keepdim=True) + epsilon).sqrt()
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def attention(query, key, value, heads):
    """Rows of queries, keys and values, (length, width), to as many rows as there are queries."""
    size, rows = query.shape[1] // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        weights = (query[:, part] @ key[:, part].T / math.sqrt(size)).softmax(1)
        rows.append(weights @ value[:, part])
    return torch.cat(rows, 1)


def published_states(tensors, pixels, depth=2, heads=4, side=16):
    """BLIP's image tower on one preprocessed image, (3, height, width): patches row by row behind the class token."""
    t = {k.removeprefix("blip.visual_encoder."): v for k, v in tensors.items()}
    rows = []
    for top in range(0, pixels.shape[1], side):
        for left in range(0, pixels.shape[2], side):
            patch = pixels[:, top : top + side, left : left + side].flatten()
            rows.append(t["patch_embed.proj.weight"].flatten(1) @ patch + t["patch_embed.proj.bias"])
    x = torch.cat([t["cls_token"][0], torch.stack(rows)]) + t["pos_embed"][0]
    for n in range(depth):
        qkv = linear(norm(x, t, f"blocks.{n}.norm1", 1e-6), t, f"blocks.{n}.attn.qkv")
        x = x + linear(attention(*qkv.chunk(3, 1), heads), t, f"blocks.{n}.attn.proj")
        wide = gelu(linear(norm(x, t, f"blocks.{n}.norm2", 1e-6), t, f"blocks.{n}.mlp.fc1"))
        x = x + linear(wide, t, f"blocks.{n}.mlp.fc2")
    return norm(x, t, "norm", 1e-6)


def published_score(tensors, pixels, ids, depth=2, heads=3):
    """The published score of one preprocessed image and the ids of a prompt without its padding."""
    seen = published_states(tensors, pixels)
    t = {k.removeprefix("blip.text_encoder."): v for k, v in tensors.items()}
    words, places = (t[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position"))
    x = norm(words[ids] + places[: len(ids)], t, "embeddings.LayerNorm", 1e-12)
    for n in range(depth):
        layer = f"encoder.layer.{n}"
        for kind in ("attention", "crossattention"):
            read = x if kind == "attention" else seen
            query = linear(x, t, f"{layer}.{kind}.self.query")
            key, value = (linear(read, t, f"{layer}.{kind}.self.{each}") for each in ("key", "value"))
            mixed = linear(attention(query, key, value, heads), t, f"{layer}.{kind}.output.dense")
            x = norm(mixed + x, t, f"{layer}.{kind}.output.LayerNorm", 1e-12)
        wide = gelu(linear(x, t, f"{layer}.intermediate.dense"))
        x = norm(linear(wide, t, f"{layer}.output.dense") + x, t, f"{layer}.output.LayerNorm", 1e-12)
    for number in (0, 2, 4, 6, 7):
        x = linear(x, tensors, f"mlp.layers.{number}")
    return (x[0, 0] - 0.16717362830052426) / 1.0333394966054072


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_score_is_the_published_calculation_from_the_published_names(folder, dtype, close):
    """In float64 the tolerance tells 1e-6 from 1e-5 in a norm, and the two forms of gelu from each other."""
    reward, images = load_image_reward(folder, dtype=dtype), random_images(side=32)
    tensors = {name: each.double() for name, each in load_file(folder / "model.safetensors").items()}
    pixels = middle_square(32)(images)
    expected = [published_score(tensors, *each) for each in zip(pixels, IDS, strict=True)]
    found = reward.scores(images.to(dtype), PROMPTS)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), torch.stack(expected), rtol=close, atol=close)
    assert torch.equal(for_prompts(reward, PROMPTS)(images.to(dtype)), -found)


def test_the_gradient_of_the_images_is_that_of_finite_differences(folder):
    reward, images = load_image_reward(folder, dtype=torch.float64), random_images(side=40)
    metric = for_prompts(reward, PROMPTS)
    assert gradcheck(metric, images.requires_grad_(), fast_mode=True)
    assert gradcheck(metric, random_images(side=20).requires_grad_(), fast_mode=True)
    (gradient,) = torch.autograd.grad(metric(images).sum(), images)
    assert gradient.norm() > 1e-3
    assert not any(each.requires_grad for each in reward.text.parameters())


def test_the_prompt_matters_row_by_row_and_its_padding_does_not(folder):
    reward, images = load_image_reward(folder, dtype=torch.float64), random_images(3, side=32)
    found = reward.scores(images, [*PROMPTS, PROMPTS[0]])
    for n, prompt in enumerate([*PROMPTS, PROMPTS[0]]):
        assert torch.allclose(reward.scores(images[n : n + 1], [prompt]), found[n : n + 1], rtol=1e-10)
    assert not torch.isclose(*reward.scores(images[[0, 0]], PROMPTS), rtol=1e-3)
    check_prompts_matter(reward, PROMPTS, torch.device("cpu"))
    same = reward.scores(images[[0, 0]], ["a red apple", "A  RED Apple"])  # the vocabulary ignores case
    assert torch.allclose(*same, rtol=1e-10)
    with torch.no_grad():
        reward.text.embeddings.word_embeddings.weight[0] += 100  # of the padding
    assert torch.equal(reward.scores(images, [*PROMPTS, PROMPTS[0]]), found)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A folder with the published widths, one layer in each tower, and few words."""
    path, config = tmp_path_factory.mktemp("wide"), few_words(published_config())
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers = 1
    save_folder(path, config=config)
    return path


@pytest.mark.parametrize("shape", [(64, 64), (300, 420), (512, 512), (500, 250)])
def test_the_score_is_that_of_transformers_own_image_processor_to_two_thousandths(wide, shape):
    """Its unit is a standard deviation. The processor rounds what it resizes to 8 bits, and the reward does not."""
    reward, image = load_image_reward(wide), probe_image(3, *shape)
    pillow = Image.fromarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy())
    own = CLIPImageProcessor()(pillow, return_tensors="pt")["pixel_values"]
    given = ImageReward(reward.vision, reward.text, reward.head, reward.tokenizer, lambda _: own)
    score, expected = (each.scores(image, PROMPTS[:1]).item() for each in (reward, given))
    assert score == pytest.approx(expected, abs=2e-3)
    other = ImageReward(reward.vision, reward.text, reward.head, reward.tokenizer, lambda _: own.flip(3))
    assert abs(other.scores(image, PROMPTS[:1]).item() - expected) > 0.01


def test_the_middle_square_begins_where_torchvision_begins_it():
    """round((103 - 0) / 2) is 52 for the shape of SDXL's tall images, 327 x 224; CLIP's processor begins at 51."""
    ramp = torch.arange(327.0).view(1, 1, 327, 1).expand(1, 3, 327, 224)
    raw = CLIP.mean[0] + middle_square(224)(ramp)[0, 0] * CLIP.std[0]
    assert raw.shape == (224, 224)
    assert raw[0, 0].item() == pytest.approx(52, abs=1e-3)
    tall = middle_square(224)(torch.rand(1, 3, 1216, 832))
    assert tall.shape == (1, 3, 224, 224)


def test_the_published_configuration_has_the_published_names_and_shapes():
    config = published_config()
    names = published_names(*networks(config))
    assert {name: tuple(each.shape) for name, (_, _, each) in names.items()} == layout(config)
    assert len(names) == 4 + 24 * 12 + 2 + 4 + 12 * 26 + 10
    assert {each.device.type for _, _, each in names.values()} == {"meta"}
    assert names["blip.visual_encoder.blocks.23.attn.qkv.weight"][2].shape == (3072, 1024)
    assert names["blip.text_encoder.encoder.layer.11.crossattention.self.key.weight"][2].shape == (
        768,
        1024,
    )
    assert names["blip.text_encoder.embeddings.word_embeddings.weight"][2].shape == (30524, 768)
    vision, text = config.vision_config, config.text_config
    assert (vision.num_attention_heads, vision.layer_norm_eps, vision.hidden_act) == (16, 1e-6, "gelu")
    assert (text.num_attention_heads, text.layer_norm_eps, text.hidden_act) == (12, 1e-12, "gelu")
    assert 4.4e8 < sum(each.numel() for _, _, each in names.values()) < 4.5e8


@pytest.mark.parametrize("prefix", ["", "module.", "model.reward."])
def test_what_a_file_holds_besides_and_a_prefix_change_nothing(folder, tmp_path, prefix):
    images = random_images(side=32)
    score = load_image_reward(folder, dtype=torch.float64).scores(images, PROMPTS)
    tensors = load_file(folder / "model.safetensors") | unused(tiny_config())
    save_file({prefix + name: each for name, each in tensors.items()}, folder / "model.safetensors")
    for name in (folder, str(folder / "model.safetensors")):
        again = load_image_reward(name, dtype=torch.float64)
        assert torch.equal(again.scores(images, PROMPTS), score)


LAST = "blip.visual_encoder.blocks.1.mlp.fc2.bias"
POSITIONS = "blip.text_encoder.embeddings.position_ids"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(LAST), f"missing: {LAST};"),
        (lambda t: t.pop("mlp.layers.7.weight"), r"missing: mlp\.layers\.7\.weight"),
        (lambda t: t.update(extra=torch.ones(1)), "not expected: extra;"),
        (lambda t: t.update({LAST: torch.ones(31)}), rf"of another shape: {LAST} \(31,\) where \(32,\)"),
        (lambda t: t.update({POSITIONS: torch.arange(36).flip(0)[None]}), f"not expected: {POSITIONS}"),
        (lambda t: t.update({f"ema.{k}": v.clone() for k, v in [*t.items()]}), r"not expected: ema\.blip"),
        (
            lambda t: [t.update({f"a.{k}": t.pop(k)}) for k in [*t] if k != LAST],
            rf"missing: {LAST}; not exp",
        ),
    ],
)
def test_each_tensor_is_used_and_none_is_missing(tmp_path, change, message):
    tensors = random_tensors(tiny_config())
    change(tensors)
    save_folder(tmp_path, tensors)
    with pytest.raises(adp.InputError, match=message) as error:
        load_image_reward(tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_without_its_sizes_is_compared_with_the_published_ones(folder, tmp_path):
    (folder / "config.json").unlink()
    with pytest.raises(adp.InputError, match=r"the tokenizer .* is another one, of 14 tokens"):
        load_image_reward(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS + [f"w{n}" for n in range(30522 - len(WORDS))]))
    with pytest.raises(adp.InputError, match=r"missing: .* and .* more; of another shape: .*where"):
        load_image_reward(folder)


def test_a_pickle_is_refused_and_the_line_that_converts_it_does(folder, tmp_path):
    for name in ("ImageReward.pt", "empty"):
        (tmp_path / name).mkdir() if name == "empty" else torch.save(
            load_file(folder / "model.safetensors"), tmp_path / name
        )
        with pytest.raises(adp.InputError, match="can run code when it is loaded") as error:
            load_image_reward(tmp_path / name)
        assert "RE-N-Y/ImageReward" in str(error.value)
    line = re.search(r'python -c "(.*)"', str(error.value))
    assert line[0] in (ROOT / "docs" / "your-reward.md").read_text()
    subprocess.run([sys.executable, "-c", line[1]], cwd=tmp_path, check=True)
    found = load_file(tmp_path / "ImageReward.safetensors")
    assert all(torch.equal(found[k], v) for k, v in load_file(folder / "model.safetensors").items())


def test_other_files_and_vocabularies_are_refused(folder, tmp_path):
    with pytest.raises(adp.InputError, match="there is no file"):
        load_image_reward(tmp_path / "none.safetensors")
    with pytest.raises(adp.InputError, match="no such folder"):
        load_image_reward(tmp_path / "none")
    (tmp_path / "cut.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(adp.InputError, match="cannot be read"):
        load_image_reward(tmp_path / "cut.safetensors")
    with pytest.raises(adp.InputError, match="several files of safetensors"):
        load_image_reward(folder)
    (tmp_path / "cut.safetensors").unlink()
    (tmp_path / "words").mkdir()
    with pytest.raises(adp.InputError, match="tokenizer"):
        load_image_reward(folder, tokenizer=tmp_path / "words")
    (tmp_path / "words" / "vocab.txt").write_text("\n".join([*WORDS[:5], "[ENC]", "[DEC]", *WORDS[5:]]))
    with pytest.raises(adp.InputError, match="is another one, of 14 tokens"):
        load_image_reward(folder, tokenizer=tmp_path / "words")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(adp.InputError, match="ignores case"):
        load_image_reward(folder)


def test_a_prompt_that_is_empty_or_too_long_is_refused(folder):
    reward, image = load_image_reward(folder), random_images(1, dtype=torch.float32)
    reward.scores(image, [" ".join(["cat"] * 33)])
    for prompt, message in ((" ", "it is empty"), (" ".join(["cat"] * 34), "35 tokens, but .* has 36")):
        with pytest.raises(adp.InputError, match=message):
            reward.scores(image, [prompt])


def test_pixels_of_another_size_than_the_towers_are_refused(folder):
    reward = load_image_reward(folder)
    small = ImageReward(reward.vision, reward.text, reward.head, reward.tokenizer, middle_square(16))
    with pytest.raises(adp.InputError, match=r"reads 32 x 32 pixels, but .* gives \(16, 16\)"):
        small.scores(random_images(1, dtype=torch.float32), PROMPTS[:1])


def test_half_precision_towers_have_a_float32_head(folder):
    """The state is bfloat16, the head's product of it float32, whose steps are not those of bfloat16."""
    x = random_images(side=32, dtype=torch.float32)
    reward = load_image_reward(folder, dtype=torch.bfloat16)
    assert {each.dtype for each in reward.vision.parameters()} == {torch.bfloat16}
    assert {each.dtype for each in reward.head.parameters()} == {torch.float32}
    seen = reward.vision(pixel_values=middle_square(32)(x).bfloat16()).last_hidden_state
    ids = torch.tensor([each + [0] * (35 - len(each)) for each in IDS])
    state = reward.text(input_ids=ids, attention_mask=ids > 0, encoder_hidden_states=seen).last_hidden_state
    head = state[:, 0].float()
    for layer in reward.head:
        head = functional.linear(head, layer.weight, layer.bias)
    found = reward.scores(x, PROMPTS)
    assert torch.allclose(found, (head[:, 0] - reward.mean) / reward.std, rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32
    exact = load_image_reward(folder).scores(x, PROMPTS)
    assert torch.allclose(found, exact, atol=0.1)
    assert not torch.equal(found, exact)
