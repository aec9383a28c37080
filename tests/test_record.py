"""A run read back from its folder: whatever the log holds, whenever it grows, wherever it was moved."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from run_logs import BEGAN, CONFIG, RunWriter, start_fields, write_run

from lmlab import events, runs_table
from lmlab.comparison import Difference, comparison, distinct, final_loss, smallest_difference, yardstick
from lmlab.errors import LabError, RunError, UsageError
from lmlab.files import lock
from lmlab.history import History
from lmlab.record import RUN_LOCK, TAIL, Record, delete_run, find_run, find_runs
from lmlab.views import cards
from lmlab.views.live import loss_chart

EVERY_PROPERTY = (
    "start", "run_id", "config", "model", "kind", "lineage", "status", "max_steps", "tokens_per_step", "tokens",
    "loss_floor", "best", "newest_checkpoint", "best_checkpoint", "size_bytes", "notes", "tags", "warnings", "seconds",
)  # fmt: skip


def snapshot(record: Record) -> dict[str, Any]:
    """Everything that a record says, comparable."""
    said: dict[str, Any] = {name: getattr(record, name) for name in EVERY_PROPERTY if name != "size_bytes"}
    said |= {name: [part.tolist() for part in record.series(name)] for name in record.names()}
    return said | {"samples": record.samples(), "damaged": record.damaged, "step": record.step}


# --- reading --------------------------------------------------------------------------------------------------------


def test_series_are_what_the_log_holds(tmp_path):
    record = Record(write_run(tmp_path / "run"))
    logged = [e for e in events.read(tmp_path / "run" / "log.jsonl") if e["event"] == "step"]
    steps, losses = record.series("loss")
    assert steps.dtype == np.int64
    assert losses.dtype == np.float64
    assert steps.tolist() == [e["step"] for e in logged] == list(range(1, 41))
    assert losses.tolist() == [e["loss"] for e in logged]
    assert record.series("val_loss")[0].tolist() == [0, 10, 20, 30, 40]
    assert record.last("learning_rate") == 3e-4
    assert record.series("flops_utilization")[0].size == 0, "null is no number"
    best = record.best
    assert best is not None
    assert best.loss == record.series("val_loss")[1].min()


def test_a_series_that_is_not_there_is_an_error_that_names_those_that_are(tmp_path):
    record = Record(write_run(tmp_path / "run"))
    with pytest.raises(UsageError, match=r"no series 'los' .* there are: .*val_loss"):
        record.series("los")
    with pytest.raises(UsageError, match="no axis 'hours'; there are: step, tokens, seconds"):
        record.along(np.array([1]), "hours")


def test_numbers_that_are_not_finite_come_back(tmp_path):
    run = RunWriter(tmp_path / "run")
    run.start()
    for step, loss in enumerate((math.nan, math.inf, -math.inf, 1.0), start=1):
        run.step(step, loss)
    run.evaluate(4, 2.0)
    run.event("eval", 5, val_loss="NaN")
    record = Record(tmp_path / "run")
    np.testing.assert_array_equal(record.series("loss")[1], [math.nan, math.inf, -math.inf, 1.0])
    assert record.best == (4, 2.0)


def test_no_such_folder(tmp_path):
    with pytest.raises(RunError, match=r"no run in .*missing"):
        Record(tmp_path / "missing")


def test_a_folder_without_a_log_is_an_empty_record(tmp_path):
    record = Record(tmp_path)
    assert (record.status, record.step, record.run_id, record.best) == ("empty", 0, tmp_path.name, None)
    assert record.series("loss")[0].size == 0


def test_time_and_tokens_go_on_over_a_resume(tmp_path):
    run = RunWriter(tmp_path / "run")
    run.start()
    for step in range(1, 11):
        run.step(step, 2.0)
    run.event("run_end", 10, status="stopped", seconds=5.0)
    run.now += timedelta(days=3)  # nobody trained
    run.start("resumed", config={"batch_size": 8})
    for step in range(11, 21):
        run.step(step, 1.0)
    record = Record(tmp_path / "run")
    assert (record.kind, len(record.starts)) == ("resumed", 2)
    assert record.seconds == pytest.approx(10.0)
    first, second = 4 * 2 * 16, 8 * 2 * 16
    assert record.tokens_per_step == second
    assert record.tokens == 10 * first + 10 * second
    steps = np.array([0, 5, 10, 20])
    np.testing.assert_allclose(record.along(steps, "seconds"), [0, 2.5, 5, 10], atol=1e-6)
    assert record.along(steps, "tokens").tolist() == [0, 5 * first, 10 * first, 10 * first + 10 * second]
    assert record.seconds_left() == pytest.approx(20 * 0.5, rel=1e-6), "20 of 40 steps are left, half a second each"


def test_events_after_the_end_take_no_time(tmp_path):
    run = RunWriter(write_run(tmp_path / "run", status=None))
    run.event("run_end", 40, status="completed", seconds=0)
    before = Record(tmp_path / "run").seconds
    run.now += timedelta(days=9)
    run.event("sample", 40, prompt="", sample_text="later")
    assert Record(tmp_path / "run").seconds == before


# --- growing, torn and damaged logs ---------------------------------------------------------------------------------


def test_a_log_cut_at_every_byte_gives_every_whole_event(tmp_path):
    whole = (write_run(tmp_path / "run", steps=3) / "log.jsonl").read_bytes()
    cut, grown = tmp_path / "cut", tmp_path / "grown"
    cut.mkdir()
    grown.mkdir()
    follower = Record(grown)
    for length in range(len(whole) + 1):
        (cut / "log.jsonl").write_bytes(whole[:length])
        with open(grown / "log.jsonl", "wb" if length == 0 else "ab") as file:
            file.write(whole[max(length - 1, 0) : length])
        expected = History()
        for event in events.read(cut / "log.jsonl"):
            expected.add(event)
        follower.refresh()
        for record in (Record(cut), follower):
            assert (record.step, record.starts, record.ending) == (expected.step, expected.starts, expected.ending)
            assert record.series("loss")[1].tolist() == expected.series("loss")[1].tolist()
            assert record.damaged == 0
    assert snapshot(follower) == snapshot(Record(cut)) | {"run_id": "run"}


def test_refresh_reads_the_new_bytes_and_a_tail_of_the_old_alone(tmp_path):
    log = write_run(tmp_path / "run", steps=20, status=None) / "log.jsonl"
    record = Record(tmp_path / "run")
    before = record.series("loss")[1].tolist()
    size = log.stat().st_size
    with open(log, "r+b") as file:  # what was read is spoiled in place: a second look at it would show
        file.write(b"x" * (size - TAIL))
    run = RunWriter(tmp_path / "run", BEGAN + timedelta(minutes=1))
    run.step(21, 0.25)
    assert record.refresh()
    assert record.series("loss")[1].tolist() == [*before, 0.25]
    assert record.damaged == 0
    assert not record.refresh(), "nothing new"


def test_a_log_that_was_rewritten_is_read_anew(tmp_path):
    folder = write_run(tmp_path / "run", steps=30)
    record = Record(folder)
    events.supersede(folder / "log.jsonl", 10, 1)
    run = RunWriter(folder, BEGAN + timedelta(hours=1))
    run.start("resumed")
    for step in range(11, 60):
        run.step(step, 9.0)
    assert record.refresh()
    assert snapshot(record) == snapshot(Record(folder))
    assert record.series("loss")[0].tolist() == list(range(1, 60)), "no step twice"


@pytest.mark.parametrize("glance", [False, True])
@pytest.mark.parametrize("steps", [3, 60])
def test_a_run_that_was_deleted_and_trained_again_is_read_anew(tmp_path, glance, steps):
    record = Record(write_run(tmp_path / "run", steps=20), glance=glance)
    other = write_run(tmp_path / "other" / "run", steps=steps, seed=1)
    record.log_path.write_bytes((other / "log.jsonl").read_bytes())  # in place, as where the inode is handed out again
    assert record.refresh()
    assert snapshot(record) == snapshot(Record(other)) | {
        name: getattr(record, name) for name in ("newest_checkpoint", "best_checkpoint")
    }
    assert not record.refresh(), "nothing new"


def test_damaged_lines_are_counted_and_passed_over(tmp_path):
    folder = write_run(tmp_path / "run", steps=5)
    lines = (folder / "log.jsonl").read_bytes().splitlines(keepends=True)
    lines[2:2] = [b"\xff\xfe not text\n", b'{"event": "step", "step"\n', b"[1, 2]\n", b"[" * 100_000 + b"\n", b"\n"]
    (folder / "log.jsonl").write_bytes(b"".join(lines))
    record = Record(folder)
    assert record.damaged == 4
    assert record.series("loss")[0].tolist() == [1, 2, 3, 4, 5]


def test_a_list_of_runs_reads_the_last_step_alone_and_says_what_the_whole_log_says(tmp_path, monkeypatch):
    write_run(tmp_path / "finished", steps=400)
    running = write_run(tmp_path / "running", steps=398, status=None)
    with open(running / "log.jsonl", "ab") as file:
        file.write(b'{"event": "step", "step": 3\n')  # torn by a crash
    parsed: list[bytes] = []
    monkeypatch.setattr("lmlab.record.parse_line", lambda line: parsed.append(line) or events.parse_line(line))
    records = find_runs(tmp_path, Record)
    listed = [runs_table.row(record) for record in records]
    assert sum(b'"event": "step"' in line for line in parsed) < 100
    for record, row in zip(records, listed, strict=True):
        whole = Record(record.folder)
        assert len(whole.series("loss")[0]) == row["step"] == whole.step
        assert runs_table.row(whole) == row
        assert (record.seconds, record.tokens, record.best) == (whole.seconds, whole.tokens, whole.best)
        assert snapshot(record) == snapshot(whole), "all of it, once it is asked for"


KEYS = [
    "run_id", "time", "step", "config", "model", "lineage", "loss", "val_loss", "loss_floor", "status", "prompt",
    "sample_text", "message", "name", "batch_size", "max_seq_len", "max_steps", "n_parameters", "data", "sha256", "versions",
]  # fmt: skip
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["NaN", "Infinity"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)
KINDS = ["run_start", "step", "eval", "sample", "hook", "warning", "checkpoint", "run_end", "other"]
EVENTS = st.builds(
    lambda kind, fields: {**fields, "event": kind}, st.sampled_from(KINDS), st.dictionaries(st.sampled_from(KEYS), JSON)
)


@given(st.lists(EVENTS, max_size=8))
@example([{"event": "step", "step": 10**400, "loss": 10**400}, {"event": "step", "step": 1, "loss": 10**400}])
@example([{"event": "run_start", "time": "9999-12-31T23:59:59-23:59", "config": {"batch_size": 2**70}}])
@example(
    [{"event": "run_start", "tokenizer": [], "data": {"sha256": []}}, {"event": "eval", "step": 1, "val_loss": 1.0}]
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_event_of_any_shape_raises(tmp_path, logged):
    from lmlab.views.cards import comparison_table, difference_card, run_card
    from lmlab.views.cards import runs_table as table_of_runs
    from lmlab.views.live import live_view

    log = b"".join(json.dumps(event).encode() + b"\n" for event in logged)
    (tmp_path / "log.jsonl").write_bytes(log)
    record = Record(tmp_path)
    for name in EVERY_PROPERTY:
        getattr(record, name)
    for name in record.names():
        record.series(name)
    record.seconds_left()
    record.to_pandas()
    run_card(record)
    table_of_runs([record])
    live_view(record)
    comparison_table([record, record], noise=0.1)
    difference_card(Difference.between(record, record))


# --- status ---------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from lmlab.files import lock
with lock(Path(sys.argv[1]) / "run"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_is_running_while_a_living_process_holds_its_lock(tmp_path):
    folder = write_run(tmp_path / "run", status=None)
    record = Record(folder)
    assert record.status == "interrupted"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert record.status == "running"
        with pytest.raises(RunError, match="in use by another process; stop it first"):
            delete_run(folder)
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    assert record.status == "interrupted", "a dead process trains nothing"


def test_a_run_of_this_process_is_running(tmp_path):
    record = Record(write_run(tmp_path / "run", status=None))
    with lock(record.folder / RUN_LOCK):
        assert record.status == "running"
    assert record.status == "interrupted"


@pytest.mark.parametrize("status", ["completed", "stopped", "diverged", "failed"])
def test_the_end_of_a_run_is_its_status(tmp_path, status):
    record = Record(write_run(tmp_path / "run", status=status))
    assert record.status == status
    RunWriter(record.folder).start("resumed")
    record.refresh()
    assert record.status == "interrupted", "it started again, and nobody holds the lock"


@pytest.mark.parametrize("read", ["in the middle", "before its first line"])
def test_a_run_that_ended_since_it_was_read_was_not_interrupted(tmp_path, read):
    folder = write_run(tmp_path / "run")
    whole = (folder / "log.jsonl").read_bytes()
    (folder / "log.jsonl").write_bytes(whole[: len(whole) // 2] if read == "in the middle" else b"")
    record = Record(folder)
    with open(folder / "log.jsonl", "r+b") as file:
        file.write(whole)
    assert record.status == "completed"
    assert record.step == 40


# --- the folder -----------------------------------------------------------------------------------------------------


def test_checkpoints_are_those_on_disk_and_complete_wherever_the_run_was_moved(tmp_path):
    folder = write_run(tmp_path / "run", steps=40)
    (folder / "checkpoints" / "step-00000040" / "manifest.json").unlink()  # torn
    (folder / "checkpoints" / ".step-00000050.tmp-1-00000000").mkdir()
    (folder / "checkpoints" / "best").write_text("step-00000020\n", encoding="utf-8")
    moved = folder.rename(tmp_path / "elsewhere")
    record = Record(moved)
    assert [path.name for path in record.checkpoints()] == [f"step-{step:08d}" for step in (10, 20, 30)]
    assert record.newest_checkpoint == moved / "checkpoints" / "step-00000030"
    assert record.best_checkpoint == moved / "checkpoints" / "step-00000020"
    (moved / "checkpoints" / "best").write_text("../../outside\n", encoding="utf-8")
    assert record.best_checkpoint is None


def test_notes_and_tags_stay_with_the_run(tmp_path):
    record = Record(write_run(tmp_path / "run"))
    assert (record.notes, record.tags) == ("", [])
    record.set_notes("warmup was too short\nagain with 200")
    record.tag("baseline", "report")
    record.tag("report", "keep")
    record.untag("baseline", "never there")
    again = Record(record.folder)
    assert again.notes == "warmup was too short\nagain with 200"
    assert again.tags == ["report", "keep"]
    for damage in ("[1, 2]", "{", '{"tags": 3, "notes": null}'):
        (record.folder / "notes.json").write_text(damage, encoding="utf-8")
        assert (again.notes, again.tags) == ("", [])


def test_tags_are_text_given_one_by_one(tmp_path):
    record = Record(write_run(tmp_path / "run"))
    for _ in range(2):
        record.tag(1, np.int64(3), 0.5, "x")
    assert record.tags == ["1", "3", "0.5", "x"]
    record.untag(1, "3", np.float64(0.5))
    assert record.tags == ["x"]
    for wrong in (["y", "z"], ("y",), {"y": 1}, {"y"}, None, b"y", np.array([1])):
        for change in (record.tag, record.untag):
            with pytest.raises(UsageError, match=r"is no tag; give each by itself, as text: tag\('a', 'b'\)"):
                change(wrong)
    assert record.tags == ["x"]
    record.set_notes(np.int64(3))
    assert record.notes == "3"


@pytest.mark.parametrize("damage", ["[1, 2]", "{", "", '{"tags": "kept", "notes": "long"}', "\udcff"])
def test_notes_that_cannot_be_read_are_not_written_over(tmp_path, damage):
    record = Record(write_run(tmp_path / "run"))
    path = record.folder / "notes.json"
    path.write_text(damage, encoding="utf-8", errors="surrogateescape")
    before = path.read_bytes()
    for change in (lambda: record.tag("a"), lambda: record.untag("a"), lambda: record.set_notes("again")):
        with pytest.raises(RunError, match=r"run/notes\.json does not hold notes and tags .*; mend it, or delete it"):
            change()
        assert path.read_bytes() == before
    path.unlink()
    record.tag("a")
    assert record.tags == ["a"]


def test_runs_are_found_newest_first(tmp_path):
    for name, days in (("b", 0), ("a", 2), ("c", 1)):
        run = RunWriter(tmp_path / name, BEGAN + timedelta(days=days))
        run.start()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "log.jsonl").touch()
    (tmp_path / "no-run").mkdir()
    assert [record.run_id for record in find_runs(tmp_path, Record)] == ["a", "c", "b"]
    assert find_runs(tmp_path / "missing", Record) == []


def test_the_table_of_runs_tells_the_last_loss_from_the_best(tmp_path):
    writer = RunWriter(write_run(tmp_path / "overfitted", status=None))
    writer.event("eval", 41, val_loss=0.5)
    writer.event("eval", 42, val_loss=1.75)
    record = Record(tmp_path / "overfitted")
    heading, line = runs_table.render([record]).splitlines()
    shown = dict(zip(heading.split(), line.split(), strict=False))
    assert (shown["val_loss"], shown["best"]) == ("1.7500", "0.5000")
    assert (runs_table.row(record)["val_loss"], runs_table.row(record)["best"]) == (1.75, 0.5)


def test_a_run_deletes_itself(tmp_path):
    for name in ("gone", "kept"):
        write_run(tmp_path / name)
    assert Record(tmp_path / "gone").delete() > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_deleted_run_is_gone_and_nothing_else_is(tmp_path):
    folder = write_run(tmp_path / "runs" / "run")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("stays", encoding="utf-8")
    (folder / "link").symlink_to(outside)
    linked = tmp_path / "runs" / "linked"
    other = write_run(tmp_path / "other")
    linked.symlink_to(other)
    assert delete_run(folder) > 1000
    assert not folder.exists()
    assert delete_run(linked) == 0
    assert not linked.is_symlink()
    assert (outside / "precious.txt").exists()
    assert (other / "log.jsonl").exists()
    with pytest.raises(RunError, match=r"no run in .*outside"):
        delete_run(outside)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_that_holds_a_config_alone_is_its_users_own(tmp_path):
    own = tmp_path / "exp1"
    own.mkdir()
    (own / "config.yaml").write_text("max_steps: 1\n", encoding="utf-8")
    (own / "notes.md").write_text("important", encoding="utf-8")
    killed = tmp_path / "killed"  # before its first line
    killed.mkdir()
    for name in ("process.json", "config.yaml"):
        (killed / name).touch()
    assert [record.folder.name for record in find_runs(tmp_path, Record)] == ["killed"]
    with pytest.raises(RunError, match=r"no run in .*exp1"):
        delete_run(own)
    assert (own / "notes.md").read_text(encoding="utf-8") == "important"
    delete_run(killed)
    assert [path.name for path in tmp_path.iterdir()] == ["exp1"]


def test_what_has_a_separator_or_only_dots_is_a_path_and_no_name_of_a_run(tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    run = write_run(runs / "a1")
    (runs / "a1" / "checkpoints").mkdir(exist_ok=True)
    monkeypatch.chdir(run)
    assert find_run("a1", runs) == find_run(Path("a1"), runs) == run
    assert find_run(".", runs) == run
    assert find_run("..", runs) == find_run("../", runs) == runs
    monkeypatch.chdir(run / "checkpoints")
    assert find_run("..", runs) == run
    monkeypatch.chdir(tmp_path)
    assert find_run("./a1", runs) == Path("a1"), "there is none here"
    assert find_run("runs/a1", runs).samefile(run)


def test_a_copied_run_is_listed_with_its_folder(tmp_path):
    shutil.copytree(write_run(tmp_path / "first"), tmp_path / "copy")
    copy = Record(tmp_path / "copy")
    assert (copy.run_id, copy.title) == ("first", "first (folder copy)")
    assert Record(tmp_path / "first").title == "first"
    assert "first (folder copy)  completed" in runs_table.render([copy])
    assert runs_table.row(copy)["run"] == "first"
    assert Difference.between(Record(tmp_path / "first"), copy).runs == ("first", "first (folder copy)")


def test_a_relative_folder_stays_where_it_is_when_the_current_folder_changes(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(write_run(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    record = Record("link")
    assert record.folder == tmp_path / "link", "a link stays one"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert record.newest_checkpoint == tmp_path / "link" / "checkpoints" / "step-00000040"
    with pytest.raises(RunError, match="no run in nowhere: there is no such folder"):
        Record("nowhere")


def test_to_pandas_has_a_row_a_step(tmp_path):
    frame = Record(write_run(tmp_path / "run")).to_pandas()
    assert frame.index.tolist() == list(range(41))
    assert frame["val_loss"].dropna().index.tolist() == [0, 10, 20, 30, 40]
    assert frame.loc[40, "tokens"] == 40 * 4 * 2 * 16


# --- comparing ------------------------------------------------------------------------------------------------------


def test_equal_runs_differ_in_nothing(tmp_path):
    a, b = Record(write_run(tmp_path / "a")), Record(write_run(tmp_path / "b"))
    difference = Difference.between(a, b)
    assert all(not pairs for pairs in difference.sections().values())
    assert difference.first_step is None
    assert "training loss: the same, bit for bit, at all 40 common steps" in str(difference)


def test_the_step_where_losses_part_is_named(tmp_path):
    def bumped(step: int, noise: random.Random) -> float:
        value = 4.0 - step / 40
        return math.nextafter(value, 9.0) if step >= 17 else value  # the least difference there is

    a = Record(write_run(tmp_path / "a", loss=lambda step, noise: 4.0 - step / 40))
    b = Record(write_run(tmp_path / "b", loss=bumped, steps=30))
    difference = Difference.between(a, b)
    assert difference.first_step == 17
    assert difference.losses["loss"].common == 30
    assert difference.losses["loss"].last_step == 30
    assert difference.losses["val_loss"].first_step == 20


def test_nan_is_the_same_as_nan_only(tmp_path):
    for name, values in (("a", (1.0, math.nan, math.nan)), ("b", (1.0, math.nan, 2.0))):
        run = RunWriter(tmp_path / name)
        run.start()
        for step, value in enumerate(values, start=1):
            run.step(step, value)
    assert Difference.between(Record(tmp_path / "a"), Record(tmp_path / "b")).first_step == 3


def test_what_two_runs_were_given_is_told_apart(tmp_path):
    a = Record(write_run(tmp_path / "a"))
    b = Record(
        write_run(
            tmp_path / "b", seed=1, git_dirty=True, threads=4, versions={"python": "3.11.2", "torch": "2.14.0"},
            data={"path": "storybook", "sha256": "6" * 64, "n_tokens": 1000, "n_train": 950, "n_val": 50},
        )
    )  # fmt: skip
    difference = Difference.between(a, b)
    assert difference.config == {"seed": (0, 1)}
    assert difference.data == {"sha256": ("5" * 64, "6" * 64)}
    assert difference.code == {"git_dirty": (False, True)}
    assert difference.environment == {"threads": (2, 4), "version of torch": ("2.13.0", "2.14.0")}
    assert difference.first_step == 1
    ends = [final_loss(record) for record in (a, b)]
    assert ends[0] is not None
    assert ends[1] is not None


def test_seeds_that_were_drawn_are_told_apart(tmp_path):
    for name, seed in (("a", 11), ("b", 12), ("c", 11)):
        RunWriter(tmp_path / name).start(config={"seed": None}, seed=seed)
    runs = [Record(tmp_path / name) for name in ("a", "b", "c")]
    assert Difference.between(runs[0], runs[1]).config == {"seed": (11, 12)}
    assert Difference.between(runs[0], runs[2]).config == {}
    assert [row["seed"] for row in comparison(runs)] == [11, 12, 11]


def test_where_a_falling_rate_ends_is_told_apart(tmp_path):
    def resumed(name: str, first: int, config: dict[str, Any], **logged: int) -> Record:
        run = RunWriter(tmp_path / name)
        run.start(config={**config, "max_steps": first}, **logged)
        run.start("resumed", config={**config, "max_steps": 40}, **logged)
        return Record(tmp_path / name)

    for old, cosine in enumerate(({"lr_schedule": "cosine"}, {"lr_schedule": "cosine", "lr_decay_steps": None})):
        straight, halved = (resumed(f"new-{old}-{end}", end, cosine, decay_steps=end) for end in (40, 20))
        assert Difference.between(straight, halved).config == {"lr_decay_steps": (40, 20)}
        assert Difference.between(straight, resumed(f"old-{old}", 20, cosine)).config == {"lr_decay_steps": (40, 20)}
    given = resumed("given", 20, {"lr_schedule": "cosine", "lr_decay_steps": 40}, decay_steps=40)
    assert Difference.between(straight, given).config == {}
    level = [resumed(f"level-{end}", end, {"lr_schedule": "constant"}, decay_steps=end) for end in (40, 20)]
    assert Difference.between(*level).config == {}, "a level rate ends nowhere"


def test_branches_from_different_steps_are_told_apart(tmp_path):
    a, b = (
        Record(write_run(tmp_path / name, lineage=[{"model_name": "base", "run_id": "r1", "step": step}]))
        for name, step in (("a", 10), ("b", 20))
    )
    assert Difference.between(a, b).model == {"lineage": ("base (run r1, step 10)", "base (run r1, step 20)")}
    assert Difference.between(a, Record(a.folder)).model == {}


def test_a_comparison_names_what_varies_and_how_it_ends(tmp_path):
    runs = [
        Record(write_run(tmp_path / f"run{seed}", seed=seed, config={"learning_rate": rate}))
        for seed, rate in enumerate((1e-4, 3e-4))
    ]
    rows = comparison(runs)
    assert [row["learning_rate"] for row in rows] == [1e-4, 3e-4]
    assert "batch_size" not in rows[0], "it is the same in both"
    assert rows[0].keys() == rows[1].keys()
    for row, run in zip(rows, runs, strict=True):
        assert row["val_loss"] == run.last("val_loss")
        assert row["loss"] == pytest.approx(run.series("loss")[1][-2:].mean())
        assert row["above_floor"] == pytest.approx(row["val_loss"] - 0.5)
    assert comparison([]) == []
    never_began = comparison([*runs, History()])
    assert [row.keys() for row in never_began] == [rows[0].keys()] * 3, "it knows no settings that could differ"
    assert never_began[2]["learning_rate"] is None


def test_a_floor_of_nothing_is_not_shown() -> None:
    """As where an evaluation counts no whole story."""
    history = ended(3.0)
    history.add({"event": "run_start", "loss_floor": 0.0})
    assert "above_floor" not in comparison([history])[0]
    assert "Floor" not in cards.facts_of(history)
    assert "floor" not in loss_chart(history)


def ended(val_loss: float) -> History:
    history = History()
    history.add({"event": "eval", "step": 1, "val_loss": val_loss})
    history.add({"event": "run_end", "step": 1, "status": "completed"})
    return history


@pytest.mark.parametrize("seeds", [2, 3, 8, 40])
def test_the_smallest_difference_worth_believing_covers_95_percent(seeds):
    noise = np.random.default_rng(seeds)
    trials = 1500
    covered = 0
    for _ in range(trials):
        *runs, a, b = noise.normal(1.5, 0.01, seeds + 2)
        covered += abs(a - b) < smallest_difference([ended(value) for value in runs])
    assert covered / trials == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / trials))


def test_noise_needs_two_runs(tmp_path):
    with pytest.raises(UsageError, match="needs two runs"):
        smallest_difference([ended(1.0), ended(math.nan)])


@pytest.mark.parametrize(("status", "says"), [("stopped", "stopped"), ("diverged", "diverged"), (None, "interrupted")])
def test_noise_of_a_run_that_is_not_completed_is_refused(tmp_path, status, says):
    runs = [Record(write_run(tmp_path / f"run{seed}", seed=seed)) for seed in range(2)]
    cut = Record(write_run(tmp_path / "cut", steps=30, status=status))
    assert smallest_difference(runs) > 0
    with pytest.raises(UsageError, match=f"the run cut is {says} at step 30"):
        smallest_difference([*runs, cut])


def test_names_are_told_apart_by_a_count():
    assert distinct(["a", "b", "a", "a (2)", "a"]) == ["a", "b", "a (2)", "a (2) (2)", "a (3)"]


def test_reading_and_viewing_load_neither_torch_nor_matplotlib():
    code = (
        "import sys, lmlab.record, lmlab.comparison, lmlab.views.cards, lmlab.views.live, lmlab.views.plots\n"
        "print([name for name in ('torch', 'matplotlib', 'pandas', 'transformers', 'IPython') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_pandas_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(LabError, match="pip install pandas"):
        Record(write_run(tmp_path / "run")).to_pandas()


def test_a_run_folder_without_write_permission_says_so(tmp_path):
    record = Record(write_run(tmp_path / "run"))
    (record.folder / "notes.json").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*notes.json"):
        record.set_notes("nowhere to put it")


def test_paths_may_be_text(tmp_path):
    write_run(tmp_path / "run")
    assert Record(str(tmp_path / "run")).folder == Path(tmp_path / "run")


def test_remarks_on_a_deleted_run_do_not_bring_it_back(tmp_path):
    run = Record(write_run(tmp_path / "gone"))
    run.delete()
    with pytest.raises(RunError, match="is no longer there"):
        run.tag("good")
    assert not run.folder.exists()


def test_a_folder_that_may_not_be_read_is_passed_over(tmp_path, monkeypatch):
    write_run(tmp_path / "mine")
    (tmp_path / "lost+found").mkdir()
    real = os.stat

    def stat(path, *given, **more):
        if "lost+found" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *given, **more)

    monkeypatch.setattr(os, "stat", stat)
    assert [run.run_id for run in find_runs(tmp_path, Record)] == ["mine"]


def test_runs_of_other_tokens_are_told_apart_by_bits_per_byte_and_of_other_texts_not_at_all(tmp_path):
    def ended(name, tokenizer, val_loss, bits, config=None, **data):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        run = RunWriter(tmp_path / name)
        start = start_fields("new", CONFIG)
        run.start(tokenizer=tokenizer, data={**start["data"], **data}, config=config or {})
        run.event("eval", 40, val_loss=val_loss, perplexity=math.exp(val_loss), bits_per_byte=bits)
        run.event("run_end", 40, status="completed", message=None)
        return Record(run.folder)

    characters, words = ended("characters", "char-65", 1.2, 1.73), ended("words", "qwen", 2.9, 1.05)
    view = cards.comparison_table([characters, words], noise=0.1)
    assert re.findall(r'<b class="lm-good">([\d.]+)</b>', view.html) == ["1.0500"]
    assert "bits per byte say which is the better one" in view.text
    assert "noise" not in view.text
    assert [row["tokenizer"] for row in comparison([characters, words])] == ["char-65", "qwen"]
    elsewhere = ended("elsewhere", "char-65", 1.1, 1.5, path="other.txt", sha256="6" * 64)
    view = cards.comparison_table([characters, elsewhere])
    assert '<b class="lm-good">' not in view.html
    assert "their losses do not say which is the better one" in view.text
    assert "other.txt (66666666)" in view.text
    assert "bits_per_byte" not in comparison([characters, elsewhere])[0]

    whole = {"eval_batches": 400}
    for config, same in ((whole, True), ({"eval_batches": 1}, True), ({"eval_batches": 1, "batch_size": 2}, False)):
        other = ended("partly", "char-65", 1.1, 1.5, config=config)
        assert (yardstick([characters, other]) == "val_loss") == same
    halves = [
        ended(name, "char-65", 1.1, 1.5, config=config)
        for name, config in (
            ("one", {"eval_batches": 1, "batch_size": 2, "max_seq_len": 4}),
            ("two", {"eval_batches": 2, "batch_size": 1, "max_seq_len": 4}),
        )
    ]
    assert yardstick(halves) == "val_loss"
    RunWriter(tmp_path / "begun").start()  # of other tokens, but not evaluated yet
    assert yardstick([characters, Record(tmp_path / "begun")]) == "val_loss"


def test_asking_whether_a_run_trains_writes_nothing(tmp_path):
    record = Record(write_run(tmp_path / "run", status=None))
    before = sorted(record.folder.iterdir())
    assert not record.is_running()
    assert sorted(record.folder.iterdir()) == before
    with lock(record.folder / RUN_LOCK):
        (record.folder / f"{RUN_LOCK}.lock").chmod(0o444)  # as another user's is to us
        assert record.is_running()


def test_a_link_to_a_run_that_trains_stays(tmp_path):
    folder = write_run(tmp_path / "elsewhere", status=None)
    (tmp_path / "linked").symlink_to(folder)
    with lock(folder / RUN_LOCK), pytest.raises(RunError, match="in use by another process"):
        delete_run(tmp_path / "linked")
    assert delete_run(tmp_path / "linked") == 0
    assert folder.is_dir()
