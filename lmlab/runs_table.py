"""Runs as a table of text, for `list-runs`. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmlab.record import Record
from lmlab.words import one_line, size, text_table

LONGEST_TITLE = 140  # a run's name and its folder's, of 64 characters each
COLUMNS = ("run", "status", "step", "loss", "val_loss", "best", "model", "data", "size", "tags")


def row(run: Record) -> dict[str, Any]:
    """What there is to say of a run in one line, as JSON values."""
    return {
        "run": run.run_id,
        "status": run.status,
        "step": run.step,
        "max_steps": run.max_steps,
        "loss": run.last("loss"),
        "val_loss": run.last("val_loss"),
        "best": run.best.loss if run.best is not None else None,
        "model": run.model.get("model_name") or run.model.get("architecture_type"),
        "data": run.start.get("data", {}).get("path") if isinstance(run.start.get("data"), dict) else None,
        "size_bytes": run.size_bytes,
        "tags": run.tags,
        "notes": run.notes,
        "folder": str(run.folder),
    }


def render(runs: Sequence[Record]) -> str:
    """A table of runs in the order given; a sentence where there are none."""
    if not runs:
        return "no runs yet; start one with: python main.py --max-steps 100"
    lines = (cells({**row(run), "run": run.title}) for run in runs)
    return text_table({name: name for name in COLUMNS}, [dict(zip(COLUMNS, line, strict=True)) for line in lines])


def cells(values: dict[str, Any]) -> tuple[str, ...]:
    """A row's values as they are printed; the last part of a data path is enough to know it by."""
    return (
        one_line(values["run"], LONGEST_TITLE),
        values["status"],
        f"{values['step']}/{values['max_steps'] if values['max_steps'] is not None else '?'}",
        *("" if values[name] is None else f"{values[name]:.4f}" for name in ("loss", "val_loss", "best")),
        one_line(values["model"] or "?", 40),
        one_line(str(values["data"] or "?").rsplit("/", 1)[-1], 30),
        size(values["size_bytes"]),
        one_line(", ".join(values["tags"]), 40),
    )
