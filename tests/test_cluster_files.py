"""The example job files, each read by the tool that parses it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from lmlab import lab
from lmlab.config import parse_override

ROOT = Path(__file__).resolve().parents[1]
SLURM, KUBERNETES = ROOT / "slurm" / "train.sbatch", ROOT / "kubernetes" / "train.yaml"
VERSION = "1.34"  # of Kubernetes
LONE_SLURM = """ClusterName=none
SlurmctldHost=localhost
SlurmctldPort={port}
MessageTimeout=2
GresTypes=gpu
AuthType=auth/none
CredType=cred/none
"""


def resources() -> list[dict[str, object]]:
    return list(yaml.safe_load_all(KUBERNETES.read_text(encoding="utf-8")))


def pod_script() -> str:
    (_, job) = resources()
    (container,) = job["spec"]["template"]["spec"]["containers"]  # type: ignore[index]
    assert container["command"] == ["bash", "-euc"]
    return container["args"][0]


def script(path: Path) -> str:
    return path.read_text(encoding="utf-8")


# --- Kubernetes


def test_every_resource_is_valid_by_the_schema_of_kubernetes():
    kinds = []
    for resource in resources():
        kubernetes_validate.validate(resource, VERSION, strict=True)
        kinds.append(resource["kind"])
    assert kinds == ["Service", "Job"]


def test_the_schema_refuses_what_is_wrong():
    (_, job) = resources()
    job["spec"]["completionmode"] = "Indexed"  # type: ignore[index]
    with pytest.raises(kubernetes_validate.ValidationError, match="completionmode"):
        kubernetes_validate.validate(job, VERSION, strict=True)


def test_the_pods_find_one_another_and_agree_on_their_number():
    service, job = resources()
    spec = job["spec"]  # type: ignore[index]
    name = service["metadata"]["name"]  # type: ignore[index]
    assert spec["template"]["spec"]["subdomain"] == name
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}  # type: ignore[index]
    assert service["spec"]["clusterIP"] == "None"  # type: ignore[index]
    assert spec["completionMode"] == "Indexed"
    given = torchrun_flags(pod_script())
    assert spec["completions"] == spec["parallelism"] == int(given["nnodes"])
    port = service["spec"]["ports"][0]["port"]  # type: ignore[index]
    assert given["rdzv-endpoint"] == f"{job['metadata']['name']}-0.{name}:{port}"  # type: ignore[index]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(given["nproc-per-node"])


# --- Slurm


def directives() -> list[str]:
    return re.findall(r"^#SBATCH (.+)$", script(SLURM), re.MULTILINE)


def test_every_directive_is_a_long_option_with_a_value_before_the_first_command():
    lines = script(SLURM).splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(number < first_command for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    for each in directives():
        assert re.fullmatch(r"--(requeue|[a-z-]+=\S+)", each), each
    names = [each.partition("=")[0] for each in directives()]
    assert len(names) == len(set(names)) >= 8
    assert "--ntasks-per-node=1" in directives()  # torchrun starts the rest


@pytest.mark.slurm
def test_sbatch_takes_the_directives(tmp_path: Path, unused_port: int):
    """Without a controller, sbatch parses the file and then finds nobody; a wrong directive ends it before."""
    assert shutil.which("sbatch") is not None, "apt-get install slurm-client"
    (tmp_path / "slurm.conf").write_text(LONE_SLURM.format(port=unused_port))
    wrong = tmp_path / "wrong.sbatch"
    wrong.write_text(script(SLURM).replace("--nodes=", "--nodez="))

    def said(path: Path) -> str:
        environment = {**os.environ, "SLURM_CONF": str(tmp_path / "slurm.conf")}
        done = subprocess.run(
            ["sbatch", str(path)], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode != 0
        return done.stderr

    assert "Unable to contact slurm controller" in said(SLURM)
    assert "unrecognized option '--nodez=2'" in said(wrong)


# --- both: what they start


def torchrun_flags(text: str) -> dict[str, str]:
    """The flags that a script gives torchrun, before main.py."""
    command = shlex.split(text[text.index("torchrun \\\n") :].replace("\\\n", " "))
    given = command[1 : command.index("main.py")]
    return {name.removeprefix("--"): value for name, _, value in (each.partition("=") for each in given)}


@pytest.mark.parametrize("text", [script(SLURM), pod_script()], ids=["slurm", "kubernetes"])
def test_bash_and_torchrun_take_what_is_written(text: str):
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    known = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for name in torchrun_flags(text):
        assert f"--{name}" in known, name


def pod_environment() -> dict[str, str]:
    (_, job) = resources()
    (container,) = job["spec"]["template"]["spec"]["containers"]  # type: ignore[index]
    return {each["name"]: each["value"] for each in container["env"]}


@pytest.fixture
def stubs(tmp_path: Path) -> dict[str, str]:
    """An environment with commands that say how they were called in place of torchrun and of Slurm's own.

    torchrun runs what stands in `$TORCHRUN_DOES` besides.
    """
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, does in {
        "torchrun": 'printf "%s\\n" "$@"; env | grep ^TORCH; eval "${TORCHRUN_DOES:-}"',
        "srun": 'echo "srun $1 $2"; shift 2; exec "$@"',
        "scontrol": "echo node-a; echo node-b",
        "sleep": "exit 0",
    }.items():
        (commands / name).write_text(f"#!/bin/bash\n{does}\n")
        (commands / name).chmod(0o755)
    return {
        "PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "32",
    }  # fmt: skip


COMPLETED = """mkdir -p runs/mine; echo '{"event": "run_end", "status": "completed"}' >> runs/mine/log.jsonl"""


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("where", ["slurm", "kubernetes"])
def test_a_run_that_saved_goes_on_and_another_begins(tmp_path: Path, stubs: dict[str, str], where: str, saved: bool):
    if saved:
        (tmp_path / "runs" / "mine" / "checkpoints" / "step-00000010").mkdir(parents=True)
    text = script(SLURM) if where == "slurm" else pod_script()
    environment = {**(pod_environment() if where == "kubernetes" else {}), **stubs, "RUN": "mine", "SETTINGS": ""}
    environment |= {"CONFIG": "configs/default.yaml", "TORCHRUN_DOES": COMPLETED, "LMLAB_RUNS_DIR": "runs"}
    if where == "slurm":  # which looks for runs where lmlab does
        del environment["LMLAB_RUNS_DIR"]
        environment["LMLAB_HOME"] = str(tmp_path)
    done = subprocess.run(
        ["bash", "-euc", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    called = done.stdout.split("\n")
    after = called[called.index("main.py") + 1 :]
    expected = ["--resume", "mine"] if saved else ["--config", "configs/default.yaml", "--run-name", "mine"]
    assert after[: len(expected)] == expected
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in after
    assert "--nnodes=2" in called
    if where == "slurm":
        assert called[0] == "srun --kill-on-bad-exit=1 --cpus-per-task=32"
        assert {"--rdzv-endpoint=node-a:29500", "--rdzv-id=7", "--nproc-per-node=8"} <= set(called)


@pytest.mark.parametrize("where", ["slurm", "kubernetes"])
def test_the_run_that_is_shipped_has_a_window_for_each_gpu(tmp_path: Path, stubs: dict[str, str], where: str):
    environment = {**(pod_environment() if where == "kubernetes" else {}), **stubs, "LMLAB_RUNS_DIR": "runs"}
    environment |= {"RUN": "mine", "TORCHRUN_DOES": COMPLETED}
    text = script(SLURM) if where == "slurm" else pod_script()
    called = subprocess.run(
        ["bash", "-euc", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    n_ranks = 2 * int(next(each for each in called if each.startswith("--nproc-per-node=")).partition("=")[2])
    sets = [called[i + 1] for i, each in enumerate(called) if each == "--set"]
    config = lab.read_config(ROOT / called[called.index("--config") + 1], **dict(map(parse_override, sets)))
    windows = config.batch_size * config.gradient_accumulation_steps
    shipped = lab.read_config(ROOT / "configs" / "large-model.yaml")
    assert config.batch_size % n_ranks == 0
    assert windows == shipped.batch_size * shipped.gradient_accumulation_steps


@pytest.mark.parametrize(
    ("log", "status"), [("completed", 0), ("stopped", 75), ("completed stopped", 75), ("stopped completed", 0)]
)
def test_a_pod_is_done_only_when_the_run_is(tmp_path: Path, stubs: dict[str, str], log: str, status: int):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    lines = [json.dumps({"event": "run_end", "status": each}) for each in log.split()]
    (folder / "log.jsonl").write_text("\n".join([*lines, ""]))
    environment = {**pod_environment(), **stubs, "LMLAB_RUNS_DIR": "runs", "RUN": "mine"}
    done = subprocess.run(
        ["bash", "-euc", pod_script()], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert done.returncode == status, done.stderr
    failing = {**environment, "TORCHRUN_DOES": "exit 3"}
    done = subprocess.run(["bash", "-euc", pod_script()], cwd=tmp_path, env=failing, capture_output=True, check=False)
    assert done.returncode == 3


def test_a_pod_hands_the_signal_to_stop_on_and_waits(tmp_path: Path, stubs: dict[str, str]):
    saves = "trap 'echo saved > saved; exit 0' TERM; echo > ready; while :; do read -t 0.05 <> <(:) || :; done"
    environment = {**pod_environment(), **stubs, "LMLAB_RUNS_DIR": "runs", "RUN": "mine", "TORCHRUN_DOES": saves}
    pod = subprocess.Popen(["bash", "-euc", pod_script()], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        pod.terminate()
        assert pod.wait(60) == 75
    finally:
        pod.kill()
    assert (tmp_path / "saved").exists()
