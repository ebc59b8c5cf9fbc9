"""Processors of images are repeated in tensors, or refused."""

import pytest

import adjointdpm as adp
from adjointdpm.metrics.image_processor import _pillow, probe_image, processing_of
from adjointdpm.zoo import load_classifier
from tests.tiny.classifiers import PLAIN


def classes():
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    kinds = [
        IMAGE_PROCESSOR_MAPPING_NAMES.get(kind) for kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    ]
    return sorted({kind["pil"] for kind in kinds if isinstance(kind, dict) and kind.get("pil")})


@pytest.mark.parametrize("name", classes())
def test_every_processor_of_a_classifier_is_repeated_or_refused(name):
    """With its class's defaults, on shapes that the reading was not chosen by."""
    import transformers

    try:
        own = getattr(transformers, name)()
    except ImportError:
        pytest.skip("it needs another package")
    if name.startswith(("Donut", "ImageGPT", "Siglip2")):  # thumbnails, color clusters, patches
        with pytest.raises(adp.InputError, match=name):
            processing_of(own, name, 3)
        return
    steps = processing_of(own, name, 3)
    for shape in ((97, 64), (300, 411)):
        image = probe_image(3, *shape).flip(-1)
        wanted = own(_pillow(image), return_tensors="pt")["pixel_values"]
        assert float((steps(image) - wanted).norm() / wanted.norm()) < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_sharpen": True}, "does do_sharpen, which has no differentiable form"),
        ({"image_mean": [0.5, 0.5]}, "fails on an image of 3 channels"),
        ({"size": {"height": 32}}, "image processor of .* cannot be read"),
        ({"size": "small"}, "image processor of .* cannot be read"),
        ({"resample": 17}, "fails on an image"),
        ({"image_processor_type": "NoSuchProcessor"}, "cannot be read"),
        ({"image_processor_type": "DonutImageProcessor", "do_thumbnail": True}, "do_thumbnail"),
        ({"auto_map": {"AutoImageProcessor": "own.Own"}, "image_processor_type": "Own"}, "cannot be read"),
        (None, "needs a preprocessor_config.json"),
        ("{", "cannot be read as JSON"),
        ("[]", "cannot be read"),
    ],
)
def test_settings_that_are_not_understood_are_refused(folder, change, message):
    path = folder(None if change is None else {**PLAIN, **change} if isinstance(change, dict) else PLAIN)
    if isinstance(change, str):
        (path / "preprocessor_config.json").write_text(change)
    with pytest.raises(adp.InputError, match=message) as caught:
        load_classifier(str(path))
    assert "\n" not in str(caught.value)
