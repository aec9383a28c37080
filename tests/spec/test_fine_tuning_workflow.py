"""Requirement: Fine-Tuning Workflow."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import torch
from safetensors.torch import load_file
from workbench import TUNING, Lab, Session, contents, state_of

BASE = {"model_name": "qwen-0.5b-base", "run_id": None, "step": None}


def test_start_fine_tuning_from_base_model(qwen: Lab, tuned: Session) -> None:
    """WHEN training starts with a base model from the registry THEN its weights are loaded, training proceeds with it,
    and checkpoints have fine_tuned_from and the time at which fine-tuning started."""
    fresh, trained = (evaluation["val_loss"] for evaluation in (tuned.of("eval")[0], tuned.of("eval")[-1]))
    assert trained < fresh
    assert tuned.steps == list(range(1, 13))
    before = load_file(qwen.models / "qwen-0.5b-base" / "model.safetensors")
    began = datetime.fromisoformat(tuned.start["fine_tuning_started_at"])
    assert began <= datetime.fromisoformat(tuned.start["time"])
    distances = []
    for step in (5, 10, 12):
        folder = tuned.lab.checkpoint("tuned", step)
        state = state_of(folder)
        assert state["fine_tuned_from"] == "qwen-0.5b-base"
        assert state["lineage"] == [BASE]
        assert datetime.fromisoformat(state["fine_tuning_started_at"]) == began
        after = load_file(folder / "model.safetensors")
        assert after.keys() == before.keys()
        distances.append(max(float((after[name] - before[name]).abs().max()) for name in before))
    assert 0 < distances[0] < 2 * 5 * TUNING["learning_rate"], "not the weights of the base model, a few updates later"
    assert distances[0] < distances[-1]


def test_register_fine_tuned_model_after_training(family: Lab, tuned: Session, grandchild: Session) -> None:
    """WHEN training completes or a checkpoint is saved THEN the user can register it as a new model, whose entry has its
    lineage, and which later configs can name."""
    entry = family.entry("qwen-notes")
    assert entry["fine_tuned_from"] == "qwen-0.5b-base"
    assert entry["lineage"] == [BASE]
    assert entry["source"] == "fine-tuned"
    assert entry["architecture_type"] == "qwen"
    assert (entry["run_id"], entry["step"]) == ("tuned", 12)
    assert entry["fine_tuning_started_at"] == tuned.start["fine_tuning_started_at"]
    saved = load_file(family.checkpoint("tuned", 12) / "model.safetensors")
    registered = load_file(family.models / entry["local_path"] / "model.safetensors")
    assert all(torch.equal(saved[name], registered[name]) for name in saved)

    assert TUNING["model_name"] != "qwen-notes" == grandchild.start["config"]["model_name"]
    assert grandchild.start["model"]["model_name"] == "qwen-notes"
    assert grandchild.steps == [1, 2]
    first, last = grandchild.of("eval")[0]["val_loss"], tuned.of("eval")[-1]["val_loss"]
    assert first == last, "it begins where the registered checkpoint ended"


def test_continue_fine_tuning_from_checkpoint(tuning_interrupted: Session, tuning_resumed: Session) -> None:
    """WHEN training resumes from a fine-tuned model's checkpoint THEN the lineage is preserved from it, later checkpoints
    keep the chain, and the log says that an existing fine-tuning run goes on."""
    lab = tuning_resumed.lab
    before = state_of(lab.checkpoint("tuning", 7))
    keys = ("fine_tuned_from", "fine_tuning_started_at", "lineage", "run_id", "model")
    assert before["fine_tuned_from"] == "qwen-0.5b-base"
    for step in (10, 12):
        state = state_of(lab.checkpoint("tuning", step))
        assert {key: state[key] for key in keys} == {key: before[key] for key in keys}
    assert tuning_resumed.start["kind"] == "resumed"
    assert tuning_resumed.start["resumed_from"] == str(lab.checkpoint("tuning", 7))
    for key in ("fine_tuned_from", "fine_tuning_started_at", "lineage", "run_id", "model"):
        assert tuning_resumed.start[key] == tuning_interrupted.start[key]


def test_start_new_fine_tuning_branch_from_checkpoint(family: Lab, tmp_path: Path) -> None:
    """WHEN a checkpoint is loaded with a new model_name THEN a new branch is made whose fine_tuned_from is the
    checkpoint's model, a registry entry is created for it, and the original stays unchanged."""
    lab = family.copy_to(tmp_path / "lab")
    originals = [lab.models / "qwen-0.5b-base", lab.models / "qwen-notes", lab.run_folder("tuned")]
    before = [contents(folder) for folder in originals]
    entries = [lab.entry(name) for name in ("qwen-0.5b-base", "qwen-notes")]
    source = lab.checkpoint("tuned", 10)
    branching = ("--resume", source, "--model-name", "qwen-branch", "--run-name", "branch", "--max-steps", 2)
    lab.main(*branching)

    start = lab.start("branch")
    assert start["kind"] == "branch"
    assert start["fine_tuned_from"] == "qwen-0.5b-base" == state_of(source)["model"]["model_name"]
    assert start["lineage"][0] == BASE
    assert (start["lineage"][-1]["run_id"], start["lineage"][-1]["step"]) == ("tuned", 10)
    assert list(lab.series("branch", "loss")) == [1, 2]
    evaluated = lab.series("branch", "val_loss", "eval")[0]
    comparison = lab.series("tuned", "val_loss", "eval")
    assert comparison[12] < evaluated < comparison[8], "the weights of step 10 are where it begins"

    entry = lab.entry("qwen-branch")
    assert entry["fine_tuned_from"] == "qwen-0.5b-base"
    assert (entry["run_id"], entry["step"]) == ("branch", 2)
    assert lab.names() == ["qwen-0.5b-base", "qwen-notes", "qwen-branch"]

    assert [contents(folder) for folder in originals] == before
    assert [lab.entry(name) for name in ("qwen-0.5b-base", "qwen-notes")] == entries
    runs = sorted(path.name for path in lab.runs.iterdir())
    message = lab.refusal("--resume", source, "--model-name", "qwen-notes", status=2)
    assert "qwen-notes" in message
    assert sorted(path.name for path in lab.runs.iterdir()) == runs
