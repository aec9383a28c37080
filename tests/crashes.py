"""Processes that die: at every file operation, one after the other, or by SIGKILL at random moments.

Everything here runs in a child of `forked.Nursery`, which has one thread and forks again: what dies is a grandchild, and
the child looks at what it left.
"""

from __future__ import annotations

import builtins
import io
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any

CRASHED = 9
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def fork(work: Callable[[], object]) -> int:
    """A process that does `work` and ends with status 0, or prints what it raised and ends with status 1."""
    assert len(os.listdir("/proc/self/task")) == 1, "a thread outlived what started it: this process cannot be forked"
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    """Wait for a process: its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def crash_everywhere(
    work: Callable[[], object], prepare: Callable[[], object], check: Callable[[int, bool], object], limit: int = 1000
) -> int:
    """Do `work` in processes that die at the first, the second… operation that changes a file, until one ends by itself.

    prepare: called before each. check: called after each, with the operation and whether the work came to its end.
    Returns the number of operations.
    """

    def doomed(operation: int) -> None:
        die_at(operation)
        work()

    for operation in range(1, limit):
        prepare()
        status = ended(fork(lambda operation=operation: doomed(operation)))
        assert status in (0, CRASHED), f"operation {operation} ended with status {status}"
        try:
            check(operation, status == 0)
        except Exception:
            print(f"after a crash at operation {operation}")
            raise
        if status == 0:
            return operation - 1
    raise AssertionError("the work never ended")


def die_at(operation: int) -> None:
    """From now on, count what changes files in this process, and die at the given one; half of a write is there then."""
    made = 0

    def tick() -> bool:
        nonlocal made
        made += 1
        return made == operation

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if tick():
                os._exit(CRASHED)
            return real(*arguments, **options)

        return call

    def opening(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & WRITING and tick():
            os._exit(CRASHED)
        return real_os_open(path, flags, *arguments, **options)

    def writing(descriptor: int, data: bytes) -> int:
        if tick():
            real_write(descriptor, data[: len(data) // 2])
            os._exit(CRASHED)
        return real_write(descriptor, data)

    def opening_file(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not set(mode) & set("wxa+"):
            return real_open(path, mode, *arguments, **options)
        if tick():
            os._exit(CRASHED)
        return File(real_open(path, mode, *arguments, **options), tick)

    def saving_tensors(tensors: Any, path: Any, *arguments: Any, **options: Any) -> None:
        dies = tick()
        real_serialize(tensors, path, *arguments, **options)
        if dies:
            os.truncate(path, os.stat(path).st_size // 2)
            os._exit(CRASHED)

    import safetensors.torch

    real_open, real_os_open, real_write = builtins.open, os.open, os.write
    real_serialize = safetensors.torch.serialize_file
    builtins.open = io.open = opening_file  # type: ignore[assignment]
    os.open, os.write = opening, writing
    safetensors.torch.serialize_file = saving_tensors
    for name in ("fsync", "replace", "rename", "mkdir", "unlink", "remove", "rmdir", "link", "symlink"):
        setattr(os, name, dying(getattr(os, name)))


class File:
    """An open file whose process may die in the middle of a write."""

    def __init__(self, file: Any, tick: Callable[[], bool]) -> None:
        self.file, self.tick = file, tick

    def write(self, data: Any) -> int:
        if self.tick():
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            os._exit(CRASHED)
        return int(self.file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def kill_at_random(work: Callable[[], object], longest: float, draw: random.Random) -> tuple[int, int]:
    """Do `work` in a process that is killed within `longest` seconds, if it has not ended; its number and exit status."""
    pid = fork(work)
    time.sleep(draw.uniform(0, longest))
    os.kill(pid, signal.SIGKILL)  # of one that has ended nothing but its status is left
    return pid, ended(pid)
