"""Tokenizers: text to ids and back. Imports neither torch nor transformers until one is needed.

Ids are arrays of numpy, so that a corpus can be larger than memory and batches become tensors late.
"""

from __future__ import annotations

import contextlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from lmlab.errors import TokenizerError
from lmlab.files import describe_os_error, dump_json, read_json, sha256_bytes, write_atomic

Ids = npt.NDArray[np.integer[Any]]  # int32 from a tokenizer; narrower where they are kept
CHAR_FILE = "char_tokenizer.json"
SEPARATOR = "\n\n"  # between documents, for a tokenizer without an end-of-text token


class Tokenizer(ABC):
    """Text to ids and back.

    identifier: kind, size and content in one word; equal identifiers mean equal ids for every text.
    end_of_text_id: the id that ends a document, None where the tokenizer has none. begin_of_text_id: the id that it puts
    before a text, as Gemma's and Llama's do; None where it puts none.
    """

    vocab_size: int
    identifier: str
    end_of_text_id: int | None = None
    begin_of_text_id: int | None = None

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """The ids of a text, 1-D int32. Raises TokenizerError on what the vocabulary cannot say."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Raises TokenizerError on an id outside the vocabulary."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the tokenizer into an existing folder. Raises OSError."""

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text, computed on all cores. Raises what `encode` raises."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self.encode, texts))

    def begun(self, ids: Ids) -> Ids:
        """The ids of a text as a model is to read them from its beginning on: after begin-of-text, if there is one."""
        begin = [] if self.begin_of_text_id is None else [self.begin_of_text_id]
        return np.concatenate([np.array(begin, dtype=np.int32), ids])

    def border(self) -> Ids:
        """The ids between two documents: end-of-text and begin-of-text, or an empty line. Raises TokenizerError."""
        if self.end_of_text_id is None:
            return self.encode(SEPARATOR)
        return np.array([self.end_of_text_id, *self.begun(np.empty(0, dtype=np.int32))], dtype=np.int32)

    def encode_documents(self, documents: Sequence[str]) -> Ids:
        """The ids of all documents in a row, with a border between them."""
        if self.end_of_text_id is None:
            return self.encode(SEPARATOR.join(documents))
        border = self.border()
        parts = [part for document in documents for part in (self.encode(document), border)]
        return np.concatenate(parts[:-1]) if parts else np.empty(0, dtype=np.int32)

    @staticmethod
    def load(folder: Path | str) -> Tokenizer:
        """The tokenizer saved in a folder, whichever kind it is. Raises TokenizerError."""
        folder = Path(folder)
        if (folder / CHAR_FILE).exists():
            return CharTokenizer.from_folder(folder)
        return HFTokenizer(folder)


class CharTokenizer(Tokenizer):
    """One id per character, in the order of their code points."""

    def __init__(self, characters: str) -> None:
        """characters: the vocabulary, each character once. Raises TokenizerError where it is empty or repeats."""
        if not characters or len(set(characters)) != len(characters):
            raise TokenizerError("a character vocabulary must be non-empty and name each character once")
        self.characters = characters
        self.vocab_size = len(characters)
        self.identifier = f"char-{self.vocab_size}-{sha256_bytes(characters.encode())[:8]}"
        self._points = np.frombuffer(characters.encode("utf-32-le"), dtype=np.uint32)
        self._id_of_point = np.full(int(self._points.max()) + 2, -1, dtype=np.int32)
        self._id_of_point[self._points] = np.arange(self.vocab_size, dtype=np.int32)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The tokenizer whose vocabulary is every character of `text`. Raises TokenizerError on an empty one."""
        return cls("".join(sorted(set(text))))

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """The tokenizer that `save` wrote. Raises TokenizerError naming the file."""
        path = folder / CHAR_FILE
        try:
            values = read_json(path)
        except OSError as error:
            raise TokenizerError(f"cannot read {path}: {describe_os_error(error)}") from error
        except (ValueError, RecursionError) as error:
            raise TokenizerError(f"{path} is damaged: it is not JSON") from error
        characters = values.get("characters") if isinstance(values, dict) else None
        if not isinstance(characters, str):
            raise TokenizerError(f"{path} is damaged: it holds no characters")
        try:
            return cls(characters)
        except (TokenizerError, UnicodeEncodeError) as error:
            raise TokenizerError(f"{path} is damaged: {error}") from error

    def encode(self, text: str) -> Ids:
        """The ids of a text, 1-D int32. Raises TokenizerError that shows the first character it does not know."""
        try:
            points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        except UnicodeEncodeError as error:
            raise TokenizerError(f"character {text[error.start]!r} at {error.start} is no valid Unicode") from error
        ids: Ids = self._id_of_point.take(points, mode="clip")  # what lies beyond is unknown, as the last entry is
        if ids.size and ids.min() < 0:
            at = int(np.argmax(ids < 0))
            raise TokenizerError(
                f"character {text[at]!r} (U+{ord(text[at]):04X}) at position {at} is not in the vocabulary of "
                f"{self.vocab_size} characters; use text like that of the training data"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Raises TokenizerError on an id outside the vocabulary."""
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
        if array.size and (array.min() < 0 or array.max() >= self.vocab_size):
            raise TokenizerError(f"an id is outside the vocabulary of {self.vocab_size} characters")
        return self._points[array].tobytes().decode("utf-32-le")

    def save(self, folder: Path) -> None:
        """Write the vocabulary as JSON into an existing folder. Raises OSError."""
        write_atomic(folder / CHAR_FILE, dump_json({"type": "char", "characters": self.characters}))


READ_BY_NAME = re.compile(r".*_(file|spm|path)|vocab|merges")  # settings that transformers opens as a file
TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
MOST_TOKENS = 1 << 24  # far above any vocabulary: what counts up to the largest id would not end


def refuse_hostile(folder: Path) -> None:
    """Raise TokenizerError where a folder's JSON would have transformers run code, or read or write elsewhere."""
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        try:
            values = read_json(path) if path.exists() else {}
        except OSError as error:
            raise TokenizerError(f"cannot read {path}: {describe_os_error(error)}") from error
        except (ValueError, RecursionError) as error:
            raise TokenizerError(f"{path} is damaged: it is not JSON") from error
        if not isinstance(values, dict):
            raise TokenizerError(f"{path} is damaged: it holds no object")
        if "auto_map" in values:
            raise TokenizerError(f"{path} names code of its own (auto_map), and none is run; use another tokenizer")
        for key, value in values.items():
            if READ_BY_NAME.fullmatch(key) and isinstance(value, str) and leads_outside(value, folder):
                raise TokenizerError(f"{path} reads {value!r}, which is not of its folder; take {key} out of it")
        for name in template_names(values.get("chat_template")):
            if not TEMPLATE_NAME.fullmatch(name):
                raise TokenizerError(
                    f"{path} has a chat template of the name {name!r}, which is no plain name; rename it"
                )


def without_paths(values: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's settings without those that transformers opens as a file; what it needs it finds by its usual name."""
    return {key: value for key, value in values.items() if not (READ_BY_NAME.fullmatch(key) and isinstance(value, str))}


def leads_outside(value: str, folder: Path) -> bool:
    """Whether a text names something that exists, and not in the folder. Paths of its author's machine name nothing."""
    try:
        return os.path.lexists(value) and not Path(value).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # no file can have this name
        return False


def template_names(templates: Any) -> list[str]:
    """The names of a tokenizer's chat templates; each becomes the name of a file where the tokenizer is saved."""
    if isinstance(templates, dict):
        return [str(name) for name in templates]
    entries = templates if isinstance(templates, list) else []
    return [str(entry.get("name")) for entry in entries if isinstance(entry, dict)]


@contextlib.contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn whatever the libraries make of a bad tokenizer into a TokenizerError; a panic of theirs is no Exception."""
    try:
        yield
    except (TokenizerError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TokenizerError(f"{what}: {reason[:200]}") from error


class HFTokenizer(Tokenizer):
    """A tokenizer in the files of Hugging Face: `tokenizer.json` and what stands beside it."""

    def __init__(self, folder: Path | str) -> None:
        """Load from a folder, offline and without running any of its code. Raises TokenizerError."""
        from transformers import AutoTokenizer

        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise TokenizerError(f"no tokenizer in {self.folder}: the folder does not exist")
        refuse_hostile(self.folder)
        with library_errors(f"no tokenizer can be loaded from {self.folder}"):
            self.inner: Any = AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
            self.vocab_size = 1 + max(map(int, self.inner.get_vocab().values()))  # ids may have gaps
            if not 0 < self.vocab_size <= MOST_TOKENS:
                raise TokenizerError(
                    f"{self.folder} holds a tokenizer with ids up to {self.vocab_size - 1:,}: no model has"
                )
            self.end_of_text_id = self._find_end_of_text()
            self.begin_of_text_id = self._find_begin_of_text()
            self.identifier = f"{self.kind()}-{self.vocab_size}-{sha256_bytes(self._content())[:8]}"

    def kind(self) -> str:
        """The name of the tokenizer's class without "Tokenizer" and "Fast", in lower case: `qwen2`, `gpt2`."""
        return type(self.inner).__name__.replace("TokenizerFast", "").replace("Tokenizer", "").lower() or "hf"

    def _find_end_of_text(self) -> int | None:
        """`<|endoftext|>` where there is one (chat models end a turn with another token), else the end of sequence."""
        token = self.inner.convert_tokens_to_ids("<|endoftext|>")
        if isinstance(token, int) and token >= 0 and token != self.inner.unk_token_id:
            return token
        end = self.inner.eos_token_id
        return int(end) if end is not None else None

    def _find_begin_of_text(self) -> int | None:
        """What the tokenizer by itself puts before a text; one that ends texts, too, tells nothing of a beginning."""
        ids = self.inner("", verbose=False)["input_ids"]
        begins = bool(ids) and ids[0] == self.inner.bos_token_id != self.end_of_text_id
        return int(ids[0]) if begins else None

    def _content(self) -> bytes:
        backend = getattr(self.inner, "backend_tokenizer", None)
        return (
            backend.to_str().encode() if backend is not None else repr(sorted(self.inner.get_vocab().items())).encode()
        )

    def encode(self, text: str) -> Ids:
        """The ids of a text as it stands, without special tokens around it, 1-D int32. Raises TokenizerError."""
        with library_errors(f"the tokenizer of {self.folder} cannot encode the text"):
            return np.asarray(self.inner(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text, computed on all cores by the library itself. Raises TokenizerError."""
        with library_errors(f"the tokenizer of {self.folder} cannot encode the texts"):
            encoded = self.inner(
                list(texts),
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
        return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens shown. Ids that no token has (a model may have spare rows) say nothing."""
        values = [int(i) for i in ids if 0 <= i < self.vocab_size]
        return str(self.inner.decode(values, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into an existing folder. Raises OSError."""
        self.inner.save_pretrained(str(folder))
