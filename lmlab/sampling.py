"""Let anything write: a checkpoint, a run, or a model of the registry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lmlab import devices
from lmlab.adapters.base import BaseAdapter
from lmlab.config import TrainingConfig
from lmlab.errors import RegistryError, TokenizerError, UsageError
from lmlab.generate import SamplingSettings
from lmlab.lab import Run
from lmlab.loading import load_model_and_tokenizer
from lmlab.places import absolute, find_runs_dir
from lmlab.record import find_run
from lmlab.registry import Registry
from lmlab.resuming import is_of_a_run, read_checkpoint, saved_config
from lmlab.tokenizers import Tokenizer


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
    encoded = tokenizer.encode(prompt)
    if not len(encoded):
        raise TokenizerError("an empty prompt gives the model nothing to go on from; say at least one character")
    ids = torch.from_numpy(tokenizer.begun(encoded)).long()
    if adapter.max_positions is not None and len(ids) >= adapter.max_positions:
        raise UsageError(
            f"the prompt has {len(ids):,} tokens, and the model takes {adapter.max_positions:,} in all; shorten it"
        )
    before = len(ids) - len(encoded)
    device = next(adapter.parameters()).device
    told = None if on_token is None else lambda next_B1: on_token(tokenizer.pieces([int(next_B1[0, 0])])[0])
    fewer = f"draw fewer samples at a time, or shorter ones (sampling_max_length); or {devices.MORE_ROOM}"
    with devices.autocast(devices.resolve_precision(precision, device), device), devices.out_of_memory_as_error(fewer):
        ids_BT = adapter.generate(ids.repeat(n, 1).to(device), settings, on_token=told)
    ends = {adapter.end_of_text_id, *adapter.turn_ends}
    return [tokenizer.decode(until_end(row, len(ids), ends)[before:]) for row in ids_BT.tolist()]


def until_end(row: list[int], n_prompt: int, ends: Collection[int | None]) -> list[int]:
    """A sampled row up to its first end, without what fills it while longer texts are drawn beside it."""
    return row[: next((at + 1 for at in range(n_prompt, len(row)) if row[at] in ends), len(row))]


class Writer(NamedTuple):
    """A model that can write, with its tokenizer and the config whose `sampling_…` fields it goes by."""

    adapter: BaseAdapter
    tokenizer: Tokenizer
    config: TrainingConfig


def sampled_with(config: TrainingConfig, overrides: Mapping[str, Any]) -> TrainingConfig:
    """A config with other `sampling_…` fields. Raises UsageError on fields that change no sample, and ConfigError."""
    others = [name for name in overrides if not name.startswith("sampling_") and name != "precision"]
    if others:
        raise UsageError(f"{others[0]} does not change a sample; set one of the sampling_… fields")
    return config.updated(**overrides)


def load_registered(name: str, registry: Registry) -> Writer:
    """A registered model, every byte verified first, with the usual settings. Raises a LabError."""
    return Writer(*load_model_and_tokenizer(registry.verify(name)), TrainingConfig())


def load_writer(
    where: Run | str | Path, *, runs_dir: str | Path | None = None, models_dir: str | Path | None = None
) -> Writer:
    """The model of a run, of a registered model's name or folder, or of a checkpoint, run folder or run id.

    Raises UsageError where a run and a model bear the name, and further a LabError.
    """
    if isinstance(where, Run):
        where.refresh()
        if where.config and not where.damaged:
            return Writer(*where.load(), TrainingConfig.from_dict(where.config))
        where = where.folder  # whose checkpoint has its config, too
    registry, runs = Registry(models_dir), find_runs_dir(runs_dir)
    found = absolute(find_run(where, runs))
    try:
        models = registry.names()
    except RegistryError:
        if not found.exists():
            raise
        models = []  # a run needs no registry
    name = str(where)
    if name in models:
        if is_of_a_run(found):
            raise UsageError(
                f"{name!r} is a run and a registered model; give {found} for the run, or "
                f"{registry.models_dir / name} for the model"
            )
        return load_registered(name, registry)
    if found.name in models and found.parent.resolve() == registry.models_dir.resolve():
        return load_registered(found.name, registry)
    if not found.exists():
        raise UsageError(f"no checkpoint, run or model is called {where}; list-runs and list-models show what there is")
    return read_checkpoint(
        where, runs, lambda saved: Writer(*load_model_and_tokenizer(saved.folder), saved_config(saved))
    )


def write_samples(
    where: Run | str | Path,
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
    sampled_with(TrainingConfig(), overrides)  # before a model is loaded
    adapter, tokenizer, config = load_writer(where, runs_dir=runs_dir, models_dir=models_dir)
    config = sampled_with(config, overrides)
    text = prompt if prompt is not None else config.sampling_prompt
    return write(adapter, tokenizer, text, n, SamplingSettings.from_config(config), precision=config.precision)
