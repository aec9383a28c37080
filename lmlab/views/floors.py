"""Figures of the floor: loss by position in the window, and loss above the floor against compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lmlab import words
from lmlab.views.curves import smooth
from lmlab.views.figure import new_figure, style
from lmlab.views.html import View, element, escape, page, table
from lmlab.views.theme import DIM, LIGHT_SERIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
SPAN = 6  # positions over which a curve by position is smoothed

COLUMNS = {
    "run": "Run", "parameters": "Parameters", "tokens": "Tokens", "flops": "FLOPs", "loss": "Validation loss",
    "law": "The law says", "use": "",
}  # fmt: skip
NUMBERS = ("parameters", "tokens", "flops", "loss", "law")


def positions_figure(losses_T: Floats, floors_T: Floats) -> Figure:
    """The mean loss at every position of the window and the floor there; the gap between them is shaded."""
    positions = np.arange(1, len(losses_T) + 1)
    with style():
        figure = new_figure()
        axes = figure.subplots()
        for values, colour, title in (
            (losses_T, LIGHT_SERIES[0], "the model"),
            (floors_T, DIM, "the floor: what can be known"),
        ):
            axes.plot(positions, values, color=colour, linewidth=0.8, alpha=0.3)
            axes.plot(positions, smooth(positions, values, SPAN), color=colour, linewidth=1.8, label=title)
        axes.fill_between(
            positions, smooth(positions, floors_T, SPAN), smooth(positions, losses_T, SPAN),
            color=LIGHT_SERIES[0], alpha=0.08, linewidth=0,
        )  # fmt: skip
        axes.set_xlim(1, len(losses_T))
        axes.set_ylim(0, None)
        axes.set_xlabel("position in the window (tokens)")
        axes.set_ylabel("loss (nats per token)")
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def power_law_figure(
    flops: Sequence[float], losses: Sequence[float], floor: float, law: Callable[[float], float]
) -> Figure:
    """Loss above the floor against compute on logarithmic axes. law: through all points but the last, drawn up to it."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    above = np.array(losses) - floor
    reach = np.geomspace(flops[0] / 1.3, flops[-1] * 1.3, 100)
    with style():
        figure = new_figure()
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.plot(
            reach, [law(c) - floor for c in reach], color=DIM, linestyle=(0, (5, 4)), linewidth=1.4, label="power law"
        )
        marks: dict[str, Any] = {"linestyle": "", "markersize": 8}
        axes.plot(flops[:-1], above[:-1], marker="o", color=LIGHT_SERIES[0], label="fitted", **marks)
        axes.plot(
            flops[-1:], [law(flops[-1]) - floor], marker="o", color=LIGHT_SERIES[1], markerfacecolor="white",
            markeredgewidth=1.8, label="predicted", **marks,
        )  # fmt: skip
        axes.plot(flops[-1:], above[-1:], marker="o", color=LIGHT_SERIES[1], label="measured", **marks)
        low, high = above.min() / 1.25, above.max() * 1.25
        axes.set_ylim(low, high)
        levels = [v for power in range(-4, 3) for m in (1, 1.5, 2, 3, 5, 7) if low <= (v := m * 10.0**power) <= high]
        axes.set_yticks(levels)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words.three_digits(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(visible=False, which="minor")
        axes.set_xlabel("compute (FLOPs)")
        axes.set_ylabel(f"loss above the floor of {floor:.3f}")
        figure.legend(loc="outside upper left", ncols=4)
    return figure


def scaling_table(rows: Sequence[Mapping[str, str]], note: str) -> View:
    """The runs of a power law, one a row, and the verdict below."""
    cells = [{key: escape(value) for key, value in row.items()} for row in rows]
    view = page(table(COLUMNS, cells, NUMBERS), element("div", escape(note), "lm-dim"))
    return View(view, f"{words.text_table(COLUMNS, rows, NUMBERS)}\n{note}")
