"""Disk full: older checkpoints stay, one clear line, exit status 1, and the run goes on when there is space."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from crashes import ended, fork
from forked import Nursery
from tiny_config import TINY

from lmlab import checkpoint, cli, events, files, lab
from lmlab.proof import differing_tensor

pytestmark = pytest.mark.endurance

CONFIG: dict[str, Any] = {
    **TINY, "precision": "fp32", "max_steps": 3, "checkpoint_cadence": 1, "eval_cadence": 2, "eval_batches": 1,
    "sampling_max_length": 3,
}  # fmt: skip
RUN = Path("runs/r")
CHECKPOINTS = RUN / "checkpoints"


def command(*arguments: str, largest_file: int = resource.RLIM_INFINITY) -> tuple[int, list[str]]:
    """The command line in a process that can write no file beyond a size: its exit status and the lines of stderr."""
    reading, writing = os.pipe()

    def work() -> None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        sys.stderr = os.fdopen(writing, "w", buffering=1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
        os._exit(cli.main(arguments))

    pid = fork(work)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        said = stream.read().decode()
    return ended(pid), said.splitlines()


def check_one_line(status: int, said: list[str]) -> None:
    """What a user sees of a full disk."""
    assert status == 1, (status, said)
    assert len(said) == 1, said
    assert said[0].startswith("error: cannot "), said
    assert "free some space" in said[0]


def fill_the_disk_at_20_sizes(corpus: str, beside: bool) -> None:
    lab.run({**CONFIG, "async_checkpoints": beside}, corpus, run_name="r", runs_dir="runs", listeners=[])
    shutil.copytree(RUN, "base")
    lab.resume("r", runs_dir="runs", listeners=[], max_steps=6)
    RUN.rename("runs/straight")
    straight = checkpoint.newest(Path("runs/straight/checkpoints"))[0]
    largest = max(path.stat().st_size for path in straight.folder.iterdir())
    sizes = [0] + [int(10 * (0.99 * largest / 10) ** (n / 18)) for n in range(19)]
    log, refused_at = (Path("base/log.jsonl")).stat().st_size, {"log": 0, "checkpoint": 0, "run folder": 0}
    for size in sizes:
        files.remove_tree(RUN)
        shutil.copytree("base", RUN)
        before = {step: checkpoint.mark_of(CHECKPOINTS, step) for step in (1, 2, 3)}
        status, said = command("--resume", str(RUN), "--max-steps", "6", largest_file=size)
        check_one_line(status, said)
        refused_at[next(what for what in refused_at if what in said[0])] += 1
        for step, mark in before.items():
            assert checkpoint.load(checkpoint.step_folder(CHECKPOINTS, step)).step == step
            assert checkpoint.mark_of(CHECKPOINTS, step) == mark
        assert [path for path in RUN.rglob(".*") if files.TEMPORARY.match(path.name)] == []
        assert command("--resume", str(RUN), "--max-steps", "6") == (0, [])
        steps = [event["step"] for event in events.read(RUN / "log.jsonl") if event["event"] == "step"]
        assert steps == [1, 2, 3, 4, 5, 6]
        assert differing_tensor(straight, checkpoint.newest(CHECKPOINTS)[0]) is None
    print(json.dumps({"sizes": len(sizes), "largest": largest, "log": log, **refused_at}))


@pytest.mark.parametrize("beside", [False, True])
def test_a_disk_that_is_full_at_20_sizes(nursery: Nursery, corpus: Path, beside: bool) -> None:
    status, said = nursery.run(fill_the_disk_at_20_sizes, corpus, beside)
    assert status == 0, said
    summary = json.loads(said.splitlines()[-1])
    assert summary["sizes"] == 20
    assert min(summary["run folder"], summary["log"], summary["checkpoint"]) > 0


def go_on_with_a_log_on_a_full_disk(corpus: str) -> None:
    lab.run(CONFIG, corpus, run_name="r", runs_dir="runs", listeners=[])
    before = {path: path.stat().st_mtime_ns for path in CHECKPOINTS.rglob("*")}
    (RUN / "log.jsonl").rename("log.jsonl")
    (RUN / "log.jsonl").symlink_to("/dev/full")
    status, said = command("--resume", str(RUN), "--max-steps", "6")
    check_one_line(status, said)
    assert "No space left on device" in said[0]
    assert {path: path.stat().st_mtime_ns for path in CHECKPOINTS.rglob("*")} == before
    assert command("list-runs") == (0, [])  # a log that never ends is not read to its end
    Path("log.jsonl").replace(RUN / "log.jsonl")
    assert command("--resume", str(RUN), "--max-steps", "6") == (0, [])


def test_a_log_on_a_device_that_is_always_full(nursery: Nursery, corpus: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    status, said = nursery.run(go_on_with_a_log_on_a_full_disk, corpus)
    assert status == 0, said
