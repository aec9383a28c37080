"""Two machines, each with a torchrun of its own: here, two torchruns that meet on this machine."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from torchrun import MAIN, ROOT, agent

from lmlab import checkpoint, lab
from lmlab.proof import differing_tensor

MISHAP = ROOT / "tests" / "rank_mishap.py"
CONFIG = {
    "n_layers": 1, "d_model": 16, "n_heads": 2, "d_ff": 16, "max_seq_len": 16, "batch_size": 4, "max_steps": 12,
    "dropout": 0.1, "precision": "fp32", "seed": 3, "checkpoint_cadence": 3, "sampling_max_length": 4, "parallel": "fsdp",
}  # fmt: skip


@contextlib.contextmanager
def machines(port: int, script: Path, *arguments: object, **environment: str) -> Iterator[list[subprocess.Popen[str]]]:
    flags = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=1", "--rdzv-backend=c10d", "--local-addr=127.0.0.1"]
    flags += [f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=two"]
    with (
        agent(flags, script, *arguments, **environment) as one,
        agent(flags, script, *arguments, **environment) as other,
    ):
        yield [one, other]


def flags(folder: Path, corpus: Path, name: str) -> list[str]:
    sets = [part for key, value in CONFIG.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return ["--data", str(corpus), "--runs-dir", str(folder), "--run-name", name, *sets]


def test_when_a_rank_dies_on_one_machine_both_go_on_from_the_newest_checkpoint(
    tmp_path: Path, corpus: Path, unused_port: int
) -> None:
    """The other machine's torchrun counts no restart: its processes were only asked to meet again."""
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    for name, script in (("struck", [MISHAP, "die-saving", "1"]), ("undisturbed", [MAIN])):
        with machines(unused_port, *script, *flags(tmp_path, corpus, name), **own_store) as both:
            ends = [each.communicate(timeout=120) for each in both]
        assert [each.returncode for each in both] == [0, 0], [stderr[-3000:] for _, stderr in ends]
    struck, undisturbed = (lab.Run(tmp_path / name) for name in ("struck", "undisturbed"))
    assert [start["kind"] for start in struck.starts] == ["new", "resumed"]
    assert struck.status == "completed"
    assert struck.series("loss")[1].tolist() == undisturbed.series("loss")[1].tolist()
    saved = [checkpoint.newest(run.folder / "checkpoints")[0] for run in (struck, undisturbed)]
    assert [each.step for each in saved] == [CONFIG["max_steps"]] * 2
    assert differing_tensor(*saved) is None


def test_restarts_over_machines_that_would_fail_are_refused_at_the_start(
    tmp_path: Path, corpus: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", raising=False)
    with machines(unused_port, MAIN, *flags(tmp_path, corpus, "refused")) as both:
        ends = [each.communicate(timeout=120) for each in both]
    assert all(each.returncode for each in both)
    line = "--max-restarts over several machines needs a new store for each start"
    assert any(line in stderr for _, stderr in ends)
    assert not (tmp_path / "refused").exists()
