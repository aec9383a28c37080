"""Tokens per second and memory of fine-tuning all weights: lmlab against the Trainer of transformers, in one precision.

    pip install -r benchmarks/requirements.txt
    python benchmarks/fine_tuning.py qwen                     # Qwen2.5-0.5B's shape, random weights, 512 tokens x 1
    python benchmarks/fine_tuning.py smollm2 --model FOLDER   # real weights in the Hugging Face layout, 256 tokens x 8

Both in bf16, or with `--precision fp32`, which is the quicker one on a processor without matrix units. Same weights, same
windows, AdamW, clipping at 1. Memory is the anonymous memory at its peak.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from paired import Program, in_turn, ratio, report, rounds, serve

SHAPES = {"qwen": (1, 512), "smollm2": (8, 256)}  # windows, tokens
STEPS, ROUNDS = 2, 5
LEARNING_RATE = 3e-5


def make_qwen(folder: Path) -> None:
    """A folder with random weights in the shape of Qwen2.5-0.5B (hidden 896, 24 layers, 151,936 words)."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=32_768, tie_word_embeddings=True,
    )  # fmt: skip
    config.rope_parameters["rope_theta"] = 1_000_000.0
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def windows(vocab_size: int, context: int, count: int) -> Any:
    """Token ids, windows of context + 1, the same in both programs."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randint(min(vocab_size, 5_000), (count, context + 1), generator=generator)


def serve_lmlab(folder: Path, shape: str, precision: str) -> None:
    import torch

    from lmlab.config import TrainingConfig
    from lmlab.data import Batch
    from lmlab.loading import load_adapter
    from lmlab.optim import create_optimizer
    from lmlab.trainer import Trainer

    batch_size, context = SHAPES[shape]
    config = TrainingConfig(
        batch_size=batch_size, max_seq_len=context, learning_rate=LEARNING_RATE, grad_clip=1.0, precision=precision,
        lr_schedule="constant", warmup_steps=0, weight_decay=0.0, eval_cadence=None, beta2=0.999,
    )  # fmt: skip
    model = load_adapter(folder, dtype=torch.float32)
    trainer = Trainer(model, create_optimizer(model.model, config), config)
    data = windows(model.vocab_size, context, 1000 * batch_size)
    losses: list[float] = []

    def work(steps: int) -> dict[str, Any]:
        for _ in range(steps):
            first = len(losses) * batch_size
            ids = data[first : first + batch_size]
            batch = Batch(ids[:, :-1], ids[:, 1:], torch.arange(first, first + batch_size))
            losses.append(trainer.training_step(batch))
        return {"losses": losses[-steps:]}

    serve(work)


def serve_trainer(folder: Path, shape: str, precision: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    batch_size, context = SHAPES[shape]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    data = [
        {"input_ids": ids[:-1], "labels": torch.cat([ids[:1], ids[1:-1]])}
        for ids in windows(model.config.vocab_size, context, 1000 * batch_size)
    ]

    class Rounds(TrainerCallback):
        """Stops the clock after the steps of each round."""

        def on_train_begin(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            self.asked = rounds()
            self.left = next(self.asked)

        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            self.left -= 1
            if self.left == 0:
                try:
                    self.left = self.asked.send({})
                except StopIteration:
                    control.should_training_stop = True

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            out, per_device_train_batch_size=batch_size, max_steps=1000, learning_rate=LEARNING_RATE,
            bf16=precision == "bf16", use_cpu=True,
            lr_scheduler_type="constant", save_strategy="no", report_to=[], logging_steps=1000,
            disable_tqdm=True, max_grad_norm=1.0,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=data, callbacks=[Rounds()]).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a model in the Hugging Face layout")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        program = serve_lmlab if arguments.serve == "lmlab" else serve_trainer
        program(arguments.model, arguments.shape, arguments.precision)
        return

    with tempfile.TemporaryDirectory() as scratch:
        if arguments.model is None:
            if arguments.shape != "qwen":
                parser.error("smollm2 needs --model FOLDER")
            make_qwen(Path(scratch))
        model = str(arguments.model or scratch)
        common = (arguments.shape, "--precision", arguments.precision, "--model", model, "--serve")
        with Program(__file__, *common, "lmlab") as ours, Program(__file__, *common, "trainer") as theirs:
            answers = in_turn({"lmlab": ours, "Trainer": theirs}, STEPS, ROUNDS, warmup=2)
            memory = {"lmlab": ours.peak_memory // 2**20, "Trainer": theirs.peak_memory // 2**20}
    batch_size, context = SHAPES[arguments.shape]
    speeds = {name: [STEPS * batch_size * context / a["seconds"] for a in answers[name]] for name in answers}
    medians = {name: round(statistics.median(values), 1) for name, values in speeds.items()}
    report(
        f"fine_tuning_{arguments.shape}_{arguments.precision}",
        {
            "tokens_per_second": medians,
            "times_trainer": round(ratio(speeds["lmlab"], speeds["Trainer"]), 2),
            "peak_memory_mb": memory,
            "share_of_its_memory": round(memory["lmlab"] / memory["Trainer"], 2),
        },
        medians,
        "tokens per second",
    )


if __name__ == "__main__":
    main()
