"""Checkpoints: plain tensors and JSON in a folder, complete or not there at all. Knows no Trainer.

A folder holds `model.safetensors`, `optimizer.safetensors`, `rng.safetensors`, `config.json`, `state.json`,
`tokenizer/` and `manifest.json`, which is written last and has the size and sha256 of every other file.

Where the optimizer's state is dealt out over ranks, each writes its rows to `optimizer-00001-of-00004.safetensors` and so
on: a tensor is its parts one below the other in the order of the files, so that any number of ranks can read it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lmlab.errors import CheckpointError
from lmlab.files import (
    describe_os_error,
    dump_json,
    is_disk_full,
    is_hidden,
    move_folder,
    new_folder_beside,
    read_object,
    remove_tree,
    sha256_file,
    share_tensors,
    write_atomic,
)
from lmlab.hostile_tokenizers import TEMPLATES
from lmlab.places import absolute
from lmlab.ranks import ALONE, World, any_spread, is_spread, own_part, whole
from lmlab.tokenizers import HFTokenizer, Tokenizer, ids_in

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

    def tensors(self, part: str) -> Tensors:
        """The tensors of "model", "optimizer" or "rng" by name, read when asked for. Raises CheckpointError."""
        shards = sorted(self.folder.glob(f"{part}-*-of-*.safetensors"))
        return Tensors(shards or [self.folder / f"{part}.safetensors"])

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the run was trained with, as it was used there. Raises TokenizerError."""
        tokenizer = Tokenizer.load(self.folder / "tokenizer")
        data = self.state.get("data")
        older = data.get("begin_of_text_id") if isinstance(data, dict) else None  # before it had a place of its own
        tokenizer.begin_of_text_id = self.state.get("begin_of_text_id", older)  # and still older ones went without
        tokenizer.other_end_ids = ids_in(self.state.get("other_end_ids"))
        if "end_of_text_id" in self.state:
            tokenizer.end_of_text_id = self.state["end_of_text_id"]
        elif isinstance(tokenizer, HFTokenizer) and tokenizer.end_of_text_id == tokenizer.inner.unk_token_id:
            tokenizer.end_of_text_id = tokenizer.end_of_sequence_id  # as it was found before checkpoints kept it
        return tokenizer


class Tensors(Mapping[str, Tensor]):
    """Tensors in safetensors files, mapped: nothing is read before it is asked for.

    A name that stands in several files means its parts, one below the other. Raises CheckpointError naming the file.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._files: list[tuple[Path, Any]] = []
        self._where: dict[str, list[int]] = {}
        for index, path in enumerate(paths):
            with reading(path):
                file = safe_open(path, "pt")
                names = list(file.keys())
            self._files.append((path, file))
            for name in names:
                self._where.setdefault(name, []).append(index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, name: str) -> Tensor:
        return torch.cat(parts) if len(parts := self._parts(name)) > 1 else parts[0]

    def shape(self, name: str) -> list[int]:
        """The shape of a whole tensor, without reading it."""
        shapes = [list(part.get_shape()) for _, part in self._slices(name)]
        return [sum(shape[0] for shape in shapes), *shapes[0][1:]] if shapes[0] else []

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """The rows from `start` up to `stop` of a tensor, of which no others are read."""
        found, offset = [], 0
        for path, part in self._slices(name):
            length = part.get_shape()[0]
            first, last = (min(max(row - offset, 0), length) for row in (start, stop))
            with reading(path):
                found.append(part[first:last])
            offset += length
        return torch.cat(found)

    def _slices(self, name: str) -> list[tuple[Path, Any]]:
        return [(path, file.get_slice(name)) for path, file in (self._files[index] for index in self._where[name])]

    def _parts(self, name: str) -> list[Tensor]:
        found = []
        for path, file in (self._files[index] for index in self._where[name]):
            with reading(path):
                found.append(file.get_tensor(name))
        return found


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the disk and the tensor library raise while `path` is read into CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {describe_os_error(error)}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint after update `step` is kept."""
    return checkpoints / f"step-{step:08d}"


@dataclass(frozen=True)
class Contents:
    """The tensors of a checkpoint as this rank saves them: its part of the optimizer's state; rank 0 the weights, too."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    rng: dict[str, Tensor]
    dealt_out: bool  # whether every rank has a part of the optimizer's state, or rank 0 all of it


def collect(
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    rng: Mapping[str, Tensor],
    world: World = ALONE,
    *,
    copied: bool = False,
) -> Contents:
    """What a checkpoint of these tensors holds; all ranks have to ask, and rank 0 gathers the weights one by one.

    copied: into the processor's memory, so that the originals may go on changing.
    """
    weights = {name: kept for name, tensor in model.items() if (kept := gather(tensor, world, copied)) is not None}
    dealt_out = any_spread(optimizer.values())
    own = {name: own_part(t.detach()) for name, t in optimizer.items() if is_spread(t) or world.leads}
    random = dict(rng)
    if copied:
        own, random = ({name: t.to("cpu", copy=True) for name, t in tensors.items()} for tensors in (own, random))
    return Contents(weights, own, random, dealt_out)


def save(
    folder: Path,
    contents: Contents,
    *,
    architecture: Mapping[str, Any],
    state: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    world: World = ALONE,
) -> Path:
    """Write a checkpoint, wholly or not at all, and return its folder.

    world: who saves together, each calling this with its own contents; rank 0 renames the folder when all parts are
    there. Raises CheckpointError when the disk refuses; the folder does not exist then, and older checkpoints are
    untouched.
    """
    temporary: Path | None = None
    try:
        with errors_named(folder):
            temporary = Path(world.first(lambda: new_folder_beside(folder)))
            if contents.dealt_out:
                shard = temporary / f"optimizer-{world.rank + 1:05d}-of-{world.size:05d}.safetensors"
                world.all(lambda: write_tensors(shard, contents.optimizer))

            def write_rest() -> None:
                assert temporary is not None
                write_tensors(temporary / "model.safetensors", contents.model)
                if not contents.dealt_out:
                    write_tensors(temporary / "optimizer.safetensors", contents.optimizer)
                write_tensors(temporary / "rng.safetensors", contents.rng)
                write_atomic(temporary / "config.json", dump_json(dict(architecture)))
                write_atomic(temporary / "state.json", dump_json(dict(state)))
                if tokenizer is not None:
                    (temporary / "tokenizer").mkdir()
                    tokenizer.save(temporary / "tokenizer")
                share_tensors(temporary)
                write_atomic(temporary / MANIFEST, dump_json(manifest(temporary)))
                move_folder(temporary, folder)

            world.first(write_rest)
    except BaseException:
        if temporary is not None and world.leads:
            remove_tree(temporary)
        raise
    return folder


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a file. Raises OSError or SafetensorError."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})


def gather(tensor: Tensor, world: World, copied: bool = False) -> Tensor | None:
    """The whole of a weight in the processor's memory on rank 0, None on the others. All have to ask."""
    full = whole(tensor.detach())
    return full.to("cpu", copy=copied and not is_spread(tensor)) if world.leads else None


@contextlib.contextmanager
def errors_named(folder: Path) -> Iterator[None]:
    """Turn what the disk and the tensor library raise while saving `folder` into CheckpointError."""
    try:
        yield
    except FileExistsError as error:
        raise CheckpointError(f"{folder} exists already; resume from it or remove it first") from error
    except (OSError, SafetensorError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else str(error).splitlines()[0]
        advice = "free some space" if is_disk_full(error) else "check the folder and its permissions"
        raise CheckpointError(
            f"cannot save the checkpoint {folder}: {reason}; {advice}, then go on from the newest one with --resume"
        ) from error


def manifest(folder: Path) -> dict[str, Any]:
    """The size in bytes and sha256 of every file below a folder, but for the manifest itself and hidden ones."""
    names = sorted(name for name in files_below(folder) if not is_hidden(PurePath(name)))
    return plain_manifest({name: ((folder / name).stat().st_size, sha256_file(folder / name)) for name in names})


def files_below(folder: Path) -> set[str]:
    """The files of a checkpoint but for its manifest, by their paths from its folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MANIFEST}


def plain_manifest(listed: Mapping[str, tuple[int, str]]) -> dict[str, Any]:
    """The content of a manifest for sizes and hashes by file name."""
    return {"version": 1, "files": {name: {"size": size, "sha256": sha256} for name, (size, sha256) in listed.items()}}


def verify(folder: Path | str) -> None:
    """Compare every file with the manifest. Raises CheckpointError naming the first that is missing or differs.

    Hidden files that it does not list are nobody's business, but for further chat templates, which are read all the same.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}: the folder does not exist; list-runs shows what there is")
    listed = read_manifest(folder)
    found = {name for name in files_below(folder) if name in listed or is_read(PurePath(name))}
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


def is_read(path: PurePath) -> bool:
    """Whether anybody reads a file of a checkpoint: of hidden ones transformers reads further chat templates."""
    return not is_hidden(path) or (path.parent.name == TEMPLATES and path.suffix == ".jinja")


def read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and sha256 of every file of a checkpoint as its manifest has them. Raises CheckpointError.

    Nothing vouches for the manifest itself, so that it must be, to the byte, what `save` writes.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
        content = json.loads(data)
        listed = {str(name): (entry["size"], entry["sha256"]) for name, entry in content["files"].items()}
        exact = content == plain_manifest(listed) and data == dump_json(content)
    except OSError as error:
        in_run = STEP_FOLDER.fullmatch(folder.name)
        advice = "use an older checkpoint of the run" if in_run else "name a run, or a folder step-NNNNNNNN of one"
        raise CheckpointError(
            f"{folder} is no complete checkpoint: its {MANIFEST} is missing or unreadable; {advice}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged; use an older checkpoint of the run") from error
    if not exact:
        raise CheckpointError(f"{path} is damaged or of another lmlab; use an older checkpoint of the run")
    return listed


def mark_of(checkpoints: Path, step: int) -> bytes:
    """What tells the checkpoint of a step from one that others made there: its manifest, empty where it has none."""
    try:
        return (step_folder(checkpoints, step) / MANIFEST).read_bytes()
    except OSError:
        return b""


def load(folder: Path | str) -> Checkpoint:
    """The checkpoint in a folder, every byte verified first. Raises CheckpointError naming what is wrong."""
    folder = Path(folder)
    try:
        verify(folder)
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename or folder}: {describe_os_error(error)}") from error
    return opened(folder)


def opened(folder: Path) -> Checkpoint:
    """The checkpoint in a folder that has been verified. Raises CheckpointError."""
    state = read_object(folder / "state.json", CheckpointError)
    if not isinstance(state.get("step"), int):
        raise CheckpointError(f"{folder / 'state.json'} is no state of a run: it names no step")
    return Checkpoint(absolute(folder), state)


def steps(checkpoints: Path) -> list[int]:
    """The steps that have a checkpoint folder, ascending; whether they are whole only `verify` knows."""
    if not checkpoints.is_dir():
        return []
    matches = (STEP_FOLDER.fullmatch(path.name) for path in checkpoints.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in matches if match)


def newest(checkpoints: Path) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that does not. Raises CheckpointError."""
    refused: list[str] = []
    found = steps(checkpoints)
    for step in reversed(found):
        try:
            return load(step_folder(checkpoints, step)), refused
        except CheckpointError as error:
            refused.append(str(error))
    if found and max(steps(checkpoints), default=0) > found[-1]:
        return newest(checkpoints)  # the process that trains saved it, and removed those
    if refused:
        raise CheckpointError(f"no checkpoint in {checkpoints} can be loaded; the newest: {refused[0]}")
    raise CheckpointError(
        f"no checkpoint in {checkpoints}: the run saved none; start it again under another name, or delete-run it first"
    )


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


def tidy(checkpoints: Path, keep: int | None, *, best: int | None) -> None:
    """Point `best` at a step, where it is given, and then prune: what was the best before goes. Raises CheckpointError."""
    with errors_named(checkpoints):
        if best is not None:
            set_best(checkpoints, best)
        prune(checkpoints, keep)
