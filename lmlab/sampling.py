"""Let anything write: a checkpoint, a run, or a model of the registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lmlab import devices
from lmlab.adapters.base import BaseAdapter
from lmlab.config import TrainingConfig, find_runs_dir
from lmlab.errors import TokenizerError, UsageError
from lmlab.generate import SamplingSettings
from lmlab.loading import load_model_and_tokenizer
from lmlab.registry import Registry
from lmlab.resuming import find_checkpoint, saved_config
from lmlab.tokenizers import Tokenizer


def sampling_settings(config: TrainingConfig) -> SamplingSettings:
    """The `sampling_…` fields of a config."""
    return SamplingSettings(
        max_new_tokens=config.sampling_max_length,
        temperature=config.sampling_temperature,
        top_k=config.sampling_top_k,
        top_p=config.sampling_top_p,
        seed=config.sampling_seed,
    )


def write(
    adapter: BaseAdapter,
    tokenizer: Tokenizer,
    prompt: str,
    n: int,
    settings: SamplingSettings,
    *,
    precision: str = "auto",
    on_token: Callable[[str], None] | None = None,
) -> list[str]:
    """`n` texts that begin with `prompt`, drawn together. on_token: called with each new token's text of the first.

    Raises TokenizerError where the prompt is empty or has what the vocabulary lacks.
    """
    ids = torch.from_numpy(tokenizer.encode(prompt)).long()
    if not len(ids):
        raise TokenizerError("an empty prompt gives the model nothing to go on from; say at least one character")
    device = next(adapter.parameters()).device
    told = None if on_token is None else lambda next_B1: on_token(tokenizer.decode([int(next_B1[0, 0])]))
    with devices.autocast(devices.resolve_precision(precision, device), device):
        ids_BT = adapter.generate(ids.repeat(n, 1).to(device), settings, on_token=told)
    return [tokenizer.decode(row) for row in ids_BT.tolist()]


def write_samples(
    where: str | Path,
    prompt: str | None = None,
    n: int = 1,
    *,
    runs_dir: str | Path | None = None,
    models_dir: str | Path | None = None,
    **overrides: Any,
) -> list[str]:
    """`n` texts by a checkpoint, a run (its newest checkpoint) or a registered model, each from its prompt on.

    prompt: None is the `sampling_prompt` of the run's config. overrides: `sampling_…` fields. Raises a LabError.
    """
    if n < 1:
        raise UsageError(f"{n} samples cannot be drawn; ask for 1 or more")
    others = [name for name in overrides if not name.startswith("sampling_") and name != "precision"]
    if others:
        raise UsageError(f"{others[0]} does not change a sample; set one of the sampling_… fields")
    registry = Registry(models_dir)
    if str(where) in registry.names():
        folder, config = registry.path(str(where)), TrainingConfig()
    else:
        saved, _ = find_checkpoint(where, find_runs_dir(runs_dir))
        folder, config = saved.folder, saved_config(saved)
    config = config.updated(**overrides)
    adapter, tokenizer = load_model_and_tokenizer(folder)
    text = prompt if prompt is not None else config.sampling_prompt
    return write(adapter, tokenizer, text, n, sampling_settings(config), precision=config.precision)
