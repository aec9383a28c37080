"""What tests share: a tiny config, a small text, and the command line as users call it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from forked import Nursery
from tiny_config import TINY

from lmlab import cli

ROOT = Path(__file__).resolve().parents[1]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are quickest on one thread, here and in the processes that tests start, and their sums agree."""
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Ctrl-C reaches the processes that tests start, where a shell that runs the tests in its background made all deaf."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test works in a folder of its own, with its own runs and models, and restores the thread count."""
    import torch

    threads = torch.get_num_threads()
    for name in os.environ:
        if name.startswith(("LMLAB_", "HF_")) and name != "LMLAB_TEST_GGUF":
            monkeypatch.delenv(name)
    monkeypatch.setenv("LMLAB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("LMLAB_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny() -> dict[str, object]:
    """The values of a config that trains in a second."""
    return dict(TINY)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 20,000 characters in sentences of a few words, the same every time."""
    draw = random.Random(1)
    words = "The cat dog bird saw found lost a red small old ball hat tree and then went home".split()
    sentences = (" ".join(draw.choice(words) for _ in range(draw.randint(3, 8))) + "." for _ in range(1000))
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(sentences)[:20_000], encoding="utf-8")
    return path


@pytest.fixture
def tiny_yaml(tmp_path: Path, tiny: dict[str, object]) -> Path:
    """The tiny config as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in tiny.items()), encoding="utf-8")
    return path


@pytest.fixture
def lab_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line on ARGUMENTS in this process, to its end. Keywords go to the environment.

    `lab_process` is for what only a process of its own can show.
    """

    def call(*arguments: object, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        capsys.readouterr()
        with undisturbed(), contextlib.chdir(cwd):
            os.environ.update(environment)
            try:
                status = cli.main(words)
            except SystemExit as ended:  # argparse has said what is wrong
                status = ended.code
        said = capsys.readouterr()
        return subprocess.CompletedProcess(words, status, said.out, said.err)

    return call


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """What the block may change of this process is put back; nobody is at stdin meanwhile.

    Fails where it leaves a thread behind, or another answer to a signal.
    """
    answers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    threads = threading.enumerate()
    with (
        open(os.devnull, encoding="utf-8") as nobody,
        mock.patch.object(sys, "stdin", nobody),
        mock.patch.dict(os.environ),
        warnings.catch_warnings(),
    ):
        yield
    assert {number: signal.getsignal(number) for number in answers} == answers
    assert [thread for thread in threading.enumerate() if thread not in threads] == []


@pytest.fixture
def lab_process(tmp_path: Path) -> Command:
    """Run `python main.py ARGUMENTS` in a process of its own, to its end. Keywords go to the environment."""

    def call(*arguments: object, cwd: Path = tmp_path, timeout: float = 600, **environment: str):
        return subprocess.run(
            [sys.executable, str(ROOT / "main.py"), *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    return call


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """A warm process that forks children in milliseconds; see `forked`."""
    with Nursery("pytest") as started:
        yield started


@pytest.fixture
def unused_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
