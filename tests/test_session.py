"""A run's folder and its log: what is in them, who may write, and that no step ever stands twice."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_config import TINY

from lmlab import checkpoint, events, files, lab, session
from lmlab.config import TrainingConfig
from lmlab.errors import CheckpointError, DivergedError, RunError, UsageError
from lmlab.launching import launch
from lmlab.session import ignored_settings

ROOT = Path(__file__).resolve().parents[1]
CONFIG = {**TINY, "precision": "fp32", "checkpoint_cadence": 2, "max_steps": 8, "sampling_max_length": 3}


def train(corpus: Path, name: str = "r-1", **changes: Any) -> lab.Run:
    return lab.run({**CONFIG, **changes}, corpus, run_name=name, listeners=[])


def at_step(run: lab.Run, step: int) -> Path:
    return checkpoint.step_folder(run.folder / "checkpoints", step)


def steps_in(path: Path) -> list[int]:
    return [event["step"] for event in events.read(path) if event["event"] == "step"]


# --- what a run leaves ----------------------------------------------------------------------------------------------


def test_a_run_leaves_its_config_its_log_and_its_checkpoints(corpus: Path, tmp_path: Path) -> None:
    run = train(corpus, eval_cadence=4, hooks=["weight_norms:4"])
    assert run.folder == tmp_path / "runs" / "r-1"
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "checkpoints", "config.yaml", "log.jsonl", "process.json", "run.lock",
    ]  # fmt: skip
    assert TrainingConfig.from_yaml(run.folder / "config.yaml").to_dict() == run.config
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == [
        "best", "step-00000002", "step-00000004", "step-00000006", "step-00000008",
    ]  # fmt: skip
    read = events.read(run.log_path)
    assert read.damaged == 0
    assert all(event["run_id"] == "r-1" and event["time"] for event in read)
    assert all(("step" in event) == (event["event"] != "run_start") for event in read)
    assert steps_in(run.log_path) == list(range(1, 9))
    assert read[-1]["event"] == "run_end"
    assert read[-1]["status"] == "completed"
    assert json.loads((run.folder / "process.json").read_text())["pid"] == os.getpid()


def test_the_start_says_all_that_is_needed_to_do_it_again(corpus: Path) -> None:
    run = train(corpus)
    start = events.read(run.log_path)[0]
    config = TrainingConfig.from_dict(CONFIG)
    assert set(start) >= {
        "kind", "config_hash", "git_commit", "git_dirty", "hooks", "config", "seed", "model", "fine_tuned_from",
        "lineage", "tokenizer", "data", "loss_floor", "device", "precision", "threads", "world_size", "strategy",
        "versions", "resumed_from",
    }  # fmt: skip
    assert (start["kind"], start["seed"], start["resumed_from"]) == ("new", 7, None)
    assert start["config"] == config.to_dict()
    assert start["config_hash"] == config.config_hash
    assert start["git_commit"] is None or re.fullmatch("[0-9a-f]{40}", start["git_commit"])
    text = corpus.read_text()
    n_tokens = len(text)
    assert start["data"] == {
        "path": str(corpus), "sha256": files.sha256_bytes(text.encode()), "n_tokens": n_tokens,
        "n_train": int(n_tokens * 0.95), "n_val": n_tokens - int(n_tokens * 0.95), "begin_of_text_id": None,
    }  # fmt: skip
    assert start["tokenizer"].startswith(f"char-{len(set(text))}-")
    assert start["loss_floor"] is None
    model = start["model"]
    assert (model["model_name"], model["source"], model["architecture_type"]) == (None, "scratch", "custom-transformer")
    assert model["n_parameters"] * 4 == model["size_bytes"]
    assert (start["device"], start["precision"], start["threads"]) == ("cpu", "fp32", torch.get_num_threads())
    assert start["versions"]["torch"] == torch.__version__


def test_the_state_of_a_checkpoint_says_where_it_stood(corpus: Path) -> None:
    run = train(corpus, gradient_accumulation_steps=2)
    state = checkpoint.load(at_step(run, 6)).state
    assert state["step"] == 6
    assert state["run_id"] == "r-1"
    assert state["data"]["position"] == 6 * 2 * 4
    assert state["data"]["path"] == str(corpus)
    assert state["threads"] == torch.get_num_threads()
    assert TrainingConfig.from_dict(state["config"]).to_dict() == run.config
    assert json.loads((at_step(run, 6) / "config.json").read_text())["model_type"] == "custom-transformer"


def test_settings_that_are_not_followed_are_told() -> None:
    assert ignored_settings(TrainingConfig(n_layers=3)) == []
    (message,) = ignored_settings(TrainingConfig(model_name="qwen", n_layers=3, dropout=0.5))
    assert message == "qwen has its own architecture; ignored: n_layers, dropout"
    (message,) = ignored_settings(TrainingConfig(model_name="qwen", tokenizer_override="char"))
    assert message.startswith("tokenizer_override: char is used in place of the model's own tokenizer")
    (message,) = ignored_settings(TrainingConfig(tokenizer_override="qwen"))
    assert message.startswith("tokenizer_override: qwen is used in place of the text's characters; losses are nats per")
    assert ignored_settings(TrainingConfig(tokenizer_override="qwen"), from_checkpoint=True) == []
    assert ignored_settings(TrainingConfig(tokenizer_override="char")) == [], "as without it"


# --- one at a time --------------------------------------------------------------------------------------------------


def test_a_name_that_is_taken_or_no_name_is_refused(corpus: Path) -> None:
    run = train(corpus, max_steps=1)
    before = run.log_path.read_bytes()
    with pytest.raises(
        RunError, match=r"runs/r-1 exists already; choose another --run-name, or go on with --resume r-1"
    ):
        train(corpus)
    assert run.log_path.read_bytes() == before
    for name in ("", "../x", "a/b", ".hidden", "x" * 65, "a b", "-x"):
        with pytest.raises(UsageError, match="run name"):
            train(corpus, name=name)


def test_two_that_start_one_name_at_once_do_not_share_a_folder(corpus: Path) -> None:
    first = lab.build(CONFIG, corpus, run_name="r-1")
    second = lab.build(CONFIG, corpus, run_name="r-1")
    lab.execute(first, [])
    with pytest.raises(RunError, match="exists already"):
        lab.execute(second, [])
    assert steps_in(Path("runs/r-1/log.jsonl")) == list(range(1, 9))


HOLD = """
import sys
from lmlab import files
with files.lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_in_a_runs_folder_is_refused(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(corpus)
    before = run.log_path.read_bytes()
    monkeypatch.setattr("lmlab.run_folder.LOCK_SECONDS", 0.1)
    command = [sys.executable, "-c", HOLD, str(run.folder / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert run.is_running()
        with pytest.raises(RunError, match=r"another process is training in .*r-1; stop it first"):
            lab.resume(at_step(run, 4), listeners=[], max_steps=9)
        assert process.stdin is not None
        process.stdin.close()
    assert run.log_path.read_bytes() == before
    assert checkpoint.steps(run.folder / "checkpoints") == [2, 4, 6, 8]
    assert not run.is_running()
    assert lab.resume(run.folder, listeners=[], max_steps=9).step == 9


def test_a_run_is_locked_while_it_trains_and_free_when_it_fails(corpus: Path) -> None:
    held: list[bool] = []

    def fail(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            with pytest.raises(TimeoutError), files.lock(Path("runs/r-1/run"), timeout=0):
                raise AssertionError("the lock is free")
            held.append(True)
            raise RuntimeError("a listener breaks")

    with pytest.raises(RuntimeError, match="a listener breaks"):
        lab.run(CONFIG, corpus, run_name="r-1", listeners=[fail])
    assert held == [True]
    with files.lock(Path("runs/r-1/run"), timeout=0):
        pass
    last = events.read(Path("runs/r-1/log.jsonl"))[-1]
    assert (last["event"], last["status"]) == ("run_end", "failed")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(number: int, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    expected = rf"r-1: its file system has no locks \({os.strerror(number)}\); choose a --runs-dir on another one"
    with pytest.raises(RunError, match=expected):
        train(corpus)


# --- back to an earlier step ----------------------------------------------------------------------------------------


def test_a_stop_before_the_first_step_is_kept_for_it(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = session.write_config

    def write_config(*given: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        real(*given)

    monkeypatch.setattr(session, "write_config", write_config)
    run = train(corpus)
    assert (run.status, run.step, run.stopped_by) == ("stopped", 0, signal.SIGINT)


def test_what_came_after_an_earlier_checkpoint_moves_aside(corpus: Path) -> None:
    run = train(corpus, eval_cadence=2)
    whole = run.log_path.read_bytes().splitlines()
    resumed = lab.resume(at_step(run, 4), listeners=[])
    assert resumed.folder == run.folder
    assert steps_in(run.log_path) == list(range(1, 9))
    assert steps_in(run.folder / "log.superseded-1.jsonl") == [5, 6, 7, 8]
    assert resumed.warnings == [
        f"went back to step 4: the checkpoints after it are in {run.folder / 'superseded-1'}, and what was logged after it "
        f"is in {run.folder / 'log.superseded-1.jsonl'}"
    ]
    kept = run.log_path.read_bytes().splitlines()
    n_kept = next(n for n, (a, b) in enumerate(zip(whole, kept, strict=False)) if a != b)
    assert (run.folder / "log.superseded-1.jsonl").read_bytes().splitlines() == whole[n_kept:]
    assert checkpoint.steps(run.folder / "checkpoints") == [2, 4, 6, 8]
    assert sorted(path.name for path in (run.folder / "superseded-1").iterdir()) == ["step-00000006", "step-00000008"]
    for step in (6, 8):  # the same run again: the same weights
        old, new = (checkpoint.load(folder).tensors("model") for folder in (
            run.folder / "superseded-1" / f"step-{step:08d}", at_step(run, step),
        ))  # fmt: skip
        assert all(torch.equal(old[name], new[name]) for name in old)
    lab.resume(at_step(run, 2), listeners=[], max_steps=5)
    assert steps_in(run.log_path) == [1, 2, 3, 4, 5]
    assert sorted(path.name for path in run.folder.glob("*superseded*")) == [
        "log.superseded-1.jsonl", "log.superseded-2.jsonl", "superseded-1", "superseded-2",
    ]  # fmt: skip
    read = events.read(run.log_path)
    assert sum(event["event"] == "eval" and event["step"] == 2 for event in read) == 1
    assert read[-1]["status"] == "completed"
    aside = run.folder / "superseded-1" / "step-00000008"
    with pytest.raises(RunError, match=r"was put aside when the run .*r-1 went back to an earlier step; .* --runs-dir"):
        lab.resume(aside, listeners=[], max_steps=9)
    elsewhere = lab.resume(aside, listeners=[], max_steps=9, runs_dir="back")
    assert (elsewhere.folder, steps_in(elsewhere.log_path)) == (Path("back/r-1").absolute(), [9])


def test_a_run_that_was_killed_after_its_checkpoint_logs_no_step_twice(corpus: Path) -> None:
    """What SIGKILL leaves: steps in the log beyond the newest checkpoint, a torn line, half a checkpoint."""
    run = train(corpus)
    for step in (6, 8):
        shutil.rmtree(at_step(run, step))
    content = run.log_path.read_bytes()
    run.log_path.write_bytes(content[: content.rindex(b'"step": 7') + 30])
    debris = run.folder / "checkpoints" / f".step-00000006.tmp-{os.getpid()}-0011aabb"
    debris.mkdir()
    (debris / "model.safetensors").write_bytes(b"half")
    (run.folder / ".log.jsonl.tmp-4194305-0011aabb").write_bytes(b"half")
    resumed = lab.resume(run.folder, listeners=[])
    assert resumed.status == "completed"
    (went_back,) = resumed.warnings
    assert went_back == f"went back to step 4: what was logged after it is in {run.folder / 'log.superseded-1.jsonl'}"
    assert steps_in(run.log_path) == list(range(1, 9))
    assert not list(run.folder.rglob(".*"))
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == [
        "step-00000002", "step-00000004", "step-00000006", "step-00000008",
    ]  # fmt: skip


def test_what_moved_aside_together_bears_one_number(corpus: Path) -> None:
    """Also after a kill, of which steps alone move aside."""
    run = train(corpus)
    shutil.rmtree(at_step(run, 8))
    lab.resume(run.folder, listeners=[])
    lab.resume(at_step(run, 4), listeners=[])
    lab.resume(at_step(run, 6), listeners=[])
    assert sorted(path.name for path in run.folder.glob("*superseded*")) == [
        "log.superseded-1.jsonl", "log.superseded-2.jsonl", "log.superseded-3.jsonl", "superseded-2", "superseded-3",
    ]  # fmt: skip
    assert steps_in(run.folder / "log.superseded-2.jsonl") == [5, 6, 7, 8]
    assert checkpoint.steps(run.folder / "superseded-2") == [6, 8]


def test_a_run_killed_before_its_first_line_leaves_its_name_free(corpus: Path) -> None:
    folder = Path("runs/r-1")
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "process.json", f".process.json.tmp-{os.getpid()}-0011aabb", "log.jsonl", "run.lock"):
        (folder / name).write_bytes(b"")
    assert train(corpus).status == "completed"
    other = Path("runs/r-2")
    other.mkdir()
    (other / "mine.txt").write_text("a folder of somebody's own")
    with pytest.raises(RunError, match="exists already"):
        train(corpus, name="r-2")
    assert [path.name for path in other.iterdir()] == ["mine.txt"]


def test_a_config_that_somebody_wrote_is_not_written_over(corpus: Path) -> None:
    folder = Path("experiments/e3")
    folder.mkdir(parents=True)
    text = "# my reasons\nlearning_rate: 1e-3\n"
    (folder / "config.yaml").write_text(text)
    for start in (lab.run, launch):
        with pytest.raises(
            RunError, match=r"experiments/e3 exists already, and no run is in it; choose another --run-name"
        ):
            start(CONFIG, corpus, run_name="e3", runs_dir="experiments")
    assert (folder / "config.yaml").read_text() == text
    assert os.listdir(folder) == ["config.yaml"]


def test_debris_under_our_own_process_number_goes_and_what_others_write_stays(corpus: Path) -> None:
    """In a container every start may have the same number."""
    run = train(corpus)
    debris = run.folder / f".config.yaml.tmp-{os.getpid()}-0011aabb"
    notes = run.folder / f".notes.json.tmp-{os.getpid()}-0011aabb"
    for path in (debris, notes):
        path.write_text("half")
    lab.resume(run.folder, listeners=[], max_steps=9)
    assert not debris.exists()
    assert notes.exists()  # notes are written without the run's lock


def test_a_run_killed_after_its_last_checkpoint_gets_its_last_words(corpus: Path) -> None:
    run = train(corpus, eval_cadence=5, max_steps=8, keep_checkpoints=1)  # the checkpoint is written before they are
    lines = run.log_path.read_bytes().splitlines(keepends=True)
    whole = [event["event"] for event in events.read(run.log_path)]
    assert whole[-5:] == ["step", "checkpoint", "eval", "sample", "run_end"]
    for left in range(1, 4):
        run.log_path.write_bytes(b"".join(lines[:-left]))
        (run.folder / "checkpoints" / "best").unlink(missing_ok=True)
        shutil.copytree(at_step(run, 8), at_step(run, 6), dirs_exist_ok=True)  # killed before it was pruned
        resumed = lab.resume(run.folder, listeners=[])
        assert (resumed.status, resumed.was_done) == ("completed", False)
        assert [e["event"] for e in events.read(run.log_path) if e["event"] != "run_start"] == whole[1:]
        assert checkpoint.steps(run.folder / "checkpoints") == [8]
        assert resumed.best_checkpoint == at_step(run, 8)
    assert lab.resume(run.folder, listeners=[]).was_done


# --- the best checkpoint over sessions ------------------------------------------------------------------------------


def write_evaluations(run: lab.Run, losses: dict[int, float]) -> None:
    """Put other validation losses into a run's log, as if the evaluations had come out so."""
    lines = []
    for event in events.read(run.log_path):
        if event["event"] == "eval" and event["step"] in losses:
            event["val_loss"] = losses[event["step"]]
        lines.append(events.encode(event))
    run.log_path.write_bytes(b"".join(lines))


def test_best_is_the_best_of_what_is_still_there(corpus: Path) -> None:
    run = train(corpus, eval_cadence=2)
    assert run.best_checkpoint == at_step(run, 8)
    write_evaluations(run, {2: 1.0, 4: 1.5, 6: 0.5, 8: 0.7})
    seen: list[Path | None] = []

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "run_start":
            seen.append(checkpoint.best(run.folder / "checkpoints"))

    lab.resume(at_step(run, 4), listeners=[look], max_steps=5)
    assert seen == [at_step(run, 2)]  # 6 and 8 moved aside, and 2 was better than 4
    assert checkpoint.best(run.folder / "checkpoints") == at_step(run, 2)  # step 5 came nowhere near 1.0
    (run.folder / "checkpoints" / "best").unlink()  # as if killed between saving and pointing
    lab.resume(run.folder, listeners=[look], max_steps=6, keep_checkpoints=1)
    assert seen[1] == at_step(run, 2)
    assert checkpoint.steps(run.folder / "checkpoints") == [2, 6]


# --- what goes wrong ------------------------------------------------------------------------------------------------


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes in the block: writes fail as on a full disk, after taking a part."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_log_that_can_grow_no_more_is_one_line_and_the_run_goes_on_later(corpus: Path) -> None:
    with ExitStack() as stack:

        def fill(event: dict[str, Any]) -> None:
            if event["event"] == "step" and event["step"] == 5:
                stack.enter_context(files_up_to(Path("runs/r-1/log.jsonl").stat().st_size + 40))

        with pytest.raises(
            RunError, match=r"cannot write the log .*log\.jsonl: File too large; free some space"
        ) as raised:
            lab.run(CONFIG, corpus, run_name="r-1", listeners=[fill])
    assert "--resume" in str(raised.value)
    log = Path("runs/r-1/log.jsonl")
    assert not log.read_bytes().endswith(b"\n")  # torn in the middle of a line
    assert steps_in(log) == [1, 2, 3, 4, 5]
    assert lab.resume("r-1", listeners=[]).status == "completed"
    assert steps_in(log) == list(range(1, 9))
    assert events.read(log).damaged == 0


def test_a_checkpoint_that_does_not_fit_is_one_line_and_the_older_ones_stay(corpus: Path) -> None:
    with ExitStack() as stack:

        def fill(event: dict[str, Any]) -> None:
            if event["event"] == "step" and event["step"] == 5:
                stack.enter_context(files_up_to(30_000))  # the log fits

        with pytest.raises(CheckpointError, match=r"cannot save the checkpoint .*step-00000006: .*too large") as raised:
            lab.run(CONFIG, corpus, run_name="r-1", listeners=[fill])
    assert "\n" not in str(raised.value)
    checkpoints = Path("runs/r-1/checkpoints")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000002", "step-00000004"]
    assert events.read(Path("runs/r-1/log.jsonl"))[-1]["status"] == "failed"
    assert lab.resume("r-1", listeners=[]).status == "completed"
    assert steps_in(Path("runs/r-1/log.jsonl")) == list(range(1, 9))


def test_a_file_where_the_runs_folder_should_be_is_one_line(corpus: Path) -> None:
    Path("runs").write_text("a file")
    with pytest.raises(
        RunError, match=r"cannot write to the run folder .*runs/r-1: Not a directory; .* choose another --runs-dir"
    ):
        train(corpus)


def test_a_folder_that_may_not_be_written_any_more_is_gone_on_with_in_a_copy(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another --runs-dir would help a new run alone: one that is resumed stays in its folder."""
    run, write = train(corpus), files.write_atomic

    def refuse(path: Path, data: bytes) -> None:
        if path.parent == run.folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        write(path, data)

    monkeypatch.setattr("lmlab.run_folder.write_atomic", refuse)
    with pytest.raises(
        RunError, match=r"denied; check the folder and its permissions, or copy it elsewhere and resume the"
    ):
        lab.resume(run.folder, max_steps=9, listeners=[])
    shutil.copytree(run.folder, "copied")
    assert lab.resume("copied", max_steps=9, listeners=[]).step == 9


def test_a_run_that_diverges_says_so_and_keeps_its_last_good_checkpoint(corpus: Path) -> None:
    with pytest.raises(DivergedError, match="the update was not made") as raised:
        train(corpus, learning_rate=100.0, optimizer="muon", max_steps=500, checkpoint_cadence=1, weight_decay=50.0)
    record = lab.Run(Path("runs/r-1"))
    assert record.status == "diverged"
    step = int(re.findall(r"of step (\d+) is", str(raised.value))[0])
    saved, refused = checkpoint.newest(record.folder / "checkpoints")
    assert (saved.step, refused) == (step - 1, [])
    assert all(bool(tensor.isfinite().all()) for tensor in saved.tensors("model").values())
    assert steps_in(record.log_path) == list(range(1, step))


def spoiled_after(corpus: Path, step: int, **changes: Any) -> lab.Run:
    """A run whose weights an update ruined: its loss was still a number."""
    trainer = lab.build({**CONFIG, **changes}, corpus, run_name="r-1")

    def spoil(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == step:
            next(trainer.model.parameters()).data.fill_(float("nan"))

    with pytest.raises(DivergedError):
        lab.execute(trainer, [spoil])
    assert trainer.folder is not None
    return lab.Run(trainer.folder)


def test_weights_that_an_evaluation_finds_ruined_are_not_what_a_run_goes_on_from(corpus: Path) -> None:
    run = spoiled_after(corpus, 4, eval_cadence=4)
    assert (run.status, run.step, checkpoint.steps(run.folder / "checkpoints")) == ("diverged", 4, [2])
    assert [(e["step"], e["val_loss"]) for e in events.read(run.log_path) if e["event"] == "eval"][1:] == [(4, "NaN")]
    resumed = lab.resume("r-1", learning_rate=1e-4, listeners=[])
    assert (resumed.status, resumed.best_checkpoint) == ("completed", at_step(run, 8))


def test_a_run_that_went_on_from_ruined_weights_says_to_go_back_further(corpus: Path) -> None:
    run = spoiled_after(corpus, 4)
    assert checkpoint.steps(run.folder / "checkpoints") == [2, 4]
    with pytest.raises(
        DivergedError, match="Go back to a checkpoint before this one, then lower learning_rate, or set grad_clip"
    ):
        lab.resume("r-1", learning_rate=1e-4, listeners=[])
    assert lab.resume(at_step(run, 2), learning_rate=1e-4, listeners=[]).status == "completed"


def test_a_run_that_went_on_since_it_was_looked_at_is_not_taken_back(tiny: dict[str, Any], corpus: Path) -> None:
    """As by two `--resume` at a time: the first one trains and ends while the second one still loads."""
    run = lab.run(tiny, corpus, run_name="r", listeners=[], max_steps=3)

    def meanwhile(_trainer: Any) -> None:
        lab.resume(run.folder, listeners=[], max_steps=6)

    with pytest.raises(RunError, match=r"another process went on with the run .* meanwhile; resume it again"):
        lab.resume(run.folder, listeners=[], max_steps=5, on_ready=meanwhile)
    assert checkpoint.steps(run.folder / "checkpoints")[-1] == 6
    assert not list(run.folder.glob("superseded-*"))


def test_checkpoints_behind_a_link_stay_on_their_disk(tiny: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    run = lab.run({**tiny, "checkpoint_cadence": 2}, corpus, run_name="r", listeners=[], max_steps=4)
    (tmp_path / "disk").mkdir()
    (run.folder / "checkpoints").rename(tmp_path / "disk" / "kept")
    (run.folder / "checkpoints").symlink_to(tmp_path / "disk" / "kept")
    lab.resume(run.folder / "checkpoints" / "step-00000002", runs_dir=run.folder.parent, listeners=[], max_steps=3)
    assert [path.name for path in (tmp_path / "disk" / "kept" / "superseded-1").iterdir()] == ["step-00000004"]
