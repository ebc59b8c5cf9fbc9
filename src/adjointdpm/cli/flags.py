"""Commands made of dataclasses: a field is a flag, a key of the config and a value in Python, with one name.

A command is a frozen dataclass with a method `run`. A field that is a dataclass itself is a group of flags, named after
the field; its default gives the defaults of the group. Every other field is one flag: its default is the flag's, its
line under `Args:` the help, a tuple may be given several times, and `Annotated` adds checks, such as `Range`. What is
typed wins over what a `--config` file says, and that over the defaults. All values are checked before `run` begins.
"""

import inspect
import logging
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import click
import yaml
from click.core import ParameterSource

from .._types import InputError, OneOf
from ..zoo import bundled
from .config_file import read_config
from .log import show
from .prompt_files import rows_of

__all__ = [
    "ForBundled",
    "Given",
    "Group",
    "LabelsOf",
    "PromptTexts",
    "command_of",
    "flags_of",
]

logger = logging.getLogger(__name__)
UNSAVED = ("resume", "overwrite", "quiet", "verbose")  # They say how a run goes on, not what to compute.


@dataclass(frozen=True)
class PromptTexts:
    """Each value that names a file of prompts is replaced by the lines of this file."""

    def __call__(self, flag: str, value: tuple[str, ...]) -> tuple[str, ...]:
        """Return the prompts, with those that stand in files."""
        return tuple(prompt for each in value for prompt, _ in rows_of(flag, each))


@dataclass(frozen=True)
class LabelsOf:
    """Labels that are not given are those in the files of prompts, in their column `label`.

    Args:
        prompts: The name of the flag with the prompts.
    """

    prompts: str

    def labels(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Return the label of every prompt; none where no prompt has one.

        Raises:
            InputError: Some prompts have a label and others not.
        """
        rows = [row for each in texts for row in rows_of(f"--{self.prompts}", each)]
        without = [prompt for prompt, label in rows if not label]
        if 0 < len(without) < len(rows):
            raise InputError(
                f"--{self.prompts}: the prompt {without[0]!r} has no label, but others have one"
            )
        return () if without else tuple(label for _, label in rows)


@dataclass(frozen=True)
class ForBundled:
    """The default of a flag that depends on the model.

    Args:
        ours: The default with a bundled model.
        others: The default with any other.
    """

    ours: str
    others: str | None


@dataclass(frozen=True)
class Group:
    """Says which flags a group of fields has, where they are not simply those of all fields.

    Args:
        prefix: What the names of its flags begin with, before the names of its fields.
        without: The fields that are no flags and keep their defaults.
    """

    prefix: str = ""
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flag:
    """One flag, as the field of a dataclass describes it.

    Args:
        name: The name of the field, and of the flag after its two dashes.
        group: The heading in the help under which it stands.
        kind: The type of one value.
        many: Whether it may be given several times.
        default: Its value where none is given; MISSING if one must be given.
        about: One or more sentences for the help.
        notes: What `Annotated` holds besides the type.
    """

    name: str
    group: str
    kind: type
    many: bool
    default: Any
    about: str
    notes: tuple[Any, ...]

    @property
    def shown(self) -> str:
        """The name for messages."""
        return f"--{self.name}"

    def parameter(self) -> click.Parameter:
        """Return the parameter for click, whose defaults are None or empty where the model decides."""
        kind: Any = click.Path(path_type=Path) if self.kind is Path else self.kind
        required = self.default is MISSING
        given = {} if required else {"default": self.default}
        names = [f"--{self.name}"]
        if self.kind is bool:
            names = [f"--{self.name}/--no_{self.name}"] if self.default else names
            return click.Option(names, is_flag=True, help=self.help, **given)
        return click.Option(
            names, type=kind, multiple=self.many, required=required, help=self.help, **given
        )

    @property
    def help(self) -> str:
        """What the help says, with the default in brackets."""
        if self.default is MISSING:
            return self.about  # click adds that it is required
        for note in self.notes:
            if isinstance(note, ForBundled):
                return f"{self.about} [default: {note.ours} with the bundled model]"
        if self.default is None or self.default is False or self.default in ((), ""):
            return self.about
        return f"{self.about} [default: {_written(self.default)}]"

    def checked(self, read: dict[str, Any]) -> Any:
        """Return the value that was read for this flag, after the checks.

        Args:
            read: The values of all flags, as they were read.

        Raises:
            InputError: A check failed.
        """
        value, model = read[self.name], read.get("pretrained_model_name_or_path")
        for note in self.notes:
            if isinstance(note, LabelsOf) and not value:
                return note.labels(read[note.prompts])
            if isinstance(note, ForBundled) and value is None:
                return note.ours if model is not None and bundled(model) else note.others
            value = note(self.shown, value) if callable(note) else value
        return value


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Given:
    """What was given to a command: all values by flag, and which of them were typed."""

    command: str
    values: dict[str, Any]
    typed: Collection[str] = field(default_factory=frozenset)

    def resolved(self) -> dict[str, Any]:
        """Return every flag's value, as YAML and JSON know values."""
        plain = {
            k: str(v) if isinstance(v, Path) else v for k, v in self.values.items() if k not in UNSAVED
        }
        return {k: (list(v) or None) if isinstance(v, tuple) else v for k, v in plain.items()}

    def as_yaml(self) -> str:
        """Return the values as a config."""
        return yaml.safe_dump(self.resolved(), sort_keys=True, allow_unicode=True)

    def refuse_unused(self, names: Collection[str], why: str) -> None:
        """Refuse flags that were typed and that this run would ignore.

        Args:
            names: The names of flags.
            why: The rest of the sentence, after "--flag is not used".

        Raises:
            InputError: One of them was typed. A config's values may lie idle.
        """
        for name in names:
            if name in self.typed:
                raise InputError(f"--{name} is not used {why}")


def flags_of(
    settings: type, default: Any = MISSING, heading: str = "Task", group: Group | None = None
) -> Iterator[Flag]:
    """The flags of a dataclass, those of its groups included.

    Args:
        settings: The dataclass.
        default: One whose values are the defaults; those of the class if MISSING.
        heading: The heading of the fields that are no groups themselves.
        group: Which fields are flags, and their prefix; all of them without one if None.

    Yields:
        Flag: each flag, in the order of the fields.
    """
    about, group = _documented(settings), group or Group()
    for each, hint, inner in _fields(settings, group):
        value = _default_of(each) if default is MISSING else getattr(default, each.name)
        if inner is not None:
            yield from flags_of(hint, value, each.name.capitalize(), inner)
        else:
            kind, many, notes = _kind(hint)
            yield Flag(group.prefix + each.name, heading, kind, many, value, about[each.name], notes)


def _fields(settings: type, group: Group) -> Iterator[tuple[Field[Any], Any, Group | None]]:
    """Yield each field that is a flag or a group, its type, and what is said about the group."""
    hints = get_type_hints(settings, include_extras=True)
    for each in fields(settings):
        if each.name not in group.without:
            hint = hints[each.name]
            kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            if is_dataclass(kind):
                yield each, kind, next((note for note in notes if isinstance(note, Group)), Group())
            else:
                yield each, hint, None


def _default_of(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _kind(hint: Any) -> tuple[type, bool, tuple[Any, ...]]:
    """Return the type of one value, whether there may be several, and what `Annotated` adds."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, many, notes = _kind(parts[0])
        return kind, many, (*notes, *parts[1:])
    if origin is tuple:
        return parts[0], True, ()
    if origin is Literal:
        return str, False, (OneOf(parts),)
    if origin is Union or parts:  # X | None
        return _kind(parts[0])
    return hint, False, ()


def _documented(settings: type) -> dict[str, str]:
    """Return what a class and its bases say about their fields under `Args:`."""
    found: dict[str, str] = {}
    for each in reversed(settings.__mro__):
        _, _, section = (inspect.cleandoc(each.__doc__ or "")).partition("\nArgs:\n")
        for name, text in re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", section, re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


class _Grouped(click.Command):
    """A command whose help has its flags in groups."""

    def __init__(self, flags: list[Flag], **more: Any) -> None:
        super().__init__(**more)
        self.flags = flags

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list for each group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        records = {each.name: each.get_help_record(ctx) for each in self.get_params(ctx)}
        for flag in self.flags:
            record = records.pop(flag.name)
            if record is not None:
                groups.setdefault(flag.group, []).append(record)
        groups["Output"] += [each for each in records.values() if each is not None]
        for name, rows in groups.items():
            with formatter.section(name):
                formatter.write_dl(rows)


def command_of(name: str, settings: type, about: str) -> click.Command:
    """Return the command that a dataclass describes.

    Args:
        name: The name of the command.
        settings: The dataclass.
        about: One sentence for the help.
    """
    flags = list(flags_of(settings))
    config = click.Option(
        ["--config"],
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_read_config(flags),
        help="YAML file with values of flags. What is typed wins.",
    )
    print_config = click.Option(
        ["--print_config"], is_flag=True, help="Print the values of all flags as a config file and exit."
    )

    @click.pass_context
    def run(ctx: click.Context, print_config: bool, **read: Any) -> None:
        values = {flag.name: flag.checked(read) for flag in flags}
        sources = {each: ctx.get_parameter_source(each) for each in values}
        typed = frozenset(k for k, source in sources.items() if source is ParameterSource.COMMANDLINE)
        given = Given(name, values, typed)
        show(values["verbose"])
        for each in given.as_yaml().splitlines():
            logger.info("%s", each)
        if print_config:
            print(given.as_yaml(), end="")
        else:
            _built(settings, values, Group()).run(given)

    parameters = [*(flag.parameter() for flag in flags), config, print_config]
    return _Grouped(flags, name=name, params=parameters, help=about, callback=run)


def _read_config(flags: list[Flag]) -> Callable[[click.Context, click.Parameter, Path | None], None]:
    """Return a callback that makes the values of a file the defaults of all flags."""

    def read(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
        if path is not None:
            ctx.default_map = read_config(path, {flag.name: flag for flag in flags})

    return read


def _built(settings: type, values: dict[str, Any], group: Group) -> Any:
    given = {
        each.name: values[group.prefix + each.name] if inner is None else _built(hint, values, inner)
        for each, hint, inner in _fields(settings, group)
    }
    return settings(**given)
