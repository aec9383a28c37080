"""`CausalLMAdapter`: every causal language model that transformers ships; `QwenAdapter`: Qwen 2, 2.5 and 3.

To add a family that differs: a subclass with what differs, and a line in ADAPTERS.
B batch, T time, D model width, V vocabulary, N tokens of a whole batch, R rows (one per document).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from lmlab.adapters.attention import holding_probabilities, turn_in_one, use_blockwise_attention
from lmlab.adapters.base import BaseAdapter, capture
from lmlab.adapters.caches import Replay, Reread, goes_on, going_on
from lmlab.adapters.decoding import Decoding, all_linear, can_decode
from lmlab.adapters.documents import (
    apart,
    documents_in_rows,
    first,
    in_rows,
    keeps_documents_apart,
    restarted_positions,
)
from lmlab.adapters.fused import fuse
from lmlab.adapters.head import PLAIN, Joint, Lookup, Shaping, chunked_cross_entropy
from lmlab.adapters.longrope import short_length, turn_by_document
from lmlab.adapters.pretrained import build, quiet, read_config, read_tensors
from lmlab.devices import product_type, products_of, recomputation
from lmlab.errors import ConfigError
from lmlab.files import share_tensors
from lmlab.modes import in_mode
from lmlab.ranks import any_spread
from lmlab.tokenizers import SPECIAL_TOKENS, Tokenizer

FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "final_norm", "norm_f", "embedding_norm")


class CausalLMAdapter(BaseAdapter):
    """Wraps a causal language model of transformers. `architecture_type` is its `model_type`.

    shaping: what becomes of the head's product with the last hidden state, so that the loss can be chunked; False
    where the logits are made in another way. packs: whether restarting position ids keep the documents of a window
    apart. decodes: whether tokens are sampled by `Decoding`. goes_on: whether it takes the cache of transformers. plain:
    whether all its matrices are linear layers'. None: found out at the first use.
    """

    model: PreTrainedModel
    shaping: Shaping | Literal[False] | None = None
    packs: bool | None = None
    decodes: bool | None = None
    goes_on: bool | None = None
    plain: bool | None = None

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.architecture_type = self.architecture_type or model.config.model_type
        self.max_positions = longest_text(model.config)
        self.short_length = short_length(model.config.get_text_config())
        use_blockwise_attention(model)
        turn_in_one(model)
        fuse(model)
        if self.short_length is not None:
            turn_by_document(model, self.short_length)
        self._share_gradient()
        self.train(model.training)

    def _share_gradient(self) -> None:
        """Let a table that is both embedding and head have one gradient from the start, see `Joint`."""
        self.joint: list[Joint] = []  # of the pass that is being made
        table, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        if type(table) is nn.Embedding and head is not None and head.weight is table.weight and table.max_norm is None:
            module: Any = table
            module.forward = functools.partial(looked_up, table, table.forward, self.joint)

    @property
    def embedding(self) -> nn.Module:
        """The table of all tokens' vectors, its `weight`."""
        table: nn.Module = self.model.get_input_embeddings()
        return table

    @property
    def vocab_size(self) -> int:
        """The number of tokens that the embedding holds."""
        return int(self.model.get_input_embeddings().weight.size(0))

    def loss(self, inputs_BT: Tensor, targets_BT: Tensor, reduction: str = "mean") -> Tensor:
        """Next-token loss in nats, fp32, over the targets that are not -100; reduction "mean" or "sum"."""
        targets_N = targets_BT.flatten()
        if shaping := self._shaping():
            head, joint = self.model.get_output_embeddings(), self._begin_joint()
            try:
                hidden_ND = self._apart(self.model.base_model, inputs_BT).flatten(0, 1)
            finally:
                self.joint.clear()
            return chunked_cross_entropy(hidden_ND, head.weight, targets_N, reduction, head.bias, shaping, joint)
        logits_NV = self._apart(self.model, inputs_BT).flatten(0, 1).float()
        return nn.functional.cross_entropy(logits_NV, targets_N, reduction=reduction)

    def _begin_joint(self) -> Joint | None:
        """What the lookup of a pass has its gradient in, if its table is the head, on a processor, and not compiled."""
        table_VD, head = self.embedding.weight, self.model.get_output_embeddings()
        if head.weight is not table_VD or table_VD.device.type != "cpu" or self._compiled_call_impl is not None:
            return None
        joint = Joint()
        self.joint.append(joint)
        return joint

    def logits(self, ids_BT: Tensor, cache: Any = None) -> Tensor:
        """logits_BTV. With a cache from `new_cache`, ids_BT follow what it has seen, and it is advanced."""
        if cache is None:
            return self._apart(self.model, ids_BT)
        if isinstance(cache, Decoding):
            return cache.logits(ids_BT)
        if isinstance(cache, Reread):
            return self.logits(cache.unread(ids_BT), cache.keys)[:, -ids_BT.size(1) :]
        if isinstance(cache, Replay):
            return first(self.model(input_ids=cache.take(ids_BT), use_cache=False))[:, -ids_BT.size(1) :]
        with products_of(ids_BT[:, 0]) if ids_BT.size(1) == 1 and self._plain() else contextlib.nullcontext():
            logits_BTV: Tensor = self.model(input_ids=ids_BT, **going_on(self.model, cache)).logits
        return logits_BTV

    def next_logits(self, ids_BT: Tensor, cache: Any = None) -> Tensor:
        """logits_BV of the token that follows ids_BT, cache as for `logits`; a prompt's others are left out."""
        if isinstance(cache, Decoding):
            return cache.next_logits(ids_BT)
        if isinstance(cache, Reread):
            return self.next_logits(cache.unread(ids_BT), cache.keys)
        is_prompt = isinstance(cache, DynamicCache) and ids_BT.size(1) > 1
        if is_prompt and "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            return first(self.model(input_ids=ids_BT, logits_to_keep=1, **going_on(self.model, cache)))[:, -1]
        return super().next_logits(ids_BT, cache)

    def new_cache(self, batch_size: int) -> Decoding | DynamicCache | Replay:
        """An empty key-value cache for `logits`; it takes the batch size from the first tokens."""
        if self.short_length is None and self._decodes():
            return Decoding(self.model)
        return self.reading_cache(batch_size)

    def reading_cache(self, batch_size: int) -> DynamicCache | Replay:
        """As `new_cache`, for a text that is read in pieces of many tokens, which `Decoding` takes one by one."""
        if not self._goes_on():
            return Replay()
        if self.short_length is not None:
            return Reread(self.model, self.short_length)
        return DynamicCache(config=self.model.config)

    def _apart(self, module: nn.Module, ids_BT: Tensor) -> Tensor:
        """The first output of `module` (hidden states or logits), where no document sees another."""
        segments_BT = self.segments(ids_BT)
        if segments_BT is None:
            return first(module(input_ids=ids_BT, use_cache=False))
        if self._packs():
            return first(module(input_ids=ids_BT, position_ids=restarted_positions(segments_BT), use_cache=False))
        return in_rows(module, ids_BT, segments_BT)

    def settle(self) -> None:
        """Find out now what is else found out at the first use, by trying the model."""
        self._shaping()
        self._packs()

    def settle_untried(self) -> None:
        """Settle without trying, for a model that has shapes but no numbers: by what holds for every model."""
        self.shaping = False if self.shaping is None else self.shaping
        self.packs, self.decodes = bool(self.packs), False
        self.end_of_text_id = None

    def _shaping(self) -> Shaping | Literal[False]:
        if self.shaping is None:
            self.shaping = shaping_of(self.model) or False
        return self.shaping

    def _packs(self) -> bool:
        if self.packs is None:
            self.packs = keeps_documents_apart(self.model)
        return self.packs

    def _decodes(self) -> bool:
        if any_spread(self.model.parameters()):
            return False
        if self.decodes is None:
            with in_mode(self.model, training=False):
                self.decodes = can_decode(self.model)
        return self.decodes

    def _goes_on(self) -> bool:
        if self.goes_on is None:
            self.goes_on = goes_on(self.model)
        return self.goes_on

    def _plain(self) -> bool:
        if self.plain is None:
            self.plain = all_linear(self.model)
        return self.plain

    def architecture(self) -> dict[str, Any]:
        """What `config.json` holds: the config of transformers without the settings that every model has."""
        config = self.model.config
        own = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
        for key, value in PreTrainedConfig().to_dict().items():
            defaults = [getattr(each, key, None) for each in (type(config), PreTrainedConfig)]  # a BART has another
            if defaults[0] == defaults[1] and key in own and own[key] == value:
                del own[key]
        own = PreTrainedConfig._encode_special_floats(own)  # JSON has no infinity, which some models' limits are
        return {**own, "architectures": [type(self.model).__name__], "model_type": config.model_type}

    def attention_shape(self) -> tuple[int, int]:
        """Layers, and the width that attention works over (heads × head width), the mean where layers differ."""
        config = self.model.config.get_text_config()
        n_layers, unlike = int(config.num_hidden_layers), getattr(config, "is_heterogeneous", False)
        widths = []
        for layer in (config.per_layer_config[i] for i in range(n_layers)) if unlike else (config,):
            n_heads = getattr(layer, "num_attention_heads", 0) or 0
            widths.append(n_heads * (getattr(layer, "head_dim", None) or layer.hidden_size // max(n_heads, 1)))
        return n_layers, sum(widths) // len(widths)

    def hidden_states(self, ids_BT: Tensor) -> list[Tensor]:
        """The residual stream x_BTD after the embedding and after every block."""
        blocks, segments_BT = self.blocks(), self.segments(ids_BT)
        in_one = segments_BT is None or self._packs()  # asked before all that runs is captured
        embedded: list[Tensor] = []
        handle = blocks[0].register_forward_pre_hook(lambda _, arguments: embedded.append(arguments[0]))
        try:
            after = capture(blocks, lambda: self._apart(self.model.base_model, ids_BT))
        finally:
            handle.remove()
        if in_one or segments_BT is None:
            return [*embedded, *after]
        real_RT = documents_in_rows(ids_BT, segments_BT)[1]
        return [x_RTD[real_RT].unflatten(0, ids_BT.shape) for x_RTD in (*embedded, *after)]

    def unembed(self, x_BTD: Tensor) -> Tensor:
        """logits_BTV that the final norm and the head read from any state of the residual stream.

        Raises ConfigError where it is not known how.
        """
        children, shaping = dict(self.model.base_model.named_children()), self._shaping()
        norm = next((children[name] for name in FINAL_NORMS if name in children), None)
        if norm is None or not shaping:
            raise ConfigError(
                f"the final norm and head of {self.architecture_type} are not known; leave out what reads layers as logits"
            )
        head = self.model.get_output_embeddings()
        return shaping(head(norm(x_BTD).to(product_type(head.weight))))  # some keep fp32 beside weights that are not

    def attentions(self, ids_BT: Tensor) -> list[Tensor]:
        """Attention probabilities of every layer that has them, each BHTT. Raises ConfigError where none has."""
        segments_BT = self.segments(ids_BT)
        with holding_probabilities(self.model):
            if segments_BT is None:
                return self._seen(ids_BT)
            if self._packs():
                return self._seen(ids_BT, position_ids=restarted_positions(segments_BT))
            rows = [apart(self._seen, *row) for row in zip(ids_BT, segments_BT, strict=True)]
            return [torch.cat(layer) for layer in zip(*rows, strict=True)]

    def _seen(self, ids_BT: Tensor, **positions: Tensor) -> list[Tensor]:
        output = self.model(input_ids=ids_BT, use_cache=False, output_attentions=True, **positions)
        scores = list(getattr(output, "attentions", None) or ())
        if not scores or any(each.dim() != 4 for each in scores):  # RWKV gives its outputs that name
            raise ConfigError(
                f"the attention of {self.architecture_type} is not known; leave out attention_entropy or what looks at it"
            )
        return scores

    def blocks(self) -> nn.ModuleList:
        """The layers of the model, in order. Raises ConfigError where they are not known."""
        n_layers = self.attention_shape()[0]
        for child in self.model.base_model.children():
            if isinstance(child, nn.ModuleList) and len(child) == n_layers:
                return child
        raise ConfigError(
            f"the layers of {self.architecture_type} are not known; leave out hooks that look into them, and parallel: fsdp"
        )

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into an existing folder. Raises OSError."""
        with quiet():
            self.model.save_pretrained(folder, max_shard_size="100TB")
        share_tensors(folder)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype | None = None) -> Self:
        """The model in a folder of the Hugging Face layout, its weights mapped from the files without a copy.

        dtype: None keeps the weights as they are stored. Raises CheckpointError naming the wrong file.
        """
        folder = Path(folder)
        return cls(build(read_config(folder), read_tensors(folder), dtype, folder))

    def weights_multiplied(self) -> float:
        """As of any model; but of tables a row is looked up, and of routed experts a token is sent to few."""
        head = getattr(self.model.get_output_embeddings(), "weight", None)
        looked_up = {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Embedding) and m.weight is not head}
        n_experts, share = experts_of(self.model.config.get_text_config())
        total = 0.0
        for name, parameter in self.model.named_parameters():
            if parameter.dim() >= 2 and id(parameter) not in looked_up:
                routed = "experts" in name.split(".") or (parameter.dim() == 3 and parameter.size(0) == n_experts)
                total += parameter.numel() * (share if routed else 1.0)
        return total

    def enable_activation_checkpointing(self) -> None:
        """Compute each layer's activations again in the backward pass. Raises ConfigError where the model cannot."""
        if not self.model.supports_gradient_checkpointing:
            raise ConfigError(f"activation_checkpointing does not work with {self.architecture_type}; set it to false")
        enable = getattr(self.model, "activation_checkpointing_enable", None)  # its older name is deprecated
        (enable or self.model.gradient_checkpointing_enable)(recomputation(self.model.device))

    def ends_named(self) -> list[int]:
        """The tokens that `config.json` names as ends, one or several: of chat models, of a turn and of a text."""
        parts = (self.model.config, self.model.config.get_text_config())  # either may say nothing of it
        named = [getattr(part, "eos_token_id", None) for part in parts]
        return [end for ends in named for end in (ends if isinstance(ends, list) else [ends]) if end is not None]

    def name_special_tokens(self, tokenizer: Tokenizer) -> None:
        """Let `config.json` name a tokenizer's special tokens: the ids of others would mean something else by now."""
        ids = (tokenizer.begin_of_text_id, tokenizer.end_of_text_id, None)
        for part in {id(part): part for part in (self.model.config, self.model.config.get_text_config())}.values():
            for name, token_id in zip(SPECIAL_TOKENS, ids, strict=True):
                setattr(part, name, token_id)
        table: Any = self.model.get_input_embeddings()
        table.padding_idx = None  # as it is when the model is loaded again

    @torch.no_grad()
    def resize_embeddings(self, vocab_size: int) -> None:
        """Grow or cut the embedding, and the head with it; new rows are the mean of the old ones."""
        old = self.vocab_size
        with quiet():
            self.model.resize_token_embeddings(vocab_size, mean_resizing=False)
        for module in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
            if module is not None and vocab_size > old:
                module.weight[old:] = module.weight[:old].mean(dim=0)


class QwenAdapter(CausalLMAdapter):
    """Qwen 2, 2.5 and 3: a plain head, and attention that follows restarting positions, both known beforehand."""

    architecture_type = "qwen"
    shaping = PLAIN
    packs = True


ADAPTERS: dict[str, type[CausalLMAdapter]] = {
    "qwen2": QwenAdapter,
    "qwen3": QwenAdapter,
}


def adapter_for(model_type: str) -> type[CausalLMAdapter]:
    """The adapter class for a `model_type` of transformers."""
    return ADAPTERS.get(model_type, CausalLMAdapter)


def architecture_type_of(model_type: str) -> str:
    """The registry's word for a `model_type` of transformers: `qwen` for the Qwen family, else the type itself."""
    return adapter_for(model_type).architecture_type or model_type


def longest_text(config: PreTrainedConfig) -> int | None:
    """The most tokens that a model takes, under either of its names; None where it has no limit."""
    return getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)


def looked_up(table: Any, plain: Any, joint: list[Joint], ids_BT: Tensor) -> Any:
    """The forward of an embedding: as its own, but for the way of its gradient where a pass has a `Joint`."""
    if not joint or not torch.is_grad_enabled():
        return plain(ids_BT)
    return Lookup.apply(ids_BT, table.weight, joint[0], table.padding_idx)


@torch.no_grad()
def shaping_of(model: PreTrainedModel) -> Shaping | None:
    """What a model does to the product of its head, by putting numbers in that product's place and looking at the logits.

    None where that is neither a scale nor a cap, or where the head reads something else than the base model's output.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or model.base_model is model:
        return None
    reads: list[Tensor] = []
    products: list[Tensor] = []
    product_V = torch.linspace(-60.0, 60.0, head.out_features)
    product_V[-1] = 10_000.0  # tells a cap from a scale

    def replace(_module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        reads.append(arguments[0])
        products.append(product_V.to(output).expand_as(output))
        return products[-1]

    ids_BT = torch.arange(4, device=head.weight.device)[None]
    with in_mode(model, training=False), torch.autocast(head.weight.device.type, enabled=False):
        hidden_BTD = first(model.base_model(input_ids=ids_BT, use_cache=False))
        handle = head.register_forward_hook(replace)
        try:
            logits_BTV = first(model(input_ids=ids_BT, use_cache=False))
        finally:
            handle.remove()
    if len(reads) != 1 or not alike(reads[0], hidden_BTD) or logits_BTV.shape != products[0].shape:
        return None
    last = float(logits_BTV[0, -1, -1])
    for shaping in (PLAIN, Shaping(scale=last / float(products[0][0, -1, -1])), Shaping(cap=last)):
        if last > 0 and alike(logits_BTV, shaping(products[0])):
            return shaping
    return None


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same but for the rounding of the coarser dtype."""
    coarse = min(torch.finfo(one.dtype).bits, torch.finfo(other.dtype).bits) < 32
    tolerance = 2e-2 if coarse else 1e-5
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=tolerance, atol=tolerance)


def experts_of(config: PreTrainedConfig) -> tuple[int, float]:
    """The routed experts of a layer (0 where there are none), and the share of them that each token is sent to."""
    counts = (getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    n_experts = next((count for count in counts if isinstance(count, int) and count > 0), 0)
    active = getattr(config, "num_experts_per_tok", None)
    return n_experts, active / n_experts if isinstance(active, int) and n_experts else 1.0
