"""What a model of transformers has read so far, where its own cache of keys and values does not do as it is.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lmlab.adapters.documents import first
from lmlab.modes import in_mode

NAMES = ("cache", "past_key_values")  # of the argument: the second until transformers 5.23
# Tokens that are read at a time, to find out whether a cache does: some lose a state in the second piece of several.
TRIAL = (3, 1, 3, 1)


@dataclass
class Replay:
    """The cache of a model without keys and values, such as Mamba: all tokens so far, computed again each time."""

    ids_BT: Tensor | None = None

    def take(self, ids_BT: Tensor) -> Tensor:
        """All tokens, with these as the last."""
        self.ids_BT = ids_BT if self.ids_BT is None else torch.cat([self.ids_BT, ids_BT], dim=1)
        return self.ids_BT


class Reread(Replay):
    """The cache of a model whose keys are others once a text has more than `length` tokens: there, all are read again."""

    def __init__(self, model: PreTrainedModel, length: int) -> None:
        super().__init__()
        self.model, self.length = model, length
        self.keys = DynamicCache(config=model.config)

    def unread(self, ids_BT: Tensor) -> Tensor:
        """The tokens that `keys` lacks, with these as the last."""
        all_BT = self.take(ids_BT)
        if all_BT.size(1) - ids_BT.size(1) <= self.length < all_BT.size(1):
            self.keys = DynamicCache(config=self.model.config)
            return all_BT
        return ids_BT


@functools.cache  # asked for every token
def name_of_cache(forward: Callable[..., Any]) -> str | None:
    """What the forward of a class calls the cache that it takes, None if it takes none."""
    parameters = inspect.signature(forward).parameters
    return next((name for name in NAMES if name in parameters), None)


def going_on(model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """The arguments with which the forward of a model goes on with a cache, and advances it."""
    return {name_of_cache(type(model).forward) or NAMES[0]: cache, "use_cache": True}


@torch.no_grad()
def goes_on(model: PreTrainedModel) -> bool:
    """Whether a model goes on with a `DynamicCache` as without one, by trying it: some take none or only their own, and
    others lose a state in it, or keep one from text to text."""
    if name_of_cache(type(model).forward) is None:
        return False
    n_tokens = model.get_input_embeddings().weight.size(0)
    ids_BT = (torch.arange(sum(TRIAL), device=model.device)[None] * 7 + 11) % n_tokens  # 0 to 10 may mean no text
    try:
        with in_mode(model, training=False), torch.autocast(model.device.type, enabled=False):
            whole_BTV = first(model(input_ids=ids_BT, use_cache=False)).float()
            in_parts_BTV = read_in_parts(model, ids_BT.split(TRIAL, dim=1))
            anew_BTV = read_in_parts(model, ids_BT[:, :1].split(1))
    except Exception:  # a model that wants another cache raises whatever it does
        return False
    errors = torch.cat([in_parts_BTV - whole_BTV, anew_BTV - whole_BTV[:, :1]], dim=1)
    tolerance = 1e-3 if model.dtype == torch.float32 else 1e-1  # rounding may send a token to another expert
    return bool(errors.norm() <= tolerance * (whole_BTV - whole_BTV.mean()).norm())


def read_in_parts(model: PreTrainedModel, parts: tuple[Tensor, ...]) -> Tensor:
    """logits_BTV, in fp32, of a text of which a model reads part after part, with a cache that is new."""
    cache = DynamicCache(config=model.config)
    read = [first(model(input_ids=ids_BT, **going_on(model, cache))) for ids_BT in parts]
    return torch.cat(read, dim=1).float()
