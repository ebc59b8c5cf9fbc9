"""Words of a prompt as tokens, and rows of a text encoder's embedding table as variables.

The tokens of a word are those that the tokenizer makes of it in running text: the tokens of the text up to the word's
end, less those of the text before the word:

    tokens(w) = T(text[: end of w]) minus T(text[: start of w])

So byte pairs ("cat</w>"), sentence pieces ("▁cat") and byte-level pairs ("Ġcat", and "cat" where a text starts)
are one case, and no marker is named here. With the word's forms k_0 (after a space), k_1, ... and the table E

    e_i = r                      where token i of the prompt is k_0
    e_i = E[k_j] + r - E[k_0]    where it is another form k_j

This is the table's own embedding as long as r = E[k_0], and dL/dr is the sum of the table's gradients at all forms.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._types import InputError
from .text_device import own_device

__all__ = [
    "TokenRows",
    "alone",
    "forms",
    "place",
    "position",
    "read_whole",
    "rows_in_force",
    "sequence",
    "tables",
    "text_encoders",
    "tokenizers",
]

_CONTEXTS = (("a ", ""), ("", " a"), ("a ", "."), ("a (", ")"), ('a "', '"'), ("a-", ", a"))
"""The text before and after a word in running text; the first pair is the usual one."""


def text_encoders(pipe: Any) -> list[tuple[str, Any, Any]]:
    """Find the text encoders of a pipeline.

    Args:
        pipe: the pipeline.

    Returns:
        (name, tokenizer, encoder) of each, in order.

    Raises:
        InputError: there is none, or one has no tokenizer.
    """
    found = []
    for name in sorted(name for name in vars(pipe) if name.startswith("text_encoder")):
        encoder, ours = getattr(pipe, name), name.replace("text_encoder", "tokenizer")
        if not isinstance(encoder, nn.Module):
            continue
        tokenizer = getattr(pipe, ours, None)
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor contains it
        if tokenizer is None:
            raise InputError(
                f"{type(pipe).__name__} has a {name} but no {ours}, so its tokens of a prompt are unknown"
            )
        found.append((name, tokenizer, encoder))
    if not found:
        raise InputError(f"{type(pipe).__name__} has no text encoder, so no token has an embedding row")
    return found


def tokenizers(pipe: Any) -> dict[str, Any]:
    """The tokenizers of a pipeline, by name."""
    return {
        name: part
        for name, part in vars(pipe).items()
        if name.startswith("tokenizer") and callable(part) and hasattr(part, "convert_ids_to_tokens")
    }


def alone(token: str) -> str:
    """A regular expression for a token as a separate word: in "<new>," and "(<new>)", not in "<new>x" or "<new>_1"."""
    return rf"(?<![\w<]){re.escape(token)}(?![\w>])"


def read_whole(pipe: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a tokenizer of a pipeline, and warn if a part of the text is lost.

    Args:
        pipe: the pipeline.
        name: the name of the tokenizer.
        *args: the call's positional arguments.
        **kwargs: the call's keyword arguments.

    Returns:
        the tokenizer's result.

    Raises:
        InputError: a token that is being learned (`TokenRows`) is cut off.
    """
    tokenizer = getattr(pipe, name)
    text = args[0] if args else kwargs.get("text")
    texts = [text] if isinstance(text, str) else text
    if isinstance(texts, list | tuple) and all(isinstance(each, str) for each in texts):
        special = kwargs.get("add_special_tokens", True)
        if kwargs.get("truncation") not in (None, False, "do_not_truncate"):
            limit = int(kwargs.get("max_length") or tokenizer.model_max_length)
            for each in texts:
                _refuse_cut(pipe, name, each, limit, {"add_special_tokens": special})
        for each in texts:
            _warn_of_vectors(pipe, name, each)
    return tokenizer(*args, **kwargs)


def _refuse_cut(pipe: Any, name: str, text: str, limit: int, how: dict[str, Any]) -> None:
    tokenizer, encoder = getattr(pipe, name), name.replace("tokenizer", "text_encoder")
    whole = list(tokenizer(text, **how).input_ids)
    if len(whole) <= limit:
        return
    kept = list(tokenizer(text, truncation=True, max_length=limit, **how).input_ids)
    same = next((i for i, each in enumerate(kept) if each != whole[i]), len(kept))
    rest = len(kept) - same  # special tokens after the gap, or the text's end if its beginning is cut off
    lost = whole[same : len(whole) - rest]
    words = tokenizer.decode(lost).strip()
    for reading in rows_in_force(getattr(pipe, encoder, None)):
        for word in reading.words_among(lost, kept):
            raise InputError(
                f"{word} is cut off, so it would have no gradient: {encoder} reads {limit} tokens of a prompt, special "
                f"ones counted, and this one has {len(whole)}: {words!r} is lost; shorten the prompt"
            )
    warnings.warn(
        f"{encoder} reads {limit} tokens of a prompt, special ones counted, and this one has {len(whole)}, so "
        f"{words!r} is lost; shorten the prompt",
        stacklevel=2,
    )


def _warn_of_vectors(pipe: Any, name: str, text: str) -> None:
    """Warn of learned tokens (textual inversions) that one of several tokenizers lacks, or has more vectors of."""
    own = getattr(pipe, name)
    for other, tokenizer in tokenizers(pipe).items():
        added = tokenizer.get_added_vocab()
        for token in added.keys() - set(tokenizer.all_special_tokens):
            if not re.search(alone(token), text):
                continue
            lost, more = token not in own.get_vocab(), f"{token}_1"
            if lost:
                what = f"a token of {other} alone, so {name} reads it as any other text"
            elif tokenizer is own and more in added and more not in text:
                what = "a token of several vectors, of which this pipeline gives its text encoder the first alone"
            else:
                continue
            warnings.warn(f"{token} is {what}; load its vectors for every text encoder", stacklevel=3)


def rows_in_force(encoder: Any) -> "Iterator[_Reading]":
    """The tables of those `TokenRows` whose `with` is active for a text encoder.

    Args:
        encoder: the text encoder.

    Yields:
        its table with the rows, once for each hook.
    """
    for module in encoder.modules() if isinstance(encoder, nn.Module) else ():
        for hook in module._forward_pre_hooks.values():
            if isinstance(reading := getattr(hook, "__self__", None), _Reading):
                yield reading


def tables(encoder: Any) -> list[nn.Module]:
    """The modules in which a text encoder looks up tokens; T5 calls a second one that shares the weight."""
    weight = encoder.get_input_embeddings().weight
    return [module for module in encoder.modules() if getattr(module, "weight", None) is weight]


def place(tokenizer: Any, text: str, start: int, end: int) -> tuple[int, list[int]]:
    """Find the tokens of text[start:end] within a text.

    A token that consists of space alone belongs to no word.

    Args:
        tokenizer: the tokenizer.
        text: the text.
        start: the first character of the word.
        end: the character after the word.

    Returns:
        the index of the word's first token, special tokens not counted, and the ids of the word's tokens.

    Raises:
        InputError: the tokenizer joins the word with its neighbors.
    """
    whole, before, upto = (_ids(tokenizer, part) for part in (text, text[:start].rstrip(), text[:end]))
    if whole[: len(upto)] != upto or upto[: len(before)] != before:
        raise InputError(
            f"{text[start:end]!r} is no token of its own in {text!r}: the tokenizer reads it as one with its "
            f"neighbors, {_listed(tokenizer, whole)}; put spaces around it"
        )
    first = len(before)
    while first < len(upto) and not tokenizer.decode([upto[first]]).strip():
        first += 1
    return first, upto[first:]


def sequence(tokenizer: Any, text: str, length: int | None = None) -> list[int]:
    """The ids of a text as its encoder receives them: with special tokens, cut off and padded.

    Args:
        tokenizer: the tokenizer.
        text: the text.
        length: the number of tokens; if None, the tokenizer's own limit without padding.

    Returns:
        the ids.
    """
    ids = tokenizer(text, truncation=True, max_length=length, padding="max_length" if length else False)
    return [int(each) for each in ids.input_ids]


def position(tokenizer: Any, text: str, start: int, end: int, length: int | None = None) -> int:
    """Find the single token of text[start:end] in `sequence(tokenizer, text, length)`.

    Args:
        tokenizer: the tokenizer.
        text: the text.
        start: the first character of the word.
        end: the character after the word.
        length: the number of tokens, as in `sequence`.

    Returns:
        the index of the token.

    Raises:
        InputError: the word is more than one token, or is joined with its neighbors, or is cut off.
    """
    first, ids = place(tokenizer, text, start, end)
    if len(ids) != 1:
        raise InputError(
            f"{text[start:end]!r} is no single token in {text!r}, but {_listed(tokenizer, ids) or 'none'}; choose "
            "another word"
        )
    upto, row = _ids(tokenizer, text[:end]), sequence(tokenizer, text, length)
    for i in range(len(row) - len(upto) + 1):
        if row[i : i + len(upto)] == upto:
            return i + first
    raise InputError(
        f"{text[start:end]!r} in {text!r} is cut off: it is token {first + 1} of the text, and the text encoder takes "
        f"{len(row)} with the special ones; write it earlier"
    )


def forms(name: str, tokenizer: Any, word: str) -> list[int]:
    """Find the ids that a word has in running text.

    Args:
        name: the name of the text encoder, for messages.
        tokenizer: its tokenizer.
        word: a single word, or an added token such as "<new>".

    Returns:
        the ids, that after a space first.

    Raises:
        InputError: the word is empty or contains spaces, is unknown, or is more than one token.
    """
    if not word or word.split() != [word]:
        raise InputError(f"{word!r} is no word: give one word at a time, without spaces")
    found: list[int] = []
    for left, right in _CONTEXTS:
        try:
            _, ids = place(tokenizer, left + word + right, len(left), len(left) + len(word))
        except InputError:
            if not found:
                raise
            continue
        known = len(ids) == 1 and (ids[0] != tokenizer.unk_token_id or word == tokenizer.unk_token)
        if not (known or found):
            raise InputError(_refusal(name, tokenizer, word, ids))
        if known and ids[0] not in found:
            found.append(ids[0])
    return found


def _refusal(name: str, tokenizer: Any, word: str, ids: list[int]) -> str:
    way_out = (
        "choose a word that is a single token, or make it one with tokenizer.add_tokens and "
        "text_encoder.resize_token_embeddings"
    )
    if not ids or tokenizer.unk_token_id in ids:
        return f"{word} is no token of the tokenizer of {name}, which reads it as an unknown one; {way_out}"
    return (
        f"{word} is no token of the tokenizer of {name}, which reads it as {len(ids)}: "
        f"{_listed(tokenizer, ids)}; {way_out}"
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return [int(each) for each in tokenizer(text, add_special_tokens=False).input_ids] if text else []


def _listed(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(map(str, tokenizer.convert_ids_to_tokens(ids)))


class TokenRows:
    """Rows of each text encoder's embedding table, as variables to be optimized.

    `with rows: cond = sampler.encode("a <cat> on a dog")` encodes the prompt with `rows.values` in place of the table's
    rows. The table itself is not changed, and nothing else is trained. The conditioning is then a function of the rows,
    and so are the images; no step of the sampling encodes again. Each row belongs to a token: where that token is a
    part of another word, the row is used there too.

    Args:
        pipe: the pipeline; its text encoders may be frozen.
        words: each is a single token of every tokenizer, as it stands in running text. A learned word with several
            vectors is given by the names of its tokens, "<cat>", "<cat>_1".

    Raises:
        InputError: there is no text encoder; a word is unknown, more than one token, or the same token as another; or,
            at the end of the `with` and if gradients were enabled, no prompt held a word, so that its row would have no
            gradient.

    Examples:
        >>> import adjointdpm as adp
        >>> sampler = adp.load_bundled("emoji", steps=2)
        >>> rows = adp.TokenRows(sampler.model.pipe, ["cat"])
        >>> with rows:
        ...     cond = sampler.encode("a cat")
        >>> sampler(sampler.noise(1), cond).mean().backward()
        >>> rows.values[0].grad.shape == rows.values[0].shape
        True
    """

    def __init__(self, pipe: Any, words: Sequence[str]) -> None:
        self.words = [words] if isinstance(words, str) else list(words)
        self._readings: list[_Reading] = []
        self.ids: list[list[list[int]]] = []
        """For each text encoder and word, the ids of the word's forms, that after a space first."""
        self.values: list[Float[Tensor, "words width"]] = []
        """One tensor for each text encoder, initially the table's rows; it requires a gradient."""
        if not self.words:
            raise InputError("TokenRows needs at least one word")
        for name, tokenizer, encoder in text_encoders(pipe):
            ids = [forms(name, tokenizer, word) for word in self.words]
            table = encoder.get_input_embeddings()
            self._refuse_ids(name, ids, len(table.weight))
            start = table.weight[[k[0] for k in ids]].detach().float().to(own_device(pipe), copy=True)
            self.ids.append(ids)
            self.values.append(start.clone().requires_grad_())
            self._readings.append(_Reading(name, encoder, self.words, ids, self.values[-1], start))

    def __enter__(self) -> "TokenRows":
        for reading in self._readings:
            reading.open()
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        for reading in self._readings:
            reading.close()
        if kind is None and torch.is_grad_enabled():
            self._refuse_unread()

    def _refuse_ids(self, name: str, ids: list[list[int]], rows: int) -> None:
        owners: dict[int, str] = {}
        for word, own in zip(self.words, ids, strict=True):
            if max(own) >= rows:
                raise InputError(
                    f"{word} is token {max(own)}, but {name} has an embedding table of {rows} rows; call "
                    f"{name}.resize_token_embeddings(len(tokenizer)) after adding tokens"
                )
            for each in own:
                if each in owners:
                    raise InputError(
                        f"{owners[each]} and {word} are the same token of {name}, so they have one row: "
                        "name it once"
                    )
                owners[each] = word

    def _refuse_unread(self) -> None:
        if not any(reading.calls for reading in self._readings):
            raise InputError(
                f"no prompt was encoded within the `with` of TokenRows, so the rows of {', '.join(self.words)} have "
                "no gradient; encode inside it"
            )
        if not any(reading.differentiated for reading in self._readings):
            return
        for reading in self._readings:
            unmet = [word for i, word in enumerate(self.words) if i not in reading.met]
            if unmet:
                raise InputError(
                    f"no prompt that {reading.name} read within the `with` of TokenRows holds {', '.join(unmet)}, so "
                    "the gradient would be zero; write it into the prompt as it was given, as a word of its own and "
                    "before the text encoder's limit, or leave it out of TokenRows"
                )


class _Reading(TorchFunctionMode):
    """One text encoder's table, with other rows in place of some of its own.

    The rows are replaced at the look-up in the table. So what the module does with an embedding afterwards, such as
    Gemma's scaling, applies to the rows too.
    """

    def __init__(
        self, name: str, encoder: Any, words: list[str], ids: list[list[int]], rows: Tensor, start: Tensor
    ) -> None:
        super().__init__()
        self.name, self.calls, self.differentiated, self.met = name, 0, False, set[int]()
        self._encoder, self._words, self._ids, self._rows, self._start = encoder, words, ids, rows, start
        self._hooks: list[Any] = []

    def open(self) -> None:
        self.calls, self.differentiated, self.met = 0, False, set()
        for table in tables(self._encoder):
            self._hooks.append(table.register_forward_pre_hook(self._begin))
            self._hooks.append(table.register_forward_hook(self._end, always_call=True))

    def close(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def words_among(self, lost: list[int], kept: list[int]) -> list[str]:
        """The words that have a token among the lost ones and none among the kept ones."""
        return [
            word
            for word, ids in zip(self._words, self._ids, strict=True)
            if not set(ids).isdisjoint(lost) and set(ids).isdisjoint(kept)
        ]

    def _begin(self, *_: Any) -> None:
        self.__enter__()

    def _end(self, *_: Any) -> None:
        self.__exit__(None, None, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return self._replaced(args[0], out) if func is nn.functional.embedding else out

    def _replaced(self, tokens: Tensor, out: Tensor) -> Tensor:
        self.calls += 1
        self.differentiated |= torch.is_grad_enabled()
        for i, (row, start, ids) in enumerate(zip(self._rows, self._start, self._ids, strict=True)):
            for form in ids:
                here = (tokens == form)[..., None]
                if bool(here.any()):
                    if torch.is_grad_enabled():
                        self.met.add(i)
                    there = row.to(out) if form == ids[0] else out + (row - start).to(out)
                    out = torch.where(here, there, out)
        return out
