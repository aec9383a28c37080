"""Requirement: Model Metadata Logging."""

from __future__ import annotations

import json

from workbench import ARCHITECTURE, STRAIGHT, Lab, Session, printed

from lmlab.files import tree_size


def test_log_custom_transformer_metadata(straight: Session) -> None:
    """WHEN training starts with the custom Transformer THEN the log says architecture_type "custom-transformer", the
    architecture, and that the model is trained from scratch."""
    model = straight.start["model"]
    assert model["architecture_type"] == "custom-transformer"
    assert {name: model[name] for name in ARCHITECTURE} == {name: STRAIGHT[name] for name in ARCHITECTURE}
    assert model["max_seq_len"] == STRAIGHT["max_seq_len"]
    assert model["source"] == "scratch"
    assert model["model_name"] is model["model_id"] is None
    assert straight.start["kind"] == "new"
    assert straight.start["fine_tuned_from"] is None
    assert straight.start["lineage"] == []
    assert printed_json(straight, "model") == model


def test_log_imported_model_metadata(qwen: Lab, tuned: Session) -> None:
    """WHEN training starts with an imported model THEN the log has model_name, model_id, architecture_type, source, and
    its size in parameters and on disk."""
    model, entry = tuned.start["model"], qwen.entry("qwen-0.5b-base")
    assert model["model_name"] == "qwen-0.5b-base"
    assert model["model_id"] == "Qwen/Qwen2.5-0.5B"
    assert model["architecture_type"] == "qwen"
    assert model["source"] == "huggingface"
    assert model["n_parameters"] == entry["n_parameters"] > 10_000
    weights = (qwen.models / "qwen-0.5b-base" / "model.safetensors").stat().st_size
    assert 0.9 * weights < model["size_bytes"] <= tree_size(qwen.models / "qwen-0.5b-base")
    assert model["size_bytes"] == qwen.entry("qwen-0.5b-base")["size_bytes"]
    assert printed_json(tuned, "model") == model


def test_log_fine_tuning_lineage(
    straight: Session, tuned: Session, tuning_resumed: Session, grandchild: Session
) -> None:
    """WHEN training starts with a fine-tuned model or a new fine-tune THEN the log has fine_tuned_from, the full chain,
    and tells resuming a fine-tune from starting one."""
    base = {"model_name": "qwen-0.5b-base", "run_id": None, "step": None}
    assert tuned.start["fine_tuned_from"] == "qwen-0.5b-base"
    assert tuned.start["lineage"] == [base]
    assert grandchild.start["fine_tuned_from"] == "qwen-notes"
    notes = {"model_name": "qwen-notes", "run_id": "tuned", "step": 12}
    assert grandchild.start["lineage"] == [base, notes]
    assert printed_json(grandchild, "lineage") == [base, notes]

    kinds = [event["kind"] for event in tuning_resumed.of("run_start")]
    assert kinds == ["fine-tune", "resumed"]
    assert tuning_resumed.start["fine_tuned_from"] == "qwen-0.5b-base"
    assert (straight.start["kind"], tuned.start["kind"], grandchild.start["kind"]) == ("new", "fine-tune", "fine-tune")
    shown = [printed(session.done.stdout, "run_start")[0]["kind"] for session in (tuned, tuning_resumed)]
    assert shown == ["fine-tune", "resumed"]


def printed_json(session: Session, name: str) -> object:
    """What a run printed of itself at its start."""
    (line,) = [line for line in session.done.stdout.splitlines() if line.startswith(f"event={name} ")]
    value: object = json.loads(line.partition(" ")[2])
    return value
