"""One training session in a run folder: the log, the lock, the signals, and how it ends."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lmlab import checkpoint, devices, events, provenance, ranks
from lmlab.config import TrainingConfig
from lmlab.errors import DivergedError, RunError
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
from lmlab.signals import StopSignals, deaf_thread
from lmlab.trainer import Listener, Trainer
from lmlab.words import one_line

LOCK_SECONDS = 2.0  # a reader that asks whether the run is alive may hold the lock for a moment
SMALLER_STEPS = (
    "halve batch_size and double gradient_accumulation_steps (and eval_batches, if it is set), which makes the same "
    "updates but for the masks of dropout; or set activation_checkpointing, or lower max_seq_len"
)
ARCHITECTURE = ("n_layers", "d_model", "n_heads", "d_ff", "dropout")


class Ending(NamedTuple):
    """How a session ended. stopped_by: the signal that did it. asked: whether one came, if only after the last step."""

    stopped_by: int | None
    asked: bool


def train(
    trainer: Trainer,
    *,
    listeners: Sequence[Listener],
    resumed_from: Path | None = None,
    known_steps: Sequence[int] | None = None,
    warnings: Sequence[str] = (),
) -> Ending:
    """Run a Trainer in its folder until it is done or a signal asks it to save and stop.

    Under torchrun every process calls this with its Trainer; rank 0 alone logs and is listened to.
    resumed_from: the checkpoint that it goes on from, None for a new run. known_steps: of the checkpoints that there were
    when it was verified; a later one that came since is another process's, and not put aside. warnings: logged before the
    first step.
    Raises RunError where the folder cannot be written or another process trains in it, and what `fit` raises.
    """
    assert trainer.folder is not None
    folder, world = trainer.folder, trainer.world
    with StopSignals(folder / STOP) as signals, run_folder(folder, new=resumed_from is None, world=world):
        has_checkpoint = True  # or is to get one in its time
        if resumed_from is not None:
            found = json.loads(world.first(lambda: step_back(folder, trainer, known_steps)))
            has_checkpoint = found["saved"]
            warnings = [*warnings, *found["moved"]]
            trainer.progress.best_saved = float(found["best_loss"])
            trainer.recall(found["last"])
        world.first(lambda: write_config(trainer, folder))
        log = log_of(folder, trainer.facts["run_id"], world)
        outside = trainer.listeners
        trainer.listeners = [log, *outside, *listeners] if world.leads else [only_troubles(log)]
        trainer.before_saving = log.sync
        try:
            trainer.tell("run_start", **start_event(trainer, resumed_from))
            begun = resumed_from is not None or trainer.facts["kind"] == "branch"
            for message in (*warnings, *ignored_settings(trainer.config, from_checkpoint=begun)):
                trainer.tell("warning", message=message)
            if not has_checkpoint:
                trainer.save_checkpoint()  # of a copy outside of its run, which has none yet to go on from
            with devices.out_of_memory_as_error(SMALLER_STEPS):
                status = trainer.fit(should_stop=lambda: world.any(signals()))
            signals()  # looks again for a request, which goes with the session
            log.sync()
        except BaseException as error:
            if isinstance(error, DivergedError):
                error.asked_to_stop = signals()
            if not world.leads:
                log.write("error", trainer.step, message=one_line(error))
            raise
        finally:
            trainer.listeners, trainer.before_saving = outside, None
            log.close()
    asked = world.any(signals())  # and now anyone may read the whole log
    stopped_by = (signals.received or signal.SIGTERM) if status == "stopped" else None  # another rank may be the one
    return Ending(stopped_by, asked or stopped_by is not None)


def step_back(folder: Path, trainer: Trainer, known_steps: Sequence[int] | None = None) -> str:
    """Make ready to go on where the Trainer stands: what came after it moves aside, what was to be pruned goes.

    Returns JSON: what moved and where to, in sentences; the lowest validation loss that is saved, whether anything is, and
    the step of the newest event of each kind in the log.
    """
    if known_steps is not None:
        known, there = set(known_steps), set(checkpoint.steps(folder / "checkpoints"))
        if max(there - known, default=-1) > trainer.step or (trainer.step in known and trainer.step not in there):
            raise RunError(f"another process went on with the run {folder} meanwhile; resume it again")
    with disk_errors(folder):
        moved = set_aside_after(folder, trainer.step)
        best_loss = point_at_best(folder)
        checkpoint.prune(folder / "checkpoints", trainer.config.keep_checkpoints)
    last = {event["event"]: event.get("step") for event in events.read(folder / LOG)}
    saved = bool(checkpoint.steps(folder / "checkpoints"))
    return json.dumps({"moved": moved, "best_loss": best_loss, "saved": saved, "last": last})


def write_config(trainer: Trainer, folder: Path) -> None:
    """Keep the resolved config beside the log."""
    with disk_errors(folder):
        drawn = {"seed": f"This run drew {trainer.seed}."} if trainer.config.seed is None else None
        trainer.config.to_yaml(folder / "config.yaml", drawn)


def log_of(folder: Path, run_id: str, world: World) -> events.EventLog:
    """A process's log: that of the run for rank 0, a file for its own errors for each further rank."""
    return events.EventLog(folder / (LOG if world.leads else f"log.rank-{world.rank}.jsonl"), run_id)


def only_troubles(log: events.EventLog) -> Listener:
    """A listener that keeps what rank 0 may not know: warnings, and how the session of this rank ended."""
    return lambda event: log(event) if event["event"] in ("warning", "run_end") else None


def start_event(trainer: Trainer, resumed_from: Path | None) -> dict[str, Any]:
    """The fields of `run_start`: everything that is needed to do the run again, or to say how two runs differ."""
    commit, dirty = provenance.git_state()
    facts, config = trainer.facts, trainer.config
    return {
        "kind": "resumed" if resumed_from is not None else facts["kind"],
        "config_hash": config.config_hash,
        "git_commit": commit,
        "git_dirty": dirty,
        "hooks": list(config.hooks),
        "config": config.to_dict(),
        "seed": trainer.seed,
        "decay_steps": trainer.decay_steps,
        "model": facts["model"],
        "fine_tuned_from": facts["fine_tuned_from"],
        "fine_tuning_started_at": facts["fine_tuning_started_at"],
        "lineage": facts["lineage"],
        "tokenizer": trainer.tokenizer.identifier if trainer.tokenizer is not None else None,
        "data": facts["data"],
        "loss_floor": facts["loss_floor"],
        "device": trainer.device.type,
        "precision": trainer.precision,
        "threads": torch.get_num_threads(),
        "world_size": trainer.world.size,
        "strategy": trainer.strategy,
        "backend": trainer.world.backend,
        "versions": provenance.versions(),
        "resumed_from": str(resumed_from) if resumed_from is not None else None,
    }


def ignored_settings(config: TrainingConfig, *, from_checkpoint: bool = False) -> list[str]:
    """What a user should know of a config that is not followed to the letter.

    from_checkpoint: the weights are those of a checkpoint, trained with the very tokenizer that the config names.
    """
    messages = []
    if config.model_name is not None:
        defaults = TrainingConfig()
        ignored = [name for name in ARCHITECTURE if getattr(config, name) != getattr(defaults, name)]
        if ignored:
            messages.append(f"{config.model_name} has its own architecture; ignored: {', '.join(ignored)}")
    if config.model_name is not None and config.tokenizer_override is not None and not from_checkpoint:
        messages.append(
            f"tokenizer_override: {config.tokenizer_override} is used in place of the model's own tokenizer; trained "
            "embeddings mean nothing for its ids unless the two agree"
        )
    return messages


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses in a run folder into a RunError."""
    try:
        yield
    except OSError as error:
        advice = "check the folder and its permissions, or choose another --runs-dir"
        if is_disk_full(error):
            advice = "free some space"
        if error.errno in NO_LOCKS:
            advice = "choose a --runs-dir on another one"
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
        with disk_errors(folder):
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
