"""Rotary positions with two sets of angles, one for short texts and one for long ones (LongRoPE, Ding et al. 2024).

transformers chooses for a whole batch by its largest position. Here each document has the angles that it would have
alone, whatever lies beside it.
B batch, T time, K width of the angles.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig


def short_length(config: PreTrainedConfig) -> int | None:
    """The most tokens of a text with the angles of short ones; None where all texts have the same."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(kind for kind in parameters.values() if isinstance(kind, dict))]  # some have one per layer
    lengths = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    return min(lengths, default=None)


def turn_by_document(model: nn.Module, length: int) -> None:
    """Let a model's angles be those of each document's own length; short ones have `length` tokens at the most."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "rotary_emb":
            module.forward = functools.partial(angles, module.forward, length)


@torch.no_grad()
def angles(plain: Any, length: int, x: Tensor, position_ids: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each BTK, by a module's own forward for short documents and for long ones."""
    document_BT = (position_ids == 0).cumsum(dim=1)
    longest = torch.zeros_like(position_ids[:, :1]).expand(-1, position_ids.size(1) + 1)
    longest = longest.scatter_reduce(1, document_BT, position_ids, "amax")
    is_long_BT1 = (longest.gather(1, document_BT) >= length)[..., None]
    short = plain(x, position_ids.clamp(max=length - 1), *rest, **more)
    long = plain(x, position_ids, *rest, **more)  # where there is a long one, the largest position is of such
    cosine, sine = (torch.where(is_long_BT1, *each) for each in zip(long, short, strict=True))
    return cosine, sine
