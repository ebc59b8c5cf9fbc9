"""Prompts that are typed, or that stand in a file, one a line."""

from pathlib import Path

from .._types import InputError

__all__ = ["prompts_of"]

LONGEST_FILE = 2**20
_FILES = (".txt", ".csv", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".md")


def prompts_of(flag: str, text: str) -> list[str]:
    """Return the prompt itself, or the prompts in the file that it names.

    Raises:
        InputError: The file is missing, is no plain text, or holds no printable prompts.
    """
    try:
        path = Path(text)
        named = path.suffix.lower() in _FILES and " " not in text
        if not path.exists() or path.is_dir():
            if named:
                raise InputError(
                    f"{flag} {text}: there is no such file, and it does not look like a prompt"
                )
            return [text]
        if named and path.suffix.lower() != ".txt":
            raise InputError(f"{flag} {text}: prompts are read from plain text (.txt), one a line")
        if not path.is_file():
            raise InputError(f"{flag} {text}: it is not an ordinary file of prompts")
        with open(path, "rb") as file:
            content = file.read(LONGEST_FILE + 1)
        if len(content) > LONGEST_FILE:
            raise InputError(
                f"{flag} {text}: the file has more than {LONGEST_FILE} bytes; are these prompts?"
            )
        lines = content.decode("utf-8-sig").splitlines()
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{flag} {text}: the file is not a text in UTF-8, with a prompt a line") from error
    except (OSError, ValueError):  # too long for a file's name, say
        return [text]
    found = [line.strip() for line in lines if line.strip()]
    if not found or any(not line.isprintable() for line in found):
        raise InputError(f"{flag} {text}: the file must hold one printable prompt a line")
    return found
