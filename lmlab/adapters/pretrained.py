"""A folder in the Hugging Face layout to a model of transformers, trusting nothing in it.

The folder is never handed to transformers' own loader: its config is read as JSON and stripped of what could name code
or other files, its weights are mapped from safetensors, and the model class gets both as objects.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from lmlab.entries import CONFIG, FILE_NAME, INDEX, WEIGHTS
from lmlab.errors import CheckpointError
from lmlab.files import describe_os_error, read_object
from lmlab.words import one_line

NAMES_CODE = {  # keys of a config that make transformers run or read what lies outside the folder's weights
    "adapter_kwargs",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "fusion_config",
    "kernel_config",
    "transformers_weights",
    "trust_remote_code",
}
LIMITS = {  # far above any model, and low enough that nothing made of as many parts exhausts memory
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "n_layer"), 1024),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 1 << 14),
}


def harmless(value: Any) -> Any:
    """A config without the keys that make transformers run or read what lies outside it, at every depth."""
    if isinstance(value, dict):
        return {key: harmless(item) for key, item in value.items() if key not in NAMES_CODE}
    return [harmless(item) for item in value] if isinstance(value, list) else value


def values_of(value: Any, key: str) -> list[int]:
    """All whole numbers under a key, at every depth of a config."""
    if isinstance(value, list):
        return [number for item in value for number in values_of(item, key)]
    if not isinstance(value, dict):
        return []
    own = [value[key]] if isinstance(value.get(key), int) else []
    return own + [number for item in value.values() for number in values_of(item, key)]


def refuse_absurd(values: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError where a config asks for more parts than any model has: making them would not end."""
    for key, most in LIMITS.items():
        if any(count > most for count in values_of(values, key)):
            raise CheckpointError(f"{path} asks for more than {most} {key}: no model has as many")


def read_config(folder: Path) -> PreTrainedConfig:
    """The config of a causal language model that transformers ships. Raises CheckpointError saying why not."""
    path = folder / CONFIG
    decode = PreTrainedConfig._decode_special_floats
    values = {key: decode(value) for key, value in harmless(read_object(path, CheckpointError)).items()}
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{path} has model_type {model_type!r}, which this transformers does not ship; lmlab runs no code of a "
            "repository: choose another model, or a newer transformers"
        )
    refuse_absurd(values, path)
    if values.get("quantization_config"):
        raise CheckpointError(f"{path} describes quantized weights, which cannot be trained; choose the plain model")
    try:
        described = CONFIG_MAPPING[model_type].from_dict({k: v for k, v in values.items() if not k.startswith("_")})
    except Exception as error:  # config classes raise whatever their own checks raise; all of it means the same here
        raise CheckpointError(f"{path} is no sound config of {model_type}: {one_line(error)}") from error
    config = text_part(described)
    if not is_causal(config):
        raise CheckpointError(f"{path} describes a {model_type}, which is no causal language model; choose one that is")
    return config


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether a config describes a causal language model, by its own word or by the class it names: a BART may be either."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    return not config.is_encoder_decoder or config.architectures == [model_class(config).__name__]


def text_part(config: PreTrainedConfig) -> PreTrainedConfig:
    """What the causal language model of a config takes: the config, or its text's where the model sees or hears, too."""
    text = config.sub_configs.get("text_config")
    if text is None or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or model_class(config).config_class is not text:
        return config
    return config.get_text_config()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model: one, or those that the index names. Raises CheckpointError."""
    index = folder / INDEX
    if (folder / WEIGHTS).exists() or not index.exists():
        return [folder / WEIGHTS]
    return [folder / name for name in shard_names(index)]


def shard_names(index: Path) -> list[str]:
    """The files that an index names, each a plain name of a safetensors file. Raises CheckpointError."""
    mapping = read_object(index, CheckpointError).get("weight_map")
    names = set(mapping.values()) if isinstance(mapping, dict) and all_text(mapping.values()) else set()
    if not names or not all(FILE_NAME.fullmatch(name) and name.endswith(".safetensors") for name in names):
        raise CheckpointError(f"{index} is damaged: it names no safetensors files beside it")
    return sorted(names)


def all_text(values: Iterable[Any]) -> bool:
    """Whether all values are text."""
    return all(isinstance(value, str) for value in values)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All stored tensors by name, mapped from the files: nothing is read before it is used. Raises CheckpointError."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            tensors.update(load_file(path))
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {describe_os_error(error)}") from error
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged: {one_line(error)}") from error
    return tensors


def count_parameters(config: PreTrainedConfig, folder: Path, most: int) -> int:
    """The weights that a config describes, tied ones once, counted without memory on the meta device.

    most: what can be stored where the weights are. A config that asks for far more is refused, before memory is spent
    on it, and so is one that describes no working model. Raises CheckpointError.
    """
    try:
        with quiet(), torch.device("meta"):
            model = model_class(config)(config)
    except Exception as error:  # whatever a model's constructor makes of an absurd config
        raise CheckpointError(f"{folder / CONFIG} describes no working model: {one_line(error)}") from error
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(buffer.numel() for buffer in model.buffers())
    if n_parameters + tables > 2 * most + (1 << 24):  # room for tied weights and for tables of positions
        raise CheckpointError(
            f"{folder / CONFIG} describes {n_parameters:,} weights, the files hold {most:,}; import it again"
        )
    return n_parameters


def build(
    config: PreTrainedConfig, tensors: dict[str, Tensor], dtype: torch.dtype | None, folder: Path
) -> PreTrainedModel:
    """The model of a config with these weights, in evaluation mode. Raises CheckpointError naming what does not fit."""
    if (n_layers := getattr(config.get_text_config(), "num_hidden_layers", 0)) > len(tensors):
        raise CheckpointError(f"{folder} holds {len(tensors)} tensors, its config.json describes {n_layers} layers")
    count_parameters(config, folder, sum(tensor.numel() for tensor in tensors.values()))
    kinds = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    try:
        with quiet():
            model, report = model_class(config).from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=dtype or (max(set(kinds), key=kinds.count) if kinds else torch.float32),
                output_loading_info=True,
            )
    except Exception as error:  # shapes that differ raise RuntimeError, others what a conversion raises
        reason = other_shape(config, tensors) or one_line(error)
        raise CheckpointError(f"the weights in {folder} do not fit its config.json: {reason}") from error
    if report["missing_keys"]:
        names = sorted(report["missing_keys"])
        raise CheckpointError(f"the weights in {folder} lack {len(names)} tensors, the first is {names[0]}")
    loaded: PreTrainedModel = model
    if loaded.get_expanded_tied_weights_keys() and not loaded.all_tied_weights_keys:
        loaded.config.tie_word_embeddings = False  # the files have another head: else it is lost when rows are added
    unused: Any = loaded
    unused.unused_tensors = sorted(report["unexpected_keys"])
    return loaded


def other_shape(config: PreTrainedConfig, tensors: dict[str, Tensor]) -> str | None:
    """The first stored tensor whose shape is another than the model's of that name; None where there is none."""
    with quiet(), torch.device("meta"):
        expected = model_class(config)(config).state_dict()
    for name, tensor in tensors.items():
        if name in expected and tensor.shape != expected[name].shape:
            return f"{name} has shape {tuple(tensor.shape)}, and is to have {tuple(expected[name].shape)}"
    return None


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of the causal language model that a config describes."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    chosen: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found
    return chosen


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers without its progress bars and reports for the length of the block."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
