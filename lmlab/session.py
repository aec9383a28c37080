"""One training session in a run folder: the log, the signals, and how it ends."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lmlab import checkpoint, devices, events, provenance
from lmlab.config import ARCHITECTURE, TrainingConfig
from lmlab.errors import DivergedError, RunError
from lmlab.ranks import World
from lmlab.record import LOG, STOP
from lmlab.run_folder import disk_errors, point_at_best, run_folder, set_aside_after
from lmlab.signals import StopSignals
from lmlab.trainer import Listener, Trainer
from lmlab.words import one_line

SMALLER_STEPS = (
    "halve batch_size and double gradient_accumulation_steps (and eval_batches, if it is set), which makes the same "
    "updates but for the masks of dropout; or set activation_checkpointing, or lower max_seq_len"
)


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
            slow = devices.slow_precision(trainer.precision, trainer.device)
            for message in filter(None, (*warnings, *ignored_settings(trainer.config, from_checkpoint=begun), slow)):
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
    with disk_errors(folder, new=False):
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
    override = config.tokenizer_override if not from_checkpoint else None
    if override is not None and config.model_name is not None:
        messages.append(
            f"tokenizer_override: {override} is used in place of the model's own tokenizer; trained embeddings mean "
            "nothing for its ids unless the two agree"
        )
    elif override not in (None, "char"):
        messages.append(
            f"tokenizer_override: {override} is used in place of the text's characters; losses are nats per token of it, so "
            "compare bits_per_byte with runs of another tokenizer"
        )
    return messages
