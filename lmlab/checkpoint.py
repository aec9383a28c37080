"""Checkpoints: plain tensors and JSON in a folder, complete or not there at all. Knows no Trainer.

A folder holds `model.safetensors`, `optimizer.safetensors`, `rng.safetensors`, `config.json`, `state.json`,
`tokenizer/` and `manifest.json`, which is written last and has the size and sha256 of every other file.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmlab.errors import CheckpointError
from lmlab.files import (
    atomic_folder,
    describe_os_error,
    dump_json,
    read_json,
    remove_tree,
    sha256_bytes,
    sha256_file,
    write_atomic,
)
from lmlab.tokenizers import Tokenizer

MANIFEST = "manifest.json"
BEST = "best"
STEP_FOLDER = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. state: the JSON that the run needs; tensors are read when asked for."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates that the weights have seen."""
        return int(self.state["step"])

    def tensors(self, part: str) -> dict[str, Tensor]:
        """The tensors of "model", "optimizer" or "rng". Raises CheckpointError."""
        path = self.folder / f"{part}.safetensors"
        try:
            return load_file(path)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {describe_os_error(error)}") from error
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the run was trained with. Raises TokenizerError."""
        return Tokenizer.load(self.folder / "tokenizer")


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint after update `step` is kept."""
    return checkpoints / f"step-{step:08d}"


def save(
    folder: Path,
    *,
    model: Mapping[str, Tensor],
    architecture: Mapping[str, Any],
    optimizer: Mapping[str, Tensor],
    rng: Mapping[str, Tensor],
    state: Mapping[str, Any],
    tokenizer: Tokenizer | None,
) -> Path:
    """Write a checkpoint, wholly or not at all, and return its folder.

    Raises CheckpointError when the disk refuses; the folder does not exist then, and older checkpoints are untouched.
    """
    with errors_named(folder), atomic_folder(folder) as temporary:
        for part, tensors in (("model", model), ("optimizer", optimizer), ("rng", rng)):
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(plain, temporary / f"{part}.safetensors", metadata={"format": "pt"})
        write_atomic(temporary / "config.json", dump_json(dict(architecture)))
        write_atomic(temporary / "state.json", dump_json(dict(state)))
        if tokenizer is not None:
            (temporary / "tokenizer").mkdir()
            tokenizer.save(temporary / "tokenizer")
        write_atomic(temporary / MANIFEST, dump_json(manifest(temporary)))
    return folder


@contextlib.contextmanager
def errors_named(folder: Path) -> Iterator[None]:
    """Turn what the disk and the tensor library raise while saving `folder` into CheckpointError."""
    try:
        yield
    except FileExistsError as error:
        raise CheckpointError(f"{folder} exists already; resume from it or remove it first") from error
    except (OSError, SafetensorError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else str(error).splitlines()[0]
        raise CheckpointError(
            f"cannot save the checkpoint {folder}: {reason}; free some space, then go on from the newest one with --resume"
        ) from error


def manifest(folder: Path) -> dict[str, Any]:
    """The size in bytes and sha256 of every file below a folder, but for the manifest itself."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
    listed = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_file(path)}
        for path in files
    }
    return {"version": 1, "files": listed}


def verify(folder: Path | str) -> None:
    """Compare every file with the manifest. Raises CheckpointError naming the first that is missing or differs."""
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}: the folder does not exist; list-runs shows what there is")
    try:
        content = read_json(path)
        listed = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in content["files"].items()}
    except OSError as error:
        raise CheckpointError(f"{folder} is no complete checkpoint: its {MANIFEST} is missing or unreadable") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged; use an older checkpoint of the run") from error
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    for name in sorted(listed.keys() | found):
        if name not in listed:
            raise CheckpointError(f"{folder / name} is not in the checkpoint's manifest; remove it, or use another one")
        if name not in found:
            raise CheckpointError(f"{folder / name} is missing; use an older checkpoint of the run")
        if (folder / name).is_symlink() or (folder / name).stat().st_size != listed[name][0]:
            raise CheckpointError(
                f"{folder / name} is damaged: not the size it was saved with; use an older checkpoint"
            )
        if sha256_file(folder / name) != listed[name][1]:
            raise CheckpointError(
                f"{folder / name} is damaged: its sha256 is not the saved one; use an older checkpoint"
            )


def load(folder: Path | str) -> Checkpoint:
    """The checkpoint in a folder, every byte verified first. Raises CheckpointError naming what is wrong."""
    folder = Path(folder)
    try:
        verify(folder)
        state = read_json(folder / "state.json")
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename or folder}: {describe_os_error(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"{folder / 'state.json'} is damaged: it is not JSON") from error
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise CheckpointError(f"{folder / 'state.json'} is no state of a run: it names no step")
    return Checkpoint(folder, state)


def fingerprint(folder: Path) -> str:
    """One sha256 over the manifest's entries: equal where two checkpoints are equal in every file."""
    return sha256_bytes(dump_json(read_json(folder / MANIFEST)["files"]))


def steps(checkpoints: Path) -> list[int]:
    """The steps that have a checkpoint folder, ascending; whether they are whole only `verify` knows."""
    if not checkpoints.is_dir():
        return []
    matches = (STEP_FOLDER.fullmatch(path.name) for path in checkpoints.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in matches if match)


def newest(checkpoints: Path) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that does not. Raises CheckpointError."""
    refused: list[str] = []
    for step in reversed(steps(checkpoints)):
        try:
            return load(step_folder(checkpoints, step)), refused
        except CheckpointError as error:
            refused.append(str(error))
    if refused:
        raise CheckpointError(f"no checkpoint in {checkpoints} can be loaded; the newest: {refused[0]}")
    raise CheckpointError(f"no checkpoint in {checkpoints}: the run saved none; start it again")


def set_best(checkpoints: Path, step: int) -> None:
    """Point `best` at the checkpoint with the lowest validation loss. Raises OSError."""
    write_atomic(checkpoints / BEST, f"{step_folder(checkpoints, step).name}\n".encode())


def best(checkpoints: Path) -> Path | None:
    """The folder that `best` points at, None where there is none."""
    try:
        name = (checkpoints / BEST).read_text().strip()
    except (OSError, ValueError):
        return None
    return checkpoints / name if STEP_FOLDER.fullmatch(name) and (checkpoints / name).is_dir() else None


def prune(checkpoints: Path, keep: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one. None keeps all. Raises OSError."""
    if keep is None:
        return
    spared = best(checkpoints)
    for step in steps(checkpoints)[:-keep]:
        folder = step_folder(checkpoints, step)
        if folder != spared:
            remove_tree(folder)
