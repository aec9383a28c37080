"""A run while it trains: progress, curves and last samples in one output that is replaced in place.

`live_view` draws a history, wherever it comes from; `LiveView` draws what a trainer tells it, `follow` what a log says,
so that a run in this kernel and one in another process look the same.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lmlab import words
from lmlab.console import Console
from lmlab.events import Event, read
from lmlab.history import History
from lmlab.record import LOG, Record
from lmlab.views.cards import pill, speed_of, warnings_of
from lmlab.views.curves import smooth, span_for
from lmlab.views.html import View, bar, element, escape, fact, head, page, quote
from lmlab.views.svg import Line, chart

DRAWS_A_SECOND = 5  # at most, the last one included
REST = 20  # times as long as a drawing took, until the next: drawing is to cost training next to nothing
SHOWN_SAMPLES = 2
LONGEST_SAMPLE = 600

HINTS = {
    "stopped": "Stopped after a whole step and saved: run.resume() goes on bit for bit.",
    "interrupted": "The process ended without a word: resume() goes on from the newest checkpoint.",
    "diverged": "A number was not finite: go back to an earlier checkpoint, or start again, with a lower learning rate.",
}


def live_view(history: History, total_steps: int | None = None) -> View:
    """The live view of a run: status, progress, numbers, curves, samples; in text one line.

    total_steps: where it ends, else the config's `max_steps`.
    """
    status, total = history.status, total_steps or history.max_steps
    left = history.seconds_left() if status == "running" else None
    ending = f"{words.duration(left)} left" if left is not None else f"took {words.duration(history.seconds)}"
    if status == "running" and left is None:
        ending = "starting" if history.step == 0 else ""
    title = pill(status) + element("span", escape(history.run_id), "lm-title lm-mono")
    parts = [
        element("div", element("div", title, "lm-row") + element("span", escape(ending), "lm-dim"), "lm-row lm-spread"),
        bar(history.step / total if total else 0.0),
        element("div", "".join(_facts(history, total)), "lm-facts lm-tight"),
        loss_chart(history, total if status == "running" else None),  # what has ended fills the chart
        *warnings_of(history),
    ]
    for sample in reversed(history.samples()[-SHOWN_SAMPLES:]):
        parts += [
            head(f"Sample at step {sample.step:,}"),
            quote(words.clip(sample.text, LONGEST_SAMPLE), sample.prompt),
        ]
    if status in HINTS:
        parts.append(element("div", escape(HINTS[status]), "lm-dim"))
    text = (
        f"{history.run_id}: {status}, step {words.step_of(history.step, total)}, loss {words.loss(history.last('loss'))}, "
        f"validation loss {words.loss(history.last('val_loss'))}, {ending}"
    )
    return View(page(*parts), text)


def _facts(history: History, total: int | None) -> list[str]:
    best = history.best
    return [
        fact("Step", words.step_of(history.step, total), f"{history.tokens:,} tokens seen"),
        fact("Tokens/s", words.count(speed_of(history)), "median of the last 20 steps"),
        fact("Loss", words.loss(history.last("loss")), "training loss of the last step, nats per token"),
        fact("Validation loss", words.loss(history.last("val_loss")), "nats per token, at the last evaluation"),
        fact("Best", f"{best.loss:.4f} at {best.step:,}" if best else words.DASH, "lowest validation loss"),
        fact("Learning rate", words.learning_rate(history.last("learning_rate"))),
    ]


def loss_chart(history: History, total: int | None = None) -> str:
    """Training loss (every step pale, smoothed strong), validation loss (dots) and the floor as an SVG."""
    steps, losses = history.series("loss")
    at, val_losses = history.series("val_loss")
    x = steps.astype(np.float64)
    span = span_for(int(steps[-1] - steps[0])) if len(steps) else 1
    lines = [
        Line("", x, losses, colour=0, faint=True),
        Line("training", x, smooth(steps, losses, span), colour=0),
        Line("validation", at.astype(np.float64), val_losses, colour=1, dots=True),
    ]
    return chart(lines, y_label="loss, nats per token", x_end=total, floor=history.loss_floor or None)


def kernel_here() -> Any:
    """The IPython kernel that runs in this process, or that it was forked from; None where there is none."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython.get_ipython() if ipython is not None else None, "kernel", None)


def in_notebook() -> bool:
    """Whether this is an IPython kernel, which can show HTML and replace it; a fork of one cannot."""
    kernel = kernel_here()
    process = getattr(getattr(kernel, "session", None), "pid", None)  # that the kernel began in
    return kernel is not None and process in (None, os.getpid())


class Display:
    """One output of a cell that is made at the first view and replaced by every further one."""

    def __init__(self) -> None:
        self._handle: Any = None

    def __call__(self, view: View) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(view, display_id=True)
        else:
            self._handle.update(view)


class Pace:
    """Says when to draw: at most DRAWS_A_SECOND times in any second, one of them kept for the last.

    What comes often is spread evenly, and less often where drawing takes long, as that of a very long run does: see
    `took`. What is rare is drawn at once while there is room.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._drawn: deque[float] = deque(maxlen=DRAWS_A_SECOND - 1)
        self._rest_until = -math.inf

    def due(self, rare: bool = False) -> bool:
        """Whether to draw now; a yes counts as drawn."""
        now = self._clock()
        full = len(self._drawn) == self._drawn.maxlen and now - self._drawn[0] < 1.0
        soon = bool(self._drawn) and now - self._drawn[-1] < 1.0 / (DRAWS_A_SECOND - 1)
        if full or (not rare and (soon or now < self._rest_until)):
            return False
        self._drawn.append(now)
        return True

    def took(self, seconds: float) -> None:
        """Note how long the drawing took that has just ended."""
        self._rest_until = self._clock() + REST * seconds


class LiveView:
    """A listener that shows a trainer's events as they come.

    total_steps: where the run ends, else as its config says. folder: of the run, so that the view of a resumed run
    begins with what it did before. show: called with each `View`; None replaces one output of a notebook's cell.
    """

    def __init__(
        self,
        total_steps: int | None = None,
        folder: Path | str | None = None,
        show: Callable[[View], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps, self.folder = total_steps, folder
        self.history = History()
        self._show = show if show is not None else Display()
        self._clock, self._pace = clock, Pace(clock)

    def __call__(self, event: Event) -> None:
        """Take one event and draw if it is time to; a run's end is always drawn."""
        begins = event.get("event") == "run_start"
        if begins and self.folder is not None:
            self.history = History()
            for earlier in read(Path(self.folder) / LOG):
                self.history.add(earlier)
        if not (begins and self.history.start.get("time") == event.get("time") is not None):  # the log is told first
            self.history.add(event)
        ended = event.get("event") == "run_end"
        if ended or self._pace.due(rare=event.get("event") != "step"):
            self.draw()

    def draw(self) -> None:
        """Show the run as it stands now."""
        began = self._clock()
        self._show(live_view(self.history, self.total_steps))
        self._pace.took(self._clock() - began)


def rest_after(draw: Callable[[], object]) -> float:
    """Draw, and say for how many seconds to rest from drawing then."""
    began = time.monotonic()
    draw()
    return REST * (time.monotonic() - began)


def live_listener(total_steps: int | None = None, folder: Path | str | None = None) -> LiveView | Console:
    """Who shows a run to whoever started it: a live view in a notebook, lines or a progress bar elsewhere."""
    return LiveView(total_steps, folder) if in_notebook() else Console()


def follow(
    record: Record,
    *,
    alive: Callable[[], bool] | None = None,
    show: Callable[[View], object] | None = None,
    every: float | None = None,
) -> Record:
    """Show a run of another process from its log until it ends, and return its record.

    alive: asked whether the run goes on, else its lock is. every: seconds between two looks at the log, more where
    drawing takes long. An interrupt ends the watching, not the run.
    """
    notebook = in_notebook()
    show = show or (Display() if notebook else print)
    every = every or (1.0 / DRAWS_A_SECOND if notebook else 2.0)
    alive = alive or (lambda: record.status == "running")

    def draw() -> None:
        show(live_view(record))

    try:
        rest = rest_after(draw)
        while alive():
            time.sleep(max(every, rest))
            rest = rest_after(draw) if record.refresh() else 0.0
        record.refresh()
        draw()
    except KeyboardInterrupt:
        print(f"no longer watching {record.run_id}; it goes on", file=sys.stderr)
    return record
