"""`BaseAdapter`: one vocabulary for every architecture, so that Trainer, sampling and evaluation know only this.

B batch, T time, D model width, V vocabulary, N tokens of a whole batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lmlab.errors import TokenizerError
from lmlab.generate import SamplingSettings, generate
from lmlab.tokenizers import Tokenizer


def capture(modules: Iterable[nn.Module], run: Callable[[], object]) -> list[Tensor]:
    """What each module put out while `run` ran, in the order in which they did; of several outputs, the first."""
    outputs: list[Tensor] = []

    def record(_module: nn.Module, _arguments: object, output: Any) -> None:
        outputs.append(output if isinstance(output, Tensor) else output[0])

    handles = [module.register_forward_hook(record) for module in modules]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def refuse_beyond(embedding: Any, arguments: tuple[Tensor, ...]) -> None:
    """Raise TokenizerError where ids reach beyond an embedding; a GPU would end the process."""
    largest, n_rows = int(arguments[0].max()), embedding.weight.size(0)
    if largest >= n_rows:
        raise TokenizerError(
            f"the text has token {largest}, and the model knows {n_rows} from 0 on; leave out what stands for it (a marker, "
            "most likely), or train with resize_embeddings: true"
        )


class BaseAdapter(nn.Module, ABC):
    """A causal language model as the lab sees it. `model` is the wrapped module; parameter names are its own.

    end_of_text_id: the token that ends a document; documents packed into one window are told apart by it.
    turn_ends: further tokens after which a sample ends, as those that end a turn of a chat model.
    n_tokens: how many ids the tokenizer has, None for all of the embedding's; a model may have spare rows.
    max_positions: the longest context the model can take in tokens, None where it has no limit.
    packs: whether the documents of a window go through the model as one row; None where that is not known yet.
    """

    architecture_type: str = ""
    packs: bool | None = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.end_of_text_id: int | None = None
        self.turn_ends: frozenset[int] = frozenset()
        self.n_tokens: int | None = None
        self.max_positions: int | None = None

    @property
    @abstractmethod
    def embedding(self) -> nn.Module:
        """The table of all tokens' vectors, its `weight`."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of tokens that the embedding holds."""

    @abstractmethod
    def loss(self, inputs_BT: Tensor, targets_BT: Tensor, reduction: str = "mean") -> Tensor:
        """Next-token loss in nats, fp32, over the targets that are not -100; reduction "mean" or "sum"."""

    @abstractmethod
    def logits(self, ids_BT: Tensor, cache: Any = None) -> Tensor:
        """logits_BTV. With a cache from `new_cache`, ids_BT follow what it has seen, and it is advanced."""

    def next_logits(self, ids_BT: Tensor, cache: Any = None) -> Tensor:
        """logits_BV of the token that follows ids_BT, cache as for `logits`; those of the others need not be made."""
        return self.logits(ids_BT, cache)[:, -1]

    @abstractmethod
    def new_cache(self, batch_size: int) -> Any:
        """An empty key-value cache for `logits`."""

    def reading_cache(self, batch_size: int) -> Any:
        """As `new_cache`, for a text that is read in pieces of many tokens."""
        return self.new_cache(batch_size)

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """What `config.json` holds: enough to make the module again, with its `model_type`."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into an existing folder. Raises OSError."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, dtype: torch.dtype | None = None) -> Self:
        """The adapter that `save` wrote. Raises CheckpointError naming the file that is missing or wrong."""

    @abstractmethod
    def enable_activation_checkpointing(self) -> None:
        """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""

    @abstractmethod
    def resize_embeddings(self, vocab_size: int) -> None:
        """Grow or cut the embedding, and the head with it, to `vocab_size` tokens."""

    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The layers of the model, in order. Raises ConfigError where they are not known."""

    @abstractmethod
    def hidden_states(self, ids_BT: Tensor) -> list[Tensor]:
        """The residual stream x_BTD after the embedding and after every block."""

    @abstractmethod
    def unembed(self, x_BTD: Tensor) -> Tensor:
        """logits_BTV that the final norm and the head read from any state of the residual stream."""

    @abstractmethod
    def attentions(self, ids_BT: Tensor) -> list[Tensor]:
        """Attention probabilities of every layer, each BHTT."""

    def settle(self) -> None:
        """Find out now what is else found out at the first use, by trying the model."""

    def settle_untried(self) -> None:
        """Settle without trying, for a model that has shapes but no numbers: by what holds for every model."""

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor, reduction: str = "mean") -> Tensor:
        """The same as `loss`: what wrappers for data-parallel training call."""
        return self.loss(inputs_BT, targets_BT, reduction)

    def generate(
        self,
        prompt_BT: Tensor,
        settings: SamplingSettings,
        on_token: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """The prompt and what follows it, ids_BT; see `lmlab.generate.generate`."""
        return generate(self, prompt_BT, settings, on_token=on_token)

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Take over from the tokenizer of a run what packing and sampling must know of it.

        Where it has more ids than the embedding has rows, text with one of the others raises TokenizerError from then on.
        """
        self.end_of_text_id, self.n_tokens = tokenizer.end_of_text_id, tokenizer.vocab_size
        named = {*self.ends_named(), *tokenizer.other_end_ids, tokenizer.end_of_sequence_id}
        ends = named - {tokenizer.end_of_text_id}
        self.turn_ends = frozenset(end for end in ends if end is not None and tokenizer.is_special(end))
        watched = refuse_beyond in self.embedding._forward_pre_hooks.values()
        if tokenizer.vocab_size > self.vocab_size and not watched:
            self.embedding.register_forward_pre_hook(refuse_beyond)

    def ends_named(self) -> Iterable[int]:
        """The tokens that the model's own settings name as its ends."""
        return ()

    def name_special_tokens(self, tokenizer: Tokenizer) -> None:
        """Let what is saved beside the weights name the special tokens of a tokenizer that is not the model's own."""

    def segments(self, ids_BT: Tensor) -> Tensor | None:
        """The number of the document each token belongs to, segments_BT; None where a window holds one only."""
        if self.end_of_text_id is None:
            return None
        ends_BT = ids_BT == self.end_of_text_id
        if not bool(ends_BT[:, :-1].any()):
            return None
        return ends_BT.cumsum(dim=1) - ends_BT.long()  # the end belongs to the document that it ends

    def tensors(self) -> dict[str, Tensor]:
        """All weights by name, a tied one under one name only, so that safetensors can hold them."""
        seen: set[int] = set()
        unique: dict[str, Tensor] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                unique[name] = tensor.detach()
        return unique

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Copy weights saved by `tensors` into the model. Raises ValueError naming what does not fit."""
        own = self.tensors()
        for name in sorted(own.keys() ^ tensors.keys()):
            raise ValueError(f"tensor {name} is {'missing' if name in own else 'not known to this model'}")
        for name, tensor in own.items():
            if tensor.shape != tensors[name].shape:
                raise ValueError(f"tensor {name} has shape {list(tensors[name].shape)}, not {list(tensor.shape)}")
            tensor.copy_(tensors[name])

    def n_parameters(self) -> int:
        """The number of weights, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def describe(self) -> dict[str, Any]:
        """What the log says of the model: its type, its size and the values of its architecture."""
        size = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        return {
            "architecture_type": self.architecture_type,
            "n_parameters": self.n_parameters(),
            "size_bytes": size,
            **{k: v for k, v in self.architecture().items() if isinstance(v, int | float | str) and k != "model_type"},
        }

    def flops_per_token(self, context: int) -> float:
        """Arithmetic of one training step per token: 6 per weight in a matrix product, and attention's products.

        After Chowdhery et al. 2022 (PaLM, appendix B), with causal attention counted once for all scores.
        """
        n_layers, d_model = self.attention_shape()
        return 6.0 * self.weights_multiplied() + 12.0 * n_layers * d_model * context

    def weights_multiplied(self) -> float:
        """The weights in the matrix products of one token."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.dim() >= 2)

    @abstractmethod
    def attention_shape(self) -> tuple[int, int]:
        """Layers, and the width that attention works over (heads × head width)."""
