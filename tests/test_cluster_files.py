"""The example job files, each read by the tool that parses it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

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


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


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


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("where", ["slurm", "kubernetes"])
def test_a_run_that_saved_goes_on_and_another_begins(tmp_path: Path, where: str, saved: bool):
    """The scripts in bash, with commands that say how they were called in place of torchrun and of Slurm's own."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, does in {
        "torchrun": 'printf "%s\\n" "$@"',
        "srun": 'shift; exec "$@"',
        "scontrol": "echo node-a; echo node-b",
    }.items():
        (commands / name).write_text(f"#!/bin/bash\n{does}\n")
        (commands / name).chmod(0o755)
    if saved:
        (tmp_path / "runs" / "mine" / "checkpoints" / "step-00000010").mkdir(parents=True)
    environment = {
        "PATH": f"{commands}:{os.environ['PATH']}", "RUN": "mine", "CONFIG": "configs/default.yaml",
        "LMLAB_RUNS_DIR": "runs", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7",
    }  # fmt: skip
    text = script(SLURM) if where == "slurm" else pod_script()
    done = subprocess.run(
        ["bash", "-euc", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    called = done.stdout.split("\n")
    after = called[called.index("main.py") + 1 : -1]
    assert after == (["--resume", "mine"] if saved else ["--config", "configs/default.yaml", "--run-name", "mine"])
    assert "--nnodes=2" in called
    if where == "slurm":
        assert {"--rdzv-endpoint=node-a:29500", "--rdzv-id=7", "--nproc-per-node=8"} <= set(called)
