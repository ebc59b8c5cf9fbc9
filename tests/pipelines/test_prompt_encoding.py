"""Prompts: nothing of them is lost without a word, and the encoded ones have a graph only if it is asked for."""

import warnings

import pytest
import torch

import adjointdpm as adp
from tests.tiny.families import of
from tests.tiny.parts import tokenizer

LONG = "a red cat on a green dog"  # seven words; the text encoders take four, and two special tokens


def samplers(pipe, w=3.0):
    return (
        adp.FlowSampler.from_pipeline(pipe, steps=2, guidance_scale=w),
        adp.PipelineSampler(pipe, steps=2, guidance_scale=w),
    )


def lost(run):
    """The messages of the warnings of lost words, in order."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run()
    return [str(each.message) for each in found if "is lost" in str(each.message)]


def test_lost_words_are_named_with_the_limit_in_all_three_ways():
    pipe = of("sd").make()
    ways = [lambda s=s: s.encode(["a cat", LONG], negative="dog") for s in samplers(pipe)]

    def called():
        with adp.differentiable(pipe) as call:
            call(LONG, num_inference_steps=1, output_type="pt", latents=of("sd").noise())

    for way in (*ways, called):
        (message,) = lost(way)
        assert message.startswith(
            "text_encoder reads 6 tokens of a prompt, special ones counted, and this one has 9"
        )
        assert "'a green dog' is lost" in message
    assert not lost(lambda: samplers(pipe)[0].encode("a red cat on"))
    (message,) = lost(lambda: samplers(pipe)[0].encode("a cat", negative=LONG))
    assert "'a green dog' is lost" in message


def test_each_text_encoder_has_its_own_limit():
    """Flux gives its second one a length of its own."""
    arguments = {"max_sequence_length": 5, "height": 8, "width": 8}
    sampler = adp.PipelineSampler(of("flux").make(), steps=2, arguments=arguments)
    first, second = sorted(lost(lambda: sampler.encode("a red cat on a")))
    assert first.startswith("text_encoder reads 6")
    assert "'a' is lost" in first
    assert second.startswith("text_encoder_2 reads 5")
    assert "'on a' is lost" in second


def test_a_pipeline_that_cuts_what_it_has_encoded_is_named():
    """Qwen-Image encodes more than it gives its denoiser, to the very token."""
    pipe = of("qwen").make()
    pipe.tokenizer = tokenizer(20)
    arguments = {"max_sequence_length": 4, "height": 8, "width": 8}
    sampler = adp.PipelineSampler(pipe, steps=2, arguments=arguments)
    assert sampler.encode("a red cat")["prompt_embeds"].shape[1] == 4  # and the end of the text
    with pytest.warns(UserWarning, match="after max_sequence_length = 4"):
        assert sampler.encode("a red cat on")["prompt_embeds"].shape[1] == 4
    with pytest.raises(adp.InputError, match="a token that is being learned"), adp.TokenRows(pipe, ["on"]):
        sampler.encode("a red cat on")


@pytest.mark.parametrize("prompts", ["a red green blue cat", ["a cat", "a red green blue cat"]])
def test_a_learned_token_that_is_cut_off_is_an_error(prompts):
    """In one prompt of two as well, where its row would have some gradient after all."""
    pipe = of("sd").make()
    rows = adp.TokenRows(pipe, ["cat"])
    for sampler in samplers(pipe):
        with (
            pytest.raises(
                adp.InputError, match=r"cat is cut off.*text_encoder reads 6 tokens.*'cat' is lost"
            ),
            rows,
        ):
            sampler.encode(prompts)
    with pytest.warns(UserWarning, match="'cat' is lost"), rows:  # it stands there once more
        samplers(pipe)[0].encode("a cat on a cat")


def test_a_vector_for_one_of_two_tokenizers_is_named(tmp_path):
    pipe = of("sdxl").make()
    vector = torch.ones(2, 8)
    pipe.load_textual_inversion(
        {"<x>": vector}, token="<x>", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer
    )
    with pytest.warns(
        UserWarning, match="<x> is a token of tokenizer alone, so tokenizer_2 reads it as any other"
    ):
        samplers(pipe)[0].encode("a <x>")
    pipe.load_textual_inversion(
        {"<x>": vector}, token="<x>", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
    )
    samplers(pipe)[0].encode("a <x>")


def test_encoded_prompts_are_leaves():
    """The loop that everybody writes first, over a stock pipeline whose weights all require gradients."""
    pipe = of("sd").make()
    for sampler in samplers(pipe):
        cond, noise = sampler.encode("a cat", negative="dog"), sampler.noise(1).requires_grad_()
        assert all(each.is_leaf and not each.requires_grad for each in cond.values())
        grads = [torch.autograd.grad(sampler(noise, cond).mean(), noise)[0] for _ in range(2)]
        assert torch.equal(*grads)


@pytest.mark.parametrize("name", ["sd", "sdxl", "qwen"])
def test_a_graph_to_the_text_encoder_is_there_when_it_is_asked_for(name):
    """The gradient of every weight of the text encoder, against autograd through the pipeline's own encode_prompt."""
    pipe = of(name).make()
    weights = list(pipe.text_encoder.parameters())
    guided = {"do_classifier_free_guidance": True} if name == "sd" else {}
    own = pipe.encode_prompt(prompt="a red cat", device="cpu", num_images_per_prompt=1, **guided)[0]
    whole = torch.autograd.grad(own.sin().sum(), weights, allow_unused=True)
    cond = of(name).sampler(pipe, guidance_scale=3.0).encode("a red cat", graph=True)
    found = torch.autograd.grad(cond["prompt_embeds"].sin().sum(), weights, allow_unused=True)
    assert sum(each is not None and float(each.norm()) > 0 for each in found) > 10
    for ours, theirs in zip(found, whole, strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)


def test_a_graph_that_cannot_be_is_refused():
    pipe = of("sd").make()
    for sampler in samplers(pipe):
        with pytest.raises(adp.InputError, match="gradients are off"), torch.no_grad():
            sampler.encode("a cat", graph=True)
    pipe.text_encoder.requires_grad_(False)
    for sampler in samplers(pipe):
        with pytest.raises(adp.InputError, match="no weight of the text encoders requires a gradient"):
            sampler.encode("a cat", graph=True)
        with adp.TokenRows(pipe, ["cat"]):
            assert sampler.encode("a cat")["prompt_embeds"].requires_grad  # without being asked for


def test_an_encoded_prompt_is_not_the_models_own_memory():
    """A field may return a table of its own; a step on the conditioning must not move the table."""
    pipe = of("sd").make()
    sampler = samplers(pipe)[0]
    table = torch.nn.Parameter(torch.ones(1, 6, 8))
    sampler.model.encode = lambda *_: adp.Cond({"prompt_embeds": table})
    cond = sampler.encode("a cat").requires_grad_()
    with torch.no_grad():
        cond["prompt_embeds"].add_(1)
    assert float(table.detach().max()) == 1
    assert sampler.encode("a cat", graph=True)["prompt_embeds"] is table


def test_a_negative_prompt_that_is_not_used_is_named():
    for sampler in samplers(of("sd").make(), w=1.0):
        with pytest.warns(UserWarning, match="negative prompt 'dog' is ignored, .* guidance_scale = 1"):
            sampler.encode("a cat", negative="dog")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_2": "a dog"}, "the argument prompt_2 is a prompt"),
        ({"negative_prompt": "a dog"}, "the argument negative_prompt is a prompt"),
        ({"prompt_embeds": torch.zeros(1, 6, 16)}, "the argument prompt_embeds is what encode makes"),
        ({"guidance_scale": 7.0}, "the sampler itself passes guidance_scale"),
        ({"num_images_per_prompt": 2}, "the sampler itself passes num_images_per_prompt"),
    ],
)
def test_arguments_that_encoding_would_ignore_are_refused(arguments, message):
    with pytest.raises(adp.InputError, match=message):
        adp.PipelineSampler(of("sdxl").make(), steps=2, arguments=arguments).encode(["a cat", "a dog"])


def test_a_prompt_for_a_model_that_reads_none_is_refused():
    sampler = of("ddpm").sampler(steps=2)
    assert dict(sampler.encode("")) == {}
    with pytest.raises(adp.InputError, match="DDPMPipeline reads no prompts"):
        sampler.encode("a cat")
