"""Torn logs: cut anywhere, every whole line is read; killed and resumed again and again, every step stands there once."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

from crashes import kill_at_random
from forked import Nursery
from tiny_config import TINY

from lmlab import checkpoint, events, files, lab
from lmlab.record import Record

CONFIG: dict[str, Any] = {
    **TINY, "precision": "fp32", "max_steps": 100, "checkpoint_cadence": 3, "eval_cadence": 4, "eval_batches": 1,
    "sampling_cadence": 5, "sampling_max_length": 3,
}  # fmt: skip
LOG = Path("runs/r/log.jsonl")


def test_the_log_of_a_run_cut_at_every_byte(corpus: Path) -> None:
    run = lab.run({**CONFIG, "max_steps": 5, "sampling_prompt": "Thé 😀"}, corpus, run_name="r", listeners=[])
    content = run.log_path.read_bytes()
    lines = content.split(b"\n")[:-1]
    whole = [json.loads(line) for line in lines]
    ends = [len(b"\n".join(lines[: n + 1])) for n in range(len(lines))]  # the newline alone may be missing
    assert len(content) > 2000
    for cut in range(len(content) + 1):
        run.log_path.write_bytes(content[:cut])
        expected = whole[: sum(end <= cut for end in ends)]
        read = events.read(run.log_path)
        assert (read, read.damaged) == (expected, 0)
        record = Record(run.folder)
        steps = [event["step"] for event in expected if event["event"] == "step"]
        assert (record.series("loss")[0].tolist(), record.damaged) == (steps, 0)


def kill_and_resume_20_times(corpus: str) -> None:
    draw, kills = random.Random(0), 0
    for name in ("cold", "warm"):
        began = time.monotonic()
        lab.run({**CONFIG, "max_steps": 3}, corpus, run_name=name, runs_dir="runs", listeners=[])
    longest = max(
        0.5, 4 * (time.monotonic() - began)
    )  # of a session: enough to begin and train in, on a busy machine, too

    def work() -> None:
        if checkpoint.steps(LOG.parent / "checkpoints"):
            lab.resume("r", runs_dir="runs", listeners=[], max_steps=10**6)
        else:
            lab.run({**CONFIG, "max_steps": 10**6}, corpus, run_name="r", runs_dir="runs", listeners=[])

    while kills < 20:
        _, status = kill_at_random(work, longest, draw)
        if LOG.exists() and not checkpoint.steps(LOG.parent / "checkpoints"):
            files.remove_tree(LOG.parent)  # killed before its first checkpoint: it begins anew
            continue
        assert status == -signal.SIGKILL
        kills += 1
        steps = [event["step"] for event in events.read(LOG) if event["event"] == "step"]
        assert steps == list(range(1, len(steps) + 1))
    end = len(steps) + 2
    lab.resume("r", runs_dir="runs", listeners=[], max_steps=end)
    log = events.read(LOG)
    for kind, cadence in (("step", 1), ("eval", 4), ("sample", 5)):
        due = [step for step in range(kind != "eval", end + 1) if step % cadence == 0 or step == end]
        assert [event["step"] for event in log if event["event"] == kind] == due
    starts = sum(event["event"] == "run_start" for event in log)
    print(json.dumps({"steps": end, "starts": starts, "damaged": log.damaged}))


def test_20_kills_and_resumes_leave_every_step_once(nursery: Nursery, corpus: Path) -> None:
    status, said = nursery.run(kill_and_resume_20_times, corpus)
    assert status == 0, said
    summary = json.loads(said.splitlines()[-1])
    assert summary["damaged"] == 0
    assert summary["starts"] >= 10
    assert summary["steps"] >= 40
