"""What a model of transformers has read so far, where its own cache of keys and values does not do as it is.

B batch, T time.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lmlab.modes import in_mode


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


@torch.no_grad()
def goes_on(model: PreTrainedModel) -> bool:
    """Whether a model takes a `DynamicCache`, by trying it: some take none, and others only their own."""
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return False
    ids_BT = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    try:
        with in_mode(model, training=False):
            model(input_ids=ids_BT, past_key_values=DynamicCache(config=model.config), use_cache=True)
    except Exception:  # a model that wants another cache raises whatever it does
        return False
    return True
