"""Figures of runs: curves, comparisons, attention maps, the logit lens. matplotlib loads when one is drawn.

Every function returns a `matplotlib.figure.Figure` of its own, outside of pyplot, so that none stays open: a notebook
shows it, `savefig` saves it. B batch, T time, L layers, H heads.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lmlab import words
from lmlab.errors import UsageError
from lmlab.events import HOOK_EVENT
from lmlab.history import History, step_of
from lmlab.views.curves import LARGEST_DRAWN, Floats, smooth, span_for, thin, value_range
from lmlab.views.figure import colour_map, label, legend_labels, new_figure, style, token_label
from lmlab.views.theme import DIM, INK, LIGHT_SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 4_000  # of a line; more take longer to draw, and look the same
MOST_PANELS = 64  # attention maps on one figure
MOST_LEGEND = 12  # names in a legend; beyond them colours go without
N_LAYERS = ("n_layers", "num_hidden_layers", "num_layers", "n_layer")  # how families of models name it
MOST_TOKEN_LABELS = 40  # beyond them an axis of tokens is numbered
LINES = ("-", "--", ":", "-.")  # of the first runs, one a colour, of the next ones, and so on
MARKS = ("", "s", "^", "D", "v", "P")  # of the first 24 runs, of the next ones, and so on
HEAT = ("#ffffff", "#fdd9c4", "#f39a6b", "#d9541e", "#8a2d0c")
BLUES = ("#ffffff", "#d3e2fa", "#7ba6ea", "#2667d8", "#123a80")

TITLES = {
    "loss": "training loss (nats per token)",
    "val_loss": "validation loss (nats per token)",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
    "flops_utilization": "share of peak FLOP/s",
    "perplexity": "validation perplexity",
    "bits_per_byte": "validation bits per byte",
}
DOTTED = ("val_loss", "perplexity", "bits_per_byte")  # measured now and then: a dot for each
FALLING = ("loss", *DOTTED)
BLOWN_UP = 1.5  # times the highest first loss: a run that goes beyond does not set the scale for the others
AXIS_TITLES = {"step": "step", "tokens": "tokens seen"}
UNITS = ((1, "seconds"), (60, "minutes"), (3600, "hours"))  # of time, in seconds


# --- curves ---------------------------------------------------------------------------------------------------------


def curves(
    run: History, names: str | Sequence[str] = ("loss", "val_loss"), *, smoothing: float | None = None
) -> Figure:
    """A run's series over its steps. `loss` and `val_loss` share a panel, with the floor; others get one each.

    smoothing: span in steps of the moving average, 1 for none, None for what suits. Raises UsageError on a name that
    the run does not have.
    """
    return compare([run], names, smoothing=smoothing)


def compare(
    runs: Sequence[History],
    names: str | Sequence[str] = ("loss", "val_loss"),
    *,
    axis: str = "step",
    smoothing: float | None = None,
    noise: float | None = None,
    labels: Sequence[Any] | None = None,
    floor: bool = True,
    zoom: float = 1.0,
) -> Figure:
    """Several runs' series in one figure, a colour or kind of line for each run and a panel for each series.

    axis: `step`, `tokens` or `seconds`. smoothing: as for `curves`. noise: the smallest difference worth believing
    (`smallest_difference`); validation curves get a band of that height, and where two bands overlap the difference
    is not worth believing. labels: text or numbers in place of the run ids. floor: draw the loss floor where runs have
    one. zoom: the share of the x axis to show, from its end: 0.3 looks closely at the last third.
    Series that no run has are passed over, as long as one is left. Raises UsageError on an unknown name or axis.
    """
    labels = legend_labels(labels if labels is not None else [run.title for run in runs])
    if len(labels) != len(runs):
        raise UsageError(f"compare: {len(labels)} labels for {len(runs)} runs; give one for each, or none")
    alone, names = len(runs) == 1, [names] if isinstance(names, str) else names
    measured = [name for name in names if any(len(run.series(name)[0]) for run in runs)]
    panels = _panels(measured or names, shared=alone)
    unit, across = _unit(runs) if axis == "seconds" else (1, AXIS_TITLES.get(axis, axis))
    n_lines = -(-len(labels) // legend_columns(labels))
    with style():
        figure = new_figure(height=0.4 + 0.2 * n_lines + (3.2 if len(panels) == 1 else 2.5) * len(panels))
        rows = figure.subplots(max(len(panels), 1), 1, squeeze=False, sharex=True)[:, 0]
        drawn = [
            [
                _draw(axes, run, name, axis, unit, smoothing, noise if name == "val_loss" else None, **look)
                for index, run in enumerate(runs)
                for place, name in enumerate(here)
                for look in [_look(name, here, labels[index], place if alone else index, alone)]
            ]
            for axes, here in zip(rows, panels, strict=False)
        ]
        end = max((float(x[-1]) for panel in drawn for x, _ in panel if len(x)), default=0.0)
        for axes, here, panel in zip(rows, panels, drawn, strict=False):
            floors = [run.loss_floor for run in runs if floor and run.loss_floor]
            floors = floors if "val_loss" in here or "loss" in here else []
            _draw_floors(axes, floors)
            _frame(axes, panel if alone or here[0] not in FALLING else _in_scale(panel), floors, zoom, end)
            axes.set_ylabel("loss (nats per token)" if len(here) > 1 else TITLES.get(here[0], label(here[0])))
        _finish(figure, list(rows), axis, across, noise)
    return figure


def _unit(runs: Sequence[History]) -> tuple[float, str]:
    """The seconds in the unit of a time axis, and its title: the largest unit of which the longest run takes two."""
    longest = max((run.seconds for run in runs), default=0.0)
    seconds, name = next((unit for unit in reversed(UNITS) if longest >= 2 * unit[0]), UNITS[0])
    return seconds, f"time ({name})"


def _panels(names: Sequence[str], shared: bool) -> list[list[str]]:
    losses = [name for name in names if name in ("loss", "val_loss")]
    if not shared or not losses:
        return [[name] for name in names]
    return [losses] + [[name] for name in names if name not in losses]


def _look(name: str, panel: Sequence[str], run_label: str, colour: int, alone: bool) -> dict[str, Any]:
    title = run_label
    if alone:
        title = {"loss": "training", "val_loss": "validation"}.get(name, "") if len(panel) > 1 else ""
    turn, colour = divmod(colour, len(LIGHT_SERIES))
    turns, kind = divmod(turn, len(LINES))
    look = {"colour": LIGHT_SERIES[colour], "line": LINES[kind], "mark": MARKS[turns % len(MARKS)]}
    return {**look, "title": title or None, "raw": 0.25 if alone else 0.12}


def _draw(
    axes: Axes,
    run: History,
    name: str,
    axis: str,
    unit: float,
    smoothing: float | None,
    noise: float | None,
    *,
    colour: str,
    line: str,
    mark: str,
    title: str | None,
    raw: float,
) -> tuple[Floats, Floats]:
    """Draw one series of one run, thinned; returns all of it, x and y."""
    steps, values = run.series(name)
    x = run.along(steps, axis) / unit
    values = np.where(np.abs(values) < LARGEST_DRAWN, values, np.nan)
    thin_x, thin_values = thin(x, values, MOST_POINTS, gaps=True)
    if name in DOTTED:
        if noise:
            band = thin_values - noise / 2, thin_values + noise / 2
            axes.fill_between(thin_x, *band, color=colour, alpha=0.16, linewidth=0)
        marks: dict[str, Any] = {"marker": mark or "o", "markersize": 4.5, "markeredgecolor": "white"}
        marks |= {"markeredgewidth": 0.8, "zorder": 3}
        axes.plot(thin_x, thin_values, color=colour, linestyle=line, linewidth=1.5, label=title, **marks)
        reach = (noise or 0.0) / 2
        return np.tile(x, 2), np.concatenate([values - reach, values + reach])
    span = smoothing if smoothing is not None else span_for(int(np.ptp(steps)) if len(steps) else 0)
    calm = values if name == "learning_rate" else smooth(steps, values, span)
    if calm is not values and span > 1:
        axes.plot(thin_x, thin_values, color=colour, linewidth=0.8, alpha=raw)
    marks = {"marker": mark, "markevery": 0.1, "markersize": 4}
    axes.plot(*thin(x, calm, MOST_POINTS, gaps=True), color=colour, linestyle=line, linewidth=1.8, label=title, **marks)
    return x, values


def _in_scale(drawn: Sequence[tuple[Floats, Floats]]) -> list[tuple[Floats, Floats]]:
    """What sets the scale of several runs' losses: of one that blew up, points up to the highest first loss alone."""
    firsts = [finite[0] for _, y in drawn if len(finite := y[np.isfinite(y)])]
    start = max(firsts, default=0.0)
    blown_up = [value_range([y])[1] > BLOWN_UP * start for _, y in drawn]
    return [(x, np.where(y > start, np.nan, y) if far else y) for (x, y), far in zip(drawn, blown_up, strict=True)]


def _draw_floors(axes: Axes, levels: Sequence[float]) -> None:
    for level in sorted(set(levels)):
        axes.axhline(level, color=DIM, linewidth=1.1, linestyle=(0, (5, 4)))
        axes.annotate(
            f"floor {level:.3f}", (0, level), (5, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
            color=DIM, fontsize=8.5,
        )  # fmt: skip


def _frame(
    axes: Axes, drawn: Sequence[tuple[Floats, Floats]], floors: Sequence[float], zoom: float, end: float
) -> None:
    """Set the limits of both axes: to the last share `zoom` of x, and to what is to be seen there of y.

    end: of x, which all panels share, one with shorter series too."""
    start = end * (1 - min(max(zoom, 0.01), 1.0))
    if end > 0:
        axes.set_xlim(start, end + 0.02 * (end - start))
    axes.set_ylim(*value_range([y[x >= start] for x, y in drawn], min(floors, default=None) if zoom >= 1 else None))


def _finish(figure: Figure, rows: Sequence[Axes], axis: str, across: str, noise: float | None) -> None:
    """Ticks in words, and one legend above all panels."""
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    last = rows[-1]
    last.set_xlabel(across)
    last.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=axis != "seconds"))
    if axis != "seconds":
        last.xaxis.set_major_formatter(FuncFormatter(functools.partial(_counted, last.xaxis)))
    for row in rows:
        levels = row.get_yticks()
        if len(levels) and max(abs(level) for level in levels) < 1e-2:
            row.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words.learning_rate(value)))
        elif len(levels) and max(abs(level) for level in levels) >= 1e4:
            row.yaxis.set_major_formatter(FuncFormatter(functools.partial(_counted, row.yaxis)))
    handles, titles = rows[0].get_legend_handles_labels()
    if noise:
        handles.append(Patch(color=DIM, alpha=0.25, linewidth=0))
        titles.append(f"bands that overlap: noise (below {noise:.3f})")
    if handles:
        figure.legend(handles, titles, loc="outside upper left", ncols=min(len(handles), legend_columns(titles)))


def _counted(axis: Any, value: float, _: object) -> str:
    """A tick as a count, in as many digits as the ticks of its axis need."""
    return words.count(value, words.digits_of(axis.get_majorticklocs()))


def legend_columns(titles: Sequence[str]) -> int:
    """How many entries of a legend stand side by side."""
    longest = max(map(len, titles), default=0)
    return 4 if longest < 24 else 2 if longest < 48 else 1


# --- inside the model -----------------------------------------------------------------------------------------------


def state_name(index: int) -> str:
    """What a state of the residual stream is called: the embedding, which is the first, then each block from 1 on."""
    return str(index) if index else "embedding"


def attention_figure(
    probabilities_LHTT: NDArray[Any],
    tokens: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Figure:
    """Attention maps, a row for each layer and a column for each head: which earlier token (across) each token (down)
    looks at. probabilities_LHTT: rows sum to 1. layers, heads: which to show, else all; layers count from 1, as in all
    views, heads from 0. Raises UsageError where the shapes do not fit the tokens, there is no such layer or head, or there
    are too many maps for one figure.
    """
    maps = np.asarray(probabilities_LHTT, dtype=np.float64)
    if maps.ndim != 4 or maps.shape[2] != maps.shape[3] or maps.shape[2] != len(tokens):
        raise UsageError(f"attention of shape {maps.shape} does not fit {len(tokens)} tokens; it is (L, H, T, T)")
    layers = _chosen("layers", layers, range(1, maps.shape[0] + 1))
    heads = _chosen("heads", heads, range(maps.shape[1]))
    if not 0 < len(layers) * len(heads) <= MOST_PANELS:
        raise UsageError(
            f"{len(layers)} layers × {len(heads)} heads: show 1 to {MOST_PANELS} maps; choose layers and heads"
        )
    with style():
        size = min(2.6, 11.0 / len(heads))
        figure = new_figure(0.9 + size * len(heads), 0.5 + size * len(layers), layout="compressed")
        grid = figure.subplots(len(layers), len(heads), squeeze=False)
        for (row, layer), (column, head) in itertools.product(enumerate(layers), enumerate(heads)):
            axes = grid[row, column]
            image = axes.imshow(maps[layer - 1, head], cmap=colour_map(BLUES), vmin=0, vmax=1, interpolation="nearest")
            axes.grid(visible=False)
            if row == 0:
                axes.set_title(f"head {head}", fontsize=9)
            if column == 0:
                axes.set_ylabel(f"layer {layer}")
            _label_tokens(axes, tokens, size, below=row == len(layers) - 1, beside=column == 0)
        figure.colorbar(image, ax=grid, label="attention", shrink=1 / len(layers) ** 0.5, aspect=18, pad=0.02)
    return figure


def _chosen(what: str, chosen: Sequence[int] | None, there: range) -> list[int]:
    """Those that are chosen of what there is, all where none are. Raises UsageError."""
    if chosen is not None and not set(chosen) <= set(there):
        raise UsageError(
            f"there are no {what} {sorted(set(chosen) - set(there))}; choose from {there[0]} to {there[-1]}"
        )
    return list(there if chosen is None else chosen)


def lens_figure(
    guesses_LT: Sequence[Sequence[str]],
    probabilities_LT: NDArray[Any],
    tokens: Sequence[str],
    *,
    hits_LT: np.ndarray | None = None,
) -> Figure:
    """The logit lens: what the model would say next after each layer (the last on top) at each token.

    guesses_LT: the likeliest next token by layer and position, first after the embedding. probabilities_LT: the shade
    of each cell, the probability of that guess, or of the true next token. tokens: what was read, below. hits_LT:
    whether a guess is the true next token, as far as that is known; those are set bold. Raises UsageError where the
    shapes do not fit.
    """
    shades = np.asarray(probabilities_LT, dtype=np.float64)
    names = [state_name(index) for index in range(len(guesses_LT))]
    if shades.shape != (len(guesses_LT), len(tokens)):
        raise UsageError(f"a lens of shape {shades.shape} does not fit {len(guesses_LT)} layers × {len(tokens)} tokens")
    with style():
        longest = max((len(token_label(guess)) for row in guesses_LT for guess in row), default=1)
        cell = min(max(0.26, 0.085 * longest + 0.14), 1.0)
        figure = new_figure(min(max(1.6 + cell * len(tokens), 4.0), 24.0), 0.9 + 0.3 * len(names))
        axes = figure.subplots()
        image = axes.imshow(shades, cmap=colour_map(HEAT), vmin=0, vmax=1, aspect="auto", origin="lower")
        axes.grid(visible=False)
        for layer, row in enumerate(guesses_LT):
            for position, guess in enumerate(row):
                hit = hits_LT is not None and position < hits_LT.shape[1] and bool(hits_LT[layer, position])
                axes.text(
                    position, layer, token_label(guess), ha="center", va="center", fontsize=8,
                    color="white" if shades[layer, position] > 0.55 else INK, fontweight="bold" if hit else "normal",
                )  # fmt: skip
        axes.set_yticks(range(len(names)), [label(name) for name in names])
        axes.set_ylabel("after layer")
        axes.set_xticks(range(len(tokens)), [token_label(token) for token in tokens])
        axes.set_xlabel("token read" + (" (bold: the guess is right)" if hits_LT is not None else ""))
        figure.colorbar(image, ax=axes, label="probability", pad=0.01, aspect=12)
    return figure


def hook_figure(run: History, name: str) -> Figure:
    """What a research hook measured, over the steps: a panel for each quantity, a curve for each number in it, coloured
    by its first index, which is the layer where there are layers, counted from 1. Where there is a number more than
    layers, the first is of the embedding.

    Raises UsageError where the run has no events of that hook.
    """
    events = run.hook(name)
    if not events:
        there = ", ".join(run.hook_names()) or "none"
        raise UsageError(f"run {run.run_id} has no events of the hook {name!r}; there are: {there}")
    found: dict[str, dict[tuple[str, ...], list[tuple[int, float]]]] = {}
    for event in events:
        for key, value in event.items():
            if key not in HOOK_EVENT:
                for path, number in _numbers(value):
                    found.setdefault(key, {}).setdefault(path, []).append((step_of(event), number))
    n_layers = next((run.model[key] for key in N_LAYERS if key in run.model), None)
    with style():
        figure = new_figure(height=0.6 + 2.6 * max(len(found), 1))
        rows = figure.subplots(max(len(found), 1), 1, squeeze=False, sharex=True)[:, 0]
        for axes, (key, parts) in zip(rows, found.items(), strict=False):
            _draw_parts(axes, parts, name == "activation_stats", n_layers)
            axes.set_ylabel(label(key))
        rows[-1].set_xlabel("step")
    return figure


def _draw_parts(
    axes: Axes, parts: Mapping[tuple[str, ...], Sequence[tuple[int, float]]], of_states: bool, n_layers: Any
) -> None:
    """A curve for each part. of_states: the first is of the embedding, as it is where the last index is `n_layers`."""
    groups = list(dict.fromkeys(path[:1] for path in parts))
    colours = colour_map(("#7ba6ea", "#2667d8", "#9440c2", "#d9541e"))
    numbered = all(group and group[0].isdecimal() and len(group[0]) < 6 for group in groups)
    titles = [group[0] if group else "" for group in groups]
    if numbered:
        indices = [int(title) for title in titles]
        of_states = of_states or max(indices) == n_layers
        titles = [state_name(index) if of_states else str(index + 1) for index in indices]
    titles = legend_labels(titles, 24) if all(groups) and len(groups) <= MOST_LEGEND else []
    named: set[tuple[str, ...]] = set()
    for path, points in parts.items():
        at = groups.index(path[:1])
        title = titles[at] if titles and path[:1] not in named else None
        named.add(path[:1])
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colours(at / max(len(groups) - 1, 1)), linewidth=1.4, label=title)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="layer" if numbered else None)


def _numbers(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """All finite numbers in nested lists and dicts, each with the keys that lead to it."""
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is not None:
        for key, item in items:
            yield from _numbers(item, (*path, str(key)))
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST_DRAWN:
        yield path, float(value)


def _label_tokens(axes: Axes, tokens: Sequence[str], size: float, *, below: bool, beside: bool) -> None:
    """Name the tokens along the outer edges of a grid of maps, where there is room; else number them."""
    if len(tokens) > MOST_TOKEN_LABELS * size / 2.6:
        axes.tick_params(labelbottom=below, labelleft=beside, labelsize=7)
        return
    names = [token_label(token) for token in tokens]
    fontsize = max(5.0, min(9.0, 62 * size / len(tokens)))
    upright = all(len(name) <= 1 for name in names)
    places = range(len(names))
    axes.set_xticks(places, names if below else [""] * len(names), rotation=0 if upright else 90, fontsize=fontsize)
    axes.set_yticks(places, names if beside else [""] * len(names), fontsize=fontsize)
