"""`adjointdpm compare` prints a table, shows its progress and writes its figures, on any model."""

import csv
import json

import pytest

import adjointdpm as adp
from adjointdpm.analysis.comparison import _label
from adjointdpm.cli.parse_sampler import adjoint_of
from tests.tiny.commands import adjointdpm, refused
from tests.tiny.families import of


def test_compare_prints_a_table_and_writes_json_csv_and_a_plot(tmp_path):
    done = adjointdpm(
        *(
            "compare",
            "--prompt",
            "a cat",
            "--output_dir",
            str(tmp_path),
            "--num_inference_steps",
            "2",
            "--repeats",
            "1",
        )
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "compare.json").read_text())
    assert all(check["verdict"] != "does not agree" for check in found["checks"])
    assert any(check["agrees"] for check in found["checks"])
    assert found["recommendation"] in done.stdout
    page = (tmp_path / "index.html").read_text()
    for part in (
        "<dt>Metric</dt><dd>chroma; lower is better</dd>",
        "<dt>Date</dt>",
        "Checkpointed()",
        "compare.json",
    ):
        assert part in page, part
    assert page.count("data:image/png;base64") == 1
    assert (tmp_path / "compare.png").stat().st_size > 1000
    exact = [row for row in found["rows"] if row["adjoint"] in ("Backprop()", "CoarseAdjoint(steps=2)")]
    assert all(row["relative_error"] < 1e-5 for row in exact)
    with open(tmp_path / "compare.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["seconds"]) for row in rows] == [row["seconds"] for row in found["rows"]]
    for phase in ("gradients, Backprop()", "timing, Truncated()", "finite differences, prompt_embeds"):
        assert phase in done.stderr
    assert "100%" in done.stderr


@pytest.mark.parametrize("solver", ["coupled:euler", "pipeline"])
def test_compare_differentiates_any_model_with_the_adjoints_that_are_named(tmp_path, solver):
    of("sd").make().save_pretrained(tmp_path / "model")
    named = ["backprop", "checkpointed:1GiB", "reversible"][: 2 + solver.startswith("coupled")]
    done = adjointdpm(
        *(
            "compare",
            "--prompt",
            "a cat",
            "--pretrained_model_name_or_path",
            str(tmp_path / "model"),
            "--quiet",
            "--weights",
        ),
        *(
            "--output_dir",
            str(tmp_path / "out"),
            "--num_inference_steps",
            "2",
            "--repeats",
            "1",
            "--no_check",
        ),
        *("--solver", solver, "--negative_prompt", "a dog", "--metric", "background:0.9,0.8,0.2"),
        *(word for each in named for word in ("--adjoint", each)),
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert {row["adjoint"] for row in found["rows"]} == {
        *("Backprop()", "Checkpointed(budget='1GiB')", "Reversible()")[: len(named)]
    }
    assert {"noise", "prompt_embeds", "negative_prompt_embeds", "weights"} <= {
        row["variable"] for row in found["rows"]
    }
    assert all(row["relative_error"] < 1e-4 for row in found["rows"])


def test_surrogates_are_compared_by_the_gradient_of_a_new_lora(tmp_path):
    named = ["drtune:2", "flowbp:sparse", "flowbp:bridge:3", "flowbp:lagrange", "leapalign", "directalign"]
    done = adjointdpm(
        *(
            "compare",
            "--prompt",
            "a cat",
            "--output_dir",
            str(tmp_path),
            "--num_inference_steps",
            "4",
            "--repeats",
            "1",
        ),
        *("--no_check", "--quiet", "--lora_rank", "2"),
        *(word for each in named for word in ("--adjoint", each)),
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert {row["adjoint"] for row in rows} == {_label(adjoint_of(each)) for each in named}
    for row in rows:
        if row["variable"] == "noise":
            assert "none for the noise" in row["refusal"]
        else:
            assert -1 <= row["cosine"] <= 1
            assert row["norm_ratio"] > 0
            assert row["nfe_backward"] in (1, 2, 3, 4)
            assert row["bytes_saved"] > 0
    assert "weights" in {row["variable"] for row in rows}


def test_what_cannot_be_compared_is_refused(tmp_path):
    cat = ["compare", "--prompt", "a cat", "--num_inference_steps", "2", "--no_check"]
    refused(
        tmp_path,
        {
            "adjoint reversible needs a reversible solver, but the solver is dpm++": [
                *(*cat, "--adjoint", "reversible"),
            ],
            "adjoint is one of": [*cat, "--adjoint", "exact"],
            "coarse and continuous need our own steps": [
                *cat,
                "--adjoint",
                "coarse:1",
                "--solver",
                "pipeline",
            ],
            "the exact gradient of every variable is 0": [*cat, "--metric", "pixels"],
            "does not depend on the last 1 of 4 denoiser calls": [
                *(*cat, "--solver", "coupled:euler", "--adjoint", "truncated:1"),
            ],
            "give --weights or --lora_rank, not both": [*cat, "--weights", "--lora_rank", "2"],
            "drtune, flowbp:bridge, flowbp:lagrange, leapalign and directalign need our own steps": [
                *(*cat, "--adjoint", "flowbp:bridge", "--solver", "pipeline"),
            ],
            "--clip_model is not used by these metrics": [*cat, "--clip_model", "x"],
            "--reward_device is not used by these metrics": [*cat, "--reward_device", "cpu"],
            "the device 'moon' cannot be used here": [*cat, "--reward_device", "moon"],
        },
    )


def test_the_default_adjoints_of_a_reversible_solver_include_its_own():
    sampler = adp.load_bundled("emoji", steps=2, solver=adp.Coupled(adp.Euler()))
    noise = ["noise"]
    found = adp.compare(sampler, adp.metrics.Chroma(), variables=noise, repeats=1, check=False, quiet=True)
    errors = {row.adjoint: row.relative_error for row in found.rows}
    assert errors["Reversible()"] < 1e-4
    assert repr(adjoint_of("reversible")).startswith("Reversible(")
