"""What it takes to go on from a checkpoint: find it, merge what the user changes, refuse what contradicts it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lmlab import checkpoint
from lmlab.checkpoint import Checkpoint
from lmlab.config import ARCHITECTURE, TrainingConfig
from lmlab.data import Corpus, LargeCorpus, load_text
from lmlab.errors import CheckpointError, ConfigError, DataError, LabError, RunError, UsageError, warn_caller
from lmlab.files import is_locked
from lmlab.places import absolute, expanded, home
from lmlab.provenance import RUN_NAME
from lmlab.ranks import World
from lmlab.record import LOG, RUN_LOCK, find_run
from lmlab.tokenizers import Tokenizer, same_ids

Result = TypeVar("Result")

# What a checkpoint's weights, data order or optimizer state rest on: the same on resume, or an error.
FIXED = ("model_name", "max_seq_len", "train_ratio", "seed", "optimizer", "tokenizer_override", "resize_embeddings")
BRANCHING = ("model_name", "tokenizer_override", "resize_embeddings")  # the same for a branch: what its weights rest on
BRANCH_OFF = "; --resume with --model-name NEW branches off under a new name"


def find_checkpoint(where: str | Path, runs_dir: Path) -> tuple[Checkpoint, list[str]]:
    """The checkpoint that `where` means, verified, and a warning for each newer one of the run that is damaged.

    where: a checkpoint folder, a run folder (or that of its checkpoints), or a run id, see `find_run`; a run means its
    newest checkpoint that verifies. Raises CheckpointError or RunError.
    """
    path = absolute(find_run(where, runs_dir))
    if path.name == "checkpoints" and path.is_dir() and not is_of_a_run(path):
        path = path.parent  # as a shell completes it
    if is_locked(path / RUN_LOCK) and not checkpoint.steps(path / "checkpoints"):
        raise RunError(
            f"the run {path} is still training and has not saved a checkpoint yet; wait for its first one, or stop it, "
            "which saves one"
        )
    if (path / "checkpoints").is_dir():
        saved, refused = checkpoint.newest(path / "checkpoints")
        return saved, [f"{line}; going on from {saved.folder.name}" for line in refused]
    if path.is_dir() and (path / LOG).exists():
        raise RunError(f"the run {path} has no checkpoints; start it again under another name, or delete-run it first")
    if path.is_dir():
        return checkpoint.load(path), []
    if path.exists():
        raise CheckpointError(
            f"{path} is a file, not a checkpoint; give the folder step-NNNNNNNN, its run, or a run id"
        )
    raise CheckpointError(
        f"no checkpoint or run at {where}; give a checkpoint folder, a run folder or an id of list-runs"
    )


def read_checkpoint(where: str | Path, runs_dir: Path, read: Callable[[Checkpoint], Result]) -> Result:
    """What `read` makes of the checkpoint that `where` means; of the one that is newest then, where the process that trains
    the run removes it meanwhile. Raises what `find_checkpoint` and `read` raise.

    No log can keep which damaged ones were passed over: the line of lmlab's caller is warned of it.
    """
    while True:
        saved, passed_over = find_checkpoint(where, runs_dir)
        try:
            result = read(saved)
        except (LabError, OSError, RuntimeError):  # the last of what torch maps
            if saved.folder.exists():
                raise
            continue
        warn_caller(passed_over)
        return result


def is_of_a_run(path: Path) -> bool:
    """Whether a folder is a run or a checkpoint."""
    return any((path / name).exists() for name in ("checkpoints", LOG, checkpoint.MANIFEST))


def find_together(where: str | Path, runs_dir: Path, world: World) -> tuple[Checkpoint, list[str]]:
    """`find_checkpoint` for all ranks: rank 0 looks and verifies, the others read what it found."""
    found: list[tuple[Checkpoint, list[str]]] = []

    def look() -> Path:
        found.append(find_checkpoint(where, runs_dir))
        return found[0][0].folder

    folder = Path(world.first(look))
    return found[0] if found else (checkpoint.opened(folder), [])


def run_folder_of(saved: Checkpoint, runs_dir: Path) -> Path:
    """The run's folder, wherever it was moved. A checkpoint copied out of its run gets a new folder of the same id.

    Raises RunError where that has checkpoints already, CheckpointError where the checkpoint names no run.
    """
    around = folders_around(saved.folder)
    for checkpoints in around:
        if checkpoints.name == "checkpoints" and (checkpoints.parent / LOG).exists():
            return checkpoints.parent
    folder = runs_dir / run_id_of(saved)
    if (folder / "checkpoints").resolve() in [each.resolve() for each in around]:  # its log was lost or left behind
        return folder
    if checkpoint.steps(folder / "checkpoints"):  # else an earlier attempt at this was killed before it saved
        if any(re.fullmatch(r"superseded-\d+", each.name) for each in around):
            raise RunError(
                f"{saved.folder} was put aside when the run {folder} went back to an earlier step; resume that run, or go "
                "on with this one in another folder, named by --runs-dir"
            )
        raise RunError(f"{saved.folder} is a copy outside of its run, and {folder} exists; resume that run instead")
    return folder


def run_id_of(saved: Checkpoint) -> str:
    """The id of the run that a checkpoint was saved in. Raises CheckpointError where it names none."""
    run_id = saved.state.get("run_id")
    if run_id is None:
        raise CheckpointError(
            f"{saved.folder} was saved by a Trainer of no run; go on with it in Python (Trainer.from_checkpoint), or use a "
            "checkpoint of a run"
        )
    if not isinstance(run_id, str) or not RUN_NAME.fullmatch(run_id):  # what others wrote leads nowhere else
        raise CheckpointError(f"{saved.folder / 'state.json'} is damaged: it names no run; use another checkpoint")
    return run_id


def folders_around(path: Path) -> tuple[Path, Path]:
    """The folders that a checkpoint lies in: by the path to it, and by where that leads if it is a link."""
    return path.absolute().parent, path.resolve().parent


def runs_around(where: str | Path) -> list[Path]:
    """The folders of runs that `where` may name a checkpoint of, even one that is gone by now."""
    paths = (expanded(where), home() / expanded(where))
    return [folder.parent for path in paths for folder in folders_around(path) if folder.name == "checkpoints"]


def saved_config(saved: Checkpoint) -> TrainingConfig:
    """The config in a checkpoint. Raises CheckpointError."""
    source = str(saved.folder / "state.json")
    values = saved.state.get("config")
    if not isinstance(values, dict):
        raise CheckpointError(f"{source} is damaged: it holds no config")
    try:
        return TrainingConfig.from_dict(values, source=source)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def named_fields(config: TrainingConfig, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a user named, in a config or besides; those left out are not among them."""
    return {**config.model_dump(mode="json", exclude_unset=True), **overrides}


def merge_config(saved: Checkpoint, changes: dict[str, Any], *, branch: str | None = None) -> TrainingConfig:
    """The saved config with the user's changes. Raises UsageError naming both values of one that cannot change.

    branch: only the weights are taken over, and begin a run of their own, whose model is to have that name.
    """
    own = saved_config(saved)
    if branch is not None and changes.get("model_name") == branch:
        changes = {name: value for name, value in changes.items() if name != "model_name"}
    fixed: tuple[str, ...] = FIXED if branch is None else BRANCHING
    if own.model_name is None:
        fixed = (*fixed, *ARCHITECTURE, "max_seq_len")
    for name in sorted(changes.keys() & set(fixed)):
        before = getattr(own, name)
        if name == "seed":
            before = saved.state.get("seed")
            if changes[name] is None:
                continue
        if changes[name] != before:
            raise UsageError(
                f"{name}={changes[name]} contradicts the checkpoint {saved.folder}, which has {name}={before}; "
                f"leave it out, or start a new run{BRANCH_OFF if name == 'model_name' and branch is None else ''}"
            )
    if branch is None:  # a decay that is left open ends where it did
        changes = {name: value for name, value in changes.items() if (name, value) != ("lr_decay_steps", None)}
        changes.pop("seed", None)
    return own.updated(**changes)


def altered_tokenizer(saved: Checkpoint, tokenizer: Tokenizer | None) -> list[str]:
    """A warning where the tokenizer of a checkpoint comes back as another, as a library of another version may make it."""
    trained = saved.state.get("tokenizer")
    if tokenizer is None or not isinstance(trained, str) or same_ids(tokenizer.identifier, trained):
        return []
    return [
        f"the tokenizer of {saved.folder.name} comes back as {tokenizer.identifier}, and the run began with {trained}: "
        "some text may have other ids now, unless transformers and tokenizers are those that it began with"
    ]


def ended_decay(saved: Checkpoint, config: TrainingConfig) -> list[str]:
    """A warning where the learning rate has fallen, and all steps to come have a tenth of it, unless that was planned."""
    end = config.lr_decay_steps or int(saved.state["decay_steps"])
    since = max(saved.step, config.warmup_steps)
    planned = config.lr_decay_steps is not None and config.max_steps <= saved_config(saved).max_steps
    if config.lr_schedule == "constant" or planned or not end <= since < config.max_steps:
        return []
    return [
        f"the decay of lr_schedule={config.lr_schedule} ended at step {end}: from step {since + 1} on, the learning rate "
        f"stays at a tenth; --set lr_decay_steps={config.max_steps} lets it fall to the end of the run instead"
    ]


def same_corpus(saved: Checkpoint, data: str | Path | None) -> Corpus | LargeCorpus:
    """The text that the run was trained on, from `data` or where it was. Raises DataError where it is another one."""
    facts = saved.state.get("data")
    if not isinstance(facts, dict) or not isinstance(facts.get("path"), str):
        raise CheckpointError(f"{saved.folder / 'state.json'} is damaged: it does not say what data it was trained on")
    try:
        corpus = load_text(facts["path"] if data is None else data)
    except DataError as error:
        if data is not None:
            raise
        raise DataError(f"the run's data cannot be read again: {error}; say where it is now with --data") from error
    if corpus.sha256 != facts.get("sha256"):
        raise DataError(
            f"{corpus.path} is not the text that the run was trained on: its sha256 is {corpus.sha256[:12]}…, the "
            f"checkpoint's {str(facts.get('sha256'))[:12]}…; give that text with --data, or start a new run"
        )
    return corpus
