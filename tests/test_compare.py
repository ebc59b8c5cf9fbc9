import pytest
import torch

import adjointdpm as adp
from tests.test_bad_input import picture_sampler


def metric(images):
    return (images * torch.linspace(-1, 1, images[0].numel(), dtype=images.dtype).view_as(images[0])).sum(
        (1, 2, 3)
    )


def compared(adjoints, **settings):
    sampler = picture_sampler(solver=adp.Euler())
    return adp.compare(sampler, metric, adjoints, repeats=1, cond=sampler.encode("a"), **settings)


def row(comparison, adjoint, variable):
    (found,) = [r for r in comparison.rows if r.adjoint.startswith(adjoint) and r.variable == variable]
    return found


def test_exact_adjoints_have_no_error_and_the_papers_does():
    comparison = compared([adp.Backprop(), adp.Checkpointed(keep=1), adp.Continuous(solver=adp.Euler())])
    for variable in ("noise", "prompt_embeds", "weights"):
        assert row(comparison, "Backprop", variable).relative_error == 0
        assert row(comparison, "Checkpointed", variable).relative_error == 0
        paper = row(comparison, "Continuous", variable)
        assert paper.relative_error > 1e-4
        assert -1 <= paper.cosine <= 1
    assert row(comparison, "Backprop", "noise").nfe_forward == 4
    assert row(comparison, "Checkpointed", "noise").nfe_forward == 7
    assert (
        row(comparison, "Checkpointed", "noise").bytes_saved
        < row(comparison, "Backprop", "noise").bytes_saved
    )


def test_error_cosine_and_norm_are_those_of_the_two_gradients():
    sampler = picture_sampler(solver=adp.Euler())
    noise, cond = sampler.noise(), sampler.encode("a")
    g, exact = (
        adp.gradients(sampler.replace(adjoint=each), metric, noise, cond).variables["noise"].flatten()
        for each in (adp.Continuous(solver=adp.Euler()), adp.Backprop())
    )
    found = row(compared([adp.Continuous(solver=adp.Euler())], variables=["noise"]), "Continuous", "noise")
    assert found.relative_error == pytest.approx(float((g - exact).norm() / exact.norm()), rel=1e-12)
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(g, exact, dim=0)), rel=1e-12)
    assert found.norm_ratio == pytest.approx(float(g.norm() / exact.norm()), rel=1e-12)


def test_a_refused_variable_is_said_to_be_refused():
    comparison = compared([adp.Truncated(last=1)])
    assert row(comparison, "Truncated", "noise").relative_error is None
    assert "Checkpointed" in row(comparison, "Truncated", "noise").refusal
    assert row(comparison, "Truncated", "prompt_embeds").relative_error > 0
    assert "refused" in str(comparison)


def test_no_repeats():
    with pytest.raises(adp.InputError, match="at least 1"):
        adp.compare(picture_sampler(), metric, repeats=0)
