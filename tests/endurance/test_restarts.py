"""SIGKILL of a rank, twice, at random moments of a run that torchrun may start again: it ends as if nothing had been."""

from __future__ import annotations

import itertools
import json
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from torchrun import MAIN, ranks_of, started, worked

from lmlab import checkpoint, events, lab
from lmlab.proof import differing_tensor

pytestmark = pytest.mark.endurance

KILLS = 20
SECONDS = 120  # in which a run ends that does not hang
CONFIG: dict[str, Any] = {
    "n_layers": 2, "d_model": 32, "n_heads": 2, "d_ff": 64, "max_seq_len": 16, "batch_size": 6, "max_steps": 60,
    "learning_rate": 3e-3, "dropout": 0.2, "precision": "fp32", "seed": 7, "eval_cadence": 6, "checkpoint_cadence": 8,
    "sampling_cadence": 20, "sampling_max_length": 8, "keep_checkpoints": 2, "early_stopping_patience": 10,
}  # fmt: skip
STRATEGIES = ("ddp", "fsdp")
TIMINGS = {"time", "run_id", "path", "seconds", "tokens_per_second", "flops_utilization"}


@dataclass(frozen=True)
class Blow:
    """Which rank to kill, and when: so many seconds after the log has reached a step; None for its first process."""

    rank: int
    step: int | None
    seconds: float


def draw(random_: random.Random) -> Blow:
    """A quarter of the blows fall while the ranks are starting, the others at any moment of training, or after it."""
    if random_.random() < 0.25:
        return Blow(random_.randrange(2), None, random_.uniform(0.0, 4.0))
    return Blow(random_.randrange(2), random_.randrange(CONFIG["max_steps"]), random_.uniform(0.0, 0.1))


def draw_two(random_: random.Random) -> list[Blow]:
    """The later step comes second, else it would be there as soon as the ranks are."""
    blows = [draw(random_), draw(random_)]
    steps = [blow.step for blow in blows if blow.step is not None]
    return blows[::-1] if len(steps) == 2 and steps[0] > steps[1] else blows


def flags(folder: Path, corpus: Path, name: str, strategy: str) -> list[str]:
    config = {**CONFIG, "parallel": strategy}
    sets = [part for key, value in config.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return ["--data", str(corpus), "--runs-dir", str(folder), "--run-name", name, *sets]


def strike(torchrun: int, log: Path, blow: Blow) -> bool:
    """Kill the rank when the moment has come; False where there was none left to kill."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found = ranks_of(torchrun)
        reached = blow.step is None or any(e.get("step", -1) >= blow.step for e in events.read(log))
        if len(found) == 2 and reached:
            break
        if not psutil.pid_exists(torchrun) or (not found and reached and blow.step is not None):
            return False
        time.sleep(0.005)
    time.sleep(blow.seconds)
    return ranks_of(torchrun).get(blow.rank, lambda _: False)(signal.SIGKILL)


def disturbed(folder: Path, corpus: Path, name: str, strategy: str, blows: list[Blow]) -> list[Blow]:
    """A run in which a rank is killed, and then again: the blows that fell before it had ended.

    Raises TimeoutExpired on a hang.
    """
    with started(2, MAIN, *flags(folder, corpus, name, strategy), max_restarts=3) as process:
        struck = [blow for blow in blows if strike(process.pid, folder / name / "log.jsonl", blow)]
        _, stderr = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, f"{name}, {blows}: {stderr[-3000:]}"
        return struck


def told(folder: Path) -> list[dict[str, Any]]:
    """What a run's log says of its steps, evaluations and samples."""
    kinds = ("step", "eval", "sample")
    wanted = [event for event in events.read(folder / "log.jsonl") if event["event"] in kinds]
    return [{key: value for key, value in event.items() if key not in TIMINGS} for event in wanted]


def assert_alike(undisturbed: lab.Run, run: lab.Run, blows: list[Blow]) -> None:
    """The run ended as the other one did, bit for bit, and left nothing half done."""
    assert run.status == "completed", blows
    assert told(run.folder) == told(undisturbed.folder), blows
    ends = [checkpoint.newest(each.folder / "checkpoints")[0] for each in (undisturbed, run)]
    assert [end.step for end in ends] == [CONFIG["max_steps"]] * 2, blows
    assert differing_tensor(*ends) is None, blows
    kept = [[path.name for path in each.checkpoints()] for each in (undisturbed, run)]
    assert kept[0] == kept[1], blows
    assert not list(run.folder.rglob(".*.tmp-*")), blows


def test_a_rank_killed_at_any_moment_comes_back_and_the_run_is_the_undisturbed_one(
    tmp_path: Path, corpus: Path
) -> None:
    for strategy in STRATEGIES:
        worked(2, MAIN, *flags(tmp_path, corpus, strategy, strategy), max_restarts=3)
    undisturbed = {strategy: lab.Run(tmp_path / strategy) for strategy in STRATEGIES}
    random_, struck, number = random.Random(20), [], 0
    while len(struck) < KILLS:  # one that comes too late does not count
        n_runs = (KILLS - len(struck) + 1) // 2
        jobs = [(f"run-{number + i}", STRATEGIES[i % 2], draw_two(random_)) for i in range(n_runs)]
        number += n_runs
        with ThreadPoolExecutor(2) as pool:
            struck += itertools.chain(*pool.map(lambda job: disturbed(tmp_path, corpus, *job), jobs))
        for name, strategy, blows in jobs:
            assert_alike(undisturbed[strategy], lab.Run(tmp_path / name), blows)
    assert {blow.rank for blow in struck} == {0, 1}
