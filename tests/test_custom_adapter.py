"""The custom Transformer behind the adapters' interface: loss, packing, saving, and files that lie."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmlab.adapters import custom, head
from lmlab.adapters.base import BaseAdapter
from lmlab.adapters.custom import CustomTransformerAdapter
from lmlab.adapters.head import chunked_cross_entropy
from lmlab.errors import CheckpointError
from lmlab.loading import load_adapter
from lmlab.transformer import Transformer

VOCABULARY = 17


def adapter(**changes: Any) -> CustomTransformerAdapter:
    values: dict[str, Any] = {
        "n_layers": 2, "d_model": 16, "n_heads": 2, "d_ff": 32, "dropout": 0.0, "max_seq_len": 12, **changes,
    }  # fmt: skip
    model = Transformer(VOCABULARY, **values, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 8
    return CustomTransformerAdapter(model)


def batch(rows: int = 3, length: int = 12) -> tuple[Tensor, Tensor]:
    ids_BT = torch.randint(1, VOCABULARY, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    targets_BT = ids_BT[:, 1:].clone()
    targets_BT[0, 2:5] = -100
    return ids_BT[:, :-1].clone(), targets_BT


@torch.no_grad()
def test_the_loss_is_that_of_the_logits() -> None:
    model, (inputs_BT, targets_BT) = adapter(), batch()
    expected = F.cross_entropy(model.logits(inputs_BT).flatten(0, 1).double(), targets_BT.flatten(), reduction="sum")
    assert float(model.loss(inputs_BT, targets_BT, "sum")) == pytest.approx(float(expected), rel=1e-5)
    assert float(model.loss(inputs_BT, targets_BT)) == pytest.approx(float(expected) / 33, rel=1e-5)
    assert float(model(inputs_BT, targets_BT)) == float(model.loss(inputs_BT, targets_BT))
    with torch.autocast("cpu", torch.bfloat16):
        assert model.loss(inputs_BT, targets_BT).dtype == torch.float32


@pytest.mark.parametrize("elements", [1, 50, 17 * 7, 10**6])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_loss_in_chunks_has_the_value_and_the_gradient_of_the_whole(
    elements: int, reduction: str, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(0)
    targets_N = torch.randint(0, VOCABULARY, (20,), generator=draw)
    targets_N[3] = -100
    values = [torch.randn(shape, generator=draw) for shape in ((20, 8), (VOCABULARY, 8), (VOCABULARY,))]
    results = []
    for chunked in (False, True):
        hidden_ND, weight_VD, bias_V = (value.clone().requires_grad_() for value in values)
        bias_V = bias_V if with_bias else None
        if chunked:
            monkeypatch.setattr(head, "CHUNK_ELEMENTS", elements)
            loss = chunked_cross_entropy(hidden_ND, weight_VD, targets_N, reduction, bias_V)
        else:
            loss = F.cross_entropy(F.linear(hidden_ND, weight_VD, bias_V), targets_N, reduction=reduction)
        loss.backward()
        assert hidden_ND.grad is not None
        assert weight_VD.grad is not None
        results.append([loss.detach(), hidden_ND.grad, weight_VD.grad, *([bias_V.grad] if bias_V is not None else [])])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_loss_in_chunks_under_autocast_is_near_that_in_fp32_however_large_the_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 50)
    monkeypatch.setattr(head, "WORDS_AT_ONCE", 5)
    draw = torch.Generator().manual_seed(0)
    targets_N = torch.randint(0, VOCABULARY, (20,), generator=draw)
    targets_N[3] = -100
    hidden_ND, weight_VD = (30 * torch.randn(shape, generator=draw) for shape in ((20, 8), (VOCABULARY, 8)))  # e¹⁰⁰⁰
    results = []
    for half in (False, True):
        leaves = [x.bfloat16().float().requires_grad_() for x in (hidden_ND, weight_VD)]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = chunked_cross_entropy(*leaves, targets_N)
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves)])
        assert all(x.dtype == torch.float32 for x in results[-1])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=0.02, atol=0.02 * float(one.abs().max()))


def test_a_large_vocabulary_takes_the_chunked_way_to_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (inputs_BT, targets_BT) = adapter(), batch()
    whole = model.loss(inputs_BT, targets_BT)
    calls: list[int] = []
    real = custom.chunked_cross_entropy

    def counted(*arguments: Any) -> Tensor:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(custom, "chunked_cross_entropy", counted)
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 100)
    assert torch.allclose(model.loss(inputs_BT, targets_BT), whole, atol=1e-5)
    assert calls == [1]


def test_documents_are_told_apart_by_their_end() -> None:
    model = adapter().eval()
    ids_BT = torch.tensor([[3, 4, 0, 5, 6, 7, 0, 0, 8, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]])
    assert model.segments(ids_BT) is None
    model.end_of_text_id = 0
    assert model.segments(ids_BT[1:]) is None  # one document: its end is its last token
    segments_BT = model.segments(ids_BT)
    assert segments_BT is not None
    assert segments_BT.tolist() == [[0, 0, 0, 1, 1, 1, 1, 2, 3, 3], [0] * 10]
    packed = model.logits(ids_BT)
    for start, end in ((0, 3), (3, 7), (7, 8), (8, 10)):
        assert torch.allclose(packed[0, start:end], model.logits(ids_BT[:1, start:end])[0], atol=1e-5)
    assert torch.allclose(packed[1], model.logits(ids_BT[1:])[0], atol=1e-5)
    targets_BT = ids_BT.roll(-1, dims=1)
    targets_BT[:, -1] = -100
    expected = F.cross_entropy(packed.flatten(0, 1), targets_BT.flatten())
    assert torch.allclose(model.loss(ids_BT, targets_BT), expected, atol=1e-5)


def test_the_inside_of_the_model_leads_to_its_logits() -> None:
    model, (ids_BT, _) = adapter().eval(), batch()
    for end in (None, int(ids_BT[0, 4])):
        model.end_of_text_id = end
        with torch.no_grad():
            logits_BTV = model.logits(ids_BT)
            states = model.hidden_states(ids_BT)
            assert len(states) == 3
            assert torch.allclose(model.unembed(states[-1]), logits_BTV, atol=1e-5)
            probabilities = model.attentions(ids_BT)
        assert [tuple(p.shape) for p in probabilities] == [(3, 2, 12, 12)] * 2
        assert torch.allclose(probabilities[1].sum(dim=-1), torch.ones(3, 2, 12), atol=1e-5)
        assert float(probabilities[0].triu(1).abs().max()) == 0.0
        if end is not None:
            segments_BT = model.segments(ids_BT)
            assert segments_BT is not None
            apart = segments_BT[:, :, None] != segments_BT[:, None, :]
            assert float((probabilities[0] * apart[:, None]).max()) == 0.0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_is_said_of_the_model_is_true() -> None:
    model = adapter()
    n = sum(p.numel() for p in model.parameters())
    assert model.describe() == {
        "architecture_type": "custom-transformer", "n_parameters": n, "size_bytes": 4 * n, "vocab_size": 17,
        "n_layers": 2, "d_model": 16, "n_heads": 2, "d_ff": 32, "dropout": 0.0, "max_seq_len": 12,
    }  # fmt: skip
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert model.flops_per_token(12) == 6 * matrices + 12 * 2 * 16 * 12


# --- saving and loading ---------------------------------------------------------------------------------------------


def test_a_saved_model_is_the_same_model(tmp_path: Path) -> None:
    model, (ids_BT, targets_BT) = adapter(dropout=0.25), batch()
    model.save(tmp_path)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded = load_adapter(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn for weights that come from a file
    assert isinstance(loaded, CustomTransformerAdapter)
    assert loaded.architecture() == model.architecture()
    for (name, one), (other_name, other) in zip(model.tensors().items(), loaded.tensors().items(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    assert torch.equal(loaded.eval().logits(ids_BT), model.eval().logits(ids_BT))
    long_BT = ids_BT.repeat(1, 5)
    assert torch.equal(loaded.logits(long_BT), model.logits(long_BT))
    for each in (model, loaded):
        torch.manual_seed(3)
        each.train().loss(ids_BT, targets_BT).backward()
    for one, other in zip(model.parameters(), loaded.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


def test_training_a_loaded_model_leaves_its_file_alone(tmp_path: Path) -> None:
    adapter().save(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    loaded = load_adapter(tmp_path)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter += 1
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not torch.equal(
        next(iter(loaded.tensors().values())), next(iter(load_file(tmp_path / "model.safetensors").values()))
    )


def test_weights_load_in_the_precision_that_is_asked_for(tmp_path: Path) -> None:
    adapter().save(tmp_path)
    loaded = load_adapter(tmp_path, torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert loaded.logits(batch()[0]).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_in_another_precision_come_back_in_it(tmp_path: Path, dtype: torch.dtype) -> None:
    kept = adapter().to(dtype)
    kept.save(tmp_path)
    loaded = load_adapter(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert torch.equal(loaded.eval().logits(batch()[0]), kept.eval().logits(batch()[0]))


def test_weights_that_are_whole_numbers_are_refused(tmp_path: Path) -> None:
    adapter().save(tmp_path)
    save_file(
        {name: tensor.int() for name, tensor in load_file(tmp_path / "model.safetensors").items()},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit its config\.json"):
        load_adapter(tmp_path)


CONFIG_CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"n_layers": 3}, r"model.safetensors does not fit its config.json: tensor blocks.2.* is missing"),
    ({"n_layers": 1}, r"tensor blocks.1.* is not known to this model"),
    ({"d_ff": 64}, r"has shape \[32, 16\], not \[64, 16\]"),
    ({"vocab_size": 18}, r"tensor embedding.weight has shape \[17, 16\], not \[18, 16\]"),
    ({"vocab_size": 10**12}, "embedding.weight has shape"),
    ({"d_model": 32768, "n_heads": 1, "max_seq_len": 1048576}, "has shape"),
    ({"n_layers": 10**9}, r"config\.json: n_layers"),
    ({"d_model": 10**9}, r"config\.json: d_model"),
    ({"max_seq_len": 10**12}, r"config\.json: max_seq_len"),
    ({"max_seq_len": 0}, r"config\.json: max_seq_len"),
    ({"dropout": 1.5}, r"config\.json: dropout"),
    ({"dropout": "none"}, r"config\.json: dropout"),
    ({"n_heads": 3}, r"config\.json: .*n_heads"),
    ({"n_heads": 0}, r"config\.json: n_heads"),
    ({"vocab_size": -5}, r"config\.json describes no Transformer"),
    ({"vocab_size": "17"}, r"config\.json is damaged"),
    ({"surprise": 1}, r"config\.json: .*surprise"),
    ({"learning_rate": 0.1}, r"config\.json describes no Transformer"),
    ({"model_type": "nonsense"}, "nonsense"),
]


@pytest.mark.parametrize(("changes", "message"), CONFIG_CHANGES, ids=range(len(CONFIG_CHANGES)))
def test_a_config_that_does_not_fit_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    adapter().save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=message) as raised:
        load_adapter(tmp_path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


def test_files_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    model = adapter()
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json: No such file"):
        load_adapter(tmp_path)
    for content in (b"", b"[]", b"{", b"[" * 10**5, b"\xff"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(CheckpointError):
            load_adapter(tmp_path)
        with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
            CustomTransformerAdapter.load(tmp_path)
    model.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit"):
        load_adapter(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors: No such file"):
        load_adapter(tmp_path)
    tensors = model.tensors()
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != "norm.weight"}, tmp_path / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"tensor norm\.weight is missing"):
        load_adapter(tmp_path)


def test_the_parts_of_an_architecture_are_all_needed(tmp_path: Path) -> None:
    adapter().save(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for name in values:
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k != name}))
        message = {"model_type": "has model_type None", "vocab_size": "holds no architecture"}.get(
            name, f"is damaged: it lacks {name}$"
        )
        with pytest.raises(CheckpointError, match=message):
            load_adapter(tmp_path)


def test_resized_embeddings_keep_what_they_knew() -> None:
    model, (ids_BT, _) = adapter().eval(), batch()
    before = model.logits(ids_BT)
    mean_D = model.model.embedding.weight.detach().mean(dim=0)
    model.resize_embeddings(VOCABULARY + 3)
    assert model.vocab_size == VOCABULARY + 3
    assert model.architecture()["vocab_size"] == VOCABULARY + 3
    assert torch.allclose(model.logits(ids_BT)[..., :VOCABULARY], before, atol=1e-6)
    assert torch.allclose(model.model.embedding.weight[-1], mean_D)
    assert model.model.embedding.weight.requires_grad
    model.resize_embeddings(VOCABULARY)
    assert torch.allclose(model.logits(ids_BT), before, atol=1e-6)


def test_the_interface_has_to_be_filled_in() -> None:
    with pytest.raises(TypeError, match="abstract"):
        BaseAdapter(torch.nn.Linear(1, 1))  # type: ignore[abstract]
    assert math.isnan(adapter().loss(torch.ones(1, 2).long(), torch.full((1, 2), -100)).item())
