"""The libraries people attack and explain classifiers with drive `Purified` and `NoiseClassifier` unchanged.

Where a package is not installed, its test is skipped and says so; the extra `dev` has foolbox, ART and captum.
"""

import warnings

import pytest
import torch
from torch import nn

import adjointdpm as adp
from adjointdpm.attacks import judged


@pytest.fixture(scope="module")
def sampler():
    return adp.load_bundled("emoji", steps=2, solver=adp.Euler(), guidance_scale=1.0)


@pytest.fixture(scope="module")
def classifier():
    return adp.load_classifier("emoji/resnet")


@pytest.fixture(scope="module")
def purified(sampler, classifier):
    return adp.Purified(sampler, classifier, t=0.1, steps=2).eval()


@pytest.fixture(scope="module")
def noises(sampler, classifier):
    return adp.tasks.NoiseClassifier(sampler, sampler.encode(["a cat"]), classifier).eval()


@pytest.fixture(scope="module")
def images(sampler):
    with torch.no_grad():
        made = sampler.replace(steps=6)(sampler.noise(1, 3), sampler.encode(["a cat"]))
    return made.clamp(0, 1)


def labels_of(module, x):
    return judged(module, x, torch.zeros(len(x), dtype=torch.long), draws=3).voted


def margins_fell(module, x, found, labels):
    """Whether the true label's lead is less than before, on the same fresh draws for both."""
    before, after = (judged(module, each, labels, draws=4).margins for each in (x, found))
    return bool((after < before).all())


def foolbox():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("foolbox", reason="pip install foolbox, which drives these modules")


def test_foolbox_attacks_images_through_the_purification(purified, images):
    fb, labels = foolbox(), labels_of(purified, images)
    model = fb.PyTorchModel(purified, bounds=(0, 1), device="cpu")
    mean = fb.models.ExpectationOverTransformationWrapper(model, n_steps=2)
    _, found, _ = fb.attacks.LinfPGD(steps=3)(mean, images, labels, epsilons=8 / 255)
    assert float((found - images).abs().max()) <= 8 / 255 + 1e-6
    assert margins_fell(purified, images, found, labels)


def test_foolbox_attacks_noise(noises, sampler):
    fb, noise = foolbox(), sampler.noise(1, 1)
    labels = noises(noise).argmax(1)
    model = fb.PyTorchModel(noises, bounds=(-6, 6), device="cpu")
    _, found, _ = fb.attacks.L2PGD(steps=3)(model, noise, labels, epsilons=3.0)
    assert float((found - noise).flatten(1).norm(dim=1).max()) <= 3 + 1e-4
    assert margins_fell(noises, noise, found, labels)


def art(module, shape, bounds):
    pytest.importorskip(
        "art", reason="pip install adversarial-robustness-toolbox, which drives these modules"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.attacks.evasion import ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier

    model = PyTorchClassifier(
        module, nn.CrossEntropyLoss(), tuple(shape), nb_classes=234, clip_values=bounds, device_type="cpu"
    )
    return model, ProjectedGradientDescentPyTorch


@pytest.mark.filterwarnings("ignore")  # of its other frameworks
def test_art_attacks_images_and_noise(purified, noises, images, sampler):
    for module, x, bounds, eps in (
        (purified, images, (0.0, 1.0), 8 / 255),
        (noises, sampler.noise(1, 1), (-6.0, 6.0), 0.2),
    ):
        model, attack = art(module, x.shape[1:], bounds)
        labels = labels_of(module, x)
        found = attack(model, eps=eps, eps_step=eps / 2, max_iter=3, verbose=False).generate(
            x.numpy(), labels.numpy()
        )
        assert float((torch.from_numpy(found) - x).abs().max()) <= eps + 1e-5
        assert margins_fell(module, x, torch.from_numpy(found), labels)


@pytest.mark.filterwarnings("ignore")
def test_captum_attributes_a_logit_to_the_image_and_to_the_noise(purified, noises, images, sampler):
    attr = pytest.importorskip("captum.attr", reason="pip install captum, which drives these modules")
    fixed = purified.replace(seed=3)  # one function, so that the attributions add up
    for module, x in ((fixed, images[:1]), (noises, sampler.noise(1, 1))):
        label = int(module(x).argmax())
        found = attr.IntegratedGradients(module).attribute(x, 0.9 * x, target=label, n_steps=8)
        with torch.no_grad():
            whole = float(module(x)[0, label] - module(0.9 * x)[0, label])
        assert float(found.sum()) == pytest.approx(whole, rel=0.05, abs=1e-2)
        assert float(found.abs().max()) > 0


def test_torchattacks_attacks_images(purified, images):
    library = pytest.importorskip(
        "torchattacks", reason="torchattacks needs torchvision; where both are installed this runs"
    )
    labels = labels_of(purified, images)
    found = library.PGD(purified, eps=8 / 255, alpha=2 / 255, steps=3)(images, labels)
    assert margins_fell(purified, images, found, labels)


def test_autoattack_attacks_images(purified, images):
    library = pytest.importorskip(
        "autoattack", reason="autoattack is installed from its own repository; where it is there, this runs"
    )
    labels = labels_of(purified, images)
    attack = library.AutoAttack(
        purified, norm="Linf", eps=8 / 255, version="custom", attacks_to_run=["apgd-ce"], device="cpu"
    )
    attack.apgd.n_iter, attack.apgd.eot_iter = 3, 2
    found = attack.run_standard_evaluation(images, labels, bs=2)
    assert margins_fell(purified, images, found, labels)
