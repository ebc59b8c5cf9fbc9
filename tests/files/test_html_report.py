"""A page is one file: its images and plots are in it, as they were given."""

import base64
import html
import io
import re

import torch
from PIL import Image

from adjointdpm.files.films import read_film
from adjointdpm.files.html_report import ImageTable, Page, table_of
from adjointdpm.files.images import read_image
from adjointdpm.files.sounds import as_16_bit, read_wav


def embedded(text):
    return [base64.b64decode(each) for each in re.findall(r'src="data:image/png;base64,([^"]+)"', text)]


def test_the_images_in_a_page_are_those_that_were_given(tmp_path):
    images = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    page = Page("a title")
    page.images(ImageTable("row", images, ["one", "two"]))
    text = page.write(tmp_path / "page.html").read_text()
    found = torch.stack([read_image(each) for each in embedded(text)])
    assert torch.equal((found * 255).round().to(torch.uint8), images)
    assert text.index("one") < text.index("two")


def test_a_curve_is_a_plot_with_its_names(tmp_path):
    page = Page("a title")
    page.curve([3.0, 2.0, 1.0], "step", "loss")
    (content,) = embedded(page.write(tmp_path / "page.html").read_text())
    plot = Image.open(io.BytesIO(content))
    assert plot.format == "PNG"
    assert min(plot.size) > 100
    assert len(plot.convert("L").getcolors()) > 2  # a line and letters, not an empty frame


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    page = Page("a title")
    page.heading("part")
    page.text("words")
    page.code("adjointdpm demo")
    page.table(["a"], [["1"]])
    text = page.write(tmp_path / "page.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "http" not in text


def test_what_users_typed_is_escaped(tmp_path):
    page = Page("<script>title")
    page.text("<img src=x onerror=alert(1)>")
    page.table(["<b>"], [["<i>"]])
    page.images(ImageTable("<u>", torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ['"><script>']))
    text = page.write(tmp_path / "page.html").read_text()
    assert "<script>" not in text
    assert "<img src=x" not in text
    assert html.escape("<img src=x onerror=alert(1)>") in text


def test_a_link_leads_to_a_file_beside_the_page_and_is_escaped(tmp_path):
    page = Page("a title")
    page.link("<i>more", 'a "b".html')
    text = page.write(tmp_path / "page.html").read_text()
    assert re.findall(r'<a href="([^"]*)">(.*?)</a>', text) == [("a%20%22b%22.html", "&lt;i&gt;more")]


def test_rows_are_saved_as_one_sheet(tmp_path):
    above, below = torch.randint(0, 256, (2, 2, 3, 5, 4), dtype=torch.uint8)
    page = Page("a title")
    page.images(ImageTable("a", above, ["", ""]), ImageTable("b", below, ["", ""]), file=tmp_path / "x.png")
    sheet_ = (255 * read_image((tmp_path / "x.png").read_bytes())).round().to(torch.uint8)
    assert sheet_.shape == (3, 2 * 5 + 2, 2 * 4 + 2)
    assert torch.equal(sheet_[:, :5, :4], above[0])
    assert torch.equal(sheet_[:, 7:, 6:], below[1])


def test_every_image_is_described_and_columns_stay_together(tmp_path):
    page = Page("a title")
    rows = [
        ImageTable(name, torch.zeros(7, 3, 4, 4, dtype=torch.uint8), "abcdefg") for name in ("one", "two")
    ]
    page.images(*rows)
    page.curve([1.0, 2.0], "step", "loss")
    text = page.write(tmp_path / "page.html").read_text()
    alts = re.findall(r'<img[^>]* alt="([^"]*)"', text)
    assert alts == [f"{name}: {each}" for name in ("one", "two") for each in "abcdefg"] + [
        "loss against step"
    ]
    (table,) = re.findall(
        r'<div class="scroll"[^>]*>\s*<table class="images">(.*?)</table></div>', text, re.DOTALL
    )
    assert [row.count("<td>") for row in table.split("</tr>")[:-1]] == [7, 7]


def test_the_verdict_stands_on_top_and_what_made_it_below(tmp_path):
    page = Page("a title", "It is <b>lower.", {"Model": "a <i>model"})
    page.text("more")
    page.values("All settings", {"items": "3", "seed": "<u>"})
    text = page.write(tmp_path / "page.html").read_text()
    places = [text.index(each) for each in ("<h1>", "It is &lt;b&gt;lower.", "<dt>Model</dt>", "more")]
    assert places == sorted(places)
    assert "<dd>a &lt;i&gt;model</dd>" in text
    assert "<dt>items</dt><dd>3</dd><dt>seed</dt><dd>&lt;u&gt;</dd>" in text
    assert 'class="verdict"' not in Page("a title").write(tmp_path / "page.html").read_text()


def test_the_pages_script_holds_nothing_that_users_typed(tmp_path):
    page = Page("typed title")
    page.text("typed text")
    page.table(["typed head"], [["typed cell"]])
    page.images(ImageTable("typed row", torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ["typed caption"]))
    text = page.write(tmp_path / "page.html").read_text()
    (script,) = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
    assert "typed" not in script


def sources(text, kind):
    return [
        base64.b64decode(each) for each in re.findall(rf'src(?:set)?="data:{kind};base64,([^"]+)"', text)
    ]


def test_films_are_in_the_page_and_stand_still_for_those_who_ask_for_it(tmp_path):
    films = torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8)
    page = Page("a title")
    row = table_of("moving", films.float() / 255, ["one", "<two>"], 8.0)
    page.images(row, file=tmp_path / "samples.png")
    text = page.write(tmp_path / "page.html").read_text()
    moving, still = sources(text, "image/webp"), sources(text, "image/png")
    for film, content, first in zip(films, moving, still, strict=True):
        assert torch.equal((255 * read_film(content, 8)).round().to(torch.uint8), film)
        assert torch.equal((255 * read_image(first)).round().to(torch.uint8), film[0])
    pictures = re.findall(r"<picture>(.*?)</picture>", text, re.DOTALL)
    assert len(pictures) == 2
    assert all('media="(prefers-reduced-motion: reduce)"' in each for each in pictures)
    assert re.findall(r'<img alt="([^"]*)"', text) == ["moving: one", "moving: &lt;two&gt;"]
    assert 'aria-label="Videos"' in text
    names = sorted(each.name for each in (tmp_path / "samples").iterdir())
    assert names == ["moving-00000.webp", "moving-00001.webp"]
    assert (tmp_path / "samples" / names[1]).read_bytes() == moving[1]


def test_sounds_have_a_player_each_and_a_file(tmp_path):
    waveforms = torch.rand(2, 2, 100) - 0.5
    page = Page("a title")
    page.images(table_of("with it", waveforms, ["one", "two"], 8000.0), file=tmp_path / "samples")
    text = page.write(tmp_path / "page.html").read_text()
    players = sources(text, "audio/wav")
    for waveform, content in zip(waveforms, players, strict=True):
        read, rate = read_wav(content)
        assert rate == 8000
        assert torch.equal(as_16_bit(read), as_16_bit(waveform))
    assert re.findall(r'<audio controls preload="metadata" aria-label="([^"]*)"', text) == [
        "with it: one",
        "with it: two",
    ]
    assert "<button aria-label" not in text
    assert (tmp_path / "samples" / "with-it-00001.wav").read_bytes() == players[1]


def test_levels_are_not_rounded_twice():
    images = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(table_of("", images, [""], None).images, images)
    assert torch.equal(table_of("", images / 255, [""], None).images, images)
