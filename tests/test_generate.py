"""Sampling: the right tokens, with or without cache, held against brute force."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lmlab.adapters.custom import CustomTransformerAdapter
from lmlab.errors import DivergedError
from lmlab.generate import SamplingSettings, candidates, choose, generate
from lmlab.transformer import Transformer

VOCABULARY = 12


def adapter(**changes: Any) -> CustomTransformerAdapter:
    """A model whose weights are large enough that its tokens hang on what it sees."""
    values: dict[str, Any] = {
        "n_layers": 2, "d_model": 16, "n_heads": 2, "d_ff": 32, "dropout": 0.3, "max_seq_len": 8, **changes,
    }  # fmt: skip
    model = Transformer(VOCABULARY, **values, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 8
    return CustomTransformerAdapter(model)


def probabilities_of(logits_BV: Tensor, settings: SamplingSettings) -> Tensor:
    """How likely every token is to be drawn, probabilities_BV."""
    found_BC, ids_BC = candidates(logits_BV, settings)
    return found_BC if ids_BC is None else torch.zeros_like(logits_BV).scatter(-1, ids_BC, found_BC)


def prompt(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def allowed(probabilities: list[float], top_k: int | None, top_p: float | None) -> dict[int, float]:
    """The tokens that may be drawn and how likely, computed the slow way."""
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[:top_k]
    total = sum(probabilities[i] for i in order)
    kept, mass = [], 0.0
    for i in order:
        if top_p is not None and top_p < 1 and mass >= top_p and kept:
            break
        kept.append(i)
        mass += probabilities[i] / total
    total = sum(probabilities[i] for i in kept)
    return {i: probabilities[i] / total for i in kept}


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 12, 1000])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.3, 0.9, 1.0])
def test_filters_keep_what_brute_force_keeps(temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits_BV = torch.randn(20, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 3
    settings = SamplingSettings(1, temperature, top_k, top_p)
    got_BV = probabilities_of(logits_BV, settings)
    for logits_V, got_V in zip(logits_BV, got_BV, strict=True):
        weights = [math.exp(float(x) / temperature) for x in logits_V]
        expected = allowed([w / sum(weights) for w in weights], top_k, top_p)
        assert set(got_V.nonzero().flatten().tolist()) == set(expected)
        for token, probability in expected.items():
            assert float(got_V[token]) == pytest.approx(probability, rel=1e-4)


def test_draws_come_as_often_as_they_should() -> None:
    logits_BV = torch.tensor([[2.0, 1.0, 0.0, -1.0, -30.0]]).expand(20_000, -1)
    settings = SamplingSettings(1, temperature=0.7, top_k=3)
    drawn = choose(logits_BV, settings, torch.Generator().manual_seed(0)).flatten()
    expected = probabilities_of(logits_BV[:1], settings)[0]
    shares = torch.bincount(drawn, minlength=5) / len(drawn)
    assert torch.allclose(shares, expected, atol=0.015)
    assert shares[3:].sum() == 0


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-45, 1e-7])
def test_without_temperature_the_likeliest_token_is_taken(temperature: float) -> None:
    logits_BV = torch.randn(50, VOCABULARY, generator=torch.Generator().manual_seed(2)) * 50
    got_B1 = choose(logits_BV, SamplingSettings(1, temperature, top_k=5, top_p=0.5), None)
    assert torch.equal(got_B1, logits_BV.argmax(dim=-1, keepdim=True))


def test_very_cold_and_very_hot_draws_stay_numbers() -> None:
    logits_BV = torch.randn(50, VOCABULARY, generator=torch.Generator().manual_seed(2)) * 50
    for temperature in (1e-6, 1e-3, 100.0):
        got_B1 = choose(logits_BV, SamplingSettings(1, temperature), torch.Generator().manual_seed(0))
        assert temperature > 1 or torch.equal(got_B1, logits_BV.argmax(dim=-1, keepdim=True))


def test_a_draw_is_that_of_multinomial() -> None:
    logits_BV = torch.randn(64, 50, generator=torch.Generator().manual_seed(2))
    settings = SamplingSettings(1, temperature=0.7)
    probabilities_BV = (logits_BV / 0.7).softmax(dim=-1)
    for seed in range(20):
        expected = torch.multinomial(probabilities_BV, 1, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(choose(logits_BV, settings, torch.Generator().manual_seed(seed)), expected)


def test_of_tokens_that_tie_as_many_are_drawn_as_were_asked_for() -> None:
    settings = SamplingSettings(1, top_k=2)
    drawn = choose(torch.zeros(1000, 5), settings, torch.Generator().manual_seed(0))
    assert drawn.unique().numel() == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_refused(temperature: float) -> None:
    logits_BV = torch.zeros(3, 5)
    logits_BV[1, 2] = math.nan
    with pytest.raises(DivergedError, match="logits are not numbers"):
        choose(logits_BV, SamplingSettings(1, temperature), None)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("length", [1, 3, 8, 20])
def test_with_and_without_cache_the_tokens_are_the_same(length: int, temperature: float) -> None:
    """Also where the text is several times longer than the window that slides over it."""
    model = adapter()
    settings = SamplingSettings(40, temperature, top_k=8, top_p=0.95, seed=5)
    cached = generate(model, prompt(3, length), settings)
    assert cached.shape == (3, length + 40)
    assert torch.equal(cached[:, :length], prompt(3, length))
    assert torch.equal(generate(model, prompt(3, length), settings, use_cache=False), cached)
    assert temperature == 0 or len(set(cached[0, length:].tolist())) > 2


def test_each_greedy_token_is_the_likeliest_given_the_text_before_it() -> None:
    model = adapter().eval()
    ids_BT = generate(model, prompt(2, 3), SamplingSettings(20, temperature=0.0))
    for at in range(3, 23):
        assert torch.equal(model.logits(ids_BT[:, :at])[:, -1].argmax(dim=-1), ids_BT[:, at])


def test_a_seed_makes_the_tokens_and_leaves_the_callers_generator_alone() -> None:
    model = adapter()
    settings = SamplingSettings(30, seed=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = generate(model, prompt(1, 2), settings)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(generate(model, prompt(1, 2), settings), first)
    assert not torch.equal(generate(model, prompt(1, 2), replace(settings, seed=2)), first)
    torch.manual_seed(0)
    unseeded = generate(model, prompt(1, 2), replace(settings, seed=None))
    assert not torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    assert torch.equal(generate(model, prompt(1, 2), replace(settings, seed=None)), unseeded)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_sampling_and_the_mode_comes_back(training: bool) -> None:
    model = adapter().train(training)
    torch.manual_seed(0)
    one = generate(model, prompt(1, 2), SamplingSettings(20, temperature=0.0))
    assert model.training is training
    assert torch.equal(generate(model, prompt(1, 2), SamplingSettings(20, temperature=0.0)), one)

    def stop(_: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, prompt(1, 2), SamplingSettings(20), on_token=stop)
    assert model.training is training


def test_every_token_is_told_as_it_comes() -> None:
    told: list[Tensor] = []
    ids_BT = generate(adapter(), prompt(2, 4), SamplingSettings(7, seed=0), on_token=told.append)
    assert torch.equal(torch.cat(told, dim=1), ids_BT[:, 4:])


def test_text_stops_where_every_document_has_ended() -> None:
    model = adapter()
    model.end_of_text_id = 0
    settings = SamplingSettings(200, temperature=3.0, seed=4)
    ids_BT = generate(model, prompt(3, 2, seed=1) + 0, settings)
    for row in ids_BT[:, 2:].tolist():
        assert row[-1] == 0
        assert set(row[row.index(0) :]) == {0}
    ends = [row.index(0) for row in ids_BT[:, 2:].tolist()]
    assert max(ends) == ids_BT.size(1) - 3
    assert len(set(ends)) > 1


def test_text_is_cut_where_a_model_can_take_no_more() -> None:
    model = adapter()
    model.max_positions = 10
    assert generate(model, prompt(1, 3), SamplingSettings(50, seed=0)).shape == (1, 10)
    assert generate(model, prompt(1, 12), SamplingSettings(50, seed=0)).shape == (1, 12)


@pytest.mark.parametrize("start", [[0], [3, 0], [0, 5], [4, 0, 5, 6], [1, 0, 0, 2, 0], [0, 0]])
def test_a_sample_sees_no_document_before_its_own_with_or_without_cache(start: list[int]) -> None:
    model = adapter(max_seq_len=64).eval()
    model.end_of_text_id = 0
    prompt_BT = torch.tensor([start, start])
    settings = SamplingSettings(25, temperature=1.0, top_k=6, seed=9)
    cached = generate(model, prompt_BT, settings)
    assert torch.equal(generate(model, prompt_BT, settings, use_cache=False), cached)
    row = cached[0].tolist()
    first = row[len(start)]
    if first != 0 and start[-1] == 0:  # the first token opens a document of its own: what stood before is not seen
        alone = model.logits(torch.tensor([row[len(start) : len(start) + 2]]))
        packed = model.logits(cached[:1, : len(start) + 2])
        assert torch.allclose(packed[:, -1], alone[:, -1], atol=1e-4)
