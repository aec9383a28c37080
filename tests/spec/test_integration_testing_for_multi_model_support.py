"""Requirement: Integration Testing for Multi-Model Support."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from workbench import (
    ARCHITECTURE,
    STRAIGHT,
    TUNING,
    Lab,
    Session,
    architecture_of,
    comparable,
    contents,
    state_of,
)

from lmlab import QwenAdapter, Registry, SamplingSettings, load_adapter
from lmlab.loading import load_model_and_tokenizer

PROGRESS = ("step", "eval", "sample")


def progress(session: Session) -> list[dict[str, object]]:
    """What happened in a run, step by step."""
    return comparable([event for event in session.events if event["event"] in PROGRESS])


def test_end_to_end_custom_transformer_backward_compatibility(straight: Session, resumed: Session) -> None:
    """WHEN the integration test runs without model_name THEN the custom Transformer is created and trained, behaves as
    before there were several models, and checkpoints save and load correctly."""
    assert "model_name" not in STRAIGHT
    model = straight.start["model"]
    assert (model["architecture_type"], model["model_name"]) == ("custom-transformer", None)
    saved = straight.lab.checkpoint("straight", 12)
    assert {name: architecture_of(saved)[name] for name in ARCHITECTURE} == {n: STRAIGHT[n] for n in ARCHITECTURE}
    assert straight.start["tokenizer"].startswith("char-")
    assert straight.of("eval")[-1]["val_loss"] < straight.of("eval")[0]["val_loss"]
    assert not straight.lab.models.exists(), "no registry is needed"

    adapter, stored = load_adapter(saved), load_file(saved / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in adapter.tensors().items())
    other = load_file(resumed.lab.checkpoint("interrupted", 12) / "model.safetensors")
    assert all(torch.equal(stored[name], other[name]) for name in stored)


def test_end_to_end_qwen_model_import_and_inference(qwen: Lab) -> None:
    """WHEN the integration test imports a Qwen model and runs inference THEN it is imported, loads from the registry, its
    forward pass gives logits, and it generates text."""
    assert qwen.names() == ["qwen-0.5b-base"]
    folder = Registry(qwen.models).verify("qwen-0.5b-base")
    adapter, tokenizer = load_model_and_tokenizer(folder)
    assert isinstance(adapter, QwenAdapter)
    ids_BT = torch.from_numpy(tokenizer.encode("the capital of France")).long()[None]
    reference = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits_BTV = adapter.logits(ids_BT)
        expected_BTV = reference(input_ids=ids_BT).logits
    assert logits_BTV.shape == (1, ids_BT.size(1), adapter.vocab_size)
    torch.testing.assert_close(logits_BTV, expected_BTV, rtol=1e-5, atol=1e-5)
    greedy_BT = ids_BT
    for _ in range(6):
        with torch.no_grad():
            likeliest_B1 = reference(input_ids=greedy_BT).logits[:, -1:].argmax(dim=-1)
        greedy_BT = torch.cat([greedy_BT, likeliest_B1], dim=1)
    assert adapter.generate(ids_BT, SamplingSettings(6, temperature=0.0)).tolist() == greedy_BT.tolist()

    written = qwen.main("sample", "qwen-0.5b-base", "--prompt", "the capital", "--set", "sampling_max_length=6")
    assert written.stdout.startswith("the capital")
    assert len(written.stdout.strip()) > len("the capital")


def test_end_to_end_qwen_model_fine_tuning(tuned: Session, family: Lab) -> None:
    """WHEN the integration test fine-tunes the imported Qwen model THEN it trains, its loss decreases, checkpoints have
    their metadata, and the lineage is tracked."""
    assert tuned.steps == list(range(1, 13))
    assert [event["status"] for event in tuned.of("run_end")] == ["completed"]
    losses = list(tuned.losses.values())
    assert sum(losses[-3:]) < sum(losses[:3])
    evaluations = [event["val_loss"] for event in tuned.of("eval")]
    assert evaluations == sorted(evaluations, reverse=True)
    assert len(set(evaluations)) == 4

    assert tuned.lab.checkpoint_steps("tuned") == [5, 10, 12]
    for step in (5, 10, 12):
        state = state_of(tuned.lab.checkpoint("tuned", step))
        assert state["step"] == step
        assert state["model"] == tuned.start["model"]
        assert state["fine_tuned_from"] == "qwen-0.5b-base"
        assert [link["model_name"] for link in state["lineage"]] == ["qwen-0.5b-base"]
    assert family.entry("qwen-notes")["fine_tuned_from"] == "qwen-0.5b-base"


def test_checkpoint_resume_with_qwen_model(
    tuned: Session, tuning_interrupted: Session, tuning_resumed: Session
) -> None:
    """WHEN the integration test interrupts and resumes a Qwen fine-tuning THEN it resumes from the checkpoint with the
    model's metadata and lineage, and the losses go on identically."""
    assert tuning_interrupted.steps == list(range(1, 8))
    assert tuning_resumed.steps == list(range(1, 13))
    assert tuning_resumed.losses == tuned.losses
    one, other = progress(tuned), progress(tuning_resumed)
    ending = [event for event in other if event not in one]  # the first session ended with an evaluation and a sample
    assert [(event["event"], event["step"]) for event in ending] == [("eval", 7), ("sample", 7)]
    assert [event for event in other if event not in ending] == one
    for key in ("model", "fine_tuned_from", "lineage", "tokenizer"):
        assert tuning_resumed.start[key] == tuned.start[key]
    ends = [session.lab.checkpoint(session.run, 12) for session in (tuned, tuning_resumed)]
    for part in ("model", "optimizer", "rng"):
        assert len({(end / f"{part}.safetensors").read_bytes() for end in ends}) == 1, part


def test_switch_between_model_architectures(qwen: Lab, tuned: Session, corpus: Path, tmp_path: Path) -> None:
    """WHEN the integration test trains a custom Transformer and then a Qwen model THEN both train in separate runs, their
    checkpoints are isolated and correct, and the configs say which model each is."""
    lab = qwen.copy_to(tmp_path / "lab")
    custom = lab.config("custom", **{**STRAIGHT, "max_steps": 2})
    imported = lab.config("imported", **{**TUNING, "max_steps": 2})
    lab.main("--config", custom, "--data", corpus, "--run-name", "one")
    before = contents(lab.run_folder("one"))
    lab.main("--config", imported, "--data", corpus, "--run-name", "two")
    assert contents(lab.run_folder("one")) == before

    expected = {"one": (None, "custom-transformer"), "two": ("qwen-0.5b-base", "qwen2")}
    for run, (model_name, model_type) in expected.items():
        assert list(lab.series(run, "loss")) == [1, 2]
        assert lab.start(run)["config"]["model_name"] == model_name
        written = yaml.safe_load((lab.run_folder(run) / "config.yaml").read_text(encoding="utf-8"))
        assert written["model_name"] == model_name
        saved = lab.checkpoint(run, 2)
        assert state_of(saved)["config"]["model_name"] == model_name
        assert state_of(saved)["run_id"] == run
        assert architecture_of(saved)["model_type"] == model_type
        adapter, stored = load_adapter(saved), load_file(saved / "model.safetensors")
        assert all(torch.equal(tensor, stored[name]) for name, tensor in adapter.tensors().items())
    assert lab.series("two", "loss")[1] == tuned.losses[1], "what ran before leaves no trace"


def test_model_registry_cli_integration_test(family: Lab, tmp_path: Path) -> None:
    """WHEN the integration test exercises the registry commands THEN list-models works, model-info is accurate,
    delete-model removes models, and the registry stays consistent."""
    lab = family.copy_to(tmp_path / "lab")

    def listed() -> list[str]:
        names = [entry["model_name"] for entry in json.loads(lab.main("list-models", "--json").stdout)]
        assert "nothing is wrong" in lab.main("validate-registry").stdout
        on_disk = sorted(path.name for path in lab.models.iterdir() if path.is_dir())
        assert sorted(names) == on_disk
        return names

    assert listed() == ["qwen-0.5b-base", "qwen-notes"]
    info = json.loads(lab.main("model-info", "qwen-0.5b-base", "--json").stdout)
    stored = load_file(lab.models / "qwen-0.5b-base" / "model.safetensors")
    assert info["n_parameters"] == sum(tensor.numel() for tensor in stored.values())
    on_disk = {path.name: path.stat().st_size for path in (lab.models / "qwen-0.5b-base").iterdir()}
    assert {name: file["size"] for name, file in info["files"].items()} == on_disk
    assert info["size_bytes"] == sum(on_disk.values())

    lab.main("register-model", lab.checkpoint("tuned", 5), "--name", "qwen-early")
    assert listed() == ["qwen-0.5b-base", "qwen-notes", "qwen-early"]
    lab.main("delete-model", "qwen-notes", "--yes")
    assert listed() == ["qwen-0.5b-base", "qwen-early"]
    lab.main("delete-model", "qwen-0.5b-base", "--yes", "--force")
    assert listed() == ["qwen-early"]
    assert lab.entry("qwen-early")["fine_tuned_from"] == "qwen-0.5b-base", "its history is kept"


@pytest.fixture(autouse=True)
def on_one_thread(one_thread: None) -> None:
    """Sums as in the processes that trained."""
