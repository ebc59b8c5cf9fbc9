"""Pages in Chromium: their links, images, errors, contrasts and widths, as lists of what is wrong.

`python -m tests.tiny.browser FOLDER` checks every page of a folder and prints what is wrong with them; `python -m
tests.tiny.browser FOLDER PAGE IMAGE WIDTH HEIGHT` saves what a window of this size shows of a page, in 128 colors.
"""

import contextlib
import functools
import http.server
import io
import shutil
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from PIL import Image

# What a page says of itself. Contrast is that of WCAG 2.2, 1.4.3: 4.5 for text, 3 for text of 24 px (or 18.66 px and
# bold) and more. A color with an alpha lies on the backgrounds behind it; text over an image is left out.
INSPECT = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const seen = new Map();
  const parse = color => {
    if (!seen.has(color)) {
      canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; seen.set(color, [r, g, b, a / 255]); }
    return seen.get(color); };
  const over = ([r, g, b, a], [s, t, u]) => [r * a + s * (1 - a), g * a + t * (1 - a), b * a + u * (1 - a), 1];
  const light = rgb => { const [r, g, b] = rgb.slice(0, 3).map(v => (v /= 255) <= .04045 ? v / 12.92
    : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
  const behind = element => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) {
      const style = getComputedStyle(each);
      if (style.backgroundImage !== "none" && style.backgroundImage.includes("url")) return null;
      layers.push(parse(style.backgroundColor));
      if (layers.at(-1)[3] === 1) break; }
    return layers.reverse().reduce((below, layer) => over(layer, below), parse("Canvas")); };
  const visible = element => {
    for (let each = element; each; each = each.parentElement) {
      const style = getComputedStyle(each);
      if (style.visibility !== "visible" || style.opacity === "0" || each.closest("[aria-hidden=true]")) return false; }
    return true; };
  const poor = new Set(), texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, text = texts.currentNode.textContent.trim();
    if (!text || ["SCRIPT", "STYLE", "NOSCRIPT", "TEMPLATE"].includes(element.tagName)) continue;
    const box = element.getBoundingClientRect();
    if (box.width < 2 || box.height < 2 || !visible(element)) continue;
    const style = getComputedStyle(element), below = behind(element);
    if (below === null) continue;
    let alpha = 1;
    for (let each = element; each; each = each.parentElement) alpha *= +getComputedStyle(each).opacity;
    const [r, g, b, a] = parse(style.color), found = ratio(over([r, g, b, a * alpha], below), below);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && +style.fontWeight >= 700);
    if (found < (large ? 3 : 4.5) - .005)
      poor.add(`contrast ${found.toFixed(2)}: ${element.tagName}.${element.className} ${text.slice(0, 40)}`); }
  const images = [...document.images].filter(each => !each.closest("dialog"));
  return {
    poor: [...poor],
    unnamed: images.filter(each => !each.alt.trim()).map(each => each.src.slice(0, 80)),
    broken: images.filter(each => each.complete && !each.naturalWidth).map(each => each.src.slice(0, 80)),
    width: Math.max(document.documentElement.scrollWidth, document.body.scrollWidth),
    ids: [...document.querySelectorAll("[id], a[name]")].map(each => each.id || each.name),
    links: [...document.querySelectorAll("a[href], img[src]")].map(each => each.href || each.src),
  }; }"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Nothing: what is wrong is in the lists."""


@contextlib.contextmanager
def served(folder):
    """The address of a folder on this machine."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def chromium():
    """The path of Chromium; a test without it, or without playwright, is skipped."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("there is no Chromium here: apt-get install chromium")


@dataclass(frozen=True)
class Page:
    """What a browser says of one page."""

    wrong: list[str]
    ids: frozenset[str]
    links: list[str]


def looked_at(folder, names, width, scheme):
    """What a browser of some width and scheme of colors says of pages of a folder, by name."""
    from playwright.sync_api import sync_playwright

    found = {}
    with served(folder) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        page, errors = context.new_page(), []
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "response", lambda got: errors.append(f"{got.status} {got.url}") if got.status > 399 else None
        )
        for name in names:
            errors.clear()
            page.goto(f"{address}/{name}", wait_until="load")
            says = page.evaluate(INSPECT)
            wrong = [f"error: {each}" for each in errors] + says["poor"]
            wrong += [f"image without alt: {each}" for each in says["unnamed"]]
            wrong += [f"broken image: {each}" for each in says["broken"]]
            wrong += [f"{says['width']} px wide"] if says["width"] > width else []
            links = [link.removeprefix(address) for link in says["links"]]
            found[name] = Page(wrong, frozenset(says["ids"]), links)
        browser.close()
    return found


def dead_links(folder, pages):
    """Links of pages to files that are not in the folder, or to places that the page there does not have."""
    dead = []
    for name, page in pages.items():
        for link in page.links:
            if urlsplit(link).scheme:
                continue
            target, anchor = urldefrag(unquote(link))
            file = Path(folder, target.lstrip("/"))
            file = file / "index.html" if file.is_dir() else file
            inside = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else ""
            if not file.is_file() or (anchor and inside in pages and anchor not in pages[inside].ids):
                dead.append(f"{name}: dead link {link}")
    return dead


def problems(folder, names=None):
    """What is wrong with the pages of a folder, wide and light, narrow and dark."""
    folder = Path(folder)
    names = names or sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))
    wrong, pages = [], {}
    for width, scheme in ((400, "dark"), (1200, "light")):
        pages = looked_at(folder, names, width, scheme)
        wrong += [f"{n} ({width} px, {scheme}): {each}" for n, page in pages.items() for each in page.wrong]
    return wrong + dead_links(folder, pages)


def shot(folder, name, image, width, height):
    """Save what a window shows of a page as a small PNG file."""
    from playwright.sync_api import sync_playwright

    with served(folder) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        page.goto(f"{address}/{name}", wait_until="networkidle")
        content = page.screenshot()
        browser.close()
    Image.open(io.BytesIO(content)).convert("RGB").quantize(128).save(image, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        shot(*sys.argv[1:4], *map(int, sys.argv[4:]))
    else:
        print("\n".join(problems(sys.argv[1])) or "nothing is wrong")
