"""Numbers that are not finite, at every step of a run and in every micro-batch: the step before is what remains.

Every step is logged, so that there is none between two logged ones where a bad number could hide.
"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from diverging import Diverging
from tiny_config import TINY

from lmlab import checkpoint, events, lab
from lmlab.config import TrainingConfig
from lmlab.errors import DivergedError
from lmlab.optim import optimizer_tensors
from lmlab.trainer import Trainer

pytestmark = pytest.mark.endurance
STEPS, MICRO_BATCHES = 5, 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize(("optimizer", "precision"), [("adamw", "fp32"), ("muon", "bf16")])
def test_weights_and_optimizer_stay_those_of_the_step_before(
    value: float, where: str, optimizer: str, precision: str, corpus: Path, tmp_path: Path
) -> None:
    settings = {**TINY, "gradient_accumulation_steps": MICRO_BATCHES, "optimizer": optimizer, "precision": precision}
    config = TrainingConfig.from_dict({**settings, "checkpoint_cadence": 2, "eval_cadence": 2, "eval_batches": 1})
    for step, micro_batch in product(range(1, STEPS + 1), range(MICRO_BATCHES)):
        trainer = lab.build(config, corpus, run_name=f"{step}-{micro_batch}", runs_dir=tmp_path)
        spoil(trainer, (step - 1) * MICRO_BATCHES + micro_batch + 1, value, where)
        before: dict[str, Any] = {}
        trainer.listeners.append(lambda event, trainer=trainer, before=before: before.update(state(trainer)))
        before.update(state(trainer))
        with pytest.raises(DivergedError, match=f"step {step} is .*; the update was not made"):
            lab.execute(trainer, [])
        after = state(trainer)
        assert after.keys() == before.keys()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        assert trainer.step == step - 1
        assert trainer.folder is not None
        log = events.read(trainer.folder / "log.jsonl")
        assert [event["step"] for event in log if event["event"] == "step"] == list(range(1, step))
        assert (log[-1]["event"], log[-1]["status"], log[-1]["step"]) == ("run_end", "diverged", step - 1)
        saved = checkpoint.steps(trainer.folder / "checkpoints")
        assert saved == list(range(2, step, 2))
        for each in saved:
            checkpoint.verify(checkpoint.step_folder(trainer.folder / "checkpoints", each))


def spoil(trainer: Trainer, at: int, value: float, where: str) -> None:
    """Make the trainer's model give a bad number in one call of its loss."""
    trainer.model.__class__ = Diverging
    trainer.model.at, trainer.model.value, trainer.model.where = at, value, where


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of all that an update changes."""
    tensors = {**trainer.model.tensors(), **optimizer_tensors(trainer.optimizer, trainer.model.model)}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
