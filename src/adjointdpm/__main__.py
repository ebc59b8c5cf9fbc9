"""`adjointdpm` and `python -m adjointdpm`: the command line, if its packages are installed."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, or say in one line which extra it needs and exit with 2."""
    try:
        from .cli.main import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("adjointdpm"):
            raise
        print(
            f"adjointdpm: the command line needs {error.name}, which is not installed; run "
            "pip install 'adjointdpm[all]'",
            file=sys.stderr,
        )
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
