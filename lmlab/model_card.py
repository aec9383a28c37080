"""The model card of a registered model: README.md, in which others find data, losses, lineage and config."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

import yaml

from lmlab.checkpoint import Checkpoint
from lmlab.entries import CUSTOM, Entry
from lmlab.events import Event, number, read
from lmlab.record import LOG
from lmlab.words import count, one_line


def card(entry: Entry, saved: Checkpoint, base: str | None, is_plain: bool) -> str:
    """The text of README.md: what the hub reads at its head, then data, losses, lineage and config for people.

    is_plain: whether transformers finds the tokenizer by itself.
    What comes from files of others is escaped: nothing in a card is taken for HTML, a link or a heading.
    """
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["lmlab"]}
    if entry.license:
        head["license"] = entry.license
    if base:
        head["base_model"] = base
    origin = f"a fine-tune of `{entry.fine_tuned_from}`" if entry.fine_tuned_from else "trained from scratch"
    if entry.lineage and not entry.fine_tuned_from:
        origin = "a branch of another run"
    loads = "`AutoModelForCausalLM.from_pretrained(folder)` and `AutoTokenizer.from_pretrained(folder)`"
    if entry.architecture_type == CUSTOM:
        loads = "`lmlab.load_adapter(folder)`"
    elif not is_plain:
        loads = "`AutoModelForCausalLM.from_pretrained(folder)`, and its tokenizer with `lmlab.Tokenizer.load(folder)`"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {entry.model_name}",
        f"A causal language model of type `{entry.architecture_type}` with {count(entry.n_parameters)} parameters, {origin} "
        f"with lmlab: the weights after step {entry.step} of run `{entry.run_id}`. Load it with {loads}.",
        "## Data\n\n" + facts(data_facts(saved.state)),
        "## Losses\n\n" + facts(loss_facts(saved)),
        "## Lineage\n\n" + lineage(entry),
        "## Licence\n\n" + (escaped(entry.license) + ", inherited" if entry.license else "Not stated."),
        "## Config\n\n" + fenced(yaml.safe_dump(saved.state.get("config", {}), sort_keys=False, allow_unicode=True)),
    ]
    return "\n\n".join(parts) + "\n"


def escaped(value: Any) -> str:
    """A value as one line of Markdown that can be nothing but text."""
    line = html.escape(one_line(value, 200))
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+!|~" else c for c in line)


def fenced(text: str) -> str:
    """Text as a block of code, whatever it holds."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}yaml\n{text.rstrip()}\n{fence}"


def facts(pairs: list[tuple[str, Any]]) -> str:
    """Facts as a list; those that are not known are left out."""
    lines = [f"- {label}: {escaped(value)}" for label, value in pairs if value is not None]
    return "\n".join(lines) or "Not recorded."


def data_facts(state: dict[str, Any]) -> list[tuple[str, Any]]:
    """What the model was trained on. Of a path only the file's name: where it lies is nobody's business."""
    data = state.get("data") or {}
    path = data.get("path")
    return [
        ("text", Path(path).name if isinstance(path, str) else "the built-in storybook"),
        ("sha256", data.get("sha256")),
        ("tokens", data.get("n_tokens")),
        ("of them for training", data.get("n_train")),
        ("of them for validation", data.get("n_val")),
        ("tokenizer", state.get("tokenizer")),
    ]


def loss_facts(saved: Checkpoint) -> list[tuple[str, Any]]:
    """First, last and best losses up to the checkpoint's step, from the run's log."""
    events = [e for e in read(saved.folder.parent.parent / LOG) if e.get("run_id") == saved.state.get("run_id")]
    pairs: list[tuple[str, Any]] = []
    for event, key, label in (("step", "loss", "training loss"), ("eval", "val_loss", "validation loss")):
        points = [e for e in events if e["event"] == event and at_most(e, saved.step) and key in e]
        for when, point in zip(("first", "last"), (points[0], points[-1]) if points else (), strict=False):
            pairs.append((f"{when} {label}", f"{number(point[key]):.4f} nats per token at step {point['step']}"))
    evaluated = [(number(e["val_loss"]), e["step"]) for e in points if math.isfinite(number(e["val_loss"]))]
    if evaluated:
        best, step = min(evaluated)
        pairs.append(("best validation loss", f"{best:.4f} nats per token at step {step}"))
    return pairs


def at_most(event: Event, step: int) -> bool:
    """Whether an event is of that step or an earlier one."""
    return isinstance(event.get("step"), int) and event["step"] <= step


def lineage(entry: Entry) -> str:
    """The chain of models that led to this one, oldest first, as a numbered list."""
    lines = []
    for i, link in enumerate(entry.lineage, start=1):
        taken = f"step {link.step} of run {escaped(link.run_id)}" if link.run_id else "its own weights"
        lines.append(f"{i}. {escaped(link.model_name or 'a new model')}: {taken}")
    lines.append(f"{len(lines) + 1}. {escaped(entry.model_name)}: step {entry.step} of run {escaped(entry.run_id)}")
    if entry.fine_tuning_started_at:
        lines.append(f"\nFine-tuning started at {escaped(entry.fine_tuning_started_at)}.")
    return "\n".join(lines)
