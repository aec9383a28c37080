"""Power loss: whatever was not synced is gone. What is left after any file operation is a run that goes on."""

from __future__ import annotations

import os
import re
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_config import TINY

from lmlab import checkpoint, events, files, lab
from lmlab.config import TrainingConfig

CONFIG: dict[str, Any] = {
    **TINY, "precision": "fp32", "max_steps": 4, "checkpoint_cadence": 1, "eval_cadence": 2, "eval_batches": 1,
    "sampling_max_length": 3,
}  # fmt: skip


class Disk:
    """What a disk surely holds: of files what was synced, of folders the names that they had when they were synced."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.contents: dict[int, bytes] = {}  # by inode
        self.names: dict[int, dict[str, tuple[int, bool]]] = {}  # by the folder's inode: inode, whether it is a folder
        self._open: list[int] = []  # so that no inode is used again
        descriptor = os.open(root, os.O_RDONLY)
        self.take(descriptor)
        os.close(descriptor)

    def take(self, descriptor: int) -> None:
        """A file or folder was synced."""
        state = os.fstat(descriptor)
        if state.st_ino not in self.contents and state.st_ino not in self.names:
            self._open.append(os.dup(descriptor))
        path = f"/proc/self/fd/{descriptor}"
        if stat.S_ISDIR(state.st_mode):
            with os.scandir(path) as entries:
                self.names[state.st_ino] = {e.name: (e.inode(), e.is_dir(follow_symlinks=False)) for e in entries}
        else:
            self.contents[state.st_ino] = Path(path).read_bytes()

    def after_power_loss(self, target: Path, *, every_name: bool) -> Path:
        """Write to `target` what is left. every_name: renames and new names survive unsynced, contents do not.

        A disk may do either: write the names early, or not before it must.
        """
        shutil.rmtree(target, ignore_errors=True)
        if every_name:
            for folder, _, names in os.walk(self.root):
                copy = target / Path(folder).relative_to(self.root)
                copy.mkdir(parents=True)
                for name in names:
                    inode = (Path(folder) / name).lstat().st_ino
                    (copy / name).write_bytes(self.contents.get(inode, b""))
        else:
            self._restore(self.root.stat().st_ino, target)
        return target

    def _restore(self, inode: int, target: Path) -> None:
        target.mkdir()
        for name, (inner, is_folder) in self.names.get(inode, {}).items():
            if is_folder:
                self._restore(inner, target / name)
            else:
                (target / name).write_bytes(self.contents.get(inner, b""))

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)


class Watch:
    """Looks at what a power loss would leave of a run, after every operation that may change it.

    announced: the newest checkpoint that was said to be saved, or that the run was told to go back to.
    """

    def __init__(self, runs: Path, scratch: Path) -> None:
        self.disk, self.scratch, self.announced, self.looks = Disk(runs), scratch, 0, 0
        self.problems: list[str] = []
        self._lock = threading.Lock()

    def hear(self, event: dict[str, Any]) -> None:
        """A listener: from here on, this checkpoint must survive."""
        if event["event"] == "checkpoint":
            self.announced = event["step"]

    def look(self, operation: str, descriptor: int | None = None) -> None:
        with self._lock:
            if descriptor is not None:
                self.disk.take(descriptor)
            self.looks += 1
            for every_name in (False, True):
                left = self.disk.after_power_loss(self.scratch, every_name=every_name) / "r"
                try:
                    self.check(left)
                except Exception as error:
                    self.problems.append(f"{operation}, every_name={every_name}: {type(error).__name__}: {error}")

    def check(self, run: Path) -> None:
        steps = checkpoint.steps(run / "checkpoints")
        for step in steps:
            checkpoint.load(checkpoint.step_folder(run / "checkpoints", step))
        newest = max(steps, default=0)
        assert newest >= self.announced, f"step {self.announced} was said to be saved; the newest left is {newest}"
        log = events.read(run / "log.jsonl")
        logged = [event["step"] for event in log if event["event"] == "step"]
        assert logged == list(range(1, len(logged) + 1)), f"the log holds the steps {logged}"
        assert len(logged) >= newest, f"the log ends at {len(logged)}, the newest checkpoint is {newest}"
        assert log.damaged == 0
        if (run / "checkpoints" / "best").exists():
            assert re.fullmatch(r"step-\d{8}\n", (run / "checkpoints" / "best").read_text())
        if steps:
            TrainingConfig.from_yaml(run / "config.yaml")


@contextmanager
def watching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Watch everything that happens below `runs`."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("the names of descriptors are known on Linux alone")
    runs = tmp_path / "runs"
    runs.mkdir()
    watch = Watch(runs, tmp_path / "left")
    real = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

    def syncing(descriptor: int) -> None:
        real["fsync"](descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.startswith(str(runs)):
            watch.look(f"sync {path}", descriptor)

    def moving(name: str) -> Any:
        def call(source: Any, target: Any) -> None:
            real[name](source, target)
            if str(target).startswith((str(runs), "runs")):
                watch.look(f"{name} {source} {target}")

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", syncing)
        for name in ("rename", "replace"):
            patch.setattr(os, name, moving(name))
        yield watch
    watch.disk.close()


@pytest.mark.parametrize("beside", [False, True])
def test_a_run_that_is_resumed_and_pruned(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    config = {**CONFIG, "keep_checkpoints": 2, "async_checkpoints": beside}
    with watching(tmp_path, monkeypatch) as watch:
        run = lab.run(config, corpus, run_name="r", listeners=[watch.hear])
        run.resume(max_steps=6, listeners=[watch.hear])
    assert watch.problems == []
    assert watch.announced == 6
    assert watch.looks > 60


def test_a_run_that_goes_back(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with watching(tmp_path, monkeypatch) as watch:
        run = lab.run(CONFIG, corpus, run_name="r", listeners=[watch.hear])
        watch.announced = 2
        lab.resume(run.folder / "checkpoints" / "step-00000002", max_steps=5, listeners=[watch.hear])
    assert watch.problems == []
    assert watch.announced == 5


@pytest.mark.parametrize("forgotten", ["sync", "sync_folder", "log"])
def test_a_sync_that_is_left_out_is_found(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    if forgotten == "log":
        monkeypatch.setattr(events.EventLog, "sync", lambda log: None)
    else:
        monkeypatch.setattr(files, forgotten, lambda path: None)
    with watching(tmp_path, monkeypatch) as watch:
        lab.run(CONFIG, corpus, run_name="r", listeners=[watch.hear])
    assert watch.problems
