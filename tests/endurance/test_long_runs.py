"""Long runs: after 20,000 steps memory, threads and open files are where they were after the first few thousand."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

import pytest
from forked import Nursery

from lmlab import checkpoint, lab
from lmlab.console import Console

pytestmark = pytest.mark.endurance

STEPS = 20_000
CONFIG: dict[str, Any] = {
    "n_layers": 1, "d_model": 8, "n_heads": 1, "d_ff": 16, "max_seq_len": 8, "batch_size": 1, "precision": "fp32",
    "max_steps": STEPS, "learning_rate": 1e-3, "seed": 1, "eval_cadence": 1000, "eval_batches": 1,
    "sampling_cadence": 1000, "sampling_max_length": 4, "checkpoint_cadence": 1000, "keep_checkpoints": 2,
    "hooks": ["weight_norms:1000"],
}  # fmt: skip


def anonymous_memory() -> int:
    """This process's own memory in bytes; mapped files do not count."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def train_for_long(corpus: str) -> None:
    seen: list[tuple[int, int, int]] = []

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] % 500 == 250:  # far from what the cadences do
            seen.append((anonymous_memory(), len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))))

    with open(os.devnull, "w") as nowhere:
        lab.run(CONFIG, corpus, run_name="r", runs_dir="runs", listeners=[Console(nowhere), look])
    print(json.dumps(seen))


def test_20_000_steps(nursery: Nursery, corpus: Path) -> None:
    status, said = nursery.run(train_for_long, corpus)
    assert status == 0, said
    memory, threads, descriptors = zip(*json.loads(said.splitlines()[-1]), strict=True)
    assert len(memory) == STEPS // 500
    assert len(set(threads)) == 1, threads
    assert len(set(descriptors)) == 1, descriptors
    early, late = statistics.median(memory[4:12]), statistics.median(memory[-8:])
    assert late - early < 2e6, f"{(late - early) / 1e6:.1f} MB more after 20,000 steps than after 4,000"
    assert checkpoint.steps(Path("runs/r/checkpoints"))[-2:] == [STEPS - 1000, STEPS]
