"""Blockwise attention in models of transformers, and memory that is kept: faster ways to the same numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from torch import Tensor

from lmlab import transformer
from lmlab.adapters.base import BaseAdapter
from lmlab.loading import load_adapter
from lmlab.transformer import BlockCausalAttention

T = 130  # two blocks and a piece of a third


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make(tmp_path_factory.mktemp("model") / "model", request.param)


def batch(model: BaseAdapter) -> tuple[Tensor, Tensor]:
    ids_BT = torch.randint(4, model.vocab_size, (2, T + 1), generator=torch.Generator().manual_seed(1))
    return ids_BT[:, :-1], ids_BT[:, 1:]


def gradients(model: BaseAdapter, bf16: bool) -> Tensor:
    """All gradients of one batch in a row, in fp32."""
    inputs_BT, targets_BT = batch(model)
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        model.loss(inputs_BT, targets_BT).backward()  # type: ignore[no-untyped-call]
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_gradients_in_blocks_are_as_close_to_fp32_as_the_fused_kernels(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_adapter(folder, dtype=torch.float32)
    exact = gradients(model, bf16=False)
    calls: list[int] = []
    real = BlockCausalAttention.apply
    monkeypatch.setattr(BlockCausalAttention, "apply", lambda *qkv: calls.append(1) or real(*qkv))
    in_blocks = gradients(model, bf16=True)
    assert len(calls) == model.attention_shape()[0]  # every layer
    monkeypatch.setattr(transformer, "EXPLICIT_ATTENTION_KEYS", 0)
    fused = gradients(model, bf16=True)
    assert len(calls) == model.attention_shape()[0]  # and none now
    assert relative(in_blocks, exact) <= 1.25 * relative(fused, exact)
    assert relative(in_blocks, exact) < 0.05


def test_in_fp32_and_over_several_documents_the_models_own_attention_serves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_adapter(folder, dtype=torch.float32)
    inputs_BT, targets_BT = batch(model)
    model.end_of_text_id = 1
    inputs_BT[:, 40] = 1
    exact = model.loss(inputs_BT, targets_BT)  # the first time an adapter tries whether its model can tell them apart
    monkeypatch.setattr(BlockCausalAttention, "apply", lambda *_: pytest.fail("blocks know no documents"))
    gradients(model, bf16=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(model.loss(inputs_BT, targets_BT), exact, rtol=0.01)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what glibc does")
def test_freed_memory_serves_again_without_being_faulted_in() -> None:
    code = """
import resource, sys
import torch
from lmlab import devices
assert sys.argv[1] == "plain" or devices.keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(1 << 24)  # 64 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(3):
    faults()  # until there is room for two such tensors, aligned
print(faults())
"""
    counts = {
        way: int(subprocess.run([sys.executable, "-c", code, way], capture_output=True, text=True, check=True).stdout)
        for way in ("plain", "kept")
    }
    assert counts["kept"] < 0.01 * counts["plain"]
