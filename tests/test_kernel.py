"""Runs in a notebook, driven through a real kernel as a browser drives it: interrupt, resume, launch, attach, restart."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager, start_new_kernel

import lmlab as lab
from lmlab import events

SECONDS = 60.0


class Kernel:
    """A kernel of its own, with this test's folders."""

    def __init__(self) -> None:
        self.manager: KernelManager
        self.manager, self.client = start_new_kernel(kernel_name="python3")

    def begin(self, code: str, **expressions: str) -> str:
        """Send a cell and return at once."""
        return str(self.client.execute(code, user_expressions=expressions, allow_stdin=False))

    def finish(self, message: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Wait for a cell to end: its reply, and what it showed."""
        shown = []
        while True:
            told = self.client.get_iopub_msg(timeout=SECONDS)
            if told["parent_header"].get("msg_id") == message:
                if told["msg_type"] == "status" and told["content"]["execution_state"] == "idle":
                    break
                shown.append(told)
        while True:
            reply = self.client.get_shell_msg(timeout=SECONDS)
            if reply["parent_header"].get("msg_id") == message:
                return reply["content"], shown

    def do(self, code: str, **expressions: str) -> dict[str, Any]:
        """Run a cell to its end and return the values of expressions after it. A cell that fails is an error here."""
        reply, _ = self.finish(self.begin(code, **expressions))
        assert reply["status"] == "ok", "\n".join(reply.get("traceback", ()))
        return values_of(reply)

    def end(self, now: bool = False) -> None:
        """End the kernel; now: without a word, as a crash does."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=now)
        self.manager.cleanup_resources()


def values_of(reply: dict[str, Any]) -> dict[str, Any]:
    """The values of a reply's user expressions."""
    return {name: ast.literal_eval(told["data"]["text/plain"]) for name, told in reply["user_expressions"].items()}


@pytest.fixture
def kernels(tmp_path: Path) -> Iterator[Callable[[], Kernel]]:
    """Makes kernels; all are ended with the test."""
    made: list[Kernel] = []

    def make() -> Kernel:
        made.append(Kernel())
        made[-1].do("import lmlab as lab")
        return made[-1]

    yield make
    for kernel in made:
        if kernel.manager.is_alive():
            kernel.end(now=True)


def losses(folder: Path) -> dict[int, float]:
    """Every loss of a run's log by step; no step may stand twice."""
    steps = [event for event in events.read(folder / "log.jsonl") if event["event"] == "step"]
    found = {event["step"]: event["loss"] for event in steps}
    assert len(found) == len(steps)
    return found


def wait_for_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + SECONDS
    while max(losses(folder), default=0) < step:
        assert time.monotonic() < deadline, f"step {step} never came"
        time.sleep(0.05)


def test_an_interrupted_cell_returns_a_run_that_goes_on_bit_for_bit(
    kernels: Callable[[], Kernel], tiny: dict[str, object], corpus: Path, tmp_path: Path
):
    kernel, folder = kernels(), tmp_path / "runs" / "stopped"
    settings = {**tiny, "dropout": 0.1, "eval_cadence": 7, "checkpoint_cadence": None}
    kernel.do(f"settings, data = {settings!r}, {str(corpus)!r}")
    cell = kernel.begin(
        "run = lab.run(settings, data, run_name='stopped', max_steps=10**6)", status="run.status", step="run.step"
    )
    wait_for_step(folder, 40)
    kernel.manager.interrupt_kernel()
    reply, shown = kernel.finish(cell)
    assert reply["status"] == "ok"  # the cell returns: no KeyboardInterrupt
    assert values_of(reply)["status"] == "stopped"
    step = values_of(reply)["step"]
    assert (folder / "checkpoints" / f"step-{step:08d}" / "manifest.json").exists()
    assert one_view_replaced_in_place(shown)

    kernel.do(f"run = run.resume(max_steps={step + 30})")
    ended = kernel.do(
        f"straight = lab.run(settings, data, run_name='straight', max_steps={step + 30})",
        first="lab.diff(straight, run).first_step",
        status="run.status",
    )
    assert ended == {"first": None, "status": "completed"}
    assert losses(folder) == losses(tmp_path / "runs" / "straight")
    assert list(losses(folder)) == list(range(1, step + 31))


def one_view_replaced_in_place(shown: list[dict[str, Any]]) -> bool:
    """Whether a cell made one output, and replaced it at most five times in any second."""
    kinds = [told["msg_type"] for told in shown]
    drawn = [told["header"]["date"].timestamp() for told in shown if "display_data" in told["msg_type"]]
    crowded = any(later - first < 0.9 for first, later in zip(drawn, drawn[5:], strict=False))
    return kinds.count("display_data") == 1 and kinds.count("update_display_data") >= 1 and not crowded


def test_a_launched_run_outlives_its_kernel_and_another_one_sees_it_whole(
    kernels: Callable[[], Kernel], tiny: dict[str, object], corpus: Path, tmp_path: Path
):
    first, folder = kernels(), tmp_path / "runs" / "free"
    first.do(f"run = lab.launch({tiny!r}, {str(corpus)!r}, run_name='free', max_steps=10**6, checkpoint_cadence=None)")
    first.end(now=True)
    step = lab.attach("free").step
    wait_for_step(folder, step + 50)  # it goes on

    second = kernels()
    seen = second.do("run = lab.attach('free')\nrun.wait(step=run.step + 20)", status="run.status", step="run.step")
    assert seen["status"] == "running"
    assert seen["step"] >= step + 70
    watching = second.begin("run.watch()")
    time.sleep(1.0)
    second.manager.interrupt_kernel()  # ends the watching alone
    reply, shown = second.finish(watching)
    assert reply["status"] == "ok"
    assert one_view_replaced_in_place(shown)
    ended = second.do("run.stop()", status="run.status", steps="str(run.series('loss')[0].tolist())")
    assert ended["status"] == "stopped"
    assert ast.literal_eval(ended["steps"]) == list(range(1, max(losses(folder)) + 1))  # from the first step on


def test_a_run_in_a_fork_of_the_kernel_shows_no_view_that_nobody_would_get(
    kernels: Callable[[], Kernel], tiny: dict[str, object], corpus: Path, capfd: pytest.CaptureFixture[str]
):
    kernel = kernels()
    seen = kernel.do(
        "import multiprocessing\n"
        "def train(seed):\n"
        f"    return lab.run({tiny!r}, {str(corpus)!r}, run_name=f'seed-{{seed}}', seed=seed).status\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "    ended = pool.map(train, [0, 1])\n"
        "from lmlab.views.live import in_notebook",
        ended="ended",
        notebook="in_notebook()",
    )
    assert seen == {"ended": ["completed", "completed"], "notebook": True}
    said = "".join(capfd.readouterr())
    assert "attempted to send message from fork" not in said
    assert "display_data" not in said


def test_an_error_of_ours_is_one_line(kernels: Callable[[], Kernel]):
    kernel = kernels()
    reply, _ = kernel.finish(kernel.begin("lab.run(d_model=7)"))
    assert reply["status"] == "error"
    assert len(reply["traceback"]) == 1
    assert reply["traceback"][0].startswith("ConfigError: ")


def test_a_run_that_ended_in_an_error_gives_its_memory_back(
    kernels: Callable[[], Kernel], tiny: dict[str, object], corpus: Path
):
    kernel = kernels()
    kernel.do(
        "import gc, os, weakref\nimport torch\nfrom lmlab.hooks import HOOKS, Hook\nkept = []\n"
        "class TooLarge(Hook):\n"
        "    name = 'too_large'\n"
        "    def measure(self, model, inputs_BT):\n"
        "        activations = torch.zeros(1000)\n"
        "        kept.extend(map(weakref.ref, (model, activations)))\n"
        "        raise torch.OutOfMemoryError('CUDA out of memory')\n"
        "HOOKS['too_large'] = TooLarge"
    )
    cell = f"kept.clear()\nlab.run({tiny!r}, {str(corpus)!r}, hooks=['too_large:1'])"
    for debugging, survivors in (("", 0), ("1", 2)):  # where a debugger is to look into the frames
        kernel.do(f"os.environ['LMLAB_DEBUG'] = {debugging!r}")
        reply, _ = kernel.finish(kernel.begin(cell))
        assert reply["ename"] == "OutOfMemory"
        seen = kernel.do("_ = gc.collect()", alive="sum(each() is not None for each in kept)")
        assert seen["alive"] == survivors


def test_running_a_cell_20_times_leaves_figures_widgets_and_memory_level(
    kernels: Callable[[], Kernel], tiny: dict[str, object], corpus: Path
):
    kernel = kernels()
    kernel.do(
        "import gc, psutil\nfrom matplotlib import pyplot\nfrom ipywidgets.widgets.widget import _instances\n"
        f"settings, data = { ({**tiny, 'd_model': 256, 'd_ff': 1024, 'max_steps': 1})!r}, {str(corpus)!r}"
    )
    cell = (
        "run = lab.run(settings, data)\ndisplay(run.plot(), lab.config_form(settings), lab.run_picker())\n"
        "display(lab.prompt_box(run))\nrun"
    )
    counts = {"figures": "len(pyplot.get_fignums())", "widgets": "len(_instances)"}
    seen = []
    for _ in range(20):
        kernel.do(cell)
        seen.append(kernel.do("_ = gc.collect()", memory="psutil.Process().memory_info().rss", **counts))
    assert {told["figures"] for told in seen} == {0}
    assert len({told["widgets"] for told in seen}) == 1
    # A model with its optimizer takes 19 MB here: 15 that stayed would be 285 MB.
    assert seen[-1]["memory"] - seen[4]["memory"] < 60e6
