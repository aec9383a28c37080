"""Where a run goes on that is resumed from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmlab.checkpoint import Checkpoint
from lmlab.errors import CheckpointError, RunError
from lmlab.resuming import run_folder_of


def test_a_copied_checkpoint_goes_on_in_a_folder_of_its_run_s_id(tmp_path: Path) -> None:
    saved = Checkpoint(tmp_path / "copy", {"step": 3, "run_id": "r-1"})
    assert run_folder_of(saved, tmp_path / "runs") == tmp_path / "runs" / "r-1"
    (tmp_path / "runs" / "r-1").mkdir(parents=True)  # of an attempt that was killed before it saved
    assert run_folder_of(saved, tmp_path / "runs") == tmp_path / "runs" / "r-1"
    (tmp_path / "runs" / "r-1" / "checkpoints" / "step-00000003").mkdir(parents=True)
    with pytest.raises(RunError, match=r"is a copy outside of its run, and .*r-1 exists"):
        run_folder_of(saved, tmp_path / "runs")


@pytest.mark.parametrize("run_id", ["../../escaped", "/tmp/escaped", "..", ".", "", "a/b", ".hidden", None, 3.5, ["x"]])
def test_a_copied_checkpoint_leads_nowhere_but_into_the_runs(run_id: object, tmp_path: Path) -> None:
    saved = Checkpoint(tmp_path / "copy", {"step": 3, "run_id": run_id})
    with pytest.raises(CheckpointError, match=r"state\.json is damaged: it names no run"):
        run_folder_of(saved, tmp_path / "runs")
