"""Folders of small classifiers."""

import json

import pytest
import torch

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PLAIN = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 32, "width": 32}, "resample": 2,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD,
}  # fmt: skip


def resnet(channels=3, names=("cat", "dog", "car", "bus")):
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_channels=channels,
            num_labels=len(names), id2label=dict(enumerate(names)),
        )
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What makes a folder of a tiny classifier with some settings, a processor, or none."""

    def made(settings, **more):
        path = tmp_path_factory.mktemp("classifier")
        resnet(**more).save_pretrained(path)
        if isinstance(settings, dict):
            (path / "preprocessor_config.json").write_text(json.dumps(settings))
        elif settings is not None:
            settings.save_pretrained(path)
        return path

    return made
