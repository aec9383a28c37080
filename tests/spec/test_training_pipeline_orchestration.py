"""Requirement: Training Pipeline Orchestration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from workbench import STRAIGHT, Session

import lmlab
from lmlab.tokenizers import CharTokenizer


def by_hand(corpus: Path) -> Any:
    """The pipeline of `straight`, put together from its components in the order in which they need one another."""
    config = lmlab.TrainingConfig.from_dict(STRAIGHT)
    text = corpus.read_text(encoding="utf-8")
    tokenizer = CharTokenizer.from_text(text)
    train_ids, val_ids = lmlab.split_corpus(tokenizer.encode(text), config.train_ratio)
    windows_per_update = config.batch_size * config.gradient_accumulation_steps
    train = lmlab.DataLoader(lmlab.WindowDataset(train_ids, config.max_seq_len), windows_per_update, seed=config.seed)
    val = lmlab.DataLoader(lmlab.WindowDataset(val_ids, config.max_seq_len), config.batch_size)
    shape = {name: getattr(config, name) for name in ("n_layers", "d_model", "n_heads", "d_ff", "dropout")}
    model = lmlab.Transformer(tokenizer.vocab_size, max_seq_len=config.max_seq_len, seed=config.seed, **shape)
    optimizer = lmlab.create_optimizer(model, config)
    trainer = lmlab.Trainer(model, optimizer, config, val_dataloader=val, tokenizer=tokenizer, seed=config.seed)
    return trainer, train


def test_end_to_end_training_execution(straight: Session, corpus: Path) -> None:
    """WHEN main.py is executed THEN configuration, data, tokenizer, datasets, dataloaders, model, optimizer and trainer
    are made, the loop calls `training_step` for each batch, and training completes."""
    text = corpus.read_text(encoding="utf-8")
    config, data = straight.start["config"], straight.start["data"]
    assert {key: config[key] for key in STRAIGHT} == STRAIGHT
    assert Path(data["path"]) == corpus
    assert straight.start["tokenizer"].startswith(f"char-{len(set(text))}-")
    assert (data["n_tokens"], data["n_train"]) == (len(text), int(len(text) * STRAIGHT["train_ratio"]))
    assert data["n_val"] == data["n_tokens"] - data["n_train"]
    assert straight.start["model"]["architecture_type"] == "custom-transformer"

    final = straight.lab.checkpoint("straight", 12)
    weights = load_file(final / "model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) == straight.start["model"]["n_parameters"] > 10_000
    moments = load_file(final / "optimizer.safetensors")
    assert any(tensor.dim() == 2 and tensor.abs().sum() > 0 for tensor in moments.values())

    assert straight.steps == list(range(1, 13))
    assert [event["status"] for event in straight.of("run_end")] == ["completed"]
    assert straight.done.stderr == ""


@pytest.mark.usefixtures("one_thread")
def test_component_integration(straight: Session, corpus: Path) -> None:
    """WHEN main.py orchestrates components THEN it uses Tokenizer, split_corpus, WindowDataset, DataLoader,
    Transformer, create_optimizer and Trainer, in the right order, and they are implemented and tested: put together by
    hand, they give the losses and the weights of main.py."""
    trainer, train = by_hand(corpus)
    assert isinstance(trainer.tokenizer, lmlab.Tokenizer)
    losses = dict(zip(range(1, 13), map(trainer.training_step, train), strict=False))
    assert losses == straight.losses
    saved = load_file(straight.lab.checkpoint("straight", 12) / "model.safetensors")
    own = trainer.model.tensors()
    assert own.keys() == saved.keys()
    assert all(torch.equal(own[name], saved[name]) for name in saved)
