"""From a config to a model and a tokenizer: the lab's own, or one from the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lmlab.adapters.base import BaseAdapter
from lmlab.adapters.custom import CustomTransformerAdapter
from lmlab.checkpoint import opened
from lmlab.config import TrainingConfig
from lmlab.corpus import Corpus, LargeCorpus
from lmlab.devices import MORE_ROOM, mind_processor_limits, out_of_memory_as_error, pick_device
from lmlab.entries import CONFIG, CUSTOM
from lmlab.errors import CheckpointError, ConfigError, TokenizerError
from lmlab.events import now
from lmlab.files import read_object
from lmlab.isolation import on_its_own
from lmlab.places import find_file
from lmlab.registry import Registry
from lmlab.tokenizers import CharTokenizer, Tokenizer
from lmlab.transformer import Transformer
from lmlab.words import one_line


@on_its_own()
@out_of_memory_as_error(MORE_ROOM)
def load_adapter(folder: Path | str, dtype: torch.dtype | None = None) -> BaseAdapter:
    """The model in a folder with `config.json` and `model.safetensors`. Raises CheckpointError."""
    model_type = read_object(Path(folder) / CONFIG, CheckpointError).get("model_type")
    if model_type == CUSTOM:
        return CustomTransformerAdapter.load(Path(folder), dtype)
    from lmlab.adapters.huggingface import adapter_for  # loads transformers, which takes seconds

    return adapter_for(str(model_type)).load(Path(folder), dtype)


def load_tokenizer(
    config: TrainingConfig, corpus: Corpus | LargeCorpus, models_dir: Path | str | None = None
) -> Tokenizer:
    """The tokenizer of a run: the override of the config, else the model's own, else the characters of `corpus`.

    Raises TokenizerError, and ModelNotFound where a name is not in the registry.
    """
    return named_tokenizer(config, models_dir) or CharTokenizer(corpus.characters)


def named_tokenizer(config: TrainingConfig, models_dir: Path | str | None = None) -> Tokenizer | None:
    """The tokenizer of a run where it does not depend on the text. Raises what `load_tokenizer` raises."""
    override = config.tokenizer_override
    if (override is None and config.model_name is None) or override == "char":
        return None
    registry = Registry(models_dir)
    if override is None:
        assert config.model_name is not None
        return Tokenizer.load(registry.verify(config.model_name, weights=False))
    if override in registry.names():
        return Tokenizer.load(registry.verify(override, weights=False))
    folder = find_file(override)
    if not folder.is_dir():
        known = ", ".join(map(one_line, registry.names())) or "none"
        raise TokenizerError(
            f"tokenizer_override: {override!r} is neither `char`, nor a folder, nor a registered model (there are: {known})"
        )
    return Tokenizer.load(folder)


@on_its_own()
@out_of_memory_as_error(MORE_ROOM)
def load_model(
    config: TrainingConfig,
    tokenizer: Tokenizer,
    *,
    seed: int | None = None,
    models_dir: Path | str | None = None,
    device: str = "cpu",
) -> BaseAdapter:
    """The model of a run: a new Transformer of the config's architecture, or a registered model's weights.

    seed: of new weights, where the config leaves it open. device: where these are made. Raises ConfigError where
    tokenizer and embedding do not fit, ModelNotFound, RegistryError where a file is not as it was registered, and
    CheckpointError on weights that do not fit.
    """
    adapter: BaseAdapter
    if config.model_name is None:
        with torch.device(device):
            model = Transformer(
                tokenizer.vocab_size,
                n_layers=config.n_layers,
                d_model=config.d_model,
                n_heads=config.n_heads,
                d_ff=config.d_ff,
                dropout=config.dropout,
                max_seq_len=config.max_seq_len,
                seed=config.seed if config.seed is not None else seed,
            )
        adapter = CustomTransformerAdapter(model)
    else:
        adapter = load_adapter(Registry(models_dir).verify(config.model_name), dtype=torch.float32)
    fit(adapter, tokenizer, config)
    return adapter


def fit(adapter: BaseAdapter, tokenizer: Tokenizer, config: TrainingConfig) -> None:
    """Make a model, a tokenizer and a config's windows suit each other. Raises ConfigError where they cannot."""
    fit_embeddings(adapter, tokenizer, config)
    if adapter.max_positions is not None and config.max_seq_len > adapter.max_positions:
        raise ConfigError(
            f"max_seq_len={config.max_seq_len} is longer than {config.model_name} can take; "
            f"its limit is {adapter.max_positions}"
        )
    if config.tokenizer_override is not None:
        adapter.name_special_tokens(tokenizer)
    adapter.use_tokenizer(tokenizer)


def ancestry_of(config: TrainingConfig, models_dir: Path | str | None = None) -> dict[str, Any]:
    """Where a new run's weights come from, for its log and checkpoints. Raises ModelNotFound."""
    if config.model_name is None:
        model = {"model_name": None, "model_id": None, "source": "scratch"}
        return {"model": model, "fine_tuned_from": None, "fine_tuning_started_at": None, "lineage": []}
    registry = Registry(models_dir)
    entry = registry.get(config.model_name)
    return {
        "model": {
            "model_name": entry.model_name,
            "model_id": entry.model_id,
            "source": entry.source,
            "license": entry.license,
            "size_bytes": entry.size_bytes,  # on the disk, whatever it takes in memory
        },
        "fine_tuned_from": entry.model_name,
        "fine_tuning_started_at": now(),
        "lineage": registry.lineage(entry.model_name),
    }


@out_of_memory_as_error(MORE_ROOM)
def load_model_and_tokenizer(folder: Path | str) -> tuple[BaseAdapter, Tokenizer]:
    """A checkpoint or a registered model, ready to sample from, on the fastest device. Raises a LabError."""
    mind_processor_limits()
    folder = Path(folder)
    adapter = load_adapter(folder).to(pick_device())
    is_checkpoint = (folder / "tokenizer").is_dir()
    tokenizer = opened(folder).tokenizer() if is_checkpoint else Tokenizer.load(folder)
    adapter.use_tokenizer(tokenizer)
    return adapter.eval(), tokenizer


def fit_embeddings(adapter: BaseAdapter, tokenizer: Tokenizer, config: TrainingConfig) -> None:
    """Make a loaded model's embedding hold every id of the tokenizer, or raise ConfigError that names the way out."""
    if tokenizer.vocab_size <= adapter.vocab_size:
        return
    if not config.resize_embeddings:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding of {config.model_name} only "
            f"{adapter.vocab_size}; set resize_embeddings: true to grow it"
        )
    adapter.resize_embeddings(tokenizer.vocab_size)
