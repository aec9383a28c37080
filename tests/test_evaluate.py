"""Evaluation: each token once, bits per byte of real bytes, and a leak that does not pass."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from peak import output_of
from tiny_config import TINY

import lmlab.evaluate as evaluate_module
from lmlab import lab, storybook
from lmlab.adapters.custom import CustomTransformerAdapter
from lmlab.data import DataLoader, WindowDataset, load_text
from lmlab.evaluate import Evaluation, count_bytes, evaluate, losses_by_position, text_losses, token_losses
from lmlab.loading import load_adapter
from lmlab.tokenizers import CharTokenizer, HFTokenizer
from lmlab.transformer import Transformer

CPU = torch.device("cpu")


def adapter(vocab_size: int = 11, width: int = 8) -> CustomTransformerAdapter:
    model = Transformer(vocab_size, n_layers=2, d_model=16, n_heads=2, d_ff=32, dropout=0.4, max_seq_len=width, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 8
    return CustomTransformerAdapter(model)


def ids(n: int, vocab_size: int = 11) -> np.ndarray:
    return np.random.default_rng(n).integers(0, vocab_size, n).astype(np.int32)


def total_by_hand(model: CustomTransformerAdapter, tokens: np.ndarray, width: int) -> float:
    """-ln p of every token but the first, window after window, one at a time."""
    model.eval()
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, width):
            window = torch.from_numpy(tokens[start : start + width + 1].astype(np.int64))
            logits_TV = model.logits(window[None, :-1])[0].double().log_softmax(dim=-1)
            total -= float(logits_TV.gather(1, window[1:, None]).sum())
    return total


@pytest.mark.parametrize("n", [2, 9, 10, 33, 100])
def test_every_token_counts_once_whatever_the_size_of_the_batches(n: int) -> None:
    model, tokens = adapter(), ids(n)
    expected = total_by_hand(model, tokens, 8)
    for batch_size in (1, 2, 3, 5, 64):
        loader = DataLoader(WindowDataset(tokens, 8), batch_size)
        evaluation = evaluate(model.train(), loader, n_bytes=n - 1, device=CPU)
        assert evaluation.n_tokens == n - 1
        assert evaluation.total == pytest.approx(expected, rel=1e-5)
        assert model.training  # as it was
    assert evaluation.val_loss == pytest.approx(expected / (n - 1), rel=1e-5)
    assert evaluation.perplexity == pytest.approx(math.exp(expected / (n - 1)), rel=1e-4)


def test_a_limit_evaluates_the_first_batches() -> None:
    model, tokens = adapter(), ids(100)
    evaluation = evaluate(model, DataLoader(WindowDataset(tokens, 8), 2), n_bytes=48, device=CPU, max_batches=3)
    assert evaluation.n_tokens == 48
    assert evaluation.total == pytest.approx(total_by_hand(model, tokens[:49], 8), rel=1e-5)


def test_bf16_evaluates_to_nearly_the_same() -> None:
    model, loader = adapter(), DataLoader(WindowDataset(ids(200), 8), 4)
    exact = evaluate(model, loader, n_bytes=199, device=CPU)
    rough = evaluate(model, loader, n_bytes=199, device=CPU, precision="bf16")
    assert rough.val_loss == pytest.approx(exact.val_loss, rel=0.02)
    assert rough.val_loss != exact.val_loss


def test_perplexity_beyond_a_float_is_infinite() -> None:
    assert Evaluation(1e6, 1, 1).perplexity == math.inf
    assert Evaluation(math.log(7), 1, 1).perplexity == pytest.approx(7)
    assert math.isnan(Evaluation(math.nan, 1, 1).perplexity)


def test_bits_per_byte_count_the_bytes_of_the_text() -> None:
    text = "naïve 😀 漢字 " * 20
    tokenizer = CharTokenizer.from_text(text)
    tokens = tokenizer.encode(text)
    loader = DataLoader(WindowDataset(tokens, 7), 3)
    n_bytes = count_bytes(loader, tokenizer, None)
    assert n_bytes == len(text[1:].encode()) > len(text)
    model = adapter(tokenizer.vocab_size, 7)
    evaluation = evaluate(model, loader, n_bytes=n_bytes, device=CPU)
    assert evaluation.bits_per_byte == pytest.approx(total_by_hand(model, tokens, 7) / math.log(2) / n_bytes, rel=1e-5)
    assert count_bytes(loader, tokenizer, 2) == len(text[1:43].encode())
    assert count_bytes(loader, None, None) == len(tokens) - 1


def test_bits_per_byte_are_the_same_measure_for_every_tokenizer(tmp_path: Path) -> None:
    """Two tokenizers of one text under a model that knows nothing: each costs ln V per token, over the same bytes."""
    tiny_models.write_tokenizer(tmp_path)
    text = tiny_models.text(300) + " naïve 😀"
    for tokenizer in (HFTokenizer(tmp_path), CharTokenizer.from_text(text)):
        tokens = tokenizer.encode(text)
        loader = DataLoader(WindowDataset(tokens, 8), 4)
        model = adapter(tokenizer.vocab_size)
        with torch.no_grad():
            model.model.embedding.weight.zero_()
        n_bytes = count_bytes(loader, tokenizer, None)
        assert n_bytes == len(text.encode()) - len(tokenizer.decode(tokens[:1]).encode())
        bits = evaluate(model, loader, n_bytes=n_bytes, device=CPU).bits_per_byte
        assert bits == pytest.approx((len(tokens) - 1) * math.log2(tokenizer.vocab_size) / n_bytes, rel=1e-4)


def test_bits_per_byte_count_a_border_between_documents_as_an_empty_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the tokenizer of characters has it in its text, so that the two stay comparable."""
    tiny_models.write_tokenizer(tmp_path)
    documents = [f"the boat {'went over the sea ' * (n % 5)}naïve 😀" for n in range(60)]
    tokenizer, characters = HFTokenizer(tmp_path), CharTokenizer.from_text("".join(documents) + "\n")
    text = "\n\n".join(documents)
    for at_once in (evaluate_module.DECODED_AT_ONCE, 64):
        monkeypatch.setattr(evaluate_module, "DECODED_AT_ONCE", at_once)
        for each in (tokenizer, characters):
            tokens = each.encode_documents(documents)
            n_bytes = count_bytes(DataLoader(WindowDataset(tokens, 8), 4), each, None)
            more = n_bytes - len(text.encode()) + len(each.decode(tokens[:1]).encode())  # the first token is no target
            assert more == 0 or (at_once == 64 and each is tokenizer and 0 < more < 100)  # characters that are parted
    llama = HFTokenizer(tiny_models.write_llama_tokenizer(tmp_path / "llama"))  # puts a blank before each text
    tokens = llama.encode_documents(["the", "boat the", "the"])
    assert count_bytes(DataLoader(WindowDataset(tokens, 8), 4), llama, None) == len("\n\nboat the\n\nthe")
    tokenizer.begin_of_text_id = int(tokenizer.encode("a")[0])  # as Llama's, whose documents each begin with one
    tokens = tokenizer.encode_documents(["b", "b", "b"])
    assert len(tokens) == 3 + 2 * 2
    assert count_bytes(DataLoader(WindowDataset(tokens, 6), 1), tokenizer, None) == len("\n\nb\n\nb")


def test_losses_by_token_and_position_add_up_to_the_whole() -> None:
    model, tokens = adapter(), ids(83)
    loader = DataLoader(WindowDataset(tokens, 8), 4)
    batches = list(loader)
    losses = [token_losses(model, batch.inputs_BT, batch.targets_BT) for batch in batches]
    assert sum(float(each.sum()) for each in losses) == pytest.approx(total_by_hand(model, tokens, 8), rel=1e-5)
    assert bool((losses[-1][batches[-1].targets_BT == -100] == 0).all())
    by_position = losses_by_position(model, loader)
    counts = torch.tensor([11, 11] + [10] * 6)
    assert float((by_position * counts).sum()) == pytest.approx(total_by_hand(model, tokens, 8), rel=1e-5)
    assert torch.allclose(by_position[2:], torch.cat(losses)[:10].mean(dim=0)[2:].double(), atol=1e-5)


@pytest.mark.parametrize("family", ["custom", "qwen2", "qwen3", "gpt2", "mamba"])
def test_a_text_that_is_read_in_pieces_costs_what_it_costs_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    model: Any = adapter() if family == "custom" else load_adapter(tiny_models.make(tmp_path, family))
    model.end_of_text_id, ids_T = 3, torch.from_numpy(ids(90)).long()
    ids_T[ids_T == 3], ids_T[[0, 49, 50, 88]] = 4, 3  # a long document, an empty one, one of several pieces
    whole_T = text_losses(model, ids_T)
    assert torch.equal(whole_T, token_losses(model, ids_T[None, :-1], ids_T[None, 1:])[0])
    monkeypatch.setattr(evaluate_module, "READ_AT_ONCE", 7)
    torch.testing.assert_close(text_losses(model, ids_T), whole_T, rtol=1e-4, atol=1e-4)


def test_the_memory_of_reading_a_text_grows_with_its_length_alone() -> None:
    """In one row, 10,000 tokens take 0.8 GB."""
    code = """
import torch
from peak import peak_bytes
from lmlab.adapters.custom import CustomTransformerAdapter
from lmlab.evaluate import text_losses
from lmlab.transformer import Transformer

shape = {"n_layers": 2, "d_model": 32, "n_heads": 2, "d_ff": 64, "dropout": 0.0, "max_seq_len": 64}
model = CustomTransformerAdapter(Transformer(60, **shape))
ids_T = torch.randint(60, (10_001,))
text_losses(model, ids_T[:1025])
before = peak_bytes()
text_losses(model, ids_T)
print(peak_bytes() - before)
"""
    assert int(output_of(code)) < 100e6


# --- the floor ----------------------------------------------------------------------------------------------------


def test_the_floor_is_that_of_the_tokens_that_an_evaluation_counts() -> None:
    config = {**TINY, "batch_size": 4, "max_seq_len": 16, "eval_cadence": 3, "eval_batches": 5, "train_ratio": 0.5}
    run = lab.run(config, "storybook:20000", run_name="r-1", listeners=[])
    text = load_text("storybook:20000").text
    nats = [-log for log in storybook.log_probability_by_character(text[int(len(text) * 0.5) :])]
    counted = nats[: 5 * 4 * 16 + 1]
    assert run.loss_floor == pytest.approx(sum(counted) / len(counted), rel=1e-9)
    whole = lab.resume("r-1", listeners=[], max_steps=7, eval_batches=None)
    assert whole.loss_floor == pytest.approx(sum(nats) / len(nats), rel=1e-9)
    assert abs(whole.loss_floor - run.loss_floor) > 1e-3


# --- leaks ----------------------------------------------------------------------------------------------------------


def test_a_leak_is_a_total_more_than_twenty_nats_below_the_floor() -> None:
    for total, leaks in ((1000.0, False), (980.0, False), (979.0, True)):
        assert Evaluation(total, 500, 500).leaks(1000.0) is leaks


class Cheat(CustomTransformerAdapter):
    """A model that looks at the token it is to predict: its inputs are moved one to the left."""

    def loss(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        known = torch.where(targets_BT == -100, inputs_BT, targets_BT)
        logits_BTV = (
            torch.nn.functional.one_hot(known, self.vocab_size) * 12.0 + 0.0 * self.model.embedding.weight.sum()
        )
        return torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction=reduction)


def leaking_trainer(cheat: bool, **changes: Any) -> tuple[Any, list[dict[str, Any]]]:
    config = {
        "n_layers": 1, "d_model": 8, "n_heads": 1, "d_ff": 8, "max_seq_len": 32, "train_ratio": 0.5, "batch_size": 16,
        "eval_cadence": 1, "max_steps": 1, "seed": 0, "precision": "fp32", "sampling_max_length": 1, **changes,
    }  # fmt: skip
    trainer = lab.build(config, "storybook:20000")
    if cheat:
        trainer.model = Cheat(trainer.model.model)
    told: list[dict[str, Any]] = []
    trainer.listeners = [told.append]
    return trainer, told


def test_a_planted_leak_is_warned_of_and_an_honest_model_is_not() -> None:
    trainer, told = leaking_trainer(cheat=True)
    evaluation = trainer.evaluate()
    assert evaluation.leaks(trainer.facts["floor_total"])
    (warning,) = [event for event in told if event["event"] == "warning"]
    assert "below the entropy of the text" in warning["message"]
    assert "later tokens leak into earlier ones" in warning["message"]
    trainer, told = leaking_trainer(cheat=False)
    assert not trainer.evaluate().leaks(trainer.facts["floor_total"])
    trainer, told = leaking_trainer(cheat=True, eval_batches=2)  # a part of the text has no floor
    trainer.evaluate()
    assert not [event for event in told if event["event"] == "warning"]
