"""A text of 1 GB: how fast it becomes tokens, how soon it starts again, what memory it takes, and that steps are as fast.

    python benchmarks/data_scale.py

The text is written to a temporary file: pages of the storybook in ever new orders. Tokens per second are those of the
default config at 1 MB and at 1 GB, in turn. Memory is the anonymous memory at its peak, from the first start on: mapped
files do not count.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from paired import Program, in_turn, ratio, report, serve

BATCH, CONTEXT = 16, 256
STEPS, ROUNDS = 6, 9
SMALL, LARGE = 1, 1000  # MB


def write_text(path: Path, megabytes: int) -> None:
    """So many MB of stories."""
    from lmlab import storybook

    stories, draw = storybook.generate(1_000_000).split("\n\n"), random.Random(1)
    with open(path, "w", encoding="utf-8") as file:
        while file.tell() < megabytes * 10**6:
            file.write("\n\n".join(draw.sample(stories, len(stories))) + "\n\n")
        file.truncate(megabytes * 10**6)


def serve_tokens(path: Path) -> None:
    """From a path to ids, once."""
    from lmlab import lab
    from lmlab.tokenizers import CharTokenizer

    def work(_: int) -> dict[str, Any]:
        corpus = lab.load_text(path)
        return {"tokens": len(corpus.encode(CharTokenizer(corpus.characters)))}

    serve(work)


def serve_steps(path: Path) -> None:
    """Steps of the default config."""
    import lmlab as lab

    with tempfile.TemporaryDirectory() as folder:
        trainer = lab.build(None, path, runs_dir=folder, seed=1)
        batches = iter(trainer.train_dataloader)

        def work(steps: int) -> dict[str, Any]:
            return {"losses": [trainer.training_step(next(batches)) for _ in range(steps)]}

        serve(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        what, path = arguments.serve
        (serve_tokens if what == "tokens" else serve_steps)(Path(path))
        return

    with tempfile.TemporaryDirectory() as scratch:
        texts = {f"{megabytes:,} MB": Path(scratch) / f"{megabytes}.txt" for megabytes in (SMALL, LARGE)}
        for megabytes, path in zip((SMALL, LARGE), texts.values(), strict=True):
            write_text(path, megabytes)
        starts = []
        for _ in range(2):
            with Program(__file__, "--serve", "tokens", str(path), LMLAB_CACHE_DIR=f"{scratch}/cache") as program:
                starts.append((program.run(1)["seconds"], program.peak_memory))
        (first, first_memory), (second, _) = starts
        programs = {
            name: Program(__file__, "--serve", "steps", str(text), LMLAB_CACHE_DIR=f"{scratch}/cache")
            for name, text in texts.items()
        }
        try:
            answers = in_turn(programs, STEPS, ROUNDS)
        finally:
            for program in programs.values():
                program.__exit__()
    speeds = {name: [STEPS * BATCH * CONTEXT / a["seconds"] for a in answers[name]] for name in programs}
    medians = {name: round(statistics.median(values)) for name, values in speeds.items()}
    small, large = programs
    report(
        "data_scale",
        {
            "megabytes_per_second_to_tokens": round(LARGE / first),
            "first_start_seconds": round(first, 2),
            "second_start_seconds": round(second, 2),
            "peak_memory_mb": {
                "first start": first_memory // 2**20,
                **{f"training on {name}": program.peak_memory // 2**20 for name, program in programs.items()},
            },
            "tokens_per_second": medians,
            "speed_kept": round(ratio(speeds[large], speeds[small]), 3),
        },
        {f"training on {name}": float(value) for name, value in medians.items()},
        "tokens per second",
    )


if __name__ == "__main__":
    main()
