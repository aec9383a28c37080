"""Wall-clock time to a validation loss on a text, everything included: start-up, tokenizing, training, evaluation.

    python benchmarks/time_to_loss.py --nanogpt PATH --data tinyshakespeare.txt

Ours is `python main.py --config configs/quick-text.yaml`, a whole process, up to the first evaluation of the full
validation split at or below the target; its clock is read when that line is in the log. nanoGPT trains by its recipe
for a processor (4 layers of 128, 64 tokens x 12, 2,000 iterations, learning rate 1e-3 falling to 1e-4, no dropout) with
its own model and optimizer, evaluates the same split once at the end, and is timed as a whole process too.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from paired import ratio, report

from lmlab import events

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "quick-text.yaml"
TARGET, ROUNDS = 1.88, 3
BATCH, CONTEXT, ITERATIONS, WARMUP = 12, 64, 2000, 100


def nanogpt_recipe(path: Path, data: Path) -> None:
    """nanoGPT's training for a processor, from its README; prints the loss over the whole validation split."""
    import torch

    from lmlab.data import WindowDataset, split_corpus
    from lmlab.tokenizers import CharTokenizer

    sys.path.insert(0, str(path))
    from model import GPT, GPTConfig

    torch.manual_seed(1337)
    text = data.read_text(encoding="utf-8")
    tokenizer = CharTokenizer.from_text(text)
    train, validation = (torch.from_numpy(ids).long() for ids in split_corpus(tokenizer.encode(text), 0.95))
    shape = {"block_size": CONTEXT, "vocab_size": tokenizer.vocab_size, "n_layer": 4, "n_head": 4, "n_embd": 128}
    model = GPT(GPTConfig(**shape, dropout=0.0, bias=False))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    for step in range(ITERATIONS):
        share = min(1.0, (step - WARMUP) / (ITERATIONS - WARMUP))
        rate = 1e-3 * (step + 1) / (WARMUP + 1) if step < WARMUP else 1e-4 + 4.5e-4 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(train) - CONTEXT, (BATCH,))
        windows = torch.stack([train[i : i + CONTEXT + 1] for i in starts])
        _, loss = model(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()
    total, count = 0.0, 0
    dataset = WindowDataset(validation.numpy(), CONTEXT)
    tiles = dataset.tiles()
    with torch.no_grad():
        for first in range(0, len(tiles), 64):
            batch = dataset.batch(tiles[first : first + 64])
            logits, _ = model(batch.inputs_BT, batch.targets_BT.clamp_min(-1))  # what it takes for no target
            total += float(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten(), reduction="sum")
            )
            count += int((batch.targets_BT >= 0).sum())
    print(json.dumps({"val_loss": total / count}))


def time_nanogpt(path: Path, data: Path) -> tuple[float, float]:
    """Seconds of the whole recipe and the validation loss that it reaches."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--nanogpt", str(path), "--data", str(data), "--recipe"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - started, float(json.loads(done.stdout.splitlines()[-1])["val_loss"])


def time_lmlab(data: Path) -> tuple[float, float, int]:
    """Seconds until the log holds an evaluation at or below the target, that loss, and its step."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "main.py"), "--config", str(CONFIG), "--data", str(data)]
        started = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--runs-dir", folder, "--run-name", "timed"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        log = Path(folder) / "timed" / "log.jsonl"
        try:
            while True:
                ended = process.poll() is not None
                for event in events.read(log) if log.exists() else []:
                    if event["event"] == "eval" and event["val_loss"] <= TARGET:
                        return time.perf_counter() - started, event["val_loss"], event["step"]
                if ended:
                    raise SystemExit(f"{CONFIG.name} ended above {TARGET}")
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, metavar="PATH", help="a clone of nanoGPT")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="tinyshakespeare as one text file")
    parser.add_argument("--recipe", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.recipe:
        nanogpt_recipe(arguments.nanogpt, arguments.data)
        return
    theirs, ours = [], []
    for _ in range(ROUNDS):
        theirs.append(time_nanogpt(arguments.nanogpt, arguments.data))
        ours.append(time_lmlab(arguments.data))
    seconds = {
        "nanoGPT's recipe": round(statistics.median(row[0] for row in theirs), 1),
        "lmlab, quick-text": round(statistics.median(row[0] for row in ours), 1),
    }
    figures = {
        "seconds": seconds,
        "times_sooner": round(ratio([row[0] for row in theirs], [row[0] for row in ours]), 2),
        "val_loss": {"nanoGPT": [round(row[1], 4) for row in theirs], "lmlab": [round(row[1], 4) for row in ours]},
        "steps": [row[2] for row in ours],
    }
    report("time_to_loss", figures, seconds, f"seconds to a validation loss of {TARGET}")


if __name__ == "__main__":
    main()
