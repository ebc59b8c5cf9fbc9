"""Metrics as text: each stands for the value it says."""

import pytest
import torch
from safetensors.torch import save_file

import adjointdpm as adp
from adjointdpm import zoo
from adjointdpm.cli.parse_metric import Networks, metric_of
from adjointdpm.files.images import as_8_bit, png
from adjointdpm.metrics import (
    BackgroundColour,
    Chroma,
    PixelDistance,
    beside,
    effect,
    for_prompts,
    load_clip,
)
from adjointdpm.metrics.clip import image_features
from adjointdpm.metrics.rewards import (
    Aesthetic,
    ClipScore,
    PickScore,
    load_aesthetic,
    load_image_reward,
)
from tests.tiny.image_reward import save_folder
from tests.tiny.metrics import tiny_clip
from tests.tiny.parts import tokenizer


@pytest.fixture(scope="module")
def networks(emoji):
    return Networks(emoji)


def images(seed=0):
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_sums_and_kinds(networks):
    x, y = images(), images(1)
    terms = ["0.5*chroma", "2*effect:inverted", " background:0.1,0.2,0.9"]
    found = beside(metric_of(terms, networks), y)(x)
    by_hand = 0.5 * Chroma()(x) + 2 * PixelDistance(effect("inverted")(y))(x)
    assert torch.allclose(found, by_hand + BackgroundColour((0.1, 0.2, 0.9))(x))
    negative = metric_of(["-1*chroma"], networks)(x)
    assert torch.equal(negative, -Chroma()(x))
    assert isinstance(metric_of(["chroma"], networks), Chroma)


def test_images_and_labels(networks, tmp_path):
    x, file = images(), tmp_path / "a+b.png"
    file.write_bytes(png(as_8_bit(x[0])))
    near = metric_of([f"pixels:{file}"], networks)(x)
    assert float(near[0]) < 1e-5 < float(near[1])
    assert float(metric_of([f"1.0*style:{file}", "0.1*chroma"], networks)(x)[0]) < 0.02
    near = metric_of([f"wasserstein:{file}"], networks)(x)
    assert float(near[0]) < 1e-3 < float(near[1])
    label = metric_of(["label:red apple"], networks)
    logits = adp.load_classifier("emoji/resnet")(x)
    index = adp.load_classifier("emoji/resnet").index("red apple")
    assert torch.allclose(label(x), -logits.log_softmax(1)[:, index])


def test_functions_of_ones_own(networks, tmp_path, monkeypatch):
    (tmp_path / "my_metric.py").write_text("def dark(images):\n    return images.mean((1, 2, 3))\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    x = images()
    assert torch.allclose(metric_of(["3*my_metric:dark"], networks)(x), 3 * x.mean((1, 2, 3)))


def test_rewards_of_ones_own_read_the_prompts(networks, tmp_path, monkeypatch):
    (tmp_path / "my_reward.py").write_text(
        "from adjointdpm.metrics.rewards import FunctionReward\n"
        "def length(images, prompts):\n"
        "    return images.mean((1, 2, 3)) * images.new_tensor([len(each) for each in prompts])\n"
        "value = 2 * FunctionReward(length)\n"
        "def dark(images, gain=1.0):\n    return gain * images.mean((1, 2, 3))\n"
        "def broken(images, prompts):\n    raise KeyError('no')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    x, prompts = images(), ["a", "abc"]
    bright = x.mean((1, 2, 3))
    scores = bright * torch.tensor([1.0, 3.0])

    def read(*texts):
        return for_prompts(metric_of(texts, networks), prompts)(x)

    assert torch.allclose(read("0.5*my_reward:length"), -0.5 * scores)
    assert torch.allclose(read("my_reward:value"), -2 * scores)
    assert torch.allclose(read("my_reward:dark"), bright)
    both = read("2*at-least:0.7:my_reward:length", "chroma")
    assert torch.allclose(both, 2 * (0.7 - scores).relu() + Chroma()(x))
    with pytest.raises(adp.InputError, match="my_reward:broken cannot be used: KeyError"):
        read("my_reward:broken")


def test_rewards_of_clip_are_those_of_their_folder(emoji, tmp_path):
    model, words = tiny_clip().float(), tokenizer()
    words.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    save_file({"0.weight": torch.ones(1, 5)}, tmp_path / "head.safetensors")
    networks = Networks(emoji, clip_model=str(tmp_path))
    x, prompts = images(), ["a cat", "red dog"]

    def read(*texts):
        return for_prompts(metric_of(texts, networks), prompts)(x)

    _, _, preprocess = load_clip(str(tmp_path))
    clip = ClipScore(model, words, preprocess).scores(x, prompts)
    assert torch.allclose(read("clip-score"), -clip)
    assert torch.allclose(read("at-least:30:clip-score"), (30 - clip).relu())
    pick = PickScore(model, words, preprocess).scores(x, prompts)
    assert torch.allclose(read(f"0.1*pick-score:{tmp_path}"), -0.1 * pick)
    head = load_aesthetic(tmp_path / "head.safetensors")
    liked = Aesthetic(model, head, preprocess).scores(x)
    assert torch.allclose(read(f"aesthetic:{tmp_path / 'head.safetensors'}"), -liked)
    save_file({"0.weight": torch.ones(1, 7)}, tmp_path / "wide.safetensors")
    with pytest.raises(adp.InputError, match=r"embeddings of 7 numbers, but those of .* have 5"):
        read(f"aesthetic:{tmp_path / 'wide.safetensors'}")


def test_image_reward_is_that_of_its_folder_or_file_and_lies_where_rewards_do(emoji, tmp_path):
    save_folder(tmp_path)
    x, prompts, networks = images(), ["a cat", "red apples"], Networks(emoji)
    scores = load_image_reward(tmp_path).scores(x, prompts)
    for place in (tmp_path, tmp_path / "model.safetensors"):
        found = for_prompts(metric_of([f"0.5*image-reward:{place}"], networks), prompts)(x)
        assert torch.allclose(found, -0.5 * scores, rtol=1e-5)
    found = for_prompts(metric_of([f"at-least:1:image-reward:{tmp_path}"], networks), prompts)(x)
    assert torch.allclose(found, (1 - scores).relu(), rtol=1e-5)
    assert networks.used == {f"image-reward {tmp_path}", f"image-reward {tmp_path / 'model.safetensors'}"}
    away = metric_of([f"image-reward:{tmp_path}"], Networks(emoji, reward_device=torch.device("meta")))
    for each in (away.vision, away.text, away.head):
        assert {str(weight.device) for weight in each.parameters()} == {"meta"}
    (tmp_path / "ImageReward.pt").write_bytes(b"a pickle")
    with pytest.raises(adp.InputError, match="convert the authors' file once: python -c"):
        metric_of([f"image-reward:{tmp_path / 'ImageReward.pt'}"], networks)


def test_rewards_and_clip_lie_on_the_device_that_was_asked_for(emoji, tmp_path):
    networks = Networks(emoji, clip_model="emoji/clip", reward_device=torch.device("meta"))
    clip, _, preprocess = networks.clip()
    save_file({"0.weight": torch.ones(1, clip.config.projection_dim)}, tmp_path / "head.safetensors")
    liked = metric_of([f"aesthetic:{tmp_path / 'head.safetensors'}"], networks)
    for each in (clip, liked.head, networks.preference("emoji/preference").model):
        assert {str(weight.device) for weight in each.parameters()} == {"meta"}
    # Images are moved to the tower, which would refuse them otherwise.
    assert image_features(clip, preprocess, images()).device.type == "meta"
    assert "reward_device" in networks.used
    assert networks.device.type == "cpu"


def test_bundled_rewards_are_found_by_their_names(emoji):
    networks, x, prompts = Networks(emoji, clip_model="emoji/clip"), images(), ["a cat", "a red apple"]

    def read(*texts):
        return for_prompts(metric_of(texts, networks), prompts)(x)

    clip = ClipScore(*zoo.load_clip("emoji/clip")).scores(x, prompts)
    assert torch.equal(read("clip-score"), -clip)
    scores = zoo.load_preference("emoji/preference").scores(x)
    assert torch.equal(read("0.5*preference"), -0.5 * scores)
    assert torch.equal(read("at-least:2:preference"), (2 - scores).relu())
    other = zoo.load_preference("emoji/judge/preference").scores(x)
    assert torch.equal(read("preference:emoji/judge/preference"), -other)
    with pytest.raises(adp.InputError, match="has 234"):
        read("preference:emoji/resnet")
    assert networks.used == {
        "clip_model",
        *(f"preference emoji/{name}" for name in ("preference", "judge/preference")),
    }


def test_a_plus_and_spaces_belong_to_the_argument(networks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = images()
    for name in ("a.png", "a + chroma.png"):
        (tmp_path / name).write_bytes(png(as_8_bit(x[0])))
    plain = metric_of(["pixels:a.png"], networks)(x)
    assert torch.equal(metric_of(["pixels:a + chroma.png"], networks)(x), plain)
    both = metric_of(["style:a + chroma.png", "0.5*chroma"], networks)(x)
    assert torch.allclose(both, metric_of(["style:a.png"], networks)(x) + 0.5 * Chroma()(x))
    assert torch.allclose(metric_of(["1e+1*chroma"], networks)(x), 10 * Chroma()(x))


def test_a_sum_in_one_text_is_an_error_that_names_the_flag(networks):
    with pytest.raises(adp.InputError, match="each term of a sum in a --metric of its own"):
        metric_of(["chroma + background:0,0,0"], networks)


@pytest.mark.parametrize("body", ["raise KeyError('mine')", "import sys; sys.exit(0)"])
def test_a_metric_of_ones_own_that_fails_is_named(networks, tmp_path, monkeypatch, body):
    (tmp_path / f"failing_{len(body)}.py").write_text(f"def f(images):\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        adp.InputError, match=rf"failing_{len(body)}:f cannot be used: (KeyError|SystemExit)"
    ):
        metric_of([f"failing_{len(body)}:f"], networks)(images())


def test_networks_of_the_bundled_model_are_not_for_others(emoji):
    without = Networks(emoji, features=None, classifier=None)
    with pytest.raises(adp.InputError, match="--features"):
        metric_of(["content"], without)
    with pytest.raises(adp.InputError, match="--classifier"):
        metric_of(["label:cat"], without)
    assert without.used == set()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nan*chroma", "finite number other than 0"),
        ("inf*chroma", "finite number other than 0"),
        ("0*chroma", "finite number other than 0"),
        ("x*chroma", "finite number other than 0"),
        ("chroma:3", "takes nothing"),
        ("background:nan,0,0", "three numbers"),
        ("+".join(["chroma"] * 14), "cannot be read"),
        ("glow", "no metric 'glow'"),
        ("effect:glow", "no effect"),
        ("style:/nowhere.png", "cannot read the image"),
        ("background:1,2", "three numbers"),
        ("label:xylophone", "no label"),
        ("style", "after a colon"),
        ("0.5*", "cannot be read"),
        ("at-least:chroma", "write at-least:NUMBER:REWARD"),
        ("at-least:3:chroma", "write at-least:NUMBER:REWARD"),
        ("clip-score:x", "takes nothing"),
        ("hps-v2", "after a colon"),
    ],
)
def test_what_cannot_be_read(networks, text, message):
    with pytest.raises(adp.InputError, match=message):
        metric_of([text], networks)


def test_a_image_of_another_size(networks, tmp_path):
    file = tmp_path / "small.png"
    file.write_bytes(png(torch.zeros(3, 8, 9, dtype=torch.uint8)))
    with pytest.raises(adp.InputError, match="9 x 8"):
        metric_of([f"pixels:{file}"], networks)
