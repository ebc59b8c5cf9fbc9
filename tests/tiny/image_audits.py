"""A small audit of given images, shared by the tests of its parts."""

import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm.attacks import Attack, ImageBall
from adjointdpm.tasks import RunOptions

LABELS = ["red", "green", "blue", "<b>gray</b>"]


class Channels(nn.Module):
    """Logits: the mean of each channel, with noise of the global generator; the fourth class is far away."""

    labels = LABELS

    def __init__(self, spread=0.0):
        super().__init__()
        self.spread = spread

    def forward(self, images):
        z = 20 * images.mean((2, 3))
        z = torch.cat([z, z.mean(1, keepdim=True) - 1], 1)
        return z + self.spread * torch.randn_like(z)


def images(number=6):
    """Images in which one channel is the brightest by a little, in turn; the last one's label is wrong."""
    draw = torch.Generator().manual_seed(0)
    made = torch.randint(100, 110, (number, 3, 8, 8), generator=draw).float()
    for i in range(number):
        made[i, i % 3] += 4 + 3 * i
    return made / 255


def attack(**changes):
    return Attack(**{"ball": ImageBall(8 / 255), "steps": 5, "draws": 2, "batch": 2, **changes})


def audited(folder, classifier=None, **changes):
    given = {"attack": attack(), "run": RunOptions(quiet=True), "votes": 3, **changes}
    labels = ["red", "green", "blue", "red", "green", "red"]
    return adp.tasks.audit_images(classifier or Channels(), images(), labels, output=folder, **given)


@pytest.fixture(scope="session")
def image_result(tmp_path_factory):
    return audited(tmp_path_factory.mktemp("image_audit"), Channels(0.3))
