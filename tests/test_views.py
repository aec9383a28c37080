"""Views: what they show is true, what others wrote stays text, and nothing is left open."""

from __future__ import annotations

import itertools
import math
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pytest
from run_logs import RunWriter, write_run

from lmlab import words
from lmlab.console import Console
from lmlab.entries import Entry
from lmlab.errors import UsageError
from lmlab.events import read
from lmlab.history import History
from lmlab.record import Record
from lmlab.views import cards, live, plots
from lmlab.views.curves import smooth, thin, ticks, value_range
from lmlab.views.figure import figure_html, figure_png, label
from lmlab.views.html import View, bar, escape, page
from lmlab.views.microscope import microscope
from lmlab.views.svg import Line, chart, sparkline

# What others may write into names, samples, configs and notes.
PAYLOADS = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</div></div><iframe src=javascript:alert(1)>",
    "<!--",
    "]]><b>&lt;i&gt;",
    "</style><style>*{display:none}",
    "&#60;script&#62;",
    "\x00<a href=javascript:alert(1)>\x1b[31m\u202e",
    "{{constructor.constructor('alert(1)')()}}${alert(1)}",
]
ALLOWED = {
    "style", "div", "span", "b", "table", "thead", "tbody", "tr", "th", "td", "img",
    "svg", "polyline", "circle", "line", "text", "tspan", "title",
}  # fmt: skip


class Strict(HTMLParser):
    """Reads HTML as a browser would, and takes note of all tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: dict[str, list[str]] = {}
        self.text = ""
        self._inside_style = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._inside_style = tag == "style"
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self._inside_style = False

    def handle_data(self, data: str) -> None:
        if not self._inside_style:
            self.text += data


def assert_harmless(html: str) -> Strict:
    """Only our own tags, no handler, no script, no resource from elsewhere, no id, and every tag is closed."""
    seen = Strict(html)
    assert seen.tags <= ALLOWED, seen.tags - ALLOWED
    assert not [name for name in seen.attributes if name.startswith("on") or name in ("id", "href")]
    assert all(src.startswith("data:image/png;base64,") for src in seen.attributes.get("src", []))
    assert not re.search(r"url\(|@import|expression\(", " ".join(seen.attributes.get("style", [])))
    ElementTree.fromstring(f"<all>{html}</all>")
    return seen


def hostile_run(folder: Path, payload: str) -> Record:
    run = RunWriter(folder)
    link = {"model_name": payload, "run_id": payload, "step": payload}
    model = {"model_name": payload, "model_id": payload, "architecture_type": payload, "n_parameters": payload}
    run.start(
        payload, config={"optimizer": payload, payload: payload, "max_steps": 40}, run_id=payload, config_hash=payload,
        git_commit=payload, model=model, lineage=[link], tokenizer=payload, device=payload, precision=payload,
        threads=payload, versions={payload: payload}, data={"path": payload, "sha256": payload}, hooks=[payload],
    )  # fmt: skip
    run.step(1, 2.0)
    run.evaluate(1, 2.0)
    run.checkpoint(1)
    run.event("warning", 1, message=payload)
    run.event("sample", 1, prompt=payload, sample_text=payload * 2)
    run.event("run_end", 1, status=payload, seconds=1)
    record = Record(folder)
    record.set_notes(payload.replace("\x00", ""))
    record.tag(payload)
    return record


def model_entry(name: str, **fields: Any) -> Entry:
    entry = {"source": "custom", "architecture_type": "qwen", "local_path": "m", "created_at": "2026-01-01T00:00:00Z"}
    return Entry.model_validate({"model_name": name, **entry, **fields})


# --- safety ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_others_wrote_stays_text_in_every_view(tmp_path, payload):
    record = hostile_run(tmp_path / "run", payload)
    plain = Record(write_run(tmp_path / "plain"))
    entry = model_entry("tiny", license=payload, model_id=payload, architecture_type=payload)
    readings = {payload: [None, 1.0], "after": [None, 0.5]}
    views = {
        "card": cards.run_card(record),
        "runs": cards.runs_table([record, plain]),
        "models": cards.models_table([entry], {payload: payload}),
        "comparison": cards.comparison_table([record, plain], noise=0.1),
        "difference": cards.difference_card(cards.ShownDifference.between(plain, record)),
        "samples": cards.samples_table([payload], {payload: [payload + payload]}),
        "live": live.live_view(record),
        "microscope": microscope([payload, "x"], [1, 2], readings, title=payload),
    }
    shown = payload.replace("\x00", "\ufffd").replace("\x1b", "\ufffd")
    for name, view in views.items():
        seen = assert_harmless(view.html)
        assert shown in seen.text, f"{name} does not show it whole"


def test_a_hostile_run_id_is_drawn_as_a_label(tmp_path):
    records = [hostile_run(tmp_path / str(index), payload) for index, payload in enumerate(PAYLOADS)]
    assert figure_png(plots.compare(records))[:4] == b"\x89PNG"


def test_views_are_self_contained_and_know_both_themes(tmp_path):
    html = cards.run_card(Record(write_run(tmp_path / "run"))).html
    assert "http" not in html
    for selector in ("prefers-color-scheme: dark", "[data-jp-theme-light=true]", "[data-jp-theme-light=false]"):
        assert selector in html
    assert len(page()) < 8000, "the style sheet is part of every output"


def test_nothing_breaks_out_of_an_attribute():
    for payload in PAYLOADS:
        seen = Strict(f'<div title="{escape(payload)}"></div>')
        assert list(seen.attributes) == ["title"]
    assert escape("\ud800a\x00b") == "?a\ufffdb"
    assert "width:0.0%" in bar(math.nan)
    assert "width:100.0%" in bar(7.0)


# --- what the views say ---------------------------------------------------------------------------------------------


def test_the_card_says_how_a_run_stands_and_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = Record(
        write_run(tmp_path / "runs" / "my run", steps=30, status="stopped", loss=lambda step, _: 4 - step / 10)
    )
    record.tag("keep")
    text = Strict(cards.run_card(record).html).text
    said = ("stopped", "my run", "0123456789abcdef", "aaaaaaaaaa", "custom-transformer", "12.3k", "cpu · fp32")
    for expected in (
        *said,
        "30 of 40",
        "1.0000",
        "1.0500 at 30",
        "#keep",
        "The fox found a red kite.",
        "step-00000030",
    ):
        assert expected in text, expected
    assert "python main.py --resume 'runs/my run'" in text
    assert "--max-steps" not in text, "it has not come to its end"
    done = Record(write_run(tmp_path / "runs" / "done"))
    assert "python main.py --resume runs/done --max-steps 80" in Strict(cards.run_card(done).html).text
    lines = cards.run_card(done).text.splitlines()
    assert lines[0] == "done: completed"


def test_the_card_of_an_empty_run_is_a_card(tmp_path):
    assert "empty" in Strict(cards.run_card(Record(tmp_path)).html).text


def test_lineage_reads_from_the_oldest_to_this_run(tmp_path):
    run = RunWriter(tmp_path / "run")
    run.start(
        "fine-tune",
        lineage=[{"model_name": "base", "run_id": None}, {"model_name": "notes", "run_id": "r1", "step": 9}],
    )
    assert "base → notes (run r1, step 9) → this run" in Strict(cards.run_card(Record(tmp_path / "run")).html).text


def test_tables_list_runs_and_models(tmp_path):
    runs = cards.Runs([Record(write_run(tmp_path / name)) for name in ("one", "two")])
    html = Strict(runs._repr_html_()).text
    assert "one" in html
    assert "two" in html
    assert "40/40" in html
    assert repr(runs).count("completed") == 2
    assert "no runs yet" in repr(cards.Runs())
    models = cards.Models(
        [
            model_entry("child", fine_tuned_from="parent", source="fine-tuned", n_parameters=1_500_000),
            model_entry("parent", size_bytes=12_800_000),
        ]
    )
    lines = repr(models).splitlines()
    assert lines[1].startswith("parent")
    assert lines[2].startswith("└─ child")
    assert "1.5M" in lines[2]
    assert "12.8 MB" in lines[1]
    assert "no models yet" in repr(cards.Models())
    assert_harmless(models._repr_html_())


def test_a_table_of_runs_is_as_they_stand_when_it_is_shown(tmp_path):
    folder = write_run(tmp_path / "run", steps=30, status=None)
    runs = cards.Runs([Record(folder)])
    RunWriter(folder).step(31, 1.0)
    assert "31/40" in repr(runs)
    RunWriter(folder).event("run_end", 31, status="stopped", seconds=1.0)
    html = Strict(runs._repr_html_()).text
    assert "31/40" in html
    assert "stopped" in html
    shutil.rmtree(folder)
    assert "no runs yet" in repr(runs), "it was deleted"


def test_copies_of_a_run_keep_apart_in_tables_and_legends(tmp_path):
    shutil.copytree(write_run(tmp_path / "first"), tmp_path / "copy")
    runs = [Record(tmp_path / name) for name in ("first", "copy")]
    assert "first (folder copy)" in Strict(cards.runs_table(runs).html).text
    assert "first (folder copy)" in Strict(cards.run_card(runs[1]).html).text
    assert list(drawn_lines(plots.compare(runs))) == ["first", "first (folder copy)"]
    assert re.findall(r"^(same(?: \(2\))?) ", repr(cards.comparison_table(runs, labels=["same"] * 2)), re.M) == [
        "same", "same (2)"
    ]  # fmt: skip


def test_the_best_run_stands_out_and_noise_is_named(tmp_path):
    runs = [Record(write_run(tmp_path / f"run{i}", loss=lambda step, _, i=i: 2 + i / 100)) for i in range(3)]
    view = cards.comparison_table(runs, noise=0.015)
    assert re.findall(r'<b class="lm-good">([\d.]+)</b>', view.html) == ["2.0500"]
    assert "differences below 0.0150 nats are noise of the seed; not worth telling from the best: run1" in view.text


def test_the_table_calls_the_runs_by_their_labels(tmp_path):
    runs = [Record(write_run(tmp_path / f"run{i}", loss=lambda step, _, i=i: 2 + i / 100)) for i in range(2)]
    view = cards.comparison_table(runs, noise=0.015, labels=["wide", "<b>deep"])
    assert [line.split()[0] for line in view.text.splitlines()[1:3]] == ["wide", "<b>deep"]
    assert "not worth telling from the best: <b>deep" in view.text
    assert "run0" not in view.text
    assert "wide" in assert_harmless(view.html).text
    rates = cards.comparison_table(runs, noise=0.015, labels=[2e-4, 4e-3])
    assert "not worth telling from the best: 0.004" in rates.text
    assert list(drawn_lines(plots.compare(runs, labels=[2e-4, 4e-3]))) == ["0.0002", "0.004"]


@pytest.mark.parametrize(("n_varied", "losses_first"), [(2, False), (9, True)])
def test_the_losses_of_a_comparison_are_not_pushed_out_of_sight(tmp_path, n_varied, losses_first):
    configs = [{f"field_{number}": value for number in range(n_varied)} for value in (1, 2)]
    runs = [Record(write_run(tmp_path / f"run{i}", config=config)) for i, config in enumerate(configs)]
    heading = cards.comparison_table(runs).text.splitlines()[0]
    assert heading.startswith("Run")
    assert all(f"field_{number}" in heading for number in range(n_varied))
    assert (heading.index("Validation loss") < heading.index("field_0")) == losses_first


def test_a_difference_shows_itself_in_both_forms(tmp_path):
    a, b = Record(write_run(tmp_path / "a")), Record(write_run(tmp_path / "b", seed=1))
    difference = cards.ShownDifference.between(a, b)
    assert difference.first_step == 1
    assert "seed" in Strict(difference._repr_html_()).text
    assert "config: seed: 0 -> 1" in repr(difference)


def test_samples_stand_side_by_side_with_their_prompt_marked():
    view = cards.samples_table(["The", "A"], {"before": ["The xqz", "A b"], "after": ["The fox", "A kite"]})
    assert "<b>The</b> fox" in view.html
    text = Strict(view.html).text
    assert text.index("The xqz") < text.index("The fox") < text.index("A b") < text.index("A kite")


def test_the_microscope_shades_by_loss_and_tells_ids():
    view = microscope(["a", "\n", "b", "c"], [7, 8, 9, 10], [None, 0.0, 2.0, 4.0], title="x", ceiling=4.0)
    seen = assert_harmless(view.html)
    shades = [float(alpha) for alpha in re.findall(r"rgba\(var\(--lm-heat\),([\d.]+)\)\" title", view.html)]
    assert shades == pytest.approx([0.0, 0.425, 0.85], abs=0.01)
    notes = seen.attributes["title"]
    assert notes[0] == "token 0, id 7: 'a'\nnot predicted"
    assert notes[2] == f"token 2, id 9: 'b'\n2.000 nats, probability {100 * math.exp(-2):.3g} %"
    assert "↵\n" in seen.text
    assert "2.000 nats a token over 3, perplexity 7.39" in seen.text
    with pytest.raises(ValueError, match="2 tokens, 1 ids"):
        microscope(["a", "b"], [1], [None, 1.0])


def test_two_readings_share_a_scale():
    view = microscope(["a", "b"], [1, 2], {"before": [None, 4.0], "after": [None, 1.0]})
    top = float(np.quantile([4.0, 1.0], 0.98))
    assert f"{0.85 * 1.0 / top:.2f})" in view.html
    assert (
        view.text
        == "before: 4.000 nats a token over 1, perplexity 54.6\nafter: 1.000 nats a token over 1, perplexity 2.72"
    )


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("span", [1.5, 2, 20, 500])
def test_smoothing_is_the_bias_corrected_moving_average(span):
    values = np.random.default_rng(0).normal(size=3000).cumsum()
    steps = np.arange(1, 3001)
    expected = pandas.Series(values).ewm(span=span, adjust=True).mean()
    np.testing.assert_allclose(smooth(steps, values, span), expected, rtol=1e-9, atol=1e-9)


def test_smoothing_weighs_by_age_in_steps_and_passes_over_what_is_not_finite():
    random = np.random.default_rng(1)
    steps = np.cumsum(random.integers(1, 40, size=300))
    values = random.normal(size=300)
    values[random.integers(0, 300, size=40)] = math.nan
    values[17] = math.inf
    keep, decay = np.isfinite(values), (10 - 1) / (10 + 1)
    smoothed = smooth(steps, values, 10)
    for index in range(300):
        seen = np.flatnonzero(keep[: index + 1])
        weights = decay ** (steps[index] - steps[seen]).astype(float)
        if not len(seen):
            assert math.isnan(smoothed[index])
        else:
            assert smoothed[index] == pytest.approx((weights * values[seen]).sum() / weights.sum(), rel=1e-6)
    np.testing.assert_array_equal(smooth(steps, values, 1), values)


def test_a_thinned_curve_keeps_its_peaks():
    y = np.random.default_rng(0).normal(size=100_000)
    y[31_234], y[77_777], y[5] = 99.0, -99.0, math.nan
    x, thinned = thin(np.arange(100_000.0), y)
    assert len(x) <= 400
    assert thinned.max() == 99.0
    assert thinned.min() == -99.0
    assert (x[0], x[-1]) == (0, 99_999)
    assert (np.diff(x) > 0).all()
    assert np.isfinite(thinned).all()


@pytest.mark.parametrize(
    "ends", [(0, 1), (0.613, 4.21), (0, 10_000), (-3e-5, 7e-4), (1e9, 1e9 + 3), (5, 5), (0, math.inf)]
)
def test_ticks_are_round_and_inside(ends):
    low, high = ends
    found = ticks(low, high)
    assert len(found) <= 11
    assert all(low <= tick <= high for tick in found)
    if high > low and math.isfinite(high):
        assert len(found) >= 2


def test_the_range_holds_the_floor_and_no_lonely_spike():
    loss = np.full(1000, 2.0)
    loss[0] = 50.0
    low, high = value_range([loss], include=0.5)
    assert low < 0.5
    assert 2.0 < high < 10.0
    assert value_range([np.array([math.nan])]) == (0.0, 1.0)


def test_values_in_words():
    assert [words.count(v) for v in (0, 0.31, 950, 999.96, 12_400, 3_208_192, 1.5e9)] == [
        "0", "0.31", "950", "1k", "12.4k", "3.21M", "1.5B"
    ]  # fmt: skip
    assert [words.size(v) for v in (912, 12.8e6, 1.094e9)] == ["912 B", "12.8 MB", "1.09 GB"]
    assert [words.duration(v) for v in (0.42, 12, 59.7, 185, 7620, 86_399, 4e5)] == [
        "0.4 s", "12 s", "1 min 00 s", "3 min 05 s", "2 h 07 min", "1 d 00 h", "4 d 15 h"
    ]  # fmt: skip
    assert [words.learning_rate(v) for v in (3e-4, 0.01, 1.25e-5, 0.0)] == ["3e-4", "0.01", "1.25e-5", "0"]
    for say in (words.count, words.size, words.duration, words.learning_rate):
        assert say(None) == say(math.nan) == say(math.inf) == words.DASH
    assert words.one_line("a\x1b[31m\n  b" + "c" * 300, 10) == "a?[31m bc…"
    table = words.text_table({"name": "NAME", "n": "N"}, [{"name": "x", "n": "10"}, {"name": "long"}], numbers=("n",))
    assert table.splitlines() == ["NAME   N", "x     10", "long   –"]


def test_tables_are_aligned_as_a_terminal_shows_wide_letters():
    rows = [{"data": "日本語.txt", "n": "5"}, {"data": "cafe\u0301", "n": "10"}]  # 10 columns, and 4 of 5 characters
    table = words.text_table({"data": "data", "n": "n"}, rows, numbers=("n",))
    assert table.splitlines() == ["data         n", "日本語.txt   5", "cafe\u0301        10"]


# --- small charts ---------------------------------------------------------------------------------------------------


def test_a_chart_draws_what_it_is_given():
    x = np.arange(1.0, 101.0)
    svg = chart([Line("training <b>", x, 5 - x / 50), Line("validation", x[::20], x[::20] / 50, dots=True)], floor=0.7)
    seen = assert_harmless(svg)
    assert "training <b>" in seen.text
    assert "floor 0.700" in seen.text
    first, second = (
        [tuple(map(float, point.split(","))) for point in line.split()] for line in seen.attributes["points"]
    )  # fmt: skip
    assert len(first) == 100
    assert [x for x, _ in first] == sorted(x for x, _ in first)
    assert [y for _, y in first] == sorted(y for _, y in first), "a falling curve goes down the page"
    assert len(second) == len(seen.attributes["r"]) == 5
    assert "nothing to draw" in chart([])
    assert "NaN" not in chart([Line("", x, np.full(100, math.nan)), Line("", x, np.full(100, 1e308))])


def test_no_curve_runs_through_the_legend():
    x = np.arange(1.0, 201.0)
    y = np.where(x < 3, 1e6, 2 + np.sin(x))  # a spike that sticks out, then a curve that fills the height
    svg = chart([Line("training", x, y)])
    legend = float(re.findall(r'<text[^>]* y="([\d.]+)"[^>]*><tspan', svg)[0])
    window = float(re.findall(r'<svg x="44" y="([\d.]+)"', svg)[0])
    highest = min(float(point.split(",")[1]) for point in re.findall(r'points="([^"]+)"', svg)[0].split()[3:])
    assert legend + 3 < window <= highest, (
        "letters reach 3 pixels below their line; the window cuts off what is above it"
    )


def test_the_cost_of_a_chart_does_not_grow_with_the_run():
    def size(n: int) -> int:
        x = np.arange(float(n))
        return len(chart([Line("", x, np.random.default_rng(0).normal(size=n))]))

    assert size(100_000) < 1.2 * size(1_000) < 10_000
    assert len(sparkline(np.random.default_rng(0).normal(size=100_000))) < 4_000
    assert sparkline(np.array([math.nan])) == ""


# --- live -----------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_at_most_five_views_a_second_and_always_the_last(tmp_path):
    clock, drawn = Clock(), []
    view = live.LiveView(40, show=lambda shown: drawn.append((clock.now, shown.text)), clock=clock)
    writer = RunWriter(tmp_path / "run")
    writer.start(config={"max_steps": 3000})
    for step in range(1, 3001):
        writer.step(step, 2.0)
        if step % 7 == 0:
            writer.evaluate(step, 2.0)
    writer.event("run_end", 3000, status="completed", seconds=3.0)
    for event in writer.events:
        clock.now += 0.001
        view(event)
    times = [at for at, _ in drawn]
    assert len(times) > 10
    for at in times:
        assert sum(at <= other < at + 1.0 for other in times) <= 5
    assert times[-1] == clock.now
    assert "completed, step 3,000 of 40" in drawn[-1][1]


def test_what_is_rare_is_drawn_at_once():
    clock, drawn = Clock(), []
    view = live.LiveView(show=drawn.append, clock=clock)
    for event in (
        {"event": "run_start"},
        {"event": "step", "step": 1, "loss": 3.0},
        {"event": "eval", "step": 1, "val_loss": 2.5},
    ):
        view(event)
        clock.now += 0.01
    assert len(drawn) == 2, "the step came too soon after the start; the evaluation is not kept waiting"
    assert "2.5000" in drawn[-1].html
    assert "3.0000" in drawn[-1].html


def test_drawing_takes_a_twentieth_of_the_time_at_most():
    clock, drawn = Clock(), []

    def show(_: View) -> None:
        drawn.append(clock.now)
        clock.now += 0.14  # as the curves of a million steps do

    view = live.LiveView(show=show, clock=clock)
    view({"event": "run_start"})
    for step in range(1, 3001):
        clock.now += 0.01
        view({"event": "step", "step": step, "loss": 2.0})
    assert len(drawn) > 5
    assert min(later - earlier for earlier, later in itertools.pairwise(drawn)) >= 21 * 0.14 - 1e-9
    view({"event": "run_end", "status": "completed"})
    assert drawn[-1] == pytest.approx(clock.now - 0.14), "the end is drawn at once"


def test_the_view_of_a_log_is_the_view_of_its_trainer(tmp_path):
    folder = write_run(tmp_path / "run")
    told: list[View] = []
    listener = live.LiveView(show=told.append)
    for event in read(folder / "log.jsonl"):
        listener(event)
    assert told[-1].html == live.live_view(Record(folder)).html
    seen = assert_harmless(told[-1].html)
    for expected in ("completed", "40 of 40", "took 20 s", "The fox found a red kite.", "floor 0.500"):
        assert expected in seen.text


def test_a_resumed_run_shows_what_came_before(tmp_path):
    folder = write_run(tmp_path / "run", steps=20, status="stopped")
    run, drawn = RunWriter(folder), []
    before = len(run.events)
    run.start("resumed")
    listener = live.LiveView(folder=folder, show=drawn.append)
    listener(run.events[before])
    run.step(21, 1.0)
    listener(run.events[before + 1])
    listener(run.event("run_end", 21, status="completed", seconds=1.0))
    assert listener.history.series("loss")[0].tolist() == list(range(1, 22))
    assert len(listener.history.starts) == 2
    assert drawn[-1].html == live.live_view(Record(folder)).html


def test_a_log_is_followed_until_its_run_ends(tmp_path):
    folder = write_run(tmp_path / "run", steps=10, status=None)
    shown: list[str] = []
    record, run = Record(folder), RunWriter(folder)
    steps = iter(range(11, 14))

    def alive() -> bool:
        step = next(steps, None)
        if step is None:
            run.event("run_end", 13, status="completed", seconds=1.0)
            return False
        run.step(step, 1.0)
        return True

    live.follow(record, alive=alive, show=lambda view: shown.append(view.text), every=0.001)
    assert [re.search(r"step (\d+)", text)[1] for text in shown] == ["10", "11", "12", "13", "13"]  # type: ignore[index]
    assert "completed" in shown[-1]


def test_watching_draws_a_twentieth_of_the_time_at_most(tmp_path, monkeypatch):
    run, clock, drawn = RunWriter(tmp_path / "run"), Clock(), []
    run.start()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    def show(_: View) -> None:
        drawn.append(clock.now)
        clock.now += 0.14  # as the curves of a million steps do

    def alive() -> bool:
        run.step(len(run.events), 1.0)
        return len(run.events) < 8

    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=clock, sleep=sleep))
    live.follow(Record(run.folder), alive=alive, show=show, every=0.2)
    assert len(drawn) == 8
    assert min(later - earlier for earlier, later in itertools.pairwise(drawn[:-1])) >= 21 * 0.14 - 1e-9
    assert drawn[-1] == pytest.approx(clock.now - 0.14), "the end is drawn at once"


def test_an_interrupt_ends_the_watching_not_the_run(tmp_path, capsys):
    def alive() -> bool:
        raise KeyboardInterrupt

    record = Record(write_run(tmp_path / "run"))
    assert live.follow(record, alive=alive, show=lambda _: None) is record
    assert "it goes on" in capsys.readouterr().err


def test_without_a_notebook_lines_are_printed():
    assert not live.in_notebook()
    assert isinstance(live.live_listener(10), Console)


def test_a_damaged_log_is_said_to_be(tmp_path):
    folder = write_run(tmp_path / "run", status=None)
    with open(folder / "log.jsonl", "ab") as file:
        file.write(b"{torn\n")
    text = Strict(live.live_view(Record(folder)).html).text
    assert "1 damaged line in the log passed over" in text
    assert "interrupted" in text


KERNEL = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from run_logs import RunWriter
from lmlab.views import live
run = RunWriter(Path({folder!r}))
run.start()
assert isinstance(live.live_listener(40), live.LiveView)
now = 0.0
view = live.LiveView(40, clock=lambda: now)  # however long drawing takes here
view(run.events[-1])
for step in range(1, 6):
    now += 0.3
    run.step(step, 4.0 - step)
    view(run.events[-1])
run.event("run_end", 5, status="stopped", seconds=1)
view(run.events[-1])
"""

FIGURES = """
from lmlab.record import Record
from lmlab.views import plots
record = Record({folder!r})
for _ in range(20):
    figure = plots.curves(record)
import sys
assert "matplotlib.pyplot" not in sys.modules
figure
"""


@pytest.fixture(scope="module")
def kernel():
    import matplotlib.font_manager  # noqa: F401  matplotlib lists the fonts of a new machine once, and says so
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(extra_arguments=["--IPKernelApp.capture_fd_output=False"])
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run_in(client: Any, code: str) -> list[dict[str, Any]]:
    """The messages that a cell's code sends to its notebook. Raises AssertionError where it fails."""
    messages: list[dict[str, Any]] = []
    reply = client.execute_interactive(code, timeout=120, output_hook=messages.append)
    assert reply["content"]["status"] == "ok", reply["content"]
    return messages


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_kernel_gets_one_output_that_is_replaced(kernel, tmp_path):
    code = KERNEL.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "run"))
    messages = run_in(kernel, code)
    made = [m for m in messages if m["msg_type"] == "display_data"]
    updates = [m for m in messages if m["msg_type"] == "update_display_data"]
    assert len(made) == 1
    assert len(updates) == 6
    ids = {m["content"]["transient"]["display_id"] for m in made + updates}
    assert len(ids) == 1
    last = updates[-1]["content"]["data"]
    assert "run.resume() goes on bit for bit" in last["text/html"]
    assert last["text/plain"].startswith("run: stopped, step 5 of 40")
    assert not [m for m in messages if m["msg_type"] == "stream"], "nothing else is printed"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_kernel_shows_a_figure_and_keeps_none_open(kernel, tmp_path):
    folder = write_run(tmp_path / "run")
    messages = run_in(kernel, FIGURES.format(folder=str(folder)))
    (result,) = [m for m in messages if m["msg_type"] == "execute_result"]
    assert result["content"]["data"].keys() >= {"text/html", "image/png", "text/plain"}
    assert not [m for m in messages if m["msg_type"] == "stream"]


# --- figures --------------------------------------------------------------------------------------------------------


def drawn_lines(figure: Any, panel: int = 0) -> dict[str, Any]:
    """The labelled lines of a panel."""
    return {line.get_label(): line for line in figure.axes[panel].lines if not line.get_label().startswith("_")}


def test_curves_draw_the_series_of_the_run(tmp_path):
    record = Record(write_run(tmp_path / "run"))
    figure = plots.curves(record, ("loss", "val_loss", "learning_rate"), smoothing=8)
    lines = drawn_lines(figure)
    steps, losses = record.series("loss")
    np.testing.assert_array_equal(lines["training"].get_xdata(), steps)
    np.testing.assert_allclose(lines["training"].get_ydata(), smooth(steps, losses, 8))
    np.testing.assert_array_equal(lines["validation"].get_ydata(), record.series("val_loss")[1])
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (nats per token)", "learning rate"]
    floors = [line for line in figure.axes[0].lines if set(line.get_ydata()) == {0.5}]
    assert len(floors) == 1
    assert any(text.get_text() == "floor 0.500" for text in figure.axes[0].texts)
    figure.savefig(tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").stat().st_size > 5000


def test_the_figure_of_a_long_run_draws_thousands_of_points_and_no_other_picture():
    history, steps = History(), np.arange(1, 60_001)
    losses = 1.0 + 3.0 * np.exp(-steps / 5_000) + 0.1 * np.random.default_rng(0).normal(size=len(steps))
    losses[[20_000, 30_000]], losses[40_000:40_100], losses[50_000] = (9.0, 0.2), math.nan, math.inf
    for step, loss in zip(steps.tolist(), losses.tolist(), strict=True):
        history.add({"event": "step", "step": step, "loss": loss})
        history.add({"event": "eval", "step": step, "val_loss": loss})
    figure = plots.compare([history, history], ("loss", "val_loss"), noise=0.1, labels=["a", "b"])
    for axes, reach in zip(figure.axes, (0.0, 0.05), strict=True):
        for line in axes.lines:
            assert len(line.get_xdata()) <= 4_010
        whole = np.where(np.isfinite(losses), losses, math.nan)
        raw = max(axes.lines, key=lambda line: np.nanmax(line.get_ydata()))
        assert (np.nanmax(raw.get_ydata()), np.nanmin(raw.get_ydata())) == (9.0, 0.2)
        for spoiled, n_around in ((40_050, 100), (50_001, 1)):  # the line breaks
            near = np.abs(raw.get_xdata() - spoiled) <= n_around
            assert np.isnan(raw.get_ydata()[near]).any()
        assert axes.get_xlim()[1] == pytest.approx(60_000 * 1.02)
        assert axes.get_ylim() == pytest.approx(value_range([np.concatenate([whole - reach, whole + reach])]))
    smoothed = drawn_lines(figure)["a"]
    expected = smooth(steps, np.where(np.isfinite(losses), losses, math.nan), 100)
    np.testing.assert_array_equal(smoothed.get_ydata(), expected[smoothed.get_xdata().astype(int) - 1])


@pytest.mark.parametrize(("axis", "end"), [("step", 40), ("tokens", 40 * 128), ("seconds", 20)])
def test_runs_compare_along_every_axis(tmp_path, axis, end):
    runs = [Record(write_run(tmp_path / f"run{seed}", seed=seed)) for seed in range(2)]
    figure = plots.compare(runs, ("val_loss",), axis=axis, noise=0.6, labels=["one", "two"], floor=False)
    lines = drawn_lines(figure)
    assert list(lines) == ["one", "two"]
    assert lines["one"].get_xdata()[-1] == pytest.approx(end)
    bands = figure.axes[0].collections
    assert len(bands) == 2
    corners = bands[0].get_paths()[0].vertices
    last = corners[np.isclose(corners[:, 0], end)][:, 1]
    assert np.ptp(last) == pytest.approx(0.6)
    assert figure.axes[0].get_ylim()[0] < last.min(), "the band is seen whole"
    assert len({line.get_color() for line in lines.values()}) == 2


@pytest.mark.parametrize(
    ("steps", "unit", "end"), [(40, "seconds", 20), (400, "minutes", 200 / 60), (40_000, "hours", 20_000 / 3600)]
)
def test_time_is_drawn_in_the_unit_of_the_longest_run(tmp_path, steps, unit, end):
    runs = [Record(write_run(tmp_path / f"run{count}", steps=count)) for count in (steps, 8)]
    figure = plots.compare(runs, ("loss",), axis="seconds", labels=["long", "short"])
    assert figure.axes[0].get_xlabel() == f"time ({unit})"
    assert drawn_lines(figure)["long"].get_xdata()[-1] == pytest.approx(end)


def test_more_runs_than_colours_have_lines_of_their_own(tmp_path):
    folder = write_run(tmp_path / "run", steps=4)
    figure = plots.compare([Record(folder)] * 14, ("loss", "val_loss"), labels=[f"run {i}" for i in range(14)])
    for panel in (0, 1):
        lines = drawn_lines(figure, panel)
        assert len({(line.get_color(), line.get_linestyle()) for line in lines.values()}) == 14
        assert [lines[f"run {i}"].get_linestyle() for i in (0, 5, 6, 12)] == ["-", "-", "--", ":"]
        assert lines["run 0"].get_color() == lines["run 6"].get_color()


def test_every_run_is_in_the_legend_under_a_name_of_its_own(tmp_path):
    run = Record(write_run(tmp_path / "run", steps=4))
    long = ["x" * 63 + end for end in "ab"]
    titles = [*long, *("y" * 70 + end for end in "ab"), "_hidden", "漢", "字", "same", "same"]
    [legend] = plots.compare([run] * len(titles), labels=titles).legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert len(set(shown)) == len(titles)
    assert shown[:2] == long
    assert shown[4:] == [" _hidden", "□", "□ (2)", "same", "same (2)"]


def test_a_legend_has_the_columns_that_its_longest_name_leaves_room_for(tmp_path):
    run = Record(write_run(tmp_path / "run", steps=4))
    for longest, columns in ((23, 4), (24, 2), (60, 1)):
        figure = plots.compare([run] * 4, ("loss",), labels=["a", "b", "c", "x" * longest])
        assert len({round(text.get_window_extent().x0) for text in drawn_legend(figure).get_texts()}) == columns
        assert drawn_legend(figure).get_window_extent().x1 <= figure.bbox.x1


def drawn_legend(figure: Any) -> Any:
    """The legend of a figure, laid out."""
    figure.draw_without_rendering()
    return figure.legends[0]


def test_zoom_looks_at_the_end(tmp_path):
    run = Record(write_run(tmp_path / "run", loss=lambda step, _: 4.0 if step <= 20 else 1.0))
    axes = plots.compare([run], ("loss",), zoom=0.4, smoothing=1).axes[0]
    assert axes.get_xlim()[0] == pytest.approx(24)
    assert axes.get_ylim()[1] < 1.6


def test_plots_refuse_what_they_cannot_draw(tmp_path):
    run = Record(write_run(tmp_path / "run"))
    for wrong, message in (({"names": ["los"]}, "no series 'los'"), ({"axis": "days"}, "no axis 'days'")):
        with pytest.raises(UsageError, match=message):
            plots.compare([run], **wrong)
    with pytest.raises(UsageError, match="2 labels for 1 runs"):
        plots.compare([run], labels=["a", "b"])
    with pytest.raises(UsageError, match="no events of the hook"):
        plots.hook_figure(run, "activation_stats")


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        (
            (129_000.0, 131_000.0),
            ["129k", "129.25k", "129.5k", "129.75k", "130k", "130.25k", "130.5k", "130.75k", "131k"],
        ),
        ((20_000.0, 80_000.0), ["20k", "30k", "40k", "50k", "60k", "70k", "80k"]),
        ((12_345_300.0, 12_345_900.0), [f"12.345{digit}M" for digit in "3456789"]),
    ],
)
def test_ticks_have_the_digits_that_tell_them_apart(tmp_path, speeds, expected):
    run = RunWriter(tmp_path / "run")
    run.start()
    for step, speed in enumerate(speeds, 1):
        run.step(step, 2.0, tokens_per_second=speed)
    figure = plots.curves(Record(run.folder), "tokens_per_second")
    figure.draw_without_rendering()
    [axes] = figure.axes
    low, high = axes.get_ylim()
    shown = [tick.get_text() for tick in axes.get_yticklabels() if low <= tick.get_position()[1] <= high]
    assert shown == expected


def test_a_run_that_blows_up_does_not_set_the_scale_for_the_others(tmp_path):
    good = Record(write_run(tmp_path / "good"))
    bad = Record(write_run(tmp_path / "bad", loss=lambda step, _: 4.0 if step < 20 else 3.0 * step))
    alone, beside = (plots.compare(runs).axes for runs in ([good, good], [good, bad]))
    assert [axes.get_ylim() for axes in alone] == [pytest.approx(axes.get_ylim(), abs=0.3) for axes in beside]
    assert drawn_lines(plots.compare([good, bad]))["bad"].get_ydata().max() > 20, "it leaves the picture"
    assert plots.compare([bad], ("loss",)).axes[0].get_ylim()[1] > 100
    worse = Record(write_run(tmp_path / "worse", loss=lambda step, _: 4.0 + step / 30))
    assert plots.compare([good, worse], ("loss",)).axes[0].get_ylim()[1] > 5.3, "what rises a little is seen whole"
    warming = RunWriter(tmp_path / "warming")
    warming.start()
    for step in range(1, 41):
        warming.step(step, 1.0, learning_rate=step / 40)
    figure = plots.compare([Record(warming.folder)] * 2, ("learning_rate",))
    assert figure.axes[0].get_ylim()[1] > 1.0, "what is not to fall may rise"


def test_series_that_no_run_has_are_passed_over(tmp_path):
    RunWriter(tmp_path / "run").start()
    RunWriter(tmp_path / "run").step(1, 3.0)
    run, evaluated = Record(tmp_path / "run"), Record(write_run(tmp_path / "evaluated"))
    assert [axes.get_ylabel() for axes in plots.compare([run, run]).axes] == ["training loss (nats per token)"]
    assert not plots.curves(run).legends
    assert len(plots.compare([run, evaluated]).axes) == 2
    assert [axes.get_ylabel() for axes in plots.curves(run, "val_loss").axes] == ["validation loss (nats per token)"]
    with pytest.raises(UsageError, match="no series 'los'"):
        plots.compare([run], ["loss", "los"])


def test_an_empty_run_gives_an_empty_figure():
    assert figure_png(plots.curves(History()))[:4] == b"\x89PNG"


def test_labels_hold_any_text():
    assert label("a $x^2$ b") == r"a \$x^2\$ b"
    assert label("漢字 €") == "□□ €"
    strange = ["$\\frac{$", "漢", "\ud800", "\x00\x1b", "a\nb", "", " "]
    probabilities = np.full((1, 1, len(strange), len(strange)), 1 / len(strange))
    assert figure_png(plots.attention_figure(probabilities, strange))


def test_attention_maps_fit_their_tokens():
    maps = np.tril(np.ones((2, 3, 4, 4)))
    figure = plots.attention_figure(maps, list("abcd"), heads=[0, 2])
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(images) == 4
    np.testing.assert_array_equal(images[0].get_array(), maps[0, 0])
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["head 0", "head 2"]
    assert [axes.get_ylabel() for axes in figure.axes[:4]] == ["layer 1", "", "layer 2", ""]
    (axes,) = [axes for axes in plots.attention_figure(maps, list("abcd"), layers=[2], heads=[0]).axes if axes.images][
        :1
    ]
    assert axes.get_ylabel() == "layer 2"
    for wrong in ([0], [3]):
        with pytest.raises(UsageError, match=r"no layers \[.\]; choose from 1 to 2"):
            plots.attention_figure(maps, list("abcd"), layers=wrong)
    for wrong in ([-1], [3]):
        with pytest.raises(UsageError, match=r"no heads \[-?.\]; choose from 0 to 2"):
            plots.attention_figure(maps, list("abcd"), heads=wrong)
    with pytest.raises(UsageError, match="does not fit 3 tokens"):
        plots.attention_figure(maps, list("abc"))
    with pytest.raises(UsageError, match="choose layers and heads"):
        plots.attention_figure(np.ones((9, 8, 1, 1)), ["a"])


def test_the_lens_marks_right_guesses():
    figure = plots.lens_figure(
        [["b", "x"], ["b", "c"]],
        np.array([[0.1, 0.9], [0.5, 0.5]]),
        ["a", "b"],
        hits_LT=np.array([[True, False], [True, True]]),
    )
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["embedding", "1"]
    cells = {text.get_position(): text for text in figure.axes[0].texts}
    weights = [cells[position].get_fontweight() for position in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert weights == ["bold", "normal", "bold", "bold"]
    with pytest.raises(UsageError, match="does not fit"):
        plots.lens_figure([["b"]], np.zeros((2, 2)), ["a", "b"])


def test_what_hooks_measured_is_drawn_by_layer(tmp_path):
    run = RunWriter(write_run(tmp_path / "run", status=None))
    for step in (10, 20):
        run.event("hook", step, name="attention_entropy", entropy=[[1.0, 2.0], [0.5 * step, "NaN"]])
    record = Record(tmp_path / "run")
    assert record.hook_names() == ["attention_entropy"]
    assert len(record.hook("attention_entropy")) == 2
    lines = plots.hook_figure(record, "attention_entropy").axes[0].lines
    assert [tuple(line.get_ydata()) for line in lines] == [(1.0, 1.0), (2.0, 2.0), (5.0, 10.0)]
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    legend = plots.hook_figure(record, "attention_entropy").axes[0].get_legend()
    assert (legend.get_title().get_text(), [text.get_text() for text in legend.get_texts()]) == ("layer", ["1", "2"])


@pytest.mark.parametrize(
    ("hook", "n_numbers", "names"),
    [
        ("activation_stats", 3, ["embedding", "1", "2"]),
        ("activation_stats", 4, ["embedding", "1", "2", "3"]),  # of a model that does not say how many layers it has
        ("own", 2, ["1", "2"]),
        ("own", 3, ["embedding", "1", "2"]),
    ],
)
def test_layers_bear_the_same_numbers_in_all_views(tmp_path, hook, n_numbers, names):
    run = RunWriter(write_run(tmp_path / "run", status=None))  # of two layers
    run.event("hook", 10, name=hook, std=[1.0] * n_numbers)
    legend = plots.hook_figure(Record(tmp_path / "run"), hook).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == names


def test_what_is_measured_of_named_parts_keeps_their_names(tmp_path):
    run = RunWriter(write_run(tmp_path / "run", status=None))
    run.event("hook", 10, name="own", norms={"_bias": 1.0, "weight": 2.0, "²": 3.0, "9" * 5000: 4.0}, mean=0.5)
    norms, mean = plots.hook_figure(Record(tmp_path / "run"), "own").axes
    assert [text.get_text() for text in norms.get_legend().get_texts()] == [" _bias", "weight", "²", "9" * 23 + "…"]
    assert norms.get_legend().get_title().get_text() == ""
    assert mean.get_legend() is None


def test_a_figure_is_html_too(tmp_path):
    figure = plots.curves(Record(write_run(tmp_path / "run")))
    seen = assert_harmless(figure_html(figure))
    assert len(seen.attributes["src"]) == 1
    assert figure._repr_mimebundle_()["text/html"] == figure_html(figure), "the same picture every time"  # type: ignore[attr-defined]


def test_drawing_leaves_the_users_settings_alone(tmp_path):
    code = (
        "import matplotlib, sys\n"
        "matplotlib.rcParams['font.size'] = 33\n"
        "settings = lambda: {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != 'backend'}\n"
        "before = settings()\n"
        "from lmlab.record import Record\n"
        "from lmlab.views import plots\n"
        f"plots.curves(Record({str(write_run(tmp_path / 'run'))!r})).savefig({str(tmp_path / 'a.png')!r})\n"
        "assert settings() == before\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(4) as pool:\n"  # cells of one notebook may draw at the same time
        f"    list(pool.map(lambda _: plots.curves(Record({str(tmp_path / 'run')!r})), range(12)))\n"
        "assert settings() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_models_of_a_notebook_stand_in_their_tree():
    facts = {"model_id": None, "source": "custom", "architecture_type": "custom-transformer", "files": {}}

    def entry(name, parent):
        return Entry(
            model_name=name, local_path=name, n_parameters=1, size_bytes=1, created_at="2026-01-01T00:00:00Z",
            fine_tuned_from=parent, **facts,
        )  # fmt: skip

    models = cards.Models([entry("parent", None), entry("child", "parent"), entry("grandchild", "child")])
    lines = repr(models).splitlines()
    assert [line.index(name) for line, name in zip(lines[1:4], ("parent", "child", "grandchild"), strict=True)] == [
        0,
        3,
        6,
    ]
