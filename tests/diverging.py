"""A model that gives a bad number when a test wants it to."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lmlab.adapters.custom import CustomTransformerAdapter


class Spoil(torch.autograd.Function):
    """Leaves a loss as it is, and adds a value to its gradient."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, value: float) -> Tensor:
        ctx.value = value
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] + ctx.value, None


class Diverging(CustomTransformerAdapter):
    """Gives a bad number in a chosen call of `loss`: in the loss itself, or in its gradient alone."""

    calls, at, value, where = 0, -1, math.nan, "loss"

    def loss(self, inputs_BT: Tensor, targets_BT: Tensor, reduction: str = "mean") -> Tensor:
        result = super().loss(inputs_BT, targets_BT, reduction)
        self.calls += self.training
        if self.calls == self.at and self.training:
            result = result + self.value if self.where == "loss" else Spoil.apply(result, self.value)
        return result
