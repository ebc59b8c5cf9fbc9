"""The studio's runs: one at a time, in the order of arrival, stopped at any time, and errors that are one line."""

import time
from dataclasses import replace

import pytest
import torch

import adjointdpm as adp
from adjointdpm.studio.jobs import Finished, First, Loaded, Progress
from adjointdpm.studio.run import Failed, Loading, Studio, Waiting
from tests.tiny.studios import choice, load, model, tensors


@pytest.fixture(scope="module")
def loaded():
    return load()


def kinds(events):
    return [type(each) for each in events]


def test_a_run_is_a_sequence_of_events_in_a_folder_of_its_own(tmp_path, loaded):
    studio = Studio(model(), tmp_path, loaded)
    session, other = studio.session(), studio.session()
    found = list(studio.run(session, choice()))
    assert kinds(found) == [Loading, First, Progress, Progress, Finished]
    again = list(studio.run(session, choice(steps=1)))[-1]
    elsewhere = list(studio.run(other, choice()))[-1]
    assert found[-1].artefact == tmp_path / session.folder.name / "1-noise" / "noise.safetensors"
    assert again.artefact.parent == session.folder / "2-noise"
    assert elsewhere.artefact.parent == other.folder / "1-noise"
    assert len(session.folder.name) == 32
    assert session.folder.name != other.folder.name
    assert tensors(found[-1].artefact) == tensors(elsewhere.artefact)
    assert len(studio.line) == 0


def test_a_second_run_waits_and_goes_on_after_the_first_was_left_in_its_middle(tmp_path, loaded):
    studio = Studio(model(), tmp_path, loaded)
    first = studio.run(studio.session(), choice(steps=200))
    assert isinstance(next(first), Loading)
    second = studio.run(studio.session(), choice(steps=1))
    assert next(second) == Waiting(1)
    first.close()  # as a page that was closed
    assert kinds(second) == [Loading, First, Progress, Finished]
    assert len(studio.line) == 0


def test_a_run_is_stopped_after_its_step_or_before_it_begins(tmp_path, loaded):
    studio = Studio(model(), tmp_path, loaded)
    working, waiting = studio.session(), studio.session()
    first, second = studio.run(working, choice(steps=200)), studio.run(waiting, choice())
    events = [next(first), next(first), next(first)]
    assert kinds(events) == [Loading, First, Progress]
    assert next(second) == Waiting(1)
    assert studio.stop(waiting)
    assert list(second) == [Failed("Stopped before it began.", stopped=True)]
    studio.stop(working)
    last = list(first)[-1]
    assert isinstance(last, Finished)
    assert last.step < 200
    assert last.artefact.is_file()
    assert not studio.stop(working)  # there is none any more


def test_another_run_of_a_session_stops_its_first(tmp_path, loaded):
    studio = Studio(model(), tmp_path, loaded)
    session = studio.session()
    first = studio.run(session, choice(steps=200))
    assert kinds([next(first), next(first)]) == [Loading, First]
    assert kinds(each for each in studio.run(session, choice(steps=1)) if not isinstance(each, Waiting)) == [
        Loading, First, Progress, Finished,
    ]  # fmt: skip
    assert list(first)[-1].step < 200


def test_the_end_of_the_studio_stops_its_runs(tmp_path, loaded):
    studio = Studio(model(), tmp_path, loaded)
    events = studio.run(studio.session(), choice(steps=200))
    next(events)
    studio.end()
    assert isinstance(list(events)[-1], Finished)
    assert len(studio.line) == 0


def test_what_cannot_be_done_is_one_line_and_the_next_run_works(tmp_path, loaded, capsys):
    studio = Studio(model(), tmp_path, loaded)

    def failed(given):
        return list(studio.run(studio.session(), given))[-1]

    assert "not trained on the words xyzzy" in failed(choice(prompt="a xyzzy")).message
    assert "no metric 'glow'" in failed(choice(metric=("glow",))).message
    assert capsys.readouterr().err == ""

    def broken(images):
        raise RuntimeError("out of ideas")

    studio = Studio(model(), tmp_path, replace(loaded, metric_of=lambda texts: broken))
    assert "out of ideas" in failed(choice()).message
    bad = Loaded(loaded.sampler, lambda texts: 1 / 0)
    studio = Studio(model(), tmp_path, bad)
    assert failed(choice()).message == (
        "internal error: ZeroDivisionError: division by zero; the server's output says more"
    )
    assert "ZeroDivisionError" in capsys.readouterr().err
    studio = Studio(model(), tmp_path, loaded)
    assert isinstance(failed(choice(steps=1)), Finished)


def test_a_token_and_a_lora_do_not_stay_for_the_next_run(tmp_path, loaded):
    """The model is loaded again, so that noise gives the same image as before."""
    loads = []

    def counted():
        loads.append(time.monotonic())
        return load()

    studio = Studio(replace(model(), load=counted), tmp_path)
    session = studio.session()
    events = [
        list(studio.run(session, choice(variable=variable, steps=1)))
        for variable in ("noise", "lora", "token", "token", "noise")
    ]
    assert all(isinstance(each[-1], Finished) for each in events)
    assert torch.equal(events[0][1].image, events[-1][1].image)
    assert len(loads) == 4


def test_a_full_line_is_one_line(tmp_path, loaded):
    studio = Studio(model(), tmp_path, loaded)
    for _ in range(studio.line.most):
        studio.line.join()
    assert "are waiting already" in next(studio.run(studio.session(), choice())).message


def test_a_model_that_cannot_be_loaded_again_is_one_line(tmp_path):
    def gone():
        raise adp.InputError("the folder is gone")

    studio = Studio(model(load=gone), tmp_path)
    assert list(studio.run(studio.session(), choice()))[-1] == Failed("the folder is gone")
