"""`tasks.solve` ends in reconstructions, result.json and a page, or refuses before any long work."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.files.images import image_file
from adjointdpm.metrics import Measured
from adjointdpm.metrics.operators import Downsample, GaussianBlur, PhaseRetrieval
from adjointdpm.tasks import RunOptions, SolveSettings, load_result, solve

QUIET = RunOptions(quiet=True)


def test_every_solver_comes_nearer_to_the_measurement_at_equal_calls(tmp_path):
    sampler = adp.load_bundled("emoji", steps=4, guidance_scale=1.0)
    truth = sampler(sampler.noise(1, 9), sampler.encode("a red apple on a blue background")).clamp(0, 1)
    operator = GaussianBlur(2.0)
    found = solve(
        sampler,
        Measured(operator, operator(truth), 0.02),
        "a red apple on a blue background",
        output=tmp_path,
        settings=SolveSettings(calls=40, num_validation_images=1),
        truth=truth[0],
        run=QUIET,
    )
    plain, *others = found.methods.values()
    assert len(others) == 6
    for each in others:
        assert each.means["metric"] < 0.7 * plain.means["metric"]
        assert each.calls <= 40
    assert load_result(tmp_path)["task"] == "solve"
    page = (tmp_path / "index.html").read_text()
    assert "PSNR" in page
    assert "what is left" in page
    best = min(each.means["metric"] for each in others)
    shown = image_file(found.artefact)[None]
    assert float(Measured(operator, operator(truth), 0.02)(shown)) == pytest.approx(best, rel=0.2)


def test_a_measurement_that_is_no_image_has_a_page_too(tmp_path):
    sampler = adp.load_bundled("emoji", steps=2, guidance_scale=1.0)
    y = (lambda x: x.mean((2, 3)))(torch.rand(1, 3, 64, 64))
    metric = Measured(lambda x: x.mean((2, 3)), y, 0.02)
    settings = SolveSettings(method="flowchef", calls=20, num_validation_images=1)
    found = solve(sampler, metric, "", output=tmp_path, settings=settings, run=QUIET)
    assert list(found.methods) == ["no measurement", "flowchef"]


def test_of_all_solvers_one_that_cannot_run_is_left_out_with_a_warning(tmp_path):
    sampler = adp.load_bundled("emoji", steps=2)
    metric = Measured(lambda images: Rounded.apply(images), torch.full((1, 3, 64, 64), 0.5), 0.1)
    settings = SolveSettings(calls=20, num_validation_images=1)
    with pytest.warns(UserWarning, match=r"mmps is left out: mmps needs the forward-mode"):
        found = solve(sampler, metric, "a cat", output=tmp_path, settings=settings, run=QUIET)
    assert list(found.methods) == ["no measurement", "d-flow", "look-ahead", "dps-mean", "dps", "flowchef"]


class Rounded(torch.autograd.Function):
    """Eight bits, whose derivative is taken for the identity's."""

    @staticmethod
    def forward(context, images):
        return (images * 255).round() / 255

    @staticmethod
    def backward(context, cotangent):
        return cotangent


def test_what_cannot_be_solved_is_refused(tmp_path):
    sampler = adp.load_bundled("emoji", steps=2)
    y = torch.zeros(1, 3, 16, 16)
    for metric, truth, words in [
        (Measured(Downsample(2), y), None, "does not fit|measurement y is"),
        (Measured(Downsample(4), torch.zeros(2, 3, 16, 16)), None, "reconstructs one image"),
        (Measured(Downsample(4), y), torch.zeros(3, 8, 8), "that was measured is"),
        (Measured(PhaseRetrieval(), y), None, "measurement y is"),
    ]:
        with pytest.raises(adp.InputError, match=words):
            solve(sampler, metric, "", output=tmp_path, truth=truth)
    quantized = lambda images: Rounded.apply(images)  # noqa: E731
    metric, alone = Measured(quantized, torch.zeros(1, 3, 64, 64)), SolveSettings(method="mmps")
    with pytest.raises(adp.InputError, match=r"mmps needs the forward-mode.*choose dps"):
        solve(sampler, metric, "", output=tmp_path / "new", settings=alone)
    assert not list((tmp_path / "new").iterdir())
    with pytest.raises(adp.InputError, match="method is one of all, d-flow"):
        SolveSettings(method="magic")
    with pytest.raises(adp.InputError, match="calls must be at least 20"):
        SolveSettings(calls=3)
