"""Requirement: Data Loading and Setup."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from workbench import Session

from lmlab import DataLoader, Tokenizer, TrainingConfig, WindowDataset, build, split_corpus


@pytest.mark.parametrize(("train_ratio", "batch_size"), [(None, None), (0.8, 3)])
def test_load_data_and_create_datasets(
    train_ratio: float | None, batch_size: int | None, corpus: Path, straight: Session, defaults: Session
) -> None:
    """WHEN a data path is given (or the default is used) THEN the text is loaded, tokenized, split by `split_corpus`
    with train_ratio (0.95 by default), cut into WindowDatasets for train and val, and dealt by DataLoaders of
    batch_size."""
    text = corpus.read_text(encoding="utf-8")
    given = {key: value for key, value in (("train_ratio", train_ratio), ("batch_size", batch_size)) if value}
    trainer = build({"n_layers": 1, "d_model": 8, "n_heads": 2, "d_ff": 8, "max_seq_len": 16, **given}, corpus)

    assert isinstance(trainer.tokenizer, Tokenizer)
    ids = trainer.tokenizer.encode(text)
    assert trainer.tokenizer.decode(ids) == text
    expected = split_corpus(ids, train_ratio or 0.95)
    assert len(expected[0]) == int(len(text) * (train_ratio or 0.95))
    loaders = (trainer.train_dataloader, trainer.val_dataloader)
    for loader, part in zip(loaders, expected, strict=True):
        assert isinstance(loader, DataLoader)
        assert isinstance(loader.dataset, WindowDataset)
        assert np.array_equal(loader.dataset.ids, part)
        batch = next(iter(loader))
        assert batch.inputs_BT.shape == batch.targets_BT.shape == (batch_size or 16, 16)
        assert (batch.inputs_BT[:, 1:] == batch.targets_BT[:, :-1]).all()
        for start, window in zip(batch.windows_B, batch.inputs_BT, strict=True):
            assert np.array_equal(window, part[start : start + 16])

    data = straight.start["data"]  # the same through main.py --data
    assert Path(data["path"]) == corpus
    assert data["sha256"] == hashlib.sha256(corpus.read_bytes()).hexdigest()
    assert data["n_train"] == len(split_corpus(ids, straight.start["config"]["train_ratio"])[0])
    assert TrainingConfig().train_ratio == 0.95
    data = defaults.start["data"]  # and without it
    assert data["path"] == "storybook"
    assert data["n_tokens"] > 900_000
    assert data["n_train"] == int(data["n_tokens"] * 0.95)
