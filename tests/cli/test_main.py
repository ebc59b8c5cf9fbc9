"""The command line and the demonstration, run as a user runs them."""

import html
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

import adjointdpm as adp
from adjointdpm.cli.demo import Scale, demo
from adjointdpm.files.html_report import ImageTable, Page
from adjointdpm.files.images import as_8_bit, png, read_image, sheet
from adjointdpm.metrics import Chroma, Margin, PixelDistance


def adjointdpm(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "adjointdpm", *arguments], capture_output=True, text=True, timeout=300
    )


def test_sample_writes_the_pictures_of_the_sampler(tmp_path):
    done = adjointdpm(
        "sample", "a cat", "--output_dir", str(tmp_path), "--batch", "2", "--num_inference_steps", "3"
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00-00.png", "00-01.png"]
    sampler = adp.load_bundled("emoji", steps=3, guidance_scale=4.0)
    with torch.no_grad():
        expected = as_8_bit(sampler(sampler.noise(2, 0), sampler.encode("a cat")))
    saved = torch.stack([read_image((tmp_path / f"00-0{i}.png").read_bytes()) for i in range(2)])
    assert int((as_8_bit(saved).int() - expected.int()).abs().max()) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "a xylophone"], "xylophone"),
        (["sample", "a cat", "--num_inference_steps", "0"], "at least 1"),
        (["sample", "a cat", "--output_dir", "/dev/null/here"], "cannot write"),
        (["demo", "--output_dir", "/dev/null/here"], "cannot write"),
        (["compare", "a xylophone"], "xylophone"),
        (["compare", "a cat", "--num_inference_steps", "0"], "num_inference_steps"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, message, tmp_path):
    if "--output_dir" not in arguments:
        arguments = [*arguments, "--output_dir", str(tmp_path)]
    done = adjointdpm(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_compare_prints_a_table_and_writes_json_and_a_picture(tmp_path):
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


def test_the_demonstration_ends_in_one_page_without_links(tmp_path):
    page = demo(tmp_path, Scale(sampling=3, noise=2, prompt=2, weights=2, repeats=1))
    text = page.read_text()
    results = json.loads((tmp_path / "result.json").read_text())
    assert set(results) == {"sample", "noise", "prompt", "weights", "compare", "seconds"}
    assert "http" not in text.replace("data:", "")
    assert text.count("<h2>") == 6
    assert text.count('class="pixels"') == 20 + 8 + 18 + 12
    exact = [r for r in results["compare"] if r["adjoint"] in ("Backprop()", "Checkpointed()")]
    assert all(r["relative_error"] < 1e-6 for r in exact)
    assert results["weights"]["losses"][1] < results["weights"]["losses"][0]


def test_what_users_typed_is_escaped(tmp_path):
    page = Page("<script>title")
    page.text("<img src=x onerror=alert(1)>")
    page.table(["<b>"], [["<i>"]])
    page.images(ImageTable("<u>", torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ['"><script>']))
    text = page.write(tmp_path / "page.html").read_text()
    assert "<script>" not in text
    assert "<img src=x" not in text
    assert html.escape("<img src=x onerror=alert(1)>") in text


def test_pictures_survive_a_file():
    image = torch.rand(3, 5, 7)
    back = read_image(png(as_8_bit(image)))
    assert float((back - image).abs().max()) <= 0.5 / 255 + 1e-6
    assert int(as_8_bit(torch.tensor([[[1.7]], [[-0.3]], [[0.5]]]))[0]) == 255
    page = sheet(torch.zeros(5, 3, 4, 4, dtype=torch.uint8), columns=3, gap=1)
    assert page.shape == (3, 9, 14)
    assert int((page[0] == 0).sum()) == 5 * 16


def test_metrics_are_what_they_say():
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(PixelDistance(torch.rand(2, 3, 4, 4).double()), images)
    assert torch.autograd.gradcheck(Chroma(), images)
    grey = torch.rand(1, 1, 4, 4).expand(1, 3, 4, 4)
    assert float(Chroma()(grey)) == pytest.approx(0, abs=1e-12)

    class Fixed(torch.nn.Module):
        def forward(self, images):
            return torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 5.0]])

    margins = Margin(Fixed(), torch.tensor([0, 1]))(torch.zeros(2, 3, 4, 4))  # type: ignore[arg-type]
    assert margins.tolist() == [0.5, -1.0]


def test_pictures_open_elsewhere(tmp_path):
    path = tmp_path / "one.png"
    path.write_bytes(png(torch.full((3, 4, 6), 200, dtype=torch.uint8)))
    with Image.open(path) as image:
        assert image.size == (6, 4)
