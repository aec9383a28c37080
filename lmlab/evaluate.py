"""Evaluation: every token of a split counted once, whatever the size of the batches.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab import storybook
from lmlab.adapters.base import BaseAdapter
from lmlab.config import TrainingConfig
from lmlab.corpus import Corpus, LargeCorpus, is_storybook, storybook_characters
from lmlab.data import IGNORED, DataLoader, own_rows
from lmlab.devices import autocast
from lmlab.events import first_event
from lmlab.history import as_mapping
from lmlab.isolation import on_its_own
from lmlab.memory import evaluated_tokens
from lmlab.modes import in_mode
from lmlab.ranks import ALONE, World
from lmlab.record import LOG
from lmlab.tokenizers import SEPARATOR, Tokenizer

DECODED_AT_ONCE = 1 << 20  # tokens
READ_AT_ONCE = 512  # tokens of one text
LEAK_NATS = 20.0  # a total this far below the entropy of the text cannot be luck: e^-20 is one in 500 million


@dataclass(frozen=True)
class Evaluation:
    """The total loss of a split in nats, and what it is divided by. n_bytes: UTF-8 bytes of the counted tokens."""

    total: float
    n_tokens: int
    n_bytes: int

    @property
    def val_loss(self) -> float:
        """Nats per token."""
        return self.total / self.n_tokens

    @property
    def perplexity(self) -> float:
        """e to the loss: infinity where that is beyond a float."""
        return math.inf if self.val_loss > 709 else math.exp(self.val_loss)

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of text, which compares models whose tokenizers differ."""
        return self.total / math.log(2) / max(1, self.n_bytes)

    def leaks(self, floor_total: float) -> bool:
        """Whether the loss is lower than the text's own -ln p (in nats) allows: the model has seen the answers."""
        return self.total < floor_total - LEAK_NATS


def count_bytes(loader: DataLoader, tokenizer: Tokenizer | None, max_batches: int | None) -> int:
    """UTF-8 bytes of the text of the targets that an evaluation counts; without a tokenizer, one byte a token.

    A token that ends a document counts as the empty line in whose place it stands, and one that begins a text as nothing.
    A million are decoded at a time, document by document, so that a long split needs no memory; where a border parts the
    tokens of one character, it counts a few bytes too many.
    """
    counted = (batch.targets_BT[batch.targets_BT != IGNORED] for batch in itertools.islice(loader, max_batches))
    if tokenizer is None:
        return sum(map(len, counted))
    end, begin = (-1 if mark is None else mark for mark in (tokenizer.end_of_text_id, tokenizer.begin_of_text_id))
    n_bytes, at_once = 0, max(1, DECODED_AT_ONCE // (loader.batch_size * loader.dataset.max_seq_len))
    while group := list(itertools.islice(counted, at_once)):
        ids = torch.cat(group).numpy()
        ends = np.flatnonzero(ids == end)
        n_bytes += len(SEPARATOR) * len(ends)
        for document in np.split(ids, ends):  # as texts: within one, Llama's first word has a blank
            said = document[(document != end) & (document != begin)]
            n_bytes += len(tokenizer.decode(said).encode("utf-8", "replace"))
    return n_bytes


@torch.no_grad()
def evaluate(
    adapter: BaseAdapter,
    loader: DataLoader,
    *,
    n_bytes: int,
    device: torch.device,
    precision: str = "fp32",
    max_batches: int | None = None,
    world: World = ALONE,
) -> Evaluation:
    """Token-weighted loss over a loader, dropout off; the model is left in the mode it was in.

    n_bytes: from `count_bytes`, which needs to be asked once. world: who evaluates together, each a share of every
    batch; all get the whole.
    """
    own_total, n_tokens = 0.0, 0
    with in_mode(adapter, training=False):
        for batch in itertools.islice(loader, max_batches):
            inputs_BT, targets_BT = own_rows(batch.inputs_BT.to(device), batch.targets_BT.to(device), world)
            with autocast(precision, device):
                own_total += float(adapter(inputs_BT, targets_BT, "sum"))
            n_tokens += int((batch.targets_BT != IGNORED).sum())
    if world.alone:  # on any device: Apple's has no float64
        return Evaluation(own_total, n_tokens, n_bytes)
    total = float(world.sum(torch.tensor(own_total, dtype=torch.float64, device=device)))
    return Evaluation(total, n_tokens, n_bytes)


@torch.no_grad()
def token_losses(adapter: BaseAdapter, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """The loss of every target in nats, losses_BT in fp32; 0 where a target does not count. Dropout is off."""
    with in_mode(adapter, training=False):
        logits_BTV = adapter.logits(inputs_BT).float()
    return F.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, ignore_index=IGNORED, reduction="none")


@on_its_own()
@torch.no_grad()
def text_losses(adapter: BaseAdapter, ids_T: Tensor) -> Tensor:
    """The loss of every token of a text in nats but for the first, losses_T in fp32. Dropout is off.

    A long text is read in pieces, each document with a cache of its own, so that memory grows with its length alone.
    """
    inputs_T, targets_T = ids_T[:-1], ids_T[1:]
    if len(inputs_T) <= READ_AT_ONCE:
        return token_losses(adapter, inputs_T[None], targets_T[None])[0]
    ends = [] if adapter.end_of_text_id is None else (inputs_T == adapter.end_of_text_id).nonzero().flatten().tolist()
    losses: list[Tensor] = []
    with in_mode(adapter, training=False):
        for start, stop in itertools.pairwise([0, *(end + 1 for end in ends), len(inputs_T)]):
            cache = adapter.reading_cache(1)
            for at in range(start, stop, READ_AT_ONCE):
                piece = slice(at, min(at + READ_AT_ONCE, stop))
                logits_TV = adapter.logits(inputs_T[None, piece], cache)[0].float()
                losses.append(F.cross_entropy(logits_TV, targets_T[piece], reduction="none"))
    return torch.cat(losses)


@on_its_own()
def losses_by_position(adapter: BaseAdapter, loader: DataLoader) -> Tensor:
    """Mean loss at every position of the window in nats, losses_T: how much more context helps."""
    total_T = torch.zeros(loader.dataset.max_seq_len, dtype=torch.float64)
    count_T = torch.zeros_like(total_T)
    device = next(adapter.parameters()).device
    for batch in loader:
        losses_BT = token_losses(adapter, batch.inputs_BT.to(device), batch.targets_BT.to(device)).cpu()
        total_T += losses_BT.double().sum(dim=0)
        count_T += (batch.targets_BT != IGNORED).sum(dim=0)
    return total_T / count_T


def floor_of(
    corpus: Corpus | LargeCorpus, tokenizer: Tokenizer, val_ids: npt.NDArray[Any], config: TrainingConfig
) -> tuple[float | None, float | None]:
    """The entropy in nats of the validation split, and what of it falls on a token that an evaluation counts.

    None of text whose probability is not known, or which the tokenizer cannot give back, such as one without capitals.
    """
    whole = corpus.text if isinstance(corpus, Corpus) and corpus.is_storybook else ""
    text = tokenizer.decode(val_ids) if whole else ""
    if not text or not whole.endswith(text):
        return None, None
    nats = [-log for log in storybook.log_probability_by_character(text)]
    counted = val_ids[: evaluated_tokens(config, len(val_ids)) + 1]
    return math.fsum(nats), math.fsum(nats[: len(tokenizer.decode(counted))]) / len(counted)


def seen_before(facts: Mapping[str, Any], config: TrainingConfig, runs_dir: Path) -> list[str]:
    """A warning where an ancestor was trained on text that a run is validated on, as far as its run is still there."""
    for link in facts["lineage"] if config.eval_cadence is not None else ():
        run_id = link.get("run_id")
        start = first_event(runs_dir / run_id / LOG) if isinstance(run_id, str) else {}
        ratio = as_mapping(start.get("config")).get("train_ratio")
        if not isinstance(ratio, float):
            continue
        own, before = facts["data"], as_mapping(start.get("data"))
        if is_storybook(own.get("path")) and is_storybook(before.get("path")):  # the shorter one begins the longer one
            end = config.train_ratio * storybook_characters(own["path"])
            trained = ratio * storybook_characters(before["path"])
        elif own.get("sha256") == before.get("sha256"):
            end, trained = config.train_ratio, ratio
        else:
            continue
        if end < trained:
            return [
                f"the validation text begins within what the run {run_id}, from which this model comes, was trained on: "
                "val_loss is not that of unseen text; give other text, or a higher train_ratio"
            ]
    return []
