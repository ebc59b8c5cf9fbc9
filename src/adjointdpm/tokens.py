"""Rows of a text encoder's embedding table as variables, with gradients through a string prompt.

e_i = rows[k] where token i of the prompt is the k-th chosen one, and the table's row elsewhere
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ._types import InputError

__all__ = ["TokenRows"]


class TokenRows:
    """Chosen rows of each text encoder's embedding table, to be optimised.

    `with rows: cond = sampler.encode("a <cat> on a dog")` reads the prompt with `rows.values` in place of
    the table's rows; the table itself is not changed, and nothing else is trained. The conditioning is
    then a function of the rows, and so are the pictures: no step of the sampling encodes again.

    Args:
        pipe: the pipeline; its text encoders may be frozen.
        words: tokens of its tokenizers.
    Raises:
        InputError: a word is none of a tokenizer's tokens.
    """

    def __init__(self, pipe: Any, words: Sequence[str]) -> None:
        self._tables: list[list[Any]] = []
        self._ids: list[list[int]] = []
        self.values: list[Float[Tensor, "words width"]] = []
        """One tensor a text encoder, which starts as the table's rows and wants a gradient."""
        for suffix in ("", "_2", "_3"):
            encoder = getattr(pipe, f"text_encoder{suffix}", None)
            if encoder is None:
                continue
            tokenizer = getattr(pipe, f"tokenizer{suffix}")
            ids = [int(i) for i in tokenizer.convert_tokens_to_ids(list(words))]
            unknown = [w for w, i in zip(words, ids, strict=True) if i == tokenizer.unk_token_id]
            if unknown:
                raise InputError(
                    f"{', '.join(unknown)} is no token of tokenizer{suffix}; add it with tokenizer.add_tokens "
                    "and text_encoder.resize_token_embeddings, or choose a word that is a single token"
                )
            table = encoder.get_input_embeddings()
            # T5 calls a second module that shares the table's weight.
            self._tables.append(
                [m for m in encoder.modules() if getattr(m, "weight", None) is table.weight]
            )
            self._ids.append(ids)
            self.values.append(table.weight[ids].detach().float().clone().requires_grad_())
        self._open: Any = None

    def __enter__(self) -> "TokenRows":
        self._open = self._replaced()
        self._open.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        hooks = [
            table.register_forward_hook(self._hook(ids, rows))
            for tables, ids, rows in zip(self._tables, self._ids, self.values, strict=True)
            for table in tables
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @staticmethod
    def _hook(ids: list[int], rows: Tensor) -> Any:
        def replace(module: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            for row, token in zip(rows, ids, strict=True):
                out = torch.where((args[0] == token)[..., None], row.to(out), out)
            return out

        return replace
