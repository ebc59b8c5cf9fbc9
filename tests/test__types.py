"""The types of all packages: conditionings, ranges of numbers, and the bytes that a sampling holds."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm._types import GraphPolicy, direct, in_range


def test_integers_of_a_conditioning_never_require_a_gradient():
    cond = adp.Cond({"prompt_embeds": torch.zeros(1, 2, 3), "mask": torch.ones(1, 2, dtype=torch.long)})
    assert list(cond.differentiable) == ["prompt_embeds"]
    cond.requires_grad_()
    assert cond["prompt_embeds"].requires_grad
    assert not cond["mask"].requires_grad


def test_a_replaced_tensor_leaves_the_first_conditioning_as_it_is():
    first = adp.Cond({"a": torch.zeros(1)})
    second = first.replace(a=torch.ones(1), b=torch.ones(2))
    assert float(first["a"]) == 0
    assert (float(second["a"]), set(second)) == (1, {"a", "b"})


@pytest.mark.parametrize(
    ("kept", "recomputed", "decoder", "peak"), [(30, 10, 5, 135), (0, 10, 5, 110), (0, 3, 5, 105)]
)
def test_the_peak_is_the_states_and_the_larger_of_what_is_held_at_once(kept, recomputed, decoder, peak):
    stats = adp.Stats(states=100, kept=kept, recomputed=recomputed, decoder=decoder)
    assert stats.bytes_saved == peak
    stats.measured = False
    assert stats.bytes_saved is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 11, "5", True, 10**400])
def test_a_number_out_of_its_range_is_refused_by_name(value):
    with pytest.raises(adp.InputError, match=r"^steps must be at least 0 and at most 10, but is"):
        in_range("steps", value, 0, 10)


def test_policies_are_three_and_direct_leaves_the_graph():
    assert [policy.name for policy in GraphPolicy] == ["KEEP", "RECOMPUTE", "NO_GRAPH"]
    x = torch.tensor(2.0, requires_grad=True)
    assert float(torch.autograd.grad(direct(lambda t: t**3, x), x)[0]) == 12


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1, 11, 10**400, True, "3"])
def test_numbers_out_of_range(value):
    with pytest.raises(adp.InputError, match="--x must be at least 0 and at most 10, but is"):
        in_range("--x", value, 0, 10)
    in_range("--x", 0, 0, 10)
    with pytest.raises(adp.InputError, match="above 0"):
        in_range("--x", 0, 0, open_low=True)
