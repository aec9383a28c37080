"""How long one waits: for the answers of light commands, and for the first step of a run.

    python benchmarks/start_up.py

The first step is compared with the least there is to do: import torch and build the model.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from paired import report

MAIN = Path(__file__).resolve().parents[1] / "main.py"
ROUNDS = 5
BARE = """
import torch
from torch import nn
blocks = [nn.Linear(256, 3 * 256), nn.Linear(256, 256), nn.Linear(256, 1024), nn.Linear(1024, 256)] * 4
nn.Sequential(nn.Embedding(65, 256), *blocks)
"""


def seconds_of(command: list[str]) -> float:
    """The wall-clock time of a whole process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def seconds_to_first_step(folder: str) -> float:
    """From starting the command to the line of step 1 in the run's log."""
    started = time.perf_counter()
    command = [sys.executable, str(MAIN), "--max-steps", "1000", "--runs-dir", folder, "--run-name", "first"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = Path(folder) / "first" / "log.jsonl"
    try:
        while not (log.exists() and '"event":"step"' in log.read_text(encoding="utf-8").replace(" ", "")):
            if process.poll() is not None:
                raise RuntimeError("the run ended before its first step")
            time.sleep(0.005)
        return time.perf_counter() - started
    finally:
        process.kill()
        process.wait()


def main() -> None:
    with tempfile.TemporaryDirectory() as models:
        folder = ("--models-dir", models)
        subprocess.run([sys.executable, str(MAIN), "import-model", "builtin:tiny-qwen", "--yes", *folder], check=True)
        measure(folder)


def measure(models: tuple[str, str]) -> None:
    """All commands in turn, so often; models: where a registered one is."""
    light = {
        "--help": ["--help"],
        "list-models": ["list-models", *models],
        "model-info": ["model-info", "tiny-qwen", *models],
        "validate-registry": ["validate-registry", *models],
    }
    times: dict[str, list[float]] = {name: [] for name in (*light, "first step", "import torch, build a model")}
    for _ in range(ROUNDS + 1):
        for name, arguments in light.items():
            times[name].append(seconds_of([sys.executable, str(MAIN), *arguments]))
        times["import torch, build a model"].append(seconds_of([sys.executable, "-c", BARE]))
        with tempfile.TemporaryDirectory() as folder:
            times["first step"].append(seconds_to_first_step(folder))
    medians = {name: round(statistics.median(values[1:]), 3) for name, values in times.items()}
    times_bare = round(medians["first step"] / medians["import torch, build a model"], 2)
    report("start_up", {"seconds": medians, "first_step_times_bare": times_bare}, medians, "seconds")


if __name__ == "__main__":
    main()
