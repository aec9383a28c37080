"""SIGINT and SIGTERM: the step is finished, the run saved, the exit status exact, and resuming goes on as if nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lmlab import checkpoint, events, lab
from lmlab.proof import TIMINGS, differing_tensor
from lmlab.signals import HANDLED, StopSignals, handled

ROOT = Path(__file__).resolve().parents[1]


def test_the_first_signal_is_kept_and_the_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    for number in HANDLED:
        with StopSignals() as signals:
            assert not signals()
            os.kill(os.getpid(), number)
            assert signals()
            assert signals.received == number
        assert [signal.getsignal(number) for number in HANDLED] == before


def test_a_terminal_that_goes_asks_to_stop_unless_nobody_minds() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler, asks in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):  # the second as under nohup
            signal.signal(signal.SIGHUP, handler)
            assert (signal.SIGHUP in handled()) == asks
            with StopSignals() as signals:
                for _ in range(2):  # from the shell and from the system, in no time
                    os.kill(os.getpid(), signal.SIGHUP)
                assert signals() == asks
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # what came again later is not deadly, either
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_whose_terminal_is_closed_is_saved(tiny_yaml: Path, corpus: Path) -> None:
    """With a terminal of its own, as ssh gives one, whose other side then goes."""
    ours, theirs = pty.openpty()
    command = [sys.executable, str(ROOT / "main.py"), "--config", str(tiny_yaml), "--data", str(corpus)]
    process = subprocess.Popen(
        [*command, "--run-name", "left", "--set", "max_steps=100000", "--set", "checkpoint_cadence=null"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=in_a_terminal,
    )  # fmt: skip
    os.close(theirs)
    reader = threading.Thread(target=drained, args=(ours,))
    reader.start()
    try:
        wait_for(lambda: n_steps("left") >= 5, process)
        for _ in range(3):
            os.kill(process.pid, signal.SIGHUP)
            time.sleep(0.02)
        assert process.wait(60) == 128 + signal.SIGHUP
    finally:
        process.kill()
        process.wait()
        reader.join()
    run = lab.Run("runs/left")
    assert run.status == "stopped"
    assert checkpoint.newest(run.folder / "checkpoints")[0].step == run.step


def in_a_terminal() -> None:
    """Take the standard input as the process's own terminal, and mind its end, also where pytest was begun by nohup."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def drained(descriptor: int) -> None:
    """Read what is written to a terminal until its other side is closed."""
    with contextlib.suppress(OSError):
        while os.read(descriptor, 4096):
            pass
    os.close(descriptor)


def test_a_second_signal_acts_as_it_always_does() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) == before
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with StopSignals():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_than_the_main_one_leaves_signals_alone() -> None:
    before, seen = [signal.getsignal(number) for number in HANDLED], []

    def look() -> None:
        with StopSignals() as signals:
            seen.append(([signal.getsignal(number) for number in HANDLED], signals()))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def test_an_interrupted_cell_gets_a_run_that_can_be_resumed(tiny: dict[str, Any], corpus: Path) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    run = lab.run({**tiny, "max_steps": 50}, corpus, listeners=[interrupt])
    assert run.stopped_by == signal.SIGINT
    assert (run.status, run.step) == ("stopped", 4)
    assert checkpoint.load(run.folder / "checkpoints" / "step-00000004").step == 4
    assert run.resume(max_steps=6, listeners=[]).status == "completed"


def test_a_signal_in_the_last_step_stops_nothing(tiny: dict[str, Any], corpus: Path) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    run = lab.run({**tiny, "max_steps": 3}, corpus, listeners=[interrupt])
    assert (run.status, run.stopped_by) == ("completed", None)


@contextmanager
def training(config: Path, corpus: Path, name: str, steps: int, *settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `python main.py` in a process of its own that has logged at least `steps` steps; killed at the end."""
    command = [
        sys.executable,
        str(ROOT / "main.py"),
        "--config",
        str(config),
        "--data",
        str(corpus),
        "--run-name",
        name,
    ]
    for setting in settings:
        command += ["--set", setting]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        wait_for(lambda: n_steps(name) >= steps, process)
        yield process
    finally:
        process.kill()
        process.communicate()


def n_steps(name: str) -> int:
    return sum(event["event"] == "step" for event in events.read(Path("runs") / name / "log.jsonl"))


def wait_for(condition: Any, process: subprocess.Popen[bytes], seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)


def told(name: str) -> list[dict[str, Any]]:
    session = ("run_start", "run_end", "checkpoint")
    read = [event for event in events.read(Path("runs") / name / "log.jsonl") if event["event"] not in session]
    return [{key: value for key, value in event.items() if key not in TIMINGS} for event in read]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_ends_with_its_status_and_costs_nothing(
    number: int, status: int, tiny_yaml: Path, corpus: Path
) -> None:
    settings = ("max_steps=1000000", "dropout=0.2", "checkpoint_cadence=null", "eval_cadence=3", "sampling_cadence=4")
    with training(tiny_yaml, corpus, "stopped", 5, *settings) as process:
        process.send_signal(number)
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == status, stderr.decode()
    log = events.read(Path("runs/stopped/log.jsonl"))
    assert [(event["event"], event.get("status")) for event in log[-2:]] == [
        ("checkpoint", None),
        ("run_end", "stopped"),
    ]
    at = n_steps("stopped")
    assert checkpoint.steps(Path("runs/stopped/checkpoints")) == [at]
    last = stderr.decode().strip().splitlines()[-1]
    assert last.startswith(f"stopped at step {at}; go on with: python main.py --resume ")
    assert "Traceback" not in stderr.decode()
    torch.set_num_threads(1)
    end = at + 5
    lab.resume("stopped", listeners=[], max_steps=end)
    assert told("stopped")[0]["event"] == "eval"
    changes = {"max_steps": end, "dropout": 0.2, "checkpoint_cadence": None, "eval_cadence": 3, "sampling_cadence": 4}
    lab.run(str(tiny_yaml), corpus, run_name="straight", listeners=[], **changes)
    assert told("stopped") == told("straight")
    ends = [checkpoint.load(Path("runs") / run / f"checkpoints/step-{end:08d}") for run in ("stopped", "straight")]
    assert differing_tensor(*ends) is None


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_second_signal_ends_at_once(number: int, status: int, tiny_yaml: Path, corpus: Path) -> None:
    """In the middle of a sample that would take hours; what was saved before stays whole."""
    settings = ("sampling_cadence=4", "sampling_max_length=1000000", "checkpoint_cadence=1", "max_steps=1000")
    with training(tiny_yaml, corpus, "run", 4, *settings) as process:
        process.send_signal(number)
        time.sleep(0.7)
        assert process.poll() is None  # the step is not finished while its sample is not
        process.send_signal(number)
        started = time.monotonic()
        process.communicate(timeout=60)
        assert time.monotonic() - started < 5
    assert process.returncode == status
    assert checkpoint.newest(Path("runs/run/checkpoints"))[0].step == 3
    assert lab.resume("run", listeners=[], sampling_cadence=None, sampling_max_length=1, max_steps=5).step == 5
    assert [event["step"] for event in told("run") if event["event"] == "step"] == [1, 2, 3, 4, 5]
