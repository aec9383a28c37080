"""The resume proof: interrupted at any step and gone on with, a run is the uninterrupted run, bit for bit."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_config import TINY

import lmlab
from lmlab import checkpoint, devices, events, hub, lab
from lmlab.config import TrainingConfig
from lmlab.data import Batch
from lmlab.errors import CheckpointError, ConfigError, DataError, RunError, TokenizerError, UsageError
from lmlab.files import dump_json
from lmlab.optim import Muon, parts
from lmlab.proof import TIMINGS, differing_tensor
from lmlab.tokenizers import Tokenizer
from lmlab.trainer import Trainer

STEPS = 30
EVERYTHING = {
    **TINY, "precision": "fp32", "max_steps": STEPS, "dropout": 0.1, "lr_schedule": "cosine", "warmup_steps": 6,
    "lr_decay_steps": 28, "gradient_accumulation_steps": 3, "batch_size": 2, "eval_cadence": 4, "eval_batches": 2,
    "sampling_cadence": 5, "sampling_max_length": 20, "grad_clip": 0.5, "checkpoint_cadence": 1, "train_ratio": 0.9,
    "hooks": ["activation_stats:3", "attention_entropy:4", "weight_norms:7"], "early_stopping_patience": 50,
}  # fmt: skip
Told = list[dict[str, Any]]


def told_after(folder: Path, step: int) -> Told:
    """What a run's log says of the steps after `step`, but for clocks, paths, and where sessions begin and end."""
    session = ("run_start", "run_end", "checkpoint")
    told = [event for event in events.read(folder / "log.jsonl") if event["event"] not in session]
    told = [event for event in told if not event.get("message", "").startswith("went back to step ")]
    return [{k: v for k, v in event.items() if k not in TIMINGS} for event in told if event["step"] > step]


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """The windows that every step was trained on, newest session last, by step."""
    seen: dict[int, list[int]] = {}
    real = Trainer.training_step

    def noting(self: Trainer, batch: Batch) -> float:
        seen[self.step + 1] = batch.windows_B.tolist()
        return real(self, batch)

    monkeypatch.setattr(Trainer, "training_step", noting)
    return seen


def interrupted_at(straight: Path, step: int, folder: Path) -> Path:
    """A copy of a run as it was after `step`: its log up to there, and that one checkpoint."""
    (folder / "checkpoints").mkdir(parents=True)
    name = checkpoint.step_folder(Path(), step).name
    shutil.copytree(straight / "checkpoints" / name, folder / "checkpoints" / name)
    lines = (straight / "log.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line).get("step", 0) <= step]
    (folder / "log.jsonl").write_bytes(b"".join(kept))
    return folder


def check_every_step(
    config: dict[str, Any], data: Path | str, at: range, windows: dict[int, list[int]], tmp_path: Path
) -> None:
    """Train straight, then from every checkpoint of `at` to the end, and compare everything that came after it."""
    straight = lab.run(config, data, run_name="straight", runs_dir=tmp_path, listeners=[]).folder
    steps = int(config["max_steps"])
    expected_windows = dict(windows)
    expected = checkpoint.load(straight / "checkpoints" / f"step-{steps:08d}")
    for step in at:
        folder = interrupted_at(straight, step, tmp_path / f"at-{step}")
        windows.clear()
        torch.manual_seed(step)  # what the resuming process has drawn before is of no account
        resumed = lab.resume(folder, runs_dir=tmp_path, listeners=[], checkpoint_cadence=None)
        assert resumed.status == "completed"
        assert windows == {k: v for k, v in expected_windows.items() if k > step}
        assert told_after(folder, step) == told_after(straight, step)
        assert differing_tensor(expected, checkpoint.load(folder / "checkpoints" / f"step-{steps:08d}")) is None
        shutil.rmtree(folder)


def test_interrupted_at_every_step_of_thirty(corpus: Path, tmp_path: Path, windows: dict[int, list[int]]) -> None:
    check_every_step(EVERYTHING, corpus, range(1, STEPS), windows, tmp_path)
    told = told_after(tmp_path / "straight", 0)
    counts = {name: sum(event["event"] == name for event in told) for name in ("step", "eval", "sample", "hook")}
    assert counts == {"step": 30, "eval": 8, "sample": 6, "hook": 10 + 7 + 4}


def test_a_decay_that_resume_leaves_open_ends_where_it_did(corpus: Path, tmp_path: Path) -> None:
    config = {
        **EVERYTHING,
        "lr_schedule": "linear",
        "warmup_steps": 1,
        "max_steps": 3,
        "lr_decay_steps": 6,
        "hooks": [],
    }
    run = lab.run(config, corpus, run_name="first", runs_dir=tmp_path, listeners=[])
    run = run.resume(max_steps=8, lr_decay_steps=None, listeners=[])
    assert run.config["lr_decay_steps"] == 6, "a run begun anew with this config falls alike"
    rates = run.series("learning_rate")[1]
    assert rates[5] < rates[4]
    assert rates[5] == rates[6] == rates[7]


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "muon", "lr_schedule": "linear"},
        {"precision": "bf16", "activation_checkpointing": True},
        {"lr_decay_steps": None, "early_stopping_patience": 3, "learning_rate": 0.1, "grad_clip": None},
    ],
    ids=["muon", "bf16", "early stopping"],
)
def test_interrupted_with_other_settings(
    changes: dict[str, Any], corpus: Path, tmp_path: Path, windows: dict[int, list[int]]
) -> None:
    config = {**EVERYTHING, "max_steps": 12, "lr_decay_steps": 11, "hooks": [], **changes}
    if "early_stopping_patience" in changes:  # ends by itself, at the same step in both
        config |= {"eval_cadence": 1, "max_steps": 40}
        ended = lab.run(config, corpus, run_name="first", runs_dir=tmp_path, listeners=[]).step
        assert 3 < ended < 40
        straight = tmp_path / "first"
        for step in (1, ended // 2, ended - 1):
            folder = interrupted_at(straight, step, tmp_path / f"at-{step}")
            assert lab.resume(folder, runs_dir=tmp_path, listeners=[]).step == ended
            assert told_after(folder, step) == told_after(straight, step)
        return
    check_every_step(config, corpus, range(1, 12, 3), windows, tmp_path)


@pytest.mark.parametrize(("keep", "beside"), [(None, False), (1, True)])
def test_with_early_stopping_an_interrupted_run_saves_the_same_as_better(
    keep: int | None, beside: bool, corpus: Path, tmp_path: Path
) -> None:
    config = {
        **TINY, "max_steps": 40, "learning_rate": 0.3, "warmup_steps": 40, "dropout": 0.1, "checkpoint_cadence": None,
        "keep_checkpoints": keep, "eval_cadence": 2, "eval_batches": 2, "early_stopping_patience": 2,
        "async_checkpoints": beside,
    }  # fmt: skip

    def saved(run: lab.Run) -> tuple[list[int], Path | None]:
        return checkpoint.steps(run.folder / "checkpoints"), run.best_checkpoint and Path(run.best_checkpoint.name)

    straight = lab.run(config, corpus, run_name="straight", runs_dir=tmp_path, listeners=[])
    kept, best = saved(straight)
    losses = {event["step"]: event["val_loss"] for event in told_after(straight.folder, 0) if event["event"] == "eval"}
    lowest = min(losses, key=losses.__getitem__)
    assert best == checkpoint.step_folder(Path(), lowest)
    assert 2 < lowest < straight.step < 40
    for step in (1, lowest - 1, lowest, lowest + 1):

        def stop(event: dict[str, Any], at: int = step) -> None:
            if event["event"] == "step" and event["step"] == at:
                signal.raise_signal(signal.SIGTERM)

        run = lab.run(config, corpus, run_name=f"at-{step}", runs_dir=tmp_path, listeners=[stop])
        assert run.step == step
        run = run.resume(listeners=[])
        stopped = {step} - set(kept)
        assert sorted(set(saved(run)[0]) - stopped) == kept
        assert saved(run)[1] == best
        assert told_after(run.folder, 0) == told_after(straight.folder, 0)


def test_a_fine_tuned_qwen_interrupted_at_every_step(tmp_path: Path, windows: dict[int, list[int]]) -> None:
    """Documents packed into windows, tied weights, and a tokenizer with an end-of-text token, too."""
    hub.import_model(str(tiny_models.make(tmp_path / "source")), name="tiny-qwen")
    lines = [json.dumps({"text": tiny_models.text(n)}) for n in range(20, 120, 3)]
    Path("documents.jsonl").write_text("\n".join(lines))
    config = {**EVERYTHING, "model_name": "tiny-qwen", "max_steps": 10, "lr_decay_steps": 9, "sampling_prompt": "the"}
    check_every_step(config, "documents.jsonl", range(1, 10), windows, tmp_path)
    start = events.read(tmp_path / "straight" / "log.jsonl")[0]
    assert (start["kind"], start["model"]["architecture_type"]) == ("fine-tune", "qwen")


def test_a_run_made_longer_is_the_run_that_was_long_from_the_start(corpus: Path, tmp_path: Path) -> None:
    """The schedule ends where it would have, and what ended the short run leaves no trace in the long one."""
    config = {**EVERYTHING, "lr_decay_steps": 10, "warmup_steps": 2, "checkpoint_cadence": None}
    long = lab.run({**config, "max_steps": 10}, corpus, run_name="long", runs_dir=tmp_path, listeners=[])
    short = lab.run({**config, "max_steps": 3}, corpus, run_name="short", runs_dir=tmp_path, listeners=[])
    longer = short.resume(max_steps=7, listeners=[]).resume(max_steps=10, listeners=[])
    assert longer.folder == short.folder
    assert longer.run_id == "short"
    assert told_after(short.folder, 7) == told_after(long.folder, 7)
    ends = [checkpoint.load(run.folder / "checkpoints" / "step-00000010") for run in (long, longer)]
    assert differing_tensor(*ends) is None
    kinds = [event["kind"] for event in events.read(short.folder / "log.jsonl") if event["event"] == "run_start"]
    assert kinds == ["new", "resumed", "resumed"]
    steps = [event["step"] for event in events.read(short.folder / "log.jsonl") if event["event"] == "step"]
    assert steps == list(range(1, 11))


def test_without_decay_steps_the_schedule_ends_with_the_first_start(corpus: Path, tmp_path: Path) -> None:
    config = {**TINY, "lr_schedule": "linear", "learning_rate": 1.0e-3, "max_steps": 4}
    run = lab.run(config, corpus, run_name="r", runs_dir=tmp_path, listeners=[]).resume(max_steps=6, listeners=[])
    rates = [event["learning_rate"] for event in events.read(run.log_path) if event["event"] == "step"]
    assert rates[3:] == pytest.approx([1e-4] * 3)


def test_what_is_advised_where_the_warmup_reaches_beyond_the_decay_works_on_resume(
    corpus: Path, tmp_path: Path
) -> None:
    config = {**TINY, "lr_schedule": "linear", "lr_decay_steps": 10, "max_steps": 3}
    run = lab.run(config, corpus, run_name="r", runs_dir=tmp_path, listeners=[])
    for also in ({}, {"lr_decay_steps": None}):  # which leaves it as it is
        with pytest.raises(ConfigError) as caught:
            run.resume(max_steps=4, warmup_steps=11, listeners=[], **also)
        advice = "lr_decay_steps=10 must be above warmup_steps=11; raise it, or lower warmup_steps"
        assert str(caught.value) == advice
    assert run.resume(max_steps=4, warmup_steps=11, lr_decay_steps=12, listeners=[]).status == "completed"
    assert run.resume(max_steps=5, warmup_steps=2, lr_decay_steps=10, listeners=[]).status == "completed"


def test_a_decay_that_is_over_is_told_unless_it_was_planned(corpus: Path, tmp_path: Path) -> None:
    falling = {**TINY, "max_steps": 3, "lr_schedule": "cosine"}

    def told(**changes: Any) -> list[str]:
        run = lab.resume("falling", listeners=[], **changes)
        last = max(n for n, event in enumerate(events.read(run.log_path)) if event["event"] == "run_start")
        return [e["message"] for e in events.read(run.log_path)[last:] if e["event"] == "warning"]

    run = lab.run({**falling, "warmup_steps": 5}, corpus, run_name="falling", listeners=[])
    assert told(max_steps=5) == []  # all of it warming up
    assert told(max_steps=9) == [
        "the decay of lr_schedule=cosine ended at step 3: from step 6 on, the learning rate stays at a tenth; "
        "--set lr_decay_steps=9 lets it fall to the end of the run instead"
    ]
    assert run.refresh()
    assert run.series("learning_rate")[1][5:].tolist() == pytest.approx([falling["learning_rate"] / 10] * 4)
    assert len(told(max_steps=10)) == 1
    assert told(max_steps=12, lr_decay_steps=12) == []
    shutil.rmtree(run.folder)
    run = lab.run({**falling, "max_steps": 6, "lr_decay_steps": 2}, corpus, run_name="falling", listeners=[])
    shutil.rmtree(run.folder / "checkpoints" / "step-00000006")
    assert [
        message for message in told() if "the decay of" in message
    ] == []  # interrupted on a plateau that it was given
    assert len(told(max_steps=8)) == 1
    assert told(max_steps=9, lr_schedule="constant") == []


def test_what_listeners_draw_does_not_reach_the_run(corpus: Path, tmp_path: Path) -> None:
    config = {**EVERYTHING, "max_steps": 6, "checkpoint_cadence": 3}
    quiet = lab.run(config, corpus, run_name="quiet", runs_dir=tmp_path, listeners=[])

    def noisy(_: dict[str, Any]) -> None:
        torch.rand(7)
        torch.manual_seed(3)

    loud = lab.run(config, corpus, run_name="loud", runs_dir=tmp_path, listeners=[noisy])
    assert told_after(loud.folder, -1) == told_after(quiet.folder, -1)
    resumed = lab.resume(loud.folder / "checkpoints" / "step-00000003", runs_dir=tmp_path, listeners=[noisy])
    assert told_after(resumed.folder, -1) == told_after(quiet.folder, -1)


def test_a_drawn_seed_is_logged_and_repeats_the_run(corpus: Path, tmp_path: Path) -> None:
    config = {**TINY, "seed": None, "dropout": 0.1}
    first = lab.run(config, corpus, run_name="first", runs_dir=tmp_path, listeners=[])
    other = lab.run(config, corpus, run_name="other", runs_dir=tmp_path, listeners=[])
    seed = events.read(first.log_path)[0]["seed"]
    assert isinstance(seed, int)
    assert seed != events.read(other.log_path)[0]["seed"]
    again = lab.run({**config, "seed": seed}, corpus, run_name="again", runs_dir=tmp_path, listeners=[])
    assert told_after(again.folder, 0) == told_after(first.folder, 0)
    assert told_after(other.folder, 0) != told_after(first.folder, 0)
    resumed = lab.resume(first.folder / "checkpoints" / "step-00000003", runs_dir=tmp_path, listeners=[], seed=None)
    assert told_after(resumed.folder, 0) == told_after(again.folder, 0)
    assert events.read(resumed.log_path)[-1]["status"] == "completed"
    assert [e["seed"] for e in events.read(resumed.log_path) if e["event"] == "run_start"] == [seed, seed]


def test_the_threads_of_the_run_are_taken_up_again(corpus: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run = lab.run(TINY, corpus, run_name="r", runs_dir=tmp_path, listeners=[])
    torch.set_num_threads(2)
    run.resume(max_steps=8, listeners=[])
    assert torch.get_num_threads() == 2  # what comes next is another run
    starts = [event for event in events.read(run.log_path) if event["event"] == "run_start"]
    assert [start["threads"] for start in starts] == [1, 1]


def test_the_precision_of_the_run_is_taken_up_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fast in (True, False):  # as on another machine
        monkeypatch.setattr(devices, "has_fast_bf16", lambda _, fast=fast: fast)
        if fast:
            run = lab.run({**TINY, "max_steps": 2, "optimizer": "muon"}, corpus, run_name="moved", listeners=[])
        else:
            trainer = Trainer.from_checkpoint(run.folder / "checkpoints" / "step-00000002")
            (muon,) = (part for part in parts(trainer.optimizer) if isinstance(part, Muon))
            assert muon.dtype == torch.bfloat16
            lab.resume("moved", max_steps=3, listeners=[])
    starts = [
        event for event in events.read(tmp_path / "runs" / "moved" / "log.jsonl") if event["event"] == "run_start"
    ]
    assert [start["precision"] for start in starts] == ["bf16", "bf16"]


def test_a_precision_left_to_the_machine_on_resume_is_the_machine_s(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_fast_bf16", lambda _: True)
    lab.run({**TINY, "precision": "fp32", "max_steps": 1}, corpus, run_name="r", listeners=[])
    for steps, changes, expected in (
        (2, {}, "fp32"), (3, {"precision": "auto"}, "bf16"), (4, {}, "bf16"), (5, {"precision": "fp32"}, "fp32"),
    ):  # fmt: skip
        run = lab.resume("r", max_steps=steps, listeners=[], **changes)
        monkeypatch.setattr(devices, "has_fast_bf16", lambda _, fast=steps < 3: fast)  # another machine, in the end
        assert run.start["precision"] == expected


def test_two_processes_write_the_same_log(lab_process: Callable[..., Any], tiny_yaml: Path, corpus: Path) -> None:
    logs = []
    for name in ("one", "other"):
        arguments = ("--config", tiny_yaml, "--data", corpus, "--run-name", name, "--set", "eval_cadence=2")
        done = lab_process(*arguments, "--set", "dropout=0.2", "--set", "sampling_cadence=3")
        assert done.returncode == 0, done.stderr
        read = events.read(Path("runs") / name / "log.jsonl")
        own = TIMINGS | {"git_commit", "git_dirty"}  # somebody may commit meanwhile
        logs.append([{k: v for k, v in event.items() if k not in own} for event in read])
    assert logs[0] == logs[1]
    assert [event["event"] for event in logs[0]].count("step") == 6
    ends = [checkpoint.load(Path("runs") / name / "checkpoints" / "step-00000006") for name in ("one", "other")]
    assert differing_tensor(*ends) is None


# --- what may change on resume, and what may not --------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A run of six steps with checkpoints at 3 and 6; tests copy it."""
    runs = tmp_path_factory.mktemp("runs")
    data = runs / "corpus.txt"
    shutil.copy(corpus, data)
    return lab.run(TINY, data, run_name="r-1", runs_dir=runs, listeners=[]).folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(finished, tmp_path / "runs" / "r-1")
    return tmp_path / "runs" / "r-1"


@pytest.mark.parametrize(
    ("name", "value", "before"),
    [
        ("n_layers", 3, 2), ("d_model", 64, 32), ("n_heads", 4, 2), ("d_ff", 32, 64), ("dropout", 0.5, 0.1),
        ("max_seq_len", 32, 16), ("train_ratio", 0.5, 0.95), ("seed", 8, 7), ("optimizer", "muon", "adamw"),
        ("tokenizer_override", "char", None), ("resize_embeddings", True, False), ("model_name", "other", None),
    ],
)  # fmt: skip
def test_what_contradicts_the_checkpoint_is_refused_with_both_values(
    run: Path, name: str, value: object, before: object
) -> None:
    content = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UsageError) as raised:
        lab.resume(run, listeners=[], max_steps=9, **{name: value})
    assert f"{name}={value} contradicts the checkpoint {run}" in str(raised.value)
    assert f"which has {name}={before}" in str(raised.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == content
    Path("changes.yaml").write_text(f"{name}: {json.dumps(value)}\n")
    with pytest.raises(UsageError, match=f"{name}=.* contradicts"):
        lab.resume(run, listeners=[], config="changes.yaml")
    same = lab.resume(run, listeners=[], max_steps=7, **{name: before})  # to say what is so is no contradiction
    assert same.status == "completed"


def test_what_the_user_names_wins_and_is_logged(run: Path) -> None:
    Path("changes.yaml").write_text("learning_rate: 0.001\neval_cadence: 2\nmax_steps: 7\n")
    resumed = lab.resume(run, listeners=[], config="changes.yaml", max_steps=8, batch_size=2, hooks=["weight_norms:1"])
    starts = [event for event in events.read(run / "log.jsonl") if event["event"] == "run_start"]
    config = starts[-1]["config"]
    assert (config["learning_rate"], config["eval_cadence"], config["max_steps"], config["batch_size"]) == (
        1e-3,
        2,
        8,
        2,
    )
    assert config["d_model"] == 32
    assert starts[-1]["kind"] == "resumed"
    assert starts[-1]["resumed_from"] == str(run / "checkpoints" / "step-00000006")
    assert resumed.step == 8
    told = told_after(run, 6)
    assert {event["event"] for event in told} == {"step", "eval", "hook", "sample"}
    assert [e["learning_rate"] for e in told if e["event"] == "step"] == [1e-3, 1e-3]
    assert "learning_rate: 0.001" in (run / "config.yaml").read_text()
    saved = checkpoint.load(run / "checkpoints" / "step-00000008")
    assert saved.state["data"]["position"] == 6 * 4 + 2 * 2


def test_a_run_that_is_done_is_left_as_it_is(run: Path) -> None:
    before = (run / "log.jsonl").read_bytes()
    for steps in (None, 6, 4):
        changes = {} if steps is None else {"max_steps": steps}
        done = lab.resume(run, listeners=[], **changes)
        assert done.was_done
        assert done.status == "completed"
    assert (run / "log.jsonl").read_bytes() == before


def test_a_stopped_run_whose_end_is_moved_to_where_it_stands_is_brought_to_its_end(
    corpus: Path, tmp_path: Path
) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 5:
            os.kill(os.getpid(), signal.SIGINT)

    settings = {**TINY, "max_steps": 100, "eval_cadence": 4}
    run = lab.run(settings, corpus, run_name="stopped", listeners=[stop])
    assert (run.status, run.step) == ("stopped", 5)
    run = lab.resume("stopped", max_steps=5, listeners=[])
    assert (run.status, run.was_done, run.max_steps) == ("completed", False, 5)
    told = [event["event"] for event in events.read(run.log_path)]
    last = len(told) - 1 - told[::-1].index("run_start")
    assert told[last:] == ["run_start", "eval", "sample", "run_end"]
    assert TrainingConfig.from_yaml(run.folder / "config.yaml").max_steps == 5
    assert lab.resume("stopped", max_steps=5, listeners=[]).was_done


def test_where_nothing_is_left_to_train_what_came_after_the_checkpoint_stays(
    run: Path, lab_command: Callable[..., Any]
) -> None:
    """Of a run that was made longer and then killed, after its next checkpoint and before it."""

    def check_left(where: object, step: int, *given: object) -> None:
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        done = lab_command("--resume", where, *given)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"the checkpoint of the run r-1 is at step {step} of {step}; raise --max-steps to go on\n"
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    lab.resume(run, max_steps=10, checkpoint_cadence=4, listeners=[])
    lines = (run / "log.jsonl").read_bytes().splitlines(keepends=True)
    killed = [json.loads(line).get("step") for line in lines].index(10)
    (run / "log.jsonl").write_bytes(b"".join(lines[:killed]))
    shutil.rmtree(run / "checkpoints" / "step-00000010")
    check_left(run / "checkpoints" / "step-00000006", 6)
    check_left(run / "checkpoints" / "step-00000003", 3, "--max-steps", 3)
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    check_left("r-1", 6)
    assert lab.resume("r-1", max_steps=10, listeners=[]).step == 10


@pytest.mark.parametrize("named", ["folder", "id", "checkpoint", "relative checkpoint", "relative run"])
def test_a_checkpoint_a_run_folder_and_a_run_id_all_lead_on(
    run: Path, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where: dict[str, Path | str] = {
        "folder": run, "id": "r-1", "checkpoint": run / "checkpoints" / "step-00000006",
        "relative checkpoint": "step-00000006", "relative run": ".",
    }  # fmt: skip
    if named.startswith("relative"):
        monkeypatch.chdir(run / "checkpoints" if named.endswith("checkpoint") else run)
    resumed = lab.resume(where[named], listeners=[], max_steps=7)
    assert resumed.folder.resolve() == run
    assert [event["step"] for event in events.read(run / "log.jsonl") if event["event"] == "step"] == list(range(1, 8))


def test_a_folder_that_bears_the_name_of_a_run_does_not_hide_it(run: Path, tmp_path: Path) -> None:
    (tmp_path / "r-1").mkdir()  # the texts, say
    assert lab.resume("r-1", listeners=[], max_steps=7).folder == run
    shutil.rmtree(tmp_path / "r-1")
    (tmp_path / "r-1").write_text("or a file")
    assert lab.resume("r-1", listeners=[], max_steps=8).step == 8


def test_a_bare_name_is_the_run_in_the_runs_folder_for_every_command(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lab_command: Callable[..., Any]
) -> None:
    """Also where the current folder has a run of that name: what has a separator is a path."""
    archive, backup = tmp_path / "archive", tmp_path / "backup"
    for folder in (archive, backup):
        shutil.copytree(run, folder / "r-1")
    monkeypatch.chdir(archive)
    assert lab.resume("r-1", listeners=[], max_steps=7).folder == run
    assert lab.resume("r-1", listeners=[], max_steps=8, runs_dir="../backup").folder.resolve() == backup / "r-1"
    assert lab.resume("./r-1", listeners=[], max_steps=9).folder.resolve() == archive / "r-1"
    assert [lab.Run(folder / "r-1").step for folder in (run.parent, backup, archive)] == [7, 8, 9]
    assert lab.register("r-1", "first").step == 7
    assert lab.register("r-1", "second", runs_dir="../backup").step == 8
    assert lab_command("delete-run", "r-1", "--yes", cwd=archive).returncode == 0
    assert [folder.exists() for folder in (run, archive / "r-1", backup / "r-1")] == [False, True, True]
    assert lab.resume("r-1", listeners=[], max_steps=10).folder.resolve() == archive / "r-1", "there is no other one"


def test_a_run_whose_data_has_no_name_in_utf8_is_saved_and_goes_on(corpus: Path, tmp_path: Path) -> None:
    data = tmp_path / os.fsdecode(b"caf\xe9.txt")
    shutil.copy(corpus, data)
    run = lab.run(TINY, data, run_name="r-2", listeners=[])
    assert run.newest_checkpoint is not None
    assert lab.resume("r-2", listeners=[], max_steps=7).step == 7


def test_a_run_that_others_went_on_with_gives_its_newest_model(run: Path, corpus: Path) -> None:
    held = lab.run(TINY, corpus, run_name="r-2", listeners=[])
    before = held.load()[0].model.embedding.weight.clone()
    assert torch.equal(held.load()[0].model.embedding.weight, before)
    lab.resume("r-2", listeners=[], max_steps=9)
    newest = lab.Run(held.folder).load()[0].model.embedding.weight
    assert not torch.equal(newest, before)
    assert torch.equal(held.load()[0].model.embedding.weight, newest)


def test_the_folder_of_its_checkpoints_stands_for_a_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step, where in enumerate((run / "checkpoints", f"{run}/checkpoints/"), 7):
        assert (lab.resume(where, listeners=[], max_steps=step).folder, lab.Run(run).step) == (run, step)
    monkeypatch.chdir(run)
    assert lab.resume("checkpoints", listeners=[], max_steps=9).folder == run
    monkeypatch.chdir(run / "checkpoints")
    assert lab.resume(".", listeners=[], max_steps=10).folder == run
    shutil.rmtree(run / "checkpoints" / "step-00000010")
    shutil.copytree(run / "checkpoints" / "step-00000009", run.parent / "checkpoints")  # a copy of that name
    with pytest.raises(RunError, match="is a copy outside of its run"):
        lab.resume(run.parent / "checkpoints", listeners=[])


def test_a_run_that_another_process_took_to_the_same_step_gives_its_newest_model(
    lab_process: Callable[..., Any], corpus: Path
) -> None:
    held = lab.run(TINY, corpus, run_name="r-2", listeners=[])
    before = held.load()[0].model.embedding.weight.clone()
    done = lab_process("--resume", held.folder / "checkpoints" / "step-00000003", "--set", "learning_rate=0.05")
    assert done.returncode == 0, done.stderr
    newest = lab.Run(held.folder).load()[0].model.embedding.weight
    assert not torch.equal(newest, before)
    assert torch.equal(held.load()[0].model.embedding.weight, newest)


def test_what_cannot_be_resumed_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint or run at nowhere; give a checkpoint folder"):
        lab.resume("nowhere", listeners=[])
    with pytest.raises(CheckpointError, match=r"log\.jsonl is a file, not a checkpoint"):
        lab.resume(run / "log.jsonl", listeners=[])
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"notes\.txt is a file, not a checkpoint"):
        lab.resume("notes.txt", listeners=[])
    for here in (tmp_path, "."):  # and not the runs folder
        with pytest.raises(
            CheckpointError, match=f"{tmp_path} is no complete checkpoint: .*; name a run, or a folder step-"
        ):
            lab.resume(here, listeners=[])
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError, match="has no checkpoints; start it again"):
        lab.resume(run, listeners=[])
    (run / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="the run saved none"):
        lab.resume(run, listeners=[])


# --- moved data, moved runs, damaged checkpoints --------------------------------------------------------------------


def test_data_that_moved_is_found_with_data_and_other_text_is_refused(run: Path, corpus: Path, tmp_path: Path) -> None:
    state = json.loads((run / "checkpoints" / "step-00000006" / "state.json").read_text())
    original = Path(state["data"]["path"])
    moved = tmp_path / "moved.txt"
    original.rename(moved)
    try:
        with pytest.raises(DataError, match=r"the run's data cannot be read again: .*say where it is now with --data"):
            lab.resume(run, listeners=[], max_steps=7)
        original.write_text(corpus.read_text().replace("cat", "cow"))
        with pytest.raises(DataError) as raised:
            lab.resume(run, listeners=[], max_steps=7)
        assert "is not the text that the run was trained on" in str(raised.value)
        assert state["data"]["sha256"][:12] in str(raised.value)
        with pytest.raises(DataError, match=r"no data at .*none\.txt"):
            lab.resume(run, listeners=[], max_steps=7, data="none.txt")
        lab.resume(run, listeners=[], max_steps=7, data=moved)
        start = [event for event in events.read(run / "log.jsonl") if event["event"] == "run_start"][-1]
        assert start["data"]["path"] == str(moved)
        assert start["data"]["sha256"] == state["data"]["sha256"]
        lab.resume(run, listeners=[], max_steps=8)  # and is remembered
    finally:
        shutil.copy(corpus, original)


def test_a_run_on_a_linked_jsonl_goes_on_and_branches(corpus: Path, tmp_path: Path) -> None:
    """As datasets lie in the cache of Hugging Face: the file that holds the text has no ending."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    lines = [json.dumps({"text": line}) + "\n" for line in corpus.read_text().splitlines()]
    (tmp_path / "blobs" / "0123abcd").write_text("".join(lines))
    data = tmp_path / "snapshot" / "train.jsonl"
    data.symlink_to("../blobs/0123abcd")
    run = lab.run(TINY, data, run_name="linked", listeners=[])
    assert run.start["data"]["path"] == str(data)
    assert run.resume(max_steps=7, listeners=[]).step == 7
    assert lab.branch("linked", "other", listeners=[]).start["data"] == run.start["data"]


def test_a_run_goes_on_where_it_was_moved_to(run: Path, tmp_path: Path) -> None:
    home = tmp_path / "archive" / "renamed"
    home.parent.mkdir()
    run.rename(home)
    resumed = lab.resume(home, listeners=[], max_steps=7)
    assert resumed.folder == home
    assert not run.exists()
    assert {event["run_id"] for event in events.read(home / "log.jsonl")} == {"r-1"}
    assert checkpoint.steps(home / "checkpoints") == [3, 6, 7]


def test_a_copied_checkpoint_goes_on_in_a_folder_of_the_same_id_unless_that_is_there(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoints" / "step-00000003", tmp_path / "copy")
    with pytest.raises(RunError, match=r"is a copy outside of its run, and .*r-1 exists; resume that run instead"):
        lab.resume(tmp_path / "copy", listeners=[])
    run.rename(tmp_path / "away")
    resumed = lab.resume(tmp_path / "copy", listeners=[])
    assert resumed.folder == run
    assert [event["step"] for event in events.read(run / "log.jsonl") if event["event"] == "step"] == [4, 5, 6]
    assert told_after(run, 3) == told_after(tmp_path / "away", 3)


def test_a_link_to_a_checkpoint_leads_on_in_its_own_run(run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "r-1"
    shutil.copytree(run, elsewhere)
    (tmp_path / "third").symlink_to(elsewhere / "checkpoints" / "step-00000003")
    assert lab.resume("third", listeners=[], max_steps=4).folder == elsewhere
    shutil.move(elsewhere / "checkpoints", tmp_path / "disk")
    (elsewhere / "checkpoints").symlink_to(tmp_path / "disk")
    (elsewhere / "checkpoints" / "step-00000003").rename(tmp_path / "moved")
    (elsewhere / "checkpoints" / "step-00000003").symlink_to(tmp_path / "moved")
    step = elsewhere / "checkpoints" / "step-00000003"
    assert lab.resume(step, listeners=[], max_steps=5).folder == elsewhere
    assert checkpoint.steps(run / "checkpoints") == [3, 6]


def test_an_evaluation_of_another_part_of_the_text_begins_anew_what_is_counted(corpus: Path) -> None:
    config = {**TINY, "eval_cadence": 1, "eval_batches": 2, "early_stopping_patience": 50}
    run = lab.run(config, corpus, run_name="r", listeners=[])
    same = {"batch_size": config["batch_size"] // 2, "eval_batches": 4, "gradient_accumulation_steps": 2}
    for changes, warned in ((same, False), ({"eval_batches": 1}, True)):
        run = lab.resume("r", max_steps=lab.Run(run.folder).step + 1, listeners=[], **changes)
        messages = [event["message"] for event in events.read(run.folder / "log.jsonl") if event["event"] == "warning"]
        assert any("another part of the text" in message for message in messages) == warned
    state = checkpoint.load(run.newest_checkpoint).state
    assert state["best_val_loss"] == run.last("val_loss")


def test_a_first_evaluation_is_compared_to_none(run: Path) -> None:
    resumed = lab.resume(run, max_steps=8, eval_cadence=1, eval_batches=1, listeners=[])
    assert resumed.last("val_loss") is not None
    assert resumed.warnings == []
    resumed = lab.resume(run, max_steps=9, eval_cadence=None, listeners=[])
    resumed = lab.resume(run, max_steps=10, eval_cadence=1, eval_batches=2, listeners=[])
    (message,) = resumed.warnings
    assert "another part of the text" in message


def test_a_run_whose_log_was_left_behind_goes_on(run: Path) -> None:
    (run / "log.jsonl").unlink()
    (run / "config.yaml").unlink()
    assert [each.folder for each in lmlab.runs()] == [run]
    resumed = lab.resume(run, listeners=[], max_steps=7)
    assert (resumed.folder, resumed.step, resumed.status) == (run, 7, "completed")


def test_a_run_made_by_hand_goes_on(corpus: Path) -> None:
    trainer = lab.build(TINY, corpus, run_name="by-hand")
    trainer.fit()
    assert [each.run_id for each in lmlab.runs()] == ["by-hand"]
    resumed = lab.resume("by-hand", listeners=[], max_steps=7)
    assert (resumed.folder, resumed.step) == (trainer.folder, 7)


def test_a_copied_checkpoint_is_saved_in_its_new_folder_before_the_first_step(run: Path, tmp_path: Path) -> None:
    run.rename(tmp_path / "away")

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "run_start":
            os.kill(os.getpid(), signal.SIGINT)

    stopped = lab.resume(tmp_path / "away" / "checkpoints" / "step-00000003", listeners=[])  # not a copy: its own run
    assert stopped.folder == tmp_path / "away"
    shutil.copytree(tmp_path / "away" / "checkpoints" / "step-00000003", tmp_path / "copy")
    stopped = lab.resume(tmp_path / "copy", listeners=[stop])
    assert (stopped.folder, stopped.status) == (run, "stopped")
    assert checkpoint.steps(run / "checkpoints") == [3]
    assert lab.resume("r-1", listeners=[]).status == "completed"
    shutil.rmtree(run / "checkpoints")  # as if it had been killed before that save
    assert lab.resume(tmp_path / "copy", listeners=[]).status == "completed"
    assert checkpoint.steps(run / "checkpoints") == [3, 6]
    shutil.rmtree(run)
    shutil.copytree(tmp_path / "away" / "checkpoints" / "step-00000006", tmp_path / "end")
    assert lab.resume(tmp_path / "end", listeners=[]).status == "completed"
    assert checkpoint.steps(run / "checkpoints") == [6]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest"])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_run_falls_back_with_a_warning(
    run: Path, tmp_path: Path, damage: str
) -> None:
    newest = run / "checkpoints" / "step-00000006"
    path = newest / ("manifest.json" if damage == "manifest" else "optimizer.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content[: -7 if damage == "cut" else None])
    before = told_after(run, 3)
    with pytest.raises(CheckpointError, match="step-00000006"):
        lab.resume(newest, listeners=[], max_steps=7)
    told: Told = []
    resumed = lab.resume(run, listeners=[told.append], max_steps=7)
    damaged, went_back = [event["message"] for event in told if event["event"] == "warning"]
    assert "step-00000006" in damaged
    assert damaged.endswith("going on from step-00000003")
    assert went_back.startswith(f"went back to step 3: the checkpoints after it are in {run / 'superseded-1'}, and ")
    assert resumed.status == "completed"
    steps = [event["step"] for event in events.read(run / "log.jsonl") if event["event"] == "step"]
    assert steps == list(range(1, 8))
    again = [event for event in told_after(run, 3) if event["step"] <= 6 and event["event"] == "step"]
    assert again == [event for event in before if event["event"] == "step"]
    assert checkpoint.steps(run / "checkpoints") == [3, 6, 7]
    checkpoint.verify(newest)  # made again
    assert (run / "superseded-1" / "step-00000006").is_dir()


def test_an_updated_config_changes_what_it_names_alone(corpus: Path) -> None:
    config = TrainingConfig(**TINY)
    run = lab.run(config, corpus, run_name="r-9", listeners=[], beta2=0.9, max_steps=2)
    again = lab.resume(run.folder, config=config.updated(max_steps=4), listeners=[])
    assert again.config["beta2"] == 0.9
    assert again.step == 4


def test_another_number_of_threads_than_the_machines_is_said(corpus: Path) -> None:
    run = lab.run(TINY, corpus, run_name="r-10", listeners=[], max_steps=2)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        again = lab.resume(run.folder, listeners=[], max_steps=3)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert (
        f"goes on with {before} threads, as it began, for the same sums to the bit; here it would have {before + 1}"
        in (again.warnings)
    )


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """A run of an imported Llama whose tokenizer is of the older kind, on text with marks of begin and end in it."""
    folder = tiny_models.make(tmp_path / "source", "llama")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (folder / name).unlink()
    tiny_models.write_llama_tokenizer(folder, legacy=True)
    assert hub.import_model(str(folder), name="llama") is not None
    (tmp_path / "marked.txt").write_text("the <s>the</s> the</s>the " * 400)
    config = {**TINY, "precision": "fp32", "max_steps": 2, "eval_cadence": 1, "train_ratio": 0.8, "model_name": "llama"}
    return lab.run(config, tmp_path / "marked.txt", run_name="marked", listeners=[]).folder


def test_a_llama_of_the_older_kind_goes_on_with_the_ids_it_was_trained_on(marked: Path, tmp_path: Path) -> None:
    run = lab.Run(marked)
    resumed = run.resume(max_steps=4, listeners=[])
    assert resumed.start["data"] == run.start["data"]
    first = lab.Run(marked).load(marked / "checkpoints" / "step-00000002")[1]
    assert first.identifier == run.start["tokenizer"] == Tokenizer.load(tmp_path / "models" / "llama").identifier
    straight = lab.run(run.config, tmp_path / "marked.txt", run_name="straight", max_steps=4, listeners=[])
    assert told_after(marked, 2) == told_after(straight.folder, 2)
    lab.register(marked, "tuned")
    assert Tokenizer.load(tmp_path / "models" / "tuned").identifier == run.start["tokenizer"]


def test_a_tokenizer_that_comes_back_as_another_is_warned_of_and_refused_where_the_text_shows_it(marked: Path) -> None:
    folder = marked / "checkpoints" / "step-00000002"

    def alter(name: str, **changes: Any) -> None:
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **changes}))
        (folder / checkpoint.MANIFEST).write_bytes(dump_json(checkpoint.manifest(folder)))

    trained = json.loads((folder / "state.json").read_text())["tokenizer"]
    alter("state.json", tokenizer=trained.replace("llama-", "sbackend-"))  # as an older version named the same
    assert lab.resume(marked, max_steps=3, listeners=[]).step == 3
    shutil.rmtree(marked / "checkpoints" / "step-00000003")
    alter("tokenizer/tokenizer_config.json", legacy=False)
    for goes_on in (lab.resume(marked, max_steps=3, listeners=[]), lab.branch(folder, "branch", listeners=[])):
        [warned] = [line for line in goes_on.warnings if "comes back" in line]
        assert re.match(
            r"the tokenizer of step-0000000\d comes back as llama-.*, and the run began with sbackend-", warned
        )
    shutil.rmtree(marked / "checkpoints" / "step-00000003")
    state = json.loads((folder / "state.json").read_text())
    alter("state.json", data={**state["data"], "n_tokens": 7})
    with pytest.raises(
        TokenizerError, match=r"makes [\d,]+ tokens of the text, of which it made 7 when the run"
    ) as told:
        lab.resume(marked, max_steps=4, listeners=[])
    assert "\n" not in str(told.value)
    assert lab.Run(marked).load()[1].encode("the").tolist()  # what was trained can be looked at all the same
