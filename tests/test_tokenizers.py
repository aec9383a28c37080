"""Tokenizers: what goes in comes out, and what cannot is shown."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.errors import TokenizerError
from lmlab.origins import disarm, tokenizer_notes
from lmlab.tokenizers import CharTokenizer, HFTokenizer, Tokenizer

STRANGE = "a\u0000é\u0301漢😀👩‍👩‍👧\U0010ffff\ufeff\u2028\r\n\x7f\uffff 𝔘"


def test_characters_beyond_sixteen_bits_are_one_token_each() -> None:
    tokenizer = CharTokenizer.from_text(STRANGE)
    ids = tokenizer.encode(STRANGE)
    assert ids.dtype == np.int32
    assert ids.shape == (len(STRANGE),)
    assert tokenizer.decode(ids) == STRANGE
    assert tokenizer.vocab_size == len(set(STRANGE))
    assert tokenizer.characters == "".join(sorted(set(STRANGE)))
    assert [int(i) for i in ids] == [tokenizer.characters.index(c) for c in STRANGE]


@settings(max_examples=150, deadline=None)
@given(vocabulary=st.text(min_size=1, max_size=60), data=st.data())
def test_any_text_in_its_own_characters_comes_back(vocabulary: str, data: st.DataObject) -> None:
    tokenizer = CharTokenizer.from_text(vocabulary)
    text = data.draw(st.text(alphabet=sorted(set(vocabulary)), max_size=80))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("abca😀b", "'😀' (U+1F600) at position 4"),
        ("B", "'B' (U+0042) at position 0"),
        ("ab\n", "'\\n' (U+000A) at position 2"),
        ("ab\U0010ffff", "(U+10FFFF) at position 2"),
        ("a\ud800", "'\\ud800' at 1 is no valid Unicode"),
    ],
)
def test_an_unseen_character_is_shown_with_its_place(text: str, shown: str) -> None:
    with pytest.raises(TokenizerError) as raised:
        CharTokenizer.from_text("abc").encode(text)
    assert shown in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("ids", [[0, 3], [-1], [2**40]])
def test_an_id_outside_the_vocabulary_is_refused(ids: list[int]) -> None:
    with pytest.raises(TokenizerError, match="outside the vocabulary of 3"):
        CharTokenizer.from_text("abc").decode(ids)


def test_nothing_is_nothing() -> None:
    tokenizer = CharTokenizer.from_text("abc")
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode([]) == ""
    assert tokenizer.encode_documents([]).shape == (0,)
    for characters in ("", "aa"):
        with pytest.raises(TokenizerError):
            CharTokenizer(characters)


def test_the_identifier_says_whether_ids_mean_the_same() -> None:
    one = CharTokenizer.from_text("hello")
    assert one.identifier == CharTokenizer.from_text("ollehhhh").identifier
    assert one.identifier.startswith("char-4-")
    assert one.identifier != CharTokenizer.from_text("hellp").identifier


def test_a_saved_vocabulary_is_the_same_tokenizer(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.from_text(STRANGE)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert isinstance(loaded, CharTokenizer)
    assert loaded.identifier == tokenizer.identifier
    assert np.array_equal(loaded.encode(STRANGE), tokenizer.encode(STRANGE))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"{}", b'{"characters": 3}', b'{"characters": ""}', b'{"characters": "aa"}',
        b'{"characters": "\\ud800"}', b"\xff", b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_vocabulary_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "char_tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"char_tokenizer\.json is damaged"):
        Tokenizer.load(tmp_path)


def test_documents_of_characters_are_parted_by_an_empty_line() -> None:
    tokenizer = CharTokenizer.from_text("ab\n")
    assert tokenizer.decode(tokenizer.encode_documents(["a", "b", "ab"])) == "a\n\nb\n\nab"


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_models.write_tokenizer(folder)
    return folder


def test_a_tokenizer_of_hugging_face_ends_documents_with_its_token(hf_folder: Path) -> None:
    tokenizer = Tokenizer.load(hf_folder)
    assert isinstance(tokenizer, HFTokenizer)
    assert tokenizer.identifier.startswith(f"qwen2-{tokenizer.vocab_size}-")
    end = tokenizer.end_of_text_id
    assert end is not None
    assert tokenizer.decode([end]) == tiny_models.END_OF_TEXT
    first, second = tokenizer.encode("the sea"), tokenizer.encode("naïve 😀")
    assert first.dtype == np.int32
    assert list(tokenizer.encode_documents(["the sea", "naïve 😀"])) == [*first, end, *second]
    assert tokenizer.decode(second) == "naïve 😀"
    assert tokenizer.encode("").shape == (0,)


def test_a_saved_tokenizer_of_hugging_face_is_the_same(hf_folder: Path, tmp_path: Path) -> None:
    tokenizer = HFTokenizer(hf_folder)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.identifier == tokenizer.identifier
    assert list(loaded.encode(tiny_models.text(50))) == list(tokenizer.encode(tiny_models.text(50)))
    assert loaded.decode([10**6, -1]) == ""  # rows of an embedding that no token has say nothing


MARKED = "the <s>the</s> the</s>the"


@pytest.mark.parametrize("legacy", [True, False, None])
@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast"])
def test_a_tokenizer_of_llama_is_saved_with_what_its_ids_depend_on(tmp_path: Path, name: str, legacy: bool) -> None:
    tokenizer = Tokenizer.load(
        tiny_models.write_llama_tokenizer(tmp_path / "made", tokenizer_class=name, legacy=legacy)
    )
    ids = tokenizer.encode(MARKED).tolist()
    for number in range(3):  # each of which is saved twice: what was put back stays so
        for folder in (tmp_path / f"{number}", tmp_path / f"{number}-again"):
            folder.mkdir()
            tokenizer.save(folder)
            saved = Tokenizer.load(folder)
            assert (saved.identifier, saved.encode(MARKED).tolist()) == (tokenizer.identifier, ids)
        tokenizer = saved
    assert (json.loads((folder / "tokenizer_config.json").read_text()).get("legacy") is True) == (legacy is True)


def test_what_a_class_does_with_a_mark_shows_in_the_ids(tmp_path: Path) -> None:
    one, other = (
        Tokenizer.load(tiny_models.write_llama_tokenizer(tmp_path / str(legacy), legacy=legacy))
        for legacy in (True, False)
    )
    assert one.encode(MARKED).tolist() != other.encode(MARKED).tolist()
    assert one.identifier != other.identifier


def test_a_tokenizer_that_would_come_back_as_another_is_not_saved(hf_folder: Path, tmp_path: Path) -> None:
    tokenizer = HFTokenizer(hf_folder)
    tokenizer.inner.add_tokens(["quiet sea"])  # since it was named
    with pytest.raises(TokenizerError, match=r"cannot be saved: it is qwen2-.*, and would come back as qwen2-"):
        tokenizer.save(tmp_path)


def test_a_class_that_stands_for_any_tokenizer_is_named_by_what_it_does(tmp_path: Path) -> None:
    tiny_models.write_tokenizer(tmp_path, "PreTrainedTokenizerFast")
    assert Tokenizer.load(tmp_path).identifier.startswith("bpe-")


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer in .*missing: the folder does not exist"):
        Tokenizer.load(tmp_path / "missing")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="no tokenizer can be loaded from"):
        Tokenizer.load(tmp_path)


# Folders made by others


def rewritten(folder: Path, tmp_path: Path, settings: dict[str, object] | None = None, **tokenizer: object) -> Path:
    """A copy of a tokenizer's folder with other settings, and other parts of its tokenizer.json."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for name, changes in (("tokenizer_config.json", settings or {}), ("tokenizer.json", tokenizer)):
        (copy / name).write_text(json.dumps({**json.loads((copy / name).read_text()), **changes}))
    return copy


@pytest.mark.parametrize(
    "key", ["vocab_file", "tokenizer_file", "merges_file", "sentencepiece_model_file", "source_spm"]
)
def test_settings_that_would_read_another_file_are_refused(hf_folder: Path, tmp_path: Path, key: str) -> None:
    (tmp_path / "secret").write_text("secret")
    for named in (str(tmp_path / "secret"), "../copy/../secret", "/dev/null"):
        os.chdir(rewritten(hf_folder, tmp_path, {key: named}))
        with pytest.raises(TokenizerError, match=rf"reads '.*', which is not of its folder; take {key} out of it"):
            Tokenizer.load(tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")
    os.chdir(tmp_path)
    with pytest.raises(TokenizerError, match=r"reads '\.\./secret'"):  # seen from its folder alone
        Tokenizer.load(rewritten(hf_folder, tmp_path, {key: "../secret"}))
    shutil.rmtree(tmp_path / "copy")
    dead = rewritten(hf_folder, tmp_path, {key: "/home/its/author/vocabulary.txt"})
    assert Tokenizer.load(dead).identifier == Tokenizer.load(hf_folder).identifier


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a/b", "", "..", "\0", "a\\b"])
def test_chat_templates_that_would_be_written_elsewhere_are_refused(hf_folder: Path, tmp_path: Path, name: str) -> None:
    templates = [{"name": "default", "template": "x"}, {"name": name, "template": "y"}]
    with pytest.raises(TokenizerError, match=r"has a chat template of the name .*, which is no plain name"):
        Tokenizer.load(rewritten(hf_folder, tmp_path, {"chat_template": templates}))


def test_chat_templates_of_plain_names_are_kept(hf_folder: Path, tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "y"}]
    (tmp_path / "saved").mkdir()
    Tokenizer.load(rewritten(hf_folder, tmp_path, {"chat_template": templates})).save(tmp_path / "saved")
    assert (tmp_path / "saved" / "additional_chat_templates" / "tool_use.jinja").read_text() == "y"


SECRET = "planted-secret-7d1f"


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A file with a secret, in which no tokenizer has any business."""
    path = tmp_path / "outside" / "tokenizer.4.0.0.json"
    path.parent.mkdir()
    path.write_text(f"[UNK]\n{SECRET}\n")
    return path


def bert(folder: Path, special: object = None, **settings: object) -> Path:
    """A BERT tokenizer of the old kind, whose arguments its `special_tokens_map.json` can set."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nsea\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **settings}))
    if special is not None:
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return folder


@pytest.mark.parametrize(
    "key", ["vocab", "vocab_file", "merges", "tokenizer_file", "gguf_file", "name_or_path", "is_local"]
)
def test_a_map_of_special_tokens_sets_nothing_else(secrets: Path, tmp_path: Path, key: str) -> None:
    for value in (str(secrets), "/proc/self/environ", ["x"], {"content": str(secrets)}):
        with pytest.raises(TokenizerError, match=rf"special_tokens_map\.json sets '{key}', which is no special token"):
            Tokenizer.load(bert(tmp_path / "bert", {key: value}))
        shutil.rmtree(tmp_path / "bert")
    for damaged in ([], "x", 3):
        with pytest.raises(TokenizerError, match=r"special_tokens_map\.json is damaged: it holds no object"):
            Tokenizer.load(bert(tmp_path / "bert", damaged))
        shutil.rmtree(tmp_path / "bert")


def test_a_map_of_special_tokens_sets_those(tmp_path: Path) -> None:
    token = {"content": "sea", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    special = {
        "unk_token": "[UNK]",
        "mask_token": token,
        "image_token": "the",
        "extra_special_tokens": ["sea", token],
    }
    tokenizer = Tokenizer.load(bert(tmp_path / "bert", special))
    assert isinstance(tokenizer, HFTokenizer)
    assert tokenizer.inner.mask_token == "sea"
    assert tokenizer.decode(tokenizer.encode("the sea")) == "the sea"


ATTACKS: list[tuple[dict[str, object], str]] = [
    ({"init_inputs": ["OUTSIDE"]}, "sets init_inputs, with which a tokenizer can read any file"),
    ({"gguf_file": "model.gguf"}, "sets gguf_file, with which"),
    ({"gguf_file": "../outside/tokenizer.4.0.0.json"}, "sets gguf_file, with which"),
    ({"fast_tokenizer_files": ["../outside/tokenizer.4.0.0.json"]}, "reads '../outside/tokenizer.4.0.0.json'"),
    ({"vocab": "/proc/self/environ"}, "reads '/proc/self/environ'"),
    ({"vocab": "OUTSIDE"}, "take vocab out of it"),
    ({"entity_vocab": "OUTSIDE"}, "take entity_vocab out of it"),
    ({"vocab_file": 0}, "reads 0, which is not of its folder"),
    ({"rewriting_rules": "OUTSIDE"}, "take rewriting_rules out of it"),
    ({"sp_model_kwargs": {"model_file": "OUTSIDE"}}, "take model_file out of it"),
    ({"anything": [{"deeper": ["../outside/tokenizer.4.0.0.json"]}]}, "take deeper out of it"),
    ({"chat_template": {"../../x": "y"}}, "has a chat template of the name '../../x'"),
    ({"chat_template": {"default": 3}}, "has a chat template 'default' that is no text"),
    ({"chat_template": [{"name": "default", "template": None}]}, "has a chat template 'default' that is no text"),
]


@pytest.mark.parametrize(("settings", "said"), ATTACKS)
def test_no_setting_at_any_depth_reads_or_writes_elsewhere(
    secrets: Path, tmp_path: Path, settings: dict[str, object], said: str
) -> None:
    settings = json.loads(json.dumps(settings).replace("OUTSIDE", str(secrets)))
    with pytest.raises(TokenizerError) as raised:
        Tokenizer.load(bert(tmp_path / "bert", **settings))
    assert said in str(raised.value)


def test_an_import_drops_what_could_read_elsewhere(secrets: Path, tmp_path: Path) -> None:
    names = {"unk_token": "[UNK]", "extra_special_tokens": ["sea"]}
    settings: dict[str, object] = {
        "vocab": str(secrets), "init_inputs": [str(secrets)], "gguf_file": "x.gguf", "fast_tokenizer_files": ["../x.json"],
        "sp_model_kwargs": {"model_file": str(secrets), "nbest_size": 1}, "do_lower_case": True,
    }  # fmt: skip
    folder = bert(tmp_path / "bert", {**names, "vocab": str(secrets), "vocab_file": 3}, **settings)
    assert disarm(folder) == ["tokenizer_config.json", "special_tokens_map.json"]
    assert json.loads((folder / "special_tokens_map.json").read_text()) == names
    kept = {"tokenizer_class": "BertTokenizer", "sp_model_kwargs": {"nbest_size": 1}, "do_lower_case": True}
    assert json.loads((folder / "tokenizer_config.json").read_text()) == kept
    assert Tokenizer.load(folder).vocab_size == 7
    assert disarm(folder) == []


SAVE_ALL = """
import sys
from pathlib import Path
from lmlab.errors import TokenizerError
from lmlab.tokenizers import Tokenizer
for folder in sorted(Path(sys.argv[1]).iterdir()):
    target = Path(sys.argv[2]) / folder.name
    target.mkdir(parents=True)
    try:
        Tokenizer.load(folder).save(target)
    except TokenizerError as error:
        print(error)
"""


def test_nothing_secret_comes_into_what_is_saved(hf_folder: Path, secrets: Path, tmp_path: Path) -> None:
    """Neither a file nor the environment of the process that loads a tokenizer and saves it in a checkpoint."""
    folders, saved = tmp_path / "folders", tmp_path / "saved"
    folders.mkdir()
    number = 0
    for read in (str(secrets), "/proc/self/environ", "../../outside/tokenizer.4.0.0.json"):
        for key in ("vocab", "vocab_file", "init_inputs", "tokenizer_file", "gguf_file", "merges"):
            value = [read] if key == "init_inputs" else read
            bert(folders / f"map-{number}", {key: value})
            bert(folders / f"set-{number}", **{key: value})
            number += 1
    for name in ("vocab.txt", "chat_template.jinja", "special_tokens_map.json"):
        linked = bert(folders / f"link-{name}")
        (linked / name).unlink(missing_ok=True)
        (linked / name).symlink_to(secrets)
    bert(folders / "sound", {"unk_token": "[UNK]"}, chat_template="x")
    script = [sys.executable, "-c", SAVE_ALL, str(folders), str(saved)]
    done = subprocess.run(script, env={**os.environ, "PLANTED": SECRET}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not any(SECRET.encode() in path.read_bytes() for path in saved.rglob("*") if path.is_file())
    assert len(done.stdout.splitlines()) == 2 * number + 3
    assert sorted(path.name for path in (saved / "sound").iterdir()) == [
        "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_harmless_settings_of_the_same_names_are_no_reason_to_refuse(tmp_path: Path) -> None:
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "a_file", "/etc/hosts", "the_dir"])}
    settings: dict[str, object] = {
        "init_inputs": [], "gguf_file": None, "vocab": vocabulary, "fast_tokenizer_files": ["tokenizer.json"],
        "name_or_path": "/", "unk_token": "[UNK]", "extra_special_tokens": ["/", "//", "..", ""],
        "special_tokens_map_file": "/home/its/author/special_tokens_map.json",
        "chat_template": [{"name": "default", "template": "x"}],
    }  # fmt: skip
    assert Tokenizer.load(bert(tmp_path / "bert", {}, **settings)).vocab_size > 4


def test_numbers_and_folders_of_a_models_config_are_its_own(hf_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(hf_folder, tmp_path / "copy")
    values = {"model_type": "qwen2", "n_vocab": 50257, "vision": {"drop_path": 0}, "output_dir": "."}
    (tmp_path / "copy" / "config.json").write_text(json.dumps(values))
    assert HFTokenizer(tmp_path / "copy").encode("the").tolist() == HFTokenizer(hf_folder).encode("the").tolist()


def test_links_out_of_a_tokenizers_folder_are_refused(hf_folder: Path, secrets: Path, tmp_path: Path) -> None:
    copy = rewritten(hf_folder, tmp_path)
    (copy / "model.safetensors").symlink_to(secrets)  # none of its files
    (copy / "gone.txt").symlink_to(tmp_path / "nothing")
    (copy / "again.json").symlink_to("tokenizer.json")
    Tokenizer.load(copy)
    (copy / "additional_chat_templates").mkdir()
    for name in ("chat_template.jinja", "vocab.txt", "char_tokenizer.json", "additional_chat_templates/x.jinja"):
        (copy / name).symlink_to(secrets)
        with pytest.raises(TokenizerError, match=f"{name} is a link to .*, outside of its folder"):
            Tokenizer.load(copy)
        (copy / name).unlink()
    (copy / "additional_chat_templates").rmdir()
    (copy / "additional_chat_templates").symlink_to(secrets.parent)
    with pytest.raises(TokenizerError, match="additional_chat_templates is a link to"):
        Tokenizer.load(copy)


def test_a_folder_of_the_hubs_cache_links_to_its_blobs(hf_folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    shutil.copytree(hf_folder, tmp_path / "models--a--b" / "blobs")
    for path in hf_folder.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert Tokenizer.load(snapshot).identifier == Tokenizer.load(hf_folder).identifier


def test_what_cannot_be_saved_is_one_line(hf_folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(rewritten(hf_folder, tmp_path, {"remark": "\ud800"}))
    (tmp_path / "saved").mkdir()
    with pytest.raises(TokenizerError, match=r"the tokenizer of .* cannot be saved: .*surrogates"):
        tokenizer.save(tmp_path / "saved")


def test_what_the_library_panics_on_is_one_line(hf_folder: Path, tmp_path: Path) -> None:
    broken = {"type": "Precompiled", "precompiled_charsmap": ""}
    with pytest.raises(TokenizerError, match=r"no tokenizer can be loaded from .*: Precompiled"):
        Tokenizer.load(rewritten(hf_folder, tmp_path, normalizer=broken))


@pytest.mark.parametrize("tokenizer_class", ["RagTokenizer", "CanineTokenizer"])
def test_a_tokenizer_that_is_none_of_text_is_one_line(tmp_path: Path, tokenizer_class: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class}))
    with pytest.raises(TokenizerError, match="no tokenizer can be loaded from"):
        Tokenizer.load(tmp_path)


def with_id(folder: Path, tmp_path: Path, token_id: int) -> Path:
    """A copy of a tokenizer whose last token bears another id."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    last = max(model["vocab"], key=model["vocab"].__getitem__)
    return rewritten(folder, tmp_path, model={**model, "vocab": {**model["vocab"], last: token_id}})


def test_a_tokenizer_that_draws_its_splits_gives_a_text_the_same_ids_each_time(hf_folder: Path, tmp_path: Path) -> None:
    """Else no run with it could be resumed: its text would have other tokens."""
    folder = shutil.copytree(hf_folder, tmp_path / "drawing")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["dropout"] = 0.5
    (folder / "tokenizer.json").write_text(json.dumps(values))
    tokenizer = Tokenizer.load(folder)
    expected = Tokenizer.load(hf_folder).encode(tiny_models.SENTENCE).tolist()
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    for loaded in (tokenizer, Tokenizer.load(tmp_path / "saved"), Tokenizer.load(folder)):
        assert [loaded.encode(tiny_models.SENTENCE).tolist() for _ in range(3)] == [expected] * 3
    assert tokenizer_notes(folder, tokenizer.vocab_size) == [
        "its tokenizer draws how it splits words; here each is always split in one way"
    ]


def test_ids_may_have_gaps_and_the_vocabulary_reaches_to_the_last(hf_folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(with_id(hf_folder, tmp_path, 1000))
    assert tokenizer.vocab_size == 1001
    assert tokenizer.decode([999]) == ""
    assert len(tokenizer.decode([1000])) > 0


def test_an_id_that_no_embedding_has_is_refused_at_once(hf_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="ids up to 3,000,000,000: no model has"):
        Tokenizer.load(with_id(hf_folder, tmp_path, 3_000_000_000))


def test_a_piece_keeps_the_space_before_it(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    words = ["<unk>", "▁", "▁a", "▁the", "the", "▁cat", "s", "</s>"]
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}'
    )
    tokenizer = Tokenizer.load(tmp_path)
    ids = [words.index(word) for word in ("▁the", "▁cat", "s", "▁", "the", "</s>")]
    assert tokenizer.decode([ids[0]]) == tokenizer.decode([ids[4]]) == "the"
    assert tokenizer.pieces(ids) == [" the", " cat", "s", " ", "the", "</s>"]
    assert "".join(tokenizer.pieces(ids)).removeprefix(" ") == tokenizer.decode(ids)
    assert CharTokenizer.from_text("abc").pieces([0, 2]) == ["a", "c"]


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_settings_without_a_vocabulary_are_no_tokenizer(tmp_path: Path, family: str) -> None:
    """The library makes one of them that has no ids for any text: a run would see ends of text alone."""
    folder = tiny_models.make(tmp_path / "model", family)
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / name).unlink()
    with pytest.raises(TokenizerError, match="holds no tokenizer, only settings of one; set tokenizer_override"):
        HFTokenizer(folder)


@pytest.mark.skipif(importlib.util.find_spec("sentencepiece") is not None, reason="it can be read here")
@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"])
def test_a_vocabulary_of_sentencepiece_says_what_reads_it(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    piece = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"
    (tmp_path / name).write_bytes(piece)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(TokenizerError) as raised:
        Tokenizer.load(tmp_path)
    advice = "which are not both installed: pip install sentencepiece protobuf"
    assert str(raised.value) == f"{tmp_path / name} is read by sentencepiece and protobuf, {advice}"
    assert (caplog.text, *capfd.readouterr()) == ("", "", "")
    tiny_models.write_tokenizer(tmp_path)
    Tokenizer.load(tmp_path)  # by its tokenizer.json
