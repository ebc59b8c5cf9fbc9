"""The notebooks run from top to bottom, what they say of their results holds, and they are committed as they ran."""

import json
import os
import subprocess
import sys

import pytest

from tests import ROOT

NOTEBOOKS = ROOT / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def executed(path, steps=0):
    """Run a notebook as `make notebooks` does."""
    return subprocess.run(
        [sys.executable, NOTEBOOKS / "run.py", path],
        env={**os.environ, "OMP_NUM_THREADS": "1", "NOTEBOOK_STEPS": str(steps)},
        capture_output=True,
        text=True,
        timeout=540,
    )


def code_cell(number, source):
    about = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    return {**about, "id": f"added-{number}", "source": source}


def results(name, steps, code, folder):
    """Run a copy of a notebook, and return what an expression is in its kernel in the end."""
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
    notebook["cells"].append(code_cell(0, f"import json; print(json.dumps({code}))"))
    path = folder / f"{name}.ipynb"
    path.write_text(json.dumps(notebook))
    done = executed(path, steps)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{name}.ipynb: ")
    (output,) = cells(path)[-1]["outputs"]
    return json.loads("".join(output["text"]))


def test_outputs_are_kept_without_bars_and_a_warning_is_an_error(tmp_path):
    path = tmp_path / "own.ipynb"
    sources = [
        "import warnings\nfrom PIL import Image\nfrom tqdm import tqdm",
        "for _ in tqdm(range(3), desc='work'):\n    print('step')",
        "Image.new('RGB', (4, 4))",
        "",
    ]
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}}
    notebook["cells"] = [code_cell(*each) for each in enumerate(sources)]
    path.write_text(json.dumps(notebook))
    assert executed(path).returncode == 0
    _, bar, image, _ = (cell["outputs"] for cell in cells(path))
    assert [(each["name"], "".join(each["text"])) for each in bar] == [("stdout", "step\n" * 3)]
    assert [sorted(each["data"]) for each in image] == [["image/png", "text/plain"]]
    notebook["cells"][-1]["source"] = "warnings.warn('beware')"
    path.write_text(json.dumps(notebook))
    before = path.read_bytes()
    done = executed(path)
    assert done.returncode == 1
    assert "UserWarning: beware" in done.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_notebook_is_whole(name):
    path = NOTEBOOKS / f"{name}.ipynb"
    code = cells(path)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not any(output.get("name") == "stderr" or output["output_type"] == "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert path.stat().st_size < 400_000
    text = json.dumps([{**output, "data": output.get("data", {}).get("text/plain")} for output in outputs])
    assert not any(part in text for part in ("/home", "/tmp", "/work", "site-packages", "0x"))


def test_the_first_gradient_is_plain_autograds_and_descends(tmp_path):
    found = results(
        "first_gradient", 0, '{"errors": errors, "losses": losses, "memory": memory, "steps": STEPS, '
        '"calls": [call.stats.nfe_forward, call.stats.nfe_backward]}', tmp_path,
    )  # fmt: skip
    assert set(found["errors"]) == {"noise", "prompt", "weight"}
    assert max(found["errors"].values()) < 1e-5
    assert found["losses"][-1] < 0.5 * found["losses"][0]
    recomputed, plain = found["memory"].values()
    assert max(recomputed) < 1.1 * min(recomputed)  # flat in the number of steps
    assert plain[2] > 2.5 * plain[0]


def test_a_token_is_learned_from_one_image(tmp_path):
    found = results(
        "a_token_from_one_image", 8, '{"losses": result.losses, "reports": {k: [r.metric_before, r.metric_after] '
        'for k, r in result.reports.items()}, "loaded": "<effect>" in stock.tokenizer.get_vocab()}', tmp_path,
    )  # fmt: skip
    assert found["losses"][-1] < 0.8 * found["losses"][0]
    for before, after in found["reports"].values():
        assert after < 0.9 * before
    assert found["loaded"]


def test_the_audit_finds_more_than_searches_without_a_gradient(tmp_path):
    found = results(
        "audit_your_classifier", 4, '{"right": right, "of": len(validation_truth), "radius": float(after.distances.'
        'max()), "before": before.margins.tolist(), "after": {"gradient": after.margins.tolist(), **{k: c.margins.'
        'tolist() for k, c in result.controls.items()}}, "calls": [calls, result.costs["samplings_a_control"] * '
        'result.costs["calls_a_sampling"]]}', tmp_path,
    )  # fmt: skip
    assert found["right"] >= 0.9 * found["of"]
    assert min(found["before"]) > 0  # each start is classified correctly
    assert found["radius"] <= 0.15 * 1.0001
    means = {name: sum(margins) / len(margins) for name, margins in found["after"].items()}
    assert means["gradient"] < min(means["random noise"], means["SPSA"])
    gradient, control = found["calls"]
    assert gradient == control


def test_the_tuned_lora_is_loaded_to_the_bit(tmp_path):
    found = results(
        "tune_a_lora_to_a_metric", 6, '{"same": same, "changed": float((loaded - untuned).abs().max()), "means": '
        '[before.means["metric"], after.means["metric"]], "losses": after.losses}', tmp_path,
    )  # fmt: skip
    assert found["same"]
    assert found["changed"] > 0.05
    before, after = found["means"]
    assert after < 0.9 * before
    assert min(found["losses"]) < found["losses"][0]
