"""Adapters of Hugging Face models against transformers' own numbers, and against folders that mean harm."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peak
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, Qwen3_5ForConditionalGeneration
from transformers.utils import logging

from lmlab import lab
from lmlab.adapters import head, huggingface
from lmlab.adapters.attention import Turned
from lmlab.adapters.documents import in_rows, keeps_documents_apart
from lmlab.adapters.fused import GatedFeedForward, RootMeanSquareNorm
from lmlab.adapters.head import Joint, Shaping
from lmlab.adapters.huggingface import CausalLMAdapter, QwenAdapter, adapter_for, architecture_type_of, shaping_of
from lmlab.config import TrainingConfig
from lmlab.errors import CheckpointError, ConfigError, TokenizerError
from lmlab.files import sha256_file
from lmlab.generate import SamplingSettings, generate
from lmlab.hub import import_model
from lmlab.loading import fit
from lmlab.tokenizers import Tokenizer
from lmlab.transformer import BlockCausalAttention

CORE = ["qwen2", "qwen3", "llama", "gpt2"]
OTHERS = {  # families whose head, positions or cache differ from the core's
    "mistral": {},
    "gemma2": {"head_dim": 16},
    "gemma4_text": {  # whose layers differ
        "head_dim": 16,
        "global_head_dim": 32,
        "layer_types": ["sliding_attention", "full_attention"],
        "vocab_size_per_layer_input": 320,
        "hidden_size_per_layer_input": 8,
    },
    "phi3": {"pad_token_id": 0},
    "opt": {"word_embed_proj_dim": 32},
    "bloom": {},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 3.0},
    "mixtral": {},
    "qwen3_5_text": {},
    "qwen3_next": {},
    "doge": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
    "mamba": {},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},  # has an infinity in its config
}
# What has norms or feed-forwards that are replaced.
FUSED = {*CORE, *OTHERS} - {"gpt2", "gemma2", "gemma4_text", "opt", "bloom", "lfm2"}
IN_BLOCKS = {*CORE, *OTHERS} - {
    "gemma2",
    "gemma4_text",
    "opt",
    "bloom",
    "granite",
    "doge",
    "mamba",
    "mamba2",
}  # plain attention
TURNING = {"qwen2", "qwen3", "llama", "mistral"}
END = 0  # the id of end-of-text in the tiny tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of every family."""
    root = tmp_path_factory.mktemp("tiny")
    logging.set_verbosity_error()
    families = {**{key: {} for key in CORE}, **OTHERS}
    return {name: tiny_models.make(root / name, name, **changes) for name, changes in families.items()}


def load(folder: Path, dtype: torch.dtype | None = None) -> CausalLMAdapter:
    """The adapter for a folder, as `lmlab.loading` chooses it."""
    return adapter_for(json.loads((folder / "config.json").read_text())["model_type"]).load(folder, dtype)


def batch(seed: int = 1, rows: int = 2, length: int = 25) -> tuple[Tensor, Tensor]:
    """Random inputs and targets without end-of-text, and a target that is not counted."""
    ids_BT = torch.randint(1, tiny_models.VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
    targets_BT = ids_BT[:, 1:].clone()
    targets_BT[0, 3] = -100
    return ids_BT[:, :-1].contiguous(), targets_BT


@pytest.mark.parametrize("family", CORE)
def test_logits_and_loss_equal_those_of_transformers(folders: dict[str, Path], family: str) -> None:
    reference = AutoModelForCausalLM.from_pretrained(folders[family])
    adapter = load(folders[family])
    inputs_BT, targets_BT = batch()
    with torch.no_grad():
        expected_BTV = reference(input_ids=inputs_BT).logits
        assert torch.equal(adapter.logits(inputs_BT), expected_BTV)
        whole = reference(input_ids=inputs_BT, labels=inputs_BT, shift_labels=targets_BT).loss
        torch.testing.assert_close(adapter.loss(inputs_BT, targets_BT), whole, rtol=1e-6, atol=1e-6)
        counted = (targets_BT != -100).sum()
        torch.testing.assert_close(adapter.loss(inputs_BT, targets_BT, "sum"), whole * counted, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("family", [*CORE, *OTHERS])
def test_the_loss_is_the_same_in_chunks(folders: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = load(folders[family])
    inputs_BT, targets_BT = batch()

    def loss_and_gradient() -> tuple[Tensor, list[Tensor]]:
        adapter.zero_grad()
        loss = adapter.loss(inputs_BT, targets_BT)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), [parameter.grad.clone() for parameter in adapter.parameters()]  # type: ignore[union-attr]

    whole, whole_gradients = loss_and_gradient()
    assert rows_of_logits(loss_and_gradient, adapter.vocab_size) == inputs_BT.numel()
    monkeypatch.setattr("lmlab.adapters.head.CHUNK_ELEMENTS", 7 * adapter.vocab_size)
    assert rows_of_logits(loss_and_gradient, adapter.vocab_size) <= 32  # the width of the model: its head, transposed
    chunked, chunked_gradients = loss_and_gradient()
    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-6)
    for one, other in zip(chunked_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def rows_of_logits(work: Callable[[], object], vocab_size: int) -> int:
    """The most rows of as many numbers as there are tokens that anything in `work` makes, forward and backward."""
    most = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal most
            output = function(*args, **(kwargs or {}))
            made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.dim() > 0]
            most = max([most, *(leaf.numel() // vocab_size for leaf in made if leaf.size(-1) == vocab_size)])
            return output

    with Watch():
        work()
    return most


class Doubled(LlamaForCausalLM):
    """A model whose logits are neither the product of its head, nor a multiple of it, nor that capped."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        output = super().forward(*arguments, **named)
        output.logits = output.logits + output.logits**3
        return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_becomes_of_the_heads_product_is_found_out(folders: dict[str, Path], dtype: torch.dtype) -> None:
    found = {family: shaping_of(load(folders[family], dtype).model) for family in (*CORE, *OTHERS)}
    assert found.pop("gemma2") == Shaping(cap=30.0)
    assert found.pop("cohere") == Shaping(scale=0.25)
    granite = found.pop("granite")
    assert granite is not None
    assert granite.scale == pytest.approx(1 / 3, rel=1e-6 if dtype is torch.float32 else 1e-2)
    assert set(found.values()) == {Shaping()}


def test_under_autocast_the_head_is_found_out_in_fp32(folders: dict[str, Path]) -> None:
    granite = load(folders["granite"])
    with torch.autocast("cpu", torch.bfloat16):
        granite.loss(*batch())
    assert isinstance(granite.shaping, Shaping)
    assert granite.shaping.scale == pytest.approx(1 / 3, rel=1e-6)


def test_weights_in_bf16_have_the_loss_of_their_logits(folders: dict[str, Path]) -> None:
    """Also where the hidden states are fp32 all the same, as Mamba's are."""
    inputs_BT, targets_BT = batch()
    for family in (*CORE, *OTHERS):
        adapter = load(folders[family], torch.bfloat16).eval()
        logits_NV = adapter.model(input_ids=inputs_BT, use_cache=False).logits.flatten(0, 1).float()
        expected = torch.nn.functional.cross_entropy(logits_NV, targets_BT.flatten())
        torch.testing.assert_close(adapter.loss(inputs_BT, targets_BT), expected, rtol=1e-2, atol=0, msg=family)


LEAKING = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64},
    "qwen3_next": {},
}


@pytest.mark.parametrize("deviation", [0.02, 0.2])
def test_a_state_or_a_position_that_is_passed_along_is_seen_however_little_it_does(
    tmp_path: Path, deviation: float
) -> None:
    for family, changes in LEAKING.items():
        folder = tiny_models.make(tmp_path / family, family, initializer_range=deviation, **changes)
        assert not keeps_documents_apart(load(folder).model), family
    for family in ("qwen2", "llama", "gpt2"):
        folder = tiny_models.make(tmp_path / family, family, initializer_range=deviation)
        assert keeps_documents_apart(load(folder).model), family


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_table_that_is_embedding_and_head_has_the_sum_of_both_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """With a penalty on it besides, with padding, and over two passes whose backward passes come later."""
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", tiny_models.VOCABULARY * 8)
    folder = tiny_models.make(tmp_path / "model", "qwen2", pad_token_id=3)
    ours, theirs = load(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    made: list[Joint] = []

    class Kept(Joint):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(huggingface, "Joint", Kept)
    losses, expected = [], []
    for seed in (1, 2):
        inputs_BT, targets_BT = batch(seed)
        inputs_BT[0, 3] = 3
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses.append(ours.loss(inputs_BT, targets_BT, "sum"))
            logits_BTV = theirs(input_ids=inputs_BT).logits
        logits_NV, targets_N = logits_BTV.flatten(0, 1).float(), targets_BT.flatten()
        expected.append(torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="sum"))
    for total, table in ((sum(losses), ours.embedding.weight), (sum(expected), theirs.get_input_embeddings().weight)):
        (total + table.square().sum()).backward()
    assert [(joint.awaited, joint.gradient_VD) for joint in made] == [(True, None)] * 2
    tolerance = {"fp32": {"rtol": 1e-4, "atol": 1e-4}, "bf16": {"rtol": 5e-2, "atol": 5e-1}}[precision]
    torch.testing.assert_close(ours.embedding.weight.grad, theirs.get_input_embeddings().weight.grad, **tolerance)


def test_the_gradient_of_a_shared_table_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", tiny_models.VOCABULARY * 8)
    adapter = load(tiny_models.make(tmp_path / "model", "qwen2"))
    table, tables = adapter.embedding.weight, 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
            nonlocal tables
            made = operation(*arguments, **(named or {}))
            is_new = isinstance(made, Tensor) and not operation._schema.name.endswith("_")
            tables += is_new and made.shape == table.shape and not operation.is_view
            return made

    loss = adapter.loss(*batch())
    with Watch():
        loss.backward()
    assert tables == 0  # the head made it in the forward pass
    assert table.grad is not None


def test_a_head_that_is_not_understood_gives_the_right_loss_all_the_same(folders: dict[str, Path]) -> None:
    adapter = CausalLMAdapter(Doubled.from_pretrained(folders["llama"]))
    assert shaping_of(adapter.model) is None
    inputs_BT, targets_BT = batch()
    with torch.no_grad():
        logits_BTV = adapter.logits(inputs_BT)
        expected = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
        assert torch.equal(adapter.loss(inputs_BT, targets_BT), expected)


def for_training(source: Path, folder: Path) -> tuple[Any, CausalLMAdapter]:
    """transformers' model and ours in training mode, without dropout, with norms that do something."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    rewrite(folder, **{key: 0.0 for key, value in config.items() if "drop" in key and isinstance(value, float)})
    reference, adapter = AutoModelForCausalLM.from_pretrained(folder).train(), load(folder).train()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for theirs, ours in zip(reference.parameters(), adapter.parameters(), strict=True):
            theirs += 0.1 * torch.randn(theirs.shape, generator=generator)
            ours.copy_(theirs)
    return reference, adapter


def gradients(model: torch.nn.Module, loss: Callable[[], Tensor], bf16: bool = False) -> dict[str, Tensor]:
    """The gradients of a model's parameters by name."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        total = loss()
    total.backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def noting(function: Any, calls: set[Any]) -> Callable[..., Any]:
    """The function's `apply`, which adds the function to `calls`."""
    real = function.apply
    return lambda *given: calls.add(function) or real(*given)  # type: ignore[func-returns-value]


@pytest.mark.parametrize("family", [*CORE, *OTHERS])
def test_gradients_reach_every_parameter_and_equal_those_of_transformers(
    folders: dict[str, Path], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, adapter = for_training(folders[family], tmp_path / "model")
    inputs_BT, targets_BT = batch(length=101)
    calls: set[Any] = set()
    for function in (RootMeanSquareNorm, GatedFeedForward, Turned, BlockCausalAttention):
        monkeypatch.setattr(function, "apply", noting(function, calls))

    def theirs() -> Tensor:
        loss: Tensor = reference(input_ids=inputs_BT, labels=inputs_BT, shift_labels=targets_BT).loss
        return loss

    def ours() -> Tensor:
        return adapter.loss(inputs_BT, targets_BT)

    exact, found = gradients(reference, theirs), gradients(adapter.model, ours)
    assert found.keys() == exact.keys() == dict(adapter.model.named_parameters()).keys()
    for name, gradient in found.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, exact[name], rtol=1e-3, atol=1e-5)
    assert bool(calls & {RootMeanSquareNorm, GatedFeedForward}) == (family in FUSED)

    def error(rounded: dict[str, Tensor]) -> float:
        one, other = (torch.cat([each[name].flatten() for name in exact]) for each in (rounded, exact))
        return float((one - other).norm() / other.norm())

    usual, error_of_ours = (
        error(gradients(reference, theirs, bf16=True)),
        error(gradients(adapter.model, ours, bf16=True)),
    )
    assert error_of_ours <= 1.5 * usual + 0.01  # what rounding costs; it sends tokens to other experts, too
    assert (BlockCausalAttention in calls) == (family in IN_BLOCKS)
    assert (Turned in calls) == (family in TURNING)


@pytest.mark.parametrize("family", list(OTHERS))
def test_other_families_compute_what_transformers_computes(folders: dict[str, Path], family: str) -> None:
    reference = AutoModelForCausalLM.from_pretrained(folders[family]).eval()
    adapter = load(folders[family])
    inputs_BT, targets_BT = batch()
    with torch.no_grad():
        expected_BTV = reference(input_ids=inputs_BT).logits
        expected = torch.nn.functional.cross_entropy(expected_BTV.flatten(0, 1), targets_BT.flatten())
        torch.testing.assert_close(adapter.logits(inputs_BT), expected_BTV, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(adapter.loss(inputs_BT, targets_BT), expected, rtol=1e-5, atol=1e-5)
    assert adapter.architecture_type == family


@pytest.mark.parametrize("family", [*CORE, *OTHERS])
def test_the_cache_gives_the_logits_of_the_whole_text(folders: dict[str, Path], family: str) -> None:
    adapter = load(folders[family])
    ids_BT, _ = batch(length=15)
    cache = adapter.new_cache(2)
    with torch.no_grad():
        parts = [adapter.logits(part_BT, cache) for part_BT in ids_BT.split([6, 1, 3, 1, 3], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), adapter.logits(ids_BT), rtol=1e-4, atol=1e-4)
    settings = SamplingSettings(max_new_tokens=5, temperature=0.0)
    assert torch.equal(generate(adapter, ids_BT, settings), generate(adapter, ids_BT, settings, use_cache=False))


def test_no_text_sees_the_state_that_another_left_in_the_model(tmp_path: Path) -> None:
    """A Recurrent Gemma keeps it in its modules, and takes one token for the next of the text before."""
    changes = {"head_dim": 8, "lru_width": 32, "block_types": ["recurrent", "attention"]}
    adapter = load(tiny_models.make(tmp_path / "model", "recurrent_gemma", **changes))
    ids_BT, _ = batch(length=15)
    with torch.no_grad():
        generate(adapter, ids_BT, SamplingSettings(max_new_tokens=5))
        alone_BV = adapter.next_logits(ids_BT[:, :1], adapter.new_cache(2))
        torch.testing.assert_close(alone_BV, adapter.logits(ids_BT[:, :1])[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", [*CORE, *OTHERS])
def test_no_document_sees_another(folders: dict[str, Path], family: str) -> None:
    adapter = load(folders[family])
    adapter.end_of_text_id = END
    ids_BT, targets_BT = batch()
    ids_BT[0, 7] = END
    ids_BT[1, 3] = ids_BT[1, 4] = ids_BT[1, 15] = END
    changed_BT = ids_BT.clone()
    changed_BT[0, 2], changed_BT[1, 1], changed_BT[1, 9] = 99, 99, 99
    with torch.no_grad():
        before_BTV, after_BTV = adapter.logits(ids_BT), adapter.logits(changed_BT)
        moved_BT = (before_BTV - after_BTV).abs().amax(dim=-1) > 1e-4
        assert moved_BT[0, 2:8].all()
        assert moved_BT[1, 9:16].all()
        assert not moved_BT[0, 8:].any()
        assert not moved_BT[1, 4:9].any()
        assert not moved_BT[1, 16:].any()
        # each document computes what it computes alone
        torch.testing.assert_close(before_BTV[:1, 8:], adapter.logits(ids_BT[:1, 8:]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(before_BTV[1:, 16:], adapter.logits(ids_BT[1:, 16:]), rtol=1e-4, atol=1e-4)
        expected = torch.nn.functional.cross_entropy(before_BTV.flatten(0, 1).float(), targets_BT.flatten())
        torch.testing.assert_close(adapter.loss(ids_BT, targets_BT), expected, rtol=1e-4, atol=1e-4)


def test_packed_windows_and_rows_of_documents_agree(folders: dict[str, Path]) -> None:
    adapter = load(folders["qwen2"])
    adapter.end_of_text_id = END
    ids_BT, _ = batch()
    ids_BT[0, 5] = ids_BT[0, 0] = ids_BT[1, -1] = END
    segments_BT = adapter.segments(ids_BT)
    assert segments_BT is not None
    with torch.no_grad():
        rows_BTV = in_rows(adapter.model, ids_BT, segments_BT)
        torch.testing.assert_close(adapter.logits(ids_BT), rows_BTV, rtol=1e-4, atol=1e-4)


def test_a_window_of_one_document_takes_the_plain_path(folders: dict[str, Path]) -> None:
    adapter = load(folders["qwen2"])
    ids_BT, _ = batch()
    ids_BT[:, -1] = END
    with torch.no_grad():
        plain_BTV = adapter.logits(ids_BT)
        adapter.end_of_text_id = END
        assert torch.equal(adapter.logits(ids_BT), plain_BTV)


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_tied_weights_stay_tied_through_save_and_load(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    adapter = load(folders[family])
    names = [name for name in adapter.tensors() if "lm_head" in name]
    assert names == []
    adapter.save(tmp_path)
    again = load(tmp_path)
    assert again.model.get_input_embeddings().weight is again.model.get_output_embeddings().weight
    fresh = load(folders[family])
    fresh.load_tensors({name: tensor + 1 for name, tensor in adapter.tensors().items()})
    assert fresh.model.get_input_embeddings().weight is fresh.model.get_output_embeddings().weight
    ids_BT, _ = batch()
    with torch.no_grad():
        assert torch.equal(
            AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids=ids_BT).logits, adapter.logits(ids_BT)
        )


@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_save_and_load_keep_every_weight(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    adapter = load(folders[family])
    adapter.save(tmp_path)
    again = load(tmp_path).tensors()
    assert again.keys() == adapter.tensors().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in adapter.tensors().items())
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["model.safetensors"]


BART = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}


def test_the_decoder_of_a_bart_is_trained_resumed_and_registered(tmp_path: Path) -> None:
    """Its class is by default that of an encoder with a decoder, and what a config does not say is the default."""
    models = tmp_path / "models"
    import_model(str(tiny_models.make(tmp_path / "bart", "bart", **BART)), models_dir=models)
    config = TrainingConfig(model_name="bart", max_steps=1, max_seq_len=16, batch_size=2, sampling_max_length=2)
    places: dict[str, Any] = {"models_dir": models, "listeners": []}
    run = lab.run(config, "storybook:20000", runs_dir=tmp_path / "runs", **places)
    run = run.resume(max_steps=2, listeners=[])
    assert run.step == 2
    run.register("tuned", models_dir=models)
    adapter = load(models / "tuned")
    ids_BT, _ = batch()
    with torch.no_grad():
        expected_BTV = AutoModelForCausalLM.from_pretrained(models / "tuned")(input_ids=ids_BT).logits
        torch.testing.assert_close(adapter.logits(ids_BT), expected_BTV, rtol=1e-5, atol=1e-5)
    named = adapter.architecture()
    assert named.pop("is_encoder_decoder") is False  # which checkpoints of earlier versions lack
    (models / "tuned" / "config.json").write_text(json.dumps(named))
    assert load(models / "tuned").architecture() == adapter.architecture()


def test_sharded_weights_load(folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = load(folders["llama"])
    adapter.model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    again = load(tmp_path).tensors()
    assert all(torch.equal(again[name], tensor) for name, tensor in adapter.tensors().items())


def test_describe_says_what_the_log_needs(folders: dict[str, Path]) -> None:
    adapter = load(folders["qwen2"], torch.bfloat16)
    description = adapter.describe()
    assert description["architecture_type"] == "qwen"
    assert description["n_parameters"] == sum(p.numel() for p in adapter.parameters())
    assert description["size_bytes"] == 2 * description["n_parameters"]
    assert description["hidden_size"] == 32
    assert description["num_hidden_layers"] == 2
    json.dumps(description)
    json.dumps(adapter.architecture())
    assert adapter.attention_shape() == (2, 32)
    assert adapter.max_positions == 128


def test_the_longest_text_of_mpt_is_known_under_its_own_name(tmp_path: Path) -> None:
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}
    folder = tiny_models.make(tmp_path / "mpt", "mpt", **sizes, max_position_embeddings=None)
    adapter, config = load(folder), TrainingConfig(model_name="mpt", max_seq_len=65)
    with pytest.raises(ConfigError, match=r"max_seq_len=65 is longer than mpt can take; its limit is 64"):
        fit(adapter, Tokenizer.load(folder), config)
    fit(adapter, Tokenizer.load(folder), config.updated(max_seq_len=64))
    adapter.loss(*batch(length=65))


def test_qwen_is_one_line_in_the_table_of_adapters() -> None:
    assert adapter_for("qwen2") is adapter_for("qwen3") is QwenAdapter
    assert adapter_for("llama") is CausalLMAdapter
    assert [architecture_type_of(name) for name in ("qwen2", "qwen3", "llama", "gpt2")] == [
        "qwen",
        "qwen",
        "llama",
        "gpt2",
    ]


@pytest.mark.parametrize("family", [*CORE, *OTHERS])
def test_activation_checkpointing_changes_no_number_and_keeps_less(folders: dict[str, Path], family: str) -> None:
    inputs_BT, targets_BT = batch()

    def run(checkpointing: bool) -> tuple[Tensor, list[Tensor], int]:
        adapter = load(folders[family]).train()
        if checkpointing:
            adapter.enable_activation_checkpointing()
        kept = 0
        torch.manual_seed(1)  # for the dropout that some have

        def pack(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = adapter.loss(inputs_BT, targets_BT)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), [parameter.grad for parameter in adapter.parameters()], kept  # type: ignore[misc]

    plain, plain_gradients, plain_kept = run(False)
    checked, checked_gradients, checked_kept = run(True)
    assert torch.equal(plain, checked)
    assert all(torch.equal(a, b) for a, b in zip(plain_gradients, checked_gradients, strict=True))
    assert checked_kept < plain_kept / 2


def test_dropout_of_the_model_is_kept_and_off_in_evaluation(folders: dict[str, Path]) -> None:
    adapter = load(folders["gpt2"])  # its config drops a tenth
    ids_BT, _ = batch()
    with torch.no_grad():
        assert torch.equal(adapter.logits(ids_BT), adapter.logits(ids_BT))
        adapter.train()
        assert not torch.equal(adapter.logits(ids_BT), adapter.logits(ids_BT))


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_resized_embeddings_keep_the_old_rows_and_their_tie(folders: dict[str, Path], family: str) -> None:
    adapter = load(folders[family])
    ids_BT, _ = batch()
    with torch.no_grad():
        before_BTV = adapter.logits(ids_BT)
        old_VD = adapter.model.get_input_embeddings().weight.clone()
        adapter.resize_embeddings(adapter.vocab_size + 5)
        assert adapter.vocab_size == tiny_models.VOCABULARY + 5
        after_BTV = adapter.logits(ids_BT)
        torch.testing.assert_close(after_BTV[..., :-5], before_BTV)
        new_VD = adapter.model.get_input_embeddings().weight[-5:]
        torch.testing.assert_close(new_VD, old_VD.mean(dim=0).expand(5, -1))
    tied = adapter.model.get_input_embeddings().weight is adapter.model.get_output_embeddings().weight
    assert tied == (family == "qwen2")
    assert adapter.architecture()["vocab_size"] == adapter.vocab_size


def test_a_head_that_is_not_tied_as_its_config_says_keeps_its_rows(tmp_path: Path) -> None:
    """transformers loads both tables where they differ; resizing and saving must not tie them afterwards."""
    folder = tiny_models.make(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    own_VD = torch.randn_like(tensors["model.embed_tokens.weight"])
    save_file({**tensors, "lm_head.weight": own_VD}, folder / "model.safetensors", metadata={"format": "pt"})
    adapter = load(folder)
    ids_BT, _ = batch()
    with torch.no_grad():
        before_BTV = adapter.logits(ids_BT)
        adapter.resize_embeddings(adapter.vocab_size + 5)
        torch.testing.assert_close(adapter.logits(ids_BT)[..., :-5], before_BTV)
    assert adapter.architecture()["tie_word_embeddings"] is False


def test_the_inside_of_a_model_can_be_looked_at(folders: dict[str, Path]) -> None:
    for family in CORE:
        adapter = load(folders[family])
        ids_BT, _ = batch()
        with torch.no_grad():
            states = adapter.hidden_states(ids_BT)
            assert [tuple(x_BTD.shape) for x_BTD in states] == [(2, 24, 32)] * 3
            logits_BTV = adapter.logits(ids_BT)
            for probabilities_BHTT in adapter.attentions(ids_BT):
                assert probabilities_BHTT.shape == (2, 4, 24, 24)
                torch.testing.assert_close(probabilities_BHTT.sum(-1), torch.ones(2, 4, 24))
            assert torch.equal(adapter.logits(ids_BT), logits_BTV)


def test_attention_that_is_shown_never_looks_ahead(folders: dict[str, Path], tmp_path: Path) -> None:
    """Also of a family that takes no other attention once it is made."""
    ids_BT, _ = batch()
    for folder in (tiny_models.make(tmp_path / "model", "falcon"), *(folders[family] for family in CORE)):
        adapter = load(folder)
        chosen = adapter.model.config._attn_implementation
        with torch.no_grad():
            for probabilities_BHTT in adapter.attentions(ids_BT):
                assert not probabilities_BHTT.triu(1).any()
                torch.testing.assert_close(probabilities_BHTT.sum(-1), torch.ones(2, 4, 24))
        assert adapter.model.config._attn_implementation == chosen != "eager"


def test_blocks_that_put_out_a_list_are_looked_into(tmp_path: Path) -> None:
    adapter = load(tiny_models.make(tmp_path / "model", "openai-gpt"))
    ids_BT, _ = batch()
    with torch.no_grad():
        expected = adapter.model(input_ids=ids_BT, output_hidden_states=True).hidden_states
        for state_BTD, expected_BTD in zip(adapter.hidden_states(ids_BT), expected, strict=True):
            assert torch.equal(state_BTD, expected_BTD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", sorted({*CORE, *OTHERS} - {"opt"}))
def test_the_last_state_is_read_as_the_logits(folders: dict[str, Path], family: str, dtype: torch.dtype) -> None:
    adapter = load(folders[family], dtype)
    ids_BT, _ = batch()
    with torch.no_grad():
        read_BTV = adapter.unembed(adapter.hidden_states(ids_BT)[-1]).float()
        torch.testing.assert_close(read_BTV, adapter.logits(ids_BT).float(), rtol=1e-5, atol=1e-5)


def test_a_state_is_not_read_where_norm_or_head_are_not_known(folders: dict[str, Path], tmp_path: Path) -> None:
    # This has layers before its head.
    modernbert = tiny_models.make(tmp_path / "model", "modernbert-decoder", pad_token_id=0)
    for adapter in (load(folders["opt"]), load(modernbert), CausalLMAdapter(Doubled.from_pretrained(folders["llama"]))):
        with pytest.raises(ConfigError, match=f"the final norm and head of {adapter.architecture_type} are not known"):
            adapter.unembed(torch.zeros(1, 1, 32))


def test_attention_that_looks_at_few_tokens_stays_so(tmp_path: Path) -> None:
    folder = tiny_models.make(tmp_path / "model", "deepseek_v32")
    ids_BT, _ = batch()
    with torch.no_grad():
        expected_BTV = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids_BT).logits
        assert torch.equal(load(folder).logits(ids_BT), expected_BTV)


# The text part of models that see


VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}


@pytest.fixture
def composite(tmp_path: Path) -> Path:
    """A tiny Qwen 3.5 that sees, as its authors would save it."""
    shape = {**tiny_models.CONFIGS["qwen3_5_text"], "vocab_size": tiny_models.VOCABULARY}
    config = AutoConfig.for_model("qwen3_5", text_config=shape, vision_config=VISION)
    Qwen3_5ForConditionalGeneration(config).save_pretrained(tmp_path / "composite")
    return tmp_path / "composite"


def test_of_a_model_that_sees_the_text_part_is_loaded_and_saved(composite: Path, tmp_path: Path) -> None:
    assert json.loads((composite / "config.json").read_text())["model_type"] == "qwen3_5"
    adapter = load(composite)
    assert adapter.architecture_type == "qwen3_5_text"
    ids_BT, _ = batch()
    with torch.no_grad():
        expected_BTV = Qwen3_5ForConditionalGeneration.from_pretrained(composite)(input_ids=ids_BT).logits
        torch.testing.assert_close(adapter.logits(ids_BT), expected_BTV, rtol=1e-5, atol=1e-5)
        (tmp_path / "saved").mkdir()
        (tmp_path / "checkpoint").mkdir()
        adapter.save(tmp_path / "saved")
        (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(adapter.architecture()))
        save_file(adapter.tensors(), tmp_path / "checkpoint" / "model.safetensors", metadata={"format": "pt"})
        for folder in (tmp_path / "saved", tmp_path / "checkpoint"):
            assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen3_5_text"
            assert torch.equal(load(folder).logits(ids_BT), adapter.logits(ids_BT))
            assert torch.equal(
                AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids_BT).logits, adapter.logits(ids_BT)
            )


def test_a_model_that_sees_whose_text_part_is_no_model_of_its_own_is_refused(composite: Path) -> None:
    rewrite(composite, model_type="mllama", text_config={}, vision_config={})
    with pytest.raises(CheckpointError, match="describes a mllama, which is no causal language model"):
        load(composite)


def test_a_model_that_sees_whose_weights_have_other_names_is_refused(composite: Path) -> None:
    tensors = load_file(composite / "model.safetensors")
    save_file({f"other.{name}": tensor for name, tensor in tensors.items()}, composite / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lack \d+ tensors, the first is ") as caught:
        load(composite)
    assert "\n" not in str(caught.value)


MEMORY = """
import sys
from pathlib import Path
import psutil
import torch
from peak import peak_bytes
from lmlab.adapters.huggingface import adapter_for
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
before = anonymous()
adapter = adapter_for("qwen2").load(Path(sys.argv[1]))
adapter.logits(torch.arange(4)[None])
print(anonymous() - before, sum(p.numel() * p.element_size() for p in adapter.parameters()))
del adapter
large = adapter_for("qwen2").load(Path(sys.argv[2]))
ids_BT = torch.arange(1024)[None] % 500
large.loss(ids_BT[:, :64], ids_BT[:, :64]).backward()  # what the first call of any size costs
start = psutil.Process().memory_info().rss
large.loss(ids_BT, ids_BT).backward()
print(peak_bytes() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts memory by /proc")
def test_weights_are_mapped_and_the_loss_never_holds_all_logits(tmp_path: Path) -> None:
    wide = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 4}
    folders = [tiny_models.make(tmp_path / "a", **wide), tiny_models.make(tmp_path / "b", vocab_size=151_936)]
    mapped, size, grown = map(int, peak.output_of(MEMORY, *folders).split())
    assert size > 50e6
    assert mapped < 0.5 * size  # a copy would be the whole size
    all_logits = 1024 * 151_936 * 4
    assert grown < 0.5 * all_logits  # with them there would be their gradient, too


def test_training_leaves_the_mapped_file_alone(folder: Path) -> None:
    digest = sha256_file(folder / "model.safetensors")
    adapter = load(folder)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(1.0)
    assert sha256_file(folder / "model.safetensors") == digest


# Folders that are damaged or mean harm


def rewrite(folder: Path, file: str = "config.json", **changes: Any) -> None:
    """Change values of a JSON file."""
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**values, **changes}))


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny Qwen 2 that a test may spoil."""
    copy = tmp_path / "model"
    copy.mkdir()
    for path in folders["qwen2"].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "secret"}, "model_type 'secret', which this transformers does not ship"),
        ({"model_type": None}, "model_type None"),
        ({"model_type": "vit"}, "no causal language model"),
        ({"model_type": "bart"}, "no causal language model"),
        ({"hidden_size": 31}, r"the weights in .* do not fit its config\.json"),
        ({"hidden_size": "big"}, "no sound config|no working model"),
        ({"num_hidden_layers": 10**9, "layer_types": None}, "asks for more than 1024 num_hidden_layers"),
        ({"text_config": {"n_layer": 10**9}}, "asks for more than 1024 n_layer"),
        ({"num_hidden_layers": 1000, "layer_types": None}, "holds 26 tensors, its config.json describes 1000 layers"),
        ({"num_hidden_layers": 3}, r"no sound config of qwen2: .*`num_hidden_layers` \(3\) must be equal to"),
        ({"num_hidden_layers": 3, "layer_types": None}, r"lack 12 tensors, the first is model\.layers\.2\."),
        ({"vocab_size": 10**9}, "describes 32,[0-9,]+ weights, the files hold 2"),
        ({"hidden_size": 10**6}, "describes [0-9,]+ weights"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized weights"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_one_clear_line(folder: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(folder, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_nothing_that_a_config_names_is_run_or_read(folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    code = f"open({str(trap)!r}, 'w').close()\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/nowhere", "peft_type": "LORA"}')
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch trap'\ntR.")
    expected = load(folder).logits(torch.arange(9)[None])
    auto_map = {"AutoConfig": "configuration_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
    rewrite(
        folder,
        auto_map=auto_map,
        transformers_weights="pytorch_model.bin",
        attn_implementation="someone/kernel",
        _attn_implementation_internal="someone/kernel",
        fusion_config={"patch_embeddings": True},
        custom_pipelines={"text-generation": {"impl": "modeling_evil.P"}},
    )
    assert torch.equal(load(folder).logits(torch.arange(9)[None]), expected)
    assert not trap.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_tokenizer_that_brings_code_is_refused_without_a_question(
    folder: Path, tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "trap"
    (folder / "evil.py").write_text(f"open({str(trap)!r}, 'w').close()\n")
    rewrite(folder, model_type="evil")
    rewrite(folder, file, auto_map={"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", "evil.T"]})
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what somebody in a hurry would answer
    with pytest.raises(TokenizerError, match="names code of its own"):
        Tokenizer.load(folder)
    assert not trap.exists()


def header(entries: dict[str, Any], size: int | None = None, data: bytes = b"\0" * 64) -> bytes:
    """A safetensors file with a header of one's choice."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


F32 = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
LIES: dict[str, bytes] = {
    "empty": b"",
    "short": b"\1\2\3",
    "only a size": struct.pack("<Q", 8),
    "size beyond the file": header({"a": F32}, size=1 << 20),
    "enormous size": header({"a": F32}, size=(1 << 64) - 1),
    "no JSON": struct.pack("<Q", 4) + b"\xff\xfe{{" + b"\0" * 64,
    "a list": struct.pack("<Q", 2) + b"[]",
    "offsets beyond the file": header({"a": {**F32, "data_offsets": [0, 1 << 40], "shape": [1 << 38]}}),
    "negative offsets": header({"a": {**F32, "data_offsets": [-64, 0]}}),
    "offsets backwards": header({"a": {**F32, "data_offsets": [64, 0]}}),
    "overlap": header({"a": F32, "b": F32}),
    "hole": header({"a": {**F32, "shape": [2, 4], "data_offsets": [32, 64]}}),
    "shape too large": header({"a": {**F32, "shape": [1 << 40, 1 << 40]}}),
    "shape overflows": header({"a": {**F32, "shape": [1 << 62, 8]}}),
    "negative shape": header({"a": {**F32, "shape": [-4, -4]}}),
    "unknown dtype": header({"a": {**F32, "dtype": "PICKLE"}}),
    "no dtype": header({"a": {"shape": [4, 4], "data_offsets": [0, 64]}}),
    "trailing bytes": header({"a": F32}, data=b"\0" * 80),
    "a pickle": b"\x80\x04\x95\x1b\x00\x00\x00\x00\x00\x00\x00cposix\nsystem\n",
    "another model": header({"a": F32}),
}


@pytest.mark.parametrize("name", list(LIES))
def test_a_safetensors_file_that_lies_is_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").write_bytes(LIES[name])
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "mapping",
    [
        {"a": "../model.safetensors"},
        {"a": "/etc/passwd"},
        {"a": "x.bin"},
        {"a": 3},
        {},
        [],
        None,
        {"a": "a\0.safetensors"},
    ],
    ids=repr,
)
def test_an_index_names_only_safetensors_files_beside_it(folder: Path, mapping: Any) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapping}))
    with pytest.raises(CheckpointError, match="names no safetensors files beside it"):
        load(folder)


def test_missing_and_huge_files_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors"):
        load(folder)
    with open(folder / "model.safetensors.index.json", "wb") as file:
        file.truncate(1 << 40)  # a terabyte, of which the disk holds nothing
    with pytest.raises(CheckpointError, match="larger than 32 MB"):
        load(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="not JSON"):
        adapter_for("qwen2").load(folder)


def test_a_model_that_cannot_checkpoint_activations_says_so(folders: dict[str, Path]) -> None:
    adapter = load(folders["qwen2"])
    adapter.model.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match="activation_checkpointing does not work with qwen"):
        adapter.enable_activation_checkpointing()


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_attention_is_what_the_model_looks_at_in_training(folders: dict[str, Path], family: str) -> None:
    adapter = load(folders[family])
    adapter.end_of_text_id = END
    ids_BT = torch.tensor([[5, 6, 7, END, 8, 9, END, 10, 11, 12], [5, 6, 7, 8, 9, 10, 11, 12, 13, END]])
    with torch.no_grad():
        for packs in {adapter._packs(), False}:
            adapter.packs = packs
            for layer, probabilities_BHTT in enumerate(adapter.attentions(ids_BT)):
                assert not probabilities_BHTT[0, :, 4:, :4].any()
                assert not probabilities_BHTT[0, :, 7:, :7].any()
                torch.testing.assert_close(probabilities_BHTT.sum(-1), torch.ones(2, 4, 10))
                for start, stop in ((0, 4), (4, 7), (7, 10)):
                    alone = adapter.attentions(ids_BT[:1, start:stop])[layer]
                    torch.testing.assert_close(probabilities_BHTT[:1, :, start:stop, start:stop], alone)
                torch.testing.assert_close(probabilities_BHTT[1:], adapter.attentions(ids_BT[1:])[layer])
            for layer, x_BTD in enumerate(adapter.hidden_states(ids_BT)):
                alone = adapter.hidden_states(ids_BT[:1, 4:7])[layer]
                torch.testing.assert_close(x_BTD[:1, 4:7], alone, rtol=1e-4, atol=1e-5)
