"""Children forked from a warm parent: importing torch takes seconds, forking a process that has it takes milliseconds.

The parent is a process of its own with a single thread, which pytest cannot promise to be. A child runs one function of a
module in `tests/` or `tests/endurance/`, in a folder and with an output file of its own, and may be killed at any moment.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

TESTS = Path(__file__).resolve().parent
FAILED = 70  # the exit status of a child whose function raised
WARM = ("lmlab.lab", "lmlab.cli", "lmlab.console", "torch._dynamo")  # the last one is what optimizers import
LIMIT = 600  # seconds after which a child ends by SIGALRM


class Child:
    """A running child. said: what it printed, on stdout and stderr alike."""

    def __init__(self, nursery: Nursery, pid: int, output: Path) -> None:
        self.nursery, self.pid, self.output = nursery, pid, output
        self._status: int | None = None

    def poll(self) -> int | None:
        """The exit status, negative for the signal that ended it; None while it runs."""
        if self._status is None:
            self._status = self.nursery.ask(poll=self.pid)
        return self._status

    def wait(self) -> int:
        """The exit status, when it has ended."""
        if self._status is None:
            self._status = self.nursery.ask(wait=self.pid)
        assert self._status is not None
        return self._status

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens to one that has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> int:
        """End it at once and return the exit status."""
        self.signal(signal.SIGKILL)
        return self.wait()

    @property
    def said(self) -> str:
        return self.output.read_text("utf-8", "replace")


class Nursery:
    """The warm parent. modules: what it imports beforehand."""

    def __init__(self, *modules: str) -> None:
        path = os.pathsep.join([str(TESTS.parent), str(TESTS), str(TESTS / "endurance")])
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "forked.py"), *WARM, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(LIMIT)
        self._process.stdout.close()

    def start(self, function: Callable[..., Any], *arguments: Any, output: Path | None = None) -> Child:
        """Fork a child that calls a function of a test module in the present folder, with the present environment.

        arguments: plain values and paths. Its exit status is what the function returns, 0 for None.
        """
        output = output or Path.cwd() / "output.txt"
        pid = self.ask(
            module=function.__module__,
            function=function.__qualname__,
            arguments=[str(value) if isinstance(value, Path) else value for value in arguments],
            folder=os.getcwd(),
            output=str(output),
            environment={name: value for name, value in os.environ.items() if name.startswith(("LMLAB_", "HF_"))},
        )
        return Child(self, pid, output)

    def run(self, function: Callable[..., Any], *arguments: Any, output: Path | None = None) -> tuple[int, str]:
        """Call a function in a child to its end: the exit status, and what it printed."""
        child = self.start(function, *arguments, output=output)
        return child.wait(), child.said

    def ask(self, **request: Any) -> Any:
        """Send the warm parent a request and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the warm parent ended with status {self._process.wait()}"
        return json.loads(line)


# --- in the warm parent ---------------------------------------------------------------------------------------------


def serve(modules: list[str]) -> None:
    """Import, then fork a child for every request until stdin ends."""
    import torch

    from lmlab import devices

    torch.set_num_threads(1)
    for name in modules:
        importlib.import_module(name)
    for precision in ("fp32", "bf16"):  # measured once for all children
        devices.peak_flops(torch.device("cpu"), precision, 1)
    assert threading.active_count() == 1
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked safely"
    ended: dict[int, int] = {}
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), ended)), flush=True)


def answer(request: dict[str, Any], ended: dict[int, int]) -> int | None:
    """Fork, or say how a child ended. ended: the exit statuses of children by process number."""
    if "function" in request:
        pid = os.fork()
        if pid == 0:
            be_child(request)
        return pid
    pid = request.get("wait", request.get("poll"))
    if pid not in ended:
        found, status = os.waitpid(pid, 0 if "wait" in request else os.WNOHANG)
        if found == 0:
            return None
        ended[pid] = os.waitstatus_to_exitcode(status)
    return ended[pid]


def be_child(request: dict[str, Any]) -> None:
    """Call the function and end this process."""
    status = FAILED
    try:
        signal.alarm(LIMIT)
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.close(output)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.chdir(request["folder"])
        os.environ.update(request["environment"])
        function = getattr(importlib.import_module(request["module"]), request["function"])
        status = function(*request["arguments"]) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait_until(condition: Callable[[], bool], child: Child | None = None, seconds: float = 60.0) -> None:
    """Wait for a condition. Fails where it takes too long, or the child that is to bring it about has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert child is None or child.poll() is None, child.said
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.005)


if __name__ == "__main__":
    serve(sys.argv[1:])
