"""Hostile files: nothing in them runs, nothing outside is touched, and memory stays bounded."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import tiny_models
from nbclient import NotebookClient
from test_views import PAYLOADS, assert_harmless, hostile_run
from tiny_config import TINY
from watched import attempt

from lmlab import checkpoint, files, hub, lab
from lmlab.config import TrainingConfig
from lmlab.data import load_text
from lmlab.loading import load_adapter
from lmlab.origins import LICENSE_FILE, PICKLES, TOKENIZER_FILES
from lmlab.record import Record
from lmlab.registry import Registry
from lmlab.sampling import load_writer
from lmlab.tokenizers import Tokenizer

pytestmark = pytest.mark.endurance
MOST_MEGABYTES = 400  # a model is checked in far less
SECRET = "the secret of another folder"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with a secret, in which nobody has any business."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.txt").write_text(SECRET)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound tiny model. Not to be changed."""
    return tiny_models.make(tmp_path_factory.mktemp("published") / "qwen")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A run with a checkpoint. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    return lab.run(TINY, corpus, run_name="run", runs_dir=folder, listeners=[]).folder


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.mkdir, (str(self.mark),)


def assert_contained(told: dict[str, Any], outside: Path) -> None:
    """An attempt raised nothing but a line for people, ran nothing, and left what is outside alone."""
    assert told["raised"] is None, told
    assert told["alarms"] == [], told
    assert not told["outside"], told
    assert told["megabytes"] < MOST_MEGABYTES, told
    assert [path.name for path in outside.iterdir()] == ["secret.txt"]
    assert "\n" not in (told["error"] or "")


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def vouched(folder: Path) -> None:
    """Give a checkpoint a manifest that vouches for what it holds now, as whoever made it could."""
    files.write_atomic(folder / checkpoint.MANIFEST, files.dump_json(checkpoint.manifest(folder)))


# --- pickles ----------------------------------------------------------------------------------------------------

NAMES = [
    "config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json", "README.md", "LICENSE",
    *TOKENIZER_FILES, *(f"pytorch_model{ending}" for ending in PICKLES), "training_args.bin", "optimizer.pt", "model.gguf",
    "adapter_model.bin", "rng_state.pth", "data.pkl", "model.npy", "model.joblib", "flax_model.msgpack", "tf_model.h5",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_of_any_name_is_never_opened(name: str, published: Path, outside: Path, tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(outside / "sprung"))
    folder = copy_of(published, tmp_path / "folder")
    (folder / name).write_bytes(trap)
    if name.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    for source in (folder, folder / name):
        told = attempt(
            lambda source=source: hub.import_model(str(source), models_dir=tmp_path / "models"), folder, outside
        )
        assert_contained(told, outside)
        assert (told["error"] is None) == ((tmp_path / "models" / "folder").exists())
        shutil.rmtree(tmp_path / "models", ignore_errors=True)
    assert_contained(attempt(lambda: Tokenizer.load(folder), folder, outside), outside)


@pytest.mark.parametrize("vouch", [False, True])
def test_a_pickle_in_a_run_is_never_opened(vouch: bool, trained: Path, outside: Path, tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(outside / "sprung"))
    newest = Path("checkpoints") / "step-00000006"
    names = [path.relative_to(trained) for path in sorted(trained.rglob("*")) if path.is_file()]
    for number, name in enumerate([*names, newest / "optimizer.pt", Path("notes.json"), Path("process.json")]):
        run = copy_of(trained, tmp_path / str(number))
        (run / name).write_bytes(trap)
        if vouch:
            vouched(run / newest)
        uses: list[Callable[[], object]] = [
            lambda run=run: load_adapter(run / newest),
            lambda run=run: load_writer(run),
            lambda run=run: lab.resume(run, listeners=[], max_steps=7),
            lambda run=run: Record(run).notes,
        ]
        for use in uses:
            assert_contained(attempt(use, run, outside), outside)


def test_a_pickle_as_registry_config_data_or_cache_is_never_opened(outside: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for name in ("registry.json", "config.yaml", "data.txt", "data.jsonl"):
        (hostile / name).write_bytes(pickle.dumps(Trap(outside / "sprung")))
    uses: list[Callable[[], object]] = [
        lambda: Registry(hostile).entries(),
        lambda: Registry(hostile).validate(fix=True),
        lambda: TrainingConfig.from_yaml(hostile / "config.yaml"),
        lambda: load_text(hostile / "data.txt"),
        lambda: load_text(hostile / "data.jsonl"),
    ]
    for use in uses:
        told = attempt(use, hostile, outside)
        assert_contained(told, outside)
        assert told["error"] is not None


# --- safetensors ------------------------------------------------------------------------------------------------


def crafted(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def described(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}


HEADERS = {
    "nothing": b"",
    "seven bytes": b"\0" * 7,
    "an empty header": crafted(b""),
    "a header of 2^63 bytes": crafted({}, length=1 << 63),
    "a header of 2^40 bytes": crafted(b"{}" * 1000, length=1 << 40),
    "a header beyond the file": crafted({}, length=10_000),
    "no JSON": crafted(b"{" * 100),
    "no UTF-8": crafted(b'{"\xff\xfe": 1}'),
    "deep JSON": crafted(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "a list": crafted([1, 2]),
    "an unknown type": crafted(described(dtype="PICKLE"), b"\0" * 4),
    "a negative shape": crafted(described(shape=[-1]), b"\0" * 4),
    "a shape that overflows": crafted(described(shape=[1 << 62, 1 << 62]), b"\0" * 4),
    "a shape larger than its data": crafted(described(shape=[1 << 40]), b"\0" * 4),
    "offsets backwards": crafted(described(data_offsets=[4, 0]), b"\0" * 4),
    "offsets beyond the file": crafted(described(data_offsets=[0, 1 << 50]), b"\0" * 4),
    "negative offsets": crafted(described(data_offsets=[-4, 0]), b"\0" * 4),
    "tensors that overlap": crafted(
        {**described(), "v": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}}, b"\0" * 8
    ),
    "a hole between tensors": crafted(described(data_offsets=[4, 8]), b"\0" * 8),
    "a tail": crafted(described(), b"\0" * 4 + b"tail"),
    "metadata of numbers": crafted({"__metadata__": {"a": 1}, **described()}, b"\0" * 4),
    "a name that climbs": crafted({"../../x": described()["w"]}, b"\0" * 4),
    "60,000 tensors": crafted({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(60_000)}),
    "no dimensions and no data": crafted({"w": {}}),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_crafted_header_is_refused(kind: str, published: Path, trained: Path, outside: Path, tmp_path: Path) -> None:
    folder, run = copy_of(published, tmp_path / "folder"), copy_of(trained, tmp_path / "run")
    newest = run / "checkpoints" / "step-00000006"
    (folder / "model.safetensors").write_bytes(HEADERS[kind])
    for part in ("model", "optimizer", "rng"):
        (newest / f"{part}.safetensors").write_bytes(HEADERS[kind])
    vouched(newest)
    saved = checkpoint.load(newest)
    uses: list[Callable[[], object]] = [
        lambda: hub.import_model(str(folder), models_dir=tmp_path / "models"),
        lambda: load_adapter(folder),
        lambda: load_adapter(newest),
        lambda: lab.resume(newest, listeners=[], max_steps=7),
        lambda: saved.tensors("optimizer"),
    ]
    for number, use in enumerate(uses):
        told = attempt(use, folder, outside)
        assert_contained(told, outside)
        assert told["error"] is not None or number == 4, told
    assert Registry(tmp_path / "models").names() == []


# --- code and other paths ---------------------------------------------------------------------------------------


def test_code_in_a_folder_never_runs(published: Path, outside: Path, tmp_path: Path) -> None:
    folder = copy_of(published, tmp_path / "folder")
    code = f"import os; os.mkdir({str(outside / 'sprung')!r})\n"
    for name in (
        "modeling_evil.py",
        "configuration_evil.py",
        "tokenization_evil.py",
        "__init__.py",
        "conftest.py",
        "sitecustomize.py",
    ):
        (folder / name).write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    code_names = {"AutoConfig": "configuration_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
    config, tokens = (json.loads((folder / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    attacks: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"auto_map": code_names}, {"auto_map": {"AutoTokenizer": ["tokenization_evil.T", None]}}),
        ({"auto_map": code_names, "model_type": "evil"}, {}),
        ({"trust_remote_code": True, "auto_map": code_names}, {"trust_remote_code": True}),
        ({"_attn_implementation": "evil/kernel"}, {}),
        ({"_attn_implementation_internal": "evil/kernel", "experts_implementation": "evil/kernel"}, {}),
        ({"text_config": {"auto_map": code_names, "_attn_implementation": "evil/kernel"}}, {}),
        ({"transformers_weights": str(outside / "secret.txt"), "adapter_kwargs": {"path": str(outside)}}, {}),
        ({"quantization_config": {"quant_method": "evil"}}, {}),
        ({"architectures": ["../modeling_evil"]}, {"tokenizer_class": "tokenization_evil.T"}),
        ({}, {"tokenizer_class": "../tokenization_evil"}),
        ({}, {"vocab_file": str(outside / "secret.txt"), "merges_file": str(outside / "secret.txt")}),
        ({}, {"tokenizer_class": "PreTrainedTokenizerFast", "tokenizer_file": "../outside/secret.txt"}),
        ({}, {"chat_template": [{"name": "../../outside/escaped", "template": SECRET}]}),
        ({}, {"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"}),
        ({"num_hidden_layers": 10**9}, {}),
        ({"vocab_size": 10**12}, {}),
        ({"hidden_size": 10**9, "num_attention_heads": 10**9}, {}),
    ]
    for number, (of_config, of_tokens) in enumerate(attacks):
        (folder / "config.json").write_text(json.dumps({**config, **of_config}))
        (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, **of_tokens}))
        models = tmp_path / f"models-{number}"

        def use(models: Path = models) -> None:
            hub.import_model(str(folder), name="evil", models_dir=models)
            adapter, tokenizer, _ = load_writer("evil", models_dir=models)
            tokenizer.encode("the capital")
            (models / "saved").mkdir()
            tokenizer.save(models / "saved")
            adapter.save(models / "saved")

        assert_contained(attempt(use, folder, outside), outside)
        assert_contained(attempt(lambda: Tokenizer.load(folder).encode("the"), folder, outside), outside)
        for path in models.rglob("*"):
            assert not path.is_file() or SECRET.encode() not in path.read_bytes() or "chat_template" in of_tokens


TOKENIZER_ATTACKS: list[tuple[str, Any]] = [  # a file of a tokenizer, and what it says; OUT is the file with the secret
    *(
        (name, {key: value})
        for name in ("special_tokens_map.json", "tokenizer_config.json")
        for value in ("OUT", "/proc/self/environ", "../outside/secret.txt")
        for key in (
            "vocab", "vocab_file", "merges", "merges_file", "tokenizer_file", "gguf_file", "added_tokens_file", "spm_file",
            "special_tokens_map_file", "entity_vocab", "chat_template_file", "tokenizer_config_file", "model_file",
        )
    ),
    *(("tokenizer_config.json", {"init_inputs": value}) for value in (["OUT"], ["/proc/self/environ"], [0], "OUT")),
    *(("special_tokens_map.json", {"chat_template": [{"name": name, "template": "x"}]}) for name in ("../../x", "x")),
    ("tokenizer_config.json", {"chat_template": {"../../x": "y"}}),
    ("tokenizer_config.json", {"chat_template": [{"name": "x", "template": {"y": 1}}]}),
    ("tokenizer_config.json", {"fast_tokenizer_files": ["../outside/tokenizer.4.0.0.json"]}),
    ("tokenizer_config.json", {"sp_model_kwargs": {"model_file": "OUT"}}),
    ("tokenizer_config.json", {"backend_tokenizer": 1, "remark": "\ud800"}),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["../outside.T", None]}, "trust_remote_code": True}),
    ("tokenizer_config.json", {"vocab_file": 0}),
    ("special_tokens_map.json", {"name_or_path": "outside", "is_local": False, "local_files_only": False}),
    ("special_tokens_map.json", {"unk_token": {"content": "x", "file": "OUT"}}),
    ("special_tokens_map.json", ["OUT"]),
    ("added_tokens.json", {"OUT": "OUT"}),
    ("added_tokens.json", ["OUT"]),
    ("added_tokens.json", {"x": 1 << 62}),
    ("config.json", {"tokenizer_class": "../outside", "vocab_file": "OUT"}),
    ("config.json", {"configuration_files": ["config.4.0.0.json"]}),
    ("generation_config.json", {"auto_map": {"": "outside.T"}, "custom_generate": "OUT", "vocab_file": "OUT"}),
    ("processor_config.json", {"auto_map": {"AutoProcessor": "outside.T"}, "chat_template": {"../../x": "y"}}),
    ("preprocessor_config.json", {"auto_map": {"AutoProcessor": "outside.T"}}),
    ("tokenizer.json", {"model": {"type": "WordPiece", "vocab": "OUT", "unk_token": "[UNK]"}}),
    ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}, "merges": "OUT"}, "file": "OUT"}),
]  # fmt: skip


def test_no_file_of_a_tokenizer_brings_in_what_is_secret(published: Path, outside: Path, tmp_path: Path) -> None:
    """Whatever it is loaded by, nothing of another file or of the environment is in what is saved after it."""
    (outside / "secret.txt").write_text(f"[UNK]\n{SECRET}\n")
    environment = [entry for entry in Path("/proc/self/environ").read_bytes().split(b"\0") if len(entry) > 12]
    assert environment
    for number, (name, values) in enumerate([("tokenizer_config.json", {}), *TOKENIZER_ATTACKS]):
        qwen, bert = copy_of(published, tmp_path / f"qwen-{number}"), tmp_path / f"bert-{number}"
        bert.mkdir()
        (bert / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n")
        (bert / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
        values = json.loads(json.dumps(values).replace("OUT", str(outside / "secret.txt")))
        for folder in (qwen, bert):
            kept = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
            (folder / name).write_text(json.dumps({**kept, **values} if isinstance(values, dict) else values))
        models, saved = tmp_path / f"models-{number}", tmp_path / f"saved-{number}"
        saved.mkdir()

        def imported(qwen: Path = qwen, models: Path = models) -> None:
            hub.import_model(str(qwen), name="evil", models_dir=models)
            (models / "saved").mkdir()
            load_writer("evil", models_dir=models)[1].save(models / "saved")

        def loaded(folder: Path, saved: Path = saved) -> None:
            (saved / folder.name).mkdir()
            Tokenizer.load(folder).save(saved / folder.name)

        for use in (imported, lambda qwen=qwen: loaded(qwen), lambda bert=bert: loaded(bert)):
            told = attempt(use, qwen, outside)
            assert_contained(told, outside)
            assert told["error"] is None or number > 0, told
        written = [path for folder in (models, saved) for path in folder.rglob("*") if path.is_file()]
        assert written or number > 0
        for path in written:
            content = path.read_bytes()
            assert SECRET.encode() not in content, (name, values, path)
            assert not any(entry in content for entry in environment), (name, values, path)
        for folder in (qwen, bert, models, saved):
            shutil.rmtree(folder, ignore_errors=True)


SOUND_FILES: list[tuple[str, Any]] = [
    ("special_tokens_map.json", {"eos_token": "<|endoftext|>", "additional_special_tokens": ["<|im_end|>"]}),
    ("special_tokens_map.json", {"pad_token": {"content": "<|endoftext|>", "lstrip": False}, "image_token": "<image>"}),
    ("tokenizer_config.json", {"init_inputs": [], "model_max_length": 64, "name_or_path": "its-author/model"}),
    (
        "tokenizer_config.json",
        {"vocab_file": "/home/its/author/vocab.json", "extra_special_tokens": {"image_token": "/"}},
    ),
    (
        "tokenizer_config.json",
        {"chat_template": [{"name": "default", "template": "x"}, {"name": "rag", "template": "y"}]},
    ),
    ("added_tokens.json", {"<|im_end|>": 320}),
    ("generation_config.json", {"do_sample": True}),
    ("processor_config.json", {"processor_class": "Qwen2VLProcessor"}),
    ("tokenizer.json", {"version": "1.0"}),
]


@pytest.mark.parametrize(("name", "values"), SOUND_FILES)
def test_sound_files_of_the_same_names_are_taken(name: str, values: Any, published: Path, tmp_path: Path) -> None:
    folder = copy_of(published, tmp_path / "folder")
    kept = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps({**kept, **values}))
    text = "the capital"
    expected = Tokenizer.load(published).encode(text).tolist()
    assert Tokenizer.load(folder).encode(text).tolist() == expected
    hub.import_model(str(folder), name="sound", models_dir=tmp_path / "models")
    tokenizer = load_writer("sound", models_dir=tmp_path / "models")[1]
    assert tokenizer.encode(text).tolist() == expected
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").encode(text).tolist() == expected


def test_names_that_climb_lead_nowhere(published: Path, trained: Path, outside: Path, tmp_path: Path) -> None:
    up = str(outside / "secret.txt")
    folder = copy_of(published, tmp_path / "folder")
    (folder / "model.safetensors").unlink()
    for name in (
        up,
        "../outside/secret.txt",
        "..",
        "a/../../outside/secret.txt",
        "x.safetensors/../../outside/secret.txt",
    ):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
        told = attempt(lambda: hub.import_model(str(folder), models_dir=tmp_path / "m"), folder, outside)
        assert_contained(told, outside)
        assert told["error"] is not None
    models = tmp_path / "models"
    models.mkdir()
    entry = {"model_name": "x", "source": "local", "architecture_type": "qwen", "files": {}}
    for path in ("../outside", str(outside), ".", "..", "x/../../outside"):
        for file in ("secret.txt", "../outside/secret.txt"):
            hostile = {**entry, "local_path": path, "files": {file: {"size": len(SECRET), "sha256": "0" * 64}}}
            (models / "registry.json").write_text(json.dumps({"version": 1, "models": {"x": hostile}}))
            uses: list[Callable[[], object]] = [
                lambda: Registry(models).path("x"),
                lambda: load_writer("x", models_dir=models),
                lambda: Registry(models).remove("x", force=True),
                lambda: Registry(models).validate(fix=True),
            ]
            for use in uses:
                assert_contained(attempt(use, models, outside), outside)
    for name in ("../../outside/run", "..", up, "a/b", ".hidden"):
        told = attempt(lambda name=name: lab.run(TINY, run_name=name, listeners=[]), trained, outside)
        assert_contained(told, outside)
        assert told["error"] is not None


def test_links_are_never_followed_out(published: Path, trained: Path, outside: Path, tmp_path: Path) -> None:
    folder = copy_of(published, tmp_path / "folder")
    for name in ("LICENSE", "NOTICE.md", "chat_template.jinja", "vocab.txt"):
        assert LICENSE_FILE.fullmatch(name) or name in TOKENIZER_FILES
        (folder / name).symlink_to(outside / "secret.txt")
        told = attempt(lambda: hub.import_model(str(folder), models_dir=tmp_path / "m"), folder, outside)
        assert_contained(told, outside)
        assert f"{name} of the folder" in told["error"]
        (folder / name).unlink()
    models = tmp_path / "models"
    hub.import_model(str(published), name="tiny", models_dir=models)
    shutil.move(models / "tiny", tmp_path / "moved")
    (models / "tiny").symlink_to(outside)
    (models / "stray").symlink_to(outside)
    for act in (lambda: Registry(models).validate(fix=True), lambda: Registry(models).remove("tiny")):
        assert_contained(attempt(act, models, outside), outside)
    assert not (models / "stray").is_symlink()
    run = copy_of(trained, tmp_path / "run")
    (run / "checkpoints" / "step-00000009").symlink_to(outside)
    (run / "checkpoints" / ".step-00000007.tmp-1-00000000").symlink_to(outside)
    for act in (lambda: lab.resume(run, listeners=[], max_steps=8, keep_checkpoints=1), lambda: Record(run).size_bytes):
        told = attempt(act, run, outside)
        assert told["raised"] is None, told
        assert [path.name for path in outside.iterdir()] == ["secret.txt"]


# --- bombs ------------------------------------------------------------------------------------------------------


def test_bombs_do_not_go_off(published: Path, trained: Path, outside: Path, tmp_path: Path) -> None:
    hostile = copy_of(published, tmp_path / "hostile")
    zeros = bytes(1 << 20)
    with zipfile.ZipFile(hostile / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(200):
            archive.writestr(f"{number}.txt", zeros)
    with gzip.open(hostile / "bomb.txt", "wb") as packed:
        for _ in range(500):
            packed.write(zeros)
    laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
    )
    yaml_bombs = {
        "laughs": laughs, "deep": "[" * 30_000, "maps": "{a: " * 15_000, "long": "x: " + "9" * 60_000, "keys": "? " * 30_000,
        "documents": "---\n" * 16_000, "merge": "<<: " * 9000,
        "tag": "a: !!python/object/apply:os.system [id]\n", "colons": ": " * 32_000,
        "quotes": "'" * 65_000, "blank": "\n" * 65_000, "anchors": "".join(f"k{i}: &a{i} x\n" for i in range(4000)),
    }  # fmt: skip
    for name, text in yaml_bombs.items():
        (hostile / f"{name}.yaml").write_text(text[: 64 * 1024])
        told = attempt(lambda name=name: TrainingConfig.from_yaml(hostile / f"{name}.yaml"), hostile, outside)
        assert_contained(told, outside)
        assert told["error"] is not None, name
        (hostile / "README.md").write_text(f"---\n{text}\n---\n# A card\n")
        told = attempt(lambda: hub.import_model(str(hostile), models_dir=tmp_path / "m"), hostile, outside)
        assert_contained(told, outside)
        shutil.rmtree(tmp_path / "m", ignore_errors=True)
    for name in ("bomb.zip", "bomb.txt"):
        uses: list[Callable[[], object]] = [
            lambda name=name: hub.import_model(str(hostile / name), models_dir=tmp_path / "m"),
            lambda name=name: load_text(hostile / name),
            lambda name=name: TrainingConfig.from_yaml(hostile / name),
        ]
        for use in uses:
            told = attempt(use, hostile, outside)
            assert_contained(told, outside)
            assert told["error"] is not None
    json_bombs = (
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"models": ' + b"9" * 5000 + b"}",
        b'"' + b"x" * (40 << 20) + b'"',
    )
    run = copy_of(trained, tmp_path / "run")
    for content in json_bombs:
        for path in (
            hostile / "config.json",
            hostile / "tokenizer_config.json",
            hostile / "registry.json",
            run / "log.jsonl",
        ):
            kept = path.read_bytes() if path.exists() else None
            path.write_bytes(content)
            uses = [
                lambda: hub.import_model(str(hostile), models_dir=tmp_path / "m"),
                lambda: Tokenizer.load(hostile),
                lambda: Registry(hostile).entries(),
                lambda: Record(run)._repr_html_() if hasattr(Record(run), "_repr_html_") else Record(run).status,
            ]
            for use in uses:
                assert_contained(attempt(use, hostile, outside), outside)
            shutil.rmtree(tmp_path / "m", ignore_errors=True)
            path.unlink()
            if kept is not None:
                path.write_bytes(kept)
    newest = run / "checkpoints" / "step-00000006"
    for content in json_bombs[:3]:
        for name in ("state.json", "config.json", "tokenizer/char_tokenizer.json", "manifest.json"):
            kept = (newest / name).read_bytes()
            (newest / name).write_bytes(content)
            if name != "manifest.json":
                vouched(newest)
            told = attempt(lambda: lab.resume(newest, listeners=[], max_steps=7), run, outside)
            assert_contained(told, outside)
            assert told["error"] is not None
            (newest / name).write_bytes(kept)
            vouched(newest)


# --- notebooks --------------------------------------------------------------------------------------------------

CELLS = """
import lmlab as lab
lab.runs()
---
lab.models()
---
lab.attach("run-0")
---
lab.compare([lab.attach(f"run-{n}") for n in range(N)])
---
lab.diff(lab.attach("run-0"), lab.attach("run-1"))
"""


def test_payloads_stay_text_in_an_executed_notebook(tmp_path: Path) -> None:
    runs, models = tmp_path / "runs", tmp_path / "models"
    for number, payload in enumerate(PAYLOADS):
        hostile_run(runs / f"run-{number}", payload)
    models.mkdir()
    entry = {"source": "local", "architecture_type": "qwen", "local_path": "x"}
    entries = {
        f"m{number}": {
            **entry,
            "model_name": f"m{number}",
            "license": payload,
            "model_id": payload,
            "architecture_type": payload,
        }
        for number, payload in enumerate(PAYLOADS)
    }
    entries |= {payload: {"model_name": payload} for payload in PAYLOADS}
    (models / "registry.json").write_text(json.dumps({"version": 1, "models": entries}))
    cells = [f"N = {len(PAYLOADS)}", *CELLS.strip().split("---\n")]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(tmp_path))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert len(shown) >= 5
    for html in shown:
        assert_harmless(html)
    assert not any({"application/javascript", "text/latex", "text/markdown"} & set(o.get("data", {})) for o in outputs)
    assert len(PAYLOADS) >= 10
