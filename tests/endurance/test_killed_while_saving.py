"""Killed while saving: the newest checkpoint always loads, nothing announced is lost, the next start leaves no debris."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crashes import crash_everywhere, kill_at_random
from forked import TESTS, Nursery, wait_until
from tiny_config import TINY

from lmlab import checkpoint, events, files, lab
from lmlab.errors import CheckpointError, RunError
from lmlab.proof import differing_tensor
from lmlab.record import Record, delete_run

pytestmark = pytest.mark.endurance

CONFIG: dict[str, Any] = {
    **TINY, "precision": "fp32", "max_steps": 2, "checkpoint_cadence": 2, "eval_cadence": 2, "eval_batches": 1,
    "sampling_max_length": 3, "keep_checkpoints": 1, "dropout": 0.1,
}  # fmt: skip
RUN = Path("runs/r")
LOG = RUN / "log.jsonl"
CHECKPOINTS = RUN / "checkpoints"


def train(corpus: str, name: str = "r", **changes: Any) -> None:
    lab.run({**CONFIG, **changes}, corpus, run_name=name, runs_dir="runs", listeners=[])


def go_on(where: str | Path = "r", **changes: Any) -> None:
    lab.resume(where, runs_dir="runs", listeners=[], **changes)


def logged(kind: str, path: Path = LOG) -> list[int]:
    return [event["step"] for event in events.read(path) if event["event"] == kind]


def temporaries(folder: Path = Path("runs")) -> list[Path]:
    return [path for path in folder.rglob(".*") if files.TEMPORARY.match(path.name)]


def check_what_was_left(before: int, cadence: int) -> int:
    """The newest checkpoint's step: it is no step back. before: the newest one before the crash."""
    newest = check_the_newest()
    assert newest >= max([before, *logged("checkpoint")])
    half_written = [path.name for path in temporaries(CHECKPOINTS) if path.name.startswith(".step-")]
    assert all(newest >= int(name[6:14]) - cadence for name in half_written)
    return newest


def check_the_newest() -> int:
    """The newest checkpoint's step: it loads, and the log tells every step up to it."""
    saved, refused = checkpoint.newest(CHECKPOINTS)
    assert refused == []
    for part in ("model", "optimizer", "rng"):
        assert saved.tensors(part)
    steps = logged("step")
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= saved.step
    return saved.step


def check_the_end(straight: Path, run: Path = RUN) -> None:
    """A run that ended after all: equal to the one that nobody crashed, each step and each last word once, no debris."""
    last = logged("step", straight / "log.jsonl")
    assert logged("step", run / "log.jsonl") == last
    for kind in ("eval", "sample"):
        assert logged(kind, run / "log.jsonl") == logged(kind, straight / "log.jsonl")
    assert Record(run).status == "completed"
    assert temporaries() == []
    ends = [checkpoint.newest(folder / "checkpoints")[0] for folder in (run, straight)]
    assert [end.step for end in ends] == [last[-1]] * 2
    assert differing_tensor(*ends) is None
    superseded = set(run.glob("log.superseded-*.jsonl"))  # steps that were done again
    for left, right in (
        (set(run.iterdir()) - superseded, straight),
        ((run / "checkpoints").iterdir(), straight / "checkpoints"),
    ):
        assert {path.name for path in left} == {path.name for path in right.iterdir()}


# --- at every file operation ----------------------------------------------------------------------------------------


def crash_a_new_run_everywhere(corpus: str) -> None:
    train(corpus, "straight")
    found = set()

    def check(operation: int, done: bool) -> None:
        if not RUN.exists() or not checkpoint.steps(CHECKPOINTS):
            found.add(0)
            assert not done
            try:
                train(corpus)  # nothing was logged yet: the name is free
            except RunError:
                with pytest.raises((RunError, CheckpointError), match="start it again under another name, or delete"):
                    go_on()
                delete_run(RUN)
                train(corpus)
        else:
            found.add(check_what_was_left(0, 2))
            go_on()
        check_the_end(Path("runs/straight"))

    n = crash_everywhere(lambda: train(corpus), lambda: files.remove_tree(RUN), check)
    print(json.dumps({"operations": n, "found": sorted(found)}))


def crash_a_resumed_run_everywhere(corpus: str) -> None:
    train(corpus)
    shutil.copytree(RUN, "base")
    go_on(max_steps=4)
    RUN.rename("runs/straight")
    found = set()

    def prepare() -> None:
        files.remove_tree(RUN)
        shutil.copytree("base", RUN)

    def check(operation: int, done: bool) -> None:
        found.add(check_what_was_left(2, 2))
        go_on(max_steps=4)
        check_the_end(Path("runs/straight"))

    n = crash_everywhere(lambda: go_on(max_steps=4), prepare, check)
    print(json.dumps({"operations": n, "found": sorted(found)}))


def crash_going_back_everywhere(corpus: str) -> None:
    """Resumed at an earlier checkpoint, with what came after it moved aside."""
    changes = {"checkpoint_cadence": 1, "keep_checkpoints": None, "max_steps": 4}
    train(corpus, **changes)
    whole = LOG.read_bytes().splitlines()
    shutil.copytree(RUN, "base")
    go_on(CHECKPOINTS / "step-00000002", max_steps=3)
    go_on(max_steps=5)
    RUN.rename("runs/straight")
    found = set()

    def prepare() -> None:
        files.remove_tree(RUN)
        shutil.copytree("base", RUN)

    def check(operation: int, done: bool) -> None:
        found.add(check_the_newest())
        logs = [LOG, *RUN.glob("log.superseded-*.jsonl")]
        lines = {line for log in logs for line in log.read_bytes().splitlines()}
        assert set(whole) <= lines  # what was logged before is still there
        go_on(max_steps=5)
        assert logged("step") == [1, 2, 3, 4, 5]
        assert temporaries() == []
        ends = [checkpoint.newest(folder / "checkpoints")[0] for folder in (RUN, Path("runs/straight"))]
        assert differing_tensor(*ends) is None

    n = crash_everywhere(lambda: go_on(CHECKPOINTS / "step-00000002", max_steps=3), prepare, check)
    print(json.dumps({"operations": n, "found": sorted(found)}))


@pytest.mark.parametrize(
    ("scenario", "at_least", "found"),
    [
        (crash_a_new_run_everywhere, 50, [0, 2]),
        (crash_a_resumed_run_everywhere, 50, [2, 4]),
        (crash_going_back_everywhere, 80, [2, 3, 4]),
    ],
)
def test_a_crash_at_every_file_operation(
    nursery: Nursery, corpus: Path, scenario: Callable[[str], None], at_least: int, found: list[int]
) -> None:
    status, said = nursery.run(scenario, corpus)
    assert status == 0, said
    summary = json.loads(said.splitlines()[-1])
    assert summary["found"] == found
    assert summary["operations"] >= at_least


# --- at random moments ----------------------------------------------------------------------------------------------


def kill_200_times(corpus: str, beside: bool) -> None:
    """One run after the other, each killed and gone on with until it is done."""
    draw = random.Random(0)
    train(corpus, "warm")  # what loads when first used is loaded before the forks
    changes = {"checkpoint_cadence": 1, "max_steps": 12, "keep_checkpoints": 2, "async_checkpoints": beside}
    began = time.monotonic()
    train(corpus, "straight", **changes)
    longest = max(0.25, (time.monotonic() - began) / 2)  # of a session: a busy machine gets as far in it
    newest, kills, half_written, finished = 0, 0, 0, 0
    while kills < 200:

        def work(newest: int = newest) -> None:
            if newest:
                go_on()
            else:
                train(corpus, **changes)

        starts = len([event for event in events.read(LOG) if event["event"] == "run_start"])
        pid, status = kill_at_random(work, longest, draw)
        kills += status == -signal.SIGKILL
        assert status in (0, -signal.SIGKILL)
        if newest or checkpoint.steps(CHECKPOINTS):
            newest = check_what_was_left(newest, 1)
        elif RUN.exists():
            delete_run_or_folder()
        if len([event for event in events.read(LOG) if event["event"] == "run_start"]) > starts:
            left = [files.TEMPORARY.match(path.name) for path in temporaries()]
            assert {int(match[2]) for match in left if match} <= {pid}  # what earlier ones left is gone
            half_written += len(left)
        if status == 0:
            check_the_end(Path("runs/straight"))
            finished += 1
            files.remove_tree(RUN)
            newest = 0
    if newest:
        go_on()
        check_the_end(Path("runs/straight"))
    print(json.dumps({"kills": kills, "half_written": half_written, "finished": finished}))


def delete_run_or_folder() -> None:
    """Remove a run that has no checkpoint yet; one that is blank needs no removing."""
    if LOG.exists() and LOG.stat().st_size:
        delete_run(RUN)


@pytest.mark.parametrize("beside", [False, True])
def test_killed_at_200_random_moments(nursery: Nursery, corpus: Path, beside: bool) -> None:
    status, said = nursery.run(kill_200_times, corpus, beside)
    assert status == 0, said
    summary = json.loads(said.splitlines()[-1])
    assert summary["kills"] == 200
    assert summary["half_written"] >= 40  # most of the time goes into saving
    assert summary["finished"] >= 5


# --- a living writer ------------------------------------------------------------------------------------------------


def save_forever(corpus: str) -> None:
    train(corpus, checkpoint_cadence=1, max_steps=10**6, keep_checkpoints=2)


def go_on_from_outside() -> int:
    try:
        go_on()
    except RunError as error:
        print(error)
        return 1
    return 0


def test_what_a_living_process_is_writing_is_not_touched(nursery: Nursery, corpus: Path) -> None:
    writer = nursery.start(save_forever, corpus)

    def is_writing() -> bool:
        """Stop the writer for good where it is in the middle of a save."""
        writer.signal(signal.SIGSTOP)
        if any(".step-" in path.name for path in temporaries(CHECKPOINTS)):
            return True
        writer.signal(signal.SIGCONT)
        return False

    for attempt in range(3):
        wait_until(lambda n=4 * attempt: len(logged("checkpoint")) > n, writer)
        wait_until(is_writing, writer)
        before = {path: path.lstat().st_mtime_ns for path in RUN.rglob("*")}
        status, said = nursery.run(go_on_from_outside, output=Path("outside.txt").absolute())
        assert (status, "another process is training in" in said) == (1, True)
        assert files.sweep(CHECKPOINTS) == []
        assert {path: path.lstat().st_mtime_ns for path in RUN.rglob("*")} == before
        writer.signal(signal.SIGCONT)
    saved = logged("checkpoint")[-1]
    wait_until(lambda: logged("checkpoint")[-1] > saved + 3, writer)
    writer.signal(signal.SIGTERM)
    assert writer.wait() == 0
    assert checkpoint.newest(CHECKPOINTS)[1] == []
    assert Record(RUN).status == "stopped"


# --- through the command line ---------------------------------------------------------------------------------------


def test_ten_kills_of_the_command_line(corpus: Path, tmp_path: Path) -> None:
    """Two runs at a time; each is killed five times, and the last start finishes it."""
    draw, names = random.Random(1), ("a", "b")
    Path("config.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in CONFIG.items()), "utf-8")
    common = [sys.executable, str(TESTS.parent / "main.py"), "--set", "checkpoint_cadence=1", "--max-steps"]
    newest = dict.fromkeys(names, 0)

    def start(name: str, steps: int) -> subprocess.Popen[bytes]:
        new = ["--config", "config.yaml", "--data", str(corpus), "--run-name", name]
        command = [*common, str(steps), *(["--resume", name] if newest[name] else new)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    for _ in range(5):
        processes = {name: start(name, 10**6) for name in names}
        for name, process in processes.items():
            folder = Path("runs") / name
            at = newest[name]
            wait_until(lambda folder=folder, at=at: max(logged("checkpoint", folder / "log.jsonl"), default=0) > at)
            time.sleep(draw.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
            _, stderr = process.communicate()
            assert process.returncode == -signal.SIGKILL, stderr.decode()
            saved, refused = checkpoint.newest(folder / "checkpoints")
            assert refused == []
            assert saved.step >= max(newest[name], *logged("checkpoint", folder / "log.jsonl"))
            newest[name] = saved.step
    processes = {name: start(name, newest[name] + 2) for name in names}
    for name, process in processes.items():
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr.decode()
        steps = logged("step", Path("runs") / name / "log.jsonl")
        assert steps == list(range(1, newest[name] + 3))
    assert temporaries(tmp_path / "runs") == []
    assert set(os.listdir(tmp_path / "runs")) == set(names)
