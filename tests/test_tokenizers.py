"""Tokenizers: what goes in comes out, and what cannot is shown."""

from __future__ import annotations

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
