"""What a step of the default config costs besides training: the log, and saving a checkpoint.

    python benchmarks/step_cost.py

The log, hooks off: the seconds that one `step` event takes to be made and written to `log.jsonl`, and what is computed
for it alone, as a share of a step. A checkpoint: the seconds for which training waits until it is on the disk, and where
a thread writes it (`async_checkpoints`), against those of copying its tensors, in turn. The first step is measured in
`start_up.py`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paired import report

STEPS, EVENTS, SAVES = 12, 2000, 9


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    import lmlab as lab
    from lmlab.events import EventLog
    from lmlab.optim import optimizer_tensors

    with tempfile.TemporaryDirectory() as scratch:
        trainer = lab.build(None, runs_dir=scratch, seed=1)
        assert trainer.folder is not None
        batches: Any = iter(trainer.train_dataloader or ())
        told: list[dict[str, Any]] = []
        trainer.listeners = [told.append]
        step = statistics.median([seconds(lambda: trainer.training_step(next(batches))) for _ in range(STEPS)][2:])
        fields = {name: value for name, value in told[-1].items() if name not in ("event", "run_id", "time", "step")}

        log = EventLog(Path(scratch) / "log.jsonl", "measured")
        trainer.listeners = [log]
        event = seconds(lambda: [trainer.tell("step", **fields) for _ in range(EVENTS)]) / EVENTS
        log.close()
        trainer.listeners = []

        def copy_tensors() -> list[Any]:
            state = optimizer_tensors(trainer.optimizer, trainer.model)
            return [tensor.clone() for tensor in (*trainer.model.state_dict().values(), *state.values())]

        copies, stalls, begins = [], [], []
        for _ in range(SAVES + 1):
            copies.append(seconds(copy_tensors))
            stalls.append(seconds(trainer.save_checkpoint))
            trainer.training_step(next(batches))
            begins.append(seconds(trainer.begin_checkpoint))
            trainer.training_step(next(batches))
        copy, stall, begin = (statistics.median(each[1:]) for each in (copies, stalls, begins))
    bars = {
        "a step": step * 1e3,
        "a checkpoint": stall * 1e3,
        "one that a thread writes": begin * 1e3,
        "copying its tensors": copy * 1e3,
        "the log": event * 1e3,
    }
    report(
        "step_cost",
        {
            "milliseconds": {name: round(value, 3) for name, value in bars.items()},
            "log_percent_of_step": round(100 * event / step, 3),
            "checkpoint_times_copy": round(stall / copy, 1),
            "async_times_copy": round(begin / copy, 2),
        },
        bars,
        "milliseconds",
    )


if __name__ == "__main__":
    main()
