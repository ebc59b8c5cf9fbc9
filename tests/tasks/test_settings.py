"""Settings are checked when they are made, and what they have in common is said once."""

import pytest

import adjointdpm as adp
from adjointdpm.tasks import AuditSettings, GuideSettings, InvertSettings, TuneSettings
from adjointdpm.tasks.settings import TaskSettings, checkpointed

ALL = [AuditSettings, GuideSettings, InvertSettings, TuneSettings]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_train_steps", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("train_batch_size", 0),
        ("seed", -1),
        ("checkpointing_steps", -1),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(kind, name, value):
    with pytest.raises(adp.InputError, match=name):
        kind(**{name: value})


@pytest.mark.parametrize("kind", ALL)
def test_values_have_names(kind):
    """Their order is that of the classes, and of no interest to a caller."""
    assert issubclass(kind, TaskSettings)
    with pytest.raises(TypeError):
        kind(10)


def test_how_often_a_checkpoint_is_saved_may_change():
    assert checkpointed({"seed": 3, "checkpointing_steps": 5}) == {"seed": 3}
