"""Tokens per second of training from scratch: the default config against nanoGPT, in fp32 and where it is fast in bf16.

    python benchmarks/from_scratch.py --nanogpt PATH

nanoGPT runs as it does on a processor (fp32), with the same shapes, dropout 0.1, its own optimizer and clipping, and
batches taken from its memory-mapped file of tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from paired import Program, in_turn, ratio, report, serve

BATCH, CONTEXT = 16, 256
STEPS, ROUNDS = 4, 7


def serve_lmlab(precision: str) -> None:
    import lmlab as lab

    with tempfile.TemporaryDirectory() as folder:
        trainer = lab.build(None, runs_dir=folder, precision=precision, seed=1)
        batches = iter(trainer.train_dataloader)
        losses: list[float] = []

        def work(steps: int) -> dict[str, Any]:
            losses.extend(trainer.training_step(next(batches)) for _ in range(steps))
            return {"loss": losses[-1]}

        serve(work)


def serve_nanogpt(path: str) -> None:
    import numpy as np
    import torch

    from lmlab import storybook
    from lmlab.tokenizers import CharTokenizer

    sys.path.insert(0, path)
    from model import GPT, GPTConfig

    torch.manual_seed(1)
    text = storybook.generate()
    tokenizer = CharTokenizer.from_text(text)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.encode(text).astype(np.uint16).tofile(f"{folder}/train.bin")
        shape = {"block_size": CONTEXT, "vocab_size": tokenizer.vocab_size, "n_layer": 4, "n_head": 4, "n_embd": 256}
        model = GPT(GPTConfig(**shape, dropout=0.1, bias=False))
        optimizer = model.configure_optimizers(0.1, 3e-4, (0.9, 0.95), "cpu")

        def step() -> float:
            data = np.memmap(f"{folder}/train.bin", dtype=np.uint16, mode="r")
            starts = torch.randint(len(data) - CONTEXT, (BATCH,))
            inputs = torch.stack([torch.from_numpy(data[i : i + CONTEXT].astype(np.int64)) for i in starts])
            targets = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + CONTEXT].astype(np.int64)) for i in starts])
            _, loss = model(inputs, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return float(loss)

        serve(lambda steps: {"loss": [step() for _ in range(steps)][-1]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, metavar="PATH", help="a clone of nanoGPT")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve == "nanogpt":
        serve_nanogpt(str(arguments.nanogpt))
        return
    if arguments.serve:
        serve_lmlab(arguments.serve)
        return

    import torch

    from lmlab import devices

    precisions = ("bf16", "fp32") if devices.has_fast_bf16(torch.device("cpu")) else ("fp32",)
    common = ("--nanogpt", str(arguments.nanogpt), "--serve")
    with contextlib.ExitStack() as stack:
        programs = {"nanoGPT, fp32": stack.enter_context(Program(__file__, *common, "nanogpt"))}
        for precision in precisions:
            programs[f"lmlab, {precision}"] = stack.enter_context(Program(__file__, *common, precision))
        answers = in_turn(programs, STEPS, ROUNDS)
    speeds = {name: [STEPS * BATCH * CONTEXT / a["seconds"] for a in answers[name]] for name in programs}
    medians = {name: round(statistics.median(values)) for name, values in speeds.items()}
    report(
        "from_scratch",
        {
            "tokens_per_second": medians,
            **{
                f"times_nanogpt_{precision}": round(ratio(speeds[f"lmlab, {precision}"], speeds["nanoGPT, fp32"]), 2)
                for precision in precisions
            },
            "peak_memory_mb": {name: program.peak_memory // 2**20 for name, program in programs.items()},
        },
        {name: float(value) for name, value in medians.items()},
        "tokens per second",
    )


if __name__ == "__main__":
    main()
