"""`tasks.solve` ends in reconstructions, result.json and a page, or refuses before any long work."""

from dataclasses import replace

import pytest
import torch

import adjointdpm as adp
from adjointdpm.files.images import image_file
from adjointdpm.metrics import Measured
from adjointdpm.metrics.operators import Downsample, GaussianBlur, PhaseRetrieval
from adjointdpm.tasks import RunOptions, SolveSettings, load_result, solve
from adjointdpm.tasks.solve import METHODS
from tests.tiny.commands import without_seconds
from tests.tiny.tasks import mixture_sampler

QUIET = RunOptions(quiet=True)
RESUME = RunOptions(quiet=True, resume=True)
FEW = SolveSettings(calls=24, num_validation_images=2)
Y = torch.tensor([[0.3], [0.6], [0.8]], dtype=torch.float64)
PROMPTS = ["one", "two", "three"]


def first_channel(images):
    return images[:, 0, 0]


def points(folder, rows=(0, 1, 2), run=QUIET, operator=first_channel, settings=FEW, **given):
    """What is made of some of three measurements of points of the plane."""
    sampler, metric = mixture_sampler(4), Measured(operator, Y[list(rows)], 0.01)
    return solve(
        sampler, metric, [PROMPTS[i] for i in rows], output=folder, settings=settings, run=run, **given
    )


def same(one, other):
    """Whether every bit of two images' results agrees."""
    return list(one.methods) == list(other.methods) and all(
        torch.equal(a.images, b.images)
        and a.calls == b.calls
        and list(a.losses) == list(b.losses)
        and all(torch.equal(a.values[name], b.values[name]) for name in a.values)
        for a, b in zip(one.methods.values(), other.methods.values(), strict=True)
    )


def test_several_measurements_are_solved_as_each_by_itself(tmp_path):
    whole, turned = points(tmp_path / "whole"), points(tmp_path / "turned", (2, 0, 1), files=list("cab"))
    assert list(whole.methods) == ["no measurement", *METHODS]
    for row in (0, 2):
        alone = points(tmp_path / str(row), (row,))
        assert same(whole.images[row], alone.images[0])
        assert same(turned.images[(1, 2, 0)[row]], alone.images[0])
        assert whole.files[row].read_bytes() == alone.artefact.read_bytes()
    assert [each.file for each in turned.images] == ["c", "a", "b"]
    assert not same(whole.images[0], whole.images[1])


def test_means_and_intervals_are_over_the_images(tmp_path):
    found = points(tmp_path, settings=replace(FEW, method="flowchef"))
    written = load_result(tmp_path)["result"]
    values = torch.tensor(written["methods"]["flowchef"]["values"]["metric"], dtype=torch.float64)
    of_each = values.view(3, 2).mean(1)
    mean = written["methods"]["flowchef"]["means"]["metric"]
    assert mean["mean"] == pytest.approx(float(of_each.mean()))
    assert mean["high"] - mean["mean"] == pytest.approx(1.96 * float(of_each.std()) / 3**0.5)
    assert [each["prompt"] for each in written["images"]] == PROMPTS
    for row, each in enumerate(written["images"]):
        assert each["methods"]["flowchef"]["values"]["metric"] == values[2 * row : 2 * row + 2].tolist()
        assert each["methods"]["flowchef"]["calls"] == 24
        assert each["best"] == "flowchef"
        assert (tmp_path / each["saved"]).is_file()
    assert found.methods["flowchef"].images.shape == (6, 3, 1, 1)


class Counted:
    """The first channel, until it is asked for the last time."""

    calls, stop = 0, -1

    def __call__(self, images):
        Counted.calls += 1
        if Counted.calls == Counted.stop:
            raise KeyboardInterrupt
        return first_channel(images)

    def __repr__(self):
        return "Counted()"


def test_an_interrupted_run_goes_on_to_the_same_bits_and_makes_nothing_again(tmp_path):
    Counted.calls, Counted.stop = 0, -1
    whole = points(tmp_path / "whole", operator=Counted())
    all_calls, folder = Counted.calls, tmp_path / "parts"
    for _ in range(2):
        before = set((folder / "state").glob("*"))
        Counted.calls, Counted.stop = 0, all_calls // 3
        with pytest.raises(KeyboardInterrupt):
            points(folder, run=RESUME, operator=Counted())
        assert len(set((folder / "state").glob("*")) - before) > 1
    Counted.calls, Counted.stop = 0, -1
    found = points(folder, run=RESUME, operator=Counted())
    assert Counted.calls < 0.6 * all_calls
    assert all(same(a, b) for a, b in zip(found.images, whole.images, strict=True))
    assert without_seconds(folder)["result"] == without_seconds(tmp_path / "whole")["result"]
    assert len(list((folder / "state").glob("*"))) == 3 * 7  # nothing was made twice


def test_a_resumed_run_may_have_other_solvers_and_no_other_setting(tmp_path):
    points(tmp_path, settings=replace(FEW, method="dps"))
    found = points(tmp_path, run=RESUME)
    assert list(found.methods) == ["no measurement", *METHODS]
    with pytest.raises(adp.InputError, match="calls = 24, but this run has 30; resume with the same"):
        points(tmp_path, run=RESUME, settings=replace(FEW, calls=30))
    with pytest.raises(adp.InputError, match=r"0000-.* was made with measurement = "):
        points(tmp_path, (1, 0, 2), run=RESUME)
    with pytest.raises(adp.InputError, match="was made with operator = "):
        points(tmp_path, run=RESUME, operator=Counted())
    with pytest.raises(adp.InputError, match=r"of an earlier run.*--resume"):
        points(tmp_path)


def test_a_changed_last_measurement_is_refused_before_any_work(tmp_path):
    points(tmp_path, settings=replace(FEW, method="dps"))
    (tmp_path / "state" / "0000-dps.safetensors").unlink()
    y = Y.clone()
    y[2] += 0.1
    Counted.calls, Counted.stop = 0, 3  # the check of the operator alone
    with pytest.raises(adp.InputError, match="0002-"):
        solve(
            mixture_sampler(4),
            Measured(first_channel, y, 0.01),
            PROMPTS,
            output=tmp_path,
            settings=replace(FEW, method="dps"),
            run=RESUME,
        )
    assert not (tmp_path / "state" / "0000-dps.safetensors").exists()


def test_what_is_made_is_reported_as_it_goes(tmp_path):
    numbers, images = {}, []
    run = RunOptions(
        quiet=True,
        report=lambda step, values: numbers.update({step: values}),
        images=lambda step, name, made: images.append((step, name, made)),
    )
    found = points(tmp_path, run=run, settings=replace(FEW, method="dps"))
    assert list(numbers) == [0, 1, 2]
    assert numbers[1]["metric (dps)"] == found.images[1].methods["dps"].means["metric"]
    assert [each[:2] for each in images[-2:]] == [(2, "no measurement"), (2, "dps")]
    assert torch.equal(images[-1][2], found.images[2].methods["dps"].images)


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
        truth=truth,
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
        (Measured(Downsample(4), torch.zeros(0, 3, 16, 16)), None, "of no image"),
        (Measured(Downsample(4), y), torch.zeros(3, 8, 8), "that were measured are"),
        (Measured(Downsample(4), y), torch.zeros(2, 3, 64, 64), r"they must be \(1, 3, 64, 64\)"),
        (Measured(PhaseRetrieval(), y), None, "measurement y is"),
    ]:
        with pytest.raises(adp.InputError, match=words):
            solve(sampler, metric, "", output=tmp_path, truth=truth)
    for given, words in [
        ({"prompts": ["a", "b", "c"]}, "there are 3 prompts, but 2 measured images.*one for all"),
        ({"prompts": "", "files": ["a"]}, "there are 1 files, but 2 measured images"),
    ]:
        with pytest.raises(adp.InputError, match=words):
            solve(sampler, Measured(Downsample(4), y.repeat(2, 1, 1, 1)), output=tmp_path, **given)
    quantized = lambda images: Rounded.apply(images)  # noqa: E731
    metric, alone = Measured(quantized, torch.zeros(1, 3, 64, 64)), SolveSettings(method="mmps")
    with pytest.raises(adp.InputError, match=r"mmps needs the forward-mode.*choose dps"):
        solve(sampler, metric, "", output=tmp_path / "new", settings=alone)
    assert not list((tmp_path / "new").iterdir())
    with pytest.raises(adp.InputError, match="method is one of all, d-flow"):
        SolveSettings(method="magic")
    with pytest.raises(adp.InputError, match="calls must be at least 20"):
        SolveSettings(calls=3)
