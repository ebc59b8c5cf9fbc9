"""A process that runs command lines through `cli.main`, one after the other: imports take seconds, most commands none.

It reads a JSON list of arguments a line, and answers with [exit code or error, output, error stream] as JSON.
"""

import contextlib
import io
import json
import os
import sys
from typing import Any


def answer(arguments: list[str]) -> list[Any]:
    """What a command line ends in."""
    from adjointdpm.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    sys.argv, code = ["adjointdpm", *arguments], None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as error:
        code = error.code
    except BaseException as error:  # what must not happen
        code = f"{type(error).__name__}: {error}"
    return [code, out.getvalue(), err.getvalue()]


if __name__ == "__main__":
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")  # apart from what a command may print
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
