"""`async_checkpoints`: a thread writes what a run saves, training goes on, and nothing else of the run differs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_config import TINY

from lmlab import checkpoint, events, files, lab
from lmlab.errors import CheckpointError, DivergedError
from lmlab.events import Event
from lmlab.proof import differing_tensor

CONFIG: dict[str, Any] = {
    **TINY, "precision": "fp32", "max_steps": 6, "checkpoint_cadence": 2, "eval_cadence": 2, "keep_checkpoints": 2,
    "async_checkpoints": True, "sampling_max_length": 3,
}  # fmt: skip


class SlowDisk:
    """A disk that takes no tensors while it is held up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free, self.writers, write = threading.Event(), set[str](), checkpoint.write_tensors

        def slow(path: Path, tensors: Any) -> None:
            self.writers.add(threading.current_thread().name)
            assert self.free.wait(60)
            write(path, tensors)

        monkeypatch.setattr(checkpoint, "write_tensors", slow)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    slow = SlowDisk(monkeypatch)
    yield slow
    slow.free.set()


def freeing(disk: SlowDisk, step: int, told: list[tuple[str, int]]) -> Any:
    """A listener that keeps kind and step of each event, and frees the disk after a step."""

    def hear(event: Event) -> None:
        told.append((event["event"], event.get("step", 0)))
        if told[-1] == ("step", step):
            disk.free.set()

    return hear


def test_training_goes_on_while_a_checkpoint_is_written(disk: SlowDisk, corpus: Path) -> None:
    told: list[tuple[str, int]] = []
    config = {**CONFIG, "checkpoint_cadence": 3, "eval_cadence": None, "max_steps": 7, "keep_checkpoints": None}
    run = lab.run(config, corpus, listeners=[freeing(disk, 5, told)])
    assert run.status == "completed"
    assert told.index(("step", 5)) < told.index(("checkpoint", 3)) < told.index(("checkpoint", 6))
    assert told.index(("step", 7)) < told.index(("checkpoint", 7))
    assert {thread.partition("_")[0] for thread in disk.writers} == {"lmlab", "MainThread"}
    assert checkpoint.load(run.folder / "checkpoints" / "step-00000003").step == 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lmlab")], "it ends with the run"


def test_the_next_checkpoint_waits_for_the_one_before(disk: SlowDisk, corpus: Path) -> None:
    told: list[tuple[str, int]] = []
    timer = threading.Timer(0.5, disk.free.set)
    timer.start()
    run = lab.run(CONFIG, corpus, listeners=[freeing(disk, 6, told)])
    timer.join()
    assert [step for kind, step in told if kind == "checkpoint"] == [2, 4, 6]
    assert told.index(("checkpoint", 2)) < told.index(("step", 5))
    assert checkpoint.steps(run.folder / "checkpoints") == [4, 6]


def test_what_is_saved_is_the_step_and_not_what_training_made_of_it(corpus: Path) -> None:
    """Bit for bit what a run that waits saves, with the same best one, and each goes on as the other does."""
    runs = [lab.run({**CONFIG, "async_checkpoints": beside}, corpus, listeners=[], seed=3) for beside in (False, True)]
    left, right = (run.folder / "checkpoints" for run in runs)
    assert checkpoint.steps(left) == checkpoint.steps(right)
    for step in checkpoint.steps(left):
        pair = [checkpoint.load(checkpoint.step_folder(folder, step)) for folder in (left, right)]
        assert differing_tensor(*pair) is None
        states = [{k: v for k, v in each.state.items() if k not in ("run_id", "config")} for each in pair]
        assert states[0] == states[1]
    assert (left / "best").read_text() == (right / "best").read_text()
    ends = [lab.resume(run.folder, listeners=[], max_steps=9).series("loss")[1].tolist() for run in runs]
    assert ends[0] == ends[1]


def test_what_the_disk_refuses_ends_the_run_with_its_one_line(monkeypatch: pytest.MonkeyPatch, corpus: Path) -> None:
    def full(path: Path, tensors: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(
        CheckpointError, match=r"cannot save the checkpoint .*step-00000002: No space left on device; free"
    ):
        lab.run(CONFIG, corpus, run_name="r", listeners=[])
    folder = lab.find_runs_dir() / "r"
    log = events.read(folder / "log.jsonl")
    assert (log[-1]["event"], log[-1]["status"]) == ("run_end", "failed")
    assert [path for path in folder.rglob(".*") if files.TEMPORARY.match(path.name)] == []
    assert checkpoint.steps(folder / "checkpoints") == []


def test_a_run_that_diverges_first_finishes_what_it_writes(disk: SlowDisk, corpus: Path) -> None:
    told: list[tuple[str, int]] = []
    trainer = lab.build({**CONFIG, "eval_cadence": None}, corpus)

    def spoil(event: Event) -> None:
        if event["event"] == "step" and event["step"] == 3:
            next(trainer.model.parameters()).data.fill_(float("nan"))
            threading.Timer(0.3, disk.free.set).start()

    with pytest.raises(DivergedError):
        lab.execute(trainer, [freeing(disk, 6, told), spoil])
    assert told[-2:] == [("checkpoint", 2), ("run_end", 3)]
    assert trainer.folder is not None
    assert checkpoint.steps(trainer.folder / "checkpoints") == [2]


def test_going_back_to_it_keeps_its_line_in_the_log(disk: SlowDisk, corpus: Path) -> None:
    told: list[tuple[str, int]] = []
    config = {**CONFIG, "checkpoint_cadence": 3, "eval_cadence": None}
    run = lab.run(config, corpus, listeners=[freeing(disk, 5, told)])
    lab.resume(run.folder / "checkpoints" / "step-00000003", listeners=[])
    log = [(event["event"], event.get("step")) for event in events.read(run.folder / "log.jsonl")]
    assert log.count(("checkpoint", 3)) == 1
    assert [step for kind, step in log if kind == "step"] == [1, 2, 3, 4, 5, 6]
