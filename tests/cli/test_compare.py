"""`adjointdpm compare` prints a table and writes its figures."""

import json

from tests.tiny.commands import adjointdpm


def test_compare_prints_a_table_and_writes_json_and_a_plot(tmp_path):
    done = adjointdpm(
        *("compare", "a cat", "--output_dir", str(tmp_path), "--num_inference_steps", "2", "--repeats", "1")
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "compare.json").read_text())
    assert all(check["verdict"] != "does not agree" for check in found["checks"])
    assert any(check["agrees"] for check in found["checks"])
    assert found["recommendation"] in done.stdout
    assert (tmp_path / "compare.png").stat().st_size > 1000
    exact = [row for row in found["rows"] if row["adjoint"] in ("Backprop()", "CoarseAdjoint(steps=2)")]
    assert all(row["relative_error"] < 1e-5 for row in exact)
