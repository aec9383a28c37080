"""What one reads of runs and models: cards, tables, differences, samples side by side.

Everything comes from records and registry entries; every string of theirs is escaped.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmlab import words
from lmlab.catalogue import as_tree, origin
from lmlab.comparison import Difference, comparison, distinct, lineage_of, yardstick
from lmlab.entries import Entry
from lmlab.history import History, as_mapping, as_text
from lmlab.record import Record
from lmlab.runs_table import render as runs_text
from lmlab.views.curves import smooth, span_for
from lmlab.views.html import View, bar, element, escape, fact, head, page, quote, table
from lmlab.views.svg import sparkline

STATUS_CSS = {"running": "lm-busy", "completed": "lm-good", "diverged": "lm-bad", "failed": "lm-bad"}
LONGEST_SAMPLE = 2000
SHOWN_WARNINGS = 3
MOST_VARIED = 4  # config fields that stand before the losses in a comparison


def pill(status: str) -> str:
    """A run's status, coloured; one that ended early is a warning."""
    return element("span", escape(status), f"lm-pill {STATUS_CSS.get(status, 'lm-warn')}")


def shown_path(path: Path) -> str:
    """A path as short as it can be written here: relative where it lies below the current folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def resume_command(record: Record) -> str | None:
    """The shell command that goes on with a run; None where it has no checkpoint. A completed run needs a new end, or,
    where early stopping ended it, to go on without that."""
    if record.newest_checkpoint is None:
        return None
    command = f"python main.py --resume {shlex.quote(shown_path(record.folder))}"
    if record.max_steps is not None and record.step >= record.max_steps:
        command += f" --max-steps {2 * record.max_steps}"
    elif record.status == "completed":
        command += " --set early_stopping_patience=null"
    return command


def commit_of(history: History) -> str:
    """The commit of the code that a run last started with, marked where files had changed since."""
    commit = as_text(history.start.get("git_commit"))[:10]
    if not commit:
        return "none"
    return commit + (" + changes" if history.start.get("git_dirty") else "")


def model_of(history: History) -> str:
    """The model's registered name, else its architecture."""
    return as_text(history.model.get("model_name") or history.model.get("architecture_type")) or words.DASH


def speed_of(history: History) -> float | None:
    """Tokens per second, the median of the last 20 logged steps."""
    _, speeds = history.series("tokens_per_second")
    return float(np.median(speeds[-20:])) if len(speeds) else None


def processors(start: Mapping[str, Any]) -> str:
    """How many threads and processes a run trains on: `2 threads`, `2 threads in each of 4 processes (ddp, gloo)`."""
    threads, world_size = f"{words.plain(start.get('threads'))} threads", start.get("world_size")
    if not isinstance(world_size, int) or world_size == 1:
        return threads
    return f"{threads} in each of {world_size} processes ({as_text(start.get('strategy'))}, {as_text(start.get('backend'))})"


def facts_of(history: History) -> dict[str, tuple[str, str | None]]:
    """What a card says of a run: name to value and a note to hover on."""
    start, model, best = history.start, history.model, history.best
    data = as_mapping(start.get("data"))
    device = " · ".join(as_text(start.get(key)) for key in ("device", "precision") if start.get(key))
    parameters = model.get("n_parameters")
    floor = history.loss_floor
    facts = {
        "Model": (model_of(history), as_text(model.get("model_id")) or None),
        "Parameters": (words.count(parameters) if isinstance(parameters, int) else words.DASH, words.plain(parameters)),
        "Data": (Path(as_text(data.get("path")) or words.DASH).name, f"sha256 {as_text(data.get('sha256'))}"),
        "Device": (device or words.DASH, processors(start)),
        "Step": (words.step_of(history.step, history.max_steps), f"{history.tokens:,} tokens seen"),
        "Time": (words.duration(history.seconds), None),
        "Tokens/s": (words.count(speed_of(history)), "median of the last 20 steps"),
        "Last loss": (words.loss(history.last("loss")), "training loss of the last step, nats per token"),
        "Validation loss": (words.loss(history.last("val_loss")), "nats per token, at the last evaluation"),
        "Best": (f"{best.loss:.4f} at {best.step:,}" if best else words.DASH, "lowest validation loss and its step"),
    }
    if floor:  # of the part of a story, nothing is known, and the floor is 0
        facts["Floor"] = (f"{floor:.4f}", "no model can expect a lower validation loss on this corpus")
    return facts


def loss_sparkline(history: History, width: int = 200, height: int = 40) -> str:
    """The smoothed training loss as a small curve; empty where nothing was logged."""
    steps, losses = history.series("loss")
    if not len(losses):
        return ""
    return sparkline(smooth(steps, losses, span_for(len(losses))), width, height, title="training loss, smoothed")


def run_card(record: Record) -> View:
    """A run at a glance: how it stands, what it is, its losses, its last words, and how to go on."""
    status, facts = record.status, facts_of(record)
    title = element("span", escape(record.title), "lm-title lm-mono")
    kind = element("span", escape(record.kind), "lm-dim") if record.kind not in ("", "new") else ""
    tags = "".join(element("span", f"#{escape(tag)}", "lm-tag") for tag in record.tags)
    start = as_text(record.starts[0].get("time"))[:16].replace("T", " ") if record.starts else ""
    provenance = f"config {as_text(record.start.get('config_hash'))} · commit {commit_of(record)} · started {start} UTC"
    left = element("div", pill(status) + title + kind + tags, "lm-row")
    parts = [
        element("div", left + loss_sparkline(record), "lm-row lm-spread"),
        element("div", escape(provenance), "lm-dim lm-mono"),
    ]
    if record.max_steps and status != "completed":
        parts.append(bar(record.step / record.max_steps))
    parts.append(element("div", "".join(fact(name, *said) for name, said in facts.items()), "lm-facts"))
    if record.lineage:
        parts += [head("Lineage"), element("div", " → ".join(map(escape, [*lineage_of(record), "this run"])))]
    if record.notes:
        parts += [head("Notes"), element("div", escape(record.notes), style="white-space:pre-wrap")]
    parts += warnings_of(record)
    parts += last_sample(record)
    command = resume_command(record)
    if command is not None and record.newest_checkpoint is not None:
        parts.append(head(f"Go on from {record.newest_checkpoint.name}"))
        parts.append(element("div", escape(command), "lm-text lm-mono"))
    lines = [f"{record.title}: {status}", *(f"  {name}: {value}" for name, (value, _) in facts.items())]
    return View(page(*parts), "\n".join([*lines, *([f"  go on: {command}"] if command else [])]))


def warnings_of(history: History) -> list[str]:
    """The last warnings, and how many lines of the log were damaged."""
    shown = list(history.warnings[-SHOWN_WARNINGS:])
    if len(history.warnings) > SHOWN_WARNINGS:
        shown.insert(0, f"{len(history.warnings)} warnings, the last:")
    if history.damaged:
        shown.append(f"{history.damaged} damaged line{'s' if history.damaged > 1 else ''} in the log passed over")
    return [element("div", escape(line), "lm-warn") for line in shown]


def last_sample(history: History) -> list[str]:
    """The newest sample under its heading; nothing before there is one."""
    samples = history.samples()
    if not samples:
        return []
    sample = samples[-1]
    return [head(f"Sample at step {sample.step:,}"), quote(words.clip(sample.text, LONGEST_SAMPLE), sample.prompt)]


RUN_COLUMNS = {
    "run": "Run", "status": "Status", "curve": "", "model": "Model", "step": "Step", "loss": "Loss",
    "val_loss": "Val loss", "best": "Best", "time": "Time", "size": "Size",
}  # fmt: skip
RUN_NUMBERS = ("step", "loss", "val_loss", "best", "time", "size")


def runs_table(records: Sequence[Record]) -> View:
    """Runs as a table, in the order given, with their tags and notes."""
    text = runs_text(records)
    shown = (
        table(RUN_COLUMNS, map(_run_row, records), RUN_NUMBERS) if records else element("span", escape(text), "lm-dim")
    )
    return View(page(shown, wide=True), text)


def _run_row(record: Record) -> dict[str, str]:
    tags = "".join(element("span", f"#{escape(tag)}", "lm-tag") for tag in record.tags)
    remarks = element("div", tags + escape(words.clip(record.notes, 200)), "lm-dim") if tags or record.notes else ""
    status, best = pill(record.status), record.best
    return {
        "run": element("div", escape(record.title), "lm-mono lm-whole") + remarks,
        "status": status,
        "curve": loss_sparkline(record, 72, 22),
        "model": escape(model_of(record)),
        "step": f"{record.step:,}" + (f"/{record.max_steps:,}" if record.max_steps is not None else ""),
        "loss": escape(words.loss(record.last("loss"))),
        "val_loss": escape(words.loss(record.last("val_loss"))),
        "best": escape(words.loss(best.loss if best else None)),
        "time": escape(words.duration(record.seconds)),
        "size": escape(words.size(record.size_bytes)),
    }


MODEL_COLUMNS = {
    "name": "Name", "type": "Type", "parameters": "Parameters", "size": "Size", "origin": "Origin",
    "license": "Licence",
}  # fmt: skip


def models_table(entries: Iterable[Entry], damaged: Mapping[str, str] | None = None) -> View:
    """The registry's models as a table, those fine-tuned below what they come from. damaged: name to what is wrong."""
    rows, html_rows = [], []
    for branch, entry in as_tree(entries):
        row = {
            "name": branch + entry.model_name,
            "type": entry.architecture_type,
            "parameters": words.count(entry.n_parameters),
            "size": words.size(entry.size_bytes),
            "origin": origin(entry),
            "license": entry.license or words.DASH,
        }
        rows.append(row)
        name = element("span", escape(row["name"]), "lm-mono", style="white-space:pre")
        html_rows.append({key: escape(value) for key, value in row.items()} | {"name": name})
    numbers = ("parameters", "size")
    problems = [f"{name}: {why}; run `validate-registry`" for name, why in (damaged or {}).items()]
    nothing = "no models yet; make a tiny one with `python main.py import-model builtin:tiny-qwen`"
    shown = table(MODEL_COLUMNS, html_rows, numbers) if rows else element("span", escape(nothing), "lm-dim")
    said = words.text_table({key: title.upper() for key, title in MODEL_COLUMNS.items()}, rows, numbers)
    warned = "".join(element("div", escape(line), "lm-warn") for line in problems)
    return View(page(shown, warned, wide=True), "\n".join([said if rows else nothing, *map(words.one_line, problems)]))


OUTCOME_TITLES = {
    "run": "Run", "status": "Status", "step": "Steps", "tokens": "Tokens", "seconds": "Time", "loss": "Final loss",
    "val_loss": "Validation loss", "best_val_loss": "Best", "bits_per_byte": "Bits per byte", "above_floor": "Above floor",
}  # fmt: skip


def comparison_table(
    records: Sequence[History], noise: float | None = None, labels: Sequence[Any] | None = None
) -> View:
    """Config differences and final losses of runs; the best stands out: of the lowest validation loss, or of the fewest
    bits per byte where their tokens differ; none where their validation texts do. noise: the smallest difference worth
    believing, named below the table, with the runs that the best is not worth telling from. labels: what the runs are
    called, text or numbers, else by their ids. Config fields stand before the losses while they are few."""
    rows = comparison(records)
    names = distinct(map(as_text, labels) if labels is not None else [row["run"] for row in rows])
    rows = [{**row, "run": name} for row, name in zip(rows, names, strict=True)]
    keys = list(rows[0]) if rows else ["run"]
    varied = [key for key in keys if key not in OUTCOME_TITLES]
    if len(varied) > MOST_VARIED:  # a wide table is cut off at the right, where the losses should not stand
        keys = [key for key in keys if key in OUTCOME_TITLES] + varied
    measure = yardstick(records)
    best = min((row[measure] for row in rows if measure and _is_number(row[measure])), default=None)
    text_rows = [{key: _outcome_cell(key, row[key]) for key in keys} for row in rows]
    html_rows = [{key: escape(cell) for key, cell in row.items()} for row in text_rows]
    for row, shown in zip(rows, html_rows, strict=True):
        shown["run"] = element("span", shown["run"], "lm-mono lm-whole")
        shown["status"] = pill(as_text(row["status"]))
        if measure is not None and best is not None and row[measure] == best:
            shown[measure] = element("b", shown[measure], "lm-good")
    columns = {key: OUTCOME_TITLES.get(key, key) for key in keys}
    numbers = [key for key in keys if key in OUTCOME_TITLES and key not in ("run", "status")]
    note = _noise_note(rows, best, noise) if measure == "val_loss" else YARDSTICKS[measure]
    text = words.text_table(columns, text_rows, numbers)
    html = table(columns, html_rows, numbers) + element("div", escape(note), "lm-dim")
    return View(page(html, wide=True), f"{text}\n{note}".rstrip())


YARDSTICKS = {
    None: "validated on different texts: their losses do not say which is the better one",
    "bits_per_byte": "their tokens differ: bits per byte say which is the better one, not the loss of a token",
}


def _is_number(value: Any) -> bool:
    return isinstance(value, float) and value == value


def _outcome_cell(key: str, value: Any) -> str:
    formats: dict[str, Callable[[Any], str]] = {
        "tokens": words.count,
        "seconds": words.duration,
        "step": lambda step: f"{step:,}",
    }
    if key in formats:
        return formats[key](value)
    if key in OUTCOME_TITLES and (value is None or isinstance(value, float)):
        return words.loss(value)
    return words.plain(value)


def _noise_note(rows: Sequence[Mapping[str, Any]], best: float | None, noise: float | None) -> str:
    if noise is None or best is None:
        return ""
    near = [row["run"] for row in rows if _is_number(row["val_loss"]) and 0 < row["val_loss"] - best < noise]
    verdict = f"; not worth telling from the best: {', '.join(near)}" if near else ""
    return f"differences below {noise:.4f} nats are noise of the seed{verdict}"


def difference_card(difference: Difference) -> View:
    """Two runs' difference: what they were given, where their losses part and how they end."""
    first, second = difference.runs
    rows = [
        {"section": escape(section), "key": escape(key), "first": _value(a), "second": _value(b)}
        for section, pairs in difference.sections().items()
        for key, (a, b) in pairs.items()
    ]
    same = [section for section, pairs in difference.sections().items() if not pairs]
    columns = {"section": "", "key": "differs in", "first": first, "second": second}
    parts = [element("div", escape(f"{first} against {second}"), "lm-title"), table(columns, rows) if rows else ""]
    if same:
        parts.append(element("div", escape(f"the same: {', '.join(same)}"), "lm-dim"))
    parts += [element("div", escape(parting)) for parting in difference.losses.values()]
    return View(page(*parts), str(difference))


def _value(value: Any) -> str:
    return element("span", escape(words.clip(words.plain(value), 400)), "lm-mono")


def samples_table(prompts: Sequence[str], columns: Mapping[str, Sequence[str | None]]) -> View:
    """Texts side by side, one row a prompt. columns: a run's label to its texts, one for each prompt, in order, None where
    there is none."""
    parts, lines = [], []
    for index, prompt in enumerate(prompts):
        texts = {label: text for label, said in columns.items() if (text := said[index]) is not None}
        cells = "".join(
            element("div", head(label) + quote(words.clip(said, LONGEST_SAMPLE), prompt))
            for label, said in texts.items()
        )
        parts += [head(f"prompt {prompt!r}"), element("div", cells, "lm-columns")]
        lines.append(f"prompt {prompt!r}")
        lines += [f"  {label}: {words.one_line(said, 400)}" for label, said in texts.items()]
    return View(page(*parts), "\n".join(lines))


class Runs(list[Record]):
    """Runs as a list that shows itself as a table, as they stand when it is shown."""

    def refresh(self) -> None:
        """Read what was logged since, and drop the runs that were deleted."""
        self[:] = [record for record in self if record.folder.is_dir()]
        for record in self:
            record.refresh()

    def _repr_html_(self) -> str:
        self.refresh()
        return runs_table(self).html

    def __repr__(self) -> str:
        self.refresh()
        return runs_text(self)


class Models(list[Entry]):
    """Registry entries as a list that shows itself as a table. damaged: names of further ones to what is wrong."""

    def __init__(self, entries: Iterable[Entry] = (), damaged: Mapping[str, str] | None = None) -> None:
        super().__init__(entries)
        self.damaged = dict(damaged or {})

    def _repr_html_(self) -> str:
        return models_table(self, self.damaged).html

    def __repr__(self) -> str:
        return models_table(self, self.damaged).text


class ShownDifference(Difference):
    """A difference that shows itself as a card."""

    def _repr_html_(self) -> str:
        return difference_card(self).html

    def __repr__(self) -> str:
        return str(self)
