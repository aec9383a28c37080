"""What every adapter counts of its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
from torch import nn

from lmlab.adapters.base import BaseAdapter
from lmlab.adapters.custom import CustomTransformerAdapter
from lmlab.loading import load_adapter
from lmlab.transformer import Transformer


def multiplied(adapter: BaseAdapter, context: int = 16) -> float:
    """The weights that the arithmetic of a step is counted for."""
    n_layers, width = adapter.attention_shape()
    return (adapter.flops_per_token(context) - 12 * n_layers * width * context) / 6


def all_matrices(adapter: BaseAdapter) -> int:
    return sum(p.numel() for p in adapter.model.parameters() if p.dim() >= 2)


@pytest.mark.parametrize(
    ("kind", "changes", "looked_up"),
    [
        ("qwen2", {}, []),  # whose head is the embedding
        ("qwen2", {"tie_word_embeddings": False}, ["model.embed_tokens"]),
        ("llama", {}, ["model.embed_tokens"]),
        ("gpt2", {}, ["transformer.wpe"]),
        ("opt", {"word_embed_proj_dim": 32}, ["model.decoder.embed_positions"]),
    ],
)
def test_tables_that_are_looked_up_are_no_arithmetic(
    kind: str, changes: dict[str, Any], looked_up: list[str], tmp_path: Path
) -> None:
    adapter = load_adapter(tiny_models.make(tmp_path / "model", kind, **changes))
    tables = [adapter.model.get_submodule(name) for name in looked_up]
    assert all(isinstance(table, nn.Embedding) for table in tables)
    weights = sum(parameter.numel() for table in tables for parameter in table.parameters())
    assert multiplied(adapter) == all_matrices(adapter) - weights


@pytest.mark.parametrize(("kind", "n_experts"), [("qwen3_next", 4), ("mixtral", 8), ("qwen3_moe", 8)])
def test_a_token_meets_the_experts_that_it_is_sent_to(kind: str, n_experts: int, tmp_path: Path) -> None:
    changes = {"num_experts_per_tok": 2}
    if kind != "qwen3_next":
        changes |= {"num_local_experts" if kind == "mixtral" else "num_experts": n_experts}
    few = load_adapter(tiny_models.make(tmp_path / "few", kind, **changes))
    all_of_them = load_adapter(
        tiny_models.make(tmp_path / "all", kind, **{**changes, "num_experts_per_tok": n_experts})
    )
    routed = sum(p.numel() for n, p in few.model.named_parameters() if ".experts." in n)
    assert routed > 0
    assert multiplied(all_of_them) - multiplied(few) == pytest.approx(routed * (1 - 2 / n_experts))


def test_the_lab_s_own_model_multiplies_every_matrix() -> None:
    model = Transformer(11, n_layers=2, d_model=16, n_heads=2, d_ff=32, dropout=0.0, max_seq_len=8, seed=0)
    adapter = CustomTransformerAdapter(model)
    assert multiplied(adapter) == all_matrices(adapter)
