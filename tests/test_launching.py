"""Runs in a process of their own: how they are started, stopped, and what is left when that goes wrong."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import pytest
from tiny_config import TINY

import lmlab as lab
from lmlab import events, launching
from lmlab.errors import RunError
from lmlab.session import ask_to_stop

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
