"""The check of a gradient: its interval covers the truth, it confirms what is right and finds what is wrong."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.analysis.finite_difference import LADDER, Check, finite_difference, slope
from adjointdpm.metrics import Chroma, Margin

SIZE = 30**0.5


def smooth(seed, dtype):
    """A function of 30 numbers along a direction, and its derivative there."""
    draw = torch.Generator().manual_seed(seed)
    a, b, v, d = (torch.randn(n, 30, generator=draw, dtype=torch.float64) for n in (5, 5, 1, 1))
    d = d / d.norm()

    def f(x):
        return (torch.sin(x @ a.to(x).T) * torch.exp(0.1 * (x @ b.to(x).T))).sum()

    return _along(f, v, d, dtype)


def kinked(seed, dtype):
    """Three layers of ReLUs, whose kinks are everywhere."""
    draw = torch.Generator().manual_seed(1000 + seed)
    first, second = (torch.randn(n, 30, generator=draw, dtype=torch.float64) / 5 for n in (400, 30))
    mixing = torch.randn(30, 400, generator=draw, dtype=torch.float64) / 20
    v, d = (torch.randn(1, 30, generator=draw, dtype=torch.float64) for _ in range(2))
    d = d / d.norm()

    def f(x):
        x = torch.relu(x @ first.to(x).T) @ mixing.to(x).T
        return torch.relu(x @ second.to(x).T).amax(1).sum() + torch.relu(x).sum() + x.abs().max()

    return _along(f, v, d, dtype)


def _along(f, v, d, dtype):
    leaf = v.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(leaf), leaf)
    return lambda h: float(f((v + h * d).to(dtype))), float((g * d).sum())


CASES = [
    (make, seed, dtype)
    for make in (smooth, kinked)
    for dtype in (torch.float64, torch.float32)
    for seed in range(25)
]


def found(case):
    make, seed, dtype = case
    f, truth = make(seed, dtype)
    return slope(f, SIZE, LADDER[dtype], torch.finfo(dtype).eps, truth), truth


def test_the_interval_covers_the_truth_in_95_of_100_cases():
    results = [(case, *found(case)) for case in CASES]
    decided = [(case, each, truth) for case, each, truth in results if not each.reason]
    covered = sum(abs(each.value - truth) <= each.uncertainty for _, each, truth in decided)
    assert covered >= 0.95 * len(decided)
    for make, dtype, least in (
        (smooth, torch.float64, 25),
        (smooth, torch.float32, 20),
        (kinked, torch.float64, 23),
        (kinked, torch.float32, 0),
    ):
        assert sum(case[0] is make and case[2] is dtype for case, _, _ in decided) >= least


@pytest.mark.parametrize(("make", "size"), [(smooth, 0.01), (smooth, 0.05), (kinked, 0.1), (kinked, -2.0)])
def test_a_wrong_gradient_is_found(make, size):
    verdicts = []
    for seed in range(25):
        each, truth = found((make, seed, torch.float64))
        check = Check("x", (1 + size) * truth, each.value, each.uncertainty, 0.0, each.reason)
        verdicts.append(check.verdict)
    assert verdicts.count("agrees") <= 1
    assert verdicts.count("does not agree") >= 22


def test_a_kink_at_the_point_itself_is_not_decided():
    each = slope(lambda h: abs(h) + 2 * h, 1.0, LADDER[torch.float64], 1e-16, 3.0)
    assert "two sides of the point are 1 and 3" in each.reason


def test_a_slope_of_zero_is_a_slope():
    each = slope(lambda h: 3.0, 1.0, LADDER[torch.float64], 1e-16, 0.5)
    assert not each.reason
    assert Check("x", 0.5, each.value, each.uncertainty).verdict == "does not agree"
    assert Check("x", 0.0, each.value, each.uncertainty).verdict == "agrees"


@pytest.mark.parametrize("name", ["emoji/hgnet", "emoji/resnet"])
def test_the_gradient_of_a_bundled_classifiers_margin_is_confirmed(emoji, name):
    classifier = adp.load_classifier(name)
    sampler = emoji.replace(steps=2)
    cond, noise = sampler.encode("a red apple"), sampler.noise(1, 1)
    metric = Margin(classifier, torch.tensor([classifier.index("red apple")]))
    exact = adp.gradients(sampler, metric, noise, cond).variables["noise"]
    assert finite_difference(sampler, metric, noise, cond, "noise", exact).verdict == "agrees"
    wrong = exact.clone()
    wrong.view(-1)[::2] = 0
    assert finite_difference(sampler, metric, noise, cond, "noise", wrong).verdict == "does not agree"
    assert next(classifier.parameters()).dtype == torch.float32
    assert noise.dtype == next(sampler.parameters()).dtype == torch.float32


def test_a_softmax_that_is_rounded_to_float32_is_checked_in_float64(emoji):
    """The bundled UNet pools its prompt by one; in float32 it hides the shortest steps' share of the slope."""
    sampler = emoji.replace(steps=2)
    cond, noise = sampler.encode("a red apple"), sampler.noise(1, 1)
    exact = adp.gradients(sampler, Chroma(), noise, cond, ["prompt_embeds"]).variables["prompt_embeds"]
    check = finite_difference(sampler, Chroma(), noise, cond, "prompt_embeds", exact)
    assert check.verdict == "agrees"
    assert check.uncertainty < 1e-3 * abs(check.predicted)
