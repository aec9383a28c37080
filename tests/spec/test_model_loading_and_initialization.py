"""Requirement: Model Loading and Initialization."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from workbench import ARCHITECTURE, STRAIGHT, TUNING, Lab, Session

from lmlab import CustomTransformerAdapter, QwenAdapter, Registry, Trainer, Transformer, build, load_adapter
from lmlab.adapters.huggingface import CausalLMAdapter
from lmlab.hub import import_model

QUICK = {"max_seq_len": 16, "batch_size": 2, "seed": 1}


def test_load_custom_transformer_when_model_name_is_none(straight: Session, defaults: Session, corpus: Path) -> None:
    """WHEN config.model_name is None or not specified THEN the custom Transformer is created from the config, wrapped in
    CustomTransformerAdapter, and trained as before."""
    for given in (STRAIGHT, {**STRAIGHT, "model_name": None}):
        trainer = build(given, corpus)
        assert type(trainer.model) is CustomTransformerAdapter
        assert type(trainer.model.model) is Transformer
        own = {name: getattr(trainer.model.model, name) for name in (*ARCHITECTURE, "max_seq_len")}
        assert own == {name: STRAIGHT[name] for name in own}
    for session, last in ((straight, 12), (defaults, 2)):
        assert session.start["config"]["model_name"] is None
        assert session.start["kind"] == "new"
        saved = session.lab.checkpoint(session.run, last)
        assert type(load_adapter(saved)) is CustomTransformerAdapter
        assert session.steps == list(range(1, last + 1))


def test_load_model_from_registry_by_model_name(qwen: Lab, tuned: Session, corpus: Path, tmp_path: Path) -> None:
    """WHEN config.model_name is specified THEN the registry is asked for it, its metadata retrieved, its weights loaded
    from local_path, the adapter chosen by architecture_type and initialized with the loaded model."""
    entry = Registry(qwen.models).get("qwen-0.5b-base")
    assert (entry.model_id, entry.architecture_type, entry.source) == ("Qwen/Qwen2.5-0.5B", "qwen", "huggingface")
    moved = qwen.copy_to(tmp_path / "moved")  # the folder has the model's own name no more: the entry alone leads to it
    (moved.models / entry.local_path).rename(moved.models / "elsewhere")
    registry = json.loads((moved.models / "registry.json").read_text(encoding="utf-8"))
    registry["models"]["qwen-0.5b-base"]["local_path"] = "elsewhere"
    (moved.models / "registry.json").write_text(json.dumps(registry), encoding="utf-8")
    trainer = build(QUICK, corpus, model_name="qwen-0.5b-base", models_dir=moved.models)
    assert type(trainer.model) is QwenAdapter
    stored = load_file(moved.models / "elsewhere" / "model.safetensors")
    loaded = trainer.model.tensors()
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)
    described = trainer.facts["model"]
    assert described["model_id"] == entry.model_id
    assert described["n_parameters"] == entry.n_parameters == sum(tensor.numel() for tensor in stored.values())

    logged = tuned.start["model"]  # the same through main.py
    assert {key: logged[key] for key in ("model_name", "architecture_type")} == {
        "model_name": "qwen-0.5b-base",
        "architecture_type": "qwen",
    }
    assert type(load_adapter(tuned.lab.checkpoint("tuned", 12))) is QwenAdapter


def test_model_registry_lookup_fails(family: Lab) -> None:
    """WHEN config.model_name is not in the registry THEN the message says so and lists the names there are, and nothing
    is trained."""
    runs = sorted(family.runs.iterdir())
    config = family.config("unknown", **{**TUNING, "model_name": "no-such-model"})
    for arguments in (("--config", config), ("--model-name", "no-such-model")):
        message = family.refusal(*arguments, "--max-steps", 1)
        assert "no model 'no-such-model'" in message
        assert "qwen-0.5b-base, qwen-notes" in message
    assert sorted(family.runs.iterdir()) == runs


def test_model_files_missing_for_registry_entry(family: Lab, tmp_path: Path) -> None:
    """WHEN the entry exists but its files are missing THEN the message says which, suggests importing again or
    validate-registry, and the program exits gracefully."""
    lab = family.copy_to(tmp_path / "lab")
    runs = sorted(lab.runs.iterdir())
    (lab.models / "qwen-0.5b-base" / "model.safetensors").unlink()
    message = lab.refusal("--model-name", "qwen-0.5b-base", "--max-steps", 1)
    assert "model.safetensors is missing" in message
    assert "import it again" in message
    assert "validate-registry" in message
    assert sorted(lab.runs.iterdir()) == runs


def small_models(tmp_path: Path, qwen: Lab) -> dict[str, dict[str, Any]]:
    """How to ask for a model of each kind of adapter."""
    models = tmp_path / "models"
    tiny_models.make(tmp_path / "llama", "llama")
    import_model(str(tmp_path / "llama"), name="tiny-llama", models_dir=models)
    return {
        "custom": {**STRAIGHT, "dropout": 0.0},
        "qwen": {"model_name": "qwen-0.5b-base", "models_dir": qwen.models},
        "llama": {"model_name": "tiny-llama", "models_dir": models},
    }


def test_initialize_optimizer_with_adapter_model(qwen: Lab, corpus: Path, tmp_path: Path) -> None:
    """WHEN a model is loaded via an adapter THEN the optimizer has the adapter's trainable parameters, works whatever the
    architecture, and gradients flow."""
    kinds = {"custom": CustomTransformerAdapter, "qwen": QwenAdapter, "llama": CausalLMAdapter}
    for kind, arguments in small_models(tmp_path, qwen).items():
        models_dir = arguments.pop("models_dir", None)
        trainer = build({**arguments, **QUICK, "learning_rate": 1e-2}, corpus, models_dir=models_dir)
        assert type(trainer.model) is kinds[kind]
        trainable = {id(p): name for name, p in trainer.model.named_parameters() if p.requires_grad}
        held = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
        assert len(held) == len(set(held))
        assert set(held) == set(trainable)
        check_gradients(trainer)
        check_learning(trainer)


def check_gradients(trainer: Trainer) -> None:
    """One batch gives every parameter a gradient that is not zero throughout."""
    assert trainer.train_dataloader is not None
    batch = next(iter(trainer.train_dataloader))
    trainer.model.train()
    trainer.model.loss(batch.inputs_BT, batch.targets_BT).backward()
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().sum()) > 0 or name.endswith("k_proj.bias"), name


def check_learning(trainer: Trainer) -> None:
    """A few updates on one batch move every weight and lower its loss."""
    assert trainer.train_dataloader is not None
    batch = next(iter(trainer.train_dataloader))
    before = {name: tensor.clone() for name, tensor in trainer.model.tensors().items()}
    losses = [trainer.training_step(batch) for _ in range(5)]
    assert losses[-1] < losses[0]
    after = trainer.model.tensors()
    assert all(not torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(autouse=True)
def on_one_thread(one_thread: None) -> None:
    """Tiny models are quickest on one thread."""
