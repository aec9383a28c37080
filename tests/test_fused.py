"""Norms and feed-forwards in one function each: the numbers of transformers, and less kept for the backward pass."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import tiny_models
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DeepseekV4Config, PreTrainedModel
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4MLP
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5RMSNormGated

from lmlab.adapters.fused import GatedFeedForward, RootMeanSquareNorm, fuse, is_root_mean_square
from lmlab.loading import load_adapter

FUSED = {"qwen2": 7, "qwen3": 7, "llama": 7}  # of two layers: two norms and a feed-forward in each, and the last norm


def plain(folder: Path) -> PreTrainedModel:
    """The model of transformers with norms that do something."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def loss_and_gradients(model: PreTrainedModel, bf16: bool = False) -> tuple[Tensor, Tensor]:
    ids_BT = torch.randint(4, tiny_models.VOCABULARY, (3, 30), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = model(input_ids=ids_BT, labels=ids_BT).loss
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("model_type", FUSED)
def test_loss_and_gradients_are_those_of_transformers(model_type: str, tmp_path: Path) -> None:
    folder = tiny_models.make(tmp_path / "model", model_type)
    theirs, ours = plain(folder), plain(folder)
    assert fuse(ours) == FUSED[model_type]
    (loss, gradients), (their_loss, their_gradients) = loss_and_gradients(ours), loss_and_gradients(theirs)
    torch.testing.assert_close(loss, their_loss, rtol=1e-6, atol=1e-6)
    assert relative(gradients, their_gradients) < 1e-5
    in_bf16, theirs_in_bf16 = loss_and_gradients(ours, bf16=True)[1], loss_and_gradients(theirs, bf16=True)[1]
    assert relative(in_bf16, gradients) <= 1.25 * relative(theirs_in_bf16, gradients)
    ids_BT = torch.arange(12)[None]
    with torch.no_grad():  # their own code
        assert torch.equal(ours(input_ids=ids_BT).logits, theirs(input_ids=ids_BT).logits)


def test_what_a_model_adds_to_in_place_is_trained_as_by_transformers(tmp_path: Path) -> None:
    """Llama 4 adds the output of its experts to that of the feed-forward which all tokens share."""
    sizes = {"head_dim": 8, "num_local_experts": 4, "intermediate_size_mlp": 64, "router_aux_loss_coef": 0.0}
    folder = tiny_models.make(tmp_path / "model", "llama4_text", **sizes)
    theirs, ours = plain(folder), plain(folder)
    assert fuse(ours) > 0
    (loss, gradients), (their_loss, their_gradients) = loss_and_gradients(ours), loss_and_gradients(theirs)
    torch.testing.assert_close(loss, their_loss, rtol=1e-6, atol=1e-6)
    assert relative(gradients, their_gradients) < 1e-5


def test_a_deep_copy_computes_with_its_own_weights(tmp_path: Path) -> None:
    model = load_adapter(tiny_models.make(tmp_path / "model", "qwen3"), dtype=torch.float32)
    ids_BT = torch.arange(24)[None]
    before = model.logits(ids_BT)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(model.logits(ids_BT), before)
    assert not other.logits(ids_BT).any()
    loss = other.loss(ids_BT[:, :-1], ids_BT[:, 1:])
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in other.parameters())


OTHER = {
    "gpt2": {},
    "gemma2": {"head_dim": 8},
    "seed_oss": {"head_dim": 8, "residual_dropout": 0.1},  # of what its feed-forwards give, while it trains
}


@pytest.mark.parametrize("model_type", OTHER)
def test_what_computes_something_else_is_left_alone(model_type: str, tmp_path: Path) -> None:
    model = plain(tiny_models.make(tmp_path / "model", model_type, **OTHER[model_type]))
    state = torch.get_rng_state()
    assert fuse(model) == (5 if model_type == "seed_oss" else 0)  # its norms are the usual ones
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())


def test_feed_forwards_that_cut_large_values_off_are_left_alone() -> None:
    for limit, fused in ((10.0, 0), (1e9, 1)):
        config = DeepseekV4Config(hidden_size=32, intermediate_size=64, swiglu_limit=limit)
        layer = DeepseekV4MLP(config)
        assert fuse(layer) == fused


def test_a_norm_that_takes_a_gate_too_is_left_alone() -> None:
    assert fuse(nn.ModuleDict({"norm": Qwen3_5RMSNormGated(8)})) == 0
    assert fuse(nn.ModuleDict({"norm": LlamaRMSNorm(8)})) == 1


def test_what_gemmas_norm_computes_is_seen(tmp_path: Path) -> None:
    model = plain(tiny_models.make(tmp_path / "model", "gemma2", head_dim=8))
    norms = [module for module in model.modules() if type(module).__name__ == "Gemma2RMSNorm"]
    assert len(norms) > 4
    for norm in norms:  # as the others name it, so that it is tried
        norm.variance_epsilon = norm.eps
    assert not any(is_root_mean_square(norm) for norm in norms)
    for norm in norms:
        forward = norm.forward
        norm.forward = lambda x, forward=forward, norm=norm: forward(x) - norm._norm(x)  # without the 1
    assert all(is_root_mean_square(norm) for norm in norms)


def test_a_norm_that_adds_one_to_its_weight_is_not_taken_for_one_that_does_not() -> None:
    class Norm(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.weight, self.variance_epsilon, self.shift = nn.Parameter(torch.rand(8)), 1e-6, shift

        def forward(self, x: Tensor) -> Tensor:
            return x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt() * (self.weight + self.shift)

    for shift, fused in ((0.0, 1), (1.0, 0)):
        model = nn.Module()
        model.norm = Norm(shift)
        assert fuse(model) == fused


@pytest.mark.parametrize("model_type", FUSED)
def test_a_model_without_numbers_is_fused_as_the_one_with_them(model_type: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    config = AutoConfig.for_model(model_type, **tiny_models.CONFIGS[model_type], vocab_size=64, pad_token_id=None)
    with torch.device("meta"):
        assert fuse(AutoModelForCausalLM.from_config(config)) == FUSED[model_type]
    with FakeTensorMode():
        assert fuse(AutoModelForCausalLM.from_config(config)) == FUSED[model_type]


def test_gradients_agree_with_finite_differences() -> None:
    generator = torch.Generator().manual_seed(5)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    down, gate, up = numbers(4, 6), numbers(6, 4), numbers(6, 4)
    assert torch.autograd.gradcheck(GatedFeedForward.apply, (numbers(2, 3, 4), gate, up, down))
    x, weight = torch.randn(3, 8, generator=generator), torch.rand(8, generator=generator)  # the norm works in fp32
    x.requires_grad_(), weight.requires_grad_()
    dy = torch.randn(3, 8, generator=generator)
    written_out = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight
    ours = torch.autograd.grad(RootMeanSquareNorm.apply(x, weight, 1e-6), (x, weight), dy)
    for one, other in zip(ours, torch.autograd.grad(written_out, (x, weight), dy), strict=True):
        torch.testing.assert_close(one, other)


def test_a_feed_forward_keeps_two_wide_tensors_for_the_backward_pass() -> None:
    width, wide, tokens = 16, 256, 32
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    matrices = [torch.randn(wide, width), torch.randn(wide, width), torch.randn(width, wide)]
    for matrix in matrices:
        matrix.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        GatedFeedForward.apply(torch.randn(1, tokens, width), *matrices)
    assert sum(tensor.shape == (tokens, wide) for tensor in kept) == 2


class Wrapped(nn.Module):
    """A linear layer with a part of low rank beside it, as PEFT puts it into its place."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_a_layer_that_is_replaced_afterwards_takes_part(tmp_path: Path) -> None:
    model = plain(tiny_models.make(tmp_path / "model", "llama"))
    fuse(model)
    for layer in model.model.layers:
        layer.mlp.gate_proj = Wrapped(layer.mlp.gate_proj)
        layer.mlp.down_proj = Wrapped(layer.mlp.down_proj)
    ids_BT = torch.arange(12)[None]
    loss = model(input_ids=ids_BT, labels=ids_BT).loss
    loss.backward()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids_BT, labels=ids_BT).loss, loss)
    assert all(layer.mlp.gate_proj.up.weight.grad is not None for layer in model.model.layers)


def test_a_layer_that_is_watched_is_seen_in_training_too(tmp_path: Path) -> None:
    model = plain(tiny_models.make(tmp_path / "model", "llama"))
    fuse(model)
    seen: list[Tensor] = []
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda _module, _given, output: seen.append(output))
    model(input_ids=torch.arange(12)[None])
    assert len(seen) == 1


def test_a_feed_forward_of_zeros_shows_nothing_and_is_left_alone(tmp_path: Path) -> None:
    model = plain(tiny_models.make(tmp_path / "model", "gemma", head_dim=8))
    for layer in model.model.layers:
        nn.init.zeros_(layer.mlp.down_proj.weight)
    assert fuse(model) == 0


def test_a_second_derivative_is_refused_where_it_would_be_wrong(tmp_path: Path) -> None:
    model = plain(tiny_models.make(tmp_path / "model", "llama"))
    fuse(model)
    ids_BT = torch.arange(12)[None]
    weight = model.model.layers[0].mlp.up_proj.weight
    (gradient,) = torch.autograd.grad(model(input_ids=ids_BT, labels=ids_BT).loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()
