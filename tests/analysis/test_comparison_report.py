"""What a report of a comparison recommends."""

import json

import pytest

from adjointdpm.analysis.comparison_report import Comparison, Row
from adjointdpm.analysis.finite_difference import Check


def made(adjoint, error, cosine, held, seconds):
    return Row(adjoint, "noise", error, cosine, 1.0, held, 1, 1, seconds)


@pytest.mark.parametrize(
    ("free", "chosen", "beside"),
    [
        (None, "Use Exact()", "Fast()"),
        (250, "Use Exact()", ""),
        (10_000, "Use Exact()", "Fast()"),
        (100, "Use Checkpointed() in smaller parts", ""),
    ],
)
def test_the_recommendation_is_exact_and_names_what_is_cheaper(free, chosen, beside):
    rows = (
        made("Exact()", 0.0, 1.0, 100, 2.0),
        made("Fast()", 0.1, 0.995, 1000, 1.0),
        made("Wrong()", 0.5, 0.9, 10, 0.1),
    )
    says = Comparison(rows, free_bytes=free).recommendation
    assert says.startswith(chosen)
    assert ("Fast() has a cosine of 0.995 or better in 0.50 of the time; on another" in says) == bool(
        beside
    )
    assert "Wrong()" not in says


def test_an_exact_gradient_is_recommended_where_it_costs_no_more():
    rows = (made("Exact()", 0.0, 1.0, 100, 1.05), made("Fast()", 0.1, 0.995, 100, 1.0))
    assert Comparison(rows).recommendation == (
        "Use Exact(): its error is 0e+00 and nothing exact is faster, in 0.0 MB."
    )


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (Check("noise", 1.0, 1.001, 0.01), "Use Exact()"),
        (
            Check("noise", 1.0, 1.2, 0.01),
            "Finite differences contradict the gradient that counts as exact here",
        ),
        (Check("noise", 1.0, 1.2, 0.01, 0.3), "Use Exact()"),
        (
            Check("noise", 1.0, 1.2, 9.0, 0.0, "rounding"),
            "Finite differences could not confirm the exact",
        ),
    ],
)
def test_a_check_that_does_not_confirm_is_said_first(check, says):
    found = Comparison((made("Exact()", 0.0, 1.0, 100, 1.0),), checks=(check,))
    assert found.recommendation.startswith(says)
    assert json.loads(found.to_json())["checks"][0]["verdict"] == check.verdict
    assert ("since rounding" in str(found)) == bool(check.reason)
