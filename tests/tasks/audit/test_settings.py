"""Settings of an audit that are out of range are refused by name."""

import pytest

import adjointdpm as adp
from adjointdpm.tasks.audit.settings import AuditSettings


@pytest.mark.parametrize("name", ["num_starts", "tries", "max_train_steps", "train_batch_size"])
def test_counts_are_at_least_one(name):
    assert getattr(AuditSettings(**{name: 1}), name) == 1
    with pytest.raises(adp.InputError, match=f"^{name} must be at least 1 and at most 1000000, but is 0$"):
        AuditSettings(**{name: 0})


@pytest.mark.parametrize("name", ["confidence", "keep_weight"])
def test_weights_are_not_negative(name):
    assert getattr(AuditSettings(**{name: 0.0}), name) == 0
    with pytest.raises(adp.InputError, match=f"^{name} must be at least 0 and at most 1000000, but is -1"):
        AuditSettings(**{name: -1.0})
