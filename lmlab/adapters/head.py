"""The loss at the head of a language model, for vocabularies whose logits do not fit in memory all at once.

N tokens of a whole batch, C tokens of a chunk, D model width, V vocabulary, W words of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from lmlab.data import IGNORED
from lmlab.devices import product_type

CHUNK_ELEMENTS = 1 << 24  # logits held at a time: 64 MB in fp32
CHUNK_TOKENS = 256  # of so many in bf16, if 64 MB hold them: each chunk passes over the whole gradient of the head
LOGITS_IN_CACHE = 1 << 20  # made probabilities at a time on a processor
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


class Joint:
    """The gradient of a table that is both embedding and head, on its way through one backward pass.

    The head leaves its own here, and the lookup, which comes last, adds to the rows of its tokens and hands it on. Autograd
    by itself would have the lookup make a whole table, zero but for those rows, and add the two up to a third.
    awaited: whether a lookup will.
    """

    def __init__(self) -> None:
        self.gradient_VD: Tensor | None = None
        self.awaited = False


class Lookup(torch.autograd.Function):
    """The rows of a table for ids, whose gradient goes into a `Joint` where the head has left its own there."""

    @staticmethod
    def forward(ctx: Any, ids_BT: Tensor, table_VD: Tensor, joint: Joint, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids_BT)
        ctx.joint, ctx.n_rows, ctx.padding = joint, table_VD.size(0), -1 if padding is None else padding
        joint.awaited = ctx.needs_input_grad[1]
        return F.embedding(ids_BT, table_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, None, None]:
        (ids_BT,), dx_BTD = ctx.saved_tensors, gradients[0]
        d_table_VD, ctx.joint.gradient_VD = ctx.joint.gradient_VD, None
        if d_table_VD is None:
            dense = torch.ops.aten.embedding_dense_backward(dx_BTD, ids_BT, ctx.n_rows, ctx.padding, False)
            return None, dense, None, None
        dx_ND, ids_N = dx_BTD.flatten(0, -2).to(d_table_VD.dtype), ids_BT.flatten()
        if ctx.padding >= 0:
            dx_ND = dx_ND.masked_fill((ids_N == ctx.padding)[:, None], 0.0)
        return None, d_table_VD.index_add_(0, ids_N, dx_ND), None, None


class PlainHeadLoss(torch.autograd.Function):
    """Summed cross-entropy of hidden_ND @ weight_VD.T, with the gradients made in the same pass over the logits.

    They are known up to one factor as soon as the logits are, so that each chunk's logits are made once and live no
    longer than it: three matrix products where computing the logits again would make four (Hsu et al. 2024). Products
    are in the precision of autocast, sums in fp32. The backward pass scales what was kept in its place, and so can be
    made once. joint: where a lookup in the same table waits for the gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, joint: Joint | None) -> Tensor:
        dtype = product_type(weight_VD)
        inputs_ND, matrix_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        d_hidden_ND = torch.empty_like(inputs_ND)
        d_weight_VD = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        V, N = weight_VD.size(0), inputs_ND.size(0)
        rows = max(1, CHUNK_ELEMENTS // V, min(CHUNK_TOKENS, 4 * CHUNK_ELEMENTS // (V * dtype.itemsize)))
        room_CV = inputs_ND.new_empty(min(rows, N), V)
        for chunk_CD, out_CD, targets_C in zip(
            inputs_ND.split(rows), d_hidden_ND.split(rows), targets_N.split(rows), strict=True
        ):
            d_logits_CV = torch.mm(chunk_CD, matrix_VD.mT, out=room_CV[: chunk_CD.size(0)])
            total += loss_and_gradient(d_logits_CV, targets_C)
            torch.mm(d_logits_CV, matrix_VD, out=out_CD)
            if d_weight_VD is not None:
                add_product(d_weight_VD, d_logits_CV, chunk_CD)
        ctx.hidden_dtype, ctx.joint = hidden_ND.dtype, joint
        ctx.save_for_backward(d_hidden_ND, d_weight_VD)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        d_hidden_ND, d_weight_VD = ctx.saved_tensors
        factor = gradients[0]
        d_weight_VD = None if d_weight_VD is None else d_weight_VD.mul_(factor)
        if ctx.joint is not None and ctx.joint.awaited:
            ctx.joint.gradient_VD, d_weight_VD = d_weight_VD, None
        return (d_hidden_ND * factor).to(ctx.hidden_dtype), d_weight_VD, None, None


def loss_and_gradient(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    """Summed cross-entropy of logits, fp32, and its gradient, probabilities less the targets, in the logits' place.

    On a processor rows go by so few that what is made of them in fp32 stays in the cache.
    """
    in_pieces, V = has_cache(logits_CV), logits_CV.size(1)
    n_rows = max(1, LOGITS_IN_CACHE // V) if in_pieces else len(logits_CV)
    room_RV = logits_CV.new_empty(min(n_rows, len(logits_CV)) if in_pieces else 0, V, dtype=torch.float32)
    total = logits_CV.new_zeros((), dtype=torch.float32)
    for part_RV, targets_R in zip(logits_CV.split(n_rows), targets_C.split(n_rows), strict=True):
        counted_R1, index_R1 = (targets_R != IGNORED)[:, None], targets_R.clamp_min(0)[:, None]
        largest_R1, wanted_R1 = part_RV.amax(dim=1, keepdim=True).float(), part_RV.gather(1, index_R1).float()
        if in_pieces:
            values_RV = room_RV[: len(part_RV)].copy_(part_RV)
            torch.softmax(values_RV, dim=1, out=values_RV)
        else:
            values_RV = torch.softmax(part_RV, dim=1, dtype=torch.float32)
        log_sum_R1 = largest_R1 - values_RV.amax(dim=1, keepdim=True).log()
        total += (log_sum_R1 - wanted_R1).masked_fill_(~counted_R1, 0.0).sum()
        values_RV.scatter_add_(1, index_R1, values_RV.new_full(index_R1.shape, -1.0))
        part_RV.copy_(values_RV.mul_(counted_R1))
    return total


def has_cache(x: Tensor) -> bool:
    """Whether small pieces are the quicker ones: on a processor, unless a compiler makes them."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def add_product(sums_VD: Tensor, d_logits_CV: Tensor, chunk_CD: Tensor) -> None:
    """Add d_logits_CV.T @ chunk_CD to sums that may be more precise; on a processor, by so few words that the cache holds
    their products."""
    if sums_VD.dtype == chunk_CD.dtype:
        sums_VD.addmm_(d_logits_CV.mT, chunk_CD)
        return
    if not has_cache(sums_VD):
        sums_VD += d_logits_CV.mT @ chunk_CD
        return
    V, D = sums_VD.shape
    words = min(WORDS_AT_ONCE, V)
    product_WD, precise_WD = chunk_CD.new_empty(words, D), sums_VD.new_empty(words, D)  # used again and again
    for sums_WD, d_logits_CW in zip(sums_VD.split(words), d_logits_CV.split(words, dim=1), strict=True):
        n = sums_WD.size(0)
        torch.mm(d_logits_CW.mT, chunk_CD, out=product_WD[:n])
        sums_WD += precise_WD[:n].copy_(product_WD[:n])


def head_loss(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, shaping: Shaping
) -> Tensor:
    """Summed loss in nats of one chunk; its logits live no longer than this call."""
    inputs_ND = hidden_ND.to(product_type(weight_VD))  # some models keep fp32 beside weights that are not
    logits_NV = shaping(F.linear(inputs_ND, weight_VD, bias_V).float())
    return F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="sum")


def chunked_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    reduction: str = "mean",
    bias: Tensor | None = None,
    shaping: Shaping = PLAIN,
    joint: Joint | None = None,
) -> Tensor:
    """Next-token loss in nats, fp32, without ever holding the logits of all tokens.

    The head and the loss run over chunks of tokens; a head with a bias or a shaping computes them again in the
    backward pass. Targets of -100 are not counted. reduction: "mean" over counted tokens, or "sum". shaping: what
    happens to the head's product. joint: of the lookup of these tokens in the same table, if that is one.
    """
    total = hidden_ND.new_zeros((), dtype=torch.float32)
    rows = max(1, CHUNK_ELEMENTS // weight_VD.size(0))
    in_chunks = hidden_ND.size(0) > rows and torch.is_grad_enabled()
    if in_chunks and bias is None and shaping == PLAIN:
        total = PlainHeadLoss.apply(hidden_ND, weight_VD, targets_N, joint)
    else:
        for start in range(0, hidden_ND.size(0), rows):
            part = (hidden_ND[start : start + rows], weight_VD, bias, targets_N[start : start + rows], shaping)
            total = total + (checkpoint(head_loss, *part, use_reentrant=False) if in_chunks else head_loss(*part))
    return total / (targets_N != IGNORED).sum() if reduction == "mean" else total
