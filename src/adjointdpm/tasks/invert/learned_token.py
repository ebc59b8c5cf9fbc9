"""What an effect is learned into: rows of the embedding table, or of the encoded prompt.

TokenVectors   e_i = v_k where token i is the k-th of the new word       portable: a textual inversion
PromptRows     c_i = v_k at the new word's places in the encoded prompt  the paper's; of this encoder's output
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..._types import Cond, InputError
from ...files.atomic_write import write_file
from ...files.diffusers_files import save_textual_inversion
from ...pipelines.token_embeddings import TokenRows, alone, forms, position, sequence, tables, text_encoders
from ...samplers.base import Sampler
from ...samplers.flow_sampler import FlowSampler
from ..sampling import pipeline_of

__all__ = ["Learned", "PromptRows", "TokenVectors", "worded"]


MARK = "\0"


def worded(prompt: str, token: str, word: str) -> str:
    """Return a prompt with another word, or none, for the token; "a" and "an" as the next word wants.

    Raises:
        InputError: the token is not in the prompt.
    """
    return _placed(prompt, token, word)[0]


def _placed(prompt: str, token: str, word: str) -> tuple[str, list[int]]:
    """Return a prompt with another word for the token, and where that word begins, each time.

    Raises:
        InputError: the token is not in the prompt.
    """
    if not token or not re.search(alone(token), prompt):
        raise InputError(f"the prompt {prompt!r} must hold the token {token} as a word of its own")
    text = re.sub(
        alone(token) if word else rf"\s*{alone(token)}", lambda _: MARK + word if word else "", prompt
    )
    text = " ".join(text.split())
    text = re.sub(rf"\b([aA])n? (?={MARK}?[aeiou])", r"\1n ", text)
    text = re.sub(rf"\b([aA])n (?={MARK}?[^{MARK}aeiou])", r"\1 ", text)
    first, *rest = text.split(MARK)
    starts = [len(first)]
    for part in rest:
        starts.append(starts[-1] + len(part))
    return text.replace(MARK, ""), starts[:-1]


class Learned(ABC):
    """A new word of a sampler's prompts."""

    variables: Mapping[str, Tensor]
    initializers: tuple[str, ...]
    """Known words from which it may start; it starts from the first unless they are screened."""

    @abstractmethod
    def start_from(self, word: str) -> None:
        """Set the variables to those of one of the initial words."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Cond:
        """The conditioning of prompts that hold the word, with a graph to the variables."""

    @abstractmethod
    def save(self, folder: Path) -> Path:
        """Write it for other tools; returns where."""

    def loading(self, path: Path) -> list[str]:
        """Return lines of Python or of a shell, each of which loads what was saved."""
        return [f'rows = safetensors.torch.load_file("{path}")']


class TokenVectors(Learned):
    """A new token of the pipeline's tokenizers and text encoders, which grow by it.

    Args:
        sampler: over a pipeline with a tokenizer.
        token: its name, such as "<effect>".
        initializer: a known single-token word whose vector it starts from, or several, which `invert` screens.
        vectors: how many tokens the word stands for; the pipeline expands it itself.

    Raises:
        InputError: the token exists, an initializer is no token or is given twice, vectors < 1.
    """

    def __init__(
        self, sampler: Sampler, token: str, initializer: str | Sequence[str], vectors: int = 1
    ) -> None:
        if vectors < 1:
            raise InputError(f"a word needs at least one vector, but is given {vectors}")
        if token.split() != [token]:
            raise InputError(f"a new word has no spaces in it, but is {token!r}")
        self.sampler, self.token, pipe = sampler, token, pipeline_of(sampler)
        names = [token, *(f"{token}_{k}" for k in range(1, vectors))]
        self.initializers = _words(initializer)
        self.starts = TokenRows(pipe, self.initializers)
        for name, tokenizer, _ in text_encoders(pipe):
            taken = [each for each in names if _known(name, tokenizer, each)]
            if taken:
                raise InputError(
                    f"{', '.join(taken)} is a token already, of {name}; choose another name, or load the model again"
                )
        for _, tokenizer, encoder in text_encoders(pipe):
            tokenizer.add_tokens(names)
            table = encoder.requires_grad_(False).get_input_embeddings().weight
            if len(table) < len(tokenizer):  # some tables have rows to spare
                encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
                encoder.get_input_embeddings().weight.requires_grad_(False)
        if isinstance(sampler, FlowSampler) and sampler.model.vocabulary is not None:
            sampler.model.vocabulary = sampler.model.vocabulary | {token}
        self.rows = TokenRows(pipe, names)
        self.variables = {f"token_{i}": each for i, each in enumerate(self.rows.values)}
        self.start_from(self.initializers[0])

    def start_from(self, word: str) -> None:
        """Set every vector to that of one of the initial words."""
        number = self.initializers.index(word)
        with torch.no_grad():
            for ours, theirs in zip(self.rows.values, self.starts.values, strict=True):
                ours.copy_(theirs[number].expand_as(ours))

    def encode(self, prompts: Sequence[str]) -> Cond:
        with self.rows:
            return self.sampler.encode(prompts)

    def save(self, folder: Path) -> Path:
        path = folder / "learned_embeds.safetensors"
        save_textual_inversion(path, self.token, *self.rows.values)
        return path

    def loading(self, path: Path) -> list[str]:
        return [
            f'pipe.load_textual_inversion("{path}")',
            f'adjointdpm sample --prompt "a {self.token} cat" --learned_embeds {path}',
        ]


class PromptRows(Learned):
    """Rows of the encoded prompt, at the places of the new word; what other words are there does not matter to them.

    As in the paper. The rows belong to this text encoder and to no tokenizer; use `TokenVectors` for other tools.

    Args:
        sampler: over a pipeline whose conditioning has `prompt_embeds` with one row a token.
        token: its name, such as "<effect>".
        initializer: a known single-token word that is encoded in its place, or several, which `invert` screens.

    Raises:
        InputError: an initializer is no single token or is given twice, or the rows of `prompt_embeds` (batch, tokens,
            width) are not those of one text encoder's tokens.
    """

    def __init__(self, sampler: Sampler, token: str, initializer: str | Sequence[str]) -> None:
        self.sampler, self.token = sampler, token
        self.initializers = _words(initializer)
        self.initializer = initializer = self.initializers[0]
        pipe = pipeline_of(sampler)
        self.encoders = text_encoders(pipe)
        cond, rows = self._encoded([initializer])
        if "prompt_embeds" not in cond or cond["prompt_embeds"].ndim != 3:
            raise InputError(
                "this pipeline has no prompt_embeds (batch, tokens, width); learn a token instead"
            )
        length = cond["prompt_embeds"].shape[1]
        self.encoders = [
            (name, tokenizer, encoder)
            for name, tokenizer, encoder in self.encoders
            if sequence(tokenizer, initializer, length) in rows[name]
        ]
        if not self.encoders:
            raise InputError(
                f"the {length} rows of this pipeline's prompt_embeds are not the tokens of one text encoder, so the "
                "word's row is not known; learn a token instead (TokenVectors)"
            )
        for word in self.initializers:
            for name, tokenizer, _ in self.encoders:
                forms(name, tokenizer, word)
        self.row = self._row().clone().requires_grad_()
        self.variables = {"row": self.row}

    def start_from(self, word: str) -> None:
        """Set the row to that of one of the initial words, which is encoded in the token's place from then on."""
        self.initializer = word
        with torch.no_grad():
            self.row.copy_(self._row())

    def _row(self) -> Tensor:
        """Return the row of the initial word that stands in the token's place, encoded alone."""
        embeds = self._encoded([self.initializer])[0]["prompt_embeds"]
        ((place,),) = self._places([(self.initializer, [0])], embeds.shape[1])
        return embeds[0, place].detach()

    def places(self, prompts: Sequence[str], token: str) -> list[int]:
        """Return the new word's place in each prompt's tokens, special ones counted; the first, if it is repeated.

        Raises:
            InputError: it is not in the prompt, no token of its own there, or cut off.
        """
        texts = [_placed(each, token, self.initializer) for each in prompts]
        return [found[0] for found in self._places(texts, None)]

    def encode(self, prompts: Sequence[str]) -> Cond:
        texts = [_placed(each, self.token, self.initializer) for each in prompts]
        self._places(texts, None)  # an error before the work
        cond, rows = self._encoded([text for text, _ in texts])
        embeds = cond["prompt_embeds"]
        places = self._places(texts, embeds.shape[1])
        for name, tokenizer, _ in self.encoders:
            for text, _ in texts:
                if sequence(tokenizer, text, embeds.shape[1]) not in rows[name]:
                    raise InputError(
                        f"this pipeline changes {text!r} before {name} reads it, so the place of {self.token} is "
                        "not known; write it in lower case and without markup, or learn a token (TokenVectors)"
                    )
        here = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        for row, found in zip(here, places, strict=True):
            row[found] = True
        return cond.replace(prompt_embeds=torch.where(here[:, :, None], self.row.to(embeds), embeds))

    def _places(self, texts: Sequence[tuple[str, list[int]]], length: int | None) -> list[list[int]]:
        """Return all places of the initializer in each text, of which its characters are known.

        Raises:
            InputError: the text encoders have the word at different places.
        """
        found = []
        for text, starts in texts:
            ways = [
                [position(tokenizer, text, s, s + len(self.initializer), length) for s in starts]
                for _, tokenizer, _ in self.encoders
            ]
            if any(way != ways[0] for way in ways):
                raise InputError(
                    f"the text encoders of this pipeline have {self.token} at different places of {text!r}; learn a "
                    "token instead (TokenVectors)"
                )
            found.append(ways[0])
        return found

    def _encoded(self, texts: list[str]) -> tuple[Cond, dict[str, list[list[int]]]]:
        """Return the encoded texts without a graph, and the rows of ids that each text encoder was given."""
        rows: dict[str, list[list[int]]] = {name: [] for name, *_ in self.encoders}
        hooks = [
            table.register_forward_pre_hook(_recording(rows[name]))
            for name, _, encoder in self.encoders
            for table in tables(encoder)
        ]
        try:
            with torch.no_grad():
                return self.sampler.encode(texts), rows
        finally:
            for hook in hooks:
                hook.remove()

    def save(self, folder: Path) -> Path:
        path = folder / "prompt_rows.safetensors"
        write_file(path, save({self.token: self.row.detach().cpu()[None]}, {"format": "pt"}))
        return path


def _words(initializer: str | Sequence[str]) -> tuple[str, ...]:
    """Return the initial words, each once.

    Raises:
        InputError: there is none, or one is given twice.
    """
    words = (initializer,) if isinstance(initializer, str) else tuple(initializer)
    if not words or len(set(words)) < len(words):
        raise InputError(
            f"the initial words of a token are {', '.join(words) or 'missing'}; give one or more, each once"
        )
    return words


def _known(name: str, tokenizer: Any, word: str) -> bool:
    """Return whether a name is a tokenizer's already, as a token or as a word of running text."""
    if word in tokenizer.get_vocab():
        return True
    with suppress(InputError):
        return bool(forms(name, tokenizer, word))
    return False


def _recording(rows: list[list[int]]) -> Callable[[Any, tuple[Tensor, ...]], None]:
    """Return a hook of an embedding table that keeps the ids it is given, row by row."""

    def record(_: Any, args: tuple[Tensor, ...]) -> None:
        rows.extend(args[0].flatten(0, -2).tolist())

    return record
