"""A run's folder: held for one session, and what a session finds, leaves and moves aside in it."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from lmlab import checkpoint, events, ranks
from lmlab.errors import RunError
from lmlab.files import (
    NO_LOCKS,
    atomic_folder,
    describe_os_error,
    dump_json,
    is_disk_full,
    lock,
    make_folder,
    move_folder,
    read_json,
    remove_tree,
    sweep,
    write_atomic,
)
from lmlab.ranks import World
from lmlab.record import LOG, PROCESS, REMARKS, RUN_LOCK, STOP, is_blank
from lmlab.resuming import runs_around
from lmlab.signals import deaf_thread

LOCK_SECONDS = 2.0  # a reader that asks whether the run is alive may hold the lock for a moment


@contextlib.contextmanager
def disk_errors(folder: Path, *, new: bool = True) -> Iterator[None]:
    """Turn what the disk refuses in a run folder into a RunError. new: whether the run could as well begin elsewhere."""
    try:
        yield
    except OSError as error:
        elsewhere = "choose another --runs-dir" if new else "copy it elsewhere and resume the copy"
        advice = f"check the folder and its permissions, or {elsewhere}"
        if is_disk_full(error):
            advice = "free some space"
        if error.errno in NO_LOCKS:
            advice = "choose a --runs-dir on another one" if new else "copy it to another one and resume the copy"
        raise RunError(f"cannot write to the run folder {folder}: {describe_os_error(error)}; {advice}") from error


@contextlib.contextmanager
def run_folder(folder: Path, *, new: bool, world: World) -> Iterator[None]:
    """Hold a run folder for these processes alone, made if `new`, swept of what died in it. Raises RunError.

    Rank 0 holds the lock for all.
    """
    with contextlib.ExitStack() as stack:
        world.first(lambda: stack.enter_context(held(folder, new)))
        yield


@contextlib.contextmanager
def held(folder: Path, new: bool) -> Iterator[None]:
    """The run folder, made or found, locked and swept. Raises RunError."""
    with contextlib.ExitStack() as stack:
        with disk_errors(folder, new=new):
            try:
                make_folder(folder)
                sweep(folder.parent)
                stack.enter_context(lock(folder / RUN_LOCK, timeout=LOCK_SECONDS))
                sweep(folder, alone=True, shared=(REMARKS,))
                if new and not is_blank(folder):
                    raise FileExistsError(folder)
                make_folder(folder / "checkpoints")
                sweep(folder / "checkpoints", alone=True)
                remove_tree(folder / STOP)  # meant for a session that was killed
                process = {"pid": os.getpid(), "host": platform.node(), "machine": ranks.machine()}
                process |= {"launcher": ranks.launcher(), "thread": deaf_thread()}
                write_atomic(folder / PROCESS, dump_json(process))
            except FileExistsError as error:
                raise RunError(
                    f"the run {folder} exists already; choose another --run-name, or use --resume"
                ) from error
            except TimeoutError as error:
                raise RunError(
                    f"another process is training in {folder}; stop it first, or wait until it ends"
                ) from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                remove_tree(folder / STOP)


def run_before_restart(runs_dir: Path, run_name: str | None = None, resumed: str | Path | None = None) -> Path | None:
    """The run in which the processes trained that torchrun has started again; None where they had not begun one.

    run_name: the name that they were given for it, if any; the same rendezvous may have been that of others before.
    resumed: what they were to go on from, if anything: a checkpoint may be that of a run elsewhere.
    A new run that saved nothing yet has lost nothing: its folder goes, so that it can begin anew under its name.
    """
    launcher = ranks.launcher()
    pattern = "*" if run_name is None else run_name  # in which no character has a meaning of its own
    own = runs_around(resumed) if resumed is not None and run_name is None else []
    there = [*runs_dir.glob(f"{pattern}/{PROCESS}"), *(path for run in own if (path := run / PROCESS).is_file())]
    for path in sorted(there, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            process = read_json(path)
        except (OSError, ValueError):
            continue
        if isinstance(process, dict) and process.get("launcher") == launcher:
            if checkpoint.steps(path.parent / "checkpoints"):
                return path.parent
            if not any(path.parent.samefile(run) for run in own if run.is_dir()):
                remove_tree(path.parent)
    return None


def set_aside_after(folder: Path, step: int) -> list[str]:
    """Move aside what a run has beyond `step`, so that no step stands twice: its checkpoints, then the log's rest.

    Both go under one number. Returns a sentence that says what moved and where to, none where nothing did. Raises OSError.
    """
    moved, checkpoints, log = [], folder / "checkpoints", folder / LOG
    later = [each for each in checkpoint.steps(checkpoints) if each > step]
    beside = checkpoints.resolve() if checkpoints.is_symlink() else folder  # surely on the disk where they are
    number = 1
    while (aside := beside / f"superseded-{number}").exists() or events.superseded_log(log, number).exists():
        number += 1
    if later:
        with atomic_folder(aside):
            pass
        for each in reversed(later):  # so that what is left at any moment has no gap
            source = checkpoint.step_folder(checkpoints, each)
            move_folder(source, aside / source.name)
        moved.append(f"the checkpoints after it are in {aside}")
    if (rest := events.supersede(log, step, number)) is not None:
        moved.append(f"what was logged after it is in {rest}")
    return [f"went back to step {step}: {', and '.join(moved)}"] if moved else []


def point_at_best(folder: Path) -> float:
    """Point `best` at the checkpoint with the lowest validation loss in the log, and return that: inf without one.

    Whatever it pointed at may have moved aside, or the run was killed between saving and pointing. Raises OSError.
    """
    checkpoints = folder / "checkpoints"
    saved = set(checkpoint.steps(checkpoints))
    evaluated = [e for e in events.read(folder / LOG) if e["event"] == "eval" and isinstance(e.get("step"), int)]
    losses = [(events.number(e.get("val_loss")), e["step"]) for e in evaluated if e["step"] in saved]
    loss, step = min((pair for pair in losses if math.isfinite(pair[0])), default=(math.inf, 0))
    if loss < math.inf:
        checkpoint.set_best(checkpoints, step)
    return loss


def ask_to_stop(folder: Path) -> None:
    """Ask the process that trains in `folder` to finish its step, save and end, once however often this is called.

    By a signal where its main thread trains, by a file where another does: a signal would end that process unsaved.
    Raises RunError where it cannot be asked.
    """
    try:
        process = read_json(folder / PROCESS)
        pid, host, thread = int(process["pid"]), process["host"], process.get("thread")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder} does not say which process trains in it; end that process by hand") from error
    here = ranks.machine()
    is_here = process["machine"] == here if "machine" in process else host == platform.node()
    if not is_here:
        where = f"another machine or container of the name {host}" if host == platform.node() else host
        raise RunError(f"the run {folder} is trained on {where}, not here; stop it there")
    if pid == os.getpid() and thread in (None, threading.get_native_id()):
        raise RunError(f"the run {folder} is trained by this very process; interrupt it instead")
    if thread is not None:
        with disk_errors(folder):
            (folder / STOP).touch()
        return
    if process.get("asked_to_stop") in (here, True):
        return  # a second signal would end it before it saved
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError as error:
        raise RunError(f"cannot stop process {pid} of the run {folder}: {describe_os_error(error)}") from error
    with contextlib.suppress(OSError):  # of a folder that may not be written, all is said that can be
        write_atomic(folder / PROCESS, dump_json({**process, "asked_to_stop": here}))
