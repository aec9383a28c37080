"""Importing models: through the real client from a hub on this machine, from folders and files, and what is kept out."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from hub_server import HubServer, git_blob
from safetensors.torch import load_file, save, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmlab import hub
from lmlab.adapters.custom import CustomTransformerAdapter
from lmlab.entries import Entry
from lmlab.errors import HubError, LabError, RegistryError, TokenizerError
from lmlab.files import sha256_file
from lmlab.generate import SamplingSettings
from lmlab.hub_client import Unfinished, parse_address
from lmlab.loading import load_adapter, load_model_and_tokenizer
from lmlab.origins import license_of
from lmlab.registry import Registry
from lmlab.tokenizers import CharTokenizer, Tokenizer
from lmlab.transformer import Transformer

QWEN = "Qwen/Qwen2.5-0.5B"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen 2 as its authors would publish it. Not to be changed."""
    return tiny_models.make(tmp_path_factory.mktemp("published") / "qwen")


@pytest.fixture
def server(tiny_qwen: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that holds the tiny Qwen, reached through HF_ENDPOINT."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    with HubServer() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # 10 MB would be the whole model
        running.add(QWEN, tiny_qwen)
        yield running


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The models folder of a test."""
    return tmp_path / "models"


def bring(source: str, models: Path, **arguments: Any) -> Entry:
    """Import a model that is expected to come in."""
    entry = hub.import_model(source, models_dir=models, **arguments)
    assert entry is not None
    return entry


def refused(source: str, models: Path, **arguments: Any) -> str:
    """Why a model is kept out: one line, with no entry and nothing left of it."""
    before = snapshot(models.parent)
    with pytest.raises(LabError) as caught:
        hub.import_model(source, models_dir=models, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 420
    assert snapshot(models.parent) == before
    return message


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder with its content's hash; the registry's lock does not count."""
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


def published(tiny_qwen: Path, **changes: bytes | None) -> dict[str, bytes]:
    """The files of the tiny Qwen with some replaced, added or (None) left out."""
    files: dict[str, bytes | None] = {path.name: path.read_bytes() for path in tiny_qwen.iterdir()}
    return {name: content for name, content in {**files, **changes}.items() if content is not None}


def config_with(tiny_qwen: Path, **changes: Any) -> bytes:
    """The tiny Qwen's config with other values."""
    return json.dumps({**json.loads((tiny_qwen / "config.json").read_text()), **changes}).encode()


# What comes in


def test_a_model_of_the_hub_is_imported_whole_and_loads_without_lmlab(
    server: HubServer, tiny_qwen: Path, models: Path
) -> None:
    commit = server.add(QWEN, tiny_qwen, **{"pytorch_model.bin": b"pickle", "run.py": b"evil", "LICENSE": b"Apache"})
    plans: list[hub.ImportPlan] = []
    entry = bring(QWEN, models, name="qwen-0.5b-base", confirm=lambda plan: not plans.append(plan))
    assert entry.revision == commit
    assert (entry.model_id, entry.source, entry.architecture_type) == (QWEN, "huggingface", "qwen")
    assert (entry.license, entry.local_path) == ("apache-2.0", "qwen-0.5b-base")
    reference = AutoModelForCausalLM.from_pretrained(tiny_qwen)
    assert entry.n_parameters == sum(parameter.numel() for parameter in reference.parameters())
    assert entry.size_bytes == sum(info.size for info in entry.files.values())
    registry = Registry(models)
    assert registry.get("qwen-0.5b-base") == entry
    assert registry.validate() == []
    folder = registry.verify("qwen-0.5b-base")
    assert set(os.listdir(folder)) == set(entry.files) == {"LICENSE", *(path.name for path in tiny_qwen.iterdir())}
    assert set(os.listdir(models)) == {"qwen-0.5b-base", "registry.json", "registry.json.lock"}
    assert not {"pytorch_model.bin", "run.py"} & set(server.downloads())
    ids_BT = torch.arange(12)[None]
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(loaded(input_ids=ids_BT).logits, reference(input_ids=ids_BT).logits)
    text = "the capital of France is"
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == Tokenizer.load(folder).encode(text).tolist()
    shown = str(plans[0])
    assert f"{QWEN} at {commit[:12]}: qwen, 29k parameters, 132 kB in 8 files" in shown
    assert "licence apache-2.0" in shown
    assert "its code (run.py) stays behind" in shown


def test_the_default_name_is_the_repository_in_lower_case(server: HubServer, models: Path) -> None:
    assert bring(QWEN, models).model_name == "qwen2.5-0.5b"


@pytest.mark.parametrize("path", [QWEN, f"{QWEN}/", f"{QWEN}/tree/main", f"{QWEN}/blob/main/config.json"])
def test_a_web_address_names_the_same_model(server: HubServer, models: Path, path: str) -> None:
    entry = bring(f"https://huggingface.co/{path}", models)
    assert entry.model_id == QWEN
    assert bring(f"{server.address}/{path}", models, name="again").revision == entry.revision


def test_a_branch_or_commit_is_resolved_and_stored(server: HubServer, tiny_qwen: Path, models: Path) -> None:
    main = server.repositories[QWEN].branches["main"]
    other = server.publish(QWEN, published(tiny_qwen, LICENSE=b"another"), branch="dev/1")
    assert bring(QWEN, models, name="a", revision="dev/1").revision == other
    assert bring(QWEN, models, name="b", revision=main).revision == main
    assert bring(f"https://hf.co/{QWEN}/tree/{main}", models, name="c").revision == main
    assert "leave one of them out" in refused(f"https://hf.co/{QWEN}/tree/{main}", models, name="d", revision=other)


def test_another_revision_under_the_same_name_suggests_v2(server: HubServer, tiny_qwen: Path, models: Path) -> None:
    bring(QWEN, models)
    assert "'qwen2.5-0.5b' is this very model already; use it" in refused(QWEN, models)
    server.publish(QWEN, published(tiny_qwen, LICENSE=b"new"))
    assert "registered already; choose another name: --name qwen2.5-0.5b-v2" in refused(QWEN, models)
    bring(QWEN, models, name="qwen2.5-0.5b-v2")
    assert "--name qwen2.5-0.5b-v3" in refused(QWEN, models)


def test_a_repository_that_was_renamed_is_followed(server: HubServer, models: Path) -> None:
    server.moved["old/Qwen"] = QWEN
    assert bring("old/Qwen", models).files.keys() >= {"model.safetensors", "tokenizer.json"}


def test_sharded_weights_come_in_by_their_index(
    server: HubServer, tiny_qwen: Path, models: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen)
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    shards = {path.name: path.read_bytes() for path in (tmp_path / "shards").glob("*.safetensors*")}
    assert len(shards) > 2
    unused = {"other.safetensors": b"unused"}
    server.publish("a/sharded", {**published(tiny_qwen, **{"model.safetensors": None}), **shards, **unused})
    entry = bring("a/sharded", models)
    assert set(shards) < set(entry.files)
    assert "other.safetensors" not in server.downloads()
    assert AutoModelForCausalLM.from_pretrained(models / "sharded").num_parameters() == entry.n_parameters


def test_a_custom_transformer_that_was_published_comes_back(server: HubServer, models: Path, tmp_path: Path) -> None:
    model = Transformer(5, n_layers=1, d_model=16, n_heads=2, d_ff=32, dropout=0.1, max_seq_len=8, seed=1)
    folder = tmp_path / "mine"
    folder.mkdir()
    CustomTransformerAdapter(model).save(folder)
    CharTokenizer("abcde").save(folder)
    server.add("me/mine", folder)
    plans: list[hub.ImportPlan] = []
    entry = bring("me/mine", models, confirm=lambda plan: not plans.append(plan))
    assert plans[0].architecture_type == entry.architecture_type == "custom-transformer"
    assert set(entry.files) == {"config.json", "model.safetensors", "char_tokenizer.json"}
    ids_BT = torch.tensor([[0, 1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(load_adapter(models / "mine").eval().logits(ids_BT), model.eval()(ids_BT))


def test_a_local_folder_is_copied_and_its_links_become_files(tiny_qwen: Path, models: Path, tmp_path: Path) -> None:
    folder, blobs = (
        tmp_path / "cache" / "snapshots" / "My Qwen",
        tmp_path / "cache" / "blobs",
    )  # as the hub's client does
    folder.mkdir(parents=True)
    blobs.mkdir()
    for path in tiny_qwen.iterdir():
        (blobs / f"blob-{path.name}").write_bytes(path.read_bytes())
        (folder / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "checkpoint-1").mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n# Mine\n")
    plans: list[hub.ImportPlan] = []
    entry = bring(str(folder), models, confirm=lambda plan: not plans.append(plan))
    assert "My Qwen: qwen, 29k parameters, 132 kB in " in str(plans[0])
    assert "licence mit" in str(plans[0])
    assert (plans[0].n_parameters, plans[0].license) == (entry.n_parameters, entry.license)
    assert (entry.model_name, entry.source, entry.revision, entry.model_id) == ("my-qwen", "local", None, "My Qwen")
    assert set(os.listdir(models / "my-qwen")) == {path.name for path in tiny_qwen.iterdir()}
    assert not any(path.is_symlink() for path in (models / "my-qwen").iterdir())
    assert "choose another name: --name my-qwen-v2" in refused(str(folder), models)


def test_the_builtin_model_needs_no_network_and_is_always_the_same(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    random_state = torch.get_rng_state()
    plans: list[hub.ImportPlan] = []
    one = bring("builtin:tiny-qwen", models, confirm=lambda plan: not plans.append(plan))
    assert plans[0].n_parameters == one.n_parameters
    assert plans[0].size_bytes == pytest.approx(one.size_bytes, rel=0.05)
    two = bring("builtin:tiny-qwen", models, name="two")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert one.files == two.files
    assert (one.source, one.architecture_type, one.model_id) == ("builtin", "qwen", "builtin:tiny-qwen")
    assert 1e6 < one.n_parameters < 2e6
    tokenizer = Tokenizer.load(models / "tiny-qwen")
    assert 1000 <= tokenizer.vocab_size <= 2000
    assert tokenizer.end_of_text_id == 0
    assert tokenizer.decode(tokenizer.encode("The dog found it — naïve?\n")) == "The dog found it — naïve?\n"
    assert AutoModelForCausalLM.from_pretrained(models / "two").num_parameters() == one.n_parameters
    assert "the built-in model is builtin:tiny-qwen" in refused("builtin:huge-qwen", models)


def write_gguf(
    path: Path, folder: Path, scaling: str | None = None, factors: Any = None, split: str | None = None
) -> None:
    """The tiny Llama in `folder` as a GGUF file, with the names, layout and tokenizer of llama.cpp.

    scaling, factors: how its positions are scaled, by name and by numbers. split: how its tokenizer splits text, by name.
    """
    import gguf

    config = json.loads((folder / "config.json").read_text())
    tensors = {name: tensor.numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    n_heads, n_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_license("cc0-1.0")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(n_kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    if split is not None:
        writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == tiny_models.END_OF_TEXT else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, array in tensors.items():
        heads = {"q_proj": n_heads, "k_proj": n_kv_heads}.get(name.split(".")[-2])
        if heads is not None:  # llama.cpp interleaves the halves of each head
            array = array.reshape(heads, 2, array.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), array)
    if scaling is not None:
        writer.add_string("llama.rope.scaling.type", scaling)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_stored_as_safetensors_with_equal_logits(models: Path, tmp_path: Path) -> None:
    folder = tiny_models.make(tmp_path / "llama", "llama")
    write_gguf(tmp_path / "Tiny-F32.gguf", folder)
    plans: list[hub.ImportPlan] = []
    entry = bring(str(tmp_path / "Tiny-F32.gguf"), models, confirm=lambda plan: not plans.append(plan))
    assert (plans[0].n_parameters, plans[0].license) == (entry.n_parameters, "cc0-1.0")
    assert entry.license == "cc0-1.0"
    assert (entry.model_name, entry.source, entry.architecture_type) == ("tiny-f32", "gguf", "llama")
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= entry.files.keys()
    assert len({path.stat().st_mode for path in (models / "tiny-f32").iterdir()}) == 1  # who may read one may read all
    ids_BT = torch.arange(12)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids_BT).logits
        got = AutoModelForCausalLM.from_pretrained(models / "tiny-f32")(input_ids=ids_BT).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    text = "the capital of France"
    assert Tokenizer.load(models / "tiny-f32").encode(text).tolist() == Tokenizer.load(folder).encode(text).tolist()
    (tmp_path / "broken.gguf").write_bytes((tmp_path / "Tiny-F32.gguf").read_bytes()[:3000])
    assert "broken.gguf cannot be read as a GGUF model" in refused(str(tmp_path / "broken.gguf"), models)
    assert "no file" in refused(str(tmp_path / "absent.gguf"), models)


def test_a_linked_gguf_file_keeps_the_name_that_it_is_given_by(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the cache of Hugging Face what a link leads to is named by its hash."""
    write_gguf(tmp_path / "0123abcd", tiny_models.make(tmp_path / "llama", "llama"))
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "Tiny-F32.gguf").symlink_to("../0123abcd")
    monkeypatch.chdir(tmp_path / "snapshot")
    entry = bring("Tiny-F32.gguf", models)
    assert (entry.model_name, entry.model_id) == ("tiny-f32", "Tiny-F32.gguf")


def test_a_gguf_file_brings_its_own_tokenizer_whatever_lies_beside_it(models: Path, tmp_path: Path) -> None:
    folder = tiny_models.make(tmp_path / "llama", "llama")
    (tmp_path / "downloads").mkdir()
    write_gguf(tmp_path / "downloads" / "tiny.gguf", folder)
    tiny_models.write_tokenizer(tmp_path / "downloads", "PreTrainedTokenizerFast", 300, "other words of another model")
    bring(str(tmp_path / "downloads" / "tiny.gguf"), models)
    text = "the capital of France"
    assert Tokenizer.load(models / "tiny").encode(text).tolist() == Tokenizer.load(folder).encode(text).tolist()


@pytest.mark.parametrize("split", ["gpt-2", "smollm"])
def test_the_tokenizer_of_a_gguf_file_splits_text_as_the_file_says(models: Path, tmp_path: Path, split: str) -> None:
    folder = tiny_models.make(tmp_path / "llama", "llama")
    tiny_models.write_tokenizer(folder, "PreTrainedTokenizerFast", training_text="2024 2025 the cat " * 100)
    plain = Tokenizer.load(folder).encode("in 2024").tolist()
    definition = json.loads((folder / "tokenizer.json").read_text())
    digits = {"type": "Digits", "individual_digits": True}
    definition["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, definition["pre_tokenizer"]]}
    if split == "smollm":
        (folder / "tokenizer.json").write_text(json.dumps(definition))
    write_gguf(tmp_path / "tiny.gguf", folder, split=split)
    plans: list[hub.ImportPlan] = []
    bring(str(tmp_path / "tiny.gguf"), models, confirm=lambda plan: not plans.append(plan))
    assert "splits text" not in str(plans[0])
    expected = Tokenizer.load(folder).encode("in 2024").tolist()
    assert (expected == plain) == (split == "gpt-2")
    tokenizer = Tokenizer.load(models / "tiny")
    assert tokenizer.encode("in 2024").tolist() == expected
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode("in 2024").tolist() == expected


@pytest.mark.parametrize(("split", "told"), [("deepseek-llm", "(deepseek-llm) is not known"), (None, "is not stated")])
def test_of_a_gguf_file_with_a_split_of_text_that_is_not_known_the_plan_says_so(
    models: Path, tmp_path: Path, split: str | None, told: str
) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_models.make(tmp_path / "llama", "llama"), split=split)
    plans: list[hub.ImportPlan] = []
    bring(str(tmp_path / "tiny.gguf"), models, confirm=lambda plan: not plans.append(plan))
    assert f"how its tokenizer splits text {told}" in str(plans[0])


def test_a_gguf_file_with_positions_that_are_not_read_is_refused(models: Path, tmp_path: Path) -> None:
    folder = tiny_models.make(tmp_path / "llama", "llama")
    one, eight = (np.array([1.0, 1.0, 1.0, last], dtype=np.float32) for last in (1.0, 8.0))
    for name, given in (("yarn", {"scaling": "yarn"}), ("factors", {"factors": eight})):
        write_gguf(tmp_path / f"{name}.gguf", folder, **given)
        assert "scales its positions" in refused(str(tmp_path / f"{name}.gguf"), models)
    write_gguf(tmp_path / "plain.gguf", folder, scaling="none", factors=one)
    bring(str(tmp_path / "plain.gguf"), models)


def test_a_gguf_file_with_weights_that_are_not_taken_over_is_refused(models: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "biased.gguf", tiny_models.make(tmp_path / "llama", "llama", attention_bias=True))
    refusal = refused(str(tmp_path / "biased.gguf"), models)
    assert "cannot be taken over whole: transformers reads no llama with blk.0.attn_k.bias, " in refusal
    assert "and 5 more; import the original model" in refusal
    write_gguf(tmp_path / "tied.gguf", tiny_models.make(tmp_path / "tied", "llama", tie_word_embeddings=True))
    bring(str(tmp_path / "tied.gguf"), models)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_folder_and_a_file_have_no_revisions(
    server: HubServer, tiny_qwen: Path, models: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    source = str(tiny_qwen if kind == "folder" else tmp_path / "tiny.gguf")
    said = refused(source, models, revision="main")
    assert said == f"{source} is a {kind}, which has no revisions; leave --revision out"
    assert server.requests == []


def test_a_file_of_a_model_is_no_source(
    server: HubServer, tiny_qwen: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path may look like the id of a repository, which the hub would be asked for."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_qwen, "tiny")
    for source in ("tiny/model.safetensors", "./tiny/config.json"):
        assert (
            refused(source, models)
            == f"{source} is a file; give the folder that holds the whole model, or a .gguf file"
        )
    assert server.requests == []


def test_nothing_happens_without_a_yes(server: HubServer, models: Path) -> None:
    assert hub.import_model(QWEN, models_dir=models, confirm=lambda plan: False) is None
    assert set(os.listdir(models)) == set()
    assert "model.safetensors" not in server.downloads()


# What is interrupted


def test_a_connection_cut_half_way_is_taken_up_where_it_broke(server: HubServer, models: Path) -> None:
    server.cut["model.safetensors"] = 70_000
    bring(QWEN, models)
    asked = [r.range for r in server.requests if "/model.safetensors?" in r.path and r.method == "GET"]
    assert asked == [None, "bytes=70000-"]


def test_an_import_that_broke_off_goes_on_when_run_again(server: HubServer, models: Path) -> None:
    server.cut["model.safetensors"] = 70_000
    server.store_broken = None
    original, server._store = server._store, lambda request: fail_after_first(server, original, request)  # type: ignore[method-assign]
    with pytest.raises(Unfinished, match=r"answers 503 for model\.safetensors .*it goes on"):
        hub.import_model(QWEN, models_dir=models)
    assert set(os.listdir(models)) == {".partial-qwen2.5-0.5b"}
    assert Registry(models).names() == []
    server._store = original  # type: ignore[method-assign]
    assert hub.import_model(QWEN, models_dir=models, confirm=lambda plan: False) is None  # which costs nothing
    server.requests.clear()
    plans: list[hub.ImportPlan] = []
    bring(QWEN, models, confirm=lambda plan: not plans.append(plan))
    assert server.downloads() == ["model.safetensors?signature=secret"]
    assert [r.range for r in server.requests if r.method == "GET"][-1] == "bytes=70000-"
    assert "(48.5 kB to fetch)" in str(plans[0])
    assert Registry(models).validate() == []


def test_what_came_of_an_earlier_commit_is_not_fetched_again(server: HubServer, tiny_qwen: Path, models: Path) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.import_model(QWEN, models_dir=models, tell=interrupt)
    (models / ".partial-qwen2.5-0.5b" / "LICENSE").write_text("of a file that is gone")
    commit = server.add(QWEN, tiny_qwen, NOTICE=b"new")
    server.requests.clear()
    entry = bring(QWEN, models)
    assert entry.revision == commit
    assert "NOTICE" in entry.files
    assert "LICENSE" not in entry.files
    assert "model.safetensors" not in " ".join(server.downloads())


def test_a_bad_shard_does_not_throw_the_others_away(server: HubServer, tiny_qwen: Path, models: Path) -> None:
    tensors = load_file(tiny_qwen / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    files = {name: save({key: tensors[key] for key in keys}, {"format": "pt"}) for name, keys in shards.items()}
    index = {"metadata": {}, "weight_map": {key: name for name, keys in shards.items() for key in keys}}
    changes = {"model.safetensors": None, "model.safetensors.index.json": json.dumps(index).encode(), **files}
    server.publish("a/b", published(tiny_qwen, **changes))
    last = max(files, key=lambda name: len(files[name]))
    server.repositories["a/b"].lies[last] = {"lfs": {"sha256": "0" * 64, "size": len(files[last]), "pointerSize": 1}}
    with pytest.raises(HubError, match="does not have the hash that the hub states, so it was thrown away"):
        hub.import_model("a/b", models_dir=models)
    server.repositories["a/b"].lies.clear()
    server.requests.clear()
    assert set(files) <= bring("a/b", models).files.keys()
    assert [name for name in files if name in " ".join(server.downloads())] == [last]


def test_a_branch_with_a_slash_is_read_from_an_address() -> None:
    address = "https://huggingface.co/org/m/tree/refs%2Fpr%2F3"
    assert parse_address(address) == ("org/m", "refs/pr/3")


def test_a_folder_is_looked_up_as_every_path(tiny_qwen: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMLAB_HOME", str(tiny_qwen.parent))
    assert bring(tiny_qwen.name, models).source == "local"


def fail_after_first(server: HubServer, original: Any, request: Any) -> None:
    """Serve a request for the weights without a range, and refuse those that take it up."""
    if "Range" in request.headers:
        server.store_broken = 503
    original(request)
    server.store_broken = None


IMPORT = """
import sys
from huggingface_hub import constants
from lmlab import hub
from lmlab.adapters.custom import CustomTransformerAdapter
constants.DOWNLOAD_CHUNK_SIZE = 1000
from lmlab.errors import LabError
try:
    entry = hub.import_model(sys.argv[1], models_dir=sys.argv[2], tell=lambda line: print(line, flush=True))
except LabError as error:
    sys.exit(f"error: {error}")
print(entry.model_name, flush=True)
"""


def start_import(models: Path, source: str = QWEN, **environment: str) -> subprocess.Popen[str]:
    """An import in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", IMPORT, source, str(models)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def test_a_killed_import_leaves_no_entry_and_goes_on_when_run_again(server: HubServer, models: Path) -> None:
    server.stall["model.safetensors"] = 70_000
    process = start_import(models)
    assert server.stalled.wait(60)
    part = models / ".partial-qwen2.5-0.5b" / ".model.safetensors.part"
    deadline = time.monotonic() + 30
    while part.stat().st_size < 60_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert Registry(models).names() == []
    assert not (models / "qwen2.5-0.5b").exists()
    (problem,) = Registry(models).validate()
    assert problem.name == ".partial-qwen2.5-0.5b"
    server.stall.clear()
    server.released.set()
    server.requests.clear()
    bring(QWEN, models)
    (request,) = [r for r in server.requests if r.server == "store"]
    assert request.range is not None
    assert 60_000 <= int(request.range.removeprefix("bytes=").rstrip("-")) <= 70_000
    assert Registry(models).validate() == []


@pytest.mark.parametrize("at", ["the question", "the check"])
def test_a_folder_of_the_same_name_is_not_mixed_with_one_whose_import_was_interrupted(
    tiny_qwen: Path, models: Path, tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "a" / "model", tmp_path / "b" / "model"
    shutil.copytree(tiny_qwen, one)
    (one / "LICENSE").write_text("of the first alone")
    shutil.copytree(tiny_qwen, other)

    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.import_model(str(one), models_dir=models, **{"confirm" if at == "the question" else "tell": interrupt})
    assert (models / ".partial-model").is_dir()
    assert "LICENSE" not in bring(str(other), models).files


def test_a_folder_that_lost_a_file_after_an_interrupted_import_comes_in_as_it_is(
    tiny_qwen: Path, models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_qwen, folder)
    (folder / "LICENSE").write_text("withdrawn")

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.import_model(str(folder), models_dir=models, tell=interrupt)
    assert (models / ".partial-model" / "LICENSE").exists()
    (folder / "LICENSE").unlink()
    assert "LICENSE" not in bring(str(folder), models).files


@pytest.mark.parametrize("again", ["one", "other"])
def test_a_gguf_file_is_converted_anew_after_an_interrupted_import(models: Path, tmp_path: Path, again: str) -> None:
    files = {name: tmp_path / name / "tiny.gguf" for name in ("one", "other")}
    for path in files.values():
        path.parent.mkdir()
        write_gguf(path, tiny_models.make(tmp_path / f"{path.parent.name}-llama", "llama"))

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.import_model(str(files["one"]), models_dir=models, tell=interrupt)
    (models / ".partial-tiny" / "NOTICE").write_text("of what was interrupted")
    assert "NOTICE" not in bring(str(files[again]), models).files


def test_another_folder_of_the_same_name_is_not_taken_for_what_was_waited_for(
    tiny_qwen: Path, models: Path, tmp_path: Path
) -> None:
    one, other = tmp_path / "a" / "model", tmp_path / "b" / "model"
    for folder in (one, other):
        shutil.copytree(tiny_qwen, folder)
    registry, waits = Registry(models), threading.Event()
    refusals: list[str] = []

    def second() -> None:
        try:
            hub.import_model(str(other), models_dir=models, tell=lambda line: waits.set())
        except HubError as error:
            refusals.append(str(error))

    with registry.importing("model", timeout=0):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(60)
        entry = bring(str(one), models, name="first").model_copy(update={"model_name": "model"})
        registry.add(entry)
    thread.join(60)
    assert ["choose another name: --name model-v2" in refusal for refusal in refusals] == [True]


def test_two_imports_of_one_model_download_it_once(server: HubServer, models: Path) -> None:
    server.stall["model.safetensors"] = 70_000
    first = start_import(models)
    assert server.stalled.wait(60)
    second = start_import(models)
    assert second.stdout is not None
    assert second.stdout.readline() == "another process is importing 'qwen2.5-0.5b'; waiting for it\n"
    server.stall.clear()
    server.released.set()
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], outputs
    assert outputs[0][0] == "checking the files and the model's first forward pass\nqwen2.5-0.5b\n"
    assert outputs[1][0] == "qwen2.5-0.5b\n"
    assert next(r.range for r in server.requests if r.server == "store" and "model." in r.path) is None
    assert sum("/tokenizer.json?" in r.path and r.server == "store" for r in server.requests) == 1
    assert Registry(models).validate() == []


def test_a_kill_between_the_move_and_the_entry_is_mended_by_the_same_import(server: HubServer, models: Path) -> None:
    entry = bring(QWEN, models)
    registry = Registry(models)
    wanted = {"source": "huggingface", "model_id": QWEN, "revision": entry.revision}
    (models / "qwen2.5-0.5b" / hub.MARKER).write_text(json.dumps(wanted))
    registry.file.write_text('{"version": 1, "models": {}}')
    server.requests.clear()
    assert bring(QWEN, models).files == entry.files
    assert server.downloads() == []
    assert registry.validate() == []


@pytest.mark.parametrize("harm", ["folder", "file", "bit"])
def test_a_model_that_lost_files_is_mended_by_the_same_import(server: HubServer, models: Path, harm: str) -> None:
    entry, weights = bring(QWEN, models), models / "qwen2.5-0.5b" / "model.safetensors"
    registry = Registry(models)
    if harm == "folder":
        shutil.rmtree(weights.parent)
    elif harm == "file":
        weights.unlink()
    else:
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    with pytest.raises(RegistryError, match="import it again"):
        registry.verify("qwen2.5-0.5b")
    assert f"registered already from {QWEN}; choose" in refused("builtin:tiny-qwen", models, name="qwen2.5-0.5b")
    assert bring(QWEN, models).files == entry.files
    assert registry.verify("qwen2.5-0.5b") == weights.parent
    assert registry.validate() == []
    rest = {"folder": set(), "file": set(entry.files) - {"model.safetensors"}, "bit": set(entry.files)}[harm]
    assert {path.name for path in models.glob(".unregistered/qwen2.5-0.5b/*")} == rest
    assert "'qwen2.5-0.5b' is this very model already; use it" in refused(QWEN, models)


def test_a_model_that_lost_files_is_mended_with_its_own_revision(
    server: HubServer, tiny_qwen: Path, models: Path
) -> None:
    entry = bring(QWEN, models)
    server.publish(QWEN, published(tiny_qwen, LICENSE=b"new"))
    assert "registered already; choose another name: --name qwen2.5-0.5b-v2" in refused(QWEN, models)
    (models / "qwen2.5-0.5b" / "config.json").unlink()
    assert f"has lost files; --revision {entry.revision} puts them back" in refused(QWEN, models)
    assert bring(QWEN, models, revision=entry.revision).files == entry.files
    assert Registry(models).validate() == []


def test_a_folder_that_no_entry_names_is_not_overwritten(server: HubServer, models: Path) -> None:
    (models / "qwen2.5-0.5b").mkdir(parents=True)
    (models / "qwen2.5-0.5b" / "mine.txt").write_text("keep")
    assert "exists but is not registered; move it away, then try again" in refused(QWEN, models)
    assert "model.safetensors" not in " ".join(server.downloads())  # seen before hours of it
    assert (models / "qwen2.5-0.5b" / "mine.txt").read_text() == "keep"


def test_a_full_disk_is_one_line_and_the_import_goes_on_afterwards(server: HubServer, models: Path) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n" + IMPORT
    command = [sys.executable, "-c", code, QWEN, str(models)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert "error: the disk is full while fetching model.safetensors" in done.stderr
    assert "Traceback" not in done.stderr
    assert Registry(models).names() == []
    server.requests.clear()
    bring(QWEN, models)
    assert "config.json" not in server.downloads()


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process can grow beyond a number of bytes in the block, as where a quota is used up."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


def test_a_disk_that_is_full_when_the_tokenizer_is_tried_out_costs_no_download(
    server: HubServer, tiny_qwen: Path, models: Path
) -> None:
    tokenizer = json.loads((tiny_qwen / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"w{i}": i for i in range(320, 6000)}  # as it is saved, larger than the weights
    dense = json.dumps(tokenizer, separators=(",", ":"), ensure_ascii=False).encode()
    files = published(tiny_qwen, **{"tokenizer.json": dense, "vocab.json": None, "merges.txt": None})
    server.publish("a/b", files)
    limit = max(map(len, files.values()))
    with largest_file(limit), pytest.raises(Unfinished, match=r"is full; free some space and run .* it goes on"):
        hub.import_model("a/b", models_dir=models)
    server.requests.clear()
    bring("a/b", models)
    assert server.downloads() == []


@pytest.mark.parametrize("size", [40_000, 3_000_000])  # less than the tokenizer, less than the weights
def test_a_disk_that_is_full_while_the_builtin_model_is_made_is_one_line(models: Path, size: int) -> None:
    with largest_file(size):
        said = refused("builtin:tiny-qwen", models)
    assert said == f"the disk of {models} is full; free some space and run the same import again"


def test_a_disk_that_is_full_while_a_folder_is_copied_is_one_line(models: Path, tiny_qwen: Path) -> None:
    with largest_file(60_000):  # less than the weights
        said = refused(str(tiny_qwen), models)
    assert said == f"the disk of {models} is full; free some space and run the same import again"


@pytest.mark.parametrize("size", [5_000, 60_000])
def test_a_disk_that_is_full_while_a_gguf_file_is_converted_is_one_line(
    models: Path, tmp_path: Path, size: int
) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_models.make(tmp_path / "llama", "llama"))
    with largest_file(size):
        said = refused(str(tmp_path / "tiny.gguf"), models)
    assert said == f"the disk of {models} is full; free some space and run the same import again"


@pytest.mark.parametrize("refusal", [OSError(errno.EDQUOT, "Disk quota exceeded"), TimeoutError()])
def test_what_came_stays_where_the_registry_cannot_be_written(
    refusal: OSError, server: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise refusal

    with monkeypatch.context() as patch:
        patch.setattr(
            "lmlab.registry.lock" if isinstance(refusal, TimeoutError) else "lmlab.registry.sync_tree", refuse
        )
        patch.setattr(Registry, "importing", lambda *_, **__: contextlib.nullcontext())
        with pytest.raises(RegistryError):
            hub.import_model(QWEN, models_dir=models)
    server.requests.clear()
    bring(QWEN, models)
    assert server.downloads() == []


@pytest.mark.parametrize("hindrance", ["nobody to ask", "no space"])
def test_what_came_before_a_refusal_stays_for_the_next_attempt(
    hindrance: str, server: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n" + IMPORT
    command = [sys.executable, "-c", code, QWEN, str(models)]
    subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    (partial,) = models.glob(".partial-*")
    came = {path.name for path in partial.iterdir()}
    assert "config.json" in came
    if hindrance == "nobody to ask":
        asked = [sys.executable, str(ROOT / "main.py"), "import-model", QWEN, "--models-dir", str(models)]
        done = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert "There is nobody to ask; add --yes" in done.stderr
    else:
        usage = shutil.disk_usage(models)
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
        assert "free; free some space" in refused(QWEN, models)
    assert {path.name for path in partial.iterdir()} == came


def test_a_model_that_does_not_fit_the_disk_is_refused_before_it_starts(server: HubServer, models: Path) -> None:
    digest, size = "0" * 64, 900 * 10**12
    server.repositories[QWEN].lies["model.safetensors"] = {
        "size": size,
        "lfs": {"sha256": digest, "size": size, "pointerSize": 1},
    }
    assert "the model qwen2.5-0.5b needs 900 TB, the disk has " in refused(QWEN, models)
    assert "model.safetensors" not in server.downloads()


# What is refused


def test_each_failure_of_the_hub_is_one_line_with_what_to_do(
    server: HubServer, tiny_qwen: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = server.repositories[QWEN]
    assert "no model no/such at" in refused("no/such", models)
    assert "no revision 'v9'; leave --revision out" in refused(QWEN, models, revision="v9")
    repository.private = True
    assert "or it is private; check its spelling, or set HF_TOKEN" in refused(QWEN, models)
    repository.private, repository.gated = False, True
    gated = refused(QWEN, models)
    assert f"is gated: accept its terms at {server.address}/{QWEN}, set HF_TOKEN" in gated
    monkeypatch.delenv("HF_HUB_DISABLE_IMPLICIT_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_canary_of_a_stranger")
    assert "is gated" in refused(QWEN, models)
    assert "no model no/such" in refused("no/such", models)
    monkeypatch.setenv("HF_TOKEN", repository.token)
    assert bring(QWEN, models).model_id == QWEN
    server.broken = 503
    assert "answers 503" in refused("a/b", models)
    server.broken = 403
    assert "refuses a/b (403); check that HF_TOKEN is valid" in refused("a/b", models)
    server.broken = 200
    assert "cannot be read; is it a model hub? check HF_ENDPOINT" in refused("a/b", models)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE is set" in refused("a/b", models)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    offline = refused("a/b", models)
    assert "cannot be fetched from http://127.0.0.1:9" in offline
    assert "check the network, then run the same import again" in offline


def test_the_token_goes_to_the_hub_alone_and_stands_nowhere(
    server: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_IMPLICIT_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_canary_7531")
    server.cut["model.safetensors"] = 1000
    bring(QWEN, models)
    refused("no/such", models)
    assert {r.authorization for r in server.requests if r.server == "hub"} == {"Bearer hf_canary_7531"}
    assert {r.authorization for r in server.requests if r.server == "store"} == {None}
    written = b"".join(path.read_bytes() for path in models.rglob("*") if path.is_file())
    shown = capfd.readouterr()
    assert b"canary" not in written
    assert "canary" not in shown.out + shown.err


SOURCES = [
    "",
    ".",
    "..",
    "/",
    "a/b/c",
    "../..",
    "a b",
    "a\0b",
    "-x/y",
    "x/..",
    "x/--y",
    "https://evil.example/a/b",
    "file:///etc",
]


@pytest.mark.parametrize("source", SOURCES, ids=repr)
def test_what_names_no_source_is_refused(server: HubServer, models: Path, source: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    os.chdir(tmp_path / "home")
    message = refused(source, models)
    assert server.requests == [] or "no model" in message


@pytest.mark.parametrize("name", ["..", "a/b", "A", "", "a\0", "registry.json", "x" * 65], ids=repr)
def test_a_bad_name_is_refused_before_anything_is_fetched(server: HubServer, models: Path, name: str) -> None:
    assert "cannot name a model" in refused(QWEN, models, name=name)
    assert server.requests == []


def test_a_damaged_registry_is_left_alone(server: HubServer, models: Path) -> None:
    models.mkdir()
    (models / "registry.json").write_text("{")
    with pytest.raises(RegistryError, match="is damaged"):
        hub.import_model(QWEN, models_dir=models)
    assert (models / "registry.json").read_text() == "{"
    assert not (models / ".partial-qwen2.5-0.5b").exists()


def nan_weights(tiny_qwen: Path) -> bytes:
    """The tiny Qwen's weights with one that is no number."""
    path = tiny_qwen.parent / "nan.safetensors"
    tensors = load_file(tiny_qwen / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], torch.nan)
    save_file(tensors, path, metadata={"format": "pt"})
    return path.read_bytes()


def unfit_models(tiny_qwen: Path) -> dict[str, tuple[dict[str, bytes], str]]:
    """Repositories that cannot be used, and what is said of them."""
    return {
        "unknown": ({"config.json": config_with(tiny_qwen, model_type="nova")}, "model_type 'nova', which this transf"),
        "vision": ({"config.json": config_with(tiny_qwen, model_type="vit")}, "no causal language model"),
        "quantized": ({"config.json": config_with(tiny_qwen, quantization_config={"bits": 4})}, "quantized weights"),
        "config": ({"config.json": b"{"}, "config.json is damaged: it is not JSON"),
        "huge": ({"config.json": config_with(tiny_qwen, hidden_size=10**6)}, "describes"),
        "layers": ({"config.json": config_with(tiny_qwen, num_hidden_layers=3, layer_types=None)}, "lack"),
        "nan": ({"model.safetensors": nan_weights(tiny_qwen)}, "its logits are not finite"),
        "lie": ({"model.safetensors": struct.pack("<Q", 1 << 40) + b"{}" * 500_000}, "model.safetensors is damaged"),
        "tokenizer": ({"tokenizer.json": b"[]", "vocab.json": b"", "merges.txt": b""}, "the tokenizer of"),
    }


@pytest.mark.parametrize(
    "kind", ["unknown", "vision", "quantized", "config", "huge", "layers", "nan", "lie", "tokenizer"]
)
def test_a_model_that_cannot_be_used_is_kept_out(server: HubServer, tiny_qwen: Path, models: Path, kind: str) -> None:
    changes, message = unfit_models(tiny_qwen)[kind]
    server.publish(f"bad/{kind}", published(tiny_qwen, **changes))
    said = refused(f"bad/{kind}", models)
    assert message in said
    assert f"bad/{kind}" in said
    assert ".partial" not in said


def test_a_tokenizer_may_have_ids_that_the_embedding_lacks(
    server: HubServer, tiny_qwen: Path, models: Path, tmp_path: Path
) -> None:
    inner = AutoTokenizer.from_pretrained(tiny_qwen)
    inner.add_tokens([*(f"<spare {i}>" for i in range(len(inner), 320)), "<image>"], special_tokens=True)
    inner.save_pretrained(tmp_path / "tokenizer")
    files = published(tiny_qwen, **{path.name: path.read_bytes() for path in (tmp_path / "tokenizer").iterdir()})
    said = "its tokenizer has 321 tokens, its embedding 320: it reads no text with the others"

    told: list[str] = []
    server.publish("a/marked", files)
    bring("a/marked", models, name="marked", tell=told.append)
    assert sum(line.startswith(f"a/marked: {said}") for line in told) == 1

    adapter, tokenizer = load_model_and_tokenizer(models / "marked")
    settings = SamplingSettings(max_new_tokens=3, seed=1)
    fine_BT, other_BT = (
        torch.from_numpy(tokenizer.encode(text)).long()[None] for text in ("the boat", "the <image> boat")
    )
    assert int(other_BT.max()) == 320
    assert adapter.generate(fine_BT, settings).size(1) == fine_BT.size(1) + 3
    readers = (
        adapter.logits,
        adapter.hidden_states,
        adapter.attentions,
        lambda ids_BT: adapter.generate(ids_BT, settings),
    )
    for read in readers:
        with pytest.raises(TokenizerError, match="the text has token 320, and the model knows 320 from 0 on"):
            read(other_BT)
    adapter.resize_embeddings(321)
    assert adapter.logits(other_BT).isfinite().all()


def test_a_model_that_looks_ahead_is_kept_out(models: Path, tmp_path: Path) -> None:
    folder = tiny_models.make(tmp_path / "bert", "bert")
    assert "is no causal language model" in refused(str(folder), models)


@pytest.mark.parametrize(
    ("left_out", "extra", "message"),
    [
        ("config.json", {}, "has no config.json"),
        ("model.safetensors", {}, "no safetensors weights (no weights)"),
        ("model.safetensors", {"pytorch_model.bin": b"x"}, "only pytorch_model.bin, which can run code"),
        ("model.safetensors", {"model.safetensors.index.json": b"{}"}, "the index of a/b is not sound"),
        (
            "model.safetensors",
            {"model.safetensors.index.json": b'{"weight_map": {"a": "../../x.safetensors"}}'},
            "the index of a/b is not sound",
        ),
        (
            "model.safetensors",
            {"model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors"}}'},
            "lacks model-1.safetensors, which its index names",
        ),
    ],
    ids=["config", "weights", "pickle", "empty index", "climbing index", "missing shard"],
)
def test_a_repository_that_lacks_something_is_named(
    server: HubServer, tiny_qwen: Path, models: Path, left_out: str, extra: dict[str, bytes], message: str
) -> None:
    server.publish("a/b", published(tiny_qwen, **{left_out: None}, **extra))
    assert message in refused("a/b", models)


def test_a_file_that_is_not_what_the_hub_states_is_thrown_away(server: HubServer, models: Path) -> None:
    lies = server.repositories[QWEN].lies
    size = len(server.repositories[QWEN].commits[server.repositories[QWEN].branches["main"]]["model.safetensors"])
    lies["model.safetensors"] = {"lfs": {"sha256": "0" * 64, "size": size, "pointerSize": 1}}
    assert "model.safetensors of Qwen/Qwen2.5-0.5B does not have the hash" in refused(QWEN, models)
    lies.clear()
    lies["merges.txt"] = {"blobId": git_blob(b"other")}
    assert "merges.txt of Qwen/Qwen2.5-0.5B does not have the hash" in refused(QWEN, models)
    lies.clear()
    lies["model.safetensors"] = {"size": size - 10}
    assert "is longer than the hub states; nothing was kept" in refused(QWEN, models)
    lies["model.safetensors"] = {"size": size + 10}
    with pytest.raises(Unfinished, match=r"model\.safetensors of .* came incomplete; run the same import again"):
        hub.import_model(QWEN, models_dir=models)
    assert Registry(models).names() == []


def test_oversized_files_are_refused_unread(server: HubServer, models: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        server.repositories[QWEN].lies = {name: {"size": 1 << 40}}
        assert f"{name} of {QWEN} has 1,099,511,627,776 bytes" in refused(QWEN, models)
    assert server.downloads() == []


HOSTILE_FILES = [
    "../../escaped.json", "/tmp/escaped.json", "..\\..\\escaped.json", "a/../../escaped.json", "config.json\0.txt",
    "modeling_qwen.py", "tokenizer.py", "LICENSE.py", "pytorch_model.bin", "model.pkl", "custom_generate/generate.py",
    "adapter_config.json", "CON.json", "model.safetensors/../../x.safetensors", "-rf", ".import.json", ".model.part",
]  # fmt: skip


def test_a_hostile_repository_runs_nothing_and_touches_nothing_outside(
    server: HubServer, tiny_qwen: Path, models: Path, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    code = f"open({str(trap)!r}, 'w').close()\n".encode()
    hostile = dict.fromkeys(HOSTILE_FILES, code)
    auto_map = {"AutoConfig": "modeling_qwen.C", "AutoModelForCausalLM": "modeling_qwen.M"}
    config = config_with(
        tiny_qwen, auto_map=auto_map, _attn_implementation="evil/kernel", transformers_weights="../x.bin"
    )
    settings = json.loads((tiny_qwen / "tokenizer_config.json").read_text())
    tokenizer = json.dumps({**settings, "auto_map": {"AutoTokenizer": ["tokenizer.T", "tokenizer.T"]}}).encode()
    files = published(tiny_qwen, **{"config.json": config, "tokenizer_config.json": tokenizer})
    server.publish("evil/model", {**files, **hostile})
    before = {path for path in tmp_path.rglob("*") if models not in path.parents}
    entry = bring("evil/model", models)
    assert {path for path in tmp_path.rglob("*") if models not in path.parents} - before <= {models}
    assert set(os.listdir(models / "model")) == set(entry.files) == {path.name for path in tiny_qwen.iterdir()}
    assert not trap.exists()
    assert "auto_map" not in (models / "model" / "config.json").read_text()
    assert "evil/kernel" not in (models / "model" / "config.json").read_text()
    assert "auto_map" not in (models / "model" / "tokenizer_config.json").read_text()
    ids_BT = torch.arange(9)[None]
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(models / "model")
        expected = AutoModelForCausalLM.from_pretrained(tiny_qwen)
        assert torch.equal(loaded(input_ids=ids_BT).logits, expected(input_ids=ids_BT).logits)
    assert not set(HOSTILE_FILES) & set(server.downloads())
    # an architecture that only the repository's code knows is kept out
    unknown = published(tiny_qwen, **{"config.json": config_with(tiny_qwen, model_type="evil", auto_map=auto_map)})
    server.publish("evil/unknown", {**unknown, **hostile})
    assert "lmlab runs no code of a repository" in refused("evil/unknown", models)
    assert not trap.exists()


def test_a_hostile_local_folder_runs_nothing_and_blocks_nothing(tiny_qwen: Path, models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in tiny_qwen.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with contextlib.suppress(AttributeError):  # no pipes on Windows
        os.mkfifo(folder / "LICENSE")
    (folder / "NOTICE").symlink_to("/nowhere/at/all")
    (folder / "vocab.txt").symlink_to(tmp_path)
    assert set(bring(str(folder), models).files) == {path.name for path in tiny_qwen.iterdir()}
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")
    assert "has no config.json" in refused(str(folder), models, name="other")


@pytest.mark.parametrize(
    "name", ["LICENSE", "chat_template.jinja", "tokenizer.json", "config.json", "model.safetensors"]
)
def test_a_link_out_of_the_folder_brings_nothing_in(tiny_qwen: Path, models: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(tiny_qwen, folder)
    (tmp_path / "secret").write_text("secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../secret")
    assert f"{name} of the folder {folder} is a link to {tmp_path / 'secret'}" in refused(str(folder), models)
    (folder / name).unlink()
    (folder / name).symlink_to("/etc/hostname")
    assert "is a link to /etc/hostname, outside of it; put the file itself there" in refused(str(folder), models)


def test_a_tokenizer_that_names_files_finds_its_own(tiny_qwen: Path, models: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    settings = json.loads((tiny_qwen / "tokenizer_config.json").read_text())
    named = {"vocab_file": str(tmp_path / "secret.txt"), "tokenizer_file": "/home/author/tokenizer.json"}
    folder = tmp_path / "folder"
    shutil.copytree(tiny_qwen, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **named}))
    bring(str(folder), models)
    assert json.loads((models / "folder" / "tokenizer_config.json").read_text()) == settings
    assert Tokenizer.load(models / "folder").identifier == Tokenizer.load(tiny_qwen).identifier


def test_a_checkpoint_is_sent_to_register_model(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "step-00000005"
    folder.mkdir()
    for name in ("state.json", "manifest.json", "config.json"):
        (folder / name).write_text("{}")
    assert "use `register-model" in refused(str(folder), models)


def test_a_models_folder_that_cannot_be_written_is_one_line(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(HubError, match=r"cannot write to .*a file is in its place"):
        hub.import_model(QWEN, models_dir=tmp_path / "file")


def test_a_run_and_an_adapter_are_told_what_they_are(models: Path, tmp_path: Path) -> None:
    run, adapter = tmp_path / "run", tmp_path / "lora"
    (run / "checkpoints").mkdir(parents=True)
    (run / "log.jsonl").write_text("")
    assert f"{run} is a run; use `register-model {run} --name NAME`" in refused(str(run), models)
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_text("{}")
    assert "is an adapter (LoRA or the like), not a model; merge it" in refused(str(adapter), models)


def test_what_a_model_lacks_or_does_not_take_is_said(tiny_qwen: Path, models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_qwen, folder)
    tensors = load_file(folder / "model.safetensors")
    lora = {f"model.layers.0.self_attn.q_proj.lora_{part}.weight": torch.zeros(2, 2) for part in "AB"}
    save_file({**tensors, **lora}, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    told: list[str] = []
    bring(str(folder), models, name="model", tell=told.append)
    assert (
        "model: model.layers.0.self_attn.q_proj.lora_A.weight and 1 more of its files are no part of this model, and are "
        "left out"
    ) in told
    assert "model: it has no tokenizer: it cannot write yet; train it with a tokenizer_override" in told


@pytest.mark.parametrize(
    ("head", "license"),
    [
        ("license: apache-2.0\n", "apache-2.0"),
        ("license: 'mit'\nmodel-index:\n- results:\n  - task:\n      a:\n        b:\n          c: d\n", "mit"),
        ("language: en\nlicense:\n- mit\n- apache-2.0\ntags:\n- x\n", "mit, apache-2.0"),
        ("license: [mit, bsd]\n", "mit, bsd"),
        ("license: other\nlicense_name: qwen-research\n", "qwen-research"),
        ("license: other\n", "other"),
        ("license: mit  # see LICENSE\n", "mit"),
        ("license: null\n", None),
        ("tags:\n- license\n", None),
    ],
)  # fmt: skip
def test_the_licence_stands_at_the_head_of_a_card(tmp_path: Path, head: str, license: str | None) -> None:
    (tmp_path / "README.md").write_text(f"---\n{head}---\n# Title\nlicense: none\n")
    assert license_of(tmp_path) == license
