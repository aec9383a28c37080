"""A notebook in JupyterLab as a person has it before them: what to click, what to read, and pictures of it."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Locator, Page, expect

ARTIFACTS = Path(__file__).resolve().parents[2] / "artifacts" / "browser"
KERNELSPEC = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
EDGES = 180  # pixels of JupyterLab's own menus and bars above and below a notebook
TALLEST = 12_000
START_MS, CELL_MS = 60_000, 600_000  # after which something hangs

# Takes down what the first match in a cell says, or how it is styled, each time that it has changed.
WATCH = """(cell, selector) => {
    const seen = window.lmlabSeen = [];
    clearInterval(window.lmlabWatch);
    window.lmlabWatch = setInterval(() => {
        const element = cell.querySelector(selector);
        const now = element && (element.getAttribute("style") || element.textContent);
        if (now && seen[seen.length - 1] !== now) seen.push(now);
    }, 40);
}"""
SETTLED = """() => {
    const cells = [...document.querySelectorAll(".jp-Notebook .jp-CodeCell")];
    const failed = document.querySelector('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]');
    const done = cells.every(cell => /^\\[\\d+\\]:$/.test(cell.querySelector(".jp-InputPrompt").textContent.trim()));
    return cells.length > 0 && (done || failed !== null);
}"""
ACTIVE_ATTRIBUTES = """() => [...document.querySelectorAll(".jp-OutputArea-output *")]
    .flatMap(element => [...element.attributes].map(attribute => attribute.name))
    .filter(name => name.startsWith("on"))"""
HEIGHT = """() => {
    const cells = [...document.querySelectorAll(".jp-Notebook .jp-Cell")];
    return cells[cells.length - 1].getBoundingClientRect().bottom - cells[0].getBoundingClientRect().top;
}"""


@dataclass(frozen=True)
class LabServer:
    """A JupyterLab that runs. url: ends in a slash. home: the folder it shows, where LMLAB_HOME leads, too."""

    url: str
    token: str
    home: Path

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    def write_notebook(self, name: str, *cells: str) -> None:
        """Put a notebook of code cells into the notebooks folder."""
        made = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata={"kernelspec": KERNELSPEC}
        )
        nbformat.write(made, self.home / "notebooks" / name)

    def wait_for_kernel(self, name: str) -> None:
        """Wait until a notebook's kernel is idle and someone listens to it. JupyterLab itself shows it as idle before."""
        deadline = time.monotonic() + START_MS / 1000
        while time.monotonic() < deadline:
            open_ones = self._ask("GET", "api/sessions")
            kernels = [session["kernel"] for session in open_ones if session["path"] == f"notebooks/{name}"]
            if any(kernel["execution_state"] == "idle" and kernel["connections"] for kernel in kernels):
                return
            time.sleep(0.1)
        raise TimeoutError(f"the kernel of {name} is not ready after {START_MS / 1000:.0f} s")

    def end_kernels(self) -> None:
        """End the kernels of all open notebooks."""
        for session in self._ask("GET", "api/sessions"):
            self._ask("DELETE", f"api/sessions/{session['id']}")

    def _ask(self, method: str, path: str) -> Any:
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")


class NotebookPage:
    """A notebook in a tab of the browser, usable once `make_ready` has returned. Code cells are counted from 0."""

    def __init__(self, page: Page, server: LabServer, name: str) -> None:
        self.page, self.server, self.name = page, server, name
        self.notebook = page.locator(".jp-Notebook")
        page.set_default_timeout(START_MS)

    def make_ready(self) -> None:
        """Load the page, wait for the kernel, and give the notebook the whole window."""
        self.page.goto(f"{self.server.url}lab/tree/notebooks/{self.name}?token={self.server.token}&reset")
        self.server.wait_for_kernel(self.name)
        self.wait_until_idle(START_MS)
        self.page.keyboard.press("Control+b")
        expect(self.page.locator("#jp-left-stack")).to_be_hidden()

    # --- doing ------------------------------------------------------------------------------------------------------

    def choose(self, menu: str, *items: str) -> None:
        """Choose from the menu bar."""
        self.page.locator(".lm-MenuBar-itemLabel").get_by_text(menu, exact=True).click()
        shown = self.page.locator(".lm-Menu-itemLabel")
        for item in items[:-1]:
            shown.get_by_text(item, exact=True).hover()
        shown.get_by_text(items[-1], exact=True).click()

    def run_all(self) -> None:
        """Ask for every cell to be run."""
        self.choose("Run", "Run All Cells")

    def start_cell(self, index: int) -> Locator:
        """Run one cell as Shift+Enter does, and return it at once."""
        cell = self.cell(index)
        cell.locator(".jp-InputArea-editor").click()
        self.page.keyboard.press("Shift+Enter")
        return cell

    def run_cell(self, index: int) -> Locator:
        """Run one cell to its end, which must not be an error."""
        cell = self.start_cell(index)
        self.wait_for_cell(index)
        self.assert_no_error()
        return cell

    def interrupt(self) -> None:
        """Press Stop in the toolbar."""
        self.page.locator('.jp-NotebookPanel-toolbar [data-command="notebook:interrupt-kernel"]').click()

    def drag(self, handle: Locator, pixels: int) -> None:
        """Drag something to the right with the mouse."""
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + pixels, y, steps=8)
        self.page.mouse.up()

    # --- reading ----------------------------------------------------------------------------------------------------

    def cell(self, index: int) -> Locator:
        """A code cell by its place among them."""
        return self.notebook.locator(".jp-CodeCell").nth(index)

    def cell_with(self, text: str) -> Locator:
        """The one code cell that holds a text."""
        return self.notebook.locator(".jp-CodeCell").filter(has_text=text)

    def wait_for_cell(self, index: int) -> None:
        """Wait until a cell has a number for a prompt instead of a star."""
        expect(self.cell(index).locator(".jp-InputPrompt")).to_have_text(re.compile(r"^\[\d+\]:$"), timeout=CELL_MS)

    def wait_for_all(self) -> None:
        """Wait until every cell has run, and see that none ended in an error."""
        self.page.wait_for_function(SETTLED, timeout=CELL_MS)
        self.assert_no_error()
        self.wait_until_idle()

    def wait_until_idle(self, timeout: float = CELL_MS) -> None:
        self.page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=timeout)

    def assert_no_error(self) -> None:
        """No cell shows a traceback, or anything else on stderr."""
        shown = self.notebook.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]')
        assert shown.all_text_contents() == []

    def watch(self, cell: Locator, selector: str) -> None:
        """From now on take down what the first match in a cell says, or how it is styled; see `seen`."""
        cell.evaluate(WATCH, selector)

    def seen(self) -> list[str]:
        """What `watch` took down, in order, each value that differs from the one before it."""
        return list(self.page.evaluate("window.lmlabSeen"))

    def active_attributes(self) -> list[str]:
        """The names of all attributes in outputs that could run a script."""
        return list(self.page.evaluate(ACTIVE_ATTRIBUTES))

    # --- pictures ---------------------------------------------------------------------------------------------------

    def set_theme(self, theme: str) -> None:
        """Choose JupyterLab's light or dark theme, as the Settings menu does."""
        self.choose("Settings", "Theme", THEMES[theme])
        shown = f'body[data-jp-theme-name="{THEMES[theme]}"]'
        self.page.locator(shown).wait_for(state="attached")

    def brightness(self, selector: str) -> float:
        """How bright the background of the first element that matches is, 0 to 255."""
        colour = self.notebook.locator(selector).first.evaluate("element => getComputedStyle(element).backgroundColor")
        numbers = [float(number) for number in re.findall(r"[\d.]+", colour)[:3]]
        return sum(numbers) / 3

    def picture_as_it_is(self, name: str) -> None:
        """Save what the window shows as artifacts/browser/NAME.png."""
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=ARTIFACTS / f"{name}.png")

    def picture(self, name: str) -> dict[str, float]:
        """Save the whole notebook as artifacts/browser/NAME-light.png and NAME-dark.png; how bright its cards are."""
        before = self.page.viewport_size
        assert before is not None
        for _ in range(2):  # cells out of sight have a height only once they were seen
            tall = min(int(self.page.evaluate(HEIGHT)) + EDGES, TALLEST)
            self.page.set_viewport_size({"width": before["width"], "height": tall})
            time.sleep(0.3)
        brightness = {}
        for theme in ("dark", "light"):
            self.set_theme(theme)
            time.sleep(0.3)  # colours fade over
            self.page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
            brightness[theme] = self.brightness(".lmlab")
            self.picture_as_it_is(f"{name}-{theme}")
        self.page.set_viewport_size(before)
        return brightness
