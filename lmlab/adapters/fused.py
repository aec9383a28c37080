"""Norms and feed-forwards of transformers' models with fewer passes over memory, and less kept for the backward pass.

While a model trains, root-mean-square norms (Zhang and Sennrich 2019) and gated feed-forwards (Shazeer 2020) run as one
function each, which keeps its inputs and computes the rest again. Without gradients transformers' own code runs.
N tokens, D model width, F feed-forward width.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmlab.devices import product_type
from lmlab.modes import in_mode

NORMS = ("input_layernorm", "post_attention_layernorm", "norm")  # those that linear layers alone read
GATED = ("gate_proj", "up_proj", "down_proj")
LARGE = 1000.0  # times which an input shows what is cut off
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")  # as transformers calls their classes
# Classes that compute just this, for models that have shapes but no numbers to try it with.
KNOWN = {f"{family}{part}" for family in FAMILIES for part in ("RMSNorm", "MLP")}


class RootMeanSquareNorm(torch.autograd.Function):
    """x / √(mean x² + ε) × weight over the last axis, in fp32, rounded once to the precision of autocast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_() / x.size(-1)
        factor = mean_square.add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight_D, factor)
        return (x * factor).mul_(weight_D).to(product_type(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_D, factor = ctx.saved_tensors
        dy, x_float, weight_float_D = gradients[0].float(), x.float(), weight_D.float()
        # The kernel of layer norm at a mean of 0; what it takes off for the gradient of the mean is put back.
        given = (x.shape[-1:], torch.zeros_like(factor), factor, weight_float_D, None, [True, True, False])
        dx, d_weight_D, _ = torch.ops.aten.native_layer_norm_backward(dy, x_float, *given)
        along_mean = torch.linalg.vecdot(dy, weight_float_D)[..., None].div_(x.size(-1))
        return dx.add_(along_mean.mul_(factor)).to(x.dtype), d_weight_D.to(weight_D.dtype), None


class GatedFeedForward(torch.autograd.Function):
    """(silu(x Gᵀ) × (x Uᵀ)) Dᵀ as an ND of all vectors of x, of which the two products in brackets are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
        dtype = product_type(x)
        x_ND = x.flatten(0, -2).to(dtype)
        gated_NF, raised_NF = x_ND @ gate_FD.to(dtype).mT, x_ND @ up_FD.to(dtype).mT
        ctx.save_for_backward(x_ND, gated_NF, raised_NF, gate_FD, up_FD, down_DF)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return F.silu(gated_NF).mul_(raised_NF) @ down_DF.to(dtype).mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, gated_NF, raised_NF, gate_FD, up_FD, down_DF = ctx.saved_tensors
        dtype = x_ND.dtype
        dy_ND = gradients[0].to(dtype)
        active_NF = F.silu(gated_NF)
        d_down_DF = dy_ND.mT @ (active_NF * raised_NF)
        d_NF = dy_ND @ down_DF.to(dtype)
        d_raised_NF = active_NF.mul_(d_NF)
        d_gated_NF = torch.ops.aten.silu_backward(d_NF.mul_(raised_NF), gated_NF)
        dx_ND = d_gated_NF @ gate_FD.to(dtype)
        dx_ND.addmm_(d_raised_NF, up_FD.to(dtype))
        dx = dx_ND.view(ctx.shape).to(ctx.dtype)
        return dx, d_gated_NF.mT @ x_ND, d_raised_NF.mT @ x_ND, d_down_DF


def fuse(model: nn.Module) -> int:
    """Let a model's norms and feed-forwards run as above while it trains, where they compute just that; returns how many."""
    fused = 0
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in NORMS and is_root_mean_square(module):
            module.forward = functools.partial(training_or, module.forward, norm_of, module)
            fused += 1
        elif is_gated(module):
            module.forward = functools.partial(feed_forward, module.forward, module)
            fused += 1
    return fused


def training_or(plain: Any, fused: Any, module: nn.Module, x: Tensor, *rest: Any, **more: Any) -> Any:
    """A module's forward: `fused` where gradients are wanted and x is all that is given, else `plain`; some take a gate.

    What a module holds of this is bound to it by `functools.partial`, which a deep copy of the model binds to the copy.
    """
    return fused(module, x) if torch.is_grad_enabled() and not rest and not more else plain(x, *rest, **more)


def feed_forward(plain: Any, module: Any, x: Tensor, *rest: Any, **more: Any) -> Any:
    """`training_or` of a feed-forward, unless a layer was replaced since, or is watched."""
    if not all(is_plain(getattr(module, name)) for name in GATED):
        return plain(x, *rest, **more)
    return training_or(plain, feed_forward_of, module, x, *rest, **more)


def norm_of(module: Any, x: Tensor) -> Any:
    """What the norm of a module of transformers makes of x."""
    return RootMeanSquareNorm.apply(x, module.weight, module.variance_epsilon)


def feed_forward_of(module: Any, x: Tensor) -> Any:
    """What the feed-forward of a module of transformers makes of x; some add to it in place."""
    y_ND = GatedFeedForward.apply(x, module.gate_proj.weight, module.up_proj.weight, module.down_proj.weight)
    return y_ND.view(*x.shape[:-1], -1)


def is_plain(layer: Any) -> bool:
    """Whether a layer is a matrix product and no more, without a bias, and nobody looks at what goes in and out."""
    return type(layer) is nn.Linear and layer.bias is None and not (layer._forward_hooks or layer._forward_pre_hooks)


def is_root_mean_square(module: Any) -> bool:
    """Whether a module is the norm above, found out by trying it: some families add 1 to the weight, or round otherwise."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not isinstance(getattr(module, "variance_epsilon", None), float):
        return False
    return same(module, norm_of, weight.size(-1), weight)


def is_gated(module: Any) -> bool:
    """Whether a module is the feed-forward above, without biases: found out by trying it."""
    layers: list[Any] = [getattr(module, name, None) for name in GATED]
    if not all(map(is_plain, layers)):
        return False
    return same(module, feed_forward_of, layers[0].in_features, layers[0].weight)


@torch.no_grad()
def same(module: nn.Module, fused: Any, width: int, weight: Tensor) -> bool:
    """Whether a module and a function of it agree on vectors of a width; where tensors are shapes alone, what is known."""
    if weight.is_meta or hasattr(weight, "fake_mode"):
        return type(module).__name__ in KNOWN
    x_D = torch.linspace(-2.0, 3.0, width, device=weight.device)
    x = torch.stack([x_D, LARGE * x_D])[None].to(weight.dtype)
    on_gpu = [weight.device] if weight.device.type == "cuda" else []
    try:
        with in_mode(module, training=True), torch.random.fork_rng(on_gpu):  # where dropout shows
            one, other = module(x).float(), fused(module, x).float()
    except Exception:  # of one that wants more than x, such as a gate, or gives something else than a tensor
        return False
    tolerance = 1e-5 if weight.dtype == torch.float32 else 2e-2
    largest = one.abs().amax(dim=-1, keepdim=True)
    if not bool((largest.isfinite() & (largest > 0)).all()):  # what it computes cannot be seen, such as of zeros
        return False
    return one.shape == other.shape and bool(((one - other).abs() <= tolerance * (one.abs() + largest)).all())
