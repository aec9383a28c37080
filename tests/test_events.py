"""The log: one write per line, and a reader that takes whatever a crash left."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab import events
from lmlab.errors import RunError


def write_log(path: Path, n: int = 4) -> bytes:
    log = events.EventLog(path, "run-1")
    log.write("run_start", config={"a": [1, 2]})
    for step in range(1, n + 1):
        log.write("step", step, loss=1 / step, text="naïve 😀 line\nbreak")
    log.close()
    log.close()
    return path.read_bytes()


def test_a_log_that_cannot_be_opened_whole_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    opened: list[int] = []
    open_plainly = os.open
    monkeypatch.setattr(os, "open", lambda *given: opened.append(open_plainly(*given)) or opened[-1])
    monkeypatch.setattr(events, "sync_folder", refuse)
    with pytest.raises(RunError, match=r"cannot write the log .*: Input/output error"):
        events.EventLog(tmp_path / "log.jsonl", "run-1")
    (descriptor,) = opened
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_log_cut_at_every_byte_gives_every_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    content = write_log(path)
    lines = content.split(b"\n")[:-1]
    whole = [json.loads(line) for line in lines]
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        read = events.read(path)
        ends = [len(b"\n".join(lines[: n + 1])) for n in range(len(lines))]
        assert read == whole[: sum(end <= cut for end in ends)]  # the newline alone may be missing
        assert read.damaged == 0


def test_a_torn_line_spoils_no_line_written_after_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    content = write_log(path)
    last = content.rindex(b"\n", 0, -1) + 1
    for cut in range(last + 1, len(content)):
        path.write_bytes(content[:cut])
        log = events.EventLog(path, "run-1")
        log.write("step", 9)
        log.close()
        read = events.read(path)
        assert read[-1]["step"] == 9
        assert [event.get("step") for event in read][:4] == [None, 1, 2, 3]
        assert read.damaged == (cut < len(content) - 1)


def test_each_line_is_one_write_to_a_file_opened_for_appending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    write = os.write

    def traced(descriptor: int, data: bytes) -> int:
        written.append(bytes(data))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", traced)
    content = write_log(tmp_path / "log.jsonl")
    assert b"".join(written) == content
    assert len(written) == 5
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in written)
    log = events.EventLog(tmp_path / "log.jsonl", "run-1")
    (tmp_path / "log.jsonl").write_bytes(b"")  # as a log that is superseded: what comes is added, not put at an offset
    log.write("step", 1)
    log.close()
    assert (tmp_path / "log.jsonl").read_bytes() == written[-1]


def test_a_write_that_takes_a_part_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    write_log(tmp_path / "log.jsonl")
    assert [event.get("step") for event in events.read(tmp_path / "log.jsonl")] == [None, 1, 2, 3, 4]


def test_lines_of_many_writers_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"

    def write(run_id: str) -> None:
        log = events.EventLog(path, run_id)
        for step in range(200):
            log.write("step", step, filling="x" * (step * 7 % 300))
        log.close()

    threads = [threading.Thread(target=write, args=(f"run-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read = events.read(path)
    assert read.damaged == 0
    for n in range(4):
        assert [event["step"] for event in read if event["run_id"] == f"run-{n}"] == list(range(200))


def test_what_every_line_holds(tmp_path: Path) -> None:
    write_log(tmp_path / "log.jsonl", 1)
    start, step = events.read(tmp_path / "log.jsonl")
    assert list(start) == ["event", "run_id", "time", "config"]
    assert list(step)[:4] == ["event", "run_id", "time", "step"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", step["time"])
    assert start["time"] <= step["time"]


def test_numbers_that_json_lacks_are_written_as_words_and_read_back(tmp_path: Path) -> None:
    log = events.EventLog(tmp_path / "log.jsonl", "r")
    values = [math.nan, math.inf, -math.inf, 1.5]
    returned = log.write("step", 1, loss=math.nan, many={"values": values, "pair": (math.inf, 1)})
    log.close()
    line = (tmp_path / "log.jsonl").read_text()
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (event,) = events.read(tmp_path / "log.jsonl")
    assert event["loss"] == "NaN"
    assert math.isnan(returned["loss"])
    assert event["many"]["values"][1:3] == ["Infinity", "-Infinity"]
    assert [events.number(v) for v in event["many"]["values"]][1:] == values[1:]
    assert math.isnan(events.number(event["many"]["values"][0]))
    assert math.isnan(events.number(None))
    assert math.isnan(events.number([1]))


def test_half_a_character_does_not_stop_the_log(tmp_path: Path) -> None:
    log = events.EventLog(tmp_path / "log.jsonl", "r")
    log.write("sample", 1, sample_text="a\ud83d\u2028b\r\n")
    log.close()
    (event,) = events.read(tmp_path / "log.jsonl")
    assert event["sample_text"] == "a?\u2028b\r\n"


DAMAGED = [
    b"not json",
    b"\xff\xfe",
    b"[1, 2]",
    b'"step"',
    b"{}",
    b'{"event": 3}',
    b'{"event": "step", "step": }',
    b"[" * 100_000,
    b'{"event":' * 50_000,
    b"\0" * 50,
    b"1" * 5000,
]


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_counted_and_the_others_are_read(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log.jsonl"
    first, *rest = write_log(path).splitlines(keepends=True)
    path.write_bytes(first + line + b"\n\n  \n" + b"".join(rest))
    read = events.read(path)
    assert [event.get("step") for event in read] == [None, 1, 2, 3, 4]
    assert read.damaged == 1
    path.write_bytes(first + line)
    assert events.read(path).damaged == 0  # a torn end is no damage


def test_a_log_that_is_not_there_has_no_events(tmp_path: Path) -> None:
    assert events.read(tmp_path / "none") == []
    assert events.read(tmp_path) == []


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=300) | st.text(alphabet='{}[]":,event0\\\n ', max_size=300).map(str.encode))
def test_no_bytes_at_all_make_the_reader_raise(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    for event in events.read(path):
        assert isinstance(event["event"], str)


def test_a_log_that_never_ends_has_no_events(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log.jsonl")
    assert events.read(tmp_path / "log.jsonl") == []


def test_a_line_that_a_full_disk_tore_spoils_no_line_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, log = os.write, events.EventLog(tmp_path / "log.jsonl", "r")
    log.write("step", 1)

    def half(descriptor: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", full)
        return write(descriptor, data[:20])

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(RunError, match="No space left on device"):
        log.write("step", 2)
    monkeypatch.setattr(os, "write", write)
    log.write("run_end", 2)
    log.close()
    read = events.read(tmp_path / "log.jsonl")
    assert [event["event"] for event in read] == ["step", "run_end"]
    assert read.damaged == 1


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    log = events.EventLog("/dev/full", "r")
    with pytest.raises(RunError, match=r"cannot write the log /dev/full: No space left on device.*--resume"):
        log.write("step", 1)
    with pytest.raises(RunError, match="Is a directory"):
        events.EventLog(tmp_path, "r")


def write_steps(path: Path, steps: list[int | None]) -> None:
    log = events.EventLog(path, "r")
    for step in steps:
        log.write("run_start" if step is None else "step", step)
    log.close()


def test_what_came_after_a_step_is_superseded(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_steps(path, [None, 1, 2, 3])
    log = events.EventLog(path, "r")
    log.write("run_end", 3, status="stopped")
    log.close()
    before = path.read_bytes()
    assert events.supersede(path, 3, 1) is None
    assert path.read_bytes() == before
    aside = events.supersede(path, 2, 1)
    assert aside == tmp_path / "log.superseded-1.jsonl"
    assert path.read_bytes() + aside.read_bytes() == before
    assert [event.get("step") for event in events.read(path)] == [None, 1, 2]
    assert [event["event"] for event in events.read(aside)] == ["step", "run_end"]
    write_steps(path, [None, 3, 4])  # a second session, then back to before it
    assert events.supersede(path, 1, 2) == tmp_path / "log.superseded-2.jsonl"
    assert [event.get("step") for event in events.read(path)] == [None, 1]
    assert [event.get("step") for event in events.read(tmp_path / "log.superseded-2.jsonl")] == [2, None, 3, 4]
