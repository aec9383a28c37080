"""The registry put into words for a terminal: a table of all models, and one model in sections. Imports no torch.

Names, licences and the like come from other people's files: control characters never reach the terminal.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lmlab.entries import Entry
from lmlab.errors import LabError
from lmlab.events import Event, first_event, number, parse_line
from lmlab.files import is_there, read_object, tree_size
from lmlab.registry import Registry
from lmlab.words import count, one_line, size, text_table

COLUMNS = ("NAME", "TYPE", "PARAMETERS", "SIZE", "ORIGIN", "LICENCE")
TAIL = 1 << 16  # bytes read from the end of a log: its last evaluation and its end stand there
LARGEST_CONFIG = 4 << 20
NO_LIMIT = 10**12  # tokens; settings that name no longest text have a far larger number in its place
LOUD = ("architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "auto_map", "layer_types")


def origin(entry: Entry) -> str:
    """Where a model is from, in one word or two."""
    if entry.fine_tuned_from is not None:
        return f"from {entry.fine_tuned_from}"
    if entry.lineage:  # a branch of a run that began with no model
        return f"from run {entry.lineage[-1].run_id}"
    revision = f"@{entry.revision[:7]}" if entry.revision else ""
    return f"{entry.model_id}{revision}" if entry.model_id else entry.source


def as_tree(entries: Iterable[Entry]) -> Iterator[tuple[str, Entry]]:
    """Every entry once, parents before children, with the branches to draw before its name."""
    by_name = {entry.model_name: entry for entry in entries}
    children: dict[str | None, list[str]] = {}
    for name, entry in by_name.items():
        parent = by_name.get(entry.fine_tuned_from or "")
        known = parent is not None and parent is not entry and entry.comes_from(parent)
        children.setdefault(entry.fine_tuned_from if known else None, []).append(name)
    shown: set[str] = set()

    def walk(names: list[str], indent: str, top: bool) -> Iterator[tuple[str, Entry]]:
        for name in names:
            if name in shown:
                continue
            shown.add(name)
            last = name == names[-1]
            yield ("" if top else indent + ("└─ " if last else "├─ ")), by_name[name]
            yield from walk(children.get(name, []), "" if top else indent + ("   " if last else "│  "), False)

    yield from walk(children.get(None, []), "", True)
    for name in by_name:  # parents that name each other in a circle belong to no root
        yield from walk([name], "", True)


def render_list(registry: Registry) -> str:
    """All models as a table, those fine-tuned below what they come from, and the disk they use."""
    entries, damaged = registry.entries(), registry.damaged()
    if not entries and not damaged:
        return (
            f"no models in {registry.models_dir}; get one with `import-model Qwen/Qwen2.5-0.5B`, or make a tiny one "
            "with `import-model builtin:tiny-qwen`"
        )
    rows, total = [], 0
    for branch, entry in as_tree(entries):
        folder = registry.models_dir / entry.local_path
        used = tree_size(folder) if folder.is_dir() else None
        total += used or 0
        rows.append(
            (
                branch + entry.model_name,
                one_line(entry.architecture_type, 24),
                count(entry.n_parameters),
                "missing" if used is None else size(used),
                one_line(origin(entry), 48),
                one_line(entry.license or "-", 24),
            )
        )
    lines = [text_table({name: name for name in COLUMNS}, [dict(zip(COLUMNS, row, strict=True)) for row in rows])]
    lines += [
        f"{one_line(name, 64)}: damaged, {one_line(why)}; run `validate-registry`" for name, why in damaged.items()
    ]
    models = f"{len(entries)} model{'' if len(entries) == 1 else 's'}"
    return "\n".join([*lines, f"{models}, {size(total)} on disk in {registry.models_dir}"])


def section(title: str, facts: Iterable[tuple[str, Any]]) -> list[str]:
    """A headline and its facts, one a line; those that are not known are left out."""
    known = [(label, one_line(value)) for label, value in facts if value not in (None, "", [], ())]
    width = max((len(label) for label, _ in known), default=0)
    return [title, *(f"  {label.ljust(width)}  {value}".rstrip() for label, value in known), ""]


def render_info(registry: Registry, name: str, runs_dir: Path | str) -> str:
    """One model in sections: origin, architecture, tokenizer, licence, files, ancestors, descendants, runs.

    Raises ModelNotFound, and RegistryError on a damaged entry. Files that are missing are said to be.
    """
    entry = registry.get(name)
    folder = registry.models_dir / entry.local_path
    lines = [one_line(entry.model_name), ""]
    lines += section(
        "Origin",
        [
            ("source", entry.source),
            ("id", entry.model_id),
            ("revision", entry.revision),
            ("registered", entry.created_at),
            ("folder", folder),
            ("fine-tuned from", entry.fine_tuned_from),
            ("fine-tuning started", entry.fine_tuning_started_at),
        ],
    )
    architecture = read_small_json(folder / "config.json")
    lines += section(
        "Architecture",
        [
            ("type", entry.architecture_type),
            ("parameters", f"{entry.n_parameters:,}"),
            ("size", size(entry.size_bytes)),
            ("dtype", architecture.get("dtype") or architecture.get("torch_dtype")),
            *((k, v) for k, v in sorted(architecture.items()) if k not in LOUD and isinstance(v, int | float | str)),
        ],
    )
    lines += section("Tokenizer", tokenizer_facts(folder))
    lines += section("Licence", [("licence", entry.license or "not stated")])
    lines += section("Files", file_facts(folder, entry))
    chain = [(link.model_name or "a new model", describe_step(link.run_id, link.step)) for link in entry.lineage]
    lines += section("Ancestors", chain or [("none", "the model was not fine-tuned here")])
    children = [(child, f"from {registry.get(child).fine_tuned_from}") for child in registry.descendants(name)]
    lines += section("Descendants", children or [("none", "nothing was fine-tuned from it")])
    made_by = [(link.run_id, link.step) for link in entry.lineage if link.run_id] + [(entry.run_id, entry.step)]
    runs = [(run, run_facts(Path(runs_dir), run, step, entry.created_at)) for run, step in made_by if run]
    lines += section("Runs", runs or [("none", "no run here made it")])
    return "\n".join(line for i, line in enumerate(lines) if line or lines[i - 1]).rstrip()


def describe_step(run_id: str | None, step: int | None) -> str:
    """Which weights of an ancestor were taken."""
    return f"step {step} of run {run_id}" if run_id else "its own weights"


def tokenizer_facts(folder: Path) -> list[tuple[str, Any]]:
    """What the tokenizer's files say of it, without loading it."""
    characters = read_small_json(folder / "char_tokenizer.json").get("characters")
    if isinstance(characters, str):
        return [("kind", "characters"), ("vocabulary", len(characters))]
    values = read_small_json(folder / "tokenizer_config.json")
    end, longest = values.get("eos_token"), values.get("model_max_length")
    if not values and not (folder / "tokenizer.json").exists():
        return [("kind", "none: set tokenizer_override to train with this model")]
    return [
        ("kind", values.get("tokenizer_class", "tokenizer.json")),
        ("end of sequence", end.get("content") if isinstance(end, dict) else end),
        ("longest text", longest if isinstance(longest, int) and longest < NO_LIMIT else None),
    ]


def file_facts(folder: Path, entry: Entry) -> list[tuple[str, str]]:
    """Size and sha256 of every file, and which are missing."""
    facts = []
    for name, info in sorted(entry.files.items()):
        gone = not is_there(folder / name, stat.S_ISREG)
        advice = f"; MISSING: {entry.remedy} or run `validate-registry`" if gone else ""
        facts.append((name, f"sha256 {info.sha256}, {size(info.size)}{advice}"))
    return facts


def read_small_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none that can be read."""
    try:
        return read_object(path, LabError, LARGEST_CONFIG)
    except LabError:
        return {}


def run_facts(runs_dir: Path, run_id: str, step: int | None, before: str) -> str:
    """What became of a run that made a model: the step that was taken, and how the run ended, from its log.

    before: when the model was registered. A run of that name that began later is another one.
    """
    taken = f"weights of step {step}"
    if Path(run_id).name != run_id or run_id in ("", ".", ".."):
        return f"{taken}; not a run's name"
    for log in (runs_dir / run_id / "log.jsonl", *sorted(runs_dir.glob("*/log.jsonl"))):  # a folder can be renamed
        first = first_event(log)
        if first.get("run_id") == run_id and (not before or str(first.get("time", "")) <= before):
            break
    else:
        return f"{taken}; its folder is not in {runs_dir}"
    events = ends_of_log(log)
    facts = [taken] if log.parent.name == run_id else [f"in folder {log.parent.name}", taken]
    if events[0].get("kind"):
        facts.append(str(events[0]["kind"]))
    evals = [event for event in events if event["event"] == "eval"]
    if evals:
        facts.append(f"val_loss {number(evals[-1].get('val_loss')):.4f} at step {evals[-1].get('step')}")
    if events[-1]["event"] == "run_end":
        facts.append(str(events[-1].get("status")))
    return "; ".join(facts)


def ends_of_log(path: Path) -> list[Event]:
    """The first event of a log and those in its last 64 KB, in order; empty where there is no log."""
    try:
        with open(path, "rb") as file:
            first = parse_line(file.readline(1 << 20))
            body = file.tell()
            file.seek(max(body, os.fstat(file.fileno()).st_size - TAIL))
            rest = [event for line in file.read().split(b"\n") if (event := parse_line(line)) is not None]
    except OSError:
        return []
    return rest if first is None else [first, *rest]
