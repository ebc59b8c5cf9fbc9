"""What a person chooses on the page, as checked values and as the command that repeats the run.

noise    guide     d metric / d noise
token    invert    d metric / d embedding of a new token
lora     tune      d metric / d weights of a LoRA
"""

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from .._types import InputError, OneOf, Range, check_settings

__all__ = [
    "ADJOINTS", "LEARNING_RATES", "TOKEN", "VARIABLES", "Choice", "colour_metric", "number", "solver_for", "whole",
    "with_token",
]  # fmt: skip

TOKEN = "<effect>"
"""The new token, as it stands in prompts."""

VARIABLES = {"noise": "guide", "token": "invert", "lora": "tune"}
"""What can be optimized, and the task that does it."""

LEARNING_RATES = {"noise": 0.1, "token": 0.1, "lora": 0.01}
"""Step lengths with which some twelve steps show something."""

ADJOINTS = {
    "checkpointed": "Checkpointed: exact, one graph",
    "backprop": "Backprop: exact, all graphs",
    "reversible": "Reversible: states are rebuilt",
    "coarse": "Coarse: fewer steps, not exact",
    "continuous": "Continuous: the paper's ODE",
}
"""The adjoints of the page, by the names that the command line has for them."""

_LONGEST = 400  # characters of a prompt


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a run does.

    Args:
        prompt: Prompt of the images.
        other_prompt: Prompt that a token or a LoRA is tried on besides; nothing is trained on it.
        variable: What is optimized: noise, token or lora.
        metric: Metrics to lower, as of `--metric` on the command line; they are added up.
        steps: Number of optimization steps.
        sampling_steps: Number of sampling steps.
        adjoint: How the gradient is made.
        learning_rate: Step length of the optimizer.
        seed: Random seed.

    Raises:
        InputError: a value that is out of range, or a prompt that is empty, too long or no text.
    """

    prompt: str
    other_prompt: str = ""
    variable: Annotated[str, OneOf(tuple(VARIABLES))] = "noise"
    metric: tuple[str, ...] = ()
    steps: Annotated[int, Range(1, 200)] = 12
    sampling_steps: Annotated[int, Range(1, 100)] = 10
    adjoint: Annotated[str, OneOf(tuple(ADJOINTS))] = "checkpointed"
    learning_rate: Annotated[float, Range(0, 100, open_low=True)] = 0.1
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0

    def __post_init__(self) -> None:
        check_settings(self)
        for name in ("prompt", "other_prompt"):
            _check_text(name.replace("_", " "), getattr(self, name))
        if not self.prompt.strip():
            raise InputError("the prompt is empty; write what the image shows, such as 'a red apple'")
        if not self.metric:
            raise InputError("no metric is chosen; choose what the image should become")
        for each in self.metric:
            _check_text("metric", each)

    @property
    def task(self) -> str:
        """The task that does it, as the command line names it."""
        return VARIABLES[self.variable]

    @property
    def prompts(self) -> tuple[list[str], list[str]]:
        """Prompts to optimize on, and those to report on besides."""
        other = [self.other_prompt] if self.other_prompt.strip() else []
        if self.variable == "token":
            return [with_token(self.prompt)], [with_token(each) for each in other or [self.prompt]]
        return [self.prompt], [self.prompt, *other]

    def command(self, model: Sequence[str], solver: str) -> str:
        """Return the command that repeats the run.

        Args:
            model: flags of the model and the networks.
            solver: of the model.
        """
        trained, reported = self.prompts
        flags = [f"--prompt={each}" for each in trained]
        if self.variable != "noise":
            flags += [f"--validation_prompt={each}" for each in reported]
        flags += [f"--metric={each}" for each in self.metric]
        flags += {
            "noise": ["--no_baselines", "--judge=none"],
            "token": [f"--placeholder_token={TOKEN}", "--judge=none"],
            "lora": ["--validation_steps=1", "--judge=none"],
        }[self.variable]
        flags += [
            f"--max_train_steps={self.steps}",
            f"--learning_rate={self.learning_rate}",
            "--train_batch_size=1",
            "--num_validation_images=1",
            f"--seed={self.seed}",
            f"--num_inference_steps={self.sampling_steps}",
            f"--solver={solver_for(self.adjoint, solver)}",
            f"--adjoint={self.adjoint}",
            *model,
        ]
        return shlex.join(["adjointdpm", self.task, *flags])


def solver_for(adjoint: str, solver: str) -> str:
    """Return the solver that an adjoint needs, by name: a coupled one for `reversible`, else the given one."""
    if adjoint != "reversible" or solver.startswith("coupled:"):
        return solver
    return f"coupled:{solver}" if solver in ("midpoint", "heun", "rk4") else "coupled:euler"


def with_token(prompt: str) -> str:
    """Return a prompt in which the new token stands: where it does already, else after the first article.

    Examples:
        >>> from adjointdpm.studio.choice import with_token
        >>> with_token("a red apple"), with_token("apples")
        ('a <effect> red apple', '<effect> apples')
    """
    if TOKEN in prompt.split():
        return prompt
    found = re.match(r"\s*(?:an?|the)\s+", prompt, re.IGNORECASE)
    place = found.end() if found else 0
    return f"{prompt[:place]}{TOKEN} {prompt[place:]}"


def colour_metric(text: str) -> str:
    """Return the metric of a background in a color, which is written as browsers do: #rrggbb or rgb(r, g, b).

    Raises:
        InputError: it is written in another way.
    """
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        levels = [int(text[i : i + 2], 16) for i in (1, 3, 5)]
    elif found := re.fullmatch(r"rgba?\(([^()]*)\)", text):
        try:
            levels = [float(each) for each in found[1].split(",")[:3]]
        except ValueError:
            levels = []
    else:
        levels = []
    if len(levels) != 3 or not all(0 <= each <= 255 for each in levels):
        raise InputError(f"a color is written as #rrggbb, such as #f2cc33, but is {text[:40]!r}")
    return "background:" + ",".join(f"{each / 255:.4g}" for each in levels)


def number(name: str, value: Any) -> float:
    """Return a number of the page.

    Args:
        name: what it is.
        value: what the page sent: a number, or None where the field is empty.

    Raises:
        InputError: it is no number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} must be a number, but is {value!r}; fill it in")
    return float(value)


def whole(name: str, value: Any) -> int:
    """Return a whole number of the page.

    Args:
        name: what it is.
        value: what the page sent.

    Raises:
        InputError: it is none.
    """
    found = number(name, value)
    if found != int(found):
        raise InputError(f"{name} must be a whole number, but is {value!r}")
    return int(found)


def _check_text(what: str, text: str) -> None:
    """Refuse what cannot be a line of text in a file.

    Raises:
        InputError: it is too long, or holds half of a character.
    """
    if len(text) > _LONGEST:
        raise InputError(
            f"the {what} has {len(text)} characters, but at most {_LONGEST} are used; shorten it"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the {what} is not a text in UTF-8") from error
