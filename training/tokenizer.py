"""A CLIPTokenizer whose vocabulary is the captions' words, each of them one token.

Byte-pair merges are learned on the word list until nothing is left to merge. Encoding replays the
merges in the order they were learned, so every word of the list comes out whole; the byte alphabet
stays in the vocabulary, so any other text still encodes, in pieces.
"""

from collections import Counter
from itertools import pairwise

from render import COLOURS, Renderer, caption
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

__all__ = ["MAX_LENGTH", "build"]

MAX_LENGTH = 16
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
ALSO_KNOWN = ("the", "and", "with", "of", "in", "at", "photo", "picture", "emoji", "brown", *COLOURS)


def build(renderer: Renderer) -> CLIPTokenizer:
    """The tokenizer for a renderer's captions; checks that each caption survives a round trip."""
    texts = [
        caption(concept, colour, style)
        for number, concept in enumerate(renderer.concepts)
        for style in renderer.styles
        for colour in (None, renderer.colours[number % len(renderer.colours)])
    ]
    words = sorted({word for text in texts for word in text.split()} | set(ALSO_KNOWN))
    merges = learned(words)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += [left + right for left, right in merges] + [BOS, EOS]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)
    _check(tokenizer, words, texts)
    return tokenizer


def learned(words: list[str]) -> list[tuple[str, str]]:
    """Merges of the most frequent pair, first in the alphabet where there are several, until no pair is left.

    The trainer of `tokenizers` breaks ties at random, so two builds would number a few words differently.
    """
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for word in pieces for pair in pairwise(word)):
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        pieces = [_merged(word, merges[-1]) for word in pieces]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


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
