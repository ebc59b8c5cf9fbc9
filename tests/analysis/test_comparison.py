import json

import pytest
import torch

import adjointdpm as adp
from adjointdpm.analysis.comparison import default_surrogates
from adjointdpm.analysis.finite_difference import finite_difference
from tests.system.test_bad_input import image_sampler
from tests.tiny.families import FAMILIES

PAPER = adp.Continuous(solver=adp.Euler())


def metric(images):
    return (images * torch.linspace(-1, 1, images[0].numel(), dtype=images.dtype).view_as(images[0])).sum(
        (1, 2, 3)
    )


def compared(adjoints, **settings):
    sampler = image_sampler(solver=adp.Euler())
    settings = {"check": False, **settings}
    return adp.compare(sampler, metric, adjoints, repeats=1, cond=sampler.encode("a"), **settings)


def row(comparison, adjoint, variable):
    (found,) = [r for r in comparison.rows if r.adjoint.startswith(adjoint) and r.variable == variable]
    return found


def test_exact_adjoints_have_no_error_and_the_papers_does():
    comparison = compared([adp.Backprop(), adp.Checkpointed(keep=1), PAPER])
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
    sampler = image_sampler(solver=adp.Euler())
    noise, cond = sampler.noise(), sampler.encode("a")
    g, exact = (
        adp.gradients(sampler.replace(adjoint=each), metric, noise, cond).variables["noise"].flatten()
        for each in (PAPER, adp.Backprop())
    )
    found = row(compared([PAPER], variables=["noise"]), "Continuous", "noise")
    assert found.relative_error == pytest.approx(float((g - exact).norm() / exact.norm()), rel=1e-12)
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(g, exact, dim=0)), rel=1e-12)
    assert found.norm_ratio == pytest.approx(float(g.norm() / exact.norm()), rel=1e-12)


def test_a_refused_variable_is_said_to_be_refused():
    comparison = compared([adp.Truncated(last=1)])
    assert row(comparison, "Truncated", "noise").relative_error is None
    assert "Checkpointed" in row(comparison, "Truncated", "noise").refusal
    assert row(comparison, "Truncated", "prompt_embeds").relative_error > 0
    assert "refused" in str(comparison)


def test_a_weight_gradient_is_compared_with_the_surrogates_that_the_solver_allows():
    leaps = {adp.FlowBP(connector="lagrange"), adp.LeapAlign()}
    everyone = {adp.DRTune(), adp.FlowBP(), adp.FlowBP(connector="bridge"), adp.DirectAlign(), *leaps}
    for solver, missing in ((adp.DPMSolverPP(2), set()), (adp.Ancestral(), leaps), (adp.Heun(), leaps)):
        assert set(default_surrogates(image_sampler(solver=solver))) == everyone - missing
    found = adp.compare(image_sampler(), metric, variables=["weights"], repeats=1, check=False, quiet=True)
    by_name = {row.adjoint: row for row in found.rows}
    assert len(by_name) == 7 + len(everyone)
    for name in ("DRTune()", "FlowBP()", "FlowBP(connector='bridge')", "LeapAlign()", "DirectAlign()"):
        each = by_name[name]
        assert -1 <= each.cosine < 1
        assert each.norm_ratio > 0
        assert each.nfe_backward <= 4
        assert each.seconds > 0
        assert each.bytes_saved > 0


def test_a_solver_with_noise_has_default_adjoints_that_it_can_use():
    found = adp.compare(
        image_sampler(solver=adp.Ancestral()),
        metric,
        variables=["noise"],
        repeats=1,
        check=False,
        quiet=True,
    )
    assert row(found, "Checkpointed", "noise").relative_error == 0
    assert not any("resolved" in each.adjoint for each in found.rows)


def test_a_noise_gradient_alone_is_compared_without_surrogates():
    found = adp.compare(image_sampler(), metric, variables=["noise"], repeats=1, check=False, quiet=True)
    assert not any(row.adjoint.startswith(("DRTune", "FlowBP")) for row in found.rows)
    refused = compared([adp.FlowBP()])
    assert "Checkpointed" in row(refused, "FlowBP", "noise").refusal
    assert row(refused, "FlowBP", "weights").cosine > -1


def test_no_repeats():
    with pytest.raises(adp.InputError, match="at least 1"):
        adp.compare(image_sampler(), metric, repeats=0)


def test_the_finite_difference_confirms_the_exact_gradient_and_catches_a_wrong_one():
    sampler = image_sampler(solver=adp.DPMSolverPP(2))
    noise, cond = sampler.noise(), sampler.encode("a")
    exact = adp.gradients(sampler, metric, noise, cond, ["noise", "prompt_embeds", "weights"]).variables
    before = [p.clone() for p in sampler.parameters()]
    for name, g in exact.items():
        right = finite_difference(sampler, metric, noise, cond, name, g)
        assert right.agrees, name
        assert right.relative_error < 1e-5
        half = g.clone()
        half.view(-1)[::2] = 0
        for wrong in (1.05 * g, -g, half):
            assert not finite_difference(sampler, metric, noise, cond, name, wrong).agrees, name
    assert all(torch.equal(*pair) for pair in zip(before, sampler.parameters(), strict=True))


def test_the_profile_says_where_the_error_arises(tmp_path):
    found = compared([adp.Backprop(), PAPER, adp.CoarseAdjoint(steps=2)], variables=["noise"], check=True)
    exact, paper, coarse = found.profiles
    assert max(exact.errors) == 0
    assert paper.errors[0] == 0  # the cotangent of the end is given
    assert paper.errors[-1] == pytest.approx(
        row(found, "Continuous(solver", "noise").relative_error, rel=1e-6
    )
    assert coarse.errors[-1] == pytest.approx(
        row(found, "CoarseAdjoint(steps=2", "noise").relative_error, rel=1e-6
    )
    assert len(exact.times) == 5
    assert len(coarse.times) == 3
    stored = json.loads(found.to_json())
    assert stored["profiles"][1]["errors"] == list(paper.errors)
    assert stored["checks"][0]["agrees"]
    assert found.plot(tmp_path / "sub" / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(adp.InputError, match="cannot write"):
        found.plot("/dev/null/a.png")


def test_a_frozen_model_without_prompts_is_compared():
    family = next(each for each in FAMILIES if each.name == "ddim")
    sampler = family.sampler(family.make(), steps=3)
    sampler.requires_grad_(False)
    found = adp.compare(sampler, lambda images: images.square().mean((1, 2, 3)), repeats=1)
    assert {each.variable for each in found.rows} == {"noise"}
    assert "Checkpointed" in row(found, "Truncated", "noise").refusal
    assert row(found, "Checkpointed", "noise").relative_error < 1e-4
    assert [check.verdict for check in found.checks] == ["agrees"]


def test_all_of_the_conditioning_is_compared_by_default():
    found = compared([adp.Checkpointed()])
    assert {each.variable for each in found.rows} == {
        "noise", "prompt_embeds", "negative_prompt_embeds", "guidance_scale", "weights"
    }  # fmt: skip


def test_a_bad_metric_is_reported_as_itself():
    with pytest.raises(adp.InputError, match="one value an image"):
        adp.compare(image_sampler(), lambda images: images.mean(), variables=["noise"], repeats=1)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_single_number_is_checked_whatever_the_sign_of_its_gradient(sign):
    sampler = image_sampler(solver=adp.Euler())
    noise, cond = sampler.noise(), sampler.encode("a")
    signed = lambda images: sign * metric(images)  # noqa: E731
    exact = adp.gradients(sampler, signed, noise, cond, ["guidance_scale"]).variables["guidance_scale"]
    found = finite_difference(sampler, signed, noise, cond, "guidance_scale", exact)
    assert found.verdict == "agrees"
    assert abs(found.predicted) == pytest.approx(abs(float(exact)))
