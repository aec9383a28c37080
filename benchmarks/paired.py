"""Measures two programs in turn, each in a process of its own, and says how they compare.

A machine that others use too changes its speed from minute to minute: what ran at another time tells little, so rounds
alternate and ratios are taken round by round. While one program runs the other waits for its next line.

A program is a script that calls `serve`; `Program` starts it and asks for rounds.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Self

RESULTS = Path(__file__).parent / "results"


def rounds() -> Generator[int, dict[str, Any], None]:
    """In a measured program: yields the amount of each round, and takes by `send` what there is to say of it."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        answer = yield int(line)
        print(json.dumps({"seconds": time.perf_counter() - started, **answer}), flush=True)


def serve(work: Callable[[int], dict[str, Any]]) -> None:
    """In a measured program: answer every round by what `work(amount)` returns, with the seconds that it took."""
    asked = rounds()
    amount = next(asked, None)
    while amount is not None:
        try:
            amount = asked.send(work(amount))
        except StopIteration:
            return


class Program:
    """A script in a process of its own. Its anonymous memory is watched while it works: mapped files do not count."""

    def __init__(self, script: str | Path, *arguments: str, **environment: str) -> None:
        command = [sys.executable, str(script), *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.peak_memory, self._watching, self._works = 0, True, True
        self._watch = threading.Thread(target=self._watch_memory, daemon=True)
        self._watch.start()
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watching = False
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(60)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def run(self, amount: int) -> dict[str, Any]:
        """One round of `amount`: what the program said of it. Raises RuntimeError where the program has ended."""
        if self.process.stdin is None:
            raise RuntimeError("the program takes no input")
        self.process.stdin.write(f"{amount}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        self._works = True
        while self.process.stdout is not None and (line := self.process.stdout.readline()):
            if line.startswith("{"):
                self._works = False
                return dict(json.loads(line))
        raise RuntimeError(f"{' '.join(map(str, self.process.args))} ended with status {self.process.wait()}")

    def _watch_memory(self) -> None:
        while self._watching and self.process.poll() is None:
            if self._works:
                self.peak_memory = max(self.peak_memory, anonymous_memory(self.process.pid))
            time.sleep(0.01)


def anonymous_memory(pid: int) -> int:
    """The anonymous resident memory of a process in bytes, 0 where this system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def in_turn(programs: dict[str, Program], amount: int, rounds: int, warmup: int = 1) -> dict[str, list[dict[str, Any]]]:
    """Rounds of all programs, one after the other, the first `warmup` of them not counted."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in programs}
    for number in range(warmup + rounds):
        for name, program in programs.items():
            answer = program.run(amount)
            if number >= warmup:
                answers[name].append(answer)
    return answers


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times as large ours is: the median over rounds."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    import torch

    from lmlab import devices

    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "tflops_bf16": round(devices.peak_flops(cpu, "bf16", threads) / 1e12, 2),
        "tflops_fp32": round(devices.peak_flops(cpu, "fp32", threads) / 1e12, 2),
    }


def processor_name() -> str:
    """What the system calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def report(name: str, figures: dict[str, Any], bars: dict[str, float] | None = None, unit: str = "") -> None:
    """Print the figures as a JSON line and keep them, and a plot of `bars`, in `results/`."""
    line = json.dumps({"benchmark": name, **figures, "machine": machine()})
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(line + "\n", encoding="utf-8")
    if bars:
        draw(RESULTS / f"{name}.png", bars, unit)
    print(line)


def draw(path: Path, bars: dict[str, float], unit: str) -> None:
    """Bars, one below the other, with their values."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 + 0.45 * len(bars)), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh(list(bars), list(bars.values()), color="#4c72b0")
    axes.bar_label(drawn, fmt="{:,.4g}", padding=4)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
