"""The notebooks in JupyterLab and Chromium: run, watch, stop, resume, compare, write; what others wrote stays text."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from notebook_page import LabServer, NotebookPage
from playwright.sync_api import expect
from run_logs import RunWriter, write_run

from lmlab.events import read

pytestmark = pytest.mark.browser

Open = Callable[[str], NotebookPage]
TINY = {
    "n_layers": 1, "d_model": 32, "n_heads": 2, "d_ff": 64, "max_seq_len": 16, "batch_size": 4, "learning_rate": 3e-3,
    "sampling_max_length": 40, "seed": 7,
}  # fmt: skip
PAYLOAD = '<img src=x onerror="window.fired=1;alert(1)">'
ENDLESS = 100_000  # steps; some test stops them


def percents(styles: list[str]) -> list[float]:
    """The widths that a progress bar had, in per cent."""
    return [float(found[1]) for style in styles if (found := re.search(r"width:\s*([\d.]+)%", style))]


def test_the_quickstart_runs_from_top_to_bottom_and_shows_its_progress(open_notebook: Open) -> None:
    page = open_notebook("00_quickstart.ipynb")
    page.watch(page.cell_with("lab.run("), ".lm-bar div")
    page.run_all()
    page.wait_for_all()
    widths = percents(page.seen())
    assert widths == sorted(widths)
    assert len(widths) >= 5
    assert widths[-1] == 100
    brightness = page.picture("quickstart")
    assert brightness["dark"] < 60 < 200 < brightness["light"]


def test_the_dashboard_runs_and_its_buttons_train_stop_and_delete(open_notebook: Open) -> None:
    page = open_notebook("07_dashboard.ipynb")
    page.run_all()
    page.wait_for_all()
    page.picture("dashboard")

    form = page.cell_with("config_form(")
    form.get_by_role("tab", name="Training").click()
    label = page.page.locator(".widget-label", has_text=re.compile("^max_steps$"))
    steps = form.locator(".widget-hbox").filter(has=label).locator("input")
    steps.fill(str(ENDLESS))
    steps.press("Enter")
    expect(form).to_contain_text("max_steps=100,000")
    form.get_by_role("button", name="Run").click()
    expect(form.locator(".lm-pill")).to_have_text("running")
    expect(form.locator(".lm-value").first).to_have_text(re.compile(r"^[1-9][\d,]* of 100,000$"))
    form.get_by_role("button", name="Stop").click()
    expect(form.locator(".lm-pill")).to_have_text("stopped")
    form.locator(".lm-bar").scroll_into_view_if_needed()
    page.picture_as_it_is("dashboard-form")

    models = page.cell_with("registry_browser(")
    kept, deleted = (name.split()[-1] for name in models.locator("option").all_text_contents())
    models.locator("select").select_option(index=1)
    models.get_by_role("button", name="Delete…").click()
    expect(models).to_contain_text(f"delete {deleted} and its files")
    models.get_by_role("button", name="Delete for good").click()
    expect(models).to_contain_text(f"{deleted} is deleted")
    assert models.locator("option").all_text_contents() == [kept]
    page.assert_no_error()


def test_stop_pauses_a_run_and_the_next_cell_resumes_it(open_notebook: Open, lab_server: LabServer) -> None:
    lab_server.write_notebook(
        "stop.ipynb",
        "import lmlab as lab",
        f"run = lab.run({TINY}, max_steps={ENDLESS}, run_name='stopped')",
        "run",
        "run = run.resume(max_steps=run.step + 300)",
        "run",
    )
    page = open_notebook("stop.ipynb")
    page.run_cell(0)
    training = page.start_cell(1)
    expect(training.locator(".lm-pill")).to_have_text("running")
    first = training.locator(".lm-value").first
    expect(first).to_have_text(re.compile(r"^[\d,]{3,} of "))
    page.picture("training")
    page.interrupt()
    page.wait_for_cell(1)
    expect(training.locator(".lm-pill")).to_have_text("stopped")
    card = page.run_cell(2)
    expect(card.locator(".lm-pill")).to_have_text("stopped")
    expect(card).to_contain_text("--resume")
    expect(card).to_contain_text("step-00")
    stopped_at = read(lab_server.runs / "stopped" / "log.jsonl")[-1]["step"]

    page.watch(page.cell(3), ".lm-bar div")
    page.run_cell(3)
    assert len(percents(page.seen())) > 1
    card = page.run_cell(4)
    expect(card.locator(".lm-pill")).to_have_text("completed")
    page.assert_no_error()
    events = read(lab_server.runs / "stopped" / "log.jsonl")
    assert [event["kind"] for event in events if event["event"] == "run_start"] == ["new", "resumed"]
    assert [event["status"] for event in events if event["event"] == "run_end"] == ["stopped", "completed"]
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, stopped_at + 301))
    page.picture("stopped-and-resumed")


def test_dragging_the_smoothing_slider_changes_the_picture(open_notebook: Open, lab_server: LabServer) -> None:
    for seed in (0, 1):
        write_run(lab_server.runs / f"compared-{seed}", steps=300, seed=seed)
    lab_server.write_notebook("picker.ipynb", "import lmlab as lab", "picker = lab.run_picker()\npicker")
    page = open_notebook("picker.ipynb")
    page.run_cell(0)
    cell = page.run_cell(1)
    picture = cell.locator(".lm-figure img")
    before = picture.get_attribute("src")
    page.drag(cell.locator(".noUi-handle"), 60)
    expect(cell.locator(".widget-readout")).not_to_have_text("10")
    expect(picture).not_to_have_attribute("src", before)
    page.assert_no_error()
    page.picture("picker")


def test_a_prompt_is_gone_on_with_token_by_token(open_notebook: Open, lab_server: LabServer) -> None:
    lab_server.write_notebook(
        "prompt.ipynb",
        "import lmlab as lab",
        f"run = lab.run({TINY}, max_steps=100, run_name='writer')",
        "box = lab.prompt_box(run)\nbox",
    )
    page = open_notebook("prompt.ipynb")
    page.run_cell(0)
    page.run_cell(1)
    cell = page.run_cell(2)
    cell.locator("textarea").fill("The small dog")
    cell.locator("input[type=number]").first.fill("5000")
    page.watch(cell, ".lm-text")
    cell.get_by_role("button", name="Write").click()
    expect(cell.locator(".lm-text b")).to_have_text("The small dog")
    page.wait_until_idle()
    seen = page.seen()
    lengths = [len(text) for text in seen]
    assert all(text.startswith("The small dog") for text in seen)
    assert lengths == sorted(lengths)
    assert len(lengths) >= 3
    assert lengths[-1] == len("The small dog") + 5000
    page.picture("prompt")


def test_what_others_wrote_stays_text(open_notebook: Open, lab_server: LabServer) -> None:
    folder = write_run(lab_server.runs / "hostile")
    run = RunWriter(folder)
    run.event("warning", 40, message=PAYLOAD)
    run.event("sample", 40, prompt=PAYLOAD, sample_text=PAYLOAD + " and more")
    lab_server.write_notebook(
        "hostile.ipynb",
        "import lmlab as lab\nfrom IPython.display import HTML",
        f"run = lab.attach('hostile')\nrun.set_notes({PAYLOAD!r})\nrun.tag({PAYLOAD!r})\nrun",
        "run.watch()",
        "lab.runs()",
        "lab.run_picker()",
        f"HTML({PAYLOAD.replace('alert(1)', '')!r})",
    )
    page = open_notebook("hostile.ipynb")
    page.run_cell(0)
    for index, times in ((1, 4), (2, 2), (3, 2)):
        shown = page.run_cell(index).locator(".jp-OutputArea").text_content() or ""
        assert shown.count(PAYLOAD) >= times, f"cell {index}"
    page.run_cell(4)
    page.picture("hostile")
    assert page.active_attributes() == []
    assert page.page.evaluate("window.fired") is None
    # The control: the same text as HTML does run here, so that what is above shows something.
    page.run_cell(5)
    page.page.wait_for_function("window.fired === 1")
    assert page.active_attributes() == ["onerror"]
