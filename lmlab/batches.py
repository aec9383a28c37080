"""From a corpus to the batches of a run: tokens, splits, windows."""

from __future__ import annotations

from typing import Any, NamedTuple

from lmlab.config import TrainingConfig
from lmlab.data import Corpus, DataLoader, LargeCorpus, WindowDataset, split_corpus
from lmlab.errors import ConfigError
from lmlab.evaluate import floor_of
from lmlab.tokenizers import Ids, Tokenizer


class Batches(NamedTuple):
    """Batches of a corpus. val: None where that split holds no target. facts: what log and checkpoints say of the data."""

    train: DataLoader
    val: DataLoader | None
    facts: dict[str, Any]


def load_batches(
    config: TrainingConfig, corpus: Corpus | LargeCorpus, tokenizer: Tokenizer, seed: int, position: int = 0
) -> Batches:
    """Training and validation batches of a corpus. position: windows that a resumed run has seen.

    Raises DataError where the training split does not fill one window.
    """
    ids, begin_id = corpus.encode(tokenizer), tokenizer.begin_of_text_id
    train_ids, val_ids = split_corpus(ids, config.train_ratio)
    train_batches, val = loaders(config, train_ids, val_ids, begin_id, seed, position)
    floor_total, loss_floor = floor_of(corpus, tokenizer, val_ids, config) if val is not None else (None, None)
    facts = {
        "data": {
            "path": corpus.path,
            "sha256": corpus.sha256,
            "n_tokens": len(ids),
            "n_train": len(train_ids),
            "n_val": len(val_ids),
            "begin_of_text_id": begin_id,
        },
        "floor_total": floor_total,
        "loss_floor": loss_floor,  # of what an evaluation counts
    }
    return Batches(train_batches, val, facts)


def loaders(
    config: TrainingConfig, train_ids: Ids, val_ids: Ids, begin_id: int | None, seed: int, position: int = 0
) -> tuple[DataLoader, DataLoader | None]:
    """What deals out the batches of each split. Raises DataError and ConfigError where one is too short."""
    windows_per_update = config.batch_size * config.gradient_accumulation_steps
    windows = WindowDataset(train_ids, config.max_seq_len, begin_id)
    train_batches = DataLoader(windows, windows_per_update, seed=seed, position=position)
    if len(val_ids) > 1:
        return train_batches, DataLoader(WindowDataset(val_ids, config.max_seq_len, begin_id), config.batch_size)
    if config.eval_cadence is not None:
        raise ConfigError("eval_cadence is set, but there is no validation text; lower train_ratio or give more text")
    return train_batches, None
