"""A negative embedding of its own for each step of a sampling.

    F(x, t, cond) = F(x, t, cond with null_i for its negative embedding),     t_i >= t > t_{i+1}

The step is read from the time, so a solver has to evaluate each step before the end of it, as Euler does; the second
evaluation of Heun is at the time at which the next step begins.
"""

from collections.abc import Callable

from jaxtyping import Float, Float64
from torch import Tensor

from .._types import Cond, InputError, Scalar
from .denoisers import Denoiser, WrappedDenoiser

__all__ = ["NEGATIVE", "NullText"]

NEGATIVE = "negative_prompt_embeds"
"""The name of the negative embedding in a conditioning."""


class NullText(WrappedDenoiser):
    """A denoiser that is guided away from another embedding in each step.

    The negative embedding of the conditioning is not used, and has no gradient. A conditioning without one is passed on
    as it is, without guidance.

    Args:
        denoiser: the denoiser.
        times: t_0 to t_N, decreasing, (N + 1,).
        nulls: the embeddings, (N, batch, tokens, width); they serve the samples of this batch in this order, in the
            dtype of the conditioning's own.

    Raises:
        InputError: when it is called, for another batch or another number of tokens.

    References:
        Mokady et al., 2022, arXiv 2211.09794.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        times: Float64[Tensor, "nodes"],
        nulls: Float[Tensor, "steps batch tokens width"],
    ) -> None:
        super().__init__(denoiser)
        self.times = times  # not a buffer, which a cast of the module to float16 would round
        self.register_buffer("nulls", nulls)
        self.nulls: Tensor

    def step_at(self, t: Scalar) -> int:
        """The number of the step that evaluates the flow at a time.

        Args:
            t: the time.

        Returns:
            i with t_i >= t > t_{i+1}; the nearest step of a time outside the grid.
        """
        return min(max(int((self.times >= t).sum()) - 1, 0), len(self.nulls) - 1)

    def forward(
        self, x: Float[Tensor, "batch *shape"], t: Scalar, cond: Cond
    ) -> Float[Tensor, "batch *shape"]:
        if NEGATIVE not in cond:
            return self.denoiser(x, t, cond)
        null, given = self.nulls[self.step_at(t)], cond[NEGATIVE]
        if null.shape != given.shape:
            raise InputError(
                f"the null embeddings of this sampler are {tuple(null.shape)} in each step, but the conditioning's "
                f"negative embedding is {tuple(given.shape)}; they serve the images that were inverted, all of them "
                "together and in that order"
            )
        return self.denoiser(x, t, cond.replace(**{NEGATIVE: null.to(given.dtype)}))

    def wrapped(self, wrap: Callable[[Denoiser], Denoiser]) -> Denoiser:
        return NullText(self.denoiser.wrapped(wrap), self.times, self.nulls)
