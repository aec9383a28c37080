"""Whether a long run stays as quick as it began: the processor time of 20,000 tiny steps, in twenty parts.

    python benchmarks/long_run.py

Processor time, since the clock also counts what other programs take. A step costs about as much as its bookkeeping here, so
that anything which grows with the log would show.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from typing import Any

from paired import report

PARTS, STEPS_A_PART = 20, 1000
CONFIG: dict[str, Any] = {
    "n_layers": 1, "d_model": 8, "n_heads": 1, "d_ff": 16, "max_seq_len": 8, "batch_size": 1, "precision": "fp32",
    "max_steps": PARTS * STEPS_A_PART, "eval_cadence": 1000, "eval_batches": 1, "sampling_cadence": 1000,
    "sampling_max_length": 4, "checkpoint_cadence": 1000, "keep_checkpoints": 2, "seed": 1,
}  # fmt: skip


def main() -> None:
    """Train, and compare the second half with the first; the first part, in which things load, does not count."""
    import torch

    from lmlab import lab
    from lmlab.console import Console

    torch.set_num_threads(1)
    ticks: list[float] = []

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] % STEPS_A_PART == 0:
            ticks.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w", encoding="utf-8") as nowhere:
        lab.run(CONFIG, runs_dir=folder, listeners=[Console(nowhere), look])
    parts = [after - before for before, after in itertools.pairwise(ticks)]
    half = len(parts) // 2
    first, second = statistics.median(parts[:half]), statistics.median(parts[half:])
    halves = {"first half": first / STEPS_A_PART * 1000, "second half": second / STEPS_A_PART * 1000}
    report(
        "long_run",
        {
            "steps": CONFIG["max_steps"],
            "milliseconds_a_step_first_half": round(halves["first half"], 3),
            "milliseconds_a_step_second_half": round(halves["second half"], 3),
            "second_half_to_first": round(second / first, 3),
            "parts_ms": [round(part / STEPS_A_PART * 1000, 3) for part in parts],
        },
        halves,
        "milliseconds of processor time a step",
    )


if __name__ == "__main__":
    main()
