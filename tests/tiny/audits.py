"""A small audit, shared by the tests of its parts."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm.metrics.image_classifier import Classifier
from adjointdpm.tasks import AuditSettings, Ball, RunOptions
from adjointdpm.tasks.audit.attack import pixels
from tests.conftest import scaled_linear, standard_mixture
from tests.tiny.tasks import mixture_sampler

LABELS = ["north east", "north", "south", "east"]


class Nearest(nn.Module):
    """Logits: minus the squared distance to each of the four blobs of the mixture, as a pixel shows them."""

    def __init__(self, scale=4.0, names=LABELS):
        super().__init__()
        self.scale = scale
        self.register_buffer("means", standard_mixture(adp.VPDiscrete(scaled_linear())).means.detach())
        self.config = SimpleNamespace(id2label=dict(enumerate(names)), num_labels=len(names))

    def forward(self, pixel):
        points = (pixel[:, :2].flatten(1) - 0.5) * 4
        return SimpleNamespace(
            logits=-self.scale * (points[:, None] - self.means.to(points)).square().sum(2)
        )


def classifier(model=None):
    return Classifier(Nearest() if model is None else model, [0.0] * 3, [1.0] * 3, None)


def settings(**changes):
    quick = {
        "max_train_steps": 6,
        "num_starts": 2,
        "tries": 12,
        "train_batch_size": 3,
        "ball": Ball(0.6),
        "confidence": 0.2,
    }
    return AuditSettings(**{**quick, **changes})


def audited(folder, audited_=None, **changes):
    given = {
        "judge": classifier(),
        "features": pixels,
        "run": RunOptions(quiet=True),
        "settings": settings(),
    } | changes
    return adp.tasks.audit(
        mixture_sampler(4), audited_ or classifier(), LABELS, LABELS, output=folder, **given
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    given = settings(radii=(0.2,))
    return audited(
        folder,
        settings=given,
        transfer={"<b>other</b>": classifier(Nearest(2.0))},
        run=RunOptions(repeat="<i>again</i>"),
    )


class Constant(Nearest):
    """Says the first label whatever it sees."""

    def forward(self, pixel):
        return SimpleNamespace(logits=super().forward(pixel).logits * 0 + torch.tensor([1.0, 0, 0, 0]))


class Plain(nn.Module):
    """The same decisions as a bare module, to train a little of."""

    def __init__(self):
        super().__init__()
        self.nearest = Nearest()
        self.bias = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, images):
        return self.nearest(images).logits + self.bias
