"""What the tests of the specification stand on: a folder of one's own in which `python main.py` runs, and its traces."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Finished = subprocess.CompletedProcess[str]
Event = dict[str, Any]

# The fields that the specification names, with the defaults that it gives them.
SPECIFIED_DEFAULTS: dict[str, Any] = {
    "n_layers": 4,
    "d_model": 256,
    "n_heads": 4,
    "d_ff": 1024,
    "dropout": 0.1,
    "learning_rate": 3e-4,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "batch_size": 16,
    "max_steps": 10000,
    "max_seq_len": 256,
    "train_ratio": 0.95,
    "eval_cadence": None,
    "sampling_cadence": None,
    "sampling_temperature": 1.0,
    "sampling_prompt": "The",
    "sampling_max_length": 100,
    "sampling_seed": 42,
    "checkpoint_cadence": 1000,
    "seed": None,
    "model_name": None,
}
ARCHITECTURE = ("n_layers", "d_model", "n_heads", "d_ff", "dropout")

# A config that trains in a second with everything switched on that a run can be asked for.
STRAIGHT: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 32,
    "n_heads": 2,
    "d_ff": 64,
    "dropout": 0.1,
    "max_seq_len": 16,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 12,
    "learning_rate": 3e-3,
    "lr_schedule": "cosine",
    "lr_decay_steps": 12,
    "warmup_steps": 2,
    "train_ratio": 0.9,
    "eval_cadence": 4,
    "sampling_cadence": 3,
    "sampling_max_length": 12,
    "checkpoint_cadence": 5,
    "hooks": ["weight_norms:6", "activation_stats:6"],
    "seed": 7,
}

# A fine-tuning as short, of a model whose own architecture is not the one named here.
TUNING: dict[str, Any] = {
    "model_name": "qwen-0.5b-base",
    "n_layers": 7,
    "d_model": 64,
    "max_seq_len": 16,
    "batch_size": 4,
    "max_steps": 12,
    "learning_rate": 3e-3,
    "eval_cadence": 4,
    "sampling_cadence": 3,
    "sampling_max_length": 8,
    "checkpoint_cadence": 5,
    "seed": 7,
}

# What two runs of the same config may differ in.
OWN = {
    "time",
    "run_id",
    "path",
    "seconds",
    "tokens_per_second",
    "flops_utilization",
    "git_commit",
    "git_dirty",
}
VALUE = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\[[^]]*\]|\S+)')


@dataclass
class Lab:
    """A folder with its own runs and models, and the command line as a user in that folder calls it."""

    folder: Path
    project: Path = ROOT
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> Path:
        """Where its runs are kept."""
        return self.folder / "runs"

    @property
    def models(self) -> Path:
        """Where its models are kept."""
        return self.folder / "models"

    def call(self, *arguments: object, timeout: float = 120, stdin: int = subprocess.DEVNULL) -> Finished:
        """`python main.py ARGUMENTS`, finished, whatever its exit status."""
        return subprocess.run(
            [sys.executable, str(self.project / "main.py"), *map(str, arguments)],
            cwd=self.folder,
            env=self.variables(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=stdin,
        )

    def main(self, *arguments: object, timeout: float = 120) -> Finished:
        """`python main.py ARGUMENTS`, which must succeed."""
        done = self.call(*arguments, timeout=timeout)
        assert done.returncode == 0, f"main.py {' '.join(map(str, arguments))}:\n{done.stdout[-2000:]}{done.stderr}"
        return done

    def refusal(self, *arguments: object, status: int = 1) -> str:
        """The one line with which `python main.py ARGUMENTS` refuses, without a traceback and with that exit status."""
        done = self.call(*arguments)
        assert done.returncode == status, f"exit status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr}"
        return error_line(done.stderr)

    def variables(self) -> dict[str, str]:
        """The environment of its processes: nothing of the machine's own settings reaches them."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LMLAB_", "HF_"))}
        own = {
            "LMLAB_RUNS_DIR": str(self.runs),
            "LMLAB_MODELS_DIR": str(self.models),
            "HF_HOME": str(self.folder / "huggingface"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "120",
        }
        return {**kept, **own, **self.environment}

    def config(self, name: str = "config", /, **values: Any) -> Path:
        """A YAML file with these values."""
        path = self.folder / f"{name}.yaml"
        path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()), encoding="utf-8")
        return path

    def run_folder(self, run: str) -> Path:
        """The folder of a run."""
        return self.runs / run

    def checkpoint(self, run: str, step: int) -> Path:
        """The folder of a run's checkpoint after an update."""
        return self.run_folder(run) / "checkpoints" / f"step-{step:08d}"

    def checkpoint_steps(self, run: str) -> list[int]:
        """The updates after which a run was saved."""
        folders = (self.run_folder(run) / "checkpoints").glob("step-*")
        return sorted(int(path.name.removeprefix("step-")) for path in folders)

    def events(self, run: str, kind: str | None = None) -> list[Event]:
        """The events of a run's log, or those of one kind, each line read by the standard library alone."""
        return read_log(self.run_folder(run), kind)

    def start(self, run: str) -> Event:
        """The last `run_start` of a run."""
        return self.events(run, "run_start")[-1]

    def series(self, run: str, key: str, kind: str = "step") -> dict[int, Any]:
        """A number of the log by step."""
        return {event["step"]: event[key] for event in self.events(run, kind)}

    def names(self) -> list[str]:
        """The models in its registry."""
        path = self.models / "registry.json"
        return list(json.loads(path.read_text(encoding="utf-8"))["models"]) if path.exists() else []

    def entry(self, name: str) -> dict[str, Any]:
        """A model's entry in the registry file."""
        entry: dict[str, Any] = json.loads((self.models / "registry.json").read_text(encoding="utf-8"))["models"][name]
        return entry

    def copy_to(self, folder: Path) -> Lab:
        """A lab with the same files in another folder, for a test that changes them."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("huggingface"))
        return Lab(folder, self.project, dict(self.environment))


@dataclass(frozen=True)
class Session:
    """One process that trained: its lab, the run, what it printed, and the log as it was when it ended."""

    lab: Lab
    run: str
    done: Finished
    events: list[Event]

    def of(self, kind: str) -> list[Event]:
        """The events of one kind."""
        return [event for event in self.events if event["event"] == kind]

    @property
    def start(self) -> Event:
        """The last `run_start`."""
        return self.of("run_start")[-1]

    @property
    def steps(self) -> list[int]:
        """The step of every `step` event, in order."""
        return [event["step"] for event in self.of("step")]

    @property
    def losses(self) -> dict[int, float]:
        """The training loss by step."""
        return {event["step"]: event["loss"] for event in self.of("step")}


def trained(lab: Lab, run: str, *arguments: object) -> Session:
    """Train with these arguments, the run's name among them where it is a new one."""
    done = lab.main(*arguments)
    return Session(lab, run, done, lab.events(run))


def read_log(run_folder: Path, kind: str | None = None) -> list[Event]:
    """The events of a run's log, or those of one kind, read by the standard library alone."""
    lines = (run_folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    events: list[Event] = [json.loads(line) for line in lines]
    return [event for event in events if kind in (None, event["event"])]


def error_line(stderr: str) -> str:
    """The one line of an error, which is all of stderr but for the usage before it."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert lines, "no error message"
    assert lines[-1].startswith("error: "), stderr
    assert "Traceback" not in stderr, stderr
    assert len(lines) == 1 or lines[0].startswith("usage: "), stderr
    return lines[-1]


def comparable(events: list[Event]) -> list[Event]:
    """Events without what two equal runs differ in."""
    return [{key: value for key, value in event.items() if key not in OWN} for event in events]


def printed(stdout: str, kind: str) -> list[dict[str, str]]:
    """The `key=value` lines of an event as they were printed, parsed without any of the lab's code."""
    rows = (dict(VALUE.findall(line)) for line in stdout.splitlines() if line.startswith(f"event={kind} "))
    return [{key: json.loads(value) if value[0] == '"' else value for key, value in row.items()} for row in rows]


def state_of(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of its run."""
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return state


def architecture_of(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint or a model says of its architecture."""
    values: dict[str, Any] = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return values


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
