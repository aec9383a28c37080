"""Text to batches: load, split, cut into windows, deal them out in an order that can be taken up anywhere.

B batch (windows), T window length in tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmlab import storybook
from lmlab.errors import DataError
from lmlab.files import describe_os_error, sha256_bytes
from lmlab.tokenizers import Ids

STORYBOOK = "storybook"
STORYBOOK_CHARACTERS = 1_000_000
IGNORED = -100  # a target that counts for nothing; torch's own default


@dataclass(frozen=True)
class Corpus:
    """Training text and where it came from. documents: in order; path: as given, absolute where it is a file."""

    documents: list[str]
    path: str
    sha256: str

    @property
    def text(self) -> str:
        """All documents, separated by an empty line."""
        return "\n\n".join(self.documents)

    @property
    def is_storybook(self) -> bool:
        """Whether this is the built-in corpus, whose entropy is known."""
        return self.path.split(":")[0] == STORYBOOK


def load_text(data: str | Path | None = None) -> Corpus:
    """The corpus at `data`: a UTF-8 file, a folder of .txt, a .jsonl with a `text` field, or the built-in storybook.

    None or "storybook" is the built-in corpus of 1 MB, "storybook:N" of N characters. Raises DataError naming the
    file, and the byte or line in it, that cannot be used.
    """
    name = STORYBOOK if data is None else str(data)
    if name.split(":")[0] == STORYBOOK and not Path(name).exists():
        return load_storybook(name)
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            documents = load_folder(path)
        elif path.suffix == ".jsonl":
            documents = load_json_lines(path)
        else:
            documents = [load_file(path)]
    except FileNotFoundError as error:
        raise DataError(f"no data at {path}: give --data a text file, a folder of .txt, or leave it out") from error
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {describe_os_error(error)}") from error
    return Corpus(documents, str(path.resolve()), sha256_bytes("\0".join(documents).encode()))


def load_storybook(name: str) -> Corpus:
    """The built-in corpus: "storybook" or "storybook:N" for about N characters. Raises DataError on another N."""
    size = name.partition(":")[2] or str(STORYBOOK_CHARACTERS)
    if not size.isascii() or not size.isdigit() or not 1 <= int(size) <= 10**9:
        raise DataError(f"{name!r} is no size of the storybook: write storybook:N, N characters from 1 to 1000000000")
    text = storybook.generate(int(size))
    return Corpus([text], name, sha256_bytes(text.encode()))


def decode_text(content: bytes, path: Path) -> str:
    """UTF-8 bytes as text, a byte-order mark dropped. Raises DataError with the offset of the first wrong byte."""
    if b"\0" in content:
        raise DataError(f"{path} is binary: it holds a NUL at byte {content.index(0)}; give a UTF-8 text file")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}; convert it to UTF-8 first") from error
    return text.removeprefix("\ufeff")


def load_file(path: Path) -> str:
    """The text of one file. Raises DataError where it is empty, binary or not UTF-8, and OSError."""
    text = decode_text(path.read_bytes(), path)
    if not text.strip():
        raise DataError(f"{path} is empty: give a file with text in it")
    return text


def load_folder(path: Path) -> list[str]:
    """The text of every .txt below a folder, in the order of their names, empty ones left out. Raises DataError."""
    texts = [decode_text(file.read_bytes(), file) for file in sorted(path.rglob("*.txt")) if file.is_file()]
    documents = [text for text in texts if text.strip()]
    if not documents:
        raise DataError(f"the folder {path} holds no .txt file with text in it")
    return documents


def load_json_lines(path: Path) -> list[str]:
    """The `text` of every line of a .jsonl, empty ones left out. Raises DataError naming the line."""
    documents = []
    for number, line in enumerate(decode_text(path.read_bytes(), path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not a JSON object with a `text` field") from error
        if not isinstance(text, str):
            raise DataError(f"{path}, line {number}: `text` is not a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            what = f"U+{ord(text[error.start]):04X} at {error.start}"
            raise DataError(f"{path}, line {number}: `text` holds half of a surrogate pair, {what}") from error
        if text.strip():
            documents.append(text)
    if not documents:
        raise DataError(f"{path} is empty: no line holds any text")
    return documents


def split_corpus(ids: Ids, train_ratio: float) -> tuple[Ids, Ids]:
    """The first `train_ratio` of the ids for training, the rest for validation; both are views."""
    cut = int(len(ids) * train_ratio)
    return ids[:cut], ids[cut:]


class Batch(NamedTuple):
    """Windows of tokens. windows_B: the position in the split at which each begins, which names it."""

    inputs_BT: Tensor
    targets_BT: Tensor
    windows_B: Tensor


class WindowDataset:
    """Windows of `max_seq_len` tokens (inputs) with the token that follows each (targets).

    Item i begins at token i. Where the ids end before a window does, it is padded with targets that do not count.
    Raises DataError where there are not even two tokens.
    """

    def __init__(self, ids: Ids, max_seq_len: int) -> None:
        if len(ids) < 2:
            raise DataError(f"{len(ids)} tokens are too few for a window: there must be 2 or more; give more text")
        self.ids, self.max_seq_len = ids, max_seq_len

    def __len__(self) -> int:
        return max(1, len(self.ids) - self.max_seq_len)

    def __getitem__(self, start: int) -> tuple[Tensor, Tensor]:
        if not 0 <= start < len(self):
            raise IndexError(f"window {start} of {len(self)}")
        batch = self.batch(np.array([start]))
        return batch.inputs_BT[0], batch.targets_BT[0]

    def batch(self, starts_B: npt.NDArray[np.int64]) -> Batch:
        """The windows that begin at `starts_B`, fetched in one gather."""
        positions_BT = starts_B[:, None] + np.arange(self.max_seq_len + 1)
        beyond_BT = positions_BT >= len(self.ids)
        ids_BT = torch.from_numpy(self.ids[np.where(beyond_BT, 0, positions_BT)].astype(np.int64))
        inputs_BT, targets_BT = ids_BT[:, :-1].clone(), ids_BT[:, 1:].clone()  # no memory in common, even for B = 1
        if beyond_BT.any():
            targets_BT[torch.from_numpy(beyond_BT[:, 1:])] = IGNORED
        return Batch(inputs_BT, targets_BT, torch.from_numpy(starts_B))

    def tiles(self) -> npt.NDArray[np.int64]:
        """Starts of windows side by side in which every token but the first is a target once."""
        return np.arange(0, len(self.ids) - 1, self.max_seq_len, dtype=np.int64)


@dataclass(frozen=True)
class Sampler:
    """The order of training windows: a function of (seed, epoch, position), so that any place of it can be taken up.

    An epoch tiles the tokens once, from an offset of its own, and deals the tiles in an order of its own.
    """

    n_tokens: int
    max_seq_len: int
    seed: int

    def __post_init__(self) -> None:
        if self.n_tokens <= self.max_seq_len:
            raise DataError(
                f"the text is too short: {self.n_tokens} training tokens do not fill one window of "
                f"max_seq_len={self.max_seq_len} and its target; give more text or a smaller max_seq_len"
            )

    @property
    def epoch_length(self) -> int:
        """Windows in an epoch: one fewer than fit, so that the offset can be anything up to a window."""
        return max(1, (self.n_tokens - 1) // self.max_seq_len - 1)

    def starts(self, position: int, count: int) -> npt.NDArray[np.int64]:
        """The first tokens of the windows `position` to `position + count` of the endless sequence of epochs."""
        parts = []
        while count:
            epoch, offset = divmod(position, self.epoch_length)
            part = epoch_starts(self, epoch)[offset : offset + count]
            parts.append(part)
            position, count = position + len(part), count - len(part)
        return np.concatenate(parts)


@lru_cache(maxsize=2)
def epoch_starts(sampler: Sampler, epoch: int) -> npt.NDArray[np.int64]:
    """The first tokens of one epoch's windows, in the order in which they are dealt."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([sampler.seed, epoch])))
    slack = sampler.n_tokens - 1 - sampler.epoch_length * sampler.max_seq_len
    offset = int(generator.integers(0, slack + 1))
    return offset + generator.permutation(sampler.epoch_length).astype(np.int64) * sampler.max_seq_len


class DataLoader:
    """Batches of windows. With a seed: shuffled, without end. Without: every token once, in order.

    position: windows dealt so far, which a checkpoint stores and a resumed run starts from.
    """

    def __init__(self, dataset: WindowDataset, batch_size: int, seed: int | None = None, position: int = 0) -> None:
        self.dataset, self.batch_size, self.seed, self.position = dataset, batch_size, seed, position
        self.sampler = None if seed is None else Sampler(len(dataset.ids), dataset.max_seq_len, seed)

    def __len__(self) -> int:
        """Batches in one pass over the tokens."""
        windows = len(self.dataset.tiles()) if self.sampler is None else self.sampler.epoch_length
        return -(-windows // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self.sampler is None:
            tiles = self.dataset.tiles()
            for first in range(0, len(tiles), self.batch_size):
                yield self.dataset.batch(tiles[first : first + self.batch_size])
            return
        while True:
            starts = self.sampler.starts(self.position, self.batch_size)
            self.position += self.batch_size
            yield self.dataset.batch(starts)
