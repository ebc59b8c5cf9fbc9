"""A run's events and files, for each variable; the printed command makes the same file."""

import shlex

import pytest
import torch

from adjointdpm.cli.main import app
from adjointdpm.cli.parse_metric import Networks, metric_of
from adjointdpm.cli.parse_sampler import sampler_of
from adjointdpm.files.images import image_file
from adjointdpm.metrics.rewards import ClipScore
from adjointdpm.studio.choice import VARIABLES
from adjointdpm.studio.jobs import First, Loaded, Progress, finished
from adjointdpm.tasks import load_result
from adjointdpm.zoo import load_clip
from tests.tiny.studios import choice, load, model, tensors


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_run_reports_every_step_and_its_command_makes_the_same_file(variable, tmp_path):
    given = choice(
        variable=variable, other_prompt="a car" if variable != "noise" else "", learning_rate=0.05
    )
    events = []
    done = finished(model(), load(), given, tmp_path / "run", lambda: False, events.append)
    first, *steps = events
    assert isinstance(first, First)
    assert [each.step for each in steps] == [1, 2]
    assert all(isinstance(each, Progress) for each in steps)
    assert set(steps[-1].maps) == ({"noise", "image"} if variable == "noise" else {"image"})
    assert steps[0].calls < steps[1].calls
    assert steps[0].bytes_saved > 0
    assert len(done.curve) == (3 if variable != "lora" else 2)
    assert list(done.curve[:2]) == pytest.approx(steps[-1].values)
    assert (done.step, done.steps) == (2, 2)
    if variable != "token":  # whose images before are without it
        assert done.values[1] <= done.values[0]
    if variable == "noise":
        assert torch.equal(steps[0].image, first.image)
        assert torch.equal((image_file(done.before) * 255).round().to(torch.uint8), first.image)
        assert done.values == (done.curve[0], min(done.curve))
    assert load_result(tmp_path / "run")["task"] == VARIABLES[variable]
    assert done.page.read_text().count(given.metric[0]) >= (variable != "noise")
    assert "adjointdpm " + VARIABLES[variable] in done.page.read_text()

    program, *arguments = shlex.split(done.command)
    assert program == "adjointdpm"
    app.main([*arguments, "--quiet", "--output_dir", str(tmp_path / "again")], standalone_mode=False)
    assert tensors(tmp_path / "again" / done.artefact.name) == tensors(done.artefact)


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_reward_reads_the_prompt_of_the_run(variable, tmp_path):
    def with_clip():
        sampler = sampler_of("emoji", steps=2, guidance_scale=None)
        networks = Networks(sampler, clip_model="emoji/clip")
        return Loaded(sampler, lambda texts: metric_of(texts, networks))

    given = choice(
        variable=variable, prompt="a red apple", metric=("clip-score",), steps=1, sampling_steps=10
    )
    done = finished(model(load=with_clip), with_clip(), given, tmp_path, lambda: False, lambda _: None)
    reward = ClipScore(*load_clip("emoji/clip"))
    asked = reward.for_prompts(["a red apple"])(image_file(done.before)[None])
    other = reward.for_prompts(["a blue house"])(image_file(done.before)[None])
    assert done.values[0] == pytest.approx(float(asked), abs=2)  # the file is clamped, of 8 bits
    assert abs(float(other) - float(asked)) > 10


def test_a_run_that_is_stopped_keeps_what_it_reached(tmp_path):
    events = []
    given = choice(steps=50)
    done = finished(model(), load(), given, tmp_path, lambda: len(events) > 2, events.append)
    assert (done.step, done.steps) == (2, 50)
    assert len(done.curve) == 3
    assert done.artefact.is_file()
    assert done.page.is_file()


def test_an_adjoint_is_used_with_its_solver(tmp_path):
    """All exact adjoints take the same step."""
    found = [
        finished(
            model(), load(), choice(adjoint=name, steps=1), tmp_path / name, lambda: False, lambda _: None
        )
        for name in ("checkpointed", "backprop", "reversible")
    ]
    checkpointed, backprop, reversible = (tensors(each.artefact) for each in found)
    assert checkpointed == backprop
    assert checkpointed != reversible
    assert "--solver=coupled:euler" in found[2].command
