"""What the events of a run add up to: series, samples, warnings, progress. Imports no torch.

Events come from a log or from a running trainer, and may be damaged: what is not understood is passed over, and
nothing here raises for what an event holds.
"""

from __future__ import annotations

import math
from array import array
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import LabError, UsageError
from lmlab.events import Event, number

SERIES = (
    "loss", "learning_rate", "grad_norm", "tokens_per_second", "flops_utilization",
    "val_loss", "perplexity", "bits_per_byte",
)  # fmt: skip
AXES = ("step", "tokens", "seconds")
TOKENS_OF_A_STEP = ("batch_size", "gradient_accumulation_steps", "max_seq_len")
NOT_FINITE = ("NaN", "Infinity", "-Infinity")
LARGEST_STEP = 1 << 53

Points = tuple[NDArray[np.int64], NDArray[np.float64]]


class Sample(NamedTuple):
    """A text that the model wrote after update `step`, going on from `prompt`."""

    step: int
    prompt: str
    text: str


class Best(NamedTuple):
    """The lowest validation loss (nats per token) and the step it was reached at."""

    step: int
    loss: float


class _Column:
    """One growing series, 16 bytes a point."""

    def __init__(self) -> None:
        self.steps, self.values = array("q"), array("d")

    def points(self) -> Points:
        return np.array(self.steps, dtype=np.int64), np.array(self.values, dtype=np.float64)


def as_mapping(value: Any) -> dict[str, Any]:
    """`value` if it is a dict, else an empty one: a log may hold anything."""
    return value if isinstance(value, dict) else {}


def as_text(value: Any) -> str:
    """`value` as text; None is empty."""
    return "" if value is None else str(value)


def step_of(event: Event) -> int:
    """The step of an event, -1 where it has none."""
    step = event.get("step")
    return step if type(step) is int and 0 <= step < LARGEST_STEP else -1


def timestamp(event: Event) -> float:
    """The event's time in seconds since 1970, NaN where it cannot be read."""
    try:
        return datetime.fromisoformat(event["time"]).timestamp()
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return math.nan


def tokens_of_a_step(config: dict[str, Any]) -> int:
    """Tokens that one update sees: batch_size × gradient_accumulation_steps × max_seq_len; 0 where not known."""
    factors = ({"gradient_accumulation_steps": 1, **config}.get(name) for name in TOKENS_OF_A_STEP)
    return math.prod(factor if type(factor) is int and 0 <= factor < LARGEST_STEP else 0 for factor in factors)


class History:
    """What the events of a run add up to: `add` takes them one by one, from a log or as a trainer tells them."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.starts: list[Event] = []
        self.ending: Event | None = None
        self.step = 0
        self.seconds = 0.0
        self.warnings: list[str] = []
        self.damaged = 0
        self._samples: list[Sample] = []
        self._hooks: dict[str, list[Event]] = {}
        self._columns: dict[str, _Column] = {}
        self._started_at = math.nan  # timestamp of the last run_start
        self._seconds_before = 0.0  # spent by the starts before it
        self._step_before = 0
        self._tokens_before = 0
        self.tokens_per_step = 0  # of the last start, see `tokens_of_a_step`

    def add(self, event: Event) -> None:
        """Take one event in, of whatever shape; what is not understood is passed over."""
        kind, step = event.get("event"), step_of(event)
        self.step = max(self.step, step)
        if kind == "run_start":
            self._begin(event)
            return
        elapsed = timestamp(event) - self._started_at
        if elapsed >= 0 and self.ending is None:  # not NaN, and the clock was not set back
            self.seconds = max(self.seconds, self._seconds_before + elapsed)
        if kind in ("step", "eval") and step >= 0:
            self._add_numbers(event, step, training=kind == "step")
        elif kind == "sample":
            self._samples.append(Sample(max(step, 0), as_text(event.get("prompt")), as_text(event.get("sample_text"))))
        elif kind == "hook":
            self._hooks.setdefault(as_text(event.get("name")), []).append(event)
        elif kind == "warning":
            self.warnings.append(as_text(event.get("message")))
        elif kind == "run_end":
            self.ending = event

    def _begin(self, event: Event) -> None:
        self._tokens_before, self._step_before = self.tokens, self.step
        self.starts.append(event)
        self.tokens_per_step = tokens_of_a_step(self.config)
        self.ending = None
        self._started_at, self._seconds_before = timestamp(event), self.seconds

    def _add_numbers(self, event: Event, step: int, training: bool) -> None:
        for name, value in event.items():
            if name == "step" or isinstance(value, bool) or not (isinstance(value, int | float) or value in NOT_FINITE):
                continue
            self._append(name, step, number(value))
        if training:
            self._append("seconds", step, self.seconds)
            self._append("tokens", step, float(self.tokens))

    def _append(self, name: str, step: int, value: float) -> None:
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = _Column()
        column.steps.append(step)
        column.values.append(value)

    @property
    def start(self) -> dict[str, Any]:
        """The last `run_start` event; empty before there is one."""
        return self.starts[-1] if self.starts else {}

    @property
    def run_id(self) -> str:
        """The run's id."""
        return as_text(self.start.get("run_id"))

    @property
    def title(self) -> str:
        """What tables and legends call the run."""
        return self.run_id

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config of the last start."""
        return as_mapping(self.start.get("config"))

    @property
    def model(self) -> dict[str, Any]:
        """What `run_start` says of the model: name, id, architecture, parameters, size."""
        return as_mapping(self.start.get("model"))

    @property
    def kind(self) -> str:
        """How the run last started: `new`, `resumed`, `fine-tune` or `branch`."""
        return as_text(self.start.get("kind"))

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """The models this one comes from, oldest first."""
        chain = self.start.get("lineage")
        return [as_mapping(link) for link in chain] if isinstance(chain, list) else []

    @property
    def status(self) -> str:
        """`running`, `completed`, `stopped`, `diverged`, `failed`, `interrupted` (ended without a word) or `empty`."""
        if self.ending is not None:
            return as_text(self.ending.get("status")) or "stopped"
        if self.is_running():
            return "running"
        return "interrupted" if self.starts else "empty"

    def is_running(self) -> bool:
        """Whether a process is training this run. A history told by a trainer runs until its `run_end`."""
        return self.ending is None and bool(self.starts)

    @property
    def max_steps(self) -> int | None:
        """The step at which the run is complete, or None where that is not known."""
        limit = self.config.get("max_steps")
        return limit if type(limit) is int else None

    @property
    def tokens(self) -> int:
        """Tokens seen since the run's first step, over all its starts."""
        return self._tokens_before + max(self.step - self._step_before, 0) * self.tokens_per_step

    @property
    def loss_floor(self) -> float | None:
        """The lowest validation loss that can be expected (built-in corpus), in nats per token, else None."""
        floor = number(self.start.get("loss_floor"))
        return floor if math.isfinite(floor) else None

    @property
    def best(self) -> Best | None:
        """The lowest validation loss and its step, or None before the first evaluation."""
        steps, values = self._columns.get("val_loss", _Column()).points()
        finite = np.isfinite(values)
        if not finite.any():
            return None
        at = int(np.argmin(np.where(finite, values, np.inf)))
        return Best(int(steps[at]), float(values[at]))

    def names(self) -> list[str]:
        """The names of all series that have points."""
        return list(self._columns)

    def series(self, name: str) -> Points:
        """Steps (int64) and values (float64) of a series; both empty where nothing was logged yet.

        `seconds` and `tokens` are there besides the logged ones: spent and seen up to a step, over all starts.
        Raises UsageError for a name that no run has.
        """
        column = self._columns.get(name)
        if column is None and name not in (*SERIES, "seconds", "tokens"):
            there = ", ".join(dict.fromkeys((*self._columns, *SERIES)))
            raise UsageError(f"no series {name!r} in run {self.run_id}; there are: {there}")
        return (column or _Column()).points()

    def last(self, name: str) -> float | None:
        """The newest value of a series, or None where it is empty."""
        column = self._columns.get(name)
        return column.values[-1] if column is not None and column.values else None

    def along(self, steps: NDArray[np.int64], axis: str) -> NDArray[np.float64]:
        """Steps as positions on an axis: `step`, `tokens` or `seconds`. Raises UsageError for another axis."""
        if axis == "step":
            return steps.astype(np.float64)
        if axis not in AXES:
            raise UsageError(f"no axis {axis!r}; there are: {', '.join(AXES)}")
        at, values = self.series(axis)
        return np.asarray(
            np.interp(steps, np.concatenate([[0], at]), np.concatenate([[0.0], values])), dtype=np.float64
        )

    def samples(self) -> list[Sample]:
        """All samples, oldest first."""
        return list(self._samples)

    def hook(self, name: str) -> list[Event]:
        """The events that a research hook wrote, oldest first; empty where it wrote none."""
        return list(self._hooks.get(name, ()))

    def hook_names(self) -> list[str]:
        """The names of the research hooks that wrote events."""
        return list(self._hooks)

    def seconds_left(self) -> float | None:
        """Seconds to `max_steps` at the pace of the last 50 logged steps of this start, None where not known."""
        steps, seconds = self.series("seconds")
        recent = (steps > self._step_before)[-50:]
        steps, seconds = steps[-50:][recent], seconds[-50:][recent]
        if self.max_steps is None or len(steps) < 2 or steps[-1] <= steps[0]:
            return None
        return max(self.max_steps - self.step, 0) * float(seconds[-1] - seconds[0]) / int(steps[-1] - steps[0])

    def to_pandas(self) -> Any:
        """All series as a pandas DataFrame, one row a step. Raises LabError where pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise LabError("to_pandas needs pandas, which is not installed; `pip install pandas`") from error
        columns = {}
        for name in self.names():
            steps, values = self.series(name)
            columns[name] = pandas.Series(dict(zip(steps.tolist(), values.tolist(), strict=True)), dtype="float64")
        return pandas.DataFrame(columns).sort_index().rename_axis("step")
