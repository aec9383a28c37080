"""The custom Transformer's blockwise attention for the models of transformers, where it is the faster one.

B batch, T time, H heads, G heads of keys and values, K head width.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from lmlab.transformer import BlockCausalAttention, products_are_faster

NAME = "lmlab_blocks"  # under which transformers knows it
ASKS_FOR_SDPA = re.compile(r"_attn_implementation\s*(?:==|!=|(?:not )?in)[^\n]*[\"']sdpa[\"']")
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
    if torch.is_autocast_enabled(query.device.type):  # rotated in fp32; the fused kernel would be given them so, too
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
    groups = query.size(1) // key.size(1)
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    y_BHTK = BlockCausalAttention.apply(query, key, value)
    return y_BHTK.transpose(1, 2).contiguous(), None


def faster_in_blocks(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether blocks can be used, and plain products beat the fused kernel."""
    alike = query.size(-2) == key.size(-2) and query.size(-1) == value.size(-1)
    return alike and products_are_faster(query, key.size(-2))
