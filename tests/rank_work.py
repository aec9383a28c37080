"""What torchrun starts for `test_parallel.py`: a list of jobs, done by all ranks one after the other.

    torchrun ... rank_work.py JOBS.json

Each job makes, resumes or looks at a run. What a rank alone can see of it goes to `NAME.rank-N.json` beside the jobs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from lmlab import lab, ranks
from lmlab.errors import UsageError
from lmlab.optim import optimizer_tensors
from lmlab.trainer import Trainer


def seen_by_rank(trainer: Trainer) -> dict[str, Any]:
    """What this rank holds of the optimizer's state, and of how much."""
    state = [t for t in optimizer_tensors(trainer.optimizer, trainer.model.model).values() if t.dim()]
    return {
        "strategy": trainer.strategy,
        "world_size": trainer.world.size,
        "held": sum(ranks.own_part(tensor).numel() for tensor in state),
        "whole": sum(tensor.numel() for tensor in state),
    }


def mask(trainer: Trainer) -> list[float]:
    """What dropout would leave of 32 ones in the first step."""
    with trainer.random:
        return torch.nn.functional.dropout(torch.ones(32), 0.5).tolist()


def train(job: dict[str, Any]) -> dict[str, Any]:
    """A new run."""
    trainer = lab.build(**job["arguments"])
    run = lab.execute(trainer, [])
    saw = seen_by_rank(trainer)
    saw["steps_read"] = len(run.series("loss")[0])
    if job.get("sample"):  # of what the registry or a checkpoint would give to anyone
        adapter, _tokenizer = run.load()
        saw["n_parameters"] = sum(ranks.own_part(p).numel() for p in adapter.parameters())
    return saw


def resume(job: dict[str, Any]) -> dict[str, Any]:
    """Go on with a run."""
    run = lab.resume(listeners=[], **job["arguments"])
    return {"step": run.step}


def finetune(job: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune and register a model."""
    run = lab.finetune(listeners=[], **job["arguments"])
    return {"registered_as": run.registered_as}


def load(job: dict[str, Any]) -> dict[str, Any]:
    """A Trainer from a checkpoint, before any step."""
    return seen_by_rank(Trainer.from_checkpoint(job["folder"]))


def masks(job: dict[str, Any]) -> dict[str, Any]:
    """A Trainer whose dropout is looked at; twice, to see that it comes again."""
    return {"masks": [mask(lab.build(**job["arguments"])) for _ in range(2)]}


def agree(job: dict[str, Any]) -> dict[str, Any]:
    """What is said to a rank that was given something else than rank 0."""
    world = ranks.join()
    try:
        world.agree("text", f"text {world.rank}")
    except UsageError as error:
        return {"said": str(error)}
    return {"said": ""}


def main() -> None:
    path = Path(sys.argv[1])
    torch.set_num_threads(1)
    for job in json.loads(path.read_text(encoding="utf-8")):
        saw = globals()[job["do"]](job)
        name = f"{job['name']}.rank-{ranks.join().rank}.json"
        (path.parent / name).write_text(json.dumps(saw), encoding="utf-8")
    ranks.leave()
    ranks.end(0)


if __name__ == "__main__":
    main()
