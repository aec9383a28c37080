"""JupyterLab on 127.0.0.1 and Chromium, each in folders of its own, for tests that use notebooks as a person does.

A missing piece is a failure: whoever asks for `-m browser` wants to know.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from notebook_page import LabServer, NotebookPage
    from playwright.sync_api import BrowserContext

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Nothing but 127.0.0.1 is asked for: no news, no updates, no catalogue of extensions.
LAB_FLAGS = [
    "--no-browser",
    "--allow-root",
    "--ServerApp.ip=127.0.0.1",
    "--ServerApp.port=0",
    "--LabApp.extension_manager=readonly",
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
]
SETTINGS = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
START_SECONDS = 60.0
END_SECONDS = 20.0


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Plain pytest, which leaves these tests out, needs no Playwright; with `-m browser` it has to be there."""
    asked_for = config.getoption("-m") == "browser"
    return True if not asked_for and importlib.util.find_spec("playwright") is None else None


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note on a test that it failed, so that its pages can be shown."""
    report = yield
    item.stash[FAILED] = report.failed
    return report


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """JupyterLab in a copy of the notebooks, with runs, models and settings in temporary folders."""
    from notebook_page import LabServer

    home = tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "configs", home / "configs")
    left_behind = shutil.ignore_patterns(".ipynb_checkpoints", "runs", "models")
    shutil.copytree(ROOT / "notebooks", home / "notebooks", ignore=left_behind)
    folders = {name: tmp_path_factory.mktemp(name) for name in ("config", "data", "runtime", "ipython")}
    overrides = folders["config"] / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir()
    overrides.write_text(json.dumps(SETTINGS), encoding="utf-8")
    token = secrets.token_hex(16)
    environment = {
        **os.environ,
        **{f"JUPYTER_{name.upper()}_DIR": str(folders[name]) for name in ("config", "data", "runtime")},
        "IPYTHONDIR": str(folders["ipython"]),
        "JUPYTER_TOKEN": token,
        "LMLAB_HOME": str(home),
        "LMLAB_RUNS_DIR": str(home / "runs"),
        "LMLAB_MODELS_DIR": str(home / "models"),
    }
    log = folders["runtime"] / "server.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *LAB_FLAGS, f"--ServerApp.root_dir={home}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield LabServer(wait_for_address(process, folders["runtime"], log), token, home)
    finally:
        end(process)


def wait_for_address(process: subprocess.Popen[bytes], runtime: Path, log: Path) -> str:
    """The address that the server wrote down once it listened, its port picked by the system."""
    deadline = time.monotonic() + START_SECONDS
    information = runtime / f"jpserver-{process.pid}.json"
    while process.poll() is None and time.monotonic() < deadline:
        try:
            return str(json.loads(information.read_text(encoding="utf-8"))["url"])
        except (OSError, ValueError):  # not there, or not all of it
            time.sleep(0.05)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8', errors='replace')}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End the server and whatever it started: kernels, and runs that their cells launched."""
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(started, timeout=5)
    for left in alive:
        left.kill()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """Chromium with an empty profile."""
    if not CHROMIUM.is_file():
        pytest.fail(f"no browser at {CHROMIUM}; install Debian's package chromium, as .ci/run does")
    from notebook_page import START_MS
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=START_MS)
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            args=CHROMIUM_FLAGS,
            viewport={"width": 1180, "height": 900},
        )
        yield context
        context.close()


@pytest.fixture
def open_notebook(
    request: pytest.FixtureRequest, browser: BrowserContext, lab_server: LabServer
) -> Iterator[Callable[[str], NotebookPage]]:
    """Opens a notebook of the server by name. The test fails if a page asks the outside for anything, lets a dialog
    pop up or has an error in its scripts; the page of a test that fails is saved as a picture."""
    from notebook_page import NotebookPage

    strange: list[str] = []
    pages: list[NotebookPage] = []

    def open_page(name: str) -> NotebookPage:
        page = browser.new_page()
        page.on("request", lambda request: strange.extend(outside(request.url, lab_server.url)))
        page.on("pageerror", lambda error: strange.append(f"script error: {error}"))
        page.on("dialog", lambda dialog: (strange.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        pages.append(NotebookPage(page, lab_server, name))
        pages[-1].make_ready()
        return pages[-1]

    yield open_page
    for opened in pages:
        if request.node.stash.get(FAILED, False):
            opened.picture_as_it_is(f"failed-{request.node.name}")
        opened.page.close()
    lab_server.end_kernels()
    assert not strange


def outside(url: str, server: str) -> list[str]:
    """The address itself where it leads neither to the server nor into the page."""
    inside = url.startswith((server, server.replace("http", "ws", 1), "data:", "blob:", "about:"))
    return [] if inside else [f"outside request: {url}"]
