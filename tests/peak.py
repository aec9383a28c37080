"""How much memory code takes at its peak, measured in a process of its own: what ran before in pytest's is no part of it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """The most memory that this process has had at a time, in bytes.

    Not `ru_maxrss` where it can be helped: a process on Linux begins with that of the one that started it, so that below
    a large pytest it never grows. macOS has no /proc, and counts it in bytes and for each process alone.
    """
    if STATUS.exists():
        return 1024 * int(STATUS.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def output_of(code: str, *arguments: object) -> str:
    """What Python code prints in a process of its own, which can import this module."""
    path = os.pathsep.join((str(TESTS.parent), str(TESTS)))
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
