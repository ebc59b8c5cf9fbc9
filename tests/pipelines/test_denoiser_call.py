"""A denoiser's call can be made again only from what it was given."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm._types import Stats
from adjointdpm.pipelines.denoiser_call import Replay


def test_writing_into_what_the_denoiser_was_given():
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    call = Replay("unet", layer, (x,), {}, [], None, [], Stats())
    assert torch.equal(call(*call.tensors), layer(x))
    x.add_(1.0)
    with pytest.raises(adp.AdjointDPMError, match="written into"):
        call(*call.tensors)
