"""A pipeline's call runs with gradients, whether or not its class is decorated."""

import pytest
import torch

import adjointdpm as adp
from tests.tiny.calls import Undecorated, as_class, image, small


class Quiet(Undecorated):
    """Switches gradients off in its body, where no decorator is."""

    def __call__(self, **given):
        with torch.no_grad():
            return super().__call__(**given)


def test_already_undecorated():
    assert torch.equal(image(as_class(Undecorated)), image(small()))


def test_a_pipeline_that_switches_gradients_off():
    with pytest.raises(adp.InputError, match="its own code"):
        image(as_class(Quiet))
