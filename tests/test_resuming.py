"""Where a run goes on that is resumed from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_config import TINY

from lmlab import lab
from lmlab.checkpoint import Checkpoint
from lmlab.errors import CheckpointError, LabError, RunError
from lmlab.launching import launch
from lmlab.loading import load_model_and_tokenizer
from lmlab.resuming import read_checkpoint, run_folder_of
from lmlab.sampling import write_samples


def test_a_copied_checkpoint_goes_on_in_a_folder_of_its_run_s_id(tmp_path: Path) -> None:
    saved = Checkpoint(tmp_path / "copy", {"step": 3, "run_id": "r-1"})
    assert run_folder_of(saved, tmp_path / "runs") == tmp_path / "runs" / "r-1"
    (tmp_path / "runs" / "r-1").mkdir(parents=True)  # of an attempt that was killed before it saved
    assert run_folder_of(saved, tmp_path / "runs") == tmp_path / "runs" / "r-1"
    (tmp_path / "runs" / "r-1" / "checkpoints" / "step-00000003").mkdir(parents=True)
    with pytest.raises(RunError, match=r"is a copy outside of its run, and .*r-1 exists"):
        run_folder_of(saved, tmp_path / "runs")


@pytest.mark.parametrize("run_id", ["../../escaped", "/tmp/escaped", "..", ".", "", "a/b", ".hidden", 3.5, ["x"]])
def test_a_copied_checkpoint_leads_nowhere_but_into_the_runs(run_id: object, tmp_path: Path) -> None:
    saved = Checkpoint(tmp_path / "copy", {"step": 3, "run_id": run_id})
    with pytest.raises(CheckpointError, match=r"state\.json is damaged: it names no run"):
        run_folder_of(saved, tmp_path / "runs")


def test_a_checkpoint_of_no_run_is_sent_back_to_python(corpus: Path, tmp_path: Path) -> None:
    trainer = lab.build({**TINY, "max_steps": 3}, corpus)
    trainer.facts.clear()  # as of one that was put together by hand
    saved = trainer.save_checkpoint(tmp_path / "mine")
    for go_on in (lab.resume, lambda where, **given: lab.branch(where, "branch", **given)):
        for data in (None, corpus):
            with pytest.raises(
                CheckpointError, match=r"mine was saved by a Trainer of no run; go on with it in Python"
            ):
                go_on(saved, data=data, listeners=[])


def test_a_checkpoint_that_is_removed_before_it_is_read_gives_way_to_the_next(corpus: Path) -> None:
    run = lab.run({**TINY, "max_steps": 3}, corpus, run_name="live", listeners=[])
    seen = []

    def read(saved: Checkpoint) -> int:
        seen.append(saved.step)
        if len(seen) < 3:
            lab.resume("live", max_steps=saved.step + 1, keep_checkpoints=1, listeners=[])
        load_model_and_tokenizer(saved.folder)
        return saved.step

    assert read_checkpoint("live", run.folder.parent, read) == 5
    assert seen == [3, 4, 5]
    (run.folder / "checkpoints" / "step-00000005" / "config.json").write_text("{")
    with pytest.raises(LabError, match=r"config\.json"):
        read_checkpoint(run.folder / "checkpoints" / "step-00000005", run.folder.parent, read)


def test_a_run_that_keeps_one_checkpoint_can_be_sampled_while_it_trains(corpus: Path) -> None:
    settings = {**TINY, "max_steps": 100_000, "checkpoint_cadence": 1, "keep_checkpoints": 1}
    run = launch(settings, corpus, run_name="live")
    try:
        run.wait(1)
        while not run.checkpoints():
            run.wait(run.step + 1)
        for _ in range(40):
            assert write_samples("live", "T", sampling_max_length=1)
        assert run.is_running()
    finally:
        run.stop()
