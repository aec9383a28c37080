"""Requirement: Model and Trainer Initialization."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from workbench import ARCHITECTURE, STRAIGHT, Session, architecture_of

from lmlab import Trainer, TrainingConfig, Transformer, build

OTHERS = {"n_layers": 2, "d_model": 48, "n_heads": 3, "d_ff": 80, "dropout": 0.25, "max_seq_len": 32, "seed": 5}
SHAPE = (*ARCHITECTURE, "max_seq_len")


def test_create_model_and_trainer(corpus: Path, straight: Session, defaults: Session) -> None:
    """WHEN vocab_size and configuration are available THEN a Transformer is made with vocab_size and the config's
    n_layers, d_model, n_heads, d_ff, dropout, max_seq_len and seed, AdamW by `create_optimizer`, and a Trainer with
    model, optimizer, config, val_dataloader and tokenizer; the architecture is logged."""
    vocab_size = len(set(corpus.read_text(encoding="utf-8")))
    for given in ({}, OTHERS):
        config = TrainingConfig.from_dict(given)
        trainer = build(config, corpus)
        model = transformer_of(trainer)
        assert model.vocab_size == vocab_size
        expected = {"n_layers": 4, "d_model": 256, "n_heads": 4, "d_ff": 1024, "dropout": 0.1, "max_seq_len": 256}
        expected |= {key: value for key, value in given.items() if key in SHAPE}
        assert {name: getattr(model, name) for name in SHAPE} == expected
        check_shapes(model, expected)

        assert isinstance(trainer.optimizer, torch.optim.AdamW)
        held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in model.parameters()}
        for group in trainer.optimizer.param_groups:
            assert (group["lr"], group["betas"]) == (3e-4, (0.9, 0.95))
            assert {group["weight_decay"]} == {0.1 if p.dim() >= 2 else 0.0 for p in group["params"]}

        assert type(trainer) is Trainer
        assert trainer.config is config
        assert trainer.val_dataloader is not None
        assert trainer.tokenizer is not None
        assert trainer.tokenizer.vocab_size == vocab_size

    assert TrainingConfig().seed is None
    assert same_weights(build(OTHERS, corpus), build(OTHERS, corpus))
    assert not same_weights(build(OTHERS, corpus), build({**OTHERS, "seed": 6}, corpus))
    unseeded = {**OTHERS, "seed": None}
    assert not same_weights(build(unseeded, corpus), build(unseeded, corpus))

    for session, shape in ((straight, STRAIGHT), (defaults, TrainingConfig().to_dict())):
        logged = session.start["model"]
        assert {name: logged[name] for name in SHAPE} == {name: shape[name] for name in SHAPE}
        (printed,) = [line for line in session.done.stdout.splitlines() if line.startswith("event=model ")]
        assert json.loads(printed.partition(" ")[2]) == logged
        (folder,) = (session.lab.run_folder(session.run) / "checkpoints").glob("step-*2")
        assert architecture_of(folder)["vocab_size"] == logged["vocab_size"]


def transformer_of(trainer: Trainer) -> Transformer:
    """The model inside the Trainer's adapter."""
    model = trainer.model.model
    assert isinstance(model, Transformer)
    return model


def check_shapes(model: Transformer, shape: dict[str, Any]) -> None:
    """The weights themselves have the layers and widths that were asked for."""
    assert len(model.blocks) == shape["n_layers"]
    assert model.embedding.weight.shape == (model.vocab_size, shape["d_model"])
    n_matrices = 4 * shape["d_model"] ** 2 + 2 * shape["d_model"] * shape["d_ff"]
    for block in model.blocks:
        assert sum(p.numel() for p in block.parameters() if p.dim() == 2) == n_matrices
        assert block.attention.n_heads == shape["n_heads"]
    shares = {module.dropout for module in model.modules() if hasattr(module, "dropout")}
    assert shares == {shape["dropout"]}


def same_weights(one: Trainer, other: Trainer) -> bool:
    """Whether two Trainers begin with the same weights."""
    first, second = one.model.tensors(), other.model.tensors()
    return all(torch.equal(first[name], second[name]) for name in first)
