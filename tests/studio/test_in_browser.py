"""The studio end to end: the real command, a real Chromium, and what a person does on the page."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

import adjointdpm as adp
from adjointdpm.tasks import load_result
from tests.tiny.studios import serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)  # Debian's, Ubuntu's
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; apt-get install chromium")

LONG = 120_000  # milliseconds; other tests run at the same time


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("studio")) as found:
        yield found


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, url):
    """Opens the page as a new person does; errors and requests to elsewhere fail the test."""
    contexts, wrong = [], []

    def requested(request):
        if not request.url.startswith((url, "data:", "blob:")):
            wrong.append(request.url)

    def said(message):
        if message.type == "error":
            wrong.append(message.text)

    def visit(**settings):
        contexts.append(chromium.new_context(**{"viewport": {"width": 1200, "height": 900}} | settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(LONG)
        page.on("request", requested)
        page.on("console", said)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(url)
        playwright.expect(page.locator("#status")).to_contain_text("Ready")
        return page

    yield visit
    for each in contexts:
        each.close()
    assert wrong == []


def settle(page, steps, sampling=2):
    """Choose few steps, so that a run takes seconds."""
    page.get_by_text("More settings").click()
    for name, value in {"4. Steps of the optimization": steps, "Sampling steps": sampling}.items():
        field = page.get_by_label(re.compile(f"number input for {re.escape(name)}"))
        field.fill(str(value))
        field.press("Tab")


def expect(page, selector, text):
    playwright.expect(page.locator(selector)).to_contain_text(re.compile(text), timeout=LONG)


def shown(page, selector):
    """How many images are drawn there."""
    return page.locator(f"{selector} img").evaluate_all("all => all.filter(i => i.naturalWidth > 0).length")


def test_a_person_watches_a_gradient_and_takes_away_what_was_learned(visit, tmp_path):
    page = visit()
    settle(page, steps=3)
    page.fill("#prompt textarea, #prompt input", "a fish")
    page.click("#run")
    expect(page, "#live", "before")
    expect(page, "#maps", "back through all sampling steps")
    assert shown(page, "#maps") == 2
    expect(page, "#status", r"Done: the metric went from [\d.e-]+ to [\d.e-]+ in \d+ s")
    first, last = map(float, re.search(r"from (\S+) to (\S+) in", page.inner_text("#status")).groups())
    assert last < first
    line = page.locator("#curve polyline").get_attribute("points")
    heights = [float(point.split(",")[1]) for point in line.split()]
    assert len(heights) == 4
    assert heights[-1] > heights[0]  # down on the screen
    for name in ("Denoiser calls", "Memory for the gradient", "MiB"):
        expect(page, "#figures", name)
    page.wait_for_function("document.querySelectorAll('#slider img').length == 2")
    page.wait_for_function("[...document.querySelectorAll('#slider img')].every(i => i.naturalWidth == 64)")

    with page.expect_download() as download:
        page.click("#artefact")
    noise = tmp_path / download.value.suggested_filename
    download.value.save_as(noise)
    assert noise.name == "noise.safetensors"
    with page.expect_download() as download:
        page.click("#report")
    report = tmp_path / download.value.suggested_filename
    download.value.save_as(report)
    assert "adjointdpm guide" in report.read_text()

    command = page.input_value("#command textarea")
    assert command.startswith("adjointdpm guide '--prompt=a fish' --metric=background:")
    values, about = adp.load_noise(noise)
    assert (tuple(values.shape[1:]), about["steps"]) == ((8, 16, 16), "2")
    playwright.expect(page.locator("#run")).to_be_enabled()
    playwright.expect(page.locator("#stop")).to_be_disabled()


def test_a_run_is_stopped_and_closing_a_page_lets_the_next_person_begin(visit):
    first, second = visit(), visit()
    for page in (first, second):
        settle(page, steps=100)
    first.click("#run")
    expect(first, "#status", r"Step \d+ of 100")
    second.click("#run")
    expect(second, "#status", "Waiting: 1 run comes first")
    first.click("#stop")
    expect(first, "#status", r"Stopped after \d+ of 100 steps: the metric went from")
    playwright.expect(first.locator("#artefact")).to_be_visible()
    expect(second, "#status", r"Step \d+ of 100")

    first.click("#run")
    expect(first, "#status", "Waiting: 1 run comes first")
    first.click("#stop")
    expect(first, "#status", "Stopped before it began")
    first.click("#run")
    expect(first, "#status", "Waiting: 1 run comes first")
    second.close()
    expect(first, "#status", r"Step \d+ of 100")
    first.click("#stop")
    expect(first, "#status", "Stopped after")


def test_a_token_takes_the_style_of_an_uploaded_image(visit, tmp_path):
    page = visit(viewport={"width": 400, "height": 800}, color_scheme="dark")
    settle(page, steps=2)
    page.get_by_label("Token: a new word").click()
    playwright.expect(page.locator("#other")).to_be_visible()
    page.get_by_label("Style of an image").click()
    page.click("#run")
    expect(page, "#status", "upload one")

    (tmp_path / "broken.png").write_bytes(b"no image")
    levels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype="uint8")
    Image.fromarray(levels).save(tmp_path / "style.png")
    page.set_input_files("#upload input[type=file]", tmp_path / "broken.png")
    expect(page, "#preview", "no image of the formats")
    page.locator("#upload").get_by_label("Clear").first.click()
    page.set_input_files("#upload input[type=file]", tmp_path / "style.png")
    expect(page, "#preview", "compares styles with this image")

    page.click("#run")
    expect(page, "#status", "Done: the metric went from")
    with page.expect_download() as download:
        page.click("#artefact")
    assert download.value.suggested_filename == "learned_embeds.safetensors"
    command = page.input_value("#command textarea")
    (reference,) = re.findall(r"--metric=style:(\S+)", command)
    with Image.open(reference) as kept:
        assert np.array_equal(np.asarray(kept), levels)
    found = load_result(re.sub(r"reference-\d+\.png$", "1-token", reference))
    assert found["settings"]["goal"] == f"a low value of style:{reference} + 0.3*content"
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_what_is_typed_is_never_markup_and_a_mistake_is_one_line(visit):
    page = visit()
    evil = "<img src=x onerror=alert(1)>"
    page.fill("#prompt textarea, #prompt input", evil)
    page.click("#run")
    expect(page, "#status", "not trained on the words")
    assert evil.split()[0] in page.inner_text("#status")
    assert shown(page, "#status") == page.locator("#status img").count() == 0
    page.fill("#prompt textarea, #prompt input", "")
    page.click("#run")
    expect(page, "#status", "the prompt is empty")
    playwright.expect(page.locator("#run")).to_be_enabled()
