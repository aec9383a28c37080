"""Sampling one token at a time without the layers of transformers: the same logits, where a model is of that kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from lmlab.adapters.caches import Replay, going_on
from lmlab.adapters.decoding import ROOM, Decoding, can_decode
from lmlab.generate import SamplingSettings, generate
from lmlab.loading import load_adapter

ALIKE = ("qwen2", "qwen3", "llama", "mistral")
OTHERS = ("gpt2", "gemma", "gpt_neox")


def loaded(folder: Path, family: str, **changes: object):
    return load_adapter(tiny_models.make(folder / family, family, **changes))


def ids(adapter, length: int, rows: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(1, adapter.vocab_size, (rows, length), generator=generator)


@pytest.mark.parametrize("family", ALIKE)
def test_the_logits_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    adapter = loaded(tmp_path, family, **({"sliding_window": None} if family == "mistral" else {}))
    ids_BT = ids(adapter, 20)
    cache = adapter.new_cache(2)
    assert isinstance(cache, Decoding)
    theirs = DynamicCache(config=adapter.model.config)
    for part_BT in ids_BT.split([9, 1, 1, 8, 1], dim=1):
        with torch.no_grad():
            expected = adapter.model(input_ids=part_BT, **going_on(adapter.model, theirs)).logits
        torch.testing.assert_close(adapter.logits(part_BT, cache), expected, rtol=1e-4, atol=1e-5)
    assert cache.position == 20


@pytest.mark.parametrize("family", ALIKE)
def test_in_bf16_from_the_first_token_on_the_logits_are_near_those_in_fp32(tmp_path: Path, family: str) -> None:
    adapter = loaded(tmp_path, family, **({"sliding_window": None} if family == "mistral" else {}))
    ids_BT = ids(adapter, 20)
    exact = adapter.logits(ids_BT)[:, 9:]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = adapter.new_cache(2)  # tried under autocast, too
        assert isinstance(cache, Decoding)
        adapter.logits(ids_BT[:, :9], cache)
        ours = torch.cat([adapter.logits(part_BT, cache) for part_BT in ids_BT[:, 9:].split(1, dim=1)], dim=1).float()
        theirs = adapter.logits(ids_BT)[:, 9:].float()
    error, usual = (ours - exact).norm() / exact.norm(), (theirs - exact).norm() / exact.norm()
    assert error < 2 * usual, "twice what rounding to bf16 costs at the most"


@pytest.mark.parametrize("family", [*ALIKE, *OTHERS])
def test_the_next_tokens_logits_are_the_last_of_all(tmp_path: Path, family: str) -> None:
    adapter = loaded(tmp_path, family)
    ids_BT = ids(adapter, 12)
    cache, other = adapter.new_cache(2), adapter.new_cache(2)
    with torch.no_grad():
        for part_BT in ids_BT.split([7, 1, 3, 1], dim=1):
            expected_BV = adapter.logits(part_BT, cache)[:, -1]
            torch.testing.assert_close(adapter.next_logits(part_BT, other), expected_BV, rtol=1e-5, atol=1e-5)
        assert torch.equal(adapter.next_logits(ids_BT), adapter.logits(ids_BT)[:, -1])


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_of_a_prompt_only_the_last_logits_are_made(tmp_path: Path, family: str) -> None:
    adapter = loaded(tmp_path, family)
    seen: list[int] = []
    head = adapter.model.get_output_embeddings()
    adapter.new_cache(2)  # tries the model, once
    head.register_forward_hook(lambda module, arguments, output: seen.append(output.size(1)))
    adapter.generate(ids(adapter, 9), SamplingSettings(3, temperature=0.0))
    assert set(seen) == {1}


@pytest.mark.parametrize("family", OTHERS)
def test_other_kinds_are_left_to_transformers(tmp_path: Path, family: str) -> None:
    adapter = loaded(tmp_path, family)
    assert not can_decode(adapter.model)
    assert isinstance(adapter.new_cache(1), DynamicCache)


@pytest.mark.parametrize(("family", "plain"), [("gemma", True), ("gpt2", False)])
def test_single_tokens_go_past_onednn_where_all_matrices_are_linear_layers(
    tmp_path: Path, family: str, plain: bool
) -> None:
    adapter = loaded(tmp_path, family)
    enabled: list[bool] = []
    adapter.model.register_forward_pre_hook(lambda module, arguments: enabled.append(torch.backends.mkldnn.enabled))
    adapter.generate(ids(adapter, 9, rows=1), SamplingSettings(4, temperature=0.0))
    assert enabled[-4:] == [True, *[not plain] * 3], "the prompt, then one token at a time"
    assert torch.backends.mkldnn.enabled


def test_a_window_that_slides_is_left_to_transformers(tmp_path: Path) -> None:
    adapter = loaded(tmp_path, "mistral", sliding_window=64)  # longer than what is tried
    cache = adapter.new_cache(2)
    assert isinstance(cache, DynamicCache)
    ids_BT = ids(adapter, 100)
    with torch.no_grad():
        parts = [adapter.logits(part_BT, cache) for part_BT in ids_BT.split([80, 1, 1, 18], dim=1)]
        expected = AutoModelForCausalLM.from_pretrained(tmp_path / "mistral")(input_ids=ids_BT, use_cache=False).logits
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-4, atol=1e-4)


def test_queries_that_grow_with_the_position_are_left_to_transformers(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "llama_4_scaling_beta": 1.0}
    rope["original_max_position_embeddings"] = 16  # they grow from there on, which is beyond what is tried
    adapter = loaded(tmp_path, "ministral3", head_dim=8, sliding_window=None, rope_parameters=rope)
    assert isinstance(adapter.new_cache(1), DynamicCache)


def test_a_model_that_fails_when_it_is_tried_is_left_to_transformers(tmp_path: Path) -> None:
    adapter = loaded(tmp_path, "llama")
    forward = adapter.model.forward
    adapter.model.forward = lambda input_ids, past_key_values=None: forward(input_ids, past_key_values=past_key_values)
    assert not can_decode(adapter.model)


def test_a_model_that_only_looks_alike_is_found_out(tmp_path: Path) -> None:
    adapter = loaded(tmp_path, "llama")
    assert can_decode(adapter.model)
    layer = adapter.model.base_model.layers[0]
    layer.register_forward_hook(lambda module, arguments, output: 1.1 * output)
    assert not can_decode(adapter.model)


def test_a_model_that_takes_no_cache_but_its_own_reads_all_again(tmp_path: Path) -> None:
    adapter = loaded(tmp_path, "minimax", head_dim=8, num_local_experts=4)
    assert isinstance(adapter.new_cache(1), Replay)
    prompt_BT, settings = ids(adapter, 6), SamplingSettings(8, temperature=0.0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "minimax").eval()
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(prompt_BT, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(adapter.generate(prompt_BT, settings), expected)


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize("length", [10, 15, 16, 17, 40])
@pytest.mark.parametrize("family", ["phi3", "llama"])
def test_text_that_becomes_long_is_sampled_with_the_angles_of_long_text(
    tmp_path: Path, family: str, length: int
) -> None:
    changes = {"original_max_position_embeddings": 16} if family == "phi3" else {}
    folder = tiny_models.make(tmp_path / "model", family, pad_token_id=0, rope_parameters=LONGROPE, **changes)
    adapter, theirs = load_adapter(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt_BT, settings = ids(adapter, length), SamplingSettings(20, temperature=0.0)
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(
        prompt_BT, max_new_tokens=20, do_sample=False, pad_token_id=0, use_cache=family == "phi3"
    )
    assert torch.equal(adapter.generate(prompt_BT, settings), expected)
    assert torch.equal(generate(adapter, prompt_BT, settings, use_cache=False), expected)
    cache = adapter.new_cache(2)
    with torch.no_grad():
        for stop in (3, 4, 12, 20, 21, 30):  # what a cache gave before it was read again stays as it was
            start = {3: 0, 4: 3, 12: 4, 20: 12, 21: 20, 30: 21}[stop]
            whole_BTV = adapter.logits(expected[:, :stop])[:, start:]
            torch.testing.assert_close(adapter.logits(expected[:, start:stop], cache), whole_BTV)


def test_the_loss_of_a_window_does_not_hang_on_how_long_the_documents_beside_it_are(tmp_path: Path) -> None:
    adapter = loaded(tmp_path, "phi3", pad_token_id=0, rope_parameters=LONGROPE, original_max_position_embeddings=16)
    adapter.end_of_text_id = 0
    ids_BT = ids(adapter, 41, rows=3)
    ids_BT[0, 8] = ids_BT[0, 20] = ids_BT[0, 36] = 0  # all short; the last short; and one long
    ids_BT[1, 30] = 0
    inputs_BT, targets_BT = ids_BT[:, :-1], ids_BT[:, 1:]
    with torch.no_grad():
        alone = [adapter.loss(inputs_BT[i : i + 1], targets_BT[i : i + 1], "sum") for i in range(3)]
        torch.testing.assert_close(adapter.loss(inputs_BT, targets_BT, "sum"), sum(alone))
        logits_BTV = adapter.logits(inputs_BT)
        for row, start, stop in ((0, 0, 9), (0, 9, 21), (0, 21, 37), (1, 0, 31), (1, 31, 40), (2, 0, 40)):
            document_BTV = adapter.logits(inputs_BT[row : row + 1, start:stop])
            torch.testing.assert_close(logits_BTV[row : row + 1, start:stop], document_BTV, rtol=1e-4, atol=1e-4)


def test_text_grows_beyond_the_room_that_was_made(tmp_path: Path) -> None:
    adapter = loaded(tmp_path, "qwen2", max_position_embeddings=4 * ROOM)
    prompt_BT = ids(adapter, 3, rows=1)
    settings = SamplingSettings(2 * ROOM + 10, temperature=0.0)
    text_BT = adapter.generate(prompt_BT, settings)
    assert text_BT.size(1) == 3 + 2 * ROOM + 10
    with torch.no_grad():
        again_BT = adapter.logits(text_BT)[:, 2:-1].argmax(dim=-1)
    assert (again_BT == text_BT[:, 3:]).float().mean() > 0.99  # rounding may turn a tie


def test_greedy_text_is_that_of_generate(tmp_path: Path) -> None:
    folder = tiny_models.make(tmp_path / "model", "qwen3")
    adapter, theirs = load_adapter(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt_BT = ids(adapter, 6)
    adapter.end_of_text_id = theirs.generation_config.eos_token_id = None
    expected = theirs.generate(prompt_BT, max_new_tokens=30, do_sample=False, pad_token_id=0)
    assert torch.equal(adapter.generate(prompt_BT, SamplingSettings(30, temperature=0.0)), expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_differs_by_its_rounding_alone(tmp_path: Path, autocast: bool) -> None:
    adapter = loaded(tmp_path, "qwen2")
    ids_BT = ids(adapter, 12)
    if not autocast:
        adapter.to(torch.bfloat16)
    cache = adapter.new_cache(2)
    assert isinstance(cache, Decoding)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        parts = [adapter.logits(part_BT, cache).float() for part_BT in ids_BT.split([7, 1, 4], dim=1)]
        expected = adapter.model(input_ids=ids_BT, use_cache=False).logits.float()
    error = (torch.cat(parts, dim=1) - expected).norm() / expected.norm()
    assert error < 0.02


def test_weights_that_training_changes_are_seen(tmp_path: Path) -> None:
    adapter = loaded(tmp_path, "llama")
    ids_BT = ids(adapter, 5, rows=1)
    cache = adapter.new_cache(1)
    adapter.logits(ids_BT[:, :4], cache)
    with torch.no_grad():
        adapter.model.get_output_embeddings().weight.mul_(2.0)
        expected = adapter.logits(ids_BT)[:, -1:]
    torch.testing.assert_close(adapter.logits(ids_BT[:, 4:], cache), expected, rtol=1e-4, atol=1e-4)


def test_training_goes_on_after_a_sample(tmp_path: Path) -> None:
    adapter = loaded(tmp_path, "qwen2")
    ids_BT = ids(adapter, 8)
    adapter.train()
    adapter.loss(ids_BT[:, :-1], ids_BT[:, 1:]).backward()
    before = [p.grad.clone() for p in adapter.parameters()]
    adapter.zero_grad()
    adapter.generate(ids_BT[:, :3], SamplingSettings(4, temperature=0.0))
    assert adapter.training
    adapter.loss(ids_BT[:, :-1], ids_BT[:, 1:]).backward()
    for old, parameter in zip(before, adapter.parameters(), strict=True):
        assert torch.equal(old, parameter.grad)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("smollm3", {"no_rope_layers": [1, 0]}), ("helium", {"head_dim": 8}), ("ernie4_5", {"head_dim": 8})],
)
@pytest.mark.parametrize("deviation", [0.02, 0.2])
def test_what_turns_otherwise_is_left_alone_in_bf16_too(
    tmp_path: Path, family: str, changes: dict[str, object], deviation: float
) -> None:
    """Layers without positions, and turns of neighbours: near what is right, within the rounding of bf16."""
    folder = tiny_models.make(tmp_path / family, family, initializer_range=deviation, pad_token_id=0, **changes)
    for dtype in (torch.float32, torch.bfloat16):
        assert not can_decode(load_adapter(folder, dtype=dtype).model)
