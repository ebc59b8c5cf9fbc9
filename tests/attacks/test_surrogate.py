"""What stands for a purified classifier has its logits, and each the gradient that it is named after."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm.attacks import surrogate
from tests.samplers.test_purified import Classify, sampler


@pytest.fixture(scope="module")
def purified():
    return adp.Purified(sampler(adp.EulerMaruyama(), steps=12), Classify(), t=0.3, steps=4, votes=3, seed=2)


def test_gradients_are_what_they_are_named_after(purified):
    image = torch.rand(2, *purified.sampler.image_shape, dtype=torch.float64)
    single = purified.replace(votes=1)
    gradients, logits = {}, {}
    for name in ("exact", "bpda", "continuous", "blind"):
        leaf = image.clone().requires_grad_()
        logits[name] = surrogate(purified, name)(leaf)
        (gradients[name],) = torch.autograd.grad(logits[name].square().sum(), leaf)
    assert torch.equal(logits["exact"], single(image))
    assert torch.allclose(logits["bpda"], logits["exact"], rtol=1e-12)
    assert torch.allclose(logits["continuous"], logits["exact"], rtol=1e-12)
    assert torch.equal(logits["blind"], Classify()(image))
    leaf = image.clone().requires_grad_()
    (exact,) = torch.autograd.grad(single(leaf).square().sum(), leaf)
    assert torch.equal(gradients["exact"], exact)
    after = single.purify(image).detach().requires_grad_()  # the identity in place of the purification
    (expected,) = torch.autograd.grad(Classify()(after).square().sum(), after)
    assert torch.allclose(gradients["bpda"], expected, rtol=1e-9)
    away = (gradients["continuous"] - exact).norm() / exact.norm()
    assert 1e-6 < float(away) < 1


def test_only_a_purification_has_other_gradients(purified):
    plain = Classify()
    assert surrogate(plain) is plain
    with pytest.raises(adp.InputError, match="is about a purification, but the classifier is a Classify"):
        surrogate(plain, "bpda")
    with pytest.raises(adp.InputError, match="exact, bpda, continuous, sde-adjoint, blind, but is 'eot'"):
        surrogate(purified, "eot")
