"""Runs in a process of their own, which go on when the notebook's kernel does not."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from lmlab import devices, plain_yaml
from lmlab.config import ConfigLike, TrainingConfig, read_config
from lmlab.errors import RunError, UsageError
from lmlab.lab import Run, new_run_folder
from lmlab.places import find_file, find_runs_dir
from lmlab.record import LOG, find_run, left_by_launch
from lmlab.run_folder import disk_errors

START_SECONDS = 60.0  # after which a user is told that it takes long


def launch(
    config: ConfigLike = None,
    data: str | Path | None = None,
    *,
    run_name: str | None = None,
    runs_dir: str | Path | None = None,
    models_dir: str | Path | None = None,
    processes: int = 1,
    **overrides: object,
) -> Run:
    """Train in a process of its own and return at once, when its first line is in the log.

    Arguments as for `lab.run`; processes: more than one train together, started by torchrun. What they print is in
    `.RUN.out` beside the run's folder. `attach` shows it from anywhere, `Run.stop` asks it to save and end. Raises
    ConfigError, and RunError with the process's own message where it does not start.
    """
    if processes < 1:
        raise UsageError(f"processes={processes} cannot train; give 1 or more")
    resolved = read_config(config, **overrides)
    folder = new_run_folder(runs_dir, run_name)
    output, logs = left_by_launch(folder)
    environment, torchrun = dict(os.environ), []
    if processes > 1:  # without a place for its files torchrun makes one in the temporary folder, and leaves it
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", f"--log-dir={logs}"]
        devices.mind_processor_limits()
        # else torchrun gives each one thread, whatever the machine has
        environment.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        output.touch()
    with open(output, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, *torchrun, "-m", "lmlab.cli", *arguments(folder, resolved, data, models_dir)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        threading.Thread(target=tidy_up_after, args=(process, logs), daemon=True).start()
        wait_for_start(process, folder, output)
    except BaseException:  # an interrupted cell: nobody would hold what it started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        raise
    return Run(folder)


def arguments(
    folder: Path, config: TrainingConfig, data: str | Path | None, models_dir: str | Path | None
) -> list[str]:
    """The command line that trains a config in a folder; it names what is not the default."""
    found = ["--run-name", folder.name, "--runs-dir", str(folder.parent.resolve())]
    if isinstance(data, Path):
        data = find_file(data).absolute()  # as text, a file `storybook` would be the built-in corpus
    for flag, given in (("--data", data), ("--models-dir", models_dir)):
        found += [] if given is None else [flag, str(given)]
    defaults = TrainingConfig().to_dict()
    for name, value in config.to_dict().items():
        found += [] if value == defaults[name] else ["--set", f"{name}={plain_yaml.format_value(value)}"]
    return found


def tidy_up_after(process: subprocess.Popen[bytes], logs: Path) -> None:
    """When a process ends, let it go, so that it is no zombie, and remove torchrun's files where there are some."""
    process.wait()
    shutil.rmtree(logs, ignore_errors=True)


def wait_for_start(process: subprocess.Popen[bytes], folder: Path, output: Path) -> None:
    """Wait for the first whole line of the log, however long a large text or model takes until then.

    Raises RunError with what the process said instead.
    """
    patience = time.monotonic() + START_SECONDS
    log = folder / LOG
    while not (log.exists() and b"\n" in log.read_bytes()):
        if process.poll() is not None:
            said = output.read_text("utf-8", "replace").strip().splitlines()
            errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
            reason = (errors or said[-1:] or [f"it ended with status {process.returncode}"])[0]
            raise RunError(f"the run {folder.name} did not start: {reason}")
        if time.monotonic() > patience:
            logging.getLogger("lmlab").warning("the run %s is still getting ready; see %s", folder.name, output)
            patience = math.inf
        time.sleep(0.05)


def attach(run: str | Path, runs_dir: str | Path | None = None) -> Run:
    """The run of an id or folder, from its files alone: after a kernel's restart, or from another notebook.

    Raises RunError where there is none.
    """
    return Run(find_run(run, find_runs_dir(runs_dir)))
