"""Runs in a process of their own: how they are started, stopped, and what is left when that goes wrong."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import psutil
import pytest
from tiny_config import TINY

import lmlab as lab
from lmlab import events, launching, ranks
from lmlab.errors import RunError
from lmlab.run_folder import ask_to_stop

LONG_STEPS: dict[str, Any] = {**TINY, "d_model": 128, "d_ff": 512, "max_seq_len": 64, "batch_size": 400}


def test_a_run_that_is_asked_to_stop_twice_still_saves(corpus: Path) -> None:
    """A second signal ends a process at once; to call `stop` again is to go on waiting."""
    run = launching.launch(LONG_STEPS, corpus, run_name="slow", max_steps=1000, checkpoint_cadence=None)
    try:
        ask_to_stop(run.folder)
        with pytest.raises(RunError, match=r"has not ended after 0 s: .* call stop again to go on waiting"):
            run.stop(timeout=0.0)
        launching.attach("slow").stop(timeout=120.0)
    finally:
        for child in psutil.Process().children():
            child.kill()
    run.refresh()
    assert run.status == "stopped"
    assert run.newest_checkpoint is not None
    assert run.newest_checkpoint.name == f"step-{run.step:08d}"
    resumed = run.resume(max_steps=run.step + 1, listeners=[], batch_size=2)
    assert resumed.status == "completed"


@contextmanager
def training_aside(corpus: Path, name: str) -> Iterator[Future[Any]]:
    """A run that trains in another thread than the main one, as of a notebook's `asyncio.to_thread`, for ever."""
    over = threading.Event()

    def end(_: object) -> None:
        if over.is_set():
            raise RuntimeError("it was not stopped")

    with ThreadPoolExecutor(1) as threads:
        settings: dict[str, Any] = {"max_steps": 10**6, "checkpoint_cadence": None, "listeners": [end]}
        training = threads.submit(lab.run, TINY, corpus, run_name=name, **settings)
        try:
            wait_for_step(name, 5)
            yield training
        finally:
            over.set()


def wait_for_step(name: str, step: int) -> None:
    deadline = time.monotonic() + 100
    while sum(event["event"] == "step" for event in events.read(Path("runs") / name / "log.jsonl")) < step:
        assert time.monotonic() < deadline, f"step {step} never came"
        time.sleep(0.02)


def check_that_it_was_saved(run: lab.Run) -> None:
    assert run.status == "stopped"
    assert run.newest_checkpoint is not None
    assert run.newest_checkpoint.name == f"step-{run.step:08d}"
    assert not (run.folder / "stop").exists()
    assert run.resume(max_steps=run.step + 2, listeners=[]).status == "completed"


def test_a_run_in_a_thread_is_stopped_from_its_own_process(corpus: Path) -> None:
    with training_aside(corpus, "aside") as training:
        stopped = lab.attach("aside").stop()
        run = training.result(60)
        assert (run.stopped_by, run.asked_to_stop, run.step) == (signal.SIGTERM, True, stopped.step)
    check_that_it_was_saved(stopped)


STOPPER = "import sys, lmlab as lab\nprint(lab.attach(sys.argv[1]).stop().status)"


def test_a_run_in_a_thread_is_stopped_from_another_process_and_its_own_lives_on(corpus: Path) -> None:
    with training_aside(corpus, "aside") as training:
        received: list[int] = []  # what a process that handles no signal would not survive
        before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
        try:
            command = [sys.executable, "-c", STOPPER, "aside"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        finally:
            signal.signal(signal.SIGTERM, before)
        assert (done.stdout, received) == ("stopped\n", []), done.stderr
        run = training.result(60)
    check_that_it_was_saved(run)


@contextmanager
def in_another_container() -> Iterator[None]:
    """As a process with numbers of processes of its own sees it, on a host of the same name."""
    real, space = os.stat, "/proc/self/ns/pid"
    if not os.path.exists(space):
        pytest.skip("what keeps numbers of processes apart is known on Linux alone")

    def stat(path: Any, **options: Any) -> Any:
        return SimpleNamespace(st_ino=1) if path == space else real(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", stat)
        yield


@contextmanager
def said_to_train(run: lab.Run, **known: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that `process.json` of a run names, with other values; it ends by the first signal."""
    path = run.folder / "process.json"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        values = {**json.loads(path.read_text()), "pid": process.pid, **known}
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        try:
            yield process
        finally:
            process.kill()


def test_a_process_is_known_by_machine_and_container_whatever_the_host_is_called(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = lab.run(TINY, corpus, run_name="r", listeners=[])
    with said_to_train(run) as process:
        with (
            in_another_container(),
            pytest.raises(RunError, match=r"trained on another machine or container of the name .*, not here; stop it"),
        ):
            ask_to_stop(run.folder)
        with monkeypatch.context() as patch:
            patch.setattr(platform, "node", lambda: "mac.home")
            ask_to_stop(run.folder)  # for the one before sent nothing
        assert process.wait(60) == -signal.SIGTERM


def test_what_an_older_lmlab_wrote_goes_by_the_name_of_the_host(corpus: Path) -> None:
    run = lab.run(TINY, corpus, run_name="r", listeners=[])
    with said_to_train(run, machine=None, host="elsewhere") as process:
        with pytest.raises(RunError, match="trained on elsewhere, not here"):
            ask_to_stop(run.folder)
        assert process.poll() is None
    with said_to_train(run, machine=None, host=platform.node()) as process:
        with in_another_container():
            ask_to_stop(run.folder)  # whose process of that number was another
        process.wait(60)
    with said_to_train(run, machine=None) as process:
        ask_to_stop(run.folder)
        assert process.wait(60) == -signal.SIGTERM


def test_a_mac_is_known_by_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> Any:
        assert command == ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        return SimpleNamespace(stdout="5A1B\n")

    def absent(path: Any, *_: Any, **__: Any) -> Any:
        raise FileNotFoundError(path)

    with monkeypatch.context() as patch:
        patch.setattr(platform, "node", lambda: "mac.home")
        patch.setattr(Path, "read_text", absent)
        patch.setattr(os, "stat", absent)
        assert ranks.machine() == "mac.home"
        patch.setattr(sys, "platform", "darwin")
        patch.setattr(subprocess, "run", run)
        assert ranks.machine() == "5A1B"


def test_a_run_that_listens_for_signals_is_not_stopped_by_itself(corpus: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            with pytest.raises(RunError, match="trained by this very process; interrupt it instead"):
                lab.attach("own").stop()

    run = lab.run(TINY, corpus, run_name="own", max_steps=2, listeners=[stop])
    assert run.status == "completed"
    with ThreadPoolExecutor(1) as threads:
        own = {"run_name": "own", "max_steps": 2, "listeners": [stop]}
        run.delete()
        assert threads.submit(lab.run, TINY, corpus, **own).result(60).status == "completed"


def test_a_request_to_stop_that_came_too_late_stops_nothing_else(corpus: Path) -> None:
    folder = Path("runs/killed")
    folder.mkdir(parents=True)
    (folder / "process.json").write_text(json.dumps({"pid": 1, "host": "elsewhere", "thread": 1}))
    (folder / "stop").touch()
    with ThreadPoolExecutor(1) as threads:
        run = threads.submit(lab.run, TINY, corpus, run_name="killed", listeners=[]).result(60)
        assert run.status == "completed"
        (folder / "stop").touch()
        assert threads.submit(run.resume, max_steps=8, listeners=[]).result(60).step == 8
    assert not (folder / "stop").exists()


def test_a_run_that_trains_and_has_not_saved_yet_is_not_said_to_be_dead(corpus: Path) -> None:
    run = launching.launch(LONG_STEPS, corpus, run_name="slow", max_steps=1000, checkpoint_cadence=None)
    uses: list[Callable[[], object]] = [
        run.resume,
        lambda: lab.branch(run, "other"),
        lambda: lab.write_samples(run),
        lambda: lab.register("slow", "other"),
    ]
    try:
        for use in uses:
            with pytest.raises(RunError, match=r"runs/slow is still training and has not saved a checkpoint yet; wait"):
                use()
    finally:
        run.stop()
    assert len(lab.write_samples(run)) == 1


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write to the run folder .*Not a directory"):
        launching.launch(TINY, corpus, runs_dir=tmp_path / "file" / "runs")


def test_an_interrupt_before_the_first_line_leaves_no_process(tmp_path: Path) -> None:
    """The text is a pipe that nobody writes to: a run that has opened it gets ready for ever."""
    pipe = tmp_path / "never.txt"
    os.mkfifo(pipe)
    opened: list[BinaryIO] = []

    def interrupt() -> None:
        opened.append(open(pipe, "wb"))  # noqa: SIM115 - open until the end, or the text would end
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        launching.launch(TINY, pipe, run_name="unready")
    _, alive = psutil.wait_procs(psutil.Process().children(), timeout=60)
    opened[0].close()
    assert not alive
    assert not list(events.read(tmp_path / "runs" / "unready" / "log.jsonl"))


def test_a_run_that_takes_long_to_get_ready_is_waited_for_with_a_word(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launching, "START_SECONDS", 0.0)
    run = launching.launch(TINY, corpus, run_name="late")
    assert run.wait().status == "completed"
    assert [record.getMessage() for record in caplog.records].count(
        f"the run late is still getting ready; see {run.folder.parent / '.late.out'}"
    ) == 1
