"""How close a model comes to what can be known of the storybook, and how its loss falls as compute grows.

The floor of the built-in corpus is computed, not fitted, so a power law above it has two parameters only.
T positions in a window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lmlab import storybook, words
from lmlab.batches import load_batches
from lmlab.comparison import check_completed, final_loss
from lmlab.config import ConfigLike, TrainingConfig
from lmlab.data import IGNORED, DataLoader, load_text
from lmlab.errors import UsageError
from lmlab.evaluate import losses_by_position
from lmlab.history import as_mapping
from lmlab.lab import Run
from lmlab.study import Given, read_now, whole_sweep
from lmlab.tokenizers import Tokenizer
from lmlab.views import floors
from lmlab.views.figure import figure_html
from lmlab.views.html import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]


# --- by position ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Positions:
    """The mean loss at each position of the window, and the floor there, in nats per token. Both T long.

    The floor knows each story from its beginning, the model only what its window holds: where the window is still
    short, the model lacks context as well as skill.
    """

    losses_T: Floats
    floors_T: Floats

    @property
    def gaps_T(self) -> Floats:
        """How far the model is from what can be known, at each position."""
        return self.losses_T - self.floors_T

    def gap(self, first: int, last: int) -> float:
        """The mean gap over positions `first` (from 1) to `last`, both included."""
        return float(self.gaps_T[first - 1 : last].mean())

    def figure(self) -> Figure:
        """Loss and floor over the position in the window."""
        return floors.positions_figure(self.losses_T, self.floors_T)

    def _repr_html_(self) -> str:
        return figure_html(self.figure())

    def __repr__(self) -> str:
        third = max(len(self.losses_T) // 3, 1)
        return (
            f"above the floor: {self.gap(1, third):.3f} nats in the first third of the window, "
            f"{self.gap(len(self.losses_T) - third + 1, len(self.losses_T)):.3f} in the last"
        )


def by_position(run: Given, data: str | Path | None = None) -> Positions:
    """A run's validation loss at each position of the window, against the floor there.

    data: the run's text, None where it still lies where it was. Raises UsageError where it is not the storybook, and
    where the run has no log.
    """
    run = read_now(run)
    path = as_mapping(run.start.get("data")).get("path") if data is None else data
    if path is None or not run.config:
        raise UsageError(
            f"the run {run.title} has no log that says what it was trained on: `lab.run` and `lab.resume` write one, "
            "`lab.build(…).fit()` does not"
        )
    adapter, tokenizer = run.load()
    config = TrainingConfig.from_dict(run.config)
    corpus = load_text(path)
    if not corpus.is_storybook:
        raise UsageError(f"the floor of {corpus.path} is not known; train on the storybook, the corpus without --data")
    val = load_batches(config, corpus, tokenizer, seed=0).val
    if val is None:
        raise UsageError("there is no validation text to look at; lower train_ratio or give more text")
    return Positions(losses_by_position(adapter, val).numpy(), floors_by_position(tokenizer, val))


def floors_by_position(tokenizer: Tokenizer, loader: DataLoader) -> Floats:
    """Mean -ln p under the grammar of the targets at each position of a loader's windows, floors_T.

    Raises UsageError where the tokens are not pieces of the text.
    """
    ids = loader.dataset.ids.tolist()
    piece_of = {i: tokenizer.decode([i]) for i in set(ids)}
    text = tokenizer.decode(ids)
    lengths = np.array([len(piece_of[i]) for i in ids])
    if "".join(piece_of[i] for i in ids) != text or not lengths.all():
        raise UsageError(f"tokens of {tokenizer.identifier} are no pieces of text by themselves; use characters")
    nats = -np.array(storybook.log_probability_by_character(text))
    of_token = np.add.reduceat(nats, np.concatenate([[0], np.cumsum(lengths)[:-1]]))
    next_T = np.arange(loader.dataset.max_seq_len) + (loader.dataset.begin_id is None)
    total_T, count_T = np.zeros(loader.dataset.max_seq_len), np.zeros(loader.dataset.max_seq_len)
    for batch in loader:
        counted_BT = (batch.targets_BT != IGNORED).numpy()
        at_BT = batch.windows_B.numpy()[:, None] + next_T
        total_T += np.where(counted_BT, of_token[np.minimum(at_BT, len(of_token) - 1)], 0.0).sum(axis=0)
        count_T += counted_BT.sum(axis=0)
    return np.asarray(total_T / count_T, dtype=np.float64)


# --- loss against compute -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PowerLaw:
    """loss(C) = floor + scale · C^-exponent, C in FLOPs (the form of Hoffmann et al. 2022, in one variable)."""

    floor: float
    scale: float
    exponent: float

    def __call__(self, flops: float) -> float:
        """The loss in nats per token that the law expects of that compute."""
        return self.floor + self.scale * flops**-self.exponent

    def __str__(self) -> str:
        return f"{self.floor:.3f} + {words.three_digits(self.scale)} · C^-{self.exponent:.3f}"


def fit_power_law(flops: Sequence[float], losses: Sequence[float], floor: float = 0.0) -> PowerLaw:
    """The law above a known floor through points (C, loss): least squares of ln(loss - floor) over ln C.

    Raises UsageError for fewer than two different computes, and where a loss is not above the floor.
    """
    c, above = np.asarray(flops, dtype=np.float64), np.asarray(losses, dtype=np.float64) - floor
    if len(set(flops)) < 2 or len(c) != len(above):
        raise UsageError(f"{len(c)} computes and {len(above)} losses make no power law; give two different points")
    if not (np.isfinite(above).all() and (above > 0).all()):
        raise UsageError(f"losses {[round(loss, 4) for loss in losses]} are not all above the floor {floor:.4f}")
    slope, intercept = np.polyfit(np.log(c), np.log(above), 1)
    return PowerLaw(floor, math.exp(intercept), -float(slope))


@dataclass(frozen=True)
class Scaling:
    """Runs of growing size, the law through all but the last, and what it says of the last. Shows itself."""

    runs: list[Run]
    flops: list[float]
    losses: list[float]
    law: PowerLaw

    @property
    def predicted(self) -> float:
        """The last run's loss as the law of the others expects it."""
        return self.law(self.flops[-1])

    @property
    def measured(self) -> float:
        """The last run's loss."""
        return self.losses[-1]

    @property
    def error(self) -> float:
        """Predicted less measured, nats per token."""
        return self.predicted - self.measured

    @property
    def score(self) -> float:
        """How much of the way from the largest fitted run's loss down to the last one's was foreseen: 1 is exact, 0 no
        better than expecting no change, less than 0 worse than that, NaN where there was no way to go."""
        way = abs(self.losses[-2] - self.measured)
        return 1 - abs(self.error) / way if way > 0 else math.nan

    def table(self) -> View:
        """Size, compute, measured and expected loss of every run."""
        rows = [
            {
                "run": run.title,
                "parameters": words.count(run.model.get("n_parameters")),
                "tokens": words.count(run.tokens),
                "flops": f"{flops:.2e}",
                "loss": words.loss(loss),
                "law": words.loss(self.law(flops)),
                "use": "predicted" if run is self.runs[-1] else "fitted",
            }
            for run, flops, loss in zip(self.runs, self.flops, self.losses, strict=True)
        ]
        return floors.scaling_table(rows, repr(self))

    def figure(self) -> Figure:
        """Loss above the floor against compute, both on logarithmic axes, where a power law is a straight line."""
        return floors.power_law_figure(self.flops, self.losses, self.law.floor, self.law)

    def _repr_html_(self) -> str:
        return figure_html(self.figure()) + self.table().html

    def __repr__(self) -> str:
        return (
            f"loss(C) = {self.law}; predicted {self.predicted:.4f}, measured {self.measured:.4f} "
            f"({self.error:+.4f}), score {self.score:.2f}"
        )


def flops_of(run: Run) -> float:
    """The floating-point operations of a run's training: its tokens times what one costs its model."""
    adapter, _ = run.load()
    return run.tokens * adapter.flops_per_token(TrainingConfig.from_dict(run.config).max_seq_len)


def scaling_law(
    config: ConfigLike = None,
    sizes: Sequence[Mapping[str, Any]] = (),
    data: str | Path | None = None,
    **arguments: Any,
) -> Scaling:
    """Train one run of each size, fit a power law above the floor to all but the last, and let it predict the last.

    sizes: what each run overrides in the config, in order of compute. Further arguments as for `lab.run`. Raises
    UsageError for fewer than three sizes, where the corpus has no known floor, and where a run does not complete.
    """
    if len(sizes) < 3:
        raise UsageError(f"{len(sizes)} sizes are too few: two to fit a law, and one more to predict; give 3 or more")
    return law_of(whole_sweep(config, sizes, data, **arguments))


def law_of(runs: Sequence[Given]) -> Scaling:
    """The same for runs that are there already, in order of compute."""
    read = [read_now(run) for run in runs]
    check_completed(read)
    losses = [loss for run in read if (loss := final_loss(run)) is not None]
    floor = read[-1].loss_floor
    if floor is None or len(losses) < len(read):
        raise UsageError("a law above the floor needs runs on the storybook that were evaluated; set eval_cadence")
    if any(run.loss_floor != floor for run in read):
        raise UsageError("the runs were evaluated on different parts of the text; set eval_batches to null for all")
    flops = [flops_of(run) for run in read]
    return Scaling(read, flops, losses, fit_power_law(flops[:-1], losses[:-1], floor))
