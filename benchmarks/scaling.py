"""Tokens per second of two processes with a thread each, DDP and FSDP, against one process with two threads.

    python benchmarks/scaling.py

The default config on the storybook, the same 16 windows in every update; gloo between the processes of this machine.
One process with one thread runs as well: what a second core adds at all.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from typing import Any

from paired import Program, in_turn, ratio, report, serve

BATCH, CONTEXT = 16, 256
STEPS, ROUNDS = 4, 9
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")
ONE, TWO_THREADS, DDP, FSDP = "1 × 1 thread", "1 × 2 threads", "2 × 1 thread, DDP", "2 × 1 thread, FSDP"


def serve_lmlab(strategy: str) -> None:
    import lmlab as lab
    from lmlab import ranks

    world = ranks.join()
    with tempfile.TemporaryDirectory() as folder:
        trainer = lab.build(None, runs_dir=folder, seed=1, parallel=strategy)
        batches = iter(trainer.train_dataloader)

        def work(steps: int) -> dict[str, Any]:
            losses = []
            for _ in range(steps):
                world.any(False)  # as `fit` asks everybody before each step whether to stop
                losses.append(trainer.training_step(next(batches)))
            return {"loss": losses[-1]}

        def work_together(steps: int) -> dict[str, Any]:
            world.text(str(steps))
            return work(steps)

        if world.leads:
            serve(work_together)
            world.text("0")
        else:
            while steps := int(world.text("")):
                work(steps)
    ranks.leave()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_lmlab(arguments.serve)
        return

    with (
        Program(__file__, "--serve", "auto", OMP_NUM_THREADS="1") as one,
        Program(__file__, "--serve", "auto", OMP_NUM_THREADS="2") as threads,
        Program("-m", *TORCHRUN, __file__, "--serve", "ddp", OMP_NUM_THREADS="1") as ddp,
        Program("-m", *TORCHRUN, __file__, "--serve", "fsdp", OMP_NUM_THREADS="1") as fsdp,
    ):
        answers = in_turn({ONE: one, TWO_THREADS: threads, DDP: ddp, FSDP: fsdp}, STEPS, ROUNDS)
    speeds = {name: [STEPS * BATCH * CONTEXT / a["seconds"] for a in rounds] for name, rounds in answers.items()}
    medians = {name: round(statistics.median(values)) for name, values in speeds.items()}
    report(
        "scaling",
        {
            "tokens_per_second": medians,
            "ddp_times_two_threads": round(ratio(speeds[DDP], speeds[TWO_THREADS]), 3),
            "fsdp_times_two_threads": round(ratio(speeds[FSDP], speeds[TWO_THREADS]), 3),
            "ddp_times_one_thread": round(ratio(speeds[DDP], speeds[ONE]), 3),
            "loss": {name: rounds[-1]["loss"] for name, rounds in answers.items()},
        },
        {name: float(value) for name, value in medians.items()},
        "tokens per second",
    )


if __name__ == "__main__":
    main()
