"""SIGTERM and SIGINT at random moments: at most a step more, saved, the exact exit status, and resuming is exact."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from crashes import ended, fork
from forked import Nursery
from test_resume import told_after
from tiny_config import TINY

from lmlab import checkpoint, cli, events, lab
from lmlab.proof import differing_tensor
from lmlab.trainer import Trainer

pytestmark = pytest.mark.endurance

STEPS = 14
CONFIG: dict[str, Any] = {
    **TINY, "precision": "fp32", "max_steps": STEPS, "dropout": 0.1, "checkpoint_cadence": 2, "eval_cadence": 3,
    "sampling_cadence": 3, "sampling_max_length": 12, "lr_schedule": "cosine", "lr_decay_steps": STEPS,
}  # fmt: skip
PHASES = {
    "training": "training_step", "evaluation": "evaluate", "sampling": "sample", "saving": "save_checkpoint",
}  # fmt: skip
LONGEST = {"training": 0.004, "evaluation": 0.02, "sampling": 0.015, "saving": 0.03}  # seconds of a phase
MARK = struct.Struct("=10sbd")


def mark_phases(pipe: int) -> None:
    """From now on, write to a pipe when each phase of training begins and ends."""
    for phase, method in PHASES.items():
        setattr(Trainer, method, marked(getattr(Trainer, method), phase, pipe))


def marked(real: Callable[..., Any], phase: str, pipe: int) -> Callable[..., Any]:
    """A method that tells a pipe when it begins and ends."""

    def call(*arguments: Any) -> Any:
        os.write(pipe, MARK.pack(phase.encode(), 1, time.time()))
        try:
            return real(*arguments)
        finally:
            os.write(pipe, MARK.pack(phase.encode(), -1, time.time()))

    return call


def next_mark(pipe: int) -> tuple[str, int, float] | None:
    """The next mark: the phase, 1 for its begin and -1 for its end, and the time. None at the end."""
    data = os.read(pipe, MARK.size)
    if not data:
        return None
    phase, way, at = MARK.unpack(data)
    return phase.rstrip(b"\0").decode(), way, at


def wait_for(phase: str, pipe: int, draw: random.Random) -> list[tuple[str, int, float]]:
    """Wait for a random moment in a phase, not always the first of its kind; returns the marks that came meanwhile."""
    marks, left = [], draw.randint(2, 6) if phase == "training" else draw.randint(1, 2)
    while left and (mark := next_mark(pipe)) is not None:
        marks.append(mark)
        left -= mark[0] == phase and mark[1] > 0
    time.sleep(draw.uniform(0, LONGEST[phase]))
    return marks


def phase_at(moment: float, marks: list[tuple[str, int, float]]) -> str:
    """The innermost phase that ran at a moment; empty outside of all."""
    inside: list[str] = []
    for phase, way, at in marks:
        if at > moment:
            break
        if way > 0:
            inside.append(phase)
        else:
            inside.pop()
    return inside[-1] if inside else ""


def interrupt_once(arguments: list[str], number: int, phase: str, draw: random.Random) -> tuple[Any, ...]:
    """Run the command line, and send it a signal in a phase: its exit status, when the signal came, and in which phase."""
    reading, writing = os.pipe()

    def work() -> None:
        os.close(reading)
        mark_phases(writing)
        output = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        status = cli.main(arguments)
        os._exit(status)

    pid = fork(work)
    os.close(writing)
    marks = wait_for(phase, reading, draw)
    asked = time.time()
    os.kill(pid, number)
    sent = time.time()
    while (mark := next_mark(reading)) is not None:
        marks.append(mark)
    os.close(reading)
    return ended(pid), sent, phase_at(asked, marks)


def interrupt_20_times_in_each_phase(corpus: str) -> None:
    draw, name = random.Random(0), "r"
    Path("config.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in CONFIG.items()), "utf-8")
    straight = lab.run("config.yaml", corpus, run_name="straight", runs_dir="runs", listeners=[]).folder
    expected, end = told_after(straight, -1), checkpoint.newest(straight / "checkpoints")[0]
    hits, attempts = dict.fromkeys(PHASES, 0), 0
    for phase in PHASES:
        while hits[phase] < 20:
            attempts += 1
            assert attempts < 400, hits
            name, number = f"r{attempts}", (signal.SIGTERM, signal.SIGINT)[hits[phase] % 2]
            arguments = ["--config", "config.yaml", "--data", corpus, "--run-name", name, "--runs-dir", "runs"]
            status, sent, hit = interrupt_once(arguments, number, phase, draw)
            hits[phase] += hit == phase
            check_an_interrupted_run(Path("runs") / name, status, number, sent)
            resumed = lab.resume(name, runs_dir="runs", listeners=[])
            assert told_after(resumed.folder, -1) == expected
            assert differing_tensor(end, checkpoint.newest(resumed.folder / "checkpoints")[0]) is None
    print(json.dumps({"hits": hits, "attempts": attempts}))


def check_an_interrupted_run(folder: Path, status: int, number: int, sent: float) -> None:
    """It ended with the signal's status, said how to go on, and left what it should."""
    assert status == 128 + number, Path("said.txt").read_text()
    said = Path("said.txt").read_text().splitlines()
    step = check_a_stopped_log(folder, sent)
    assert f"stopped at step {step}; go on with: python main.py --resume {folder.absolute()}" in said
    assert not any(line.startswith(("Traceback", "error:")) for line in said)


def check_a_stopped_log(folder: Path, sent: float) -> int:
    """A run saved where it stood, and did not go on for more than the step at hand; returns the step."""
    log = events.read(folder / "log.jsonl")
    assert (log[-1]["event"], log[-1]["status"]) == ("run_end", "stopped")
    steps = [event for event in log if event["event"] == "step"]
    after = [event for event in steps if datetime.fromisoformat(event["time"]).timestamp() > sent]
    assert len(after) <= 1
    saved, refused = checkpoint.newest(folder / "checkpoints")
    assert (saved.step, refused) == (len(steps), [])
    return saved.step


def test_20_signals_in_each_phase(nursery: Nursery, corpus: Path) -> None:
    status, said = nursery.run(interrupt_20_times_in_each_phase, corpus)
    assert status == 0, said
    hits = json.loads(said.splitlines()[-1])["hits"]
    assert hits.keys() == PHASES.keys()
    assert set(hits.values()) == {20}
