"""One token at a time through models of the Llama kind: the arithmetic of transformers' layers without what surrounds it.

A small model that samples on a processor spends a good part of a token's time between its matrix products. Norm (Zhang
and Sennrich 2019), rotary attention with grouped keys (Ainslie et al. 2023) and gated feed-forward (Shazeer 2020) are
here plain functions of the model's weights. Prompts go through the model itself.

B batch, T time, S room for tokens, D model width, H heads, G heads of keys and values, Q queries to each of them, K
head width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from lmlab import devices
from lmlab.adapters.caches import going_on
from lmlab.adapters.fused import GATED
from lmlab.transformer import matrix_of, turned

ROOM = 256  # tokens for which there is room at least, beyond those that were seen
PARTS = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": GATED}
NORMS, HEAD_NORMS = ("input_layernorm", "post_attention_layernorm"), ("q_norm", "k_norm")
TRIAL = (4, 2)  # tokens of a prompt, and of what follows, on which the two ways must agree


class Norm:
    """x / √(mean x² + ε) × weight over the last axis, in fp32, rounded to the precision of `x` before the weight, and to
    that of products after it."""

    def __init__(self, module: Any) -> None:
        self.weight, self.dtype = module.weight, devices.product_type(module.weight)
        self.epsilon = torch.tensor(module.variance_epsilon, device=self.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        factor = torch.addcmul(self.epsilon, length, length, value=1.0 / x.size(-1)).rsqrt_()
        return (x * factor).to(x.dtype).mul_(self.weight).to(self.dtype)


class Layer:
    """The weights of a layer, and a buffer for its keys and values each, of which those seen so far are in use."""

    def __init__(self, module: Any) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.query, self.key, self.value, self.output = (
            weights(getattr(attention, name)) for name in PARTS["self_attn"]
        )
        self.gate, self.up, self.down = (weights(getattr(mlp, name)) for name in PARTS["mlp"])
        self.activate, self.scale = mlp.act_fn.forward, attention.scaling
        self.norms = [Norm(getattr(module, name)) for name in NORMS]
        self.head_norms = [Norm(getattr(attention, name)) for name in HEAD_NORMS if hasattr(attention, name)]
        self.keys_BGSK = self.values_BGSK = torch.empty(0)

    def take(self, keys_BGSK: Tensor, values_BGSK: Tensor) -> None:
        """Begin with these, with room for as many again."""
        S, dtype = keys_BGSK.size(2), self.query[0].dtype
        spare = (0, 0, 0, max(S, ROOM))
        self.keys_BGSK, self.values_BGSK = F.pad(keys_BGSK.to(dtype), spare), F.pad(values_BGSK.to(dtype), spare)

    def __call__(self, x_BD: Tensor, turn: tuple[Tensor, Tensor], position: int) -> Tensor:
        """The residual stream of the token at a position after this layer, in the place of that before it."""
        before_attention, before_mlp = self.norms
        x_BD.add_(self.attend(before_attention(x_BD), turn, position))
        h_BD = before_mlp(x_BD)
        h_BF = self.activate(product(h_BD, *self.gate)).mul_(product(h_BD, *self.up))
        return x_BD.add_(product(h_BF, *self.down))

    def attend(self, x_BD: Tensor, turn: tuple[Tensor, Tensor], position: int) -> Tensor:
        """What the token reads from all before it and itself."""
        B, G, room, K = self.keys_BGSK.shape
        if position == room:
            self.take(self.keys_BGSK, self.values_BGSK)
        qk_BH1K = torch.cat([product(x_BD, *self.query), product(x_BD, *self.key)], dim=1).view(B, -1, 1, K)
        if self.head_norms:
            of_queries, of_keys = self.head_norms
            qk_BH1K = torch.cat([of_queries(qk_BH1K[:, :-G]), of_keys(qk_BH1K[:, -G:])], dim=1)
        qk_BH1K = turned(qk_BH1K, *turn)
        self.keys_BGSK.select(2, position).copy_(qk_BH1K[:, -G:, 0])
        self.values_BGSK.select(2, position).copy_(product(x_BD, *self.value).view(B, G, K))
        y_BGQK = F.scaled_dot_product_attention(  # the queries of a group, as if a text that sees all keys
            qk_BH1K[:, :-G].view(B, G, -1, K),
            self.keys_BGSK.narrow(2, 0, position + 1),
            self.values_BGSK.narrow(2, 0, position + 1),
            scale=self.scale,
        )
        return product(y_BGQK.reshape(B, -1), *self.output)


class Decoding:
    """The keys and values of the tokens seen so far, `position` of them, and the model that goes on from there."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.position = model, 0
        self.base: Any = model.base_model
        self.layers = [Layer(module) for module in self.base.layers]
        self.norm, self.head = Norm(self.base.norm), weights(model.get_output_embeddings())

    def logits(self, ids_BT: Tensor) -> Tensor:
        """logits_BTV of tokens that follow those seen so far."""
        if self.position == 0:
            return self._read(ids_BT)
        return torch.stack([self._step(ids_B) for ids_B in ids_BT.unbind(1)], dim=1)

    def next_logits(self, ids_BT: Tensor) -> Tensor:
        """logits_BV of the token after these."""
        if self.position == 0:
            return self._read(ids_BT, logits_to_keep=1)[:, -1]
        return [self._step(ids_B) for ids_B in ids_BT.unbind(1)][-1]

    def _read(self, prompt_BT: Tensor, **arguments: Any) -> Tensor:
        """logits_BTV of a prompt, by the model itself, whose keys and values are taken over."""
        cache, device = DynamicCache(config=self.model.config), prompt_BT.device.type
        on, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        given = {"input_ids": prompt_BT, **going_on(self.model, cache), **arguments}
        with torch.autocast(
            device, dtype, on, cache_enabled=False
        ):  # else it keeps a copy of all weights until the end
            logits_BTV: Tensor = self.model(**given).logits
        self.position = prompt_BT.size(1)
        for layer, seen in zip(self.layers, cache.layers, strict=True):
            layer.take(seen.keys, seen.values)
        return logits_BTV

    @torch.no_grad()
    def _step(self, ids_B: Tensor) -> Tensor:
        """logits_BV of one token, whose keys and values are added."""
        x_BD: Tensor = self.base.embed_tokens(ids_B)
        turn = self._turn(x_BD)
        # All is of the right type already.
        with torch.autocast(x_BD.device.type, enabled=False), devices.products_of(x_BD):
            with torch.inference_mode():  # nothing is kept for a gradient, not even the count of writes to a tensor
                for layer in self.layers:
                    x_BD = layer(x_BD, turn, self.position)
                x_BD = self.norm(x_BD)
            self.position += 1
            return product(x_BD, *self.head)

    def _turn(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the position's angles, K each, with the signs that `turned` takes."""
        position = torch.full((1, 1), self.position, device=x_BD.device)
        cosine_11K, sine_11K = (of.to(self.norm.dtype) for of in self.base.rotary_emb(x_BD[:1, None], position))
        first_K, second_K = sine_11K[0, 0].chunk(2)
        return cosine_11K[0, 0], torch.cat([-first_K, second_K])


def weights(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """What `product` takes. Asking a module for them again and again takes as long as a small product."""
    return matrix_of(layer), None if layer.bias is None else layer.bias.to(devices.product_type(layer.bias))


def product(x_NI: Tensor, weight_IO: Tensor, bias_O: Tensor | None) -> Tensor:
    """What a linear layer makes of N vectors, without its detours."""
    return torch.mm(x_NI, weight_IO) if bias_O is None else torch.addmm(bias_O, x_NI, weight_IO)


@torch.no_grad()
def can_decode(model: PreTrainedModel) -> bool:
    """Whether a model is built as this file takes it to be, and answers the same; found out by trying it, in its own
    precision."""
    try:
        with torch.autocast(model.device.type, enabled=False):
            return built_alike(model) and answers_alike(model)
    except Exception:  # a model that wants other arguments, or keeps something else than keys, raises whatever it does
        return False


def answers_alike(model: PreTrainedModel) -> bool:
    """Whether single tokens have the logits that the model gives them among others."""
    n_tokens = model.get_input_embeddings().weight.size(0)
    n_prompt, n_more = TRIAL
    ids_BT = (torch.arange(2 * (n_prompt + n_more), device=model.device).view(2, -1) * 7 + 1) % n_tokens
    decoding = Decoding(model)
    decoding.logits(ids_BT[:, :n_prompt])
    one = decoding.logits(ids_BT[:, n_prompt:]).float()
    other = model(input_ids=ids_BT, use_cache=False).logits[:, n_prompt:].float()
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    return bool((one - other).norm() <= tolerance * (other - other.mean()).norm())


def all_linear(model: nn.Module) -> bool:
    """Whether all matrices of a model are those of linear layers and embeddings."""
    others = (module for module in model.modules() if not isinstance(module, nn.Linear | nn.Embedding))
    return all(parameter.dim() < 2 for module in others for parameter in module.parameters(recurse=False))


def built_alike(model: PreTrainedModel) -> bool:
    """Whether the modules are there, each of the kind that is expected, and attention looks at all tokens."""
    base, head = model.base_model, model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or any(p.is_meta or p.dtype != model.dtype for p in model.parameters()):
        return False
    if type(getattr(base, "embed_tokens", None)) is not nn.Embedding or not hasattr(base, "rotary_emb"):
        return False
    if not is_norm(getattr(base, "norm", None)) or not isinstance(getattr(base, "layers", None), nn.ModuleList):
        return False
    if any(DynamicCache(config=model.config).is_sliding):  # over a window that may be longer than a trial
        return False
    return all(layer_alike(layer) for layer in base.layers)


def layer_alike(layer: nn.Module) -> bool:
    """Whether a layer has the parts, and no window that slides, and attention knows of positions by their angles alone."""
    linears = (getattr(getattr(layer, part, None), name, None) for part, names in PARTS.items() for name in names)
    if not all(type(each) is nn.Linear for each in linears) or not all(is_norm(getattr(layer, n, None)) for n in NORMS):
        return False
    attention: Any = layer.self_attn
    if not getattr(attention, "use_rope", True) or not turns_alike(attention):
        return False
    optional = [getattr(attention, name) for name in HEAD_NORMS if hasattr(attention, name)]
    return (
        isinstance(getattr(attention, "scaling", None), float)
        and getattr(attention, "sliding_window", None) is None
        and "position_ids" not in inspect.signature(type(attention).forward).parameters
        and hasattr(layer.mlp, "act_fn")
        and len(optional) in (0, 2)
        and all(is_norm(norm) for norm in optional)
    )


def turns_alike(attention: nn.Module) -> bool:
    """Whether a module of transformers turns queries and keys by halves of a head's width, as `turned` does: some turn
    neighbours, which a trial in bf16 does not tell from rounding."""
    turn = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if turn is None:
        return False
    x_11TK = torch.linspace(-1.0, 2.0, 16).view(1, 1, 2, 8)
    angle_1TK = torch.tensor([[0.3], [1.1]]) * torch.tensor([1.0, 0.5, 0.25, 0.1]).repeat(2)
    cosine_1TK, sine_1TK = angle_1TK.cos()[None], angle_1TK.sin()[None]
    signs_K = torch.tensor([-1.0] * 4 + [1.0] * 4)
    return torch.allclose(turn(x_11TK, x_11TK, cosine_1TK, sine_1TK)[0], turned(x_11TK, cosine_1TK, sine_1TK * signs_K))


def is_norm(module: Any) -> bool:
    """Whether a module has what `Norm` reads of it."""
    return isinstance(getattr(module, "variance_epsilon", None), float) and isinstance(
        getattr(module, "weight", None), Tensor
    )
