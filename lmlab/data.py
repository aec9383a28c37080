"""Text to batches: load, split, cut into windows, deal them out in an order that can be taken up anywhere.

B batch (windows), T window length in tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmlab.corpus import Corpus as Corpus
from lmlab.corpus import LargeCorpus as LargeCorpus
from lmlab.corpus import load_text as load_text
from lmlab.errors import DataError
from lmlab.ranks import World
from lmlab.tokenizers import Ids

IGNORED = -100  # a target that counts for nothing; torch's own default


def split_corpus(ids: Ids, train_ratio: float) -> tuple[Ids, Ids]:
    """The first `train_ratio` of the ids for training, the rest for validation; both are views."""
    cut = int(len(ids) * train_ratio)
    return ids[:cut], ids[cut:]


class Batch(NamedTuple):
    """Windows of tokens. windows_B: the position in the split at which each begins, which names it."""

    inputs_BT: Tensor
    targets_BT: Tensor
    windows_B: Tensor


def own_rows(inputs_BT: Tensor, targets_BT: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """A rank's windows of a batch. One that gets none takes a window none of whose targets count: all must step together."""
    rows = world.share(len(inputs_BT))
    if rows.start == rows.stop:
        return inputs_BT[:1], torch.full_like(targets_BT[:1], IGNORED)
    return inputs_BT[rows], targets_BT[rows]


class WindowDataset:
    """Windows of `max_seq_len` tokens (inputs) with the token that follows each (targets).

    Item i begins at token i. Where the ids end before a window does, it is padded with targets that do not count.
    begin_id: of a model that reads any text from such a token on, which stands before each window in place of its last
    token: the targets are then those that the window itself holds. It is never one. Raises DataError where there are not
    even two tokens.
    """

    def __init__(self, ids: Ids, max_seq_len: int, begin_id: int | None = None) -> None:
        if len(ids) < 2:
            raise DataError(f"{len(ids)} tokens are too few for a window: there must be 2 or more; give more text")
        self.ids, self.max_seq_len, self.begin_id = ids, max_seq_len, begin_id

    def __len__(self) -> int:
        return max(1, len(self.ids) - self.max_seq_len)

    def __getitem__(self, start: int) -> tuple[Tensor, Tensor]:
        if not 0 <= start < len(self):
            raise IndexError(f"window {start} of {len(self)}")
        batch = self.batch(np.array([start]))
        return batch.inputs_BT[0], batch.targets_BT[0]

    @torch.inference_mode(False)  # which a notebook may be in, and whose tensors nothing can be trained on
    def batch(self, starts_B: npt.NDArray[np.int64]) -> Batch:
        """The windows that begin at `starts_B`, fetched in one gather."""
        positions_BT = starts_B[:, None] + np.arange(self.max_seq_len + 1) - (self.begin_id is not None)
        beyond_BT = positions_BT >= len(self.ids)
        ids_BT = torch.from_numpy(self.ids[np.where(beyond_BT, 0, positions_BT)].astype(np.int64))
        inputs_BT, targets_BT = ids_BT[:, :-1].clone(), ids_BT[:, 1:].clone()  # no memory in common, even for B = 1
        if beyond_BT.any():
            targets_BT[torch.from_numpy(beyond_BT[:, 1:])] = IGNORED
        if self.begin_id is not None:
            inputs_BT[:, 0] = self.begin_id
            targets_BT[targets_BT == self.begin_id] = IGNORED
        return Batch(inputs_BT, targets_BT, torch.from_numpy(starts_B))

    def tiles(self) -> npt.NDArray[np.int64]:
        """Starts of windows side by side in which every token is a target once, but for the first without a begin_id."""
        return np.arange(0, len(self.ids) - (self.begin_id is None), self.max_seq_len, dtype=np.int64)


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
    starts = generator.permutation(sampler.epoch_length).astype(np.int64, copy=False)
    starts *= sampler.max_seq_len  # in place: of a large text, there are many millions
    starts += offset
    return starts


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
