"""Figures that show themselves in a notebook: style, labels, picture. matplotlib loads when one is made."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lmlab import words
from lmlab.comparison import distinct
from lmlab.views.html import element, escape, page
from lmlab.views.theme import DIM, GRID, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISPLAY_DPI, SHOWN_DPI = 144, 83  # a picture has almost two pixels for each one shown, for fine screens

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": DIM,
    "axes.edgecolor": "#b9c0c9",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": DIM,
    "ytick.color": DIM,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


STYLED = threading.RLock()  # matplotlib's settings are the whole process's


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw in our style within the block, whatever the user's settings are; they come back after it."""
    import matplotlib

    with STYLED, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


@functools.cache
def _figure_type() -> type[Figure]:
    from matplotlib.figure import Figure

    class LabFigure(Figure):
        """A figure that a notebook shows by itself, turned dark in a dark theme."""

        def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
            png = base64.b64encode(figure_png(self)).decode()
            return {"text/html": _html(self, png), "image/png": png, "text/plain": repr(self)}

    return LabFigure


def new_figure(
    width: float = 8.6, height: float = 3.8, layout: Literal["constrained", "compressed"] = "constrained"
) -> Figure:
    """An empty figure, in inches, that shows itself in a notebook and belongs to no window."""
    return _figure_type()(figsize=(width, height), dpi=DISPLAY_DPI, layout=layout)


def figure_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    with style(), io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=DISPLAY_DPI)
        return file.getvalue()


def figure_html(figure: Figure) -> str:
    """The figure as HTML that holds its picture, for a view that has more than the figure in it."""
    return _html(figure, base64.b64encode(figure_png(figure)).decode())


def _html(figure: Figure, png: str) -> str:
    width = round(figure.get_figwidth() * SHOWN_DPI)
    source = f"data:image/png;base64,{png}"
    image = f'<img src="{source}" width="{width}" alt="{escape(figure)}"/>'
    return page(element("div", image, "lm-figure"), wide=True)


@functools.cache
def _drawable() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def label(value: Any, longest: int = 40) -> str:
    """Any text as a label: signs that the font lacks become boxes, and dollars do not start a formula."""
    shown = words.clip(" ".join(str(value).split()), longest)
    return "".join(c if ord(c) in _drawable() else "□" for c in shown).replace("$", r"\$")


def legend_labels(titles: Iterable[Any], longest: int = 64) -> list[str]:
    """Titles as the labels of a legend, no two alike, and none that matplotlib passes over: those with `_` in front."""
    labels = (label(title, longest) for title in titles)
    return distinct(f" {shown}" if shown.startswith("_") else shown for shown in labels)


def token_label(token: str) -> str:
    """A token as a label: blanks and line ends are marked."""
    return label(token.replace("\r", "␍").replace("\n", "↵").replace("\t", "→").replace(" ", "·") or "∅", 12)


def colour_map(stops: Sequence[str]) -> Any:
    """A smooth scale through the given colours, called with 0 to 1."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("lmlab", list(stops))
