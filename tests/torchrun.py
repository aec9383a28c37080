"""torchrun for tests: several processes on this machine, none of which is left over."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
MAIN = ROOT / "main.py"


def descendants(pid: int) -> list[psutil.Process]:
    """The processes that a process started, and theirs."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def ranks_of(torchrun: int) -> dict[int, Callable[[int], bool]]:
    """The ranks that a torchrun has started and that live: each takes a signal, and says whether it was there to get it."""
    found: dict[int, Callable[[int], bool]] = {}
    for process in descendants(torchrun):
        with contextlib.suppress(psutil.Error):
            rank = process.environ().get("RANK")
            if rank is not None:
                found.setdefault(int(rank), functools.partial(signalled, process))  # not what a rank has started
    return found


def signalled(process: psutil.Process, number: int) -> bool:
    """Whether a process was there to get a signal."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


@contextlib.contextmanager
def agent(
    flags: Sequence[str], script: Path, *arguments: object, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """`torchrun FLAGS SCRIPT ...` while the block lasts; what is left of it then is killed."""
    logs = tempfile.TemporaryDirectory(prefix="lmlab-ranks-")  # else torchrun makes one, and leaves it
    torchrun = ["-m", "torch.distributed.run", *flags, f"--log-dir={logs.name}"]
    process = subprocess.Popen(
        [sys.executable, *torchrun, str(script), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for left in descendants(process.pid):  # its ranks are in sessions of their own
            signalled(left, signal.SIGKILL)
        process.kill()
        process.communicate()
        logs.cleanup()


def started(
    size: int, script: Path, *arguments: object, max_restarts: int = 0, **environment: str
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """`agent` with the flags of one machine for SIZE processes."""
    flags = ["--standalone", f"--nproc-per-node={size}", f"--max-restarts={max_restarts}"]
    return agent(flags, script, *arguments, **environment)


def torchrun(
    size: int, script: Path, *arguments: object, timeout: float = 120, max_restarts: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run it to its end. Raises subprocess.TimeoutExpired where it hangs."""
    with started(size, script, *arguments, max_restarts=max_restarts, **environment) as process:
        stdout, stderr = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def worked(
    size: int, script: Path, *arguments: object, timeout: float = 120, max_restarts: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The same, of what is to end well."""
    done = torchrun(size, script, *arguments, timeout=timeout, max_restarts=max_restarts, **environment)
    assert done.returncode == 0, done.stderr[-6000:]
    return done
