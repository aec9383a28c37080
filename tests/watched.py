"""Doing something dangerous in a copy of this process, and seeing what it touched.

Python tells an audit hook of code that it loads, processes that it starts and addresses that it calls; the system tells
of every file that is opened below a watched folder, by whatever library. What is used of memory is measured.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORBIDDEN = (
    "pickle.find_class",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "socket.connect",
)
ANY_TOUCH = 0x00000FFF  # IN_ALL_EVENTS


def watch(folder: Path) -> int:
    """A descriptor from which the system tells of whatever happens to the files of a folder."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.inotify_init1(os.O_NONBLOCK))
    assert descriptor >= 0
    assert libc.inotify_add_watch(descriptor, os.fsencode(folder), ANY_TOUCH) >= 0
    return descriptor


def touched(descriptor: int) -> bool:
    """Whether anything happened since the watch began."""
    try:
        return bool(os.read(descriptor, 4096))
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def attempt(work: Callable[[], object], hostile: Path, outside: Path, seconds: int = 60) -> dict[str, Any]:
    """Do `work` in a copy of this process; what came of it.

    error: the line of the LabError that it raised, None where it raised none. raised: any other exception. alarms: what
    code of the folder `hostile` was loaded, and what else should not happen. outside: whether a file of that folder was
    touched. megabytes: of memory, more than there was.
    """
    reader, writer = os.pipe()
    watching = watch(outside)
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.alarm(seconds)
        told = in_child(work, hostile)
        os.write(writer, json.dumps(told).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"the process ended with {status}"
    return {**json.loads(content), "outside": touched(watching)}


def in_child(work: Callable[[], object], hostile: Path) -> dict[str, Any]:
    from lmlab.errors import LabError, LabWarning

    alarms: list[str] = []

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and arguments[0] == "git":  # a run's log names the commit of lmlab's own folder
            return
        if event in FORBIDDEN:
            alarms.append(f"{event} {arguments!r:.200}")
        elif event == "exec" and str(hostile) in str(getattr(arguments[0], "co_filename", "")):
            alarms.append(f"exec {arguments[0].co_filename}")

    sys.addaudithook(hear)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the libraries say of it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told: dict[str, Any] = {"error": None, "raised": None}
    warnings.simplefilter("ignore", LabWarning)  # it is for people, as an error's line is
    try:
        work()
    except LabError as error:
        told["error"] = str(error)
    except BaseException as error:
        told["raised"] = f"{type(error).__name__}: {error}"[:500]
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {**told, "alarms": alarms, "megabytes": used // 1024}
