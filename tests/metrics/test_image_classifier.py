"""Classifier folders: their logits are those of their own image processor, or they are refused in one line."""

import json

import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm import metrics as m
from adjointdpm.metrics.image_classifier import Classifier, PlainClassifier, as_classifier
from adjointdpm.metrics.image_processor import _pillow, probe_image
from adjointdpm.zoo import load_classifier
from tests.tiny.classifiers import MEAN, PLAIN, STD, resnet
from tests.tiny.metrics import tiny_clip

CROPPED = {**PLAIN, "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40}, "do_center_crop": True,
           "crop_size": {"height": 32, "width": 32}, "do_convert_rgb": True}  # fmt: skip


SETTINGS = {
    "plain": PLAIN,
    "size as a number": {**PLAIN, "size": 32},
    "no normalization": {**PLAIN, "do_normalize": False},
    "values in -1 to 1 by the factor": {
        **PLAIN,
        "rescale_factor": 1 / 127.5,
        "image_mean": [1.0] * 3,
        "image_std": [1.0] * 3,
    },
    "no rescaling": {**PLAIN, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
    "no rescaling, no normalization": {**PLAIN, "do_rescale": False, "do_normalize": False},
    "no resizing": {**PLAIN, "do_resize": False},
    "class defaults for mean and std": {k: v for k, v in PLAIN.items() if not k.startswith("image_m")},
    "fast class": {**PLAIN, "image_processor_type": "ViTImageProcessorFast"},
    "no class": {k: v for k, v in PLAIN.items() if k not in ("image_processor_type", "size")}
    | {"size": {"shortest_edge": 32}, "crop_pct": 0.8},
    **{f"filter {i}": {**PLAIN, "resample": i} for i in range(6)},
    "crop": CROPPED,
    "crop larger than the image": {
        **CROPPED,
        "size": {"shortest_edge": 21},
        "crop_size": {"height": 32, "width": 35},
    },
    "crop as a number": {**CROPPED, "crop_size": 32, "size": 40},
    "between two sides": {**CROPPED, "size": {"shortest_edge": 30, "longest_edge": 40}},
    "crop without resizing": {**CROPPED, "do_resize": False},
    "pad": {**PLAIN, "do_pad": True, "pad_size": {"height": 40, "width": 44}},
    "crop within the resizing": {
        **PLAIN,
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_pct": 0.9,
    },
    "crop after the resizing": {
        **CROPPED,
        "image_processor_type": "PoolFormerImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_pct": 0.9,
    },
    "blue first": {
        "image_processor_type": "MobileViTImageProcessor",
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 32, "width": 32},
    },
    "normalized twice": {
        "image_processor_type": "EfficientNetImageProcessor",
        "size": {"height": 32, "width": 32},
    },
    "offset": {
        "image_processor_type": "EfficientNetImageProcessor",
        "size": {"height": 32, "width": 32},
        "rescale_offset": True,
        "rescale_factor": 1 / 127.5,
        "include_top": False,
    },
    "256 / 224": {**CROPPED, "image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 32}},
    "crop before the resizing": {
        **PLAIN,
        "image_processor_type": "PerceiverImageProcessor",
        "do_center_crop": True,
        "crop_size": {"height": 38, "width": 38},
    },
    "multiple of 16": {
        **PLAIN,
        "image_processor_type": "TextNetImageProcessor",
        "size": {"shortest_edge": 36},
        "size_divisor": 16,
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_logits_are_those_of_its_own_processor(folder, name):
    from transformers import AutoImageProcessor

    path = folder(SETTINGS[name])
    own, classifier = AutoImageProcessor.from_pretrained(path), load_classifier(str(path))
    for shape in ((64, 64), (57, 96), (130, 61)):
        image = probe_image(3, *shape).flip(-1)  # not one of those that the reading was chosen by
        with torch.no_grad():
            wanted = classifier.model(
                own(_pillow(image), return_tensors="pt")["pixel_values"].float()
            ).logits
            found = classifier(image)
        assert float((found - wanted).norm() / wanted.norm()) < 0.01


def test_the_gradient_comes_back_through_the_preprocessing(folder):
    classifier = load_classifier(str(folder(CROPPED))).double()
    images = (
        1.4 * torch.rand(1, 3, 36, 44, dtype=torch.float64) - 0.2
    ).requires_grad_()  # out of [0, 1], too
    assert torch.autograd.gradcheck(classifier, images, fast_mode=True)


def test_a_saved_classifier_is_the_same_one(folder, tmp_path):
    x = torch.rand(2, 3, 50, 70)
    for classifier in (
        load_classifier(str(folder(SETTINGS["normalized twice"]))),
        Classifier(resnet(), MEAN, STD, 32),
        Classifier(resnet(), MEAN, STD, None),
    ):
        classifier.save(tmp_path)
        torch.testing.assert_close(load_classifier(str(tmp_path))(x), classifier(x))


def broken(path, what):
    from safetensors.torch import load_file, save_file

    file, config = path / "model.safetensors", json.loads((path / "config.json").read_text())
    weights = load_file(file)
    if what == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif what == "no file":
        file.unlink()
    elif what == "a missing weight":
        del weights["classifier.1.bias"]
    elif what == "another weight":
        weights["head.weight"] = torch.zeros(3)
    elif what == "another shape":
        weights["classifier.1.bias"] = torch.zeros(9)
    elif what == "not finite":
        weights["classifier.1.bias"] *= torch.nan
    elif what == "no config":
        (path / "config.json").unlink()
    elif what == "config cut":
        (path / "config.json").write_text("{")
    elif what == "labels from 1 on":
        config["id2label"] = {str(i + 1): name for i, name in enumerate(("cat", "dog", "car", "bus"))}
    if what.endswith(("weight", "shape", "finite")):
        save_file(weights, file, {"format": "pt"})
    if what.startswith("labels"):
        (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated", "is cut or damaged"),
        ("no file", "could be loaded from"),
        ("a missing weight", "missing: classifier.1.bias"),
        ("another weight", "not expected: head.weight"),
        ("another shape", "of another size: classifier.1.bias"),
        ("not finite", "not finite"),
        ("no config", "could be loaded from"),
        ("config cut", "cannot be read as JSON"),
        ("labels from 1 on", "name each from 0 on"),
    ],
)
def test_broken_folders_are_one_line(folder, what, message):
    path = folder(PLAIN)
    broken(path, what)
    with pytest.raises(adp.InputError, match=message) as caught:
        load_classifier(str(path))
    assert "\n" not in str(caught.value)


def test_channels(folder):
    grey = load_classifier(str(folder({**PLAIN, "image_mean": [0.5], "image_std": [0.5]}, channels=1)))
    assert grey(torch.rand(2, 1, 40, 40)).shape == (2, 4)
    with pytest.raises(adp.InputError, match="images of 1 channels, but the sampler makes 3"):
        grey(torch.rand(2, 3, 40, 40))
    with pytest.raises(adp.InputError, match="fails on an image of 1 channels"):
        load_classifier(str(folder(PLAIN, channels=1)))
    with pytest.raises(adp.InputError, match="images of 5 channels"):
        load_classifier(str(folder(PLAIN, channels=5)))


# --- names of classes


def test_two_classes_of_one_name(folder):
    classifier = load_classifier(str(folder(PLAIN, names=("crane", "dog", "crane", "bus"))))
    assert classifier.labels == ["crane (class 0)", "dog", "crane (class 2)", "bus"]
    assert [classifier.index(each) for each in ("crane (class 2)", 2, "2", "bus")] == [2, 2, 2, 3]
    with pytest.raises(adp.InputError, match=r"2 classes .* 'crane'; give one of 'crane \(class 0\)'"):
        classifier.index("crane")


def test_labels_that_are_numbers():
    digits = PlainClassifier(nn.Flatten(), [1, 0, 2])
    assert digits.labels == ["1", "0", "2"]
    assert [digits.index(each) for each in ("1", "0", 1, 0)] == [
        0,
        1,
        1,
        0,
    ]  # names in quotes, else numbers
    for label in ("3", 3, -1, "x", True + 2):
        with pytest.raises(adp.InputError, match="no label"):
            digits.index(label)


# --- modules of one's own


class Returns(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, images):
        return self.fn(images)


LIKE = torch.zeros(3, 4, 4)


def test_a_module_of_ones_own_has_numbers_or_its_own_labels_as_names():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    assert as_classifier(network, LIKE, "judge").labels == ["0", "1", "2"]
    network.labels = ["x", "y", "z"]
    named = as_classifier(network, LIKE, "judge")
    assert named.labels == ["x", "y", "z"]
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(named(x), network(x))
    assert as_classifier(named, LIKE, "judge") is named


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 3)), "judge fails on images as"),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.Flatten(0)), "must return logits .* returned"),
        (Returns(lambda images: (images,)), "returned tuple; load a model of transformers"),
        (Returns(lambda images: images.flatten(1) * torch.nan), "not finite"),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8)), "call its eval"),
        (nn.Sequential(nn.Flatten(), nn.Dropout()), "call its eval"),
    ],
)
def test_modules_that_are_no_classifiers(module, message):
    torch.manual_seed(0)
    with pytest.raises(adp.InputError, match=message):
        as_classifier(module, LIKE, "judge")


def test_as_many_labels_as_logits():
    network = nn.Flatten()
    network.labels = ["x"]
    with pytest.raises(adp.InputError, match="48 logits, but 1 labels"):
        as_classifier(network, LIKE, "classifier")


# --- CLIP


def test_clip_is_preprocessed_by_its_own_processor(tmp_path):
    from transformers import CLIPImageProcessor

    from tests.tiny.parts import tokenizer

    model = tiny_clip().float()
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    settings = {
        "size": {"shortest_edge": 16},
        "crop_size": {"height": 16, "width": 16},
        "image_mean": [0.1, 0.2, 0.3],
    }
    own = CLIPImageProcessor(**settings)
    own.save_pretrained(tmp_path)
    loaded, words, preprocess = m.load_clip(str(tmp_path))
    image = probe_image(3, 30, 44).flip(-1)
    wanted = own(_pillow(image), return_tensors="pt")["pixel_values"]
    assert float((preprocess(image) - wanted).norm() / wanted.norm()) < 0.01
    with pytest.raises(adp.InputError, match=r"takes 6 tokens, but the text .* has"):
        m.ClipDistance.of_text(loaded, words, "a cat " * 9)
    with pytest.raises(adp.InputError, match="no CLIPModel could be loaded"):
        m.load_clip(str(tmp_path / "nowhere"))
