"""A checkpoint of another run is refused by name."""

import pytest

import adjointdpm as adp
from adjointdpm.tasks import (
    LoopSettings,
    RunOptions,
    optimize,
)
from tests.tiny.loops import sgd
from tests.tiny.tasks import Points, Shift, adam, run


def test_a_checkpoint_of_another_config_is_refused(tmp_path):
    run(tmp_path, steps=2)
    with pytest.raises(adp.InputError, match="task = 'Points', but this run has 'Shift'"):
        run(tmp_path, Shift)
    with pytest.raises(adp.InputError, match=r"radius = None, but this run has 0\.1"):
        run(tmp_path, config={"task": "Points", "radius": 0.1})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"seed": 1}, "seed = 0, but this run has 1"),
        ({"batch_size": 3}, "batch_size = 4, but this run has 3"),
        ({"decay": "linear"}, "decay = 'cosine', but this run has 'linear'"),
        (
            {"steps": 1},
            r"is of 2 steps, more than the 1 of this run.*--max_train_steps \(steps\) of at least 2",
        ),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path, more, words):
    run(tmp_path, steps=2)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(adp.InputError, match=words):
        run(tmp_path, **{"steps": 2} | more)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_a_checkpoint_of_another_optimizer_items_or_dtype_is_refused_by_name(tmp_path):
    loop = LoopSettings(steps=2, folder=tmp_path, run=RunOptions(resume=True, quiet=True))
    optimize(Points(), adam, loop)
    with pytest.raises(adp.InputError, match="optimizer = 'Adam', but this run has 'SGD'"):
        optimize(Points(), sgd(0.1), loop)
    with pytest.raises(adp.InputError, match="items = 5, but this run has 4"):
        optimize(Points(4), adam, loop)
    other = Points()
    other.variables = {"noise": other.variables["noise"].float()}
    with pytest.raises(adp.InputError, match=r"'noise' is float64 of shape .* but this run's is float32"):
        optimize(other, adam, loop)
    other.variables = {"moved": other.centre.clone()}
    with pytest.raises(adp.InputError, match="'moved' is missing, but this run's is float64"):
        optimize(other, adam, loop)
