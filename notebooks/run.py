"""Run notebooks from top to bottom, and keep what they put out: `python notebooks/run.py [NOTEBOOK ...]`.

Every notebook of this folder is run by default, in a kernel and an empty working folder of its own. Its outputs replace
those in the file, without what differs from run to run: progress bars, times of cells and the kernel's version. Any
other text on the error stream, such as a warning, ends in an error, and the file is not written.
"""

import os
import re
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent
# "tune:  40%|####      | 4/10 [00:03<00:05,  1.2it/s, loss=0.1]", of tqdm.
BAR = re.compile(r"^\s*(.*\d+%\|.*\|.*\[.*\].*)?\s*$")


def run(path: Path) -> None:
    """Run a notebook, and write it with its outputs.

    Args:
        path: the notebook.

    Raises:
        SystemExit: a cell wrote something else than a progress bar to the error stream.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=600,
            resources={"metadata": {"path": folder}},
            record_timing=False,
            coalesce_streams=True,
            extra_arguments=[
                "--log-level=ERROR"
            ],  # else it warns that it listens on this computer
        )
        # tqdm warns on import where ipywidgets are not installed; the bars of these notebooks are text.
        client.execute(
            env={**os.environ, "PYTHONWARNINGS": "ignore:IProgress not found"}
        )
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [
                output for output in map(cleaned, cell.outputs) if output is not None
            ]
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def cleaned(output: NotebookNode) -> NotebookNode | None:
    """Return an output of a cell without what differs from run to run; None if nothing is left.

    Raises:
        SystemExit: it is something else than a progress bar on the error stream.
    """
    if output.output_type == "stream" and output.name == "stderr":
        lines = [
            line for line in re.split(r"[\r\n]", output.text) if not BAR.match(line)
        ]
        if lines:
            raise SystemExit("on the error stream of a cell:\n" + "\n".join(lines))
        return None
    if "image/png" in output.get(
        "data", {}
    ):  # Pillow offers every image as a JPEG, too
        output.data = {"image/png": output.data["image/png"], "text/plain": "an image"}
    return output


def main() -> None:
    """Run the notebooks that are named, or all."""
    for path in [Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        began = perf_counter()
        run(path)
        print(
            f"{path.name}: {perf_counter() - began:.0f} s, {path.stat().st_size / 1000:.0f} kB",
            flush=True,
        )


if __name__ == "__main__":
    main()
