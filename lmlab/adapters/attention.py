"""The custom Transformer's blockwise attention for the models of transformers, where it is the faster one.

B batch, T time, H heads, G heads of keys and values, K head width.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from lmlab.adapters.fused import FAMILIES
from lmlab.devices import product_type
from lmlab.transformer import BlockCausalAttention, products_are_faster, turned

NAME = "lmlab_blocks"  # under which transformers knows it
ASKS_FOR_SDPA = re.compile(r"_attn_implementation\s*(?:==|!=|(?:not )?in)[^\n]*[\"']sdpa[\"']")
TURNING = {f"{family}Attention" for family in FAMILIES}  # they turn the whole width of each head
OWN_SCORES = ("softcap", "s_aux", "position_bias", "cache")  # what changes the scores or what is looked at


def use_blockwise_attention(model: PreTrainedModel) -> None:
    """Let a model that would use scaled_dot_product_attention take plain products in blocks where they are faster."""
    if model.config._attn_implementation == "sdpa" and not goes_by_name(model):
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def goes_by_name(model: nn.Module) -> bool:
    """Whether the code of a model asks if its attention is called "sdpa": some look at fewer tokens only then."""
    files = {type(module).__module__ for module in model.modules()}
    return any(ASKS_FOR_SDPA.search(inspect.getsource(sys.modules[name])) for name in files if ".models." in name)


@contextlib.contextmanager
def holding_probabilities(model: PreTrainedModel) -> Iterator[None]:
    """Have a model write its attention out for the length of the block: the other ways never hold the probabilities.

    Where masks and layers read it, as `set_attn_implementation` passes over some, such as Falcon: it would add a mask of
    true and false to its scores, and look ahead.
    """
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    chosen = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = "eager"
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = chosen[key]


class Turned(torch.autograd.Function):
    """Queries and keys turned to their positions (Su et al. 2021) with fewer passes over memory than by transformers' own
    function; what comes out is in the precision of autocast, and on a processor what leads to it, too. cosine and sine:
    B1TK, both halves of the width alike."""

    @staticmethod
    def forward(ctx: Any, q_BHTK: Tensor, k_BGTK: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        half, ctx.dtype = sine.size(-1) // 2, q_BHTK.dtype
        sine = torch.cat([-sine[..., :half], sine[..., half:]], dim=-1)
        dtype = product_type(q_BHTK)
        if q_BHTK.device.type == "cpu":
            cosine, sine = cosine.to(dtype), sine.to(dtype)
        ctx.save_for_backward(cosine, sine)
        q_BHTK, k_BGTK = (turned(x.to(cosine.dtype), cosine, sine).to(dtype) for x in (q_BHTK, k_BGTK))
        return q_BHTK, k_BGTK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cosine, sine = ctx.saved_tensors
        turns = []
        for dy_BHTK in gradients:
            dx_BTHK = cosine.new_empty(dy_BHTK.transpose(1, 2).shape)  # in the order that projections want
            turns.append(turned(dy_BHTK.to(cosine.dtype), cosine, -sine, dx_BTHK.transpose(1, 2)).to(ctx.dtype))
        return turns[0], turns[1], None, None


def turn_in_one(model: nn.Module) -> None:
    """Let the attention of the classes in TURNING use `Turned` while they train."""
    for module in model.modules():
        if type(module).__name__ in TURNING:
            module.forward = functools.partial(attention_layer, module, module.forward)


def attention_layer(
    layer: Any,
    plain: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    attention_mask: Tensor | None = None,
    cache: Any = None,
    past_key_values: Any = None,
    **rest: Any,
) -> tuple[Tensor, Tensor | None]:
    """The forward of a layer in TURNING by way of `Turned` and `attention` where gradients are wanted, else `plain`.

    Until transformers 5.23, the cache is called past_key_values.
    """
    cache = past_key_values if cache is None else cache
    ours = layer.config._attn_implementation == NAME and torch.is_grad_enabled() and cache is None
    if not ours or position_embeddings is None or position_embeddings[0].size(-1) != layer.head_dim:
        theirs: tuple[Tensor, Tensor | None] = plain(hidden_states, position_embeddings, attention_mask, cache, **rest)
        return theirs
    shape = (*hidden_states.shape[:-1], -1, layer.head_dim)
    q_BTHK, k_BTGK = layer.q_proj(hidden_states).view(shape), layer.k_proj(hidden_states).view(shape)
    if hasattr(layer, "q_norm"):
        q_BTHK, k_BTGK = layer.q_norm(q_BTHK), layer.k_norm(k_BTGK)
    cosine, sine = (table_BTK[:, None] for table_BTK in position_embeddings)
    query, key = Turned.apply(q_BTHK.transpose(1, 2), k_BTGK.transpose(1, 2), cosine, sine)
    value = layer.v_proj(hidden_states).view(shape).transpose(1, 2)
    dropout = layer.attention_dropout if layer.training else 0.0
    y_BTHK, _ = attention(layer, query, key, value, attention_mask, dropout, layer.scaling, **rest)
    return layer.o_proj(y_BTHK.flatten(-2)), None


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention in the manner of transformers: query BHTK, key and value BGTK, to BTHK; other cases are torch's own."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if torch.is_autocast_enabled(query.device.type):  # turned in fp32 by most; the fused kernel would be given them so
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    plain = (
        attention_mask is None
        and causal is True
        and dropout == 0.0
        and scaling in (None, 1.0 / math.sqrt(query.size(-1)), query.size(-1) ** -0.5)
        and all(rest.get(name) is None for name in OWN_SCORES)
    )
    if not (plain and faster_in_blocks(query, key, value)):
        given = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **rest}
        output: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
        return output
    y_BHTK = BlockCausalAttention.apply(query, key, value)
    return y_BHTK.transpose(1, 2).contiguous(), None


def faster_in_blocks(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether blocks can be used, and plain products beat the fused kernel."""
    alike = query.size(-2) == key.size(-2) and query.size(-1) == value.size(-1)
    return alike and products_are_faster(query, key.size(-2))
