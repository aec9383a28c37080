"""`CustomTransformerAdapter`: the lab's own Transformer behind the adapters' common interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmlab.adapters.base import BaseAdapter, capture
from lmlab.adapters.head import chunked_cross_entropy
from lmlab.config import ARCHITECTURE, TrainingConfig
from lmlab.entries import CONFIG, CUSTOM, WEIGHTS
from lmlab.errors import CheckpointError, ConfigError
from lmlab.files import describe_os_error, dump_json, read_object, share_tensors, write_atomic
from lmlab.transformer import Attention, Cache, Transformer, attention_probabilities

REQUIRED = {*ARCHITECTURE, "max_seq_len"}  # besides the vocabulary's size


class CustomTransformerAdapter(BaseAdapter):
    """Wraps a `Transformer`."""

    architecture_type = CUSTOM
    model: Transformer

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)

    @property
    def embedding(self) -> nn.Module:
        """The table of all tokens' vectors, its `weight`."""
        return self.model.embedding

    @property
    def vocab_size(self) -> int:
        """The number of tokens that the embedding holds."""
        return self.model.vocab_size

    def loss(self, inputs_BT: Tensor, targets_BT: Tensor, reduction: str = "mean") -> Tensor:
        """Next-token loss in nats, fp32, over the targets that are not -100; reduction "mean" or "sum"."""
        hidden_ND = self.model.hidden(inputs_BT, segments_BT=self.segments(inputs_BT)).flatten(0, 1)
        targets_N = targets_BT.flatten()
        return chunked_cross_entropy(hidden_ND, self.model.embedding.weight, targets_N, reduction)

    def logits(self, ids_BT: Tensor, cache: Any = None) -> Tensor:
        """logits_BTV. With a cache from `new_cache`, ids_BT follow what it has seen, and it is advanced."""
        return self.model(ids_BT, cache=cache, segments_BT=None if cache is not None else self.segments(ids_BT))

    def next_logits(self, ids_BT: Tensor, cache: Any = None) -> Tensor:
        """logits_BV of the token that follows ids_BT, cache as for `logits`."""
        segments_BT = None if cache is not None else self.segments(ids_BT)
        return self.model.next_logits(ids_BT, cache, segments_BT)

    def new_cache(self, batch_size: int) -> Cache:
        """An empty key-value cache for `logits`; it takes the batch size from the first tokens."""
        return self.model.new_cache()

    def architecture(self) -> dict[str, Any]:
        """What `config.json` holds: the arguments of `Transformer`, with `model_type`."""
        return {"model_type": self.architecture_type, **self.model.architecture()}

    def attention_shape(self) -> tuple[int, int]:
        """Layers, and the width that attention works over."""
        return self.model.n_layers, self.model.d_model

    def blocks(self) -> nn.ModuleList:
        """The layers of the model, in order."""
        return self.model.blocks

    def hidden_states(self, ids_BT: Tensor) -> list[Tensor]:
        """The residual stream x_BTD after the embedding and after every block."""
        return capture([self.model.embedding, *self.model.blocks], lambda: self.logits(ids_BT))

    def unembed(self, x_BTD: Tensor) -> Tensor:
        """logits_BTV that the final norm and the head read from any state of the residual stream."""
        return self.model.head(self.model.norm(x_BTD))

    def attentions(self, ids_BT: Tensor) -> list[Tensor]:
        """Attention probabilities of every layer, each BHTT."""
        probabilities: list[Tensor] = []

        def record(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            x_BTD, table_2TK, mask_TS = arguments[:3]
            q_BHTK, k_BHTK, _ = module.project(x_BTD, table_2TK)  # type: ignore[operator]
            probabilities.append(attention_probabilities(q_BHTK, k_BHTK, mask_TS))

        layers = [module for module in self.model.modules() if isinstance(module, Attention)]
        handles = [layer.register_forward_pre_hook(record) for layer in layers]
        try:
            self.logits(ids_BT)
        finally:
            for handle in handles:
                handle.remove()
        return probabilities

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into an existing folder. Raises OSError."""
        write_atomic(folder / CONFIG, dump_json(self.architecture()))
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.tensors().items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        share_tensors(folder)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype | None = None) -> Self:
        """The adapter that `save` wrote, in the folder's own precision where `dtype` is None.

        Raises CheckpointError naming the file that is missing or wrong.
        """
        arguments = load_architecture(folder / CONFIG)
        try:
            with torch.device("meta"):  # no memory and no random numbers are spent on weights that come from the file
                model = Transformer(**arguments)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{folder / CONFIG} describes no Transformer: {reason}") from error
        weights, adapter = folder / WEIGHTS, cls(model)
        try:
            tensors = load_file(weights)
            adapter.load_tensors(tensors)  # nothing is copied to meta: only names and shapes are compared
            model.materialise()
            adapter.to(dtype or tensors["embedding.weight"].dtype)
            adapter.load_tensors(tensors)
        except OSError as error:
            reason = describe_os_error(error).removesuffix(f": {weights}")  # the library names it, too
            raise CheckpointError(f"cannot read {weights}: {reason}") from error
        except (SafetensorError, TypeError, ValueError) as error:  # a type of no weights
            raise CheckpointError(f"{weights} does not fit its config.json: {error}") from error
        return adapter

    def enable_activation_checkpointing(self) -> None:
        """Compute each block's activations again in the backward pass instead of keeping them."""
        self.model.activation_checkpointing = True

    @torch.no_grad()
    def resize_embeddings(self, vocab_size: int) -> None:
        """Grow or cut the embedding to `vocab_size` tokens; new rows are the mean of the old ones."""
        old_VD = self.model.embedding.weight
        kept = min(vocab_size, old_VD.size(0))
        new_VD = old_VD.mean(dim=0, keepdim=True).repeat(vocab_size, 1)
        new_VD[:kept] = old_VD[:kept]
        self.model.embedding = nn.Embedding.from_pretrained(new_VD, freeze=False)
        self.model.vocab_size = vocab_size


def load_architecture(path: Path) -> dict[str, Any]:
    """The arguments of `Transformer` in a `config.json`, within the limits of a config. Raises CheckpointError."""
    values = read_object(path, CheckpointError)
    if not isinstance(values.get("vocab_size"), int):
        raise CheckpointError(f"{path} is damaged: it holds no architecture")
    arguments = {name: value for name, value in values.items() if name != "model_type"}
    missing = sorted(REQUIRED - arguments.keys())
    if missing:
        raise CheckpointError(f"{path} is damaged: it lacks {', '.join(missing)}")
    try:
        TrainingConfig.from_dict({k: v for k, v in arguments.items() if k != "vocab_size"}, source=str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return arguments
