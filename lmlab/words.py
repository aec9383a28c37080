"""Values in words: counts, sizes, durations and losses as people read them, and plain tables of them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DASH = "–"


def count(value: float | None, digits: int = 3) -> str:
    """A count in three digits, or in more: 950, 12.4k, 3.21M, 1.5B."""
    if value is None or not math.isfinite(value):
        return DASH
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale * 0.9995:
            return f"{three_digits(value / scale, digits)}{unit}"
    return three_digits(value, digits)


def digits_of(values: Sequence[float]) -> int:
    """How many digits, from three on, `count` needs for some round values, such as ticks: four for 130k and 129.5k."""
    written = {digits: [count(value, digits) for value in values] for digits in range(3, 16)}
    return next((digits for digits in range(3, 15) if written[digits] == written[digits + 1]), 3)


def three_digits(value: float, digits: int = 3) -> str:
    """Three significant digits, or more, without an exponent or trailing zeros: 12.4, 3.21, 950."""
    if value == 0:
        return "0"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value)) + 1e-12), 0)
    shown = f"{value:.{min(decimals, 12)}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def size(n_bytes: float | None) -> str:
    """Bytes in decimal units: 912 B, 12.8 MB, 1.09 GB."""
    shown = count(n_bytes)
    if shown == DASH:
        return shown
    unit = {"k": " kB", "M": " MB", "B": " GB", "T": " TB"}.get(shown[-1], "")
    return shown[:-1] + unit if unit else f"{shown} B"


def duration(seconds: float | None) -> str:
    """A time span by its two largest units: 2 ms, 0.4 s, 12 s, 3 min 05 s, 2 h 07 min, 4 d 11 h."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if 0 < seconds < 0.05:
        return f"{three_digits(seconds * 1e3)} ms"
    if seconds < 9.95:
        return f"{three_digits(round(seconds, 1))} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def loss(value: float | None) -> str:
    """A loss with four decimals; NaN and infinities by name."""
    return DASH if value is None else f"{value:.4f}"


def learning_rate(value: float | None) -> str:
    """A learning rate as people write it: 3e-4, 0.01, 1.25e-5."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def step_of(step: int, max_steps: int | None) -> str:
    """How far a run is: 1,200 of 10,000."""
    return f"{step:,}" if max_steps is None else f"{step:,} of {max_steps:,}"


def clip(value: str, longest: int) -> str:
    """The first `longest` characters of a text, with an ellipsis where it goes on."""
    return value if len(value) <= longest else value[: longest - 1] + "…"


def plain(value: Any) -> str:
    """Any value of a config or log in a table: null, yes and no, short floats, else as it is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return learning_rate(value) if 0 < abs(value) < 1e-3 else f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return str(value)


def one_line(value: Any, longest: int = 200) -> str:
    """Any value as one line that is safe to print: white space becomes single blanks, control characters `?`."""
    return cell(" ".join(str(value)[: 4 * longest].split()), longest)


def cell(value: Any, longest: int = 200) -> str:
    """`one_line` that keeps runs of blanks, such as the indentation of a tree."""
    line = str(value)[: 4 * longest]
    safe = (" " if c.isspace() else "?" if unicodedata.category(c).startswith("C") else c for c in line)
    return clip("".join(safe), longest)


def text_table(columns: Mapping[str, str], rows: Iterable[Mapping[str, str]], numbers: Sequence[str] = ()) -> str:
    """A table in plain text, aligned as a terminal shows it, where a letter of Chinese is two columns wide.

    columns: key to heading; rows: key to a cell's text; numbers: the keys set flush right.
    """
    from rich.cells import cell_len

    lines = [columns, *({key: cell(row.get(key, DASH)) for key in columns} for row in rows)]
    widths = {key: max(cell_len(line[key]) for line in lines) for key in columns}

    def padded(line: Mapping[str, str], key: str) -> str:
        blanks = " " * (widths[key] - cell_len(line[key]))
        return blanks + line[key] if key in numbers else line[key] + blanks

    return "\n".join("  ".join(padded(line, key) for key in columns).rstrip() for line in lines)
