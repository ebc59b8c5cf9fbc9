"""What an effect is learned into: rows of the embedding table, or of the encoded prompt.

    TokenVectors   e_i = v_k where token i is the k-th of the new word       portable: a textual inversion
    PromptRows     c_i = v_k at the new word's places in the encoded prompt  the paper's; of this encoder's output

and what it is to do to the pictures of a prompt: what a word of the prompt does, or what an effect does.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from .._types import Cond, InputError
from ..formats import save_textual_inversion
from ..sampler import Sampler
from ..tokens import TokenRows
from .checkpoint import write_file
from .tuning import pipeline_of

__all__ = ["EffectGoal", "Goal", "Learned", "PromptGoal", "PromptRows", "TokenVectors", "worded"]


def worded(prompt: str, token: str, word: str) -> str:
    """A prompt with another word, or none, for the token; "a" and "an" as the next word wants.

    Raises:
        InputError: the token is not in the prompt.
    """
    if token not in prompt.split():
        raise InputError(f"the prompt {prompt!r} must hold the token {token} as a word of its own")
    text = " ".join(word if each == token else each for each in prompt.split()).replace("  ", " ").strip()
    text = re.sub(r"\b([aA])n? (?=[aeiou])", r"\1n ", text)
    return re.sub(r"\b([aA])n (?=[^aeiou])", r"\1 ", text)


class Goal(ABC):
    """What the new word is to do."""

    @abstractmethod
    def targets(self, sampler: Sampler, prompts: Sequence[str], token: str, noise: Tensor) -> Tensor:
        """The pictures that prompts with the new word should give of this noise, row by row; no graph."""


@dataclass(frozen=True)
class PromptGoal(Goal):
    """What the same noise gives with a word that the text encoder knows.

    Args:
        word: such as "sepia"; not used in anything but targets.
    """

    word: str

    def targets(self, sampler: Sampler, prompts: Sequence[str], token: str, noise: Tensor) -> Tensor:
        with torch.no_grad():
            return sampler(noise, sampler.encode([worded(each, token, self.word) for each in prompts]))


@dataclass(frozen=True, eq=False)
class EffectGoal(Goal):
    """An effect on the picture that the same noise gives without the word.

    Args:
        effect: pictures to pictures, such as `metrics.effect("sepia")`.
    """

    effect: Callable[[Tensor], Tensor]

    def __repr__(self) -> str:
        return f"EffectGoal({getattr(self.effect, '__qualname__', type(self.effect).__name__)})"

    def targets(self, sampler: Sampler, prompts: Sequence[str], token: str, noise: Tensor) -> Tensor:
        with torch.no_grad():
            plain = sampler(noise, sampler.encode([worded(each, token, "") for each in prompts]))
            return self.effect(plain)


class Learned(ABC):
    """A new word of a sampler's prompts."""

    variables: Mapping[str, Tensor]

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Cond:
        """The conditioning of prompts that hold the word, with a graph to the variables."""

    @abstractmethod
    def save(self, folder: Path) -> Path:
        """Write it for other tools; returns where."""


class TokenVectors(Learned):
    """A new token of the pipeline's tokenizers and text encoders, which grow by it.

    Args:
        sampler: over a pipeline with a tokenizer.
        token: its name, such as "<effect>".
        initializer: a known single-token word whose vector it starts from.
        vectors: how many tokens the word stands for; the pipeline expands it itself.
    Raises:
        InputError: the token exists, the initializer is no token, vectors < 1.
    """

    def __init__(self, sampler: Sampler, token: str, initializer: str, vectors: int = 1) -> None:
        if vectors < 1:
            raise InputError(f"a word needs at least one vector, but is given {vectors}")
        self.sampler, self.token, pipe = sampler, token, pipeline_of(sampler)
        names = [token, *(f"{token}_{k}" for k in range(1, vectors))]
        start = TokenRows(pipe, [initializer])
        for suffix in ("", "_2", "_3"):
            encoder = getattr(pipe, f"text_encoder{suffix}", None)
            if encoder is None:
                continue
            tokenizer = getattr(pipe, f"tokenizer{suffix}")
            if set(names) & set(tokenizer.get_vocab()):
                raise InputError(
                    f"{token} is a token already; choose another name, or load the model again"
                )
            tokenizer.add_tokens(names)
            wanted = encoder.requires_grad_(False).get_input_embeddings().weight.requires_grad
            encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            encoder.get_input_embeddings().weight.requires_grad_(wanted)
        field = getattr(sampler, "field", None)
        if field is not None and getattr(field, "vocabulary", None) is not None:
            field.vocabulary = field.vocabulary | {token}
        self.rows = TokenRows(pipe, names)
        with torch.no_grad():
            for ours, theirs in zip(self.rows.values, start.values, strict=True):
                ours.copy_(theirs.expand_as(ours))
        self.variables = {f"token_{i}": each for i, each in enumerate(self.rows.values)}

    def encode(self, prompts: Sequence[str]) -> Cond:
        with self.rows:
            return self.sampler.encode(prompts)

    def save(self, folder: Path) -> Path:
        path = folder / "learned_embeds.safetensors"
        save_textual_inversion(path, self.token, *self.rows.values)
        return path


class PromptRows(Learned):
    """Rows of the encoded prompt, at the places of the new word; what other words are there does not matter to them.

    As in the paper. The rows belong to this text encoder and to no tokenizer; use `TokenVectors` for other tools.

    Args:
        sampler: over a pipeline with one tokenizer, whose conditioning has `prompt_embeds`.
        token: its name, such as "<effect>".
        initializer: a known single-token word that is encoded in its place.
    Raises:
        InputError: the initializer is no token, or there is no `prompt_embeds` (batch, tokens, width).
    """

    def __init__(self, sampler: Sampler, token: str, initializer: str) -> None:
        self.sampler, self.token, self.initializer = sampler, token, initializer
        self.tokenizer: Any = pipeline_of(sampler).tokenizer
        self.id = int(self.tokenizer.convert_tokens_to_ids(initializer))
        with torch.no_grad():
            cond = sampler.encode([initializer])
        if "prompt_embeds" not in cond or cond["prompt_embeds"].ndim != 3:
            raise InputError(
                "this pipeline has no prompt_embeds (batch, tokens, width); learn a token instead"
            )
        (place,) = self.places([initializer], "")
        self.row = cond["prompt_embeds"][0, place].detach().clone().requires_grad_()
        self.variables = {"row": self.row}

    def places(self, prompts: Sequence[str], token: str) -> list[int]:
        """Where the new word stands in each prompt's tokens."""
        found = []
        for prompt in prompts:
            text = worded(prompt, token, self.initializer) if token else prompt
            before = text.split().index(self.initializer)
            ids = list(self.tokenizer(text).input_ids)
            nth = text.split()[:before].count(self.initializer)
            where = [i for i, each in enumerate(ids) if each == self.id]
            if len(where) <= nth:
                raise InputError(
                    f"{self.initializer!r} is no single token here; choose another initializer"
                )
            found.append(where[nth])
        return found

    def encode(self, prompts: Sequence[str]) -> Cond:
        with torch.no_grad():
            cond = self.sampler.encode([worded(each, self.token, self.initializer) for each in prompts])
        embeds = cond["prompt_embeds"]
        here = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        here[range(len(prompts)), self.places(prompts, self.token)] = True
        return cond.replace(prompt_embeds=torch.where(here[:, :, None], self.row.to(embeds), embeds))

    def save(self, folder: Path) -> Path:
        path = folder / "prompt_rows.safetensors"
        write_file(path, save({self.token: self.row.detach().cpu()[None]}, {"format": "pt"}))
        return path
