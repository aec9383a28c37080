"""Small charts as inline SVG: a sparkline, and curves with axes. Colours are the theme's, so that they follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmlab import words
from lmlab.views.curves import Floats, thin, ticks, value_range
from lmlab.views.html import element, escape
from lmlab.views.theme import N_COLOURS

WIDTH, HEIGHT = 886, 260  # of a chart
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 26, 30  # margins of a chart, for its labels and, on top, the legend
OVER = 6  # what sticks out at the top is drawn this far above the highest level


@dataclass(frozen=True)
class Line:
    """One curve. colour: an index into the theme's colours. faint: thin and pale; dots: a mark at every point."""

    label: str
    x: Floats
    y: Floats
    colour: int = 0
    faint: bool = False
    dots: bool = False

    @property
    def paint(self) -> str:
        return f"var(--lm-c{self.colour % N_COLOURS})"


@dataclass(frozen=True)
class Frame:
    """Where values land: x and y ranges onto the inside of the margins."""

    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        inner_width, inner_height = self.width - LEFT - RIGHT, self.height - TOP - BOTTOM
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1.0)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1.0)
        return LEFT + inner_width * across, TOP + inner_height * (1 - np.clip(up, -0.1, 1.1))

    def point(self, x: float, y: float) -> tuple[float, float]:
        across, down = self.at(np.array([x]), np.array([y]))
        return float(across[0]), float(down[0])


def path(x: Floats, y: Floats) -> str:
    """A polyline's `points`, to a tenth of a pixel."""
    return " ".join(f"{across:.1f},{down:.1f}" for across, down in zip(x.tolist(), y.tolist(), strict=True))


def sparkline(values: Floats, width: int = 180, height: int = 36, title: str = "") -> str:
    """A curve without axes, its last point marked; empty where no value is finite."""
    x, y = thin(np.arange(len(values), dtype=np.float64), np.asarray(values, dtype=np.float64), most=width)
    if not len(x):
        return ""
    low, high = value_range([y])
    across = 3 + (width - 8) * (x - x[0]) / ((x[-1] - x[0]) or 1.0)
    down = 3 + (height - 6) * (1 - np.clip((y - low) / (high - low), 0, 1))
    paint = "var(--lm-c0)"
    drawn = element("polyline", points=path(across, down), fill="none", stroke=paint, **STROKE)
    dot = element("circle", cx=f"{across[-1]:.1f}", cy=f"{down[-1]:.1f}", r="2.5", fill=paint)
    label = element("title", escape(title)) if title else ""
    return element(
        "svg", label + drawn + dot, width=width, height=height, viewBox=f"0 0 {width} {height}", role="img"
    )  # fmt: skip


STROKE = {"stroke-width": "1.6", "stroke-linejoin": "round", "stroke-linecap": "round"}


def chart(
    lines: Sequence[Line],
    *,
    y_label: str = "",
    x_end: float | None = None,
    floor: float | None = None,
) -> str:
    """Curves with axes, a legend and a few ticks. x_end: where the x axis ends, else at the last point. floor: a level
    that cannot be passed, dashed and labelled. Curves are thinned to what can be seen."""
    drawn = [line for line in lines if len(line.x)]
    if not drawn:
        waiting = element("text", "nothing to draw yet", x=WIDTH // 2, y=HEIGHT // 2, **{"text-anchor": "middle"})
        return element("svg", waiting, width=WIDTH, height=HEIGHT, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    ends = [float(line.x[-1]) for line in drawn] + ([x_end] if x_end else [])
    starts = [float(line.x[0]) for line in drawn]
    frame = Frame(
        WIDTH,
        HEIGHT,
        (min([0.0, *starts]), max(ends, default=1.0) or 1.0),
        value_range([line.y for line in drawn], floor),
    )
    inside = "".join(_curve(line, frame) for line in drawn) + _floor(floor, frame)
    # A nested svg cuts off what sticks out, without an id that two outputs might share.
    window = element(
        "svg", inside, x=LEFT, y=TOP - OVER, width=WIDTH - LEFT, height=HEIGHT - BOTTOM - TOP + OVER + 4,
        viewBox=f"{LEFT} {TOP - OVER} {WIDTH - LEFT} {HEIGHT - BOTTOM - TOP + OVER + 4}", style="overflow:hidden",
    )  # fmt: skip
    content = _axes(frame) + window + _legend(drawn, y_label, frame)
    return element("svg", content, width=WIDTH, height=HEIGHT, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")


def _curve(line: Line, frame: Frame) -> str:
    across, down = frame.at(*thin(line.x, line.y))
    if not len(across):
        return ""
    stroke = STROKE | {"stroke-width": "1", "stroke-opacity": "0.3"} if line.faint else STROKE | {"stroke-width": "2"}
    marks = ""
    if line.dots or len(across) == 1:
        marks = "".join(
            element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="3", fill=line.paint)
            for x, y in zip(across.tolist(), down.tolist(), strict=True)
        )
    return element("polyline", points=path(across, down), fill="none", stroke=line.paint, **stroke) + marks


def _floor(floor: float | None, frame: Frame) -> str:
    if floor is None:
        return ""
    left, level = frame.point(frame.x[0], floor)
    dashed = element(
        "line", x1=f"{left:.1f}", x2=frame.width - RIGHT, y1=f"{level:.1f}", y2=f"{level:.1f}", stroke="var(--lm-dim)",
        **{"stroke-width": "1.2", "stroke-dasharray": "5 4"},
    )  # fmt: skip
    return dashed + element("text", f"floor {floor:.3f}", x=f"{left + 6:.1f}", y=f"{level - 5:.1f}")


def _axes(frame: Frame) -> str:
    parts = []
    base, right = frame.height - BOTTOM, frame.width - RIGHT
    levels = ticks(*frame.y, 4)
    decimals = 0 if len(levels) < 2 or levels[1] - levels[0] >= 1 else 1 if levels[1] - levels[0] >= 0.1 else 3
    for level in levels:
        _, y = frame.point(frame.x[0], level)
        parts.append(element("line", x1=LEFT, x2=right, y1=f"{y:.1f}", y2=f"{y:.1f}", stroke="var(--lm-line)"))
        label = words.count(level) if abs(level) >= 1e5 else f"{level:.{decimals}f}"
        parts.append(element("text", escape(label), x=LEFT - 8, y=f"{y + 4:.1f}", **{"text-anchor": "end"}))
    for position in ticks(*frame.x, 6):
        x, _ = frame.point(position, frame.y[0])
        anchor = "end" if x > right - 20 else "middle"
        parts.append(element("text", words.count(position), x=f"{x:.1f}", y=base + 15, **{"text-anchor": anchor}))
    parts.append(element("line", x1=LEFT, x2=right, y1=base, y2=base, stroke="var(--lm-dim)"))
    parts.append(element("text", "step", x=right, y=base + 28, **{"text-anchor": "end"}))
    return "".join(parts)


def _legend(lines: Sequence[Line], y_label: str, frame: Frame) -> str:
    """Labels at the top right, in the colours of their curves, before the name of what is measured."""
    parts = [element("tspan", escape(line.label), fill=line.paint) for line in lines if line.label]
    return element(
        "text", "\u2003".join([*parts, escape(y_label)]), x=frame.width - RIGHT, y=TOP - 14, **{"text-anchor": "end"}
    )
