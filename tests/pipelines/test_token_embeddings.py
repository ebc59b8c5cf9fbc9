"""Words as the tokenizers in use read them, and gradients of their rows against the whole table's."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Gemma3TextConfig,
    Gemma3TextModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    T5Config,
    T5EncoderModel,
)

import adjointdpm as adp
from adjointdpm.tasks.invert.learned_token import PromptRows, TokenVectors
from tests.tiny.families import of

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
SMALL: dict[str, Any] = {
    "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
DECODER: dict[str, Any] = {**SMALL, "num_key_value_heads": 1, "head_dim": 4}


def pairs(*merges):
    """Merges of byte pairs, and a vocabulary with the alphabet and what they make, word ends included."""
    made = [a + b for a, b in merges]
    return {each: i for i, each in enumerate(dict.fromkeys([*BYTES, *(c + "</w>" for c in BYTES), *made]))}


def clip_parts(folder):
    """The word-internal piece "cat" and the word "cat</w>" both exist, as in every CLIP vocabulary."""
    merges = [("c", "a"), ("ca", "t"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    vocabulary = pairs(*merges)
    for each in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[each] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(each) for each in merges))
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=16)
    size = len(vocabulary)
    config = CLIPTextConfig(
        vocab_size=size, max_position_embeddings=16, bos_token_id=size - 2, eos_token_id=size - 1,
        pad_token_id=size - 1, **SMALL,
    )  # fmt: skip
    return tokenizer, CLIPTextModel(config)


def t5_parts(_):
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁a", "▁cat", "cat", "▁dog", *"abcdgost().,\"-'"]
    raw = Tokenizer(models.Unigram([(each, -len(pieces) / len(each)) for each in pieces], unk_id=2))
    metaspace = {"replacement": "▁", "prepend_scheme": "always"}
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**metaspace)]
    )
    raw.decoder = decoders.Metaspace(**metaspace)
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = fast(raw, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")
    return tokenizer, T5EncoderModel(
        T5Config(vocab_size=len(pieces) + 4, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
    )


def gemma_parts(_):
    """Its embedding module scales what it looks up."""
    merges = [("c", "a"), ("ca", "t"), ("▁", "cat"), ("▁", "a"), ("d", "o"), ("do", "g"), ("▁", "dog")]
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *"abcdgost().,\"-'"]
    vocabulary = {each: i for i, each in enumerate(dict.fromkeys([*pieces, *(a + b for a, b in merges)]))}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer = fast(raw, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>", bos_token="<bos>")
    return tokenizer, Gemma3TextModel(Gemma3TextConfig(vocab_size=len(vocabulary) + 4, **DECODER))


def qwen_parts(_):
    """A word at the start of a text has another id than after a space."""
    merges = [("c", "a"), ("ca", "t"), ("Ġ", "cat"), ("Ġ", "a"), ("d", "o"), ("do", "g"), ("Ġ", "dog")]
    vocabulary = pairs(*merges)
    vocabulary["<|endoftext|>"] = len(vocabulary)
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    tokenizer = fast(raw, pad_token="<|endoftext|>", unk_token="<|endoftext|>", eos_token="<|endoftext|>")
    return tokenizer, Qwen2Model(Qwen2Config(vocab_size=len(vocabulary) + 4, **DECODER))


def fast(raw, **special):
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=16, **special)


MAKES = {"clip": clip_parts, "t5": t5_parts, "gemma": gemma_parts, "qwen": qwen_parts}


@pytest.fixture(params=list(MAKES))
def pipe(request, tmp_path):
    torch.manual_seed(0)
    tokenizer, encoder = MAKES[request.param](tmp_path)
    return SimpleNamespace(tokenizer=tokenizer, text_encoder=encoder.eval(), kind=request.param)


def read(pipe, text):
    return pipe.text_encoder(**pipe.tokenizer(text, return_tensors="pt")).last_hidden_state


def pieces(pipe, text):
    return pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer(text).input_ids)


FORMS = {
    "clip": ["cat</w>"],
    "t5": ["▁cat", "cat"],
    "gemma": ["▁cat", "cat"],
    "qwen": ["Ġcat", "cat"],
}


def test_a_word_is_its_tokens_in_running_text(pipe):
    rows = adp.TokenRows(pipe, ["cat"])
    assert pipe.tokenizer.convert_ids_to_tokens(rows.ids[0][0]) == FORMS[pipe.kind]
    table = pipe.text_encoder.get_input_embeddings().weight
    assert torch.equal(rows.values[0], table[rows.ids[0][0][0]][None])


@pytest.mark.parametrize(
    "text", ["a cat", "cat", "cat a", "a dog, a cat.", "a (cat)", 'a "cat" a', "cat, a cat"]
)
def test_a_rows_gradient_is_the_tables(pipe, text):
    """Wherever the word stands, and with the same bits of the encoded prompt."""
    rows, table = adp.TokenRows(pipe, ["cat"]), pipe.text_encoder.get_input_embeddings().weight
    plain = read(pipe, text)
    (whole,) = torch.autograd.grad(plain.sin().sum(), table)
    with rows:
        ours = read(pipe, text)
    (found,) = torch.autograd.grad(ours.sin().sum(), rows.values)
    assert torch.equal(ours, plain)
    expected = whole[rows.ids[0][0]].sum(0, keepdim=True)
    assert float(expected.norm()) > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_another_row_is_what_the_table_would_give(pipe):
    """A changed row reads as the changed table does, and every form of the word moves by as much."""
    rows, table = adp.TokenRows(pipe, ["cat"]), pipe.text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        rows.values[0] += 0.5
        with rows:
            ours = read(pipe, "cat, a cat")
        table[rows.ids[0][0]] += 0.5
        torch.testing.assert_close(ours, read(pipe, "cat, a cat"))


def test_added_tokens_are_words(pipe):
    names = ["<x>", "<x>_1"]
    pipe.tokenizer.add_tokens(names)
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
    rows, table = adp.TokenRows(pipe, names), pipe.text_encoder.get_input_embeddings().weight
    assert rows.ids[0] == [[i] for i in pipe.tokenizer.convert_tokens_to_ids(names)]
    with rows:
        found = torch.autograd.grad(read(pipe, "<x>_1 cat, a <x>.").sin().sum(), rows.values)[0]
    whole = torch.autograd.grad(read(pipe, "<x>_1 cat, a <x>.").sin().sum(), table)[0]
    assert float(found.norm(dim=1).min()) > 0
    torch.testing.assert_close(found, whole[[each for (each,) in rows.ids[0]]], rtol=1e-5, atol=1e-7)


def test_a_word_of_several_tokens_is_refused_with_its_pieces(pipe):
    with pytest.raises(
        adp.InputError, match=r"dots is no token .* text_encoder, which reads it as \d: .*d.*s"
    ) as refusal:
        adp.TokenRows(pipe, ["cat", "dots"])
    assert "add_tokens" in str(refusal.value)


@pytest.mark.parametrize("word", ["", "a cat", " cat"])
def test_what_is_no_word_is_refused(pipe, word):
    with pytest.raises(adp.InputError, match="one word at a time"):
        adp.TokenRows(pipe, [word])


def test_unknown_words_and_capitals(pipe):
    """CLIP reads capitals as small letters; for the others they are other words."""
    if pipe.kind == "clip":
        assert adp.TokenRows(pipe, ["CAT"]).ids == adp.TokenRows(pipe, ["cat"]).ids
        with pytest.raises(adp.InputError, match="cat and Cat are the same token"):
            adp.TokenRows(pipe, ["cat", "Cat"])
    else:
        with pytest.raises(adp.InputError, match="Cat is no token"):
            adp.TokenRows(pipe, ["Cat"])


def test_a_word_that_no_prompt_holds_is_an_error(pipe):
    rows = adp.TokenRows(pipe, ["cat", "dog"])
    with pytest.raises(adp.InputError, match=r"no prompt that text_encoder read .* holds dog"), rows:
        read(pipe, "a cat")
    with pytest.raises(adp.InputError, match="no prompt was encoded"), rows:
        pass
    with torch.no_grad(), rows:  # nobody wants a gradient
        read(pipe, "a cat")
    with pytest.raises(KeyError), rows:  # another error is not covered up
        raise KeyError


def test_a_token_that_the_table_does_not_have_is_refused(pipe):
    pipe.tokenizer.add_tokens([f"<{i}>" for i in range(9)])
    with pytest.raises(adp.InputError, match="resize_token_embeddings"):
        adp.TokenRows(pipe, ["<8>"])


def test_each_text_encoder_has_its_own_ids(tmp_path):
    torch.manual_seed(0)
    (one, first), (two, second) = clip_parts(tmp_path), t5_parts(tmp_path)
    pipe = SimpleNamespace(tokenizer=one, text_encoder=first, tokenizer_2=two, text_encoder_2=second)
    rows = adp.TokenRows(pipe, ["cat"])
    assert rows.ids == [[[one.get_vocab()["cat</w>"]]], [[two.get_vocab()["▁cat"], two.get_vocab()["cat"]]]]
    with pytest.raises(adp.InputError, match="no prompt that text_encoder_2 read"), rows:
        first(**one("a cat", return_tensors="pt"))
    pipe = SimpleNamespace(tokenizer=one, text_encoder=first, tokenizer_2=None, text_encoder_2=second)
    with pytest.raises(adp.InputError, match="text_encoder_2 but no tokenizer_2"):
        adp.TokenRows(pipe, ["cat"])
    with pytest.raises(adp.InputError, match="no text encoder"):
        adp.TokenRows(SimpleNamespace(), ["cat"])


@pytest.fixture
def sampler(tmp_path):
    """Stable Diffusion with a tokenizer of byte pairs."""
    torch.manual_seed(0)
    made = of("sd").make()
    made.tokenizer, made.text_encoder = clip_parts(tmp_path)
    return adp.FlowSampler.from_pipeline(made.to("cpu"), steps=2, guidance_scale=3.0)


def test_a_new_token_starts_from_the_word(sampler):
    pipe = sampler.model.pipe
    table = pipe.text_encoder.get_input_embeddings().weight.detach().clone()
    learned = TokenVectors(sampler, "<x>", "cat", vectors=2)
    expected = table[pipe.tokenizer("cat").input_ids[1]]
    assert torch.equal(learned.variables["token_0"], expected.expand(2, -1))
    plain = sampler.encode("a cat cat, dog")["prompt_embeds"]
    assert torch.equal(learned.encode(["a <x>, dog"])["prompt_embeds"], plain)
    for taken in ("<x>", "CAT", "dog"):
        with pytest.raises(adp.InputError, match="a token already"):
            TokenVectors(sampler, taken, "cat")


def test_places_are_those_in_the_encoders_sequence(sampler):
    tokenizer = sampler.model.pipe.tokenizer
    learned = PromptRows(sampler, "<x>", "cat")
    prompts = ["a <x>", "cat, catcat <x> dots", "dots (<x>) cat", 'a "<x>".', "<x> a <x>"]
    found = learned.places(prompts, "<x>")
    for prompt, at in zip(prompts, found, strict=True):
        ids = tokenizer(prompt.replace("<x>", "cat")).input_ids
        assert tokenizer.decode([ids[at]]).strip() == "cat"
    assert found == [2, 5, 5, 3, 1]
    with torch.no_grad():
        learned.row.fill_(7.0)
    embeds = learned.encode(["cat <x> a <x>, cat", "a (<x>)"])["prompt_embeds"]
    assert (embeds == 7.0).all(2).nonzero().tolist() == [[0, 2], [0, 4], [1, 3]]


def test_a_word_beyond_the_limit_is_an_error(sampler):
    learned, long = PromptRows(sampler, "<x>", "cat"), "dog " * 14
    assert learned.places(["dog " * 13 + "<x>"], "<x>") == [14]
    for refused in (lambda: learned.places([long + "<x>"], "<x>"), lambda: learned.encode([long + "<x>"])):
        with pytest.raises(adp.InputError, match=r"'cat' .* is cut off: it is token 15 .* takes 16"):
            refused()
    vectors = TokenVectors(sampler, "<y>", "cat")
    with pytest.raises(adp.InputError, match=r"<y> is cut off.*reads 16 tokens"):
        vectors.encode([long + "<y>"])
