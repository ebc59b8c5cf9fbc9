"""The training of a hardened classifier."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm.tasks import HardenSettings
from adjointdpm.tasks.harden.finetune import FineTune
from tests.tiny.audits import classifier

# --- hardening


class Linear(nn.Module):
    """Two classes of images of 3 x 2 x 2, by known weights."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(12, 2, dtype=torch.float64)
        self.config = SimpleNamespace(id2label={0: "a", 1: "b"}, num_labels=2)

    def forward(self, images):
        return SimpleNamespace(logits=self.map(images.flatten(1)))


def test_hardening_finds_the_worst_variant_of_plain_images_for_a_linear_classifier():
    torch.manual_seed(0)
    model, labels = classifier(Linear()), torch.tensor([0, 1, 1])
    colours = torch.rand(3, 3, 1, 1, dtype=torch.float64) * 0.4 + 0.3
    images = colours.expand(-1, -1, 2, 2)
    task = FineTune(model, images, labels, 4)
    # Moves and bends leave plain images as they are, and cross-entropy falls along w_y - w_other: so the worst tint
    # has its gains and offsets at their ends, against it.
    w = model.model.map.weight.detach().view(2, 3, 2, 2).sum((2, 3))
    against = torch.stack([w[1 - y] - w[y] for y in labels])[..., None, None].sign()
    worst = colours + against * (0.2 * (colours - 0.5).abs() + 0.1)
    torch.testing.assert_close(task.worst(0, [0, 1, 2]), worst.expand_as(images), rtol=0, atol=1e-12)
    entropy = partial(nn.functional.cross_entropy, reduction="none")
    want = (entropy(model(images), labels) + entropy(model(worst.expand_as(images)), labels)) / 2
    torch.testing.assert_close(task.losses(0, [0, 1, 2]).values, want)
    assert task.validate(0) == pytest.approx(float(want.detach().mean()))
    plain = FineTune(model, images, labels, 0)
    torch.testing.assert_close(plain.losses(0, [2]).values, entropy(model(images[2:]), labels[2:]))


@pytest.mark.parametrize(("name", "value"), [("variants", -1), ("clean", 0), ("rounds", 0)])
def test_a_hardening_says_which_setting_is_out_of_range(name, value):
    with pytest.raises(adp.InputError, match=name):
        HardenSettings(**{name: value})
