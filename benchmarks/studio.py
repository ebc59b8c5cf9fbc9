"""The studio under use: time to the first image, many runs, several people, cancels, errors, processes, memory.

    python benchmarks/studio.py [--runs 20] [--sessions 3] [--cancels 5] [--output docs/studio.json]

The real command and a real Chromium, which is driven as a person would. The first image is that of a click on Run as
soon as the page is there. Then runs in a row on one page, each with the next of noise, noise, token and LoRA; one run
on each of several pages at once; and runs that are stopped in their midst. Resident memory of the server is read when
it is idle: after the first run of each kind, and at the end, since the question is what stays behind. After Ctrl-C no
process of the server's group may be left. `--screenshots FOLDER` saves the page before, during and after a run.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright
from record import write_record

KINDS = {
    "noise": "Noise: one image",
    "token": "Token: a new word",
    "lora": "LoRA: the model's weights",
}
ENDED = ".status.done, .status.failed"
LONG = 600_000  # milliseconds


@contextmanager
def server(folder: Path) -> Iterator[tuple["subprocess.Popen[str]", str, float]]:
    """The command; its process, the page's address and when it was started."""
    began = time.monotonic()
    command = [sys.executable, "-m", "adjointdpm", "studio", "--output_dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield process, line.split()[1], began
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def resident(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def processor(pid: int) -> float:
    """Processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle(pid: int) -> int:
    """Resident memory once it has stayed the same for a second, 10 s later at the latest."""
    before = 0
    for _ in range(10):
        time.sleep(1)
        now = resident(pid)
        if now == before:
            break
        before = now
    return before


def group(pid: int) -> list[int]:
    """The processes of a group that are alive."""
    found: list[int] = []
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = each.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[2]) == pid and fields[0] != "Z":
            found.append(int(each.parent.name))
    return found


class Visitor:
    """A person with a page of their own."""

    def __init__(self, browser: Browser, url: str, wrong: list[str], **settings: Any) -> None:
        size = {"viewport": {"width": 1200, "height": 1000}}
        self.context = browser.new_context(**size | settings)  # pyright: ignore
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(LONG)
        self.page.on("pageerror", lambda error: wrong.append(str(error)))
        self.page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        self.page.goto(url)
        self.page.wait_for_selector("#run")
        self.wrong = wrong

    def choose(self, kind: str = "noise", steps: int = 12) -> None:
        """What is optimized, and in how many steps."""
        self.page.get_by_label(KINDS[kind]).click()
        field = self.page.locator("#steps input[type=number]")
        field.fill(str(steps))
        field.press("Tab")
        self.page.wait_for_timeout(300)

    def begin(self) -> None:
        """Press Run."""
        self.page.click("#run")
        self.page.wait_for_function(f"!document.querySelector('{ENDED}')")

    def step(self, number: int) -> None:
        """Wait for a step of the run."""
        self.page.wait_for_function(
            "n => Number(document.querySelector('#status').textContent.match(/Step (\\d+)/)?.[1] ?? 0) >= n",
            arg=number,
        )

    def end(self) -> str:
        """Wait for the run's end, and return what the page says; a failure is noted."""
        self.page.wait_for_selector(ENDED)
        said = self.page.inner_text("#status").strip()
        if self.page.locator(".status.failed").count():
            self.wrong.append(said)
        return said


def screenshots(browser: Browser, url: str, folder: Path, wrong: list[str]) -> None:
    """The page before, during and after a run, wide and narrow, light and dark."""
    folder.mkdir(parents=True, exist_ok=True)
    for width, scheme in ((1200, "light"), (400, "dark")):
        visitor = Visitor(
            browser, url, wrong, viewport={"width": width, "height": 1000}, color_scheme=scheme
        )
        visitor.page.wait_for_timeout(1000)
        for moment in ("before", "during", "after"):
            if moment == "during":
                visitor.begin()
                visitor.step(4)
            if moment == "after":
                visitor.end()
                visitor.page.wait_for_timeout(1000)
            visitor.page.screenshot(path=folder / f"studio-{width}-{moment}.png", full_page=True)
        visitor.context.close()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--sessions", type=int, default=3)
    parser.add_argument("--cancels", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each optimization")
    parser.add_argument("--screenshots", type=Path)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    wrong: list[str] = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with server(Path(folder)) as (process, url, began):
            listening = time.monotonic() - began
            person = Visitor(browser, url, wrong)
            person.page.click("#run")
            person.page.wait_for_selector("#live img")
            first_image, of_it = time.monotonic() - began, processor(process.pid)
            load = os.getloadavg()[0]
            person.end()
            first = [("noise", person.end())]
            for kind in ("token", "lora"):
                person.choose(kind, given.steps)
                person.begin()
                first.append((kind, person.end()))
            before = idle(process.pid)
            row = ["noise", "noise", "token", "lora"]
            for number in range(given.runs):
                person.choose(row[number % len(row)], given.steps)
                person.begin()
                print(f"{row[number % len(row)]}: {person.end()}", flush=True)
            after_row = idle(process.pid)
            people = [Visitor(browser, url, wrong) for _ in range(given.sessions)]
            for each in people:
                each.choose("noise", given.steps)
            for each in people:
                each.begin()
            print([each.end() for each in people], flush=True)
            cancelled = 0
            for _ in range(given.cancels):
                person.choose("noise", 100)
                person.begin()
                person.step(1)
                person.page.click("#stop")
                cancelled += person.end().startswith("Stopped after")
            for each in (person, *people):
                each.context.close()
            after = idle(process.pid)
            children = [each for each in group(process.pid) if each != process.pid]
            if given.screenshots is not None:
                screenshots(browser, url, given.screenshots, wrong)
        left = group(process.pid)
        browser.close()
    figures = {
        "seconds to the page's address": listening,
        "seconds to the first image": first_image,
        "of these, processor seconds of the server": of_it,
        "processes that wanted a core meanwhile (load average)": load,
        "runs in a row": given.runs,
        "sessions at once": given.sessions,
        "cancels": cancelled,
        "errors": wrong,
        "child processes": len(children),
        "processes left after Ctrl-C": len(left),
        "exit code": process.returncode,
        "resident bytes after one run of each kind": before,
        "resident bytes after the runs in a row": after_row,
        "resident bytes at the end": after,
        "growth": after / before - 1,
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    write_record(given.output, "studio.py", sys.argv[1:], cores=os.cpu_count(), figures=figures)


if __name__ == "__main__":
    main()
