"""Settings of hardening: which attacks are trained on."""

from dataclasses import replace

import pytest

import adjointdpm as adp
from adjointdpm.tasks import AuditSettings, Ball, HardenSettings


def test_the_attacks_are_the_audits_unless_others_are_named_and_a_radius_or_confidence_changes_only_itself():
    audited, own = (
        AuditSettings(ball=Ball(0.1, "linf"), max_train_steps=28),
        AuditSettings(max_train_steps=8),
    )
    assert HardenSettings().attacks(audited) == audited
    assert HardenSettings(attack=own).attacks(audited) == own
    wider = HardenSettings(radius=0.15, confidence=0.0).attacks(audited)
    assert wider == replace(audited, ball=Ball(0.15, "linf"), confidence=0.0)
    assert HardenSettings(attack=own, confidence=5.0).attacks(audited) == replace(own, confidence=5.0)


def test_a_time_outside_the_schedule_and_a_radius_of_nothing_are_refused():
    with pytest.raises(adp.InputError, match="t must be"):
        HardenSettings(t=(0.0, 1.5))
    with pytest.raises(adp.InputError, match="radius must be"):
        HardenSettings(radius=0.0)
