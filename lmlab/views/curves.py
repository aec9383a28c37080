"""Series made ready to draw: smoothed, thinned, ranged, with round ticks."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_POINTS = 400
LARGEST_DRAWN = 1e30  # beyond it a value counts as not finite: differences of such numbers overflow
LARGEST_EXPONENT = 30.0  # of the weights within a block of `smooth`; e^30 loses no digits that matter


def smooth(steps: NDArray[np.int64], values: Floats, span: float) -> Floats:
    """The exponential moving average with bias correction, the weight of a value decaying with its age in steps.

    span: as pandas' `ewm(span)`, so that the weights' centre of mass is (span - 1) / 2 steps back; 1 or less smooths
    nothing. Steps need not be evenly spaced. A value that is not finite has no weight.
    """
    if span <= 1 or not len(values):
        return values.copy()
    rate = -math.log((span - 1) / (span + 1))  # of decay, per step
    age = rate * (steps - steps[0]).astype(np.float64)
    present = np.isfinite(values)
    known = np.where(present, values, 0.0)
    smoothed = np.empty(len(values))
    total = weight = origin = 0.0
    first = 0
    while first < len(values):  # a block at a time, so that e^age stays within a float
        last = max(int(np.searchsorted(age, age[first] + LARGEST_EXPONENT, side="right")), first + 1)
        block = slice(first, last)
        fade = math.exp(origin - age[first])
        growth = np.exp(age[block] - age[first])
        totals = total * fade + np.cumsum(known[block] * growth)
        weights = weight * fade + np.cumsum(present[block] * growth)
        with np.errstate(invalid="ignore", divide="ignore"):
            smoothed[block] = totals / weights
        total, weight, origin = totals[-1] / growth[-1], weights[-1] / growth[-1], float(age[last - 1])
        first = last
    return smoothed


def thin(x: Floats, y: Floats, most: int = MOST_POINTS, *, gaps: bool = False) -> tuple[Floats, Floats]:
    """At most `most` finite points that draw the same picture: the lowest and highest of each bucket of neighbours.

    gaps: keep points that are not finite, where a line breaks; of a bucket that has some, the first and last besides.
    """
    drawn = np.isfinite(x) & (np.abs(y) < LARGEST_DRAWN)
    if not gaps:
        x, y, drawn = x[drawn], y[drawn], drawn[drawn]
    if len(x) <= most:
        return x, y
    low, high = np.where(drawn, y, math.inf), np.where(drawn, y, -math.inf)
    edges = np.linspace(0, len(x), max((most - 2) // 2, 1) + 1).astype(np.int64)
    kept = [0, len(x) - 1]
    for start, end in itertools.pairwise(edges.tolist()):
        kept += [start + int(low[start:end].argmin()), start + int(high[start:end].argmax())]
        if not drawn[start:end].all():
            breaks = np.flatnonzero(~drawn[start:end])
            kept += [start + int(breaks[0]), start + int(breaks[-1])]
    order = np.unique(kept)
    return x[order], y[order]


def span_for(n_points: int) -> int:
    """A smoothing span that calms a curve of that many points without lagging behind its bends."""
    return max(1, min(n_points // 50, 100))


def value_range(series: list[Floats], include: float | None = None) -> tuple[float, float]:
    """Low and high end of an axis for all series. The first spike of a long loss curve may stick out at the top.

    include: a value to be seen, such as a floor. Without any finite value: (0, 1).
    """
    finite = [values[np.abs(values) < LARGEST_DRAWN] for values in series]
    finite = [values for values in finite if len(values)]
    if not finite:
        return 0.0, 1.0
    low = min(float(values.min()) for values in finite)
    high = max(float(np.quantile(values, 0.99) if len(values) > 100 else values.max()) for values in finite)
    if include is not None:
        low, high = min(low, include), max(high, include)
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between low and high, about as many as asked for, 1, 2 or 5 times a power of ten apart."""
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return []
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, min(last, first + 20) + 1)]
