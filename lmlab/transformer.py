"""The custom Transformer, complete in one file: a decoder in the manner of GPT-2 with rotary positions.

Pre-norm blocks (Xiong et al. 2020) of causal attention and a squared-ReLU feed-forward, queries and keys normalised
(Henry et al. 2020), rotary positions (Su et al. 2021), scaled initialisation of what writes to the residual stream
(Radford et al. 2019), input and output embeddings tied (Press and Wolf 2017). Attention reaches back over at most
`max_seq_len` tokens, so that text of any length can be sampled: a window that slides (Beltagy et al. 2020) and that a
key-value cache follows.

Shapes are in names: B batch, T new tokens, S keys in sight, D model width, H heads, K head width, F feed-forward
width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from lmlab import devices
from lmlab.ranks import any_spread

# Up to this many keys, and in bf16 on a processor, plain matrix products are twice as fast as the fused kernel of
# scaled_dot_product_attention.
EXPLICIT_ATTENTION_KEYS = 512
LAYER_NORM_EPSILON = 1e-5
ATTENTION_BLOCK = 64  # queries to a block: smaller ones skip more scores, and make smaller products

QUERY_KEY_GAIN = 1.2  # of normalised queries and keys: scores may then reach 1.44 × √K, enough to look at one token


class Cache:
    """Keys and values of the tokens seen so far, as many as the attention window can reach.

    position: tokens seen. One buffer per layer holds 2 × window tokens; when it is full, the last window moves to its
    front, so that what is in sight is always one slice in order. steps: what takes single tokens, if not the model.
    dtype: None is that of the first keys.
    """

    def __init__(
        self, n_layers: int, window: int, steps: Steps | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.window, self.position, self.steps, self.dtype = window, 0, steps, dtype
        self._buffers: list[Tensor | None] = [None] * n_layers
        self._ends = [0] * n_layers

    def append(self, layer: int, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
        """Add new keys and values of one layer; returns kv_2BHSK, the older ones still in reach and the new ones."""
        T, end, buffer = k_BHTK.size(-2), self._ends[layer], self._buffers[layer]
        old = min(end, self.window - 1)
        if buffer is None or end + T > buffer.size(-2):
            seen = k_BHTK.new_empty(0) if buffer is None else buffer[..., end - old : end, :].clone()
            if buffer is None or old + T > buffer.size(-2):
                B, H, _, K = k_BHTK.shape
                buffer = k_BHTK.new_empty((2, B, H, max(2 * self.window, old + T), K), dtype=self.dtype)
                self._buffers[layer] = buffer
            if old:
                buffer[..., :old, :] = seen
            end = old
        buffer[0, :, :, end : end + T] = k_BHTK
        buffer[1, :, :, end : end + T] = v_BHTK
        self._ends[layer] = end + T
        return buffer[..., end - old : end + T, :]


def rotary_table(length: int, head_width: int, device: torch.device) -> Tensor:
    """Cosines and sines of every position's angles, table_2TK in fp32 (Su et al. 2021, equation 34, base 10,000).

    The sines of the first half of the width have the sign with which the second half is added to it.
    """
    half = torch.arange(0, head_width, 2, device=device, dtype=torch.float32)
    angle_TK = torch.outer(torch.arange(length, device=device, dtype=torch.float32), 10_000.0 ** (-half / head_width))
    return torch.stack([torch.cat([angle_TK, angle_TK], dim=-1).cos(), torch.cat([-angle_TK, angle_TK], dim=-1).sin()])


def turned(x_BHTK: Tensor, cosine_TK: Tensor, sine_TK: Tensor, y_BHTK: Tensor | None = None) -> Tensor:
    """Each half of the heads' width times cosine plus the other half times sine, with the table's signs.

    A new tensor, or y_BHTK, where that is given, unless a compiler makes the code.
    """
    half = x_BHTK.size(-1) // 2
    # Of a single token, fewer operations count for more than passes over memory; and a compiler joins those.
    if x_BHTK.size(-2) == 1 or torch.compiler.is_compiling():
        return torch.addcmul(x_BHTK * cosine_TK, x_BHTK.roll(half, -1), sine_TK)
    first, second = x_BHTK[..., :half], x_BHTK[..., half:]
    y_BHTK = x_BHTK.new_empty(x_BHTK.shape) if y_BHTK is None else y_BHTK
    torch.mul(first, cosine_TK[..., :half], out=y_BHTK[..., :half]).addcmul_(second, sine_TK[..., :half])
    torch.mul(second, cosine_TK[..., half:], out=y_BHTK[..., half:]).addcmul_(first, sine_TK[..., half:])
    return y_BHTK


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability p (to within 2⁻¹⁷) and scale the others by 1 / (1 - p).

    On a processor the masks come from 16 random bits per element, four elements to one wide draw, which takes a
    quarter of the time of torch's Bernoulli draws; elsewhere torch's own kernel is faster still.
    """
    if not training or p == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[: x.numel()].view_as(x)
    threshold = min(round(p * 2**16) - 2**15, 2**15 - 1)  # the largest int16, for a p just below 1
    kept = bits.ge_(threshold).to(x.dtype)  # in place: by way of booleans it takes ten times as long
    return x * kept.mul_(1.0 / (1.0 - p))


def window_mask(T: int, S: int, window: int, device: torch.device) -> Tensor:
    """mask_TS, true where a query may look: at itself and the `window` - 1 tokens before it. The last T keys are new."""
    distance_TS = torch.arange(S - T, S, device=device)[:, None] - torch.arange(S, device=device)[None, :]
    return (distance_TS >= 0) & (distance_TS < window)


def attention_probabilities(q_BHTK: Tensor, k_BHSK: Tensor, mask_TS: Tensor | None) -> Tensor:
    """How much each query looks at each key, rows that sum to 1 (Vaswani et al. 2017, equation 1). mask as `attend`."""
    T, S = q_BHTK.size(-2), k_BHSK.size(-2)
    scores_BHTS = (q_BHTK * (1.0 / math.sqrt(q_BHTK.size(-1)))) @ k_BHSK.mT
    if mask_TS is None and T > 1:
        mask_TS = torch.ones(T, S, dtype=torch.bool, device=q_BHTK.device).tril()
    if mask_TS is not None:
        scores_BHTS = scores_BHTS.masked_fill(~mask_TS, -math.inf)
    return scores_BHTS.softmax(dim=-1)


class BlockCausalAttention(torch.autograd.Function):
    """Causal attention by plain products over blocks of queries, each with the keys up to its end: T = S, no mask.

    Blocks leave out nearly half of the scores. The backward pass keeps the probabilities and makes five products of
    them, as in Dao et al. 2022 (appendix B) but for the recomputation. Where several heads share keys and values
    (Ainslie et al. 2023), their queries lie one below the other, R rows to a block, and no key is repeated. N = B × G.
    """

    @staticmethod
    def forward(ctx: Any, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
        T, G = k_BGTK.size(-2), k_BGTK.size(1)
        k_NTK, v_NTK = k_BGTK.flatten(0, 1), v_BGTK.flatten(0, 1)
        scale, y_BHTK, kept = 1.0 / math.sqrt(q_BHTK.size(-1)), q_BHTK.new_empty(q_BHTK.shape), []
        for start in range(0, T, ATTENTION_BLOCK):
            stop = min(start + ATTENTION_BLOCK, T)
            q_NRK = rows_of(q_BHTK[:, :, start:stop], G)
            scores_NRS = q_NRK.new_empty(*q_NRK.shape[:2], stop)
            into(scores_NRS, q_NRK, k_NTK[:, :stop].mT, scale)
            later = q_NRK.new_full((stop - start, stop - start), -math.inf).triu(1)
            scores_NRS.view(-1, stop - start, stop)[..., start:] += later
            kept.append(torch.softmax(scores_NRS, dim=-1, out=scores_NRS))
            into_heads(y_BHTK[:, :, start:stop], kept[-1], v_NTK[:, :stop])
        ctx.save_for_backward(q_BHTK, k_BGTK, v_BGTK, *kept)
        ctx.scale = scale
        return y_BHTK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_BHTK, k_BGTK, v_BGTK, *kept = ctx.saved_tensors
        # Contiguous, as x may not be.
        dq_BHTK, dk_BGTK, dv_BGTK = (x.new_empty(x.shape) for x in (q_BHTK, k_BGTK, v_BGTK))
        k_NTK, v_NTK, dk_NTK, dv_NTK = (x.flatten(0, 1) for x in (k_BGTK, v_BGTK, dk_BGTK, dv_BGTK))
        for block in reversed(range(len(kept))):  # the last block reaches all keys, the others add to what it wrote
            probabilities_NRS, start, adds = kept[block], block * ATTENTION_BLOCK, block < len(kept) - 1
            stop = probabilities_NRS.size(-1)
            q_NRK, dy_NRK = (rows_of(x[:, :, start:stop], k_BGTK.size(1)) for x in (q_BHTK, gradients[0]))
            into(dv_NTK[:, :stop], probabilities_NRS.mT, dy_NRK, add=adds)
            d_NRS = torch.bmm(dy_NRK, v_NTK[:, :stop].mT)
            d_NRS = torch._softmax_backward_data(d_NRS, probabilities_NRS, -1, d_NRS.dtype)
            into_heads(dq_BHTK[:, :, start:stop], d_NRS, k_NTK[:, :stop], ctx.scale)
            into(dk_NTK[:, :stop], d_NRS.mT, q_NRK, ctx.scale, add=adds)
        return dq_BHTK, dk_BGTK, dv_BGTK


def rows_of(x_BHQK: Tensor, G: int) -> Tensor:
    """A block of every head's vectors as x_NRK, the heads of a group one below the other."""
    return x_BHQK.reshape(x_BHQK.size(0) * G, -1, x_BHQK.size(-1))


def into_heads(target_BHQK: Tensor, left_NRS: Tensor, right_NSK: Tensor, scale: float = 1.0) -> None:
    """Write scale × left @ right, rows as in `rows_of`, to a block of every head's vectors."""
    target_MQK = target_BHQK.flatten(0, 1)
    if len(target_MQK) == len(left_NRS):  # each head has its own keys, and its rows their order
        into(target_MQK, left_NRS, right_NSK, scale)
    else:
        product_NRK = right_NSK.new_empty(*left_NRS.shape[:2], right_NSK.size(-1))
        into(product_NRK, left_NRS, right_NSK, scale)
        target_BHQK.copy_(product_NRK.view(target_BHQK.shape))


def into(target: Tensor, left: Tensor, right: Tensor, scale: float = 1.0, add: bool = False) -> None:
    """Write scale × left @ right (batches of matrices) to `target`, or add it to what is there."""
    torch.baddbmm(target, left, right, beta=1.0 if add else 0.0, alpha=scale, out=target)


def products_are_faster(q_BHTK: Tensor, S: int) -> bool:
    """Whether attention by plain products beats the fused kernel, see EXPLICIT_ATTENTION_KEYS.

    Not for a single query: its keys are one more each time, and a new size of products costs time and memory. And not
    under torch.compile, which cannot write into a part of a tensor.
    """
    halved = q_BHTK.device.type == "cpu" and q_BHTK.dtype == torch.bfloat16
    return halved and q_BHTK.size(-2) > 1 and S <= EXPLICIT_ATTENTION_KEYS and not torch.compiler.is_compiling()


def attend(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask_TS: Tensor | None) -> Tensor:
    """Scaled dot-product attention, by plain products where they are faster.

    mask: true where to look, with leading axes for batch and head if need be. None: each token at itself and all
    before it where T = S, and a single query at every key.
    """
    T, S = q_BHTK.size(-2), k_BHSK.size(-2)
    if products_are_faster(q_BHTK, S):
        if mask_TS is None and T == S:
            return BlockCausalAttention.apply(q_BHTK, k_BHSK, v_BHSK)
        return attention_probabilities(q_BHTK, k_BHSK, mask_TS) @ v_BHSK
    return F.scaled_dot_product_attention(
        q_BHTK, k_BHSK, v_BHSK, attn_mask=mask_TS, is_causal=mask_TS is None and T > 1
    )


def normalised(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean 0 and deviation 1 over the last axis, in the precision of `x`; the mean and 1 / deviation that it had."""
    if not torch.is_autocast_enabled(x.device.type):
        return torch.native_layer_norm(x, x.shape[-1:], None, None, LAYER_NORM_EPSILON)
    with torch.autocast(x.device.type, enabled=False):  # which would make it fp32 on some devices
        return torch.native_layer_norm(x, x.shape[-1:], None, None, LAYER_NORM_EPSILON)


class Heads(torch.autograd.Function):
    """Queries, keys and values of every head, each BHTK, from their joint projection; see `turned` for the table.

    Queries and keys are normalised and turned to their positions. The gradient is written once, to where the projection
    has it, and turned back by the opposite angle.
    """

    @staticmethod
    def forward(ctx: Any, qkv_BTE: Tensor, table_2TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv_3BHTK = by_head(qkv_BTE, table_2TK.size(-1))
        normal_2BHTK, mean, scale = normalised(qkv_3BHTK[:2])
        ctx.save_for_backward(qkv_BTE, table_2TK, mean, scale)
        q_BHTK, k_BHTK = turned(normal_2BHTK, *table_2TK)
        return q_BHTK, k_BHTK, qkv_3BHTK[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        qkv_BTE, table_2TK, *moments = ctx.saved_tensors
        d_qkv_BTE = torch.empty_like(qkv_BTE)
        x_3BHTK, dx_3BHTK = (by_head(x_BTE, table_2TK.size(-1)) for x_BTE in (qkv_BTE, d_qkv_BTE))
        turns = zip(x_3BHTK[:2], dx_3BHTK[:2], gradients[:2], *moments, strict=True)
        for x_BHTK, dx_BHTK, dy_BHTK, mean, scale in turns:
            dy_BHTK = turned(dy_BHTK, table_2TK[0], -table_2TK[1])
            given = (dy_BHTK, x_BHTK, x_BHTK.shape[-1:], mean, scale, None, None, [True, False, False])
            dx_BHTK.copy_(torch.ops.aten.native_layer_norm_backward(*given)[0])
        dx_3BHTK[2].copy_(gradients[2])
        return d_qkv_BTE, None


def by_head(qkv_BTE: Tensor, head_width: int) -> Tensor:
    """The joint projection, E = 3 × H × K, as a view qkv_3BHTK."""
    B, T, _ = qkv_BTE.shape
    return qkv_BTE.view(B, T, 3, -1, head_width).permute(2, 0, 3, 1, 4)


class Attention(nn.Module):
    """Causal self-attention over a window of tokens."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.query_key_value = nn.Linear(d_model, 3 * d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)

    def project(self, x_BTD: Tensor, table_2TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each BHTK; the first two normalised, then turned to their positions and scaled."""
        qkv_BTE = self.query_key_value(x_BTD)
        q_BHTK, k_BHTK, v_BHTK = Heads.apply(qkv_BTE, table_2TK.to(qkv_BTE.dtype))
        return q_BHTK, k_BHTK, v_BHTK

    def forward(
        self, x_BTD: Tensor, table_2TK: Tensor, mask_TS: Tensor | None, cache: Cache | None, layer: int
    ) -> Tensor:
        q_BHTK, k_BHSK, v_BHSK = self.project(x_BTD, table_2TK)
        if cache is not None:
            k_BHSK, v_BHSK = cache.append(layer, k_BHSK, v_BHSK).to(q_BHTK.dtype).unbind(0)
        y_BHTK = attend(q_BHTK, k_BHSK, v_BHSK, mask_TS)
        y_BTD = self.output(y_BHTK.transpose(1, 2).reshape(x_BTD.shape))
        return dropout(y_BTD, self.dropout, self.training)


class SquaredReLUFeedForward(torch.autograd.Function):
    """max(x Iᵀ, 0)² Oᵀ, of which the maximum and its square are kept: a gradient 2·max(x Iᵀ, 0) needs no mask."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, input_FD: Tensor, output_DF: Tensor) -> Tensor:
        dtype = devices.product_type(x_BTD)
        x_ND = x_BTD.flatten(0, -2).to(dtype)
        positive_NF = (x_ND @ input_FD.to(dtype).mT).clamp_min_(0)
        squares_NF = positive_NF * positive_NF  # of which autocast makes no fp32, as it does of powers on some devices
        ctx.save_for_backward(x_ND, positive_NF, squares_NF, input_FD, output_DF)
        ctx.dtype = x_BTD.dtype
        return (squares_NF @ output_DF.to(dtype).mT).view(x_BTD.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_ND, positive_NF, squares_NF, input_FD, output_DF = ctx.saved_tensors
        dy_ND = gradients[0].flatten(0, -2).to(x_ND.dtype)
        d_output_DF = dy_ND.mT @ squares_NF
        d_NF = (dy_ND @ (2 * output_DF.to(x_ND.dtype))).mul_(positive_NF)
        dx_ND = d_NF @ input_FD.to(x_ND.dtype)
        return dx_ND.view(gradients[0].shape).to(ctx.dtype), d_NF.mT @ x_ND, d_output_DF


class FeedForward(nn.Module):
    """Two matrices with a squared ReLU between them (So et al. 2021), which here learns faster than a GELU."""

    def __init__(self, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.input = nn.Linear(d_model, d_ff, bias=False)
        self.output = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD = SquaredReLUFeedForward.apply(x_BTD, self.input.weight, self.output.weight)
        return dropout(y_BTD, self.dropout, self.training)


class Block(nn.Module):
    """Attention, then feed-forward, each normalised at its input and added to the residual stream."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model, bias=False)
        self.attention = Attention(d_model, n_heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(d_model, bias=False)
        self.feed_forward = FeedForward(d_model, d_ff, dropout)

    def forward(
        self, x_BTD: Tensor, table_2TK: Tensor, mask_TS: Tensor | None, cache: Cache | None, layer: int
    ) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), table_2TK, mask_TS, cache, layer)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


class Step:
    """A block for a single token while sampling: the same arithmetic, without what calling modules costs, a third of it."""

    def __init__(self, block: Any) -> None:
        attention, feed_forward = block.attention, block.feed_forward
        self.attention_norm, self.feed_forward_norm = block.attention_norm.weight, block.feed_forward_norm.weight
        self.query_key_value, self.output = matrix_of(attention.query_key_value), matrix_of(attention.output)
        self.feed_forward_input, self.feed_forward_output = (
            matrix_of(feed_forward.input),
            matrix_of(feed_forward.output),
        )
        self.n_heads, self.shape = attention.n_heads, self.attention_norm.shape

    def __call__(self, x_BD: Tensor, turn: Sequence[Tensor], cache: Cache, layer: int) -> Tensor:
        """The residual stream of the next token after this block, in the place of that before it. turn: see `turned`."""
        B = x_BD.size(0)
        dtype = self.output.dtype
        qkv = torch.mm(F.layer_norm(x_BD, self.shape, self.attention_norm).to(dtype), self.query_key_value)
        qkv_B3HTK = qkv.view(B, 3, self.n_heads, 1, -1)
        qk_B2HTK = turned(normalised(qkv_B3HTK[:, :2])[0], *turn)
        k_BHSK, v_BHSK = cache.append(layer, qk_B2HTK[:, 1], qkv_B3HTK[:, 2]).unbind(0)
        y_BHTK = F.scaled_dot_product_attention(qk_B2HTK[:, 0].to(k_BHSK.dtype), k_BHSK, v_BHSK)
        x_BD.add_(torch.mm(y_BHTK.reshape(B, -1).to(dtype), self.output))
        h_BF = torch.mm(F.layer_norm(x_BD, self.shape, self.feed_forward_norm).to(dtype), self.feed_forward_input)
        return x_BD.add_(torch.mm(h_BF.clamp_min_(0).square_(), self.feed_forward_output))


class Steps:
    """The model for a single token while sampling: its blocks, the last norm and the head."""

    def __init__(self, model: Transformer) -> None:
        self.blocks = [Step(block) for block in model.blocks]
        self.norm, self.head = model.norm.weight, matrix_of(model.embedding)

    def __call__(self, x_BD: Tensor, table_2TK: Tensor, cache: Cache) -> Tensor:
        """logits_BV of the token after this one, whose keys and values are added; the embedding is overwritten."""
        turn = table_2TK.to(self.head.dtype).unbind(0)
        # All is of the right type already.
        with torch.autocast(x_BD.device.type, enabled=False), devices.products_of(x_BD):
            with torch.inference_mode():  # nothing is kept for a gradient, not even the count of writes to a tensor
                for layer, block in enumerate(self.blocks):
                    x_BD = block(x_BD, turn, cache, layer)
            cache.position += 1
            return torch.mm(F.layer_norm(x_BD, self.norm.shape, self.norm).to(self.head.dtype), self.head)


def matrix_of(layer: nn.Linear | nn.Embedding) -> Tensor:
    """A layer's matrix as `torch.mm` takes it, in the precision of products. Finding that takes as long as a small one."""
    return layer.weight.to(devices.product_type(layer.weight)).T


class Transformer(nn.Module):
    """A causal language model over `vocab_size` tokens.

    d_model must be a multiple of 2 × n_heads. max_seq_len: how far attention reaches back, in tokens.
    seed: makes the weights reproducible; None draws them from torch's default generator.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        n_layers: int,
        d_model: int,
        n_heads: int,
        d_ff: int,
        dropout: float,
        max_seq_len: int,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if d_model % (2 * n_heads):
            raise ValueError(f"d_model={d_model} is not a multiple of 2 × n_heads={n_heads}")
        self.vocab_size, self.n_layers, self.d_model, self.n_heads = vocab_size, n_layers, d_model, n_heads
        self.d_ff, self.dropout, self.max_seq_len = d_ff, dropout, max_seq_len
        self.activation_checkpointing = False
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.blocks = nn.ModuleList(Block(d_model, n_heads, d_ff, dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model, bias=False)
        if self.norm.weight.dtype != torch.float32:  # torch's default type is another where the model is made
            self.float()
        self.register_buffer("rotary_2TK", self._table(max_seq_len), persistent=False)
        self.rotary_2TK: Tensor
        self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int | None) -> None:
        """Normal weights of deviation 0.02; what writes to the residual stream is scaled by 1/√(2 × layers)."""
        generator = None
        if seed is not None and self.embedding.weight.device.type != "meta":
            generator = torch.Generator(self.embedding.weight.device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                scale = 1.0 / math.sqrt(2 * self.n_layers) if name.endswith("output.weight") else 1.0
                parameter.normal_(0.0, 0.02 * scale, generator=generator)

    def materialise(self) -> None:
        """Give a model that was made on the meta device memory on the processor. Its weights are still to be set."""
        self.to_empty(device="cpu")
        self.rotary_2TK = self._table(self.max_seq_len)  # now: compiled code would compute other cosines

    def architecture(self) -> dict[str, int | float]:
        """The arguments that make this model again, without its weights."""
        names = ("vocab_size", "n_layers", "d_model", "n_heads", "d_ff", "dropout", "max_seq_len")
        return {name: getattr(self, name) for name in names}

    def new_cache(self) -> Cache:
        """An empty key-value cache for `forward`."""
        if any_spread(self.parameters()):
            return Cache(self.n_layers, self.max_seq_len)
        return Cache(self.n_layers, self.max_seq_len, Steps(self), devices.type_of_keys(self.embedding.weight))

    def forward(self, ids_BT: Tensor, cache: Cache | None = None, segments_BT: Tensor | None = None) -> Tensor:
        """Logits of the next token at every position, logits_BTV. ids_BT: int64.

        With a cache, ids_BT are the tokens that follow those it has seen, and it is advanced. segments_BT numbers the
        documents packed into one window: no token looks into another document (not together with a cache).
        """
        if self._steps(ids_BT, cache):
            return self.next_logits(ids_BT, cache)[:, None]
        return self.head(self.hidden(ids_BT, cache, segments_BT))

    def next_logits(self, ids_BT: Tensor, cache: Cache | None = None, segments_BT: Tensor | None = None) -> Tensor:
        """Logits of the token after ids_BT, logits_BV. Arguments as for `forward`."""
        if cache is not None and (steps := self._steps(ids_BT, cache)):
            table_2TK = self._rotary(cache.position + 1)[:, cache.position :]
            return steps(self.embedding(ids_BT[:, 0]), table_2TK, cache)
        return self.head(self.hidden(ids_BT, cache, segments_BT)[:, -1])

    def head(self, x_BTD: Tensor) -> Tensor:
        """Logits of the vocabulary from normalised hidden states, by the transposed embedding."""
        return F.linear(x_BTD, self.embedding.weight)

    def hidden(self, ids_BT: Tensor, cache: Cache | None = None, segments_BT: Tensor | None = None) -> Tensor:
        """The last block's output after the final norm, x_BTD, from which `head` makes logits."""
        T, start = ids_BT.size(1), cache.position if cache is not None else 0
        table_2TK = self._rotary(start + T)[:, start : start + T]
        mask_TS = self._mask(T, min(start, self.max_seq_len - 1) + T, segments_BT)
        x_BTD = self.embedding(ids_BT)
        for layer, block in enumerate(self.blocks):
            if self.activation_checkpointing and self.training:
                again = devices.recomputation(x_BTD.device)
                x_BTD = checkpoint(block, x_BTD, table_2TK, mask_TS, cache, layer, **again)
            else:
                x_BTD = block(x_BTD, table_2TK, mask_TS, cache, layer)
        if cache is not None:
            cache.position += T
        return self.norm(x_BTD)

    def _steps(self, ids_BT: Tensor, cache: Cache | None) -> Steps | None:
        """What takes ids_BT, where they are one token after others that needs no gradient."""
        if cache is None or cache.position == 0 or ids_BT.size(1) > 1 or torch.is_grad_enabled() or self.training:
            return None
        return cache.steps

    def _mask(self, T: int, S: int, segments_BT: Tensor | None) -> Tensor | None:
        if T == 1 or (T == S <= self.max_seq_len and segments_BT is None):
            return None  # plain causal attention, which `attend` does without a mask
        mask_TS = window_mask(T, S, self.max_seq_len, self.embedding.weight.device)
        if segments_BT is None:
            return mask_TS
        same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
        return (mask_TS & same_BTS)[:, None]

    def _rotary(self, length: int) -> Tensor:
        if length > self.rotary_2TK.size(1):  # longer texts than the window come when sampling; grow by doubling
            self.rotary_2TK = self._table(2 ** math.ceil(math.log2(length)))
        return self.rotary_2TK[:, :length]

    def _table(self, length: int) -> Tensor:
        """Turns of all positions, with the gain of queries and keys in them."""
        return QUERY_KEY_GAIN * rotary_table(length, self.d_model // self.n_heads, self.embedding.weight.device)
