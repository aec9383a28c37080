"""Two machines, each with a torchrun of its own: here, two torchruns that meet on this machine."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cluster_files import unused_port as unused_port
from torchrun import MAIN, agent, ranks_of

from lmlab import checkpoint, events, lab
from lmlab.proof import differing_tensor

CONFIG = {
    "n_layers": 1, "d_model": 16, "n_heads": 2, "d_ff": 16, "max_seq_len": 16, "batch_size": 4, "max_steps": 3000,
    "dropout": 0.1, "precision": "fp32", "seed": 3, "eval_cadence": None, "checkpoint_cadence": 20,
    "sampling_cadence": None, "sampling_max_length": 4, "keep_checkpoints": 2,
}  # fmt: skip


@contextlib.contextmanager
def machines(port: int, *arguments: object, **environment: str) -> Iterator[list[subprocess.Popen[str]]]:
    flags = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--local-addr=127.0.0.1"]
    flags += [f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=two"]
    with agent(flags, MAIN, *arguments, **environment) as one, agent(flags, MAIN, *arguments, **environment) as other:
        yield [one, other]


def flags(folder: Path, corpus: Path, name: str, **changes: object) -> list[str]:
    sets = [part for key, value in (CONFIG | changes).items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return ["--data", str(corpus), "--runs-dir", str(folder), "--run-name", name, *sets]


def test_when_a_rank_dies_on_one_machine_both_go_on_from_the_newest_checkpoint(
    tmp_path: Path, corpus: Path, unused_port: int
) -> None:
    """The other machine's torchrun counts no restart: its processes were only asked to meet again."""
    steps = 80
    with machines(
        unused_port, *flags(tmp_path, corpus, "struck", max_steps=steps), TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"
    ) as both:
        struck, deadline = False, time.monotonic() + 120
        while not struck and time.monotonic() < deadline:
            if any(event.get("step", 0) >= 30 for event in events.read(tmp_path / "struck" / "log.jsonl")):
                ranks = {rank: kill for each in both for rank, kill in ranks_of(each.pid).items()}
                struck = 1 in ranks and ranks[1](signal.SIGKILL)
            time.sleep(0.01)
        assert struck
        ends = [each.communicate(timeout=120) for each in both]
    assert [each.returncode for each in both] == [0, 0], [stderr[-3000:] for _, stderr in ends]
    run = lab.Run(tmp_path / "struck")
    assert run.status == "completed"
    assert [event["kind"] for event in events.read(run.folder / "log.jsonl") if event["event"] == "run_start"] == [
        "new", "resumed",
    ]  # fmt: skip
    with machines(
        unused_port, *flags(tmp_path, corpus, "undisturbed", max_steps=steps), TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"
    ) as both:
        ends = [each.communicate(timeout=120) for each in both]
    assert [each.returncode for each in both] == [0, 0], [stderr[-3000:] for _, stderr in ends]
    saved = [checkpoint.newest(tmp_path / name / "checkpoints")[0] for name in ("struck", "undisturbed")]
    assert [each.step for each in saved] == [steps, steps]
    assert differing_tensor(*saved) is None


def test_restarts_over_machines_that_would_fail_are_refused_at_the_start(
    tmp_path: Path, corpus: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", raising=False)
    with machines(unused_port, *flags(tmp_path, corpus, "refused")) as both:
        ends = [each.communicate(timeout=120) for each in both]
    assert all(each.returncode for each in both)
    line = "--max-restarts over several machines needs a new store for each start"
    assert any(line in stderr for _, stderr in ends)
    assert not (tmp_path / "refused").exists()
