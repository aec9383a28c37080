"""A run beside what else goes on in its notebook: settings of torch, other threads, interrupts, listeners that fail."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_config import TINY

from lmlab import events, isolation, lab, scaling, study
from lmlab.hub import import_model
from lmlab.sampling import write_samples
from lmlab.trainer import Trainer
from lmlab.transformer import Transformer

CONFIG = {**TINY, "precision": "fp32", "dropout": 0.2, "sampling_prompt": "The"}


def losses(runs_dir: Path, data: Path, name: str, **overrides: Any) -> list[float]:
    """The training losses of a run, and its last validation loss."""
    run = lab.run({**CONFIG, **overrides}, data, run_name=name, runs_dir=runs_dir, listeners=[])
    return [*run.series("loss")[1].tolist(), run.last("val_loss")]


@contextlib.contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def coarse_products(backend: Any, precision: str) -> Iterator[None]:
    """What the newer of torch's settings of fp32 allow; `none` is how a process begins."""
    backend.fp32_precision = precision
    try:
        yield
    finally:
        backend.fp32_precision = "none"


@contextlib.contextmanager
def coarser_than_highest(precision: str) -> Iterator[None]:
    """What the older setting allows. It leaves the newer ones set."""
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        for backend in MATRICES:
            backend.fp32_precision = "none"


def products() -> list[str]:
    """How fp32 is multiplied, by the newer settings and the older one, which may refuse to be read beside them."""
    found = [backend.fp32_precision for backend in MATRICES]
    try:
        return [*found, torch.get_float32_matmul_precision()]
    except RuntimeError:
        return [*found, "refused"]


BACKENDS: Any = torch.backends
MATRICES: Any = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    before = torch.get_default_device()
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None if before == torch.device("cpu") else before)


SETTINGS = {
    "doubles": lambda: default_type(torch.float64),
    "halves": lambda: default_type(torch.bfloat16),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "another device": lambda: default_device("meta"),
    "another device for a block": lambda: torch.device("meta"),
}
PRODUCTS = {
    "high": lambda: coarser_than_highest("high"),
    "medium": lambda: coarser_than_highest("medium"),
    "bf16 for matrices": lambda: coarse_products(MATRICES[1], "bf16"),
    "bf16 for all": lambda: coarse_products(BACKENDS, "bf16"),
    "tf32 on GPUs": lambda: coarse_products(MATRICES[0], "tf32"),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_a_notebook_has_set_changes_no_number(setting: str, tmp_path: Path, corpus: Path) -> None:
    straight = losses(tmp_path, corpus, "straight")
    with SETTINGS[setting]():
        here = torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        assert losses(tmp_path, corpus, "begun", max_steps=4, lr_decay_steps=6)[:-1] == straight[:4]
        resumed = lab.resume("begun", runs_dir=tmp_path, max_steps=6, listeners=[])
        trainer = lab.build(CONFIG, corpus, run_name="by-hand", runs_dir=tmp_path)
        trainer.fit()
        assert (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")) == here
    assert [*resumed.series("loss")[1].tolist(), resumed.last("val_loss")] == straight
    adapter, _ = resumed.load()
    for ours, theirs in zip(trainer.model.parameters(), adapter.parameters(), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("setting", ["medium", "bf16 for all"])
def test_coarser_products_elsewhere_change_no_step(setting: str, tmp_path: Path, corpus: Path) -> None:
    wide = {**CONFIG, "d_model": 128, "d_ff": 256, "max_seq_len": 64, "batch_size": 8, "dropout": 0.0}

    def losses_of(name: str) -> list[float]:
        trainer = lab.build(wide, corpus, run_name=name, runs_dir=tmp_path)
        return [
            trainer.training_step(batch) for batch, _ in zip(trainer.train_dataloader or (), range(6), strict=False)
        ]

    straight = losses_of("straight")
    with PRODUCTS[setting]():
        assert losses_of("beside") == straight


@pytest.mark.parametrize("setting", PRODUCTS)
def test_fp32_is_multiplied_in_fp32_and_what_was_set_comes_back(setting: str) -> None:
    with PRODUCTS[setting]():
        here = products()
        for _ in range(2):
            with isolation.on_its_own():
                assert set(products()) <= {"none", "ieee", "highest"}
                assert not MATRICES[0].allow_tf32
            assert products() == here
    assert products() == ["none", "none", "highest"]


def test_a_setting_for_all_libraries_stays_one() -> None:
    with coarse_products(BACKENDS, "bf16"), isolation.on_its_own():
        pass
    with coarse_products(BACKENDS, "tf32"):
        assert products()[:2] == ["tf32", "tf32"]


def test_a_model_is_made_of_fp32_whatever_the_default() -> None:
    shape = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_ff": 8, "dropout": 0.0, "max_seq_len": 4, "seed": 0}
    expected = Transformer(5, **shape).state_dict()
    with default_type(torch.float64):
        made = Transformer(5, **shape).state_dict()
    assert all(torch.equal(made[name], expected[name]) for name in expected)


@pytest.mark.parametrize("setting", ["doubles", "another device"])
def test_what_a_notebook_has_set_changes_nothing_of_a_model_that_is_imported(setting: str) -> None:
    expected = import_model("builtin:tiny-qwen", "straight")
    with SETTINGS[setting]():
        imported = import_model("builtin:tiny-qwen", "beside")
    assert imported is not None
    assert expected is not None
    assert imported.files["model.safetensors"] == expected.files["model.safetensors"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_a_notebook_has_set_changes_nothing_of_what_is_seen_inside_a_model(setting: str) -> None:
    run = lab.run({**CONFIG, "max_steps": 1}, "storybook:20000", listeners=[])

    def seen() -> list[Any]:
        look = study.look(run, "The cat")
        losses = [loss for loss in study.losses_of(run.load()[0], look.ids) if loss is not None]
        parts = (look.logits_LTV, look.probabilities_LHTT, *look.hidden_L)
        return [*(part.tolist() for part in parts), losses, scaling.by_position(run).losses_T.tolist()]

    straight = seen()
    with SETTINGS[setting]():
        assert seen() == straight


def test_threads_that_wait_leave_the_default_type_of_the_notebook() -> None:
    started = threading.Event()

    def wait() -> None:
        started.set()
        with isolation.on_its_own():
            assert torch.get_default_dtype() == torch.float32

    with default_type(torch.float64):
        with isolation.on_its_own():
            thread = threading.Thread(target=wait)
            thread.start()
            started.wait()
            while not isolation.TURNS._queue.locked():
                pass
        thread.join()
        assert torch.get_default_dtype() == torch.float64


def test_runs_in_several_threads_are_the_runs_alone(tmp_path: Path, corpus: Path) -> None:
    rates = (1e-3, 3e-3, 1e-2)
    alone = [losses(tmp_path, corpus, f"alone-{rate}", learning_rate=rate) for rate in rates]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda rate: losses(tmp_path, corpus, f"beside-{rate}", learning_rate=rate), rates))
    assert found == alone


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_samples_beside_a_run_move_no_number(precision: str, tmp_path: Path, corpus: Path) -> None:
    settings = {"precision": precision, "max_steps": 30, "checkpoint_cadence": 1000, "sampling_cadence": None}
    straight = losses(tmp_path, corpus, "straight", **settings)
    text = write_samples("straight", runs_dir=tmp_path, sampling_max_length=40)
    found: list[list[float]] = []
    thread = threading.Thread(target=lambda: found.append(losses(tmp_path, corpus, "beside", **settings)))
    thread.start()
    texts = []
    while thread.is_alive():
        texts.append(write_samples("straight", runs_dir=tmp_path, sampling_max_length=40))
    thread.join()
    assert found == [straight]
    assert texts == [text] * len(texts) != []


def test_a_thread_that_waits_comes_before_one_that_comes_back() -> None:
    turns, order = isolation.Turns(), []
    waits = threading.Event()

    def other() -> None:
        waits.set()
        with turns:
            order.append("other")

    with turns, turns:  # again, by the thread that has it
        thread = threading.Thread(target=other)
        thread.start()
        waits.wait()
        while not turns._queue.locked():
            pass
        order.append("first")
    with turns:
        order.append("again")
    thread.join()
    assert order == ["first", "other", "again"]


def interrupted(optimizer: torch.optim.Optimizer, at: int) -> None:
    """Let a real interrupt come in the middle of an update."""
    step, calls = optimizer.step, []

    def wrapped() -> None:
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        step()

    optimizer.step = wrapped  # type: ignore[method-assign]


def test_an_update_is_made_as_a_whole_where_a_cell_is_interrupted(tmp_path: Path, corpus: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        straight = lab.build(CONFIG, corpus, run_name="straight", runs_dir=tmp_path)
        straight.fit()
        trainer = lab.build(CONFIG, corpus, run_name="broken", runs_dir=tmp_path)
        interrupted(trainer.optimizer, at=3)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        assert trainer.step == 3
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        trainer.fit()
    finally:
        signal.signal(signal.SIGINT, before)
    for ours, theirs in zip(trainer.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_a_listener_raises_costs_no_step(tmp_path: Path, corpus: Path) -> None:
    def to_a_server(event: events.Event) -> None:
        if event["event"] == "step" and event["step"] == 5:
            raise ConnectionError("the server is gone")

    expected = losses(tmp_path, corpus, "straight", checkpoint_cadence=1000)
    settings = {**CONFIG, "checkpoint_cadence": 1000}
    with pytest.raises(ConnectionError):
        lab.run(settings, corpus, run_name="r", runs_dir=tmp_path, listeners=[to_a_server])
    run = lab.resume("r", runs_dir=tmp_path, listeners=[])
    assert [path.name for path in run.checkpoints()] == ["step-00000005", "step-00000006"]
    assert [*run.series("loss")[1].tolist(), run.last("val_loss")] == expected
    assert Trainer.from_checkpoint(run.checkpoints()[0]).step == 5
