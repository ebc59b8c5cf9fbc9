"""Metrics of videos: means over frames, comparisons and prompts frame by frame, functions of whole videos."""

import pytest
import torch

import adjointdpm as adp
from adjointdpm import metrics as m
from adjointdpm.metrics.base import is_paired, name_of
from adjointdpm.metrics.check import check_metric
from adjointdpm.metrics.frames import needs_all_frames
from adjointdpm.metrics.rewards import FunctionReward
from adjointdpm.metrics.rewards.reward import reads_prompts


def videos(seed=0, batch=2, frames=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, frames, 3, 8, 8, generator=generator, dtype=torch.float64)


def one_by_one(metric_of_frame, x):
    return torch.stack(
        [
            torch.stack([metric_of_frame(i, f)(x[i, f][None])[0] for f in range(x.shape[1])]).mean()
            for i in range(len(x))
        ]
    )


def test_the_mean_over_frames_one_by_one():
    x = videos().requires_grad_()
    metric = m.for_medium(2 * m.Chroma() + (lambda images: images.square().mean((1, 2, 3))), "video")
    by_hand = 2 * one_by_one(lambda i, f: m.Chroma(), x) + x.square().mean((1, 2, 3, 4))
    torch.testing.assert_close(metric(x), by_hand)
    torch.testing.assert_close(
        *(torch.autograd.grad(each.sum(), x, retain_graph=True)[0] for each in (metric(x), by_hand))
    )


def test_frames_are_compared_with_the_same_frame_of_the_other_video():
    x, y = videos(), videos(1)
    metric = m.for_medium(m.Pixels() + 0.5 * m.Chroma(), "video")
    assert is_paired(metric)
    found = m.beside(metric, y)(x)
    by_hand = one_by_one(lambda i, f: m.beside(m.Pixels(), y[i, f][None]), x)
    torch.testing.assert_close(found, by_hand + 0.5 * one_by_one(lambda i, f: m.Chroma(), x))


def test_every_frame_is_read_with_the_prompt_of_its_video():
    seen = []

    def asked(images, prompts):
        seen.append(list(prompts))
        return images.mean((1, 2, 3)) * torch.tensor([float(len(each)) for each in prompts])

    x, metric = videos(), m.for_medium(FunctionReward(asked), "video")
    assert reads_prompts(metric)
    found = m.for_prompts(metric, ["a", "abc"])(x)
    assert seen == [["a"] * 3 + ["abc"] * 3]
    torch.testing.assert_close(found, -x.mean((1, 2, 3, 4)) * torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(m.for_prompts(metric, ["ab"])(x), -2 * x.mean((1, 2, 3, 4)))


def test_functions_of_whole_videos_are_left_alone():
    flicker = m.WholeVideo(lambda x: x.diff(dim=1).square().mean((1, 2, 3, 4)))
    x, metric = videos(), m.for_medium(3 * flicker + m.Chroma(), "video")
    by_hand = 3 * (x[:, 1:] - x[:, :-1]).square().mean((1, 2, 3, 4)) + m.OverFrames(m.Chroma())(x)
    torch.testing.assert_close(metric(x), by_hand)
    assert needs_all_frames(metric)
    assert not needs_all_frames(m.for_medium(m.Chroma(), "video"))
    assert m.for_medium(metric.terms[1][1], "video") is metric.terms[1][1]


def test_images_and_sound_keep_their_metric():
    metric = m.Chroma() + m.Pixels()
    assert m.for_medium(metric, "image") is metric
    assert m.for_medium(metric, "audio") is metric


def test_names_say_what_is_averaged():
    metric = m.for_medium(m.Chroma() + 0.3 * m.Pixels(), "video")
    assert name_of(metric) == "Chroma over frames + 0.3*Pixels over frames"


def test_wrong_metrics_are_refused_before_the_work():
    like = torch.zeros((), dtype=torch.float64)
    check_metric(m.for_medium(m.Chroma(), "video"), (3, 3, 8, 8), 2, like)
    with pytest.raises(adp.InputError, match=r"one value an image, here a tensor of shape \(6,\)"):
        check_metric(m.OverFrames(lambda images: images.mean()), (3, 3, 8, 8), 2, like)
    with pytest.raises(adp.InputError, match=r"is of videos .* but got \(2, 3, 8, 8\)"):
        m.OverFrames(m.Chroma())(videos()[0][:2])
    with pytest.raises(adp.InputError, match=r"fails on gray videos of shape \(1, 3, 3, 8, 8\)"):
        check_metric(m.WholeVideo(lambda x: x[:, 7].mean((1, 2, 3))), (3, 3, 8, 8), 1, like)
    with pytest.raises(adp.InputError, match=r"fails on quiet noise of shape \(1, 2, 16\)"):
        check_metric(m.Chroma(), (2, 16), 1, like)
    check_metric(lambda sound: sound.square().mean((1, 2)).log(), (2, 16), 1, like)


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("AnimateDiffPipeline", m.Chroma()),
        ("StableAudioPipeline", lambda sound: sound.square().mean((1, 2))),
    ],
)
def test_gradients_of_a_sampler(name, metric):
    """`gradients` averages over frames by itself; against autograd by hand."""
    from tests.tiny.media import sampler

    made = sampler(name)
    noise, cond = made.noise(1), made.encode("a cat")
    found = adp.gradients(made, metric, noise, cond)
    leaf = noise.clone().requires_grad_()
    out = made(leaf, cond)
    values = metric(out) if out.ndim == 3 else metric(out.flatten(0, 1)).mean()[None]
    assert torch.equal(found.images, out)
    torch.testing.assert_close(found.values, values.detach())
    torch.testing.assert_close(found.variables["noise"], torch.autograd.grad(values.sum(), leaf)[0])
