"""Requirement: Checkpoint Resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from workbench import STRAIGHT, Lab, Session, comparable, state_of

from lmlab import Trainer, TrainingConfig, cli
from lmlab.optim import optimizer_tensors


@pytest.mark.usefixtures("one_thread")
def test_resume_from_checkpoint(straight: Session, resumed: Session) -> None:
    """WHEN main.py is invoked with --resume PATH THEN the checkpoint is loaded by `Trainer.from_checkpoint`, training
    continues from its step, and model, optimizer, config and step are restored."""
    saved = resumed.lab.checkpoint("interrupted", 7)
    assert resumed.start["kind"] == "resumed"
    assert resumed.start["resumed_from"] == str(saved)
    after = resumed.events[resumed.events.index(resumed.start) :]
    assert [event["step"] for event in after if event["event"] == "step"] == [8, 9, 10, 11, 12]
    assert comparable([e for e in after if e["event"] == "step"]) == comparable(straight.of("step")[7:])

    ends = [
        state_of(lab.checkpoint(run, 12)) for lab, run in ((resumed.lab, "interrupted"), (straight.lab, "straight"))
    ]
    assert {key: ends[0][key] for key in ends[0] if key != "run_id"} == {
        k: ends[1][k] for k in ends[1] if k != "run_id"
    }

    trainer = Trainer.from_checkpoint(saved)
    assert trainer.step == 7
    assert trainer.position == state_of(saved)["data"]["position"] == 7 * 8
    assert trainer.config == TrainingConfig.from_dict({**STRAIGHT, "max_steps": 7})
    for own, part in (
        (trainer.model.tensors(), "model"),
        (optimizer_tensors(trainer.optimizer, trainer.model.model), "optimizer"),
        (trainer.random.state, "rng"),
    ):
        stored = load_file(saved / f"{part}.safetensors")
        assert own.keys() == stored.keys()
        assert all(torch.equal(own[name], stored[name]) for name in stored)
    assert trainer.tokenizer is not None
    assert trainer.tokenizer.identifier == state_of(saved)["tokenizer"]


def cut(checkpoint: Path) -> str:
    """Half of the weights."""
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "model.safetensors"


def flip(checkpoint: Path) -> str:
    """One wrong bit in the optimizer's state."""
    path = checkpoint / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return "optimizer.safetensors"


def remove_state(checkpoint: Path) -> str:
    """No state."""
    (checkpoint / "state.json").unlink()
    return "state.json"


def spoil_manifest(checkpoint: Path) -> str:
    """A manifest that is no JSON."""
    (checkpoint / "manifest.json").write_text("{")
    return "manifest.json"


def remove_all(checkpoint: Path) -> str:
    """An empty folder."""
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    return "is no complete checkpoint: its manifest.json is missing"


def other_json(checkpoint: Path) -> str:
    """JSON in place of a checkpoint."""
    shutil.rmtree(checkpoint)
    checkpoint.write_text(json.dumps({"step": 7}))
    return "is a file"


@pytest.mark.parametrize("damage", [cut, flip, remove_state, spoil_manifest, remove_all, other_json])
def test_checkpoint_file_errors(
    damage: Callable[[Path], str], interrupted: Session, own_lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """WHEN the checkpoint file is missing or invalid THEN an error message is displayed, and the program exits
    gracefully with a non-zero exit code."""
    copied = own_lab.folder / "step-00000007"
    shutil.copytree(interrupted.lab.checkpoint("interrupted", 7), copied)
    named = damage(copied)
    if damage is cut:  # once in a process of its own, with the missing one
        message = own_lab.refusal("--resume", copied)
        assert "no-such" in own_lab.refusal("--resume", own_lab.folder / "no-such")
    else:
        assert cli.main(["--resume", str(copied)]) == 1
        output = capsys.readouterr()
        assert output.out == ""
        message = output.err
        assert message.startswith("error: ")
        assert message.count("\n") == 1
    assert named in message
    assert not own_lab.runs.exists(), "nothing was trained"
