"""Tokenizers: what goes in comes out, and what cannot is shown."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.errors import TokenizerError
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


def test_ids_may_have_gaps_and_the_vocabulary_reaches_to_the_last(hf_folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(with_id(hf_folder, tmp_path, 1000))
    assert tokenizer.vocab_size == 1001
    assert tokenizer.decode([999]) == ""
    assert len(tokenizer.decode([1000])) > 0


def test_an_id_that_no_embedding_has_is_refused_at_once(hf_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="ids up to 3,000,000,000: no model has"):
        Tokenizer.load(with_id(hf_folder, tmp_path, 3_000_000_000))
