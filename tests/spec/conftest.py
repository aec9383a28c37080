"""Runs that several scenarios look at: each is made once, through the command line, and only read afterwards."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models
import torch
from hub_server import HubServer
from workbench import ROOT, STRAIGHT, TUNING, Lab, Session, trained


@pytest.fixture
def one_thread() -> None:
    """Sums as in the processes of a `Lab`; the number of threads is put back by `own_folders`."""
    torch.set_num_threads(1)


@pytest.fixture
def own_lab(tmp_path: Path) -> Lab:
    """An empty lab of the test's own."""
    return Lab(tmp_path)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The lab that the runs below share."""
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="session")
def straight_config(lab: Lab) -> Path:
    """The config of the run `straight`."""
    return lab.config("straight", **STRAIGHT)


@pytest.fixture(scope="session")
def straight(lab: Lab, straight_config: Path, corpus: Path) -> Session:
    """12 steps of a tiny custom Transformer, without interruption."""
    return trained(lab, "straight", "--config", straight_config, "--data", corpus, "--run-name", "straight")


@pytest.fixture(scope="session")
def interrupted(lab: Lab, straight_config: Path, corpus: Path) -> Session:
    """The same config, ended after 7 steps."""
    arguments = ("--config", straight_config, "--data", corpus, "--run-name", "interrupted", "--max-steps", 7)
    return trained(lab, "interrupted", *arguments)


@pytest.fixture(scope="session")
def resumed(lab: Lab, interrupted: Session) -> Session:
    """The interrupted run, resumed from its checkpoint to the end."""
    return trained(lab, "interrupted", "--resume", lab.checkpoint("interrupted", 7), "--max-steps", 12)


@pytest.fixture(scope="session")
def defaults(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """`python main.py --max-steps 2`: everything else is left to the defaults."""
    lab = Lab(tmp_path_factory.mktemp("defaults"))
    done = lab.main("--max-steps", 2)
    (folder,) = lab.runs.iterdir()
    return Session(lab, folder.name, done, lab.events(folder.name))


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in a repository of its own, with one commit."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    folder.mkdir()
    for name in ("main.py", "README.md", "pyproject.toml", "constraints.txt"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    for name in ("lmlab", "configs", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "The project"]):
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen 2 in the layout of Hugging Face."""
    return tiny_models.make(tmp_path_factory.mktemp("qwen") / "tiny", "qwen2")


@pytest.fixture(scope="session")
def hub(qwen_folder: Path) -> Iterator[HubServer]:
    """A model hub on this machine that has it."""
    with HubServer() as server:
        for model_id in ("Qwen/Qwen-0.5B", "Qwen/Qwen2.5-0.5B"):
            server.add(model_id, qwen_folder)
        yield server


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> Lab:
    """A lab into which the hub's model was imported as `qwen-0.5b-base`. Copy it before changing its registry."""
    environment = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
    lab = Lab(tmp_path_factory.mktemp("qwen-lab"), environment=environment)
    lab.main("import-model", "Qwen/Qwen2.5-0.5B", "--name", "qwen-0.5b-base", "--yes")
    return lab


@pytest.fixture(scope="session")
def tuned(qwen: Lab, corpus: Path) -> Session:
    """The imported model, fine-tuned for 12 steps without interruption."""
    config = qwen.config("tuning", **TUNING)
    return trained(qwen, "tuned", "--config", config, "--data", corpus, "--run-name", "tuned")


@pytest.fixture(scope="session")
def tuning_interrupted(qwen: Lab, tuned: Session, corpus: Path) -> Session:
    """The same fine-tuning, ended after 7 steps."""
    arguments = ("--config", qwen.folder / "tuning.yaml", "--data", corpus, "--max-steps", 7)
    return trained(qwen, "tuning", *arguments, "--run-name", "tuning")


@pytest.fixture(scope="session")
def tuning_resumed(qwen: Lab, tuning_interrupted: Session) -> Session:
    """The interrupted fine-tuning, resumed from its checkpoint to the end."""
    return trained(qwen, "tuning", "--resume", qwen.checkpoint("tuning", 7), "--max-steps", 12)


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory, tuned: Session) -> Lab:
    """A lab with two models: the imported one, and `qwen-notes`, registered from the run that tuned it."""
    lab = tuned.lab.copy_to(tmp_path_factory.mktemp("family"))
    lab.main("register-model", lab.checkpoint("tuned", 12), "--name", "qwen-notes")
    return lab


@pytest.fixture(scope="session")
def grandchild(family: Lab, corpus: Path) -> Session:
    """The registered fine-tuned model named in another config, and tuned again for 2 steps."""
    config = family.config("second", **{**TUNING, "model_name": "qwen-notes", "max_steps": 2})
    return trained(family, "second", "--config", config, "--data", corpus, "--run-name", "second")
