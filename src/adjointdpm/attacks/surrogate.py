"""What stands for a purified classifier f(p(x)) in an attack: the ways in which its gradient has been computed.

    exact        dlogits/dx through the whole purification, by the sampler's own adjoint
    bpda         forward f(p(x)), backward as if dp/dx were the identity (Athalye et al., 2018, arXiv 1802.00420)
    continuous   the paper's adjoint ODE along the same path, which is not the gradient of the steps
    sde-adjoint  the adjoint SDE, solved anew backwards by torchsde (Nie et al., 2022, arXiv 2205.07460)
    blind        f(x): the attack does not know of the purification

Only the first is the gradient of what is audited. The others are here to measure what a wrong gradient hides.
"""

from typing import Any

from torch import Tensor, nn

from .._types import InputError
from ..adjoints import Continuous
from ..samplers.purified import Purified
from ..solvers import Euler
from .sde_adjoint import SdeAdjoint

__all__ = ["GRADIENTS", "surrogate"]

GRADIENTS = ("exact", "bpda", "continuous", "sde-adjoint", "blind")


def surrogate(classifier: nn.Module, gradient: str = "exact") -> nn.Module:
    """Return what an attack differentiates in place of a purified classifier; one purification a call.

    Args:
        classifier: the audited one; any other than a `Purified` has its exact gradient alone.
        gradient: exact, bpda, continuous, sde-adjoint or blind.

    Returns:
        the module, images to logits.

    Raises:
        InputError: another word, or one without a purification that it could be about; when called, a sampler that this
            gradient is not for.

    Examples:
        >>> import adjointdpm as adp
        >>> from adjointdpm.attacks import surrogate
        >>> sampler, classifier = adp.load_bundled("emoji"), adp.load_classifier("emoji/resnet")
        >>> surrogate(adp.Purified(sampler, classifier, votes=5)).votes
        1
    """
    if gradient not in GRADIENTS:
        raise InputError(f"the gradient is one of {', '.join(GRADIENTS)}, but is {gradient!r}")
    if not isinstance(classifier, Purified):
        if gradient != "exact":
            raise InputError(
                f"the gradient {gradient} is about a purification, but the classifier is a "
                f"{type(classifier).__name__}; take exact, or a Purified"
            )
        return classifier
    if gradient == "blind":
        return classifier.classifier
    others = {"continuous": Continuous(solver=Euler()), "sde-adjoint": SdeAdjoint()}
    if gradient in others:
        return classifier.replace(sampler=classifier.sampler.replace(adjoint=others[gradient]), votes=1)
    single = classifier.replace(votes=1)
    return _IdentityBackward(single) if gradient == "bpda" else single


class _IdentityBackward(nn.Module):
    """A purified classifier whose purification is the identity in the backward pass."""

    def __init__(self, purified: Any) -> None:
        super().__init__()
        self.purified = purified

    def forward(self, images: Tensor) -> Tensor:
        moved = self.purified.purify(images.detach()).detach() - images.detach()
        return self.purified.classifier(images + moved)
