"""The custom Transformer: causal to the bit, right at the start, and one model with or without its cache."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab import transformer
from lmlab.transformer import (
    BlockCausalAttention,
    Cache,
    FeedForward,
    Heads,
    SquaredReLUFeedForward,
    Transformer,
    attend,
    attention_probabilities,
    dropout,
    rotary_table,
    turned,
    window_mask,
)

CPU = torch.device("cpu")
VOCABULARY = 13


def tiny(seed: int | None = 0, **changes: Any) -> Transformer:
    values: dict[str, Any] = {
        "n_layers": 2, "d_model": 16, "n_heads": 2, "d_ff": 32, "dropout": 0.0, "max_seq_len": 8, **changes,
    }  # fmt: skip
    return Transformer(VOCABULARY, **values, seed=seed)


def loud(seed: int = 0, **changes: Any) -> Transformer:
    """A model with weights ten times the usual, so that what attention sees shows in the logits."""
    model = tiny(seed, **changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 10
    return model


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


# --- causality ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("length", "window"), [(8, 8), (21, 8), (70, 70)])
@torch.no_grad()
def test_a_later_token_moves_no_earlier_logit_by_a_bit(precision: torch.dtype, length: int, window: int) -> None:
    model, ids_BT = loud(max_seq_len=window), tokens(2, length)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        before = model(ids_BT)
        for at in range(length):
            changed = ids_BT.clone()
            changed[:, at:] = (changed[:, at:] + 1) % VOCABULARY
            after = model(changed)
            assert torch.equal(after[:, :at], before[:, :at])
            assert not torch.equal(after[:, at], before[:, at])


@torch.no_grad()
def test_every_token_in_the_window_is_seen_and_none_before_it() -> None:
    model, length, window = loud(n_layers=1), 20, 8
    ids_BT = tokens(1, length)
    before = model(ids_BT)
    for at in range(length):
        changed = ids_BT.clone()
        changed[:, at] = (changed[:, at] + 5) % VOCABULARY
        moved = (model(changed) != before).any(dim=-1)[0]
        assert moved.nonzero().flatten().tolist() == list(range(at, min(length, at + window)))


@torch.no_grad()
def test_gradients_flow_backwards_in_time_only() -> None:
    model, ids_BT = loud(), tokens(1, 8)
    with torch.enable_grad():
        x_BTD = model.embedding(ids_BT).detach().requires_grad_()
        model.embedding.register_forward_hook(lambda *_: x_BTD)
        model(ids_BT)[0, 3].sum().backward()
    assert x_BTD.grad is not None
    assert (x_BTD.grad[0].abs().sum(dim=-1) > 0).tolist() == [True] * 4 + [False] * 4


# --- the start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocabulary", "d_model"), [(65, 256), (500, 64)])
@torch.no_grad()
def test_the_loss_of_new_weights_is_that_of_guessing(vocabulary: int, d_model: int) -> None:
    model = Transformer(
        vocabulary, n_layers=4, d_model=d_model, n_heads=4, d_ff=4 * d_model, dropout=0.0, max_seq_len=64, seed=1
    )
    ids_BT = torch.randint(0, vocabulary, (8, 65), generator=torch.Generator().manual_seed(2))
    loss = F.cross_entropy(model(ids_BT[:, :-1]).flatten(0, 1), ids_BT[:, 1:].flatten())
    assert abs(float(loss) - math.log(vocabulary)) < 0.1


def test_a_seed_makes_the_weights_and_leaves_the_callers_numbers_out_of_it() -> None:
    torch.manual_seed(1)
    one = tiny(5)
    torch.manual_seed(2)
    other, third = tiny(5), tiny(6)
    for (name, a), (_, b), (_, c) in zip(
        one.named_parameters(), other.named_parameters(), third.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        assert a.dim() == 1 or not torch.equal(a, c), name


def test_without_a_seed_the_weights_come_from_torchs_own_generator() -> None:
    torch.manual_seed(4)
    one, other = tiny(None), tiny(None)
    torch.manual_seed(4)
    again = tiny(None)
    assert torch.equal(one.embedding.weight, again.embedding.weight)
    assert not torch.equal(one.embedding.weight, other.embedding.weight)


def test_weights_are_scaled_as_the_formula_says() -> None:
    model = tiny(0, n_layers=8, d_model=128, n_heads=2, d_ff=512)
    for name, parameter in model.named_parameters():
        expected = 0.02 / math.sqrt(2 * 8) if name.endswith("output.weight") else 0.02
        if parameter.dim() == 1:
            assert bool((parameter == 1).all()), name
        else:
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.05), name
            assert abs(float(parameter.detach().mean())) < 0.1 * expected, name


def test_the_architecture_makes_the_model_again() -> None:
    model = loud(dropout=0.25)
    again = Transformer(**model.architecture()).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(tokens(2, 8)), model(tokens(2, 8)))
    assert "rotary_2TK" not in model.state_dict()
    assert sum(p.numel() for p in model.parameters()) == 13 * 16 + 2 * (4 * 16 * 16 + 2 * 16 * 32 + 2 * 16) + 16


def test_heads_of_odd_width_are_refused() -> None:
    with pytest.raises(ValueError, match="d_model=16 is not a multiple of 2 × n_heads=3"):
        tiny(n_heads=3)
    with pytest.raises(ValueError):
        tiny(d_model=6, n_heads=2)


# --- positions ------------------------------------------------------------------------------------------------------


def test_rotation_turns_pairs_by_their_angle_and_sees_only_distances() -> None:
    table_2TK = rotary_table(50, 8, CPU)
    assert torch.equal(table_2TK[0, 0], torch.ones(8))
    assert table_2TK[0, 3, 1] == pytest.approx(math.cos(3 * 10_000 ** (-2 / 8)), abs=1e-6)
    assert table_2TK[1, 3, 5] == pytest.approx(math.sin(3 * 10_000 ** (-2 / 8)), abs=1e-6)
    q, k = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0)).unbind(0)

    def product(query_at: int, key_at: int) -> float:
        turned_q, turned_k = (turned(x, *table_2TK[:, at : at + 1]) for x, at in ((q, query_at), (k, key_at)))
        return float((turned_q * turned_k).sum())

    assert product(7, 3) == pytest.approx(product(44, 40), abs=1e-5)
    assert abs(product(7, 3) - product(7, 4)) > 1e-3
    assert float(turned(q, *table_2TK[:, 9:10]).norm()) == pytest.approx(float(q.norm()), rel=1e-6)


def test_heads_are_normalised_and_turned_and_their_gradient_is_that_of_the_formula() -> None:
    B, T, H, K = 2, 5, 3, 6
    table_2TK = rotary_table(T, K, CPU).double()
    qkv_BTE = torch.randn(B, T, 3 * H * K, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    qkv_BTE.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Heads.apply(x, table_2TK), (qkv_BTE,))
    angle_TK = torch.outer(torch.arange(T), 10_000.0 ** (-torch.arange(K // 2) / (K // 2))).repeat(1, 2).double()

    def formula(x_BTHK: Tensor) -> Tensor:
        deviation = (x_BTHK.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        normal_BHTK = ((x_BTHK - x_BTHK.mean(-1, keepdim=True)) / deviation).transpose(1, 2)
        first, second = normal_BHTK.chunk(2, dim=-1)
        return normal_BHTK * angle_TK.cos() + torch.cat([-second, first], dim=-1) * angle_TK.sin()

    q_BTHK, k_BTHK, v_BTHK = qkv_BTE.view(B, T, 3, H, K).unbind(2)
    q_BHTK, k_BHTK, v_BHTK = Heads.apply(qkv_BTE, table_2TK)
    assert torch.equal(v_BHTK, v_BTHK.transpose(1, 2))
    for ours, x_BTHK in ((q_BHTK, q_BTHK), (k_BHTK, k_BTHK)):
        assert torch.allclose(ours, formula(x_BTHK), atol=1e-6)


def test_a_token_alone_is_turned_as_among_others() -> None:  # it takes another way
    x_BHTK, table_2TK = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0)), rotary_table(5, 6, CPU)
    for position in range(5):
        only = slice(position, position + 1)
        alone = turned(x_BHTK[:, :, only], *table_2TK[:, only])
        assert torch.allclose(alone, turned(x_BHTK, *table_2TK)[:, :, only], atol=1e-6)


def test_a_longer_table_begins_with_the_shorter_one_bit_for_bit() -> None:
    # a run that has sampled long texts has a longer table than the one that resumes it
    for head_width in (2, 6, 16, 64):
        long = rotary_table(1024, head_width, CPU)
        for length in (1, 7, 16, 33, 255, 1000):
            assert torch.equal(long[:, :length], rotary_table(length, head_width, CPU))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rotary_table(1024, 16, CPU), rotary_table(1024, 16, torch.device("cpu")))
        assert rotary_table(4, 16, CPU).dtype == torch.float32


# --- attention ------------------------------------------------------------------------------------------------------


def queries(dtype: torch.dtype, T: int, S: int, heads: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(T * 100 + S)
    q_BHTK = torch.randn(2, heads, T, 8, generator=draw)
    k_BHSK, v_BHSK = torch.randn(2, 2, 3, S, 8, generator=draw).unbind(0)
    return q_BHTK.to(dtype), k_BHSK.to(dtype), v_BHSK.to(dtype)


@pytest.mark.parametrize(("T", "S", "window"), [(9, 9, None), (9, 9, 4), (3, 9, 5), (1, 9, None), (1, 1, None)])
def test_explicit_attention_and_the_fused_kernel_agree(T: int, S: int, window: int | None) -> None:
    mask_TS = None if window is None else window_mask(T, S, window, CPU)
    causal = mask_TS is None and T > 1
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 0.03)):
        q, k, v = queries(dtype, T, S)
        explicit = attention_probabilities(q, k, mask_TS) @ v
        fused = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_TS, is_causal=causal)
        exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask_TS, is_causal=causal)
        assert torch.allclose(explicit, fused, atol=tolerance)
        assert torch.allclose(explicit.double(), exact, atol=tolerance)
        chosen = attend(q, k, v, mask_TS)
        assert torch.allclose(chosen, explicit, atol=tolerance)
        assert torch.equal(chosen, fused) or dtype == torch.bfloat16


@pytest.mark.parametrize("heads", [3, 6, 12])  # for three of keys and values
@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 128, 150])
def test_attention_in_blocks_and_its_gradient_are_those_of_the_fused_kernel(T: int, heads: int) -> None:
    results = []
    for attention in (
        BlockCausalAttention.apply,
        lambda *qkv: BlockCausalAttention.apply(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv)),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
    ):
        inputs = [x.requires_grad_() for x in queries(torch.double, T, T, heads)]
        y_BHTK = attention(*inputs)
        weights = torch.randn(y_BHTK.shape, dtype=torch.double, generator=torch.Generator().manual_seed(T))
        (y_BHTK * weights).sum().backward()
        results.append([y_BHTK.detach(), *(x.grad for x in inputs)])
    for one, otherwise_laid_out, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-10)
        assert torch.allclose(otherwise_laid_out, other, atol=1e-10)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_of_the_whole_model_are_those_of_finite_differences(precision: str) -> None:
    """In bf16 the path is another: its gradient has to point where that of fp32 does."""
    model, ids_BT = loud(max_seq_len=80), tokens(2, 80)
    model(ids_BT).logsumexp(dim=-1).mean().backward()
    exact = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    if precision == "fp32":
        direction = [torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) for p in model.parameters()]
        values = []
        double = model.double()
        for sign in (1, -1):
            with torch.no_grad():
                for p, d in zip(double.parameters(), direction, strict=True):
                    p += sign * 1e-5 * d.double()
                values.append(float(double(ids_BT).logsumexp(dim=-1).mean()))
                for p, d in zip(double.parameters(), direction, strict=True):
                    p -= sign * 1e-5 * d.double()
        slope = float(exact.double() @ torch.cat([d.flatten() for d in direction]).double())
        assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3)
        return
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids_BT).float().logsumexp(dim=-1).mean()
    loss.backward()
    rough = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert float(F.cosine_similarity(exact, rough, dim=0)) > 0.995


def test_long_contexts_go_to_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = queries(torch.bfloat16, 9, 9)
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert not torch.equal(attend(q, k, v, None), fused)
    monkeypatch.setattr(transformer, "EXPLICIT_ATTENTION_KEYS", 8)
    assert torch.equal(attend(q, k, v, None), fused)


def test_a_mask_shows_a_query_itself_and_what_is_in_reach() -> None:
    assert window_mask(3, 5, 2, CPU).int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    probabilities_BHTS = attention_probabilities(*queries(torch.float32, 3, 5)[:2], window_mask(3, 5, 2, CPU))
    assert torch.equal(probabilities_BHTS > 0, window_mask(3, 5, 2, CPU).expand(2, 3, 3, 5))
    assert torch.allclose(probabilities_BHTS.sum(dim=-1), torch.ones(2, 3, 3))


@torch.no_grad()
def test_documents_in_one_window_come_out_as_if_alone() -> None:
    model, ids_BT = loud(max_seq_len=12), tokens(2, 12)
    segments_BT = torch.tensor([[0] * 5 + [1] * 7, [0] * 3 + [1] * 4 + [2] * 5])
    packed = model(ids_BT, segments_BT=segments_BT)
    for row, borders in enumerate([(0, 5, 12), (0, 3, 7, 12)]):
        for start, end in itertools.pairwise(borders):
            alone = model(ids_BT[row : row + 1, start:end])
            assert torch.allclose(packed[row, start:end], alone[0], atol=1e-5)
    assert (packed - model(ids_BT))[:, 5:].abs().max() > 1e-2  # it did see the others before
    assert torch.allclose(packed[:, :3], model(ids_BT)[:, :3], atol=1e-6)


# --- the feed-forward -----------------------------------------------------------------------------------------------


def test_the_gradient_of_a_feed_forward_is_that_of_its_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 4), (6, 4), (4, 6))  # x_BTD, input_FD, output_DF
    x_BTD, input_FD, output_DF = (torch.randn(s, dtype=torch.double, generator=draw).requires_grad_() for s in shapes)
    assert torch.autograd.gradcheck(SquaredReLUFeedForward.apply, (x_BTD, input_FD, output_DF))
    formula = F.relu(x_BTD @ input_FD.T).square() @ output_DF.T
    assert torch.allclose(SquaredReLUFeedForward.apply(x_BTD, input_FD, output_DF), formula)


def test_a_feed_forward_keeps_two_wide_tensors_for_the_backward_pass() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    block = FeedForward(8, 512, dropout=0.0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(torch.randn(2, 16, 8))
    assert sum(tensor.numel() == 2 * 16 * 512 for tensor in kept) == 2


# --- the cache ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[1] * 30, [30], [5, 1, 1, 9, 1, 13], [8, 8, 8, 6], [3, 20, 1, 1, 5], [7, 1, 8, 14]])
@torch.no_grad()
def test_with_a_cache_in_any_pieces_the_logits_are_those_of_the_whole(pieces: list[int]) -> None:
    model, ids_BT = loud(), tokens(2, sum(pieces))
    cache = model.new_cache()
    cached = torch.cat([model(piece_BT, cache) for piece_BT in ids_BT.split(pieces, dim=1)], dim=1)
    assert cache.position == sum(pieces)
    assert torch.allclose(cached, model(ids_BT), atol=1e-5)


@pytest.mark.parametrize("window", [1, 2, 3, 8])
def test_the_cache_returns_what_is_in_reach_and_stays_small(window: int) -> None:
    draw = torch.Generator().manual_seed(window)
    cache, seen_2BHSK = Cache(1, window), torch.empty(2, 1, 1, 0, 4)
    for _ in range(300):
        new_2BHTK = torch.randn(2, 1, 1, int(torch.randint(1, 2 * window + 2, (), generator=draw)), 4, generator=draw)
        reach = min(seen_2BHSK.size(-2), window - 1) + new_2BHTK.size(-2)
        seen_2BHSK = torch.cat([seen_2BHSK, new_2BHTK], dim=-2)
        assert torch.equal(cache.append(0, *new_2BHTK), seen_2BHSK[..., -reach:, :])
        buffer = cache._buffers[0]
        assert buffer is not None
        assert buffer.size(-2) <= 4 * window


@pytest.mark.parametrize("rows", [1, 3])
def test_single_tokens_give_the_same_with_and_without_modules_and_in_half_precision(rows: int) -> None:
    model, ids_BT = loud(), tokens(rows, 30)
    for enabled, tolerance in ((False, 1e-5), (True, 0.05)):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            fast, slow = model.new_cache(), model.new_cache()
            slow.steps = None
            for piece_BT in ids_BT.split([2, *[1] * 28], dim=1):
                one, other = model(piece_BT, fast).float(), model(piece_BT, slow).float()
                assert (one - other).norm() <= tolerance * other.norm()
            assert fast.position == slow.position == 30
    gradients = model.new_cache()
    model(ids_BT[:, :2], gradients)
    assert model(ids_BT[:, 2:3], gradients).requires_grad  # where gradients are wanted they flow


@torch.no_grad()
def test_a_window_of_one_token_sees_only_itself() -> None:
    model, ids_BT = loud(max_seq_len=1), tokens(1, 6)
    logits_BTV = model(ids_BT)
    for at in range(6):
        assert torch.allclose(logits_BTV[:, at], model(ids_BT[:, at : at + 1])[:, 0], atol=1e-5)


# --- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9, 0.999999])
def test_dropout_zeroes_the_right_share_and_scales_the_rest(p: float) -> None:
    torch.manual_seed(0)
    x = torch.full((400, 501), 2.0)
    y = dropout(x, p, training=True)
    n, zeros = y.numel(), int((y == 0).sum())
    assert abs(zeros - p * n) < 5 * math.sqrt(n * p * (1 - p)) + 2**-15 * n
    assert torch.allclose(y[y != 0], torch.tensor(2.0 / (1 - p)))
    if p < 0.95:
        assert float(y.mean()) == pytest.approx(2.0, rel=0.02)


def test_dropout_has_no_pattern_over_rows_columns_or_neighbours() -> None:
    torch.manual_seed(1)
    zeros = (dropout(torch.ones(512, 512), 0.5, training=True) == 0).double()
    spread = 5 * math.sqrt(0.25 / 512)
    assert float((zeros.mean(dim=0) - 0.5).abs().max()) < spread
    assert float((zeros.mean(dim=1) - 0.5).abs().max()) < spread
    for step in (1, 2, 3, 4, 512):  # four neighbours come from one draw
        flat = zeros.flatten()
        both = float((flat[step:] * flat[:-step]).mean())
        assert both == pytest.approx(0.25, abs=5 * math.sqrt(0.1875 / flat.numel()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_dropout_is_its_mask(dtype: torch.dtype) -> None:
    x = torch.randn(7, 9, generator=torch.Generator().manual_seed(3)).to(dtype).requires_grad_()
    y = dropout(x, 0.3, training=True)
    y.float().sum().backward()
    assert y.dtype == dtype
    assert x.grad is not None
    assert torch.equal(x.grad == 0, y == 0)
    assert torch.allclose(x.grad[y != 0].float(), torch.tensor(1 / 0.7), rtol=2**-8)


def test_dropout_follows_the_default_generator_and_is_off_in_evaluation() -> None:
    x = torch.ones(100)
    torch.manual_seed(5)
    one, other = dropout(x, 0.5, training=True), dropout(x, 0.5, training=True)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.5, training=True), one)
    assert not torch.equal(one, other)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    model = tiny(dropout=0.5)
    ids_BT = tokens(2, 8)
    assert torch.equal(model.eval()(ids_BT), tiny(dropout=0.0).eval()(ids_BT))
    assert not torch.equal(model.train()(ids_BT), model(ids_BT))


def test_activation_checkpointing_draws_the_same_masks_and_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny(dropout=0.3)
        model.activation_checkpointing = checkpointing
        torch.manual_seed(9)
        loss = model.train()(tokens(2, 8)).logsumexp(dim=-1).sum()
        loss.backward()
        gradients.append([loss.detach(), torch.rand(3), *(p.grad for p in model.parameters())])
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert torch.equal(one, other)
