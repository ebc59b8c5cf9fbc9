"""Hardening from an audit to a saved classifier."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm.metrics import HiddenStates
from adjointdpm.tasks import Ball, HardenSettings, LoopSettings, RunOptions, load_result, optimize
from adjointdpm.tasks.harden.finetune import FineTune
from adjointdpm.zoo import load_classifier
from tests.tiny.audits import LABELS, Plain, audited, classifier, settings
from tests.tiny.tasks import mixture_sampler


def test_a_module_of_ones_own_is_hardened_and_saved(tmp_path):
    model, sampler, given = (
        Plain(),
        mixture_sampler(4),
        settings(controls=False, max_train_steps=4, ball=Ball(1.0)),
    )
    found = adp.tasks.audit(
        sampler,
        model,
        LABELS,
        ["0", "1", "2", "3"],
        output=tmp_path,
        settings=given,
        run=RunOptions(quiet=True),
    )
    hard = adp.tasks.harden(
        found,
        sampler,
        model,
        given,
        HardenSettings(steps=3, batch_size=8, clean=2, held_out=2),
        run=RunOptions(quiet=True),
    )
    from safetensors.torch import load_file

    assert not bool(model.bias.any())  # the copy was trained
    saved = load_file(hard.folder / "classifier" / "model.safetensors")
    assert float(saved["bias"].abs().max()) > 0
    assert json.loads((hard.folder / "classifier" / "labels.json").read_text()) == ["0", "1", "2", "3"]
    assert {path.name for path in (hard.folder / "train").iterdir()} == {"0", "1", "2", "3"}
    with pytest.raises(adp.InputError, match="no weights that could be trained"):
        adp.tasks.harden(found, sampler, Bare(), given)


class Bare(nn.Module):
    """Logits without a weight."""

    def forward(self, images):
        return torch.cat([images.flatten(1), images.flatten(1)[:, :1]], 1)


def test_hardening_exports_trains_and_measures(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=1, patch_size=1,
        num_labels=4, id2label=dict(enumerate(LABELS)), attn_implementation="eager",
    )  # fmt: skip
    model = classifier(ViTForImageClassification(config).eval())
    sampler = mixture_sampler(4)
    with torch.no_grad():
        images = sampler(sampler.noise(64, 3), sampler.encode(["x"] * 64)).float()
    task = FineTune(model, images, classifier()(images).argmax(1), 0)
    optimize(
        task,
        lambda leaves: torch.optim.Adam(leaves, 0.03),
        LoopSettings(steps=60, run=RunOptions(quiet=True)),
    )
    model.requires_grad_(False)
    model = model.double()
    given = settings(controls=False, keep_weight=0.0)
    found = audited(
        tmp_path,
        model,
        settings=given,
        judge=None,
        features=HiddenStates(model.model, model.normalized, None),
    )
    before = [p.clone() for p in model.parameters()]
    hard = adp.tasks.harden(
        found,
        sampler,
        model,
        given,
        HardenSettings(
            rounds=2,
            steps=5,
            batch_size=8,
            clean=2,
            clean_others=3,
            held_out=2,
            attack=replace(given, ball=Ball(0.9)),
        ),
        others={"z": "south"},
        run=RunOptions(quiet=True),
    )
    assert (hard.clean_before.of, hard.others_before.of) == (2 * len(set(found.prompts)), 2)
    again = load_result(hard.folder / "round-2")
    assert again["settings"]["ball"]["radius"] == 0.9
    assert 0.6 < again["result"]["after"]["largest_distance"] <= 0.9 + 1e-6  # the round's own ball
    measured = load_result(hard.folder / "after")
    assert measured["settings"]["ball"]["radius"] == 0.6  # the audit's
    more = again["result"]["after"]["success"]["hits"]
    assert more > 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    files = sorted((hard.folder / "train").glob("*/*.png"))
    assert sum(path.name.startswith("found") for path in files) == found.success.hits + more > more
    near = found.success.of + again["result"]["after"]["success"]["of"] - found.success.hits - more
    assert sum(path.name.startswith("near") for path in files) == near
    assert sum(path.name.startswith("clean") for path in files) == 2 * len(set(found.prompts)) + 3
    for path in files:
        if path.name.startswith("clean"):
            assert path.parent.name in LABELS
    saved = load_classifier(str(hard.folder / "classifier"))
    assert saved.labels == LABELS
    tuned = dict(saved.named_parameters())["model.classifier.weight"]
    assert float((tuned - model.model.classifier.weight).abs().max()) > 1e-6
    assert hard.before.of >= 4
    assert hard.clean_before.of == hard.clean_after.of == 8
    assert hard.kept_before is None  # no judge
    record = load_result(hard.folder)["result"]
    assert record["after"] == hard.after.as_dict()
    assert record["kept_after"] is None
