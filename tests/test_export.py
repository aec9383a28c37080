"""A checkpoint becomes a registered model: files, card, entry, and what is refused."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmlab import checkpoint, hub
from lmlab.adapters.base import BaseAdapter
from lmlab.adapters.custom import CustomTransformerAdapter
from lmlab.adapters.huggingface import adapter_for
from lmlab.catalogue import render_info
from lmlab.errors import CheckpointError, LabWarning, RegistryError
from lmlab.events import EventLog
from lmlab.export import register_checkpoint
from lmlab.files import sha256_file
from lmlab.loading import load_adapter
from lmlab.model_card import escaped, fenced
from lmlab.registry import Registry
from lmlab.tokenizers import CharTokenizer, HFTokenizer, Tokenizer
from lmlab.transformer import Transformer

BASE = [{"model_name": "base", "run_id": None, "step": None}]


def save_checkpoint(
    runs: Path, adapter: BaseAdapter, tokenizer: Tokenizer, run_id: str = "run-1", step: int = 20, **state: Any
) -> Path:
    """A checkpoint as a run leaves it, with its log."""
    folder = runs / run_id / "checkpoints" / f"step-{step:08d}"
    folder.parent.mkdir(parents=True)
    log = EventLog(runs / run_id / "log.jsonl", run_id)
    log.write("run_start", kind="fine-tune")
    for i in range(1, step + 11):
        log.write("step", i, loss=3.0 / i)
    log.write("eval", 0, val_loss=2.5)
    log.write("eval", step, val_loss=1.25)
    log.write("eval", step + 10, val_loss=1.0)
    log.close()
    values = {
        "step": step,
        "run_id": run_id,
        "config": {"max_steps": 30, "sampling_prompt": "The"},
        "model": {"model_name": "base", "model_id": "Qwen/Qwen2.5-0.5B", "source": "huggingface", **adapter.describe()},
        "fine_tuned_from": "base",
        "fine_tuning_started_at": "2026-01-02T03:04:05.000000Z",
        "lineage": BASE,
        "data": {"path": "/home/someone/secret/notes.txt", "sha256": "ab" * 32, "n_tokens": 1000, "position": 5},
        "tokenizer": tokenizer.identifier,
        "best_val_loss": 1.25,
    }
    return checkpoint.save(
        folder,
        checkpoint.collect(adapter.tensors(), {"x": torch.zeros(1)}, {"state": torch.zeros(1)}),
        architecture=adapter.architecture(),
        state={**values, **state},
        tokenizer=tokenizer,
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models in one folder each. Not to be changed."""
    root = tmp_path_factory.mktemp("published")
    for family in ("qwen2", "gpt2", "mixtral"):
        tiny_models.make(root / family, family)
    (root / "qwen2" / "LICENSE").write_text("Apache License")
    return root


@pytest.fixture
def models(tmp_path: Path, published: Path) -> Path:
    """A models folder that holds `base`, as if it came from the hub under a licence."""
    folder = tmp_path / "models"
    assert hub.import_model(str(published / "qwen2"), name="base", models_dir=folder) is not None
    registry = Registry(folder)
    changes = {"license": "apache-2.0", "source": "huggingface", "model_id": "Qwen/Qwen2.5-0.5B"}
    registry.add(registry.get("base").model_copy(update=changes), replace=True)
    return folder


def trained(folder: Path) -> BaseAdapter:
    """A model in fp32 whose weights are not those of its folder any more."""
    adapter = load_adapter(folder, torch.float32)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return adapter.eval()


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "mixtral"])
def test_a_fine_tuned_model_loads_without_lmlab_with_equal_logits(
    published: Path, models: Path, tmp_path: Path, family: str
) -> None:
    adapter = trained(published / family)
    saved = save_checkpoint(tmp_path / "runs", adapter, HFTokenizer(published / family))
    register_checkpoint(saved, "tuned", models)
    folder = Registry(models).verify("tuned")
    ids_BT = torch.arange(16)[None] * 3
    with torch.no_grad():
        plain, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        tolerance = 1e-5 if family == "mixtral" else 0.0  # its experts add up in another order
        logits_BTV = plain(input_ids=ids_BT).logits
        torch.testing.assert_close(logits_BTV, adapter.logits(ids_BT), rtol=tolerance, atol=tolerance)
    text = "the capital of France is Paris"
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == Tokenizer.load(folder).encode(text).tolist()


def test_the_entry_has_the_lineage_and_the_model_can_be_tuned_again(
    published: Path, models: Path, tmp_path: Path
) -> None:
    adapter = trained(published / "qwen2")
    saved = save_checkpoint(tmp_path / "runs", adapter, HFTokenizer(published / "qwen2"))
    before = {path.name: sha256_file(path) for path in (models / "base").iterdir()}
    entry = register_checkpoint(saved, "tuned", models)
    registry = Registry(models)
    assert registry.get("tuned") == entry
    assert (entry.source, entry.architecture_type, entry.license) == ("fine-tuned", "qwen", "apache-2.0")
    assert (entry.fine_tuned_from, entry.run_id, entry.step) == ("base", "run-1", 20)
    assert entry.fine_tuning_started_at == "2026-01-02T03:04:05.000000Z"
    assert [link.model_dump() for link in entry.lineage] == BASE
    assert entry.n_parameters == adapter.n_parameters()
    assert "LICENSE" in entry.files
    assert {path.name: sha256_file(path) for path in (models / "base").iterdir()} == before
    assert registry.validate() == []

    chain = registry.lineage("tuned")
    assert chain == [*BASE, {"model_name": "tuned", "run_id": "run-1", "step": 20}]
    again = save_checkpoint(
        tmp_path / "runs",
        trained(models / "tuned"),
        HFTokenizer(models / "tuned"),
        "run-2",
        fine_tuned_from="tuned",
        lineage=chain,
    )
    grandchild = register_checkpoint(again, "tuned-twice", models)
    assert registry.ancestors("tuned-twice") == ["base", "tuned"]
    assert registry.descendants("base") == ["tuned", "tuned-twice"]
    assert grandchild.license == "apache-2.0"


@pytest.mark.parametrize("damaged", ["config.json", "generation_config.json", "LICENSE"])
def test_a_damaged_ancestor_lends_nothing_and_the_one_before_it_does(
    published: Path, models: Path, tmp_path: Path, damaged: str
) -> None:
    adapter, tokenizer, registry = trained(published / "qwen2"), HFTokenizer(published / "qwen2"), Registry(models)
    beside = {"LICENSE", "generation_config.json"}
    saved = save_checkpoint(tmp_path / "runs", adapter, tokenizer)
    tuned = register_checkpoint(saved, "tuned", models)
    assert beside <= tuned.files.keys()
    facts = {"fine_tuned_from": "tuned", "lineage": registry.lineage("tuned")}
    again = save_checkpoint(tmp_path / "runs", adapter, tokenizer, "run-2", **facts)
    (models / "tuned" / damaged).write_text("")
    with pytest.warns(LabWarning, match=rf"model 'tuned': its file .*{damaged} is damaged"):
        twice = register_checkpoint(again, "twice", models)
    assert {name: twice.files[name] for name in beside} == {name: registry.get("base").files[name] for name in beside}
    (models / "base" / damaged).write_text("")
    with pytest.warns(LabWarning, match=rf"model 'base': its file .*{damaged} is damaged") as told:
        alone = register_checkpoint(saved, "alone", models)
    assert not beside & alone.files.keys()
    assert alone.license == "apache-2.0"
    assert told[0].filename == __file__


def test_a_model_that_took_the_ancestors_name_lends_nothing(published: Path, models: Path, tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path / "runs", trained(published / "qwen2"), HFTokenizer(published / "qwen2"))
    registry = Registry(models)
    registry.remove("base", force=True)
    other = tmp_path / "other"
    shutil.copytree(published / "qwen2", other)
    (other / "LICENSE").write_text("another licence")
    (other / "generation_config.json").write_text('{"temperature": 9.0}')
    assert hub.import_model(str(other), name="base", models_dir=models) is not None
    changes = {"license": "other", "source": "huggingface", "model_id": "somebody/else"}
    registry.add(registry.get("base").model_copy(update=changes), replace=True)
    entry = register_checkpoint(saved, "tuned", models)
    assert entry.license is None
    assert {"LICENSE", "generation_config.json"}.isdisjoint(entry.files)
    assert "base_model" not in yaml.safe_load((models / "tuned" / "README.md").read_text().split("---")[1])
    assert [link.model_name for link in entry.lineage] == ["base"]  # what it was called is kept


def test_of_local_models_of_one_name_the_later_lends_nothing(published: Path, models: Path, tmp_path: Path) -> None:
    registry = Registry(models)
    facts = {"license": "mit", "source": "local", "model_id": "My Qwen"}
    registry.add(registry.get("base").model_copy(update=facts), replace=True)
    created = registry.get("base").created_at
    adapter = trained(published / "qwen2")
    model = {"model_name": "base", "model_id": "My Qwen", "source": "local", **adapter.describe()}
    for name, began, license in (("before", "2026-01-02T03:04:05.000000Z", None), ("after", created, "mit")):
        facts = {"model": model, "fine_tuning_started_at": began}
        saved = save_checkpoint(tmp_path / "runs", adapter, HFTokenizer(published / "qwen2"), f"run-{name}", **facts)
        assert register_checkpoint(saved, name, models).license == license


def test_a_fine_tune_registered_anew_from_another_step_is_another_ancestor(
    published: Path, models: Path, tmp_path: Path
) -> None:
    adapter, tokenizer = trained(published / "qwen2"), HFTokenizer(published / "qwen2")
    first = save_checkpoint(tmp_path / "runs", adapter, tokenizer)
    register_checkpoint(first, "tuned", models)
    registry = Registry(models)
    chain = registry.lineage("tuned")
    registry.add(registry.get("tuned").model_copy(update={"license": "other", "step": 10}), replace=True)
    again = save_checkpoint(tmp_path / "runs", adapter, tokenizer, "run-2", fine_tuned_from="tuned", lineage=chain)
    assert register_checkpoint(again, "twice", models).license == "apache-2.0"  # the base's


def test_several_chat_templates_are_kept(published: Path, models: Path, tmp_path: Path) -> None:
    tokenizer = HFTokenizer(published / "qwen2")
    tokenizer.inner.chat_template = {"default": "{{ messages }}", "tool_use": "tools: {{ messages }}"}
    saved = save_checkpoint(tmp_path / "runs", trained(published / "qwen2"), tokenizer)
    assert (saved / "tokenizer" / "additional_chat_templates" / "tool_use.jinja").exists()
    register_checkpoint(saved, "tuned", models)
    folder = Registry(models).verify("tuned")
    assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.inner.chat_template
    assert Tokenizer.load(folder).identifier == tokenizer.identifier
    tokenizer.inner.chat_template = "one: {{ messages }}"
    alone = save_checkpoint(tmp_path / "runs", trained(published / "qwen2"), tokenizer, "run-2")
    register_checkpoint(alone, "alone", models)
    assert AutoTokenizer.from_pretrained(models / "alone").chat_template == "one: {{ messages }}"


def test_the_card_tells_data_config_losses_lineage_and_licence(published: Path, models: Path, tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path / "runs", trained(published / "qwen2"), HFTokenizer(published / "qwen2"))
    register_checkpoint(saved, "tuned", models)
    text = (models / "tuned" / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "apache-2.0"
    assert head["base_model"] == "Qwen/Qwen2.5-0.5B"
    assert "- text: notes.txt\n" in text
    assert "/home/someone" not in text
    assert "ab" * 32 in text
    assert "first training loss: 3.0000 nats per token at step 1\n" in text
    assert "last training loss: 0.1500 nats per token at step 20\n" in text
    assert "last validation loss: 1.2500 nats per token at step 20\n" in text
    assert "best validation loss: 1.2500" in text
    assert "1. base: its own weights\n2. tuned: step 20 of run run-1\n" in text
    assert "max_steps: 30" in text
    assert "apache-2.0, inherited" in text


def test_a_custom_transformer_keeps_the_folder_shape_and_loads_with_lmlab(tmp_path: Path) -> None:
    adapter = CustomTransformerAdapter(
        Transformer(5, n_layers=1, d_model=16, n_heads=2, d_ff=32, dropout=0.1, max_seq_len=8, seed=1)
    ).eval()
    facts = {"model_name": None, "model_id": None, "source": "scratch", **adapter.describe()}
    saved = save_checkpoint(
        tmp_path / "runs",
        adapter,
        CharTokenizer("abcde"),
        model=facts,
        fine_tuned_from=None,
        fine_tuning_started_at=None,
        lineage=[],
        data={"path": "storybook"},
    )
    entry = register_checkpoint(saved, "mine", tmp_path / "models")
    assert (entry.source, entry.architecture_type, entry.fine_tuned_from) == ("custom", "custom-transformer", None)
    folder = Registry(tmp_path / "models").verify("mine")
    assert set(os.listdir(folder)) == {"config.json", "model.safetensors", "char_tokenizer.json", "README.md"}
    ids_BT = torch.tensor([[0, 1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(load_adapter(folder).eval().logits(ids_BT), adapter.logits(ids_BT))
    assert Tokenizer.load(folder).identifier == "char-5-" + CharTokenizer("abcde").identifier[-8:]
    assert "trained from scratch" in (folder / "README.md").read_text()
    assert hub.import_model(str(folder), name="copy", models_dir=tmp_path / "models") is not None


def test_what_stands_in_a_state_cannot_break_out_of_the_card(published: Path, models: Path, tmp_path: Path) -> None:
    payload = "<script>alert(1)</script>"
    saved = save_checkpoint(
        tmp_path / "runs",
        trained(published / "qwen2"),
        HFTokenizer(published / "qwen2"),
        config={"sampling_prompt": f"```\n{payload}\n# heading", "note": payload},
        data={"path": f"x/{payload}[a](javascript:b)\n# h", "sha256": payload},
        lineage=[{"model_name": payload, "run_id": f"{payload}|", "step": 1}],
    )
    register_checkpoint(saved, "tuned", models)
    text = (models / "tuned" / "README.md").read_text()
    before_code, _, code = text.partition("## Config")
    assert payload not in before_code
    assert "](javascript" not in before_code
    fence = code.split("\n")[2]
    assert fence.startswith("```")
    assert code.count(fence.removesuffix("yaml")) == 2
    assert payload in code  # as code it can do nothing
    assert [line for line in text.splitlines() if line.startswith("# ")] == ["# tuned"]


@pytest.mark.parametrize("text", ["# h", "<b>", "[a](b)", "`x`", "a\n- b", "a|b", "*x*", "![a](b)", "\x1b[2J", "&lt;"])
def test_escaped_text_is_text(text: str) -> None:
    shown = escaped(text)
    assert "\n" not in shown
    assert "\x1b" not in shown
    assert "<" not in shown
    for sign in "[]`*#|!":
        assert shown.count(sign) == shown.count(f"\\{sign}")


def test_a_fence_is_longer_than_any_in_the_text() -> None:
    assert fenced("a\n````\nb").splitlines()[0] == "`````yaml"


def test_what_cannot_be_registered_leaves_nothing(published: Path, models: Path, tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path / "runs", trained(published / "qwen2"), HFTokenizer(published / "qwen2"))
    with pytest.raises(RegistryError, match="'base' is registered already; choose another name"):
        register_checkpoint(saved, "base", models)
    with pytest.raises(RegistryError, match="cannot name a model"):
        register_checkpoint(saved, "../base", models)
    (models / "placed").mkdir()
    with pytest.raises(RegistryError, match="exists but is not registered"):
        register_checkpoint(saved, "placed", models)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        register_checkpoint(tmp_path / "nowhere", "tuned", models)
    weights = bytearray((saved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (saved / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        register_checkpoint(saved, "tuned", models)
    (tmp_path / "file").write_text("x")
    weights[-1] ^= 1
    (saved / "model.safetensors").write_bytes(weights)
    with pytest.raises(RegistryError, match="Not a directory"):
        register_checkpoint(saved, "tuned", tmp_path / "file")
    assert set(os.listdir(models)) == {"base", "placed", "registry.json", "registry.json.lock"}
    assert Registry(models).names() == ["base"]


def test_a_model_that_lost_files_is_registered_again(published: Path, models: Path, tmp_path: Path) -> None:
    adapter, tokenizer = trained(published / "qwen2"), HFTokenizer(published / "qwen2")
    saved = save_checkpoint(tmp_path / "runs", adapter, tokenizer, "run-1")
    entry, registry = register_checkpoint(saved, "tuned", models), Registry(models)
    with pytest.raises(RegistryError, match="'tuned' is registered already; choose another name"):
        register_checkpoint(saved, "tuned", models)
    (models / "tuned" / "model.safetensors").unlink()
    again = f"register step {entry.step} of the run run-1 again"
    with pytest.raises(RegistryError, match=rf"model\.safetensors is missing; {again} or run `validate-registry`"):
        registry.path("tuned")
    assert f"MISSING: {again} or run `validate-registry`" in render_info(registry, "tuned", tmp_path / "runs")
    other = save_checkpoint(tmp_path / "others", trained(published / "gpt2"), tokenizer, "run-1")
    with pytest.raises(RegistryError, match=f"'tuned' is registered already, and has lost files: {again}, or choose"):
        register_checkpoint(other, "tuned", models)
    assert register_checkpoint(saved, "tuned", models).files == entry.files
    assert registry.validate() == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_ruined_weights_are_not_registered(published: Path, models: Path, tmp_path: Path, value: float) -> None:
    adapter, tokenizer = trained(published / "qwen2"), HFTokenizer(published / "qwen2")
    adapter.model.register_buffer("limit", torch.tensor(-math.inf))
    sound = save_checkpoint(tmp_path / "runs", adapter, tokenizer, "run-1")
    with torch.no_grad():
        adapter.model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 5] = value
    saved = save_checkpoint(tmp_path / "runs", adapter, tokenizer, "run-2")
    said = (
        r"step-00000020 are ruined: model\.layers\.1\.mlp\.up_proj\.weight has values that are not finite; use an older"
    )
    with pytest.raises(CheckpointError, match=said):
        register_checkpoint(saved, "tuned", models)
    assert Registry(models).names() == ["base"]
    assert register_checkpoint(sound, "tuned", models).model_name == "tuned"


def test_a_state_that_names_no_model_is_refused(published: Path, models: Path, tmp_path: Path) -> None:
    adapter = adapter_for("qwen2").load(published / "qwen2")
    saved = save_checkpoint(tmp_path / "runs", adapter, HFTokenizer(published / "qwen2"), model=None)
    with pytest.raises(CheckpointError, match="does not say what model it is"):
        register_checkpoint(saved, "tuned", models)
    assert json.loads(Registry(models).file.read_text())["models"].keys() == {"base"}


def test_a_disk_that_takes_no_entry_leaves_the_name_free(
    tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save_checkpoint(tmp_path / "runs", trained(published / "qwen2"), HFTokenizer(published / "qwen2"))
    models = tmp_path / "models"
    with monkeypatch.context() as patch:

        def full(path: Path, data: bytes) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("lmlab.registry.write_atomic", full)
        with pytest.raises(RegistryError, match="No space left on device"):
            register_checkpoint(saved, "late", models)
    assert not (models / "late").exists()
    assert register_checkpoint(saved, "late", models).model_name == "late"
