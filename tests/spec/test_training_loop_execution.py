"""Requirement: Training Loop Execution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from workbench import STRAIGHT, Event, Session, printed, state_of

from lmlab import DataLoader, Tokenizer, Trainer, TrainingConfig, build
from lmlab.data import Batch

QUICK: dict[str, Any] = {**STRAIGHT, "n_layers": 1, "hooks": []}


class Watched(Trainer):
    """A Trainer that notes what `fit` hands to `training_step`, and at which steps it saves."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.batches: list[Batch] = []
        self.saved: list[int] = []

    def training_step(self, batch: Batch) -> float:
        self.batches.append(batch)
        return super().training_step(batch)

    def save_checkpoint(self, folder: Path | str | None = None, tokenizer: Tokenizer | None = None) -> Path:
        self.saved.append(self.step)
        return super().save_checkpoint(folder, tokenizer)


def watched(corpus: Path, **values: Any) -> tuple[Watched, list[Event]]:
    """A watched Trainer of the parts that every run is made of, and the list of the events that it tells."""
    events: list[Event] = []
    built = build({**QUICK, **values}, corpus)
    assert built.folder is not None
    (built.folder / "checkpoints").mkdir(parents=True)
    trainer = Watched(
        built.model,
        built.optimizer,
        built.config,
        built.val_dataloader,
        built.tokenizer,
        train_dataloader=built.train_dataloader,
        folder=built.folder,
        seed=built.seed,
        facts=built.facts,
        listeners=[events.append],
    )
    return trainer, events


@pytest.mark.usefixtures("one_thread")
def test_run_training_loop(corpus: Path, interrupted: Session) -> None:
    """WHEN the trainer is initialized THEN the loop iterates over the training DataLoader and calls
    `trainer.training_step(batch)` for each batch until max_steps (10000 by default, --max-steps overrides it), and the
    Trainer handles logging, evaluation and sampling itself."""
    trainer, events = watched(corpus)
    assert isinstance(trainer.train_dataloader, DataLoader)
    expected = iter(DataLoader(trainer.train_dataloader.dataset, 8, seed=STRAIGHT["seed"]))
    trainer.fit()
    assert len(trainer.batches) == QUICK["max_steps"] == 12
    for batch in trainer.batches:
        other = next(expected)
        assert all(torch.equal(one, two) for one, two in zip(batch, other, strict=True))

    def steps(kind: str) -> list[int]:
        return [event["step"] for event in events if event["event"] == kind]

    assert steps("step") == list(range(1, 13))
    assert steps("eval") == [0, 4, 8, 12]
    assert steps("sample") == [3, 6, 9, 12]

    single, events = watched(corpus)  # the Trainer minds its cadences where only training_step is called
    for _, batch in zip(range(4), trainer.batches, strict=False):
        single.training_step(batch)
    assert [e["event"] for e in events] == ["step", "step", "step", "sample", "step", "eval"]

    unsaid = {name: value for name, value in QUICK.items() if name != "max_steps"}
    assert build(unsaid, corpus).config.max_steps == 10000
    assert interrupted.start["config"]["max_steps"] == 7
    assert interrupted.steps == list(range(1, 8))


@pytest.mark.usefixtures("one_thread")
def test_periodic_checkpoint_saving(corpus: Path, straight: Session) -> None:
    """WHEN training is in progress THEN checkpoints are saved every checkpoint_cadence (1000 by default) steps, with the
    tokenizer; None disables that; a final one is always saved; and the path is logged."""
    assert TrainingConfig().checkpoint_cadence == 1000
    assert straight.lab.checkpoint_steps("straight") == [5, 10, 12]
    told = {event["step"]: Path(event["path"]) for event in straight.of("checkpoint")}
    assert list(told) == [5, 10, 12]
    assert [Path(row["path"]) for row in printed(straight.done.stdout, "checkpoint")] == list(told.values())
    for step, path in told.items():
        assert path == straight.lab.checkpoint("straight", step)
        assert state_of(path)["step"] == step
        assert Tokenizer.load(path / "tokenizer").identifier == straight.start["tokenizer"]

    trainer, _ = watched(corpus, checkpoint_cadence=5)
    trainer.fit()
    assert trainer.saved == [5, 10, 12]

    trainer, events = watched(corpus, checkpoint_cadence=None)
    trainer.fit()
    assert trainer.saved == [12]
    (event,) = [event for event in events if event["event"] == "checkpoint"]
    assert (Path(event["path"]) / "manifest.json").is_file()

    trainer, _ = watched(corpus, checkpoint_cadence=6)  # the last one falls on the cadence, and is saved once
    trainer.fit()
    assert trainer.saved == [6, 12]
