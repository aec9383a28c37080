"""The loss at the head of a language model, for vocabularies whose logits do not fit in memory all at once.

N tokens of a whole batch, C tokens of a chunk, D model width, V vocabulary, W words of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100  # a target that counts for nothing: padding, or what follows the end of a document
CHUNK_ELEMENTS = 1 << 24  # logits held at a time: 64 MB in fp32
WORDS_AT_ONCE = 2048  # whose gradients a processor adds to fp32 sums: few enough for its cache


@dataclass(frozen=True)
class Shaping:
    """What a model does to its head's product: `scale` times it, or held within ±`cap` by cap · tanh(product / cap)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """The logits that the head's product stands for, of any shape."""
        if self.cap is not None:
            return self.cap * torch.tanh(logits / self.cap)
        return logits if self.scale == 1.0 else self.scale * logits


PLAIN = Shaping()


class PlainHeadLoss(torch.autograd.Function):
    """Summed cross-entropy of hidden_ND @ weight_VD.T, with the gradients made in the same pass over the logits.

    They are known up to one factor as soon as the logits are, so that each chunk's logits are made once and live no
    longer than it: three matrix products where computing the logits again would make four (Hsu et al. 2024). Products
    are in the precision of autocast, sums in fp32. The backward pass scales what was kept in its place, and so can be
    made once.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        inputs_ND, matrix_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        d_hidden_ND = torch.empty_like(inputs_ND)
        d_weight_VD = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        rows = max(1, CHUNK_ELEMENTS // weight_VD.size(0))
        words = WORDS_AT_ONCE if device == "cpu" else weight_VD.size(0)
        for chunk_CD, out_CD, targets_C in zip(
            inputs_ND.split(rows), d_hidden_ND.split(rows), targets_N.split(rows), strict=True
        ):
            counted_C1 = (targets_C != IGNORED)[:, None]
            index_C1 = targets_C.clamp_min(0)[:, None]
            logits_CV = (chunk_CD @ matrix_VD.mT).float()
            logits_CV.sub_(logits_CV.amax(dim=1, keepdim=True))
            wanted_C1 = logits_CV.gather(1, index_C1)
            sums_C1 = logits_CV.exp_().sum(dim=1, keepdim=True)
            total += (sums_C1.log() - wanted_C1).masked_fill_(~counted_C1, 0.0).sum()
            d_logits_CV = logits_CV.mul_(counted_C1 / sums_C1)
            d_logits_CV.scatter_add_(1, index_C1, -counted_C1.float())
            d_logits_CV = d_logits_CV.to(dtype)
            torch.mm(d_logits_CV, matrix_VD, out=out_CD)
            if d_weight_VD is not None and d_weight_VD.dtype == dtype:
                d_weight_VD.addmm_(d_logits_CV.mT, chunk_CD)
            elif d_weight_VD is not None:
                for d_words_WD, d_logits_CW in zip(
                    d_weight_VD.split(words), d_logits_CV.split(words, dim=1), strict=True
                ):
                    d_words_WD += d_logits_CW.mT @ chunk_CD
        ctx.hidden_dtype = hidden_ND.dtype
        ctx.save_for_backward(d_hidden_ND, d_weight_VD)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        d_hidden_ND, d_weight_VD = ctx.saved_tensors
        factor = gradients[0]
        d_weight_VD = None if d_weight_VD is None else d_weight_VD.mul_(factor)
        return (d_hidden_ND * factor).to(ctx.hidden_dtype), d_weight_VD, None


def head_loss(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, shaping: Shaping
) -> Tensor:
    """Summed loss in nats of one chunk; its logits live no longer than this call."""
    logits_NV = shaping(F.linear(hidden_ND, weight_VD, bias_V).float())
    return F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="sum")


def chunked_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    reduction: str = "mean",
    bias: Tensor | None = None,
    shaping: Shaping = PLAIN,
) -> Tensor:
    """Next-token loss in nats, fp32, without ever holding the logits of all tokens.

    The head and the loss run over chunks of tokens; a head with a bias or a shaping computes them again in the
    backward pass. Targets of -100 are not counted. reduction: "mean" over counted tokens, or "sum". shaping: what
    happens to the head's product.
    """
    total = hidden_ND.new_zeros((), dtype=torch.float32)
    rows = max(1, CHUNK_ELEMENTS // weight_VD.size(0))
    in_chunks = hidden_ND.size(0) > rows and torch.is_grad_enabled()
    if in_chunks and bias is None and shaping == PLAIN:
        total = PlainHeadLoss.apply(hidden_ND, weight_VD, targets_N)
    else:
        for start in range(0, hidden_ND.size(0), rows):
            part = (hidden_ND[start : start + rows], weight_VD, bias, targets_N[start : start + rows], shaping)
            total = total + (checkpoint(head_loss, *part, use_reentrant=False) if in_chunks else head_loss(*part))
    return total / (targets_N != IGNORED).sum() if reduction == "mean" else total
