"""Two at once: registry writes, runs and imports of many processes, and locks whose holders were killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
from forked import Nursery

from lmlab import checkpoint, cli, events, files, hub, lab
from lmlab.entries import Entry
from lmlab.errors import HubError, ModelNotFound, RegistryError
from lmlab.record import RUN_LOCK
from lmlab.registry import Registry

pytestmark = pytest.mark.endurance
ROOT = Path(__file__).resolve().parents[2]
WRITERS, WRITES, ROUNDS = 16, 50, 3


def forked(number: int, work: object) -> int:
    """A copy of this process that does `work(number)` and ends with status 0, or 1 where that raises."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(number)  # type: ignore[operator]
            status = 0
        finally:
            os._exit(status)
    return child


def ended(children: list[int]) -> list[int]:
    """The exit statuses of processes, once all have ended."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_16_processes_write_50_times_each_and_nothing_is_lost_or_torn(tmp_path: Path) -> None:
    """Each adds, replaces and removes its own entries, with their folders, while others do the same and two read."""

    def write(number: int) -> None:
        registry, draw = Registry(tmp_path), random.Random(number)
        own: dict[str, str] = {}
        for i in range(WRITES):
            kind = draw.random()
            if own and kind < 0.25:
                name = draw.choice(list(own))
                registry.remove(name)
                del own[name]
            elif own and kind < 0.5:
                name = draw.choice(list(own))
                own[name] = f"licence {i}"
                registry.add(entry(name, own[name]), replace=True)
            else:
                name = f"m-{number}-{i}"
                own[name] = "none"
                (tmp_path / f".new-{name}").mkdir()
                registry.admit(tmp_path / f".new-{name}", entry(name, "none"))
        (tmp_path / f".own-{number}").write_text(json.dumps(own))

    def read(number: int) -> None:
        while not (tmp_path / ".done").exists():
            assert Registry(tmp_path).damaged() == {}

    readers = [forked(number, read) for number in range(2)]
    assert ended([forked(number, write) for number in range(WRITERS)]) == [0] * WRITERS
    (tmp_path / ".done").touch()
    assert ended(readers) == [0, 0]
    expected = {}
    for number in range(WRITERS):
        expected |= json.loads((tmp_path / f".own-{number}").read_text())
    found = {each.model_name: each.license for each in Registry(tmp_path).entries()}
    assert found == expected
    assert len(found) > WRITERS
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {
        *expected, "registry.json", "registry.json.lock",
    }  # fmt: skip


def entry(name: str, license: str) -> Entry:
    return Entry(model_name=name, source="local", architecture_type="qwen", local_path=name, license=license)


def test_of_processes_that_start_one_run_at_once_one_trains_it(
    nursery: Nursery, tiny_yaml: Path, corpus: Path, tmp_path: Path
) -> None:
    for number in range(ROUNDS):
        words = ["--config", str(tiny_yaml), "--data", str(corpus), "--run-name", f"r-{number}"]
        started = [nursery.start(cli.main, words, output=tmp_path / f"said-{i}") for i in range(2)]
        statuses = [child.wait() for child in started]
        assert sorted(statuses) == [0, 1], [child.said for child in started]
        assert "exists already; choose another --run-name" in started[statuses.index(1)].said
        log = events.read(tmp_path / "runs" / f"r-{number}" / "log.jsonl")
        assert [event["step"] for event in log if event["event"] == "step"] == [1, 2, 3, 4, 5, 6]


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )


def test_a_run_that_trains_is_resumed_by_nobody_else(tiny_yaml: Path, corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "main.py")]
    trains = start(
        [*command, "--config", str(tiny_yaml), "--data", str(corpus), "--run-name", "r", "--max-steps", "1000000"]
    )
    assert trains.stdout is not None
    while "event=checkpoint" not in trains.stdout.readline():
        assert trains.poll() is None
    folder = tmp_path / "runs" / "r"
    others = [start([*command, "--resume", str(folder)]) for _ in range(2)]
    for other in others:
        said = drained(trains, other)
        assert other.returncode == 1
        assert f"another process is training in {folder}; stop it first" in said
    trains.send_signal(signal.SIGTERM)
    trains.communicate(timeout=60)
    assert trains.returncode == 143
    steps = [event["step"] for event in events.read(folder / "log.jsonl") if event["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    checkpoint.newest(folder / "checkpoints")


def drained(noisy: subprocess.Popen[str], other: subprocess.Popen[str]) -> str:
    """What a process complains of, while the output of another is read so that it does not stand still."""
    assert noisy.stdout is not None
    while other.poll() is None:
        noisy.stdout.readline()
    return other.communicate()[1]


def test_imports_of_one_model_at_once_leave_one_whole_model(tmp_path: Path) -> None:
    folder = tiny_models.make(tmp_path / "published")

    def bring(number: int) -> None:
        try:
            hub.import_model(str(folder), name="tiny", models_dir=tmp_path / "models")
        except HubError as error:  # what one that comes too late to wait is told
            if "is registered already; choose another name" not in str(error):
                raise

    for _ in range(ROUNDS):
        assert ended([forked(number, bring) for number in range(4)]) == [0] * 4
        registry = Registry(tmp_path / "models")
        assert registry.names() == ["tiny"]
        assert registry.validate() == []
        registry.remove("tiny")


HOLD = """
import sys
from lmlab import files
with files.lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_locks_of_killed_holders_are_free(tiny: dict[str, object], corpus: Path, tmp_path: Path) -> None:
    run = lab.run(tiny, corpus, run_name="r", listeners=[])
    models = tmp_path / "models"
    registry = Registry(models)
    published = tiny_models.make(tmp_path / "published")
    for number in range(ROUNDS):
        for path in (run.folder / RUN_LOCK, registry.file, models / f".import-tiny-{number}"):
            with subprocess.Popen(
                [sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as holder:
                assert holder.stdout is not None
                assert holder.stdout.readline() == b"held\n"
                with pytest.raises(TimeoutError), files.lock(path, timeout=0):
                    raise AssertionError("held by two")
                holder.kill()
        assert lab.resume(run.folder, listeners=[], max_steps=7 + number).step == 7 + number
        hub.import_model(str(published), name=f"tiny-{number}", models_dir=models)
    assert registry.names() == [f"tiny-{number}" for number in range(ROUNDS)]
    assert registry.validate(fix=True) == []
    with pytest.raises(ModelNotFound):
        registry.remove("nobody")
    with pytest.raises(RegistryError, match="registered already"):
        registry.add(entry("tiny-0", "none"))
