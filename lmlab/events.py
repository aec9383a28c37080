"""The structured log of a run: `log.jsonl`, one JSON object a line. Imports no torch.

Every line has `event`, `run_id`, `time` (UTC, ISO 8601) and, but for `run_start`, `step`. A line is one `write`
to a file opened for appending, so that lines of two writers never mix and a crash tears at most the last one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmlab.errors import RunError
from lmlab.files import describe_os_error, sync_descriptor, sync_folder, write_atomic

Event = dict[str, Any]
HOOK_EVENT = ("event", "run_id", "time", "step", "name")  # what a `hook` event says besides what the hook measured


def now() -> str:
    """The time in UTC as ISO 8601 with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def number(value: Any) -> float:
    """A logged number as a float: "NaN", "Infinity" and "-Infinity" become what they name, all else unreadable NaN."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def plain(value: Any) -> Any:
    """`value` with every non-finite float replaced by its name, which JSON can hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def encode(event: Event) -> bytes:
    """One line of the log, with its newline."""
    return (json.dumps(plain(event), ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")


class EventLog:
    """Appends events to a log file. A line that a crash or a full disk tore is ended first, so that it spoils no other."""

    def __init__(self, path: Path | str, run_id: str) -> None:
        """Open (and make) `path` for appending. Raises RunError where it cannot be written."""
        self.path, self.run_id, self._descriptor = Path(path), run_id, -1
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            self._torn = self._ends_torn()
            sync_folder(self.path.parent)  # so that a new log's name is on the disk before what rests on it
        except OSError as error:
            self.close()
            raise self._failure(error) from error

    def write(self, event: str, step: int | None = None, **fields: Any) -> Event:
        """Append one event of this run, now, and return it as written. Raises RunError when the disk takes no more."""
        record: Event = {"event": event, "run_id": self.run_id, "time": now()}
        if step is not None:
            record["step"] = step
        record.update(fields)
        self(record)
        return record

    def __call__(self, record: Event) -> None:
        """Append an event that is complete, as a Trainer tells it. Raises RunError when the disk takes no more."""
        try:
            self._append(encode(record))
        except OSError as error:
            raise self._failure(error) from error

    def sync(self) -> None:
        """Force to the disk what was appended: a checkpoint that outlives a power loss finds its steps in the log."""
        try:
            sync_descriptor(self._descriptor)
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, line: bytes) -> None:
        if self._torn:
            line = b"\n" + line
        self._torn = True
        written = os.write(self._descriptor, line)
        while written < len(line):  # a full disk takes a part, then raises
            written += os.write(self._descriptor, line[written:])
        self._torn = False

    def _ends_torn(self) -> bool:
        size = os.fstat(self._descriptor).st_size
        return size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"

    def _failure(self, error: OSError) -> RunError:
        return RunError(
            f"cannot write the log {self.path}: {describe_os_error(error)}; free some space or check the folder, "
            "then go on with --resume"
        )


class Events(list[Event]):
    """The events of a log in order. `damaged` counts the lines in its middle that could not be read."""

    damaged = 0


def parse_line(line: bytes) -> Event | None:
    """The event on one line of a log, or None where it is no event."""
    try:
        event = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def first_event(log: Path) -> Event:
    """The event with which a log begins, without reading on; empty where there is none."""
    try:
        if not log.is_file():
            return {}
        with open(log, "rb") as file:
            return parse_line(file.readline()) or {}
    except OSError:
        return {}


def parse_lines(lines: Iterable[bytes]) -> Events:
    """The events of whole lines; those that hold none are counted as damaged, empty ones passed over."""
    events = Events()
    for line in lines:
        if not line.strip():
            continue
        event = parse_line(line)
        if event is None:
            events.damaged += 1
        else:
            events.append(event)
    return events


def read(path: Path | str) -> Events:
    """All events of a log. A torn last line is skipped, damaged lines are counted; what is no file has no events."""
    path = Path(path)
    try:
        content = path.read_bytes() if path.is_file() else b""  # a device or a pipe may never end
    except OSError:
        return Events()
    *whole, torn = content.split(b"\n")
    events = parse_lines(whole)
    last = parse_line(torn) if torn.strip() else None
    if last is not None:  # only its newline is missing
        events.append(last)
    return events


def superseded_log(path: Path, number: int) -> Path:
    """Where what was taken out of a log is kept: `log.superseded-N.jsonl` beside it."""
    return path.with_name(f"{path.stem}.superseded-{number}{path.suffix}")


def supersede(path: Path, step: int, number: int) -> Path | None:
    """Move what a log holds after `step` to `log.superseded-N.jsonl`, for a run that goes on from an earlier step.

    number: an N that is free. What stays are the events up to `step` in the order they came, without a `run_end` after it.
    Returns the new file, or None where nothing came after. Raises OSError.
    """
    events = read(path)
    kept: list[Event] = []
    later: list[Event] = []
    for event in events:
        at = event.get("step")
        beyond = bool(later) or (isinstance(at, int) and at > step)
        if event["event"] == "checkpoint" and isinstance(at, int) and at <= step:
            beyond = False  # one that was written beside the steps after it
        (later if beyond else kept).append(event)
    if not any(event["event"] != "run_end" for event in later):
        return None
    target = superseded_log(path, number)
    write_atomic(target, b"".join(encode(event) for event in later))
    write_atomic(path, b"".join(encode(event) for event in kept))
    return target
