"""result.json of every task is as the schema says, and comes back as it was."""

import json
import math
import re

import pytest

import adjointdpm as adp
from adjointdpm.metrics import Chroma
from adjointdpm.tasks import (
    EffectGoal,
    GuideSettings,
    HardenSettings,
    InvertSettings,
    PromptRows,
    RunOptions,
    TuneSettings,
    load_result,
)
from adjointdpm.tasks.report import SCHEMA, as_json
from tests.tiny import audits, inversions, tunes
from tests.tiny.guides import GOAL
from tests.tiny.tasks import mixture_sampler

QUIET = RunOptions(quiet=True)


def audit(folder):
    return audits.audited(
        folder, audits.classifier(audits.Nearest(2.0)), settings=audits.settings(radii=(0.2,))
    )


def harden(folder):
    model, given = (
        audits.Plain(),
        audits.settings(controls=False, max_train_steps=4, ball=adp.tasks.Ball(1.0)),
    )
    sampler, names = mixture_sampler(4), ["0", "1", "2", "3"]
    found = adp.tasks.audit(sampler, model, audits.LABELS, names, output=folder, settings=given, run=QUIET)
    quick = HardenSettings(steps=2, batch_size=8, clean=2, held_out=2)
    return adp.tasks.harden(found, sampler, model, given, quick, run=QUIET)


def invert(folder):
    sampler = inversions.sampler()
    learned, goal = PromptRows(sampler, "<e>", "pear"), EffectGoal(adp.metrics.effect("sepia"))
    settings = InvertSettings(max_train_steps=1, num_validation_images=1)
    prompts = ["a <e> cat"], ["a <e> dog"]
    return adp.tasks.invert(
        sampler, learned, goal, *prompts, token="<e>", output=folder, settings=settings, run=QUIET
    )


def tune(folder):
    settings = TuneSettings(max_train_steps=1, num_validation_images=1)
    return adp.tasks.tune(
        tunes.sampler(),
        Chroma(),
        tunes.PROMPTS,
        tunes.HELD_OUT,
        output=folder,
        settings=settings,
        run=QUIET,
    )


def guide(folder):
    settings = GuideSettings(max_train_steps=1, num_validation_images=1)
    return adp.tasks.guide(mixture_sampler(3), GOAL, ["x"], output=folder, settings=settings, run=QUIET)


@pytest.mark.parametrize("task", [audit, harden, invert, tune, guide])
def test_a_result_comes_back_as_it_was(task, tmp_path):
    result = task(tmp_path)
    found = load_result(result.folder)
    assert found == load_result(result.folder / "result.json")
    assert found["task"] == task.__name__
    assert found["result"] == as_json(result.as_dict())
    assert found["versions"]["adjointdpm"] == adp.__version__
    assert result.costs["seconds"] == found["result"]["costs"]["seconds"] > 0
    own = {case["if"]["properties"]["task"]["const"]: case["then"] for case in SCHEMA["allOf"]}
    part = SCHEMA["$defs"][own[task.__name__]["properties"]["result"]["$ref"].rpartition("/")[2]]
    assert set(found["result"]) == set(part["required"])  # the schema says nothing that is not there
    page = (result.folder / "index.html").read_text()
    assert "What was differentiated, and what it cost" in page
    assert "How to repeat this" in page


# What stands in every page, whatever the task: the verdict, what made it, which values are better, how to go on.
ON_EVERY_PAGE = (
    'class="verdict"',
    "<dt>Model</dt>",
    "<dt>Metric</dt>",
    "<dt>Versions</dt>",
    "<dt>Date</dt>",
)


@pytest.mark.parametrize(
    ("task", "says", "loads"),
    [
        (audit, "below 0 the classifier errs", "adjointdpm.load_noise"),
        (harden, "lower is better", "load_model"),
        (invert, "the effect sepia on the images without the token", "safetensors.torch.load_file"),
        (tune, "lower is better", "pipe.load_lora_weights"),
        (guide, "lower is better", "adjointdpm.load_noise"),
    ],
)
def test_a_page_says_what_was_found_with_what_and_how_to_load_it(task, says, loads, tmp_path):
    result = task(tmp_path)
    page = (result.folder / "index.html").read_text()
    for part in (
        *ON_EVERY_PAGE,
        f"adjointdpm {adp.__version__}, torch",
        "How to load the result",
        says,
        loads,
    ):
        assert part in page, part
    assert page.index('class="verdict"') < page.index("<dt>Model</dt>") < page.index("<table")
    verdict = re.findall(r'<p class="verdict">(.*?)</p>', page, re.DOTALL)[0]
    assert verdict.endswith(".")
    assert len(verdict.split()) > 10
    for wrong in ("less by", "EffectGoal(", "nan", "{"):
        assert wrong not in verdict
    assert "EffectGoal(" not in page
    assert "less by" not in page


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guide")
    guide(folder)
    return load_result(folder)


def changed(found, path, value):
    """A copy with one entry exchanged; None takes it away."""
    copy = json.loads(json.dumps(found))
    *places, last = path
    inner = copy
    for place in places:
        inner = inner[place]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["task"], None, "has no key 'task'"),
        (["task"], "paint", "'task' must be 'audit' or 'audit_images' or 'harden'"),
        (["schema_version"], 2, "has schema_version 2, and this release of adjointdpm reads 1"),
        (["schema_version"], "1", "'schema_version' must be of type integer"),
        (["schema_version"], True, "'schema_version' must be of type integer"),
        (["result", "methods", "noise", "calls"], "many", "'calls' must be of type integer or null"),
        (["result", "methods", "noise", "means"], None, "'noise' has no key 'means'"),
        (["result", "methods", "noise", "losses", 0], "low", "entry 0 of 'losses' must be of type number"),
        (["result", "pictures"], [], "'result' has an unknown key 'pictures'"),
        (["task"], "invert", "'result' has no key 'reports'"),
        (["versions", "torch"], 2, "'torch' must be of type string"),
    ],
)
def test_what_is_missing_newer_or_of_another_kind_is_named(written, tmp_path, path, value, message):
    (tmp_path / "result.json").write_text(json.dumps(changed(written, path, value)))
    with pytest.raises(adp.InputError) as caught:
        load_result(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "[", "[1]", '"text"'])
def test_no_result_is_one_error(tmp_path, content):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(adp.InputError, match="result"):
        load_result(tmp_path)


def test_numbers_that_json_does_not_have_are_null():
    given = {"a": (math.inf, -math.inf, math.nan, 1.5), 3: None, "path": adp.tasks.__name__}
    assert as_json(given) == {"a": [None, None, None, 1.5], "3": None, "path": "adjointdpm.tasks"}
