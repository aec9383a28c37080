"""How cost grows with width, context and batch: tokens per second and memory, with the exponents that fit them.

    python benchmarks/growth.py

One size changes, the others stay: 4 layers, width 256, 256 tokens, 8 windows. Each point is a process of its own. The
exponent is the slope of log(cost) over log(size) between its largest points, where the small sizes' fixed costs no
longer count; beside it stands that of the arithmetic (`flops_per_token`) and of the estimate of memory over the same
points.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from paired import RESULTS, Program, report, serve

BASE = {"d_model": 256, "max_seq_len": 256, "batch_size": 8}
SIZES = {
    "d_model": (128, 256, 512, 1024),
    "max_seq_len": (128, 256, 512, 1024, 2048),
    "batch_size": (1, 4, 16, 64),
}
NAMES = {"d_model": "width", "max_seq_len": "context", "batch_size": "batch"}
FITTED = 3  # points
ROUNDS = 3


def serve_steps(sizes: dict[str, int]) -> None:
    import torch

    import lmlab as lab
    from lmlab import planning

    with tempfile.TemporaryDirectory() as folder:
        config = {**sizes, "d_ff": 4 * sizes["d_model"], "seed": 1}
        trainer = lab.build(config, "storybook:3000000", runs_dir=folder)
        batches: Any = iter(trainer.train_dataloader or ())
        facts = {
            "flops": trainer.model.flops_per_token(sizes["max_seq_len"]) * sizes["max_seq_len"] * sizes["batch_size"],
            "estimated_memory": planning.plan(trainer).estimate.memory,
            "precision": trainer.precision,
            "threads": torch.get_num_threads(),
        }

        def work(steps: int) -> dict[str, Any]:
            for _ in range(steps):
                trainer.training_step(next(batches))
            return facts

        serve(work)


def measure(sizes: dict[str, int]) -> dict[str, Any]:
    """One point: seconds of a step and memory at its peak, beside what both ought to be."""
    with Program(__file__, "--serve", json.dumps(sizes)) as program:
        before = program.peak_memory
        program.run(1)
        answers = [program.run(1) for _ in range(ROUNDS)]
        peak = program.peak_memory
    step = statistics.median(answer["seconds"] for answer in answers)
    tokens = sizes["max_seq_len"] * sizes["batch_size"]
    return {**answers[0], **sizes, "seconds": step, "tokens_per_second": tokens / step, "memory": peak - before}


def exponent(points: list[dict[str, Any]], name: str, cost: str) -> float:
    """The slope of log(cost) over log(size) that fits the largest points best."""
    x = [math.log(point[name]) for point in points[-FITTED:]]
    y = [math.log(point[cost]) for point in points[-FITTED:]]
    return round(statistics.linear_regression(x, y).slope, 2)


def draw(path: Path, measured: dict[str, list[dict[str, Any]]]) -> None:
    """Speed and memory over each size, with the line of the arithmetic through the last point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    all_axes = figure.subplots(2, len(measured))
    for column, (name, points) in enumerate(measured.items()):
        sizes = [point[name] for point in points]
        rows = (
            ("tokens per second", [p["tokens_per_second"] for p in points],
             [p["max_seq_len"] * p["batch_size"] / p["flops"] for p in points], "arithmetic"),
            ("memory in MB", [p["memory"] / 1e6 for p in points],
             [p["estimated_memory"] / 1e6 for p in points], "estimate"),
        )  # fmt: skip
        for axes, (label, values, expected, kind) in zip(all_axes[:, column], rows, strict=True):
            scale = values[-1] / expected[-1] if kind == "arithmetic" else 1.0
            axes.loglog(sizes, values, "o-", color="#4c72b0", label="measured")
            axes.loglog(sizes, [scale * value for value in expected], "--", color="#999999", label=kind)
            axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
            ends = sorted({min(values), max(values)})
            axes.set_yticks(ends, [f"{value:,.0f}" for value in ends])
            axes.minorticks_off()
            axes.set_xlabel(NAMES[name])
            axes.set_ylabel(label if column == 0 else "")
            axes.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_steps(json.loads(arguments.serve))
        return

    measured = {name: [measure({**BASE, name: size}) for size in sizes] for name, sizes in SIZES.items()}
    figures: dict[str, Any] = {}
    for name, points in measured.items():
        figures[NAMES[name]] = {
            "sizes": [point[name] for point in points],
            "tokens_per_second": [round(point["tokens_per_second"]) for point in points],
            "memory_mb": [round(point["memory"] / 1e6) for point in points],
            "exponent_of_step": exponent(points, name, "seconds"),
            "of_arithmetic": exponent(points, name, "flops"),
            "exponent_of_memory": exponent(points, name, "memory"),
            "of_estimate": exponent(points, name, "estimated_memory"),
        }
    report("growth", {"precision": measured["d_model"][0]["precision"], **figures})
    draw(RESULTS / "growth.png", measured)


if __name__ == "__main__":
    main()
