"""Tokenizers: text to ids and back. Imports neither torch nor transformers until one is needed.

Ids are arrays of numpy, so that a corpus can be larger than memory and batches become tensors late.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from lmlab.entries import CONFIG, CUSTOM
from lmlab.errors import TokenizerError
from lmlab.files import dump_json, plain_os_errors, read_json, read_object, sha256_bytes, write_atomic
from lmlab.hostile_tokenizers import refuse_hostile, refuse_links_away

Ids = npt.NDArray[np.integer[Any]]  # int32 from a tokenizer; narrower where they are kept
CHAR_FILE = "char_tokenizer.json"
# Any one of these is a tokenizer's vocabulary; besides them stand its settings.
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
SENTENCEPIECE = tuple(name for name in VOCABULARIES if name.endswith(".model"))
SEPARATOR = "\n\n"  # between documents, for a tokenizer without an end-of-text token


class Tokenizer(ABC):
    """Text to ids and back.

    identifier: kind, size and content in one word; equal identifiers mean equal ids for every text.
    end_of_text_id: the id that ends a document, None where the tokenizer has none. begin_of_text_id: the id that it puts
    before a text, as Gemma's and Llama's do; None where it puts none.
    end_of_sequence_id: after which a model falls silent, of chat models the end of a turn; else the end of text.
    other_end_ids: further ones, which the settings for generation beside a tokenizer name.
    drew: whether its files have it draw how words are split, which it does not do here.
    """

    vocab_size: int
    identifier: str
    end_of_text_id: int | None = None
    begin_of_text_id: int | None = None
    end_of_sequence_id: int | None = None
    other_end_ids: tuple[int, ...] = ()
    drew: bool = False

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """The ids of a text, 1-D int32. Raises TokenizerError on what the vocabulary cannot say."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Raises TokenizerError on an id outside the vocabulary."""

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text of each id as it stands within a text, where some tokenizers would leave a space away at the front."""
        return [self.decode([i]) for i in ids]

    def is_special(self, token_id: int) -> bool:
        """Whether an id stands for a mark, such as the end of a text, and for no text."""
        return False

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the tokenizer into an existing folder. Raises OSError."""

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text, computed on all cores. Raises what `encode` raises."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self.encode, texts))

    def begun(self, ids: Ids) -> Ids:
        """The ids of a text as a model is to read them from its beginning on: after begin-of-text, if there is one."""
        if self.begin_of_text_id is None or (len(ids) and ids[0] == self.begin_of_text_id):
            return ids  # some write it themselves
        return np.concatenate([np.array([self.begin_of_text_id], dtype=np.int32), ids])

    def border(self) -> Ids:
        """The ids between two documents: end-of-text, or an empty line. Raises TokenizerError."""
        if self.end_of_text_id is None:
            return self.encode(SEPARATOR)
        return np.array([self.end_of_text_id], dtype=np.int32)

    def encode_documents(self, documents: Sequence[str]) -> Ids:
        """The ids of all documents in a row, with a border between them; each further one begins as texts do."""
        if self.end_of_text_id is None:
            return self.encode(SEPARATOR.join(documents))
        parts = [self.encode(document) for document in documents[:1]]
        for document in documents[1:]:
            parts += [self.border(), self.begun(self.encode(document))]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)

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
        refuse_links_away(folder)
        characters = read_object(path, TokenizerError).get("characters")
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


SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # the settings of a model that name them
# A setting of our own in a model's `tokenizer_config.json`: the class stands there, whatever kind the model is of.
STANDS_ALONE = "lmlab_stands_alone"
MOST_TOKENS = 1 << 24  # far above any vocabulary: what counts up to the largest id would not end


@contextlib.contextmanager
def library_errors(what: str, *passed: type[Exception]) -> Iterator[None]:
    """Turn whatever the libraries make of a bad tokenizer into a TokenizerError; a panic of theirs is no Exception."""
    try:
        yield
    except (TokenizerError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if isinstance(error, passed):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TokenizerError(f"{what}: {reason[:200]}") from error


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings beside a tokenizer, empty where there are none."""
    path = folder / "tokenizer_config.json"
    settings: dict[str, Any] = read_json(path) if path.exists() else {}
    return settings


def put_settings(folder: Path, **settings: Any) -> None:
    """Add to the settings beside a tokenizer. Raises OSError."""
    write_atomic(folder / "tokenizer_config.json", dump_json({**settings_of(folder), **settings}))


def switches_of(folder: Path) -> dict[str, bool]:
    """The settings of a tokenizer that are on or off."""
    return {k: v for k, v in settings_of(folder).items() if isinstance(v, bool) and k != STANDS_ALONE}


def ends_for_generation(folder: Path) -> tuple[int, ...]:
    """The tokens that the settings for generation beside a tokenizer name as ends: Phi 3 names that of a turn there alone.

    Raises TokenizerError where they are damaged.
    """
    path = folder / "generation_config.json"
    return ids_in(read_object(path, TokenizerError).get("eos_token_id")) if path.exists() else ()


def ids_in(named: Any) -> tuple[int, ...]:
    """The ids that a setting names: one, several or none."""
    return tuple(each for each in (named if isinstance(named, list) else [named]) if isinstance(each, int))


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the vocabulary of a tokenizer of any kind."""
    return any((folder / name).exists() for name in (*VOCABULARIES, CHAR_FILE))


def refuse_unreadable(folder: Path) -> None:
    """Raise TokenizerError where a folder's vocabulary is SentencePiece's alone, and what reads that is not installed."""
    found = [name for name in VOCABULARIES if (folder / name).exists()]
    if not found or any(name not in SENTENCEPIECE for name in found) or not is_sentencepiece(folder / found[0]):
        return
    if not all(importlib.util.find_spec(package) for package in ("sentencepiece", "google", "google.protobuf")):
        raise TokenizerError(
            f"{folder / found[0]} is read by sentencepiece and protobuf, which are not both installed: pip install "
            "sentencepiece protobuf"
        )


def is_sentencepiece(path: Path) -> bool:
    """Whether a vocabulary is a message of SentencePiece, which begins with a piece; others are lines of text."""
    with path.open("rb") as file:
        return file.read(1) == b"\n"


def stands_alone(folder: Path) -> bool:
    """Whether a tokenizer is another than transformers would make of the model beside it."""
    model = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    return bool(settings_of(folder).get(STANDS_ALONE)) or model.get("model_type") == CUSTOM


def same_ids(one: str, other: str) -> bool:
    """Whether two identifiers stand for equal ids of every text, whatever kind they name."""
    return one.partition("-")[2] == other.partition("-")[2]


def keep_apart(folder: Path, identifier: str) -> None:
    """Have a model's folder give the tokenizer of that identifier. Raises TokenizerError where it cannot."""
    if Tokenizer.load(folder).identifier == identifier:
        return
    put_settings(folder, **{STANDS_ALONE: True})
    found = Tokenizer.load(folder).identifier
    if found != identifier:
        raise TokenizerError(f"the tokenizer {identifier} comes back as {found} from a model's folder: not kept")


class HFTokenizer(Tokenizer):
    """A tokenizer in the files of Hugging Face: `tokenizer.json` and what stands beside it."""

    def __init__(self, folder: Path | str) -> None:
        """Load from a folder, offline and without running any of its code. Raises TokenizerError."""
        from transformers import AutoTokenizer, PreTrainedConfig

        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise TokenizerError(f"no tokenizer in {self.folder}: the folder does not exist")
        refuse_hostile(self.folder)
        with library_errors(f"no tokenizer can be loaded from {self.folder}"):
            refuse_unreadable(self.folder)
            beside = {"config": PreTrainedConfig()} if stands_alone(self.folder) else {}
            self.inner: Any = AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True, **beside)
            self.inner.init_kwargs.pop(STANDS_ALONE, None)
            self.drew = self._stop_drawing()
            self._switches = switches_of(self.folder)
            self._put_back: dict[str, bool] | None = None  # of them, what `save` adds; None: found out at the first use
            if not holds_tokenizer(self.folder) and not self._knows_text():
                raise TokenizerError(
                    f"{self.folder} holds no tokenizer, only settings of one; set tokenizer_override to one that is"
                )
            self.vocab_size = 1 + max(map(int, self.inner.get_vocab().values()))  # ids may have gaps
            if not 0 < self.vocab_size <= MOST_TOKENS:
                raise TokenizerError(
                    f"{self.folder} holds a tokenizer with ids up to {self.vocab_size - 1:,}: no model has"
                )
            self.end_of_sequence_id = self.inner.eos_token_id
            self.other_end_ids = ends_for_generation(self.folder)
            self.end_of_text_id = self._find_end_of_text()
            self.begin_of_text_id = self._find_begin_of_text()
            self.identifier = f"{self.kind()}-{self.vocab_size}-{sha256_bytes(self._content())[:8]}"

    def kind(self) -> str:
        """The name of the tokenizer's class without "Tokenizer" and "Fast", in lower case: `qwen2`, `gpt2`.

        Of a class that stands for any tokenizer, what it does: `bpe`, `unigram`.
        """
        name = type(self.inner).__name__
        if name in ("TokenizersBackend", "PreTrainedTokenizerFast"):
            return type(self.inner.backend_tokenizer.model).__name__.lower()
        return name.replace("TokenizerFast", "").replace("Tokenizer", "").lower() or "hf"

    def _stop_drawing(self) -> bool:
        """Split each word in one way alone; whether it was drawn (BPE-dropout, Provilkov et al. 2020).

        With draws, a text has other ids each time, and no run that reads it could be resumed.
        """
        model: Any = getattr(getattr(self.inner, "backend_tokenizer", None), "model", None)
        if not getattr(model, "dropout", None):
            return False
        model.dropout = None
        return True

    def _knows_text(self) -> bool:
        """Whether text has ids: without its files, the library makes a tokenizer that knows none."""
        ids = self.inner("a", add_special_tokens=False, verbose=False)["input_ids"]
        return bool(set(ids) - {self.inner.unk_token_id})

    def _find_end_of_text(self) -> int | None:
        """`<|endoftext|>` where there is one (chat models end a turn with another token), else the end of sequence."""
        end = "<|endoftext|>"
        token = self.inner.convert_tokens_to_ids(end)
        unknown = token == self.inner.unk_token_id and self.inner.unk_token != end  # SmolLM2's stands for both
        return token if isinstance(token, int) and token >= 0 and not unknown else self.end_of_sequence_id

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

    def is_special(self, token_id: int) -> bool:
        """See `Tokenizer.is_special`."""
        token = self.inner.added_tokens_decoder.get(token_id)
        return token is not None and bool(token.special)

    @functools.cached_property
    def _anchor(self) -> tuple[list[int], str]:
        """An id that others may follow, and its text; none where the vocabulary lacks it."""
        try:
            anchor = self.encode("a")[-1:].tolist()
        except TokenizerError:
            anchor = []
        return anchor, self.decode(anchor)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """See `Tokenizer.pieces`: what an id adds to the text of another one."""
        anchor, before = self._anchor
        both = [(i, self.decode([*anchor, i])) for i in ids]
        return [text.removeprefix(before) if text.startswith(before) else self.decode([i]) for i, text in both]

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into an existing folder. Raises OSError, TokenizerError on what cannot be written."""
        with library_errors(f"the tokenizer of {self.folder} cannot be saved", OSError), plain_os_errors():
            self.inner.save_pretrained(str(folder))
            if self._put_back is None:  # once, as a large vocabulary takes a second to load
                self._put_back = self._left_out(folder)
            if self._put_back:
                put_settings(folder, **self._put_back)

    def _left_out(self, folder: Path) -> dict[str, bool]:
        """The switches that were not saved into a folder, if ids depend on them, as on Llama's `legacy`.

        Raises TokenizerError where the folder gives other ids with them, too.
        """
        saved = switches_of(folder)
        found = HFTokenizer(folder).identifier
        if same_ids(found, self.identifier):
            return {}
        left_out = {key: value for key, value in self._switches.items() if key not in saved}
        put_settings(folder, **left_out)
        found = HFTokenizer(folder).identifier
        if not same_ids(found, self.identifier):
            raise TokenizerError(
                f"the tokenizer of {self.folder} cannot be saved: it is {self.identifier}, and would come back as {found}; "
                "use another tokenizer"
            )
        return left_out
