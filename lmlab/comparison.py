"""Runs beside each other: what they differ in, where their losses part, and which difference is worth believing.

Everything comes from the runs' histories, so that runs of other machines compare as well. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Self

import numpy as np

from lmlab.config import TrainingConfig
from lmlab.errors import UsageError
from lmlab.history import History, as_mapping

TAIL = 0.05  # the share of the last steps whose mean is the final training loss
LONGEST_TAIL = 100
DATA = ("path", "sha256", "n_tokens", "n_train", "n_val", "begin_of_text_id")
ENVIRONMENT = ("device", "precision", "threads", "world_size", "strategy")

# Student's t at 97.5 % for 1, 2, … degrees of freedom; from 30 on it nears the normal's 1.96.
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
)  # fmt: skip

Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Parting:
    """Two series of the same name over the steps that both have.

    common: how many steps those are. first_step: the first of them with different values, None where there is none;
    first: the two values there. last_step, last: the same at the last common step.
    """

    name: str
    common: int = 0
    first_step: int | None = None
    first: tuple[float, float] = (math.nan, math.nan)
    last_step: int | None = None
    last: tuple[float, float] = (math.nan, math.nan)

    @property
    def difference(self) -> float:
        """Second minus first at the last common step; NaN where there is none."""
        return self.last[1] - self.last[0]

    def __str__(self) -> str:
        name = {"loss": "training loss", "val_loss": "validation loss"}.get(self.name, self.name)
        if not self.common:
            return f"{name}: no step in common"
        if self.first_step is None:
            return f"{name}: the same, bit for bit, at all {self.common} common steps"
        return (
            f"{name}: parts at step {self.first_step} ({self.first[0]:.6g} against {self.first[1]:.6g}); "
            f"at step {self.last_step} {self.last[0]:.4f} against {self.last[1]:.4f} ({self.difference:+.4f})"
        )


@dataclass(frozen=True)
class Difference:
    """What two runs differ in: for every key that differs, the values of both; and where their losses part."""

    runs: tuple[str, str]
    config: dict[str, Pair] = field(default_factory=dict)
    model: dict[str, Pair] = field(default_factory=dict)
    data: dict[str, Pair] = field(default_factory=dict)
    code: dict[str, Pair] = field(default_factory=dict)
    environment: dict[str, Pair] = field(default_factory=dict)
    losses: dict[str, Parting] = field(default_factory=dict)

    @classmethod
    def between(cls, a: History, b: History) -> Self:
        """The difference of two runs, as their last starts and their series tell it."""
        starts = a.start, b.start
        return cls(
            runs=(a.title, b.title),
            config=differing(settings_of(a), settings_of(b)),
            model=differing(model_facts(a), model_facts(b)),
            data=differing(*({key: as_mapping(start.get("data")).get(key) for key in DATA} for start in starts)),
            code=differing(*({key: start.get(key) for key in ("git_commit", "git_dirty")} for start in starts)),
            environment=differing(*(environment(start) for start in starts)),
            losses={name: parting(a, b, name) for name in ("loss", "val_loss")},
        )

    @property
    def first_step(self) -> int | None:
        """The first common step at which the training losses differ, or None where they never do."""
        return self.losses["loss"].first_step

    def sections(self) -> dict[str, dict[str, Pair]]:
        """What differs, by section, in the order to show it; empty sections are there, too."""
        return {
            "config": self.config, "model": self.model, "data": self.data, "code": self.code,
            "environment": self.environment,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{self.runs[0]} against {self.runs[1]}"]
        for name, pairs in self.sections().items():
            if not pairs:
                lines.append(f"  {name}: the same")
            lines += [f"  {name}: {key}: {first!r} -> {second!r}" for key, (first, second) in pairs.items()]
        return "\n".join([*lines, *(f"  {parting}" for parting in self.losses.values())])


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Pair]:
    """The keys whose values differ, with both values; a key that one side lacks counts as None there."""
    return {key: (a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)}


def settings_of(history: History) -> dict[str, Any]:
    """A run's config as it was followed: with the seed that was drawn, and the step at which a falling rate ends."""
    start = history.start
    defaults = TrainingConfig().to_dict() if history.config else {}  # older runs lack newer fields
    settings = {**defaults, **history.config}
    if start.get("seed") is not None:
        settings["seed"] = start["seed"]
    if settings.get("lr_schedule", "constant") != "constant":
        at_first = as_mapping(history.starts[0].get("config")).get("max_steps")  # for logs that do not say it
        settings["lr_decay_steps"] = start.get("decay_steps") or settings.get("lr_decay_steps") or at_first
    return settings


def model_facts(history: History) -> dict[str, Any]:
    """What a run says of its model, with the tokenizer and the models that it comes from."""
    lineage = " → ".join(lineage_of(history)) or None
    return {**history.model, "tokenizer": history.start.get("tokenizer"), "lineage": lineage}


def lineage_of(history: History) -> list[str]:
    """The models that this one comes from, oldest first, each with the run and step whose weights were taken."""
    links = []
    for link in history.lineage:
        taken = f" (run {link['run_id']}, step {link.get('step')})" if link.get("run_id") else ""
        links.append(f"{link.get('model_name') or 'custom'}{taken}")
    return links


def environment(start: Mapping[str, Any]) -> dict[str, Any]:
    """What a run ran on, in one flat dict: device, precision, threads, ranks and the version of every package."""
    versions = {f"version of {name}": version for name, version in as_mapping(start.get("versions")).items()}
    return {key: start.get(key) for key in ENVIRONMENT} | versions


def parting(a: History, b: History, name: str) -> Parting:
    """Where a series of two runs parts, compared bit for bit at the steps that both have."""
    first, second = (dict(zip(*(part.tolist() for part in history.series(name)), strict=True)) for history in (a, b))
    steps = sorted(first.keys() & second.keys())
    if not steps:
        return Parting(name)
    at, last = next((step for step in steps if not _same(first[step], second[step])), None), steps[-1]
    values = (math.nan, math.nan) if at is None else (first[at], second[at])
    return Parting(name, len(steps), at, values, last, (first[last], second[last]))


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def distinct(names: Iterable[str]) -> list[str]:
    """Names told apart: one that was there before is counted on, as in `first`, `first (2)`."""
    found: dict[str, None] = {}
    for name in names:
        counted, count = name, 1
        while counted in found:
            count += 1
            counted = f"{name} ({count})"
        found[counted] = None
    return list(found)


def final_loss(history: History, name: str = "val_loss") -> float | None:
    """The value a run ended with: the last one of `val_loss`; of `loss`, which jumps from batch to batch, the mean of
    the last twentieth of the steps (at most 100). None where there is none."""
    _, values = history.series(name)
    if not len(values):
        return None
    tail = min(max(int(len(values) * TAIL), 1), LONGEST_TAIL) if name == "loss" else 1
    return float(values[-tail:].mean())


def yardstick(runs: Sequence[History]) -> str | None:
    """What tells the better of some runs: "val_loss", or "bits_per_byte" where their tokens are not the same.

    None where they were validated on different texts, of which one may be the harder.
    """
    evaluated = [run for run in runs if len(run.series("val_loss")[1])]
    tokenizers = {str(run.start["tokenizer"]) for run in evaluated if run.start.get("tokenizer") is not None}
    if len({_validated_on(run, len(tokenizers) > 1) for run in evaluated}) > 1:
        return None
    return "bits_per_byte" if len(tokenizers) > 1 else "val_loss"


def _validated_on(run: History, other_tokens: bool) -> str:
    """What tells the text that a run was validated on from that of others, whose tokens may be others."""
    config, data = run.config, as_mapping(run.start.get("data"))
    part: Any = None
    given = (config.get(name) for name in ("eval_batches", "batch_size", "max_seq_len"))
    sizes = [size for size in given if isinstance(size, int)]
    if len(sizes) == 3:
        n_tokens, n_val = math.prod(sizes), data.get("n_val")
        if not isinstance(n_val, int) or n_tokens < n_val:
            part = (n_tokens, run.start.get("tokenizer") if other_tokens else None)
    return repr((data.get("sha256"), config.get("train_ratio"), part))  # as text, whatever a log holds


def comparison(runs: Sequence[History]) -> list[dict[str, Any]]:
    """One row a run, all with the same keys: the run, the config fields in which the runs differ, their tokenizers and
    texts where those differ, how far it came, and its final losses in nats per token (`above_floor` where a run knows its
    floor, and that is not 0; `bits_per_byte` where the tokens are not the same)."""
    outcomes = [_outcome(run) for run in runs]
    settings = [{**settings_of(run), **_material(run)} for run in runs]
    known = [own for run, own in zip(runs, settings, strict=True) if run.config]  # a run that never began has none
    keys = list(dict.fromkeys(key for own in known for key in own))
    varied = [key for key in keys if any(own.get(key) != known[0].get(key) for own in known)]
    rows = [
        {"run": run.title, **{key: own.get(key) for key in varied}, **outcome}
        for run, own, outcome in zip(runs, settings, outcomes, strict=True)
    ]
    if all(row["above_floor"] is None for row in rows):
        for row in rows:
            del row["above_floor"]
    if "tokenizer" not in varied:
        for row in rows:
            del row["bits_per_byte"]
    return rows


def _material(run: History) -> dict[str, Any]:
    """The tokenizer and the text of a run, by names that differ where they do."""
    data = as_mapping(run.start.get("data"))
    path, sha256 = data.get("path"), data.get("sha256")
    text = None if sha256 is None else f"{PurePath(str(path)).name} ({str(sha256)[:8]})"
    return {"tokenizer": run.start.get("tokenizer"), "data": text}


def _outcome(run: History) -> dict[str, Any]:
    val_loss, best, floor = final_loss(run, "val_loss"), run.best, run.loss_floor
    return {
        "status": run.status,
        "step": run.step,
        "tokens": run.tokens,
        "seconds": run.seconds,
        "loss": final_loss(run, "loss"),
        "val_loss": val_loss,
        "best_val_loss": best.loss if best else None,
        "bits_per_byte": final_loss(run, "bits_per_byte"),
        "above_floor": val_loss - floor if floor and val_loss is not None else None,
    }


def check_completed(runs: Iterable[History]) -> None:
    """Raise UsageError naming the first run that is not completed: its last loss is not the one that it ends with."""
    for run in runs:
        if (status := run.status) != "completed":
            raise UsageError(
                f"the run {run.title} is {status} at step {run.step}, so its last loss is no final one; resume it until it "
                "is completed, or leave it out"
            )


def smallest_difference(runs: Sequence[History]) -> float:
    """The smallest difference between two single runs that is worth believing, from runs that differ in the seed alone.

    With the deviation s of n final losses, two runs of one config differ by less than t · s · √2 in 95 % of cases,
    t being Student's quantile at n - 1 degrees of freedom. Raises UsageError for fewer than two runs with a finite end,
    and for one that is not completed.
    """
    check_completed(runs)
    finals = np.array([value for run in runs if (value := final_loss(run)) is not None and math.isfinite(value)])
    if len(finals) < 2:
        raise UsageError(f"the noise of val_loss needs two runs that logged it, {len(finals)} did; give more seeds")
    freedom = len(finals) - 1
    quantile = STUDENT[freedom - 1] if freedom <= len(STUDENT) else 1.96 + 2.4 / freedom
    return float(quantile * finals.std(ddof=1) * math.sqrt(2))
