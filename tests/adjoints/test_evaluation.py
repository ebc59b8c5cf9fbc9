"""Between a solver's step and the network stands little code, and it does not change a bit of a gradient."""

import sys
import traceback

import pytest
import torch
from diffusers import UNet2DConditionModel

import adjointdpm as adp
from adjointdpm.adjoints.evaluation import Counted, Held, InBlocks
from adjointdpm.adjoints.recompute import Blocks
from adjointdpm.flow.denoisers import SplitGuidance
from tests import PACKAGE
from tests.conftest import unet_sampler
from tests.tiny.gradients import inputs


def frames_before_the_network(sampler, noise, cond):
    """The functions of this package that each network call is nested in, from the solver's step on."""
    code, found = UNet2DConditionModel.forward.__code__, []

    def profile(frame, event, _):
        if event == "call" and frame.f_code is code:
            found.append(traceback.extract_stack(frame)[:-1])

    sys.setprofile(profile)
    try:
        sampler(noise, cond)
    finally:
        sys.setprofile(None)
    for stack in found:
        ours = [each for each in stack if each.filename.startswith(str(PACKAGE))]
        step = max(i for i, each in enumerate(ours) if each.name == "step" and "/solvers/" in each.filename)
        yield [f"{each.filename}:{each.name}" for each in ours[step + 1 :]]


@pytest.mark.parametrize(
    ("adjoint", "wanted"),
    [
        (adp.Backprop(), ()),
        (adp.Backprop(), ("noise", "cond")),
        (adp.Checkpointed(), ("noise", "cond")),
        (adp.Checkpointed(keep=2), ("noise",)),
        (adp.Truncated(last=3), ("cond",)),
    ],
    ids=repr,
)
def test_at_most_six_frames_from_a_step_to_the_network(adjoint, wanted):
    sampler = adp.load_bundled("emoji", steps=6, adjoint=adjoint)
    noise, cond = sampler.noise(1), sampler.encode("a cat")
    noise.requires_grad_("noise" in wanted)
    if "cond" in wanted:
        cond.requires_grad_()
    # The graphs of the first call that has one are measured and searched, on a longer way.
    calls = list(frames_before_the_network(sampler, noise, cond))
    ordinary = [call for call in calls if not any("_examined" in each for each in call)]
    assert len(calls) - len(ordinary) <= 2
    for call in ordinary:
        assert len(call) <= 6, call


@pytest.mark.parametrize(
    "wrap",
    [
        lambda each: InBlocks(each, Blocks(list(each.parameters()))),
        lambda each: Counted(each, adp.Stats(), None),
        lambda each: Counted(SplitGuidance(each), adp.Stats(), None),
    ],
)
def test_a_wrapper_leaves_image_and_gradients_as_they_are(wrap):
    found = []
    for change in (lambda each: each, wrap):
        sampler = unet_sampler(steps=3)
        sampler.model.denoiser = change(sampler.model.denoiser)
        noise, cond = inputs(sampler)
        image = sampler(noise, cond)
        gradients = torch.autograd.grad(image.square().sum(), [noise, cond["prompt_embeds"]])
        found.append([image.detach(), *gradients])
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-10, atol=1e-12 * float(plain.abs().max()))


def test_wrappers_name_the_denoiser_inside_and_share_its_network():
    plain = unet_sampler(steps=3).model.denoiser
    outer = Counted(SplitGuidance(plain), adp.Stats(), None)
    assert outer.innermost is plain
    assert outer.network is plain.network
    assert [id(each) for each in outer.parameters()] == [id(each) for each in plain.parameters()]
    assert len(outer.state_dict()) == len(plain.state_dict())


def test_an_evaluation_without_a_gradient_is_held_until_an_input_changes():
    sampler, calls, graphs = unet_sampler(), adp.Stats(), adp.Stats()
    denoiser = Held(Counted(sampler.model.denoiser, calls, None), graphs)
    x, t = sampler.noise(1).double(), torch.tensor(500.0, dtype=torch.float64)
    cond = adp.Cond({"prompt_embeds": sampler.encode([""])["prompt_embeds"]})
    first = denoiser(x, t, cond)
    assert not first.requires_grad  # the network's weights do
    assert denoiser(x.clone(), t.clone(), cond.map(torch.clone)) is first
    assert calls.nfe_forward == 1
    moved = cond.map(lambda tensor: tensor.clone().requires_grad_())
    (slope,) = torch.autograd.grad(denoiser(x, t, moved).sum(), moved["prompt_embeds"])
    assert float(slope.abs().max()) > 0
    assert denoiser(x, t, cond) is first  # what has a gradient is not held in its place
    assert (calls.nfe_forward, graphs.nfe_forward) == (2, 1)
    for other in ((x + 1, t, cond), (x, t - 1, cond), (x, t, cond.map(lambda tensor: tensor + 1))):
        assert torch.equal(denoiser(*other), sampler.model.denoiser(*other))
    assert calls.nfe_forward == 5
