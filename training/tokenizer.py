"""A CLIPTokenizer whose vocabulary is the captions' words, each of them one token.

Byte-pair merges are learned on the word list until nothing is left to merge. Encoding replays the
merges in the order they were learned, so every word of the list comes out whole; the byte alphabet
stays in the vocabulary, so any other text still encodes, in pieces.
"""

import json
import os

from render import COLOURS, Renderer, caption
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

__all__ = ["MAX_LENGTH", "build"]

MAX_LENGTH = 16
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
ALSO_KNOWN = ("the", "and", "with", "of", "in", "at", "photo", "picture", "emoji", "brown", *COLOURS)


def build(renderer: Renderer) -> CLIPTokenizer:
    """The tokenizer for a renderer's captions; checks that each caption survives a round trip."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    texts = [
        caption(concept, colour, style)
        for number, concept in enumerate(renderer.concepts)
        for style in renderer.styles
        for colour in (None, renderer.colours[number % len(renderer.colours)])
    ]
    words = sorted({word for text in texts for word in text.split()} | set(ALSO_KNOWN))
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000, min_frequency=0, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(words, trainer)
    merges = [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += [left + right for left, right in merges] + [BOS, EOS]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)
    _check(tokenizer, words, texts)
    return tokenizer


def _check(tokenizer: CLIPTokenizer, words: list[str], texts: list[str]) -> None:
    for word in words:
        if len(tokenizer(word).input_ids) != 3:
            raise ValueError(f"{word!r} is not one token: {tokenizer.tokenize(word)}")
    for text in texts:
        ids = tokenizer(text).input_ids
        if len(ids) > MAX_LENGTH or tokenizer.decode(ids, skip_special_tokens=True) != text:
            raise ValueError(f"{text!r} does not survive encoding: {tokenizer.tokenize(text)}")


if __name__ == "__main__":
    built = build(Renderer())
    print(f"{len(built)} tokens")
    for example in ("a pixel art red apple on an orange background", "a Zyzzyva, 3 µm", ""):
        print(repr(example), built.tokenize(example))
