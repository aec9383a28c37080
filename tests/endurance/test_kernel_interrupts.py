"""The interrupt button of a notebook, 20 times in each phase: the cell returns a stopped run, and resuming is exact."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_kernel import Kernel, kernels
from test_resume import told_after
from test_stop_signals import CONFIG, PHASES, check_a_stopped_log, next_mark, phase_at, wait_for

from lmlab import checkpoint
from lmlab.proof import differing_tensor

pytestmark = pytest.mark.endurance

__all__ = ["kernels"]  # a fixture


class MarkedKernel:
    """A kernel that tells through a named pipe when each phase of training begins and ends."""

    def __init__(self, kernel: Kernel, corpus: Path, pipe: Path) -> None:
        os.mkfifo(pipe)
        self.kernel, self.pipe = kernel, os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        kernel.do(
            f"import os, sys; sys.path[:0] = {sys.path!r}\n"
            "from test_stop_signals import mark_phases\n"
            f"mark_phases(os.open({str(pipe)!r}, os.O_WRONLY))\n"
            f"settings, data = {CONFIG!r}, {str(corpus)!r}"
        )

    def marks(self) -> list[tuple[str, int, float]]:
        """The marks that are waiting in the pipe."""
        os.set_blocking(self.pipe, False)
        found = []
        with contextlib.suppress(BlockingIOError):
            while (mark := next_mark(self.pipe)) is not None:
                found.append(mark)
        return found

    def interrupt_once(self, name: str, phase: str, draw: random.Random) -> tuple[float, str]:
        """Run a cell that trains, and press the button in a phase: when that was done, and which phase it hit."""
        cell = self.kernel.begin(f"run = lab.run(settings, data, run_name={name!r})", status="run.status")
        os.set_blocking(self.pipe, True)
        marks = wait_for(phase, self.pipe, draw)
        pressed = time.time()
        self.kernel.manager.interrupt_kernel()
        sent = time.time()  # until now, steps may end that nobody was asked to stop
        reply, _ = self.kernel.finish(cell)
        assert reply["status"] == "ok", "\n".join(reply.get("traceback", ()))
        return sent, phase_at(pressed, marks + self.marks())


def test_20_interrupts_of_a_kernel_in_each_phase(
    kernels: Callable[[], Kernel], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    kernel = MarkedKernel(kernels(), corpus, tmp_path / "marks")
    kernel.kernel.do("lab.run(settings, data, run_name='straight')")
    kernel.marks()
    straight = tmp_path / "runs" / "straight"
    expected, end = told_after(straight, -1), checkpoint.newest(straight / "checkpoints")[0]
    draw, hits, attempts = random.Random(0), dict.fromkeys(PHASES, 0), 0
    for phase in PHASES:
        while hits[phase] < 20:
            attempts += 1
            assert attempts < 400, hits
            name = f"r{attempts}"
            sent, hit = kernel.interrupt_once(name, phase, draw)
            hits[phase] += hit == phase
            check_a_stopped_log(tmp_path / "runs" / name, sent)
            kernel.kernel.do("run = run.resume()")
            kernel.marks()
            assert told_after(tmp_path / "runs" / name, -1) == expected
            assert differing_tensor(end, checkpoint.newest(tmp_path / "runs" / name / "checkpoints")[0]) is None
    assert set(hits.values()) == {20}
