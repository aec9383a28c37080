"""Requirement: Structured Logging."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime
from pathlib import Path

from workbench import STRAIGHT, Lab, Session, printed

from lmlab import TrainingConfig


def test_log_format_is_parseable(straight: Session) -> None:
    """WHEN training logs are output THEN their format is structured, can be parsed by a program, and gives run_id, step,
    loss and the like at once."""
    lines = (straight.lab.run_folder("straight") / "log.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    events = [json.loads(line) for line in lines]
    assert all(event["run_id"] == "straight" and isinstance(event["event"], str) for event in events)
    losses = {event["step"]: event["loss"] for event in events if event["event"] == "step"}
    assert list(losses) == list(range(1, 13))
    assert all(isinstance(loss, float) and 0 < loss < 10 for loss in losses.values())

    rows = printed(straight.done.stdout, "step")  # what is printed says the same as key=value
    assert {int(row["step"]): float(row["loss"]) for row in rows} == {k: float(f"{v:.6g}") for k, v in losses.items()}
    assert {row["run_id"] for row in rows} == {"straight"}


def test_complete_metadata_logging(project: Path, own_lab: Lab, corpus: Path) -> None:
    """WHEN training starts THEN run_id, config_hash, git_commit, the active hooks and a summary of the configuration are
    logged."""
    lab = Lab(own_lab.folder, project)
    config = lab.config("config", **{**STRAIGHT, "max_steps": 1})
    done = lab.main("--config", config, "--data", corpus, "--run-name", "first")
    first, *_ = lab.events("first")
    assert first["event"] == "run_start"
    assert first["run_id"] == "first"
    assert first["config_hash"] == TrainingConfig.from_yaml(config).config_hash
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True)
    assert first["git_commit"] == head.stdout.strip()
    assert first["git_dirty"] is False
    assert first["hooks"] == STRAIGHT["hooks"]
    assert first["config"] == TrainingConfig.from_yaml(config).to_dict()

    (row,) = printed(done.stdout, "run_start")
    for name in ("run_id", "config_hash", "git_commit"):
        assert row[name] == first[name]
    assert json.loads(row["hooks"]) == first["hooks"]
    (summary,) = [line for line in done.stdout.splitlines() if line.startswith("event=config ")]
    assert json.loads(summary.partition(" ")[2]) == first["config"]


def test_training_progress_logging(straight: Session) -> None:
    """WHEN training is in progress THEN each step logs its number and loss, evaluations the validation loss, sampling the
    text, and every entry has a timestamp or step number."""
    assert straight.steps == list(range(1, 13))
    assert all(isinstance(event["loss"], float) for event in straight.of("step"))
    evaluations = {event["step"]: event["val_loss"] for event in straight.of("eval")}
    assert list(evaluations) == [0, 4, 8, 12]
    assert all(isinstance(loss, float) and loss > 0 for loss in evaluations.values())
    samples = {event["step"]: event["sample_text"] for event in straight.of("sample")}
    assert list(samples) == [3, 6, 9, 12]
    for text in samples.values():
        assert text.startswith("The")
        assert len(text) == len("The") + STRAIGHT["sampling_max_length"]
    assert {event["name"] for event in straight.of("hook")} == {"weight_norms", "activation_stats"}

    times = [datetime.fromisoformat(event["time"]) for event in straight.events]
    assert times == sorted(times)
    assert all(time.utcoffset() is not None for time in times)
    assert all(isinstance(event["step"], int) for event in straight.events if event["event"] != "run_start")
