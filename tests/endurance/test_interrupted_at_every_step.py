"""Resume: interrupted by a signal at every step of 30, with everything switched on, a run is the uninterrupted one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from test_resume import EVERYTHING, STEPS, told_after

from lmlab import checkpoint, files, hub, lab
from lmlab.proof import differing_tensor

pytestmark = pytest.mark.endurance

CONFIG = {
    **EVERYTHING, "checkpoint_cadence": 7, "keep_checkpoints": 2, "activation_checkpointing": True,
    "sampling_top_k": 9, "sampling_top_p": 0.9,
}  # fmt: skip


def told(run: Path) -> list[dict[str, Any]]:
    """Everything that a run's log tells but for clocks and what every session says anew."""
    return [event for event in told_after(run, -1) if event["event"] != "warning"]


def check_every_step(config: dict[str, Any], data: Path) -> None:
    """Train straight; then stop after every single step, go on, and compare all that was logged and every tensor."""
    straight = lab.run(config, data, run_name="straight", listeners=[]).folder
    expected, end = told(straight), checkpoint.newest(straight / "checkpoints")[0]
    assert end.step == STEPS
    for step in range(1, STEPS):

        def stop(event: dict[str, Any], step: int = step) -> None:
            if event["event"] == "step" and event["step"] == step:
                os.kill(os.getpid(), (signal.SIGINT, signal.SIGTERM)[step % 2])

        run = lab.run(config, data, run_name="r", listeners=[stop])
        assert (run.status, run.step) == ("stopped", step)
        resumed = run.resume(listeners=[])
        assert resumed.status == "completed"
        assert told(resumed.folder) == expected
        assert differing_tensor(end, checkpoint.newest(resumed.folder / "checkpoints")[0]) is None
        files.remove_tree(resumed.folder)


def test_a_custom_transformer(corpus: Path) -> None:
    check_every_step({**CONFIG, "precision": "bf16", "optimizer": "muon"}, corpus)


def test_a_tiny_qwen(tmp_path: Path) -> None:
    hub.import_model(str(tiny_models.make(tmp_path / "source")), name="tiny-qwen")
    text = tmp_path / "text.txt"
    text.write_text(tiny_models.text(3000), "utf-8")
    check_every_step({**CONFIG, "model_name": "tiny-qwen", "sampling_prompt": "the"}, text)
