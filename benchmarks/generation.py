"""Tokens per second of sampling with a key-value cache, one text at a time.

    python benchmarks/generation.py smollm2 --model FOLDER   # against `generate` of transformers, fp32 and bf16
    python benchmarks/generation.py scratch --nanogpt PATH   # the default config's shape, against nanoGPT's sample.py

smollm2: 128 new tokens after a prompt of 16. scratch: 1,000 characters from a context of 256; nanoGPT computes the
whole context again for every character.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from paired import Program, in_turn, ratio, report, serve

PROMPT, VOCABULARY = 16, 65
ROUNDS = 5


def prompt() -> Any:
    import torch

    return torch.arange(100, 100 + PROMPT)[None] % VOCABULARY


def serve_lmlab(model: Path | None, precision: str) -> None:
    import torch

    from lmlab import devices
    from lmlab.adapters.custom import CustomTransformerAdapter
    from lmlab.generate import SamplingSettings
    from lmlab.loading import load_adapter
    from lmlab.transformer import Transformer

    if model is None:
        shape = {"n_layers": 4, "d_model": 256, "n_heads": 4, "d_ff": 1024, "dropout": 0.1, "max_seq_len": 256}
        adapter: Any = CustomTransformerAdapter(Transformer(VOCABULARY, **shape, seed=1))  # type: ignore[arg-type]
    else:
        adapter = load_adapter(model)
    adapter.end_of_text_id = None  # all tokens are wanted

    def work(tokens: int) -> dict[str, Any]:
        with devices.autocast(devices.resolve_precision(precision, torch.device("cpu")), torch.device("cpu")):
            ids = adapter.generate(prompt(), SamplingSettings(tokens, temperature=0.8, top_k=200, seed=1))
        return {"tokens": ids.size(1) - PROMPT}

    serve(work)


def serve_transformers(model: Path, precision: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    peer = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()

    def work(tokens: int) -> dict[str, Any]:
        settings = {"do_sample": True, "temperature": 0.8, "top_k": 200, "pad_token_id": 0}
        with torch.no_grad():
            ids = peer.generate(prompt(), max_new_tokens=tokens, min_new_tokens=tokens, **settings)
        return {"tokens": ids.size(1) - PROMPT}

    serve(work)


def serve_nanogpt(path: Path) -> None:
    import torch

    sys.path.insert(0, str(path))
    from model import GPT, GPTConfig

    shape = {"block_size": 256, "vocab_size": VOCABULARY, "n_layer": 4, "n_head": 4, "n_embd": 256}
    peer = GPT(GPTConfig(**shape, dropout=0.1, bias=False)).eval()

    def work(tokens: int) -> dict[str, Any]:
        with torch.no_grad():
            return {"tokens": peer.generate(prompt(), tokens, temperature=0.8, top_k=200).size(1) - PROMPT}

    serve(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("smollm2", "scratch"))
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="SmolLM2-135M in the Hugging Face layout")
    parser.add_argument("--nanogpt", type=Path, metavar="PATH", help="a clone of nanoGPT")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        program, precision = arguments.serve
        if program == "lmlab":
            serve_lmlab(arguments.model, precision)
        elif program == "transformers":
            serve_transformers(arguments.model, precision)
        else:
            serve_nanogpt(arguments.nanogpt)
        return

    if arguments.work == "smollm2":
        if arguments.model is None:
            parser.error("smollm2 needs --model FOLDER")
        common, tokens = ("smollm2", "--model", str(arguments.model), "--serve"), 128
        peers = {"transformers, fp32": ("transformers", "fp32"), "transformers, bf16": ("transformers", "bf16")}
    else:
        if arguments.nanogpt is None:
            parser.error("scratch needs --nanogpt PATH")
        tokens = 1000
        peers = {"nanoGPT, fp32": ("nanogpt", "fp32")}
        common = ("scratch", "--nanogpt", str(arguments.nanogpt), "--serve")
    served = {"lmlab": ("lmlab", "auto"), **peers}
    programs = {name: Program(__file__, *common, *what) for name, what in served.items()}
    try:
        answers = in_turn(programs, tokens, ROUNDS)
    finally:
        for program in programs.values():
            program.__exit__()
    speeds = {name: [a["tokens"] / a["seconds"] for a in answers[name]] for name in answers}
    medians = {name: round(statistics.median(values), 1) for name, values in speeds.items()}
    ratios = {f"times {name}": round(ratio(speeds["lmlab"], speeds[name]), 2) for name in peers}
    memory = {name: program.peak_memory // 2**20 for name, program in programs.items()}
    figures = {"tokens_per_second": medians, **ratios, "peak_memory_mb": memory}
    report(f"generation_{arguments.work}", figures, medians, "tokens per second")


if __name__ == "__main__":
    main()
