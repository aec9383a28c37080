"""Run folders written by hand, in the exact format of the log, for tests that read runs and need no training."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lmlab import events

BEGAN = datetime(2026, 1, 31, 18, 45, tzinfo=UTC)
SECONDS_A_STEP = 0.5

CONFIG: dict[str, Any] = {
    "n_layers": 2, "d_model": 32, "n_heads": 2, "learning_rate": 3e-4, "batch_size": 4, "max_seq_len": 16,
    "gradient_accumulation_steps": 2, "max_steps": 40, "eval_cadence": 10, "seed": 0,
}  # fmt: skip


class RunWriter:
    """Writes a run's events with a clock of its own. `step` writes a step, `event` anything else."""

    def __init__(self, folder: Path, began: datetime = BEGAN) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.now = folder, began
        self.events: list[dict[str, Any]] = []

    def event(self, event: str, step: int | None = None, **fields: Any) -> dict[str, Any]:
        stamp = self.now.isoformat(timespec="microseconds").replace("+00:00", "Z")
        record: dict[str, Any] = {"event": event, "run_id": self.folder.name, "time": stamp}
        record |= ({} if step is None else {"step": step}) | fields
        with open(self.folder / "log.jsonl", "ab") as file:
            file.write(events.encode(record))
        self.events.append(record)
        return record

    def start(self, kind: str = "new", **fields: Any) -> None:
        config = CONFIG | fields.pop("config", {})
        self.event("run_start", **start_fields(kind, config) | fields)

    def step(self, step: int, loss: float, **fields: Any) -> None:
        self.now += timedelta(seconds=SECONDS_A_STEP)
        measured = {"learning_rate": 3e-4, "grad_norm": 0.5, "tokens_per_second": 256.0, "flops_utilization": None}
        self.event("step", step, loss=loss, **measured | fields)

    def evaluate(self, step: int, val_loss: float) -> None:
        bits = val_loss / math.log(2)
        self.event("eval", step, val_loss=val_loss, perplexity=math.exp(val_loss), bits_per_byte=bits)

    def checkpoint(self, step: int) -> Path:
        folder = self.folder / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}", encoding="utf-8")
        self.event("checkpoint", step, path=str(folder), seconds=0.01)
        return folder


def start_fields(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": kind, "config_hash": "0123456789abcdef", "git_commit": "a" * 40, "git_dirty": False, "hooks": [],
        "config": config, "seed": config["seed"], "fine_tuned_from": None, "fine_tuning_started_at": None, "lineage": [],
        "model": {"model_name": None, "model_id": None, "architecture_type": "custom-transformer", "source": "custom",
                  "n_parameters": 12_345, "size_bytes": 49_380, "n_layers": config["n_layers"]},
        "tokenizer": "char-65-1a2b3c4d",
        "data": {"path": "storybook", "sha256": "5" * 64, "n_tokens": 1000, "n_train": 950, "n_val": 50},
        "loss_floor": 0.5, "device": "cpu", "precision": "fp32", "threads": 2, "world_size": 1, "strategy": None,
        "versions": {"python": "3.11.2", "torch": "2.13.0"}, "resumed_from": None,
    }  # fmt: skip


def falling(step: int, noise: random.Random) -> float:
    """A loss that falls from about 4 towards 1, a little noisy."""
    return 1.0 + 3.0 * math.exp(-step / 15) + noise.gauss(0, 0.02)


def write_run(
    folder: Path,
    steps: int = 40,
    seed: int = 0,
    status: str | None = "completed",
    loss: Callable[[int, random.Random], float] = falling,
    **start: Any,
) -> Path:
    """A whole run: evaluated and saved every 10 steps, sampled at its end. status: None leaves it without an end."""
    run, noise = RunWriter(folder), random.Random(seed)
    run.start(config={"seed": seed, **start.pop("config", {})}, **start)
    run.evaluate(0, 4.1)
    for step in range(1, steps + 1):
        run.step(step, loss(step, noise))
        if step % 10 == 0:
            run.evaluate(step, loss(step, noise) + 0.05)
            run.checkpoint(step)
    run.event("sample", steps, prompt="The", sample_text="The fox found a red kite.")
    if status is not None:
        run.event("run_end", steps, status=status, seconds=steps * SECONDS_A_STEP)
    return folder
