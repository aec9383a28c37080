"""A run folder read back: its history from `log.jsonl`, its checkpoints, notes and tags. Imports no torch.

Reading never raises for what a log holds: what can be read is read, and `damaged` counts the lines that cannot.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lmlab.errors import RunError, UsageError
from lmlab.events import parse_line
from lmlab.files import (
    TEMPORARY,
    describe_os_error,
    dump_json,
    is_locked,
    lock,
    read_json,
    remove_tree,
    tree_size,
    write_atomic,
)
from lmlab.history import History, Points, as_mapping, as_text, timestamp
from lmlab.places import absolute, find_file
from lmlab.words import one_line

LOG = "log.jsonl"
RUN_LOCK = "run"  # the process that trains holds `run.lock` in the run's folder
PROCESS = "process.json"  # who trains, for those who want to stop it
STOP = "stop"  # while this file is there, who trains where no signal reaches is asked to save and end
REMARKS = "notes.json"
CHUNK = 1 << 20
TAIL = 256  # bytes before what is new that tell whether a log is still the one that was read
A_STEP = b'{"event": "step", '  # how the line of a step begins
LONGEST_LINE = 64 << 20  # a longer line is no event of ours; reading it would only cost memory

AnyRecord = TypeVar("AnyRecord", bound="Record")


class Record(History):
    """A run folder, read. `refresh` takes in what was appended since; a moved folder reads the same.

    glance: read for a list of runs. Most of a log are steps: the last of each stretch alone is read, until a series is
    asked for.
    """

    def __init__(self, folder: Path | str, *, glance: bool = False) -> None:
        """Read the run in `folder`. Raises RunError where there is no such folder; never for what its log holds."""
        super().__init__()
        self.folder = absolute(Path(folder))  # the current folder may change
        if not self.folder.is_dir():
            raise RunError(f"no run in {folder}: there is no such folder; `list-runs` shows the runs there are")
        self._offset, self._inode, self._tail = 0, -1, b""
        self._glance = glance
        self.refresh()

    def __fspath__(self) -> str:
        """The run's folder: whatever takes a path takes a run."""
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Record({str(self.folder)!r}, {self.status}, step {self.step})"

    @property
    def run_id(self) -> str:
        """The run's id; the folder's name where the log does not say."""
        return super().run_id or self.folder.resolve().name

    @property
    def title(self) -> str:
        """The run's id, with the folder's name where that is another, as of a copy: runs are found by it."""
        return self.run_id if self.folder.name == self.run_id else f"{self.run_id} (folder {self.folder.name})"

    @property
    def status(self) -> str:
        """As of a `History`; of a run that nobody trains, as its log says now: it may have ended since it was read."""
        status = super().status
        return super().status if status in ("interrupted", "empty") and self.refresh() else status

    @property
    def log_path(self) -> Path:
        """The run's log file."""
        return self.folder / LOG

    def refresh(self) -> bool:
        """Read the log's new lines. True where there were any, or the log was replaced. Cost: the new bytes and TAIL."""
        if not os.path.isfile(self.log_path):  # none yet; and a device or a pipe may never end
            return False
        try:
            with open(self.log_path, "rb") as file:
                inode = os.fstat(file.fileno()).st_ino  # a freed one is given to the next file
                file.seek(self._offset - len(self._tail))
                replaced = inode != self._inode or file.read(len(self._tail)) != self._tail
                if replaced:  # resumed at an earlier checkpoint, or deleted and trained again
                    self._forget()
                    self._offset, self._inode, self._tail = 0, inode, b""
                file.seek(self._offset)
                before = self._offset
                for line, end in (_without_steps if self._glance else _whole_lines)(file.read):
                    self._take(line)
                    self._offset = before + end
                file.seek(max(self._offset - TAIL, 0))
                self._tail = file.read(min(TAIL, self._offset))
                return replaced or self._offset > before
        except OSError:
            return False  # it cannot be read: the record stays as it is

    def names(self) -> list[str]:
        """The names of all series that have points."""
        self._look_closely()
        return super().names()

    def series(self, name: str) -> Points:
        """As of a `History`."""
        self._look_closely()
        return super().series(name)

    def _look_closely(self) -> None:
        """Read again, with all steps, what was read at a glance."""
        if self._glance:
            self._glance, self._inode = False, -1
            self.refresh()

    def _take(self, line: bytes) -> None:
        if line.strip():
            event = parse_line(line)
            if event is None:
                self.damaged += 1
            else:
                self.add(event)

    def is_running(self) -> bool:
        """Whether a living process holds the run's lock."""
        return is_locked(self.folder / RUN_LOCK)

    def goes_beyond(self, step: int) -> bool:
        """Whether the run has anything after a step, in its log or on disk."""
        return self.step > step or any(step_of_folder(path) > step for path in self.checkpoints())

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints on disk, oldest first."""
        found = (self.folder / "checkpoints").glob("step-*")
        whole = [path for path in found if step_of_folder(path) >= 0 and (path / "manifest.json").is_file()]
        return sorted(whole, key=lambda path: (step_of_folder(path), path))

    @property
    def newest_checkpoint(self) -> Path | None:
        """The last complete checkpoint, or None."""
        return next(reversed(self.checkpoints()), None)

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint with the lowest validation loss, which the file `checkpoints/best` names, or None."""
        try:
            name = (self.folder / "checkpoints" / "best").read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
        return next((path for path in self.checkpoints() if path.name == name), None)

    @property
    def size_bytes(self) -> int:
        """What the run takes on disk."""
        try:
            return tree_size(self.folder)
        except OSError:  # a file went while we looked, as temporaries of a running process do
            return 0

    @property
    def notes(self) -> str:
        """What the user noted about the run."""
        return as_text(self._remarks().get("notes"))

    @property
    def tags(self) -> list[str]:
        """The run's tags, in the order they were given."""
        tags = self._remarks().get("tags")
        return [as_text(tag) for tag in tags] if isinstance(tags, list) else []

    def delete(self) -> int:
        """Delete the run's folder; see `delete_run`."""
        return delete_run(self.folder)

    def set_notes(self, notes: str) -> None:
        """Keep `notes` with the run, in place of those before. Raises RunError where the folder cannot be written."""
        self._remark(lambda remarks: {**remarks, "notes": as_text(notes)})

    def tag(self, *names: str | float) -> None:
        """Add tags, numbers as text. Raises RunError where the folder cannot be written, UsageError on what is no tag."""
        added = as_tags(names)
        self._remark(lambda remarks: {**remarks, "tags": list(dict.fromkeys([*self.tags, *added]))})

    def untag(self, *names: str | float) -> None:
        """Take tags away; one that is not there is passed over. Raises RunError, and UsageError as `tag` does."""
        gone = as_tags(names)
        self._remark(lambda remarks: {**remarks, "tags": [tag for tag in self.tags if tag not in gone]})

    def _remarks(self) -> dict[str, Any]:
        try:
            return as_mapping(read_json(self.folder / REMARKS))
        except (OSError, ValueError):
            return {}

    def _remark(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        path = self.folder / REMARKS
        if not self.folder.is_dir():  # else the lock would make it again
            raise RunError(f"the run {self.folder} is no longer there")
        try:
            with lock(path):
                remarks = read_json(path) if os.path.lexists(path) else {}
                if not isinstance(remarks, dict) or not isinstance(remarks.get("tags", []), list):
                    raise ValueError(path)
                write_atomic(path, dump_json(change(remarks)))
        except OSError as error:
            raise RunError(f"cannot write {path}: {describe_os_error(error)}; check the folder") from error
        except ValueError as error:
            raise RunError(f"{path} does not hold notes and tags as they are kept; mend it, or delete it") from error


def step_of_folder(path: Path) -> int:
    """The step after which a checkpoint was saved, by the name of its folder; -1 where that says none."""
    step = path.name.removeprefix("step-")
    return int(step) if step.isdecimal() else -1


def as_tags(names: Iterable[Any]) -> list[str]:
    """Tags as they are kept. Raises UsageError naming the first that is none, such as a list of them."""
    for name in names:
        if name is None or (isinstance(name, Iterable) and not isinstance(name, str)):
            raise UsageError(f"{one_line(repr(name), 60)} is no tag; give each by itself, as text: tag('a', 'b')")
    return [as_text(name) for name in names]


def _whole_lines(read: Callable[[int], bytes]) -> Iterator[tuple[bytes, int]]:
    """The lines that `read` gives, each with the offset after it. The last may lack its newline, if it is whole."""
    end, pending = 0, b""
    while chunk := read(CHUNK):
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            end += len(line) + 1
            yield line, end
        if len(pending) > LONGEST_LINE:
            end += len(pending)
            yield b"?", end  # damaged
            pending = b""
    if pending and parse_line(pending) is not None:
        yield pending, end + len(pending)


def _without_steps(read: Callable[[int], bytes]) -> Iterator[tuple[bytes, int]]:
    """`_whole_lines` without all steps that another follows at once."""
    last: tuple[bytes, int] | None = None
    for line, end in _whole_lines(read):
        is_step = line.startswith(A_STEP) and line.endswith(b"}")
        if last is not None and not is_step:
            yield last
        last = (line, end) if is_step else None
        if last is None:
            yield line, end
    if last is not None:
        yield last


def find_runs(runs_dir: Path | str, kind: type[AnyRecord], known: Iterable[AnyRecord] = ()) -> list[AnyRecord]:
    """The runs in a folder as records of a kind, read at a glance, newest first; none where there is no such folder.

    known: records that are taken, read on, in place of new ones.
    """
    runs_dir, before = Path(runs_dir), {record.folder: record for record in known}
    if not runs_dir.is_dir():
        return []
    records = []
    for path in runs_dir.iterdir():
        if _is_run(path):
            with contextlib.suppress(RunError):  # of one that another process deletes meanwhile
                record = before.get(absolute(path))
                if record is None:
                    record = kind(path, glance=True)
                else:
                    record.refresh()
                records.append(record)
    return sorted(records, key=lambda record: (_began(record), record.run_id), reverse=True)


def is_blank(folder: Path) -> bool:
    """Whether `folder` holds no more than what a run makes before its first logged line: it may begin there anew.

    A config is the run's own only beside what was written before it, who trains; else a user wrote it.
    """
    made = {LOG, PROCESS, STOP, f"{RUN_LOCK}.lock", "config.yaml", "checkpoints"}
    if folder.is_symlink() or not folder.is_dir():
        return False
    found = {path.name for path in folder.iterdir() if not TEMPORARY.match(path.name)}
    if not found <= made or ("config.yaml" in found and PROCESS not in found):
        return False
    log, checkpoints = folder / LOG, folder / "checkpoints"
    return not (log.exists() and log.stat().st_size) and not (checkpoints.is_dir() and any(checkpoints.iterdir()))


def _is_run(path: Path) -> bool:
    """Whether a folder holds a run: its log, who trains it, or checkpoints alone. Not one that may not be read.

    A config alone is a user's own folder: whatever trains says who it is before it writes one.
    """
    if path.name.startswith("."):
        return False
    try:
        begun = (path / LOG).is_file() or (path / PROCESS).is_file()
        return begun or any(path.glob("checkpoints/step-*"))
    except OSError:
        return False


def _began(record: Record) -> float:
    began = timestamp(record.starts[0]) if record.starts else math.nan
    if not math.isnan(began):
        return began
    return record.folder.stat().st_mtime if record.folder.exists() else 0.0


def left_by_launch(folder: Path) -> tuple[Path, Path]:
    """Where, beside a run's folder, a launched process prints to, and where torchrun keeps its own files."""
    return folder.parent / f".{folder.name}.out", folder.parent / f".{folder.name}.ranks"


def find_run(where: str | Path, runs_dir: Path) -> Path:
    """The folder that a run id in `runs_dir`, or a path from anywhere that `find_file` looks, leads to.

    What has a separator, or only dots, is a path; a bare name is a path where no run bears it.
    """
    found, text = find_file(where), os.fspath(where)
    if Path(text).name != text or not text.strip("."):
        return found.resolve() if found.name in ("", "..") else found
    return runs_dir / where if (runs_dir / where).is_dir() or not found.exists() else found


def delete_run(folder: Path | str) -> int:
    """Delete a run's folder, and what `launch` left beside it; returns the bytes freed. A link goes, not its target.

    Raises RunError where the folder holds no run, a process is training in it, or the disk refuses.
    """
    folder = Path(folder)
    if not _is_run(folder):
        raise RunError(f"no run in {folder}; `list-runs` shows the runs there are")
    try:
        if folder.is_symlink():
            if is_locked(folder / RUN_LOCK):
                raise TimeoutError
            folder.unlink()
            return 0
        with lock(folder / RUN_LOCK, timeout=0):
            freed = tree_size(folder)
            remove_tree(folder)
            for path in left_by_launch(folder):
                remove_tree(path)
            return freed
    except TimeoutError as error:
        raise RunError(f"run {folder} is in use by another process; stop it first, then delete it") from error
    except OSError as error:
        raise RunError(f"cannot delete {folder}: {describe_os_error(error)}; check its permissions") from error
