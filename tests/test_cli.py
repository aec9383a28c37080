"""The command line where it is used carelessly: slips of the keyboard, streams that are closed, folders that refuse."""

from __future__ import annotations

import json
import math
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_logs import RunWriter

from lmlab import arguments, cli, lab, launching, trainer
from lmlab.registry import Registry

ROOT = Path(__file__).resolve().parents[1]
MAIN = [sys.executable, str(ROOT / "main.py")]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--max-step", "3"], "error: unknown option --max-step; did you mean --max-steps?"),
        (
            ["--batch_size=32"],
            "error: unknown option --batch_size; a field of the config is set with --set batch_size=VALUE",
        ),
        (["--frobnicate"], "error: unknown option --frobnicate; see main.py --help"),
        (["sample", "x", "--promt", "The"], "error: unknown option --promt; did you mean --prompt?"),
        (["list-model"], "error: unknown command 'list-model'; did you mean list-models?"),
        (["zzz"], "error: unknown command 'zzz'; there are import-model, list-models"),
        (
            ["--data", "a.txt", "--data", "b.txt"],
            "error: --data is given twice, as 'a.txt' and as 'b.txt'; give it once",
        ),
        (["--data=a.txt", "--data=a.txt"], "error: --data is given twice"),
        (["--data", "a.txt", "verify-resume", "--data", "b.txt"], "error: --data is given twice, as 'a.txt' and as"),
        (["sample", "x", "-n", "2", "--n", "3"], "error: --n is given twice, as 2 and as 3; give it once"),
        (["--data", "LICENSE", "README.md"], "'README.md': --data takes one path; give a folder for several texts"),
        (["--data", "LICENSE", "nothing"], "error: unknown command 'nothing'; there are import-model"),
        (["--set", "=3"], "error: --set '=3': write KEY=VALUE"),
        (["--config", ""], "error: an empty path names nothing"),
        (["--data", ""], "error: an empty path names nothing"),
        (["--resume", ""], "error: an empty path names nothing"),
        (["validate-config", ""], "error: an empty path names nothing"),
        (["sample", "nope"], "error: no checkpoint, run or model is called nope; list-runs and list-models show"),
        (["verify-resume", "--steps", "1"], "error: 1 steps cannot be interrupted and gone on with; train 2 or more"),
        (["verify-resume", "--steps", "9", "--at", "9"], "choose a step from 1 to 8"),
    ],
)
def test_a_slip_is_answered_with_what_was_probably_meant(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    try:
        status = cli.main(words)
    except SystemExit as exit_:
        status = exit_.code
    error = capsys.readouterr().err
    assert status == 2
    assert says in error.splitlines()[-1]


def test_flags_before_a_command_count_as_those_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    before = ["--config", "a.yaml", "--data", "text", "--set", "seed=1"]
    options = arguments.parse([*before, "verify-resume", "--set", "dropout=0"])
    assert (options.config, options.data, options.set) == ("a.yaml", "text", ["seed=1", "dropout=0"])
    assert arguments.parse(["--set", "seed=1", "validate-config", "b.yaml"]).set == ["seed=1"]
    assert arguments.parse(["--max-steps", "9", "validate-config", "b.yaml"]).max_steps == 9
    assert arguments.parse(["validate-config", "b.yaml", "--max-steps", "9"]).max_steps == 9
    assert arguments.parse(["--models-dir", "here", "list-runs"]).models_dir == "here"  # for whoever always says so
    with pytest.raises(SystemExit):
        arguments.parse(["--config", "a.yaml", "sample", "first"])
    assert "error: sample knows no --config" in capsys.readouterr().err


def test_a_value_that_looks_like_a_command_is_a_value() -> None:
    options = arguments.parse(["--run-name", "sample", "--max-steps", "3"])
    assert (options.run_name, options.max_steps, options.command) == ("sample", 3, None)


def test_every_command_says_what_it_does_and_what_each_word_of_it_means() -> None:
    top = arguments.parser()
    commands = next(action.choices for action in top._actions if action.dest == "command")
    assert set(commands) == cli.COMMANDS.keys() - {None}
    for parser in (top, *commands.values()):
        assert parser.description
        assert [action.dest for action in parser._actions if not action.help and action.dest != "command"] == []


def test_the_folder_flags_stand_before_or_after_a_command() -> None:
    assert arguments.parse(["--models-dir", "m", "list-models"]).models_dir == "m"
    assert arguments.parse(["list-models", "--models-dir", "m"]).models_dir == "m"
    assert arguments.parse(["list-models"]).models_dir is None


def test_output_that_nobody_reads_does_not_keep_a_run_from_training(tiny_yaml: Path, corpus: Path) -> None:
    read, write = os.pipe()
    os.close(read)  # the reader went before the first line
    given = ["--config", str(tiny_yaml), "--data", str(corpus), "--max-steps", "3", "--run-name", "unread"]
    done = subprocess.run([*MAIN, *given], stdout=write, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    assert launching.attach("unread").status == "completed"


def test_output_that_nobody_reads_does_not_keep_a_model_from_being_imported() -> None:
    read, write = os.pipe()
    os.close(read)
    given = [*MAIN, "import-model", "builtin:tiny-qwen", "--yes"]
    done = subprocess.run(given, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(write)
    assert "cannot write to" not in done.stderr
    assert Registry().names() == ["tiny-qwen"]


def closed(*descriptors: int) -> str:
    """A program that closes standard streams, then becomes `main.py` with its own arguments."""
    shut = "".join(f"os.close({number}); " for number in descriptors)
    return f"import os, sys; {shut}os.execv(sys.executable, [sys.executable, {str(ROOT / 'main.py')!r}, *sys.argv[1:]])"


def test_streams_that_are_closed_are_no_error(tiny_yaml: Path, corpus: Path) -> None:
    train = ["--config", str(tiny_yaml), "--data", str(corpus), "--max-steps", "2", "--run-name", "silent"]
    for number, given in ((1, train), (1, ["list-runs"]), (2, ["list-runs"])):
        done = subprocess.run(
            [sys.executable, "-c", closed(number), *given], capture_output=True, timeout=120, check=False
        )
        assert (done.returncode, done.stderr) == (0, b""), given
    assert launching.attach("silent").status == "completed"
    asked = [sys.executable, "-c", closed(0), "delete-run", "silent"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: Delete the run silent with 1 checkpoint? There is nobody to ask; add --yes to agree\n"
    assert launching.attach("silent").step == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_an_output_that_is_full_is_one_line_and_costs_no_run(tiny_yaml: Path, corpus: Path) -> None:
    given = ["--config", str(tiny_yaml), "--data", str(corpus), "--max-steps", "2", "--run-name", "full"]
    with open("/dev/full", "w") as full:
        trained = subprocess.run([*MAIN, *given], stdout=full, stderr=subprocess.PIPE, timeout=120, check=False)
        listed = subprocess.run(
            [*MAIN, "list-runs"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    assert (trained.returncode, trained.stderr) == (0, b"")
    assert launching.attach("full").status == "completed"
    assert listed.returncode == 1
    assert listed.stderr.startswith("error: No space left on device; check the disk")
    assert len(listed.stderr.splitlines()) == 1


def on_a_terminal(*given: str, answer: bytes = b"") -> tuple[int, str]:
    """`main.py` on a terminal of its own, with an answer typed into it: the exit status, and what the terminal got."""
    process_id, terminal = pty.fork()
    if process_id == 0:
        os.execv(sys.executable, [*MAIN, *given])
    os.write(terminal, answer)
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1]), shown.decode(errors="replace")


@pytest.fixture
def steering(tiny: dict[str, object]) -> lab.Run:
    """A run whose model can say what steers a terminal."""
    text = Path("steering.txt")
    text.write_text("The \x1b[31m red \x07 dog. " * 300)
    return lab.run(tiny, text, run_name="steering", max_steps=1, listeners=[])


def test_a_sample_cannot_steer_a_terminal_and_goes_into_a_file_as_it_is(
    steering: lab.Run, lab_process: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    prompt = ["--prompt", "The \x1b[31m"]
    status, shown = on_a_terminal("sample", "steering", *prompt)
    assert status == 0
    assert "The \\x1b[31m" in shown
    assert "\x1b[31m" not in shown
    assert "The \x1b[31m" in lab_process("sample", "steering", *prompt).stdout


def test_a_run_is_found_by_its_id_and_by_its_folder_from_anywhere(
    tiny: dict[str, object],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lab_command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    run = lab.run(tiny, corpus, run_name="here", max_steps=1, listeners=[])
    monkeypatch.chdir(run.folder.parent.parent)
    relative = Path(run.folder.parent.name, "here")
    for where in ("here", relative, str(relative), run.folder):
        assert launching.attach(where).folder.samefile(run.folder), where
    lab_command("delete-run", str(relative), "--yes")
    assert not run.folder.exists()


def test_a_folder_with_a_config_of_ones_own_is_not_deleted_as_a_run(
    tiny: dict[str, object], corpus: Path, tmp_path: Path, lab_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    own = tmp_path / "exp1"
    own.mkdir()
    (own / "config.yaml").write_text("max_steps: 1\n", encoding="utf-8")
    run = lab.run(tiny, corpus, run_name="exp1", max_steps=1, listeners=[])
    lab_command("delete-run", "exp1", "--yes")
    assert not run.folder.exists()
    for words, here in ((["exp1"], tmp_path), ([".", "--runs-dir", own], own)):
        refused = lab_command("delete-run", *words, "--yes", cwd=here)
        assert refused.returncode != 0
        assert refused.stderr.startswith("error: no run in ")
    assert (own / "config.yaml").exists()


def test_what_is_said_of_a_copy_of_a_run_names_its_folder(
    tiny: dict[str, object], corpus: Path, lab_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    run = lab.run(tiny, corpus, run_name="first", max_steps=1, listeners=[])
    shutil.copytree(run.folder, run.folder.with_name("copy"))
    copy = "first (folder copy)"
    assert lab_command("--resume", "copy", "--max-steps", "1").stdout.startswith(
        f"the run {copy} is done: it is at step 1"
    )
    assert f"Delete the run {copy} with 1 checkpoint?" in lab_command("delete-run", "copy").stderr
    assert lab_command("delete-run", "copy", "--yes").stdout.startswith(f"deleted {copy}, ")
    assert [path.name for path in run.folder.parent.iterdir()] == ["first"]


def test_a_run_that_early_stopping_ended_says_how_to_go_on(
    tiny: dict[str, object], corpus: Path, lab_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    early = {**tiny, "early_stopping_patience": 1, "learning_rate": 10.0, "eval_cadence": 1, "max_steps": 40}
    ended = lab.run(early, corpus, run_name="early", listeners=[]).step
    assert ended < 40
    said = lab_command("--resume", "early", "--max-steps", "50").stdout
    assert f"is done: it is at step {ended} of 50; give --set early_stopping_patience=null to go on" in said
    further = ["--max-steps", str(ended + 1), "--set", "early_stopping_patience=null"]
    lab_command("--resume", "early", *further)
    assert launching.attach("early").step == ended + 1


@pytest.mark.parametrize(("answer", "status", "left"), [(b"n\n", 1, True), (b"\x04", 1, True), (b"y\n", 0, False)])
def test_a_question_takes_no_for_an_answer(answer: bytes, status: int, left: bool, steering: lab.Run) -> None:
    ended, shown = on_a_terminal("delete-run", "steering", answer=answer)
    assert (ended, steering.folder.exists()) == (status, left)
    assert "Delete the run steering with 1 checkpoint? [y/N]" in shown
    assert ("nothing was deleted" in shown) == left


def test_an_interrupt_of_a_proof_ends_it_with_one_line(tiny_yaml: Path, corpus: Path) -> None:
    given = ["verify-resume", "--config", str(tiny_yaml), "--data", str(corpus), "--steps", "100000"]
    environment = {**os.environ, "TMPDIR": str(Path.cwd())}
    process = subprocess.Popen(
        [*MAIN, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    while not any(
        b'"event": "step"' in log.read_bytes() for log in Path.cwd().glob("lmlab-proof-*/straight/log.jsonl")
    ):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=120)
    assert (process.returncode, output) == (130, "")
    assert error == "error: interrupted; what was not saved before is lost\n"
    assert list(Path.cwd().glob("lmlab-proof-*")) == []


def test_an_interrupt_while_a_program_ends_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    ending = (
        "import atexit, os, signal, sys\nfrom lmlab import cli\nsys.argv = ['main.py', 'list-runs']\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\ncli.program()"
    )
    done = subprocess.run(
        [sys.executable, "-c", ending], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("size", ["1", "2"])
def test_of_several_processes_each_ends_without_taking_its_interpreter_apart(size: str) -> None:
    """Threads of a process group that come to Python meanwhile abort the process; what is registered for the end runs."""
    ending = (
        "import atexit, os, sys\nfrom lmlab import cli\nsys.argv = ['main.py', 'model-info', 'nobody']\n"
        "class Late:\n    def __del__(self): os.write(2, b'taken apart')\n"
        "late = Late()\natexit.register(print, 'the last word')\ncli.program()"
    )
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": size}
    done = subprocess.run(
        [sys.executable, "-c", ending],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == (1 if size == "1" else 2)
    assert done.stdout == "the last word\n"
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith("taken apart") == (size == "1")


def test_a_program_run_in_another_ones_interpreter_leaves_it_alive() -> None:
    """As `%run main.py` does in a notebook."""
    code = (
        "import runpy, sys\nsys.argv = ['main.py', 'list-runs']\n"
        "try:\n    runpy.run_path('main.py', run_name='__main__')\nexcept SystemExit as end:\n    print('ended', end.code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0
    assert done.stdout.endswith("ended 0\n")


def test_a_gpu_that_this_torch_cannot_use_is_one_line_with_the_way_round_it(
    tiny_yaml: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_old(*_: object) -> None:
        raise torch.AcceleratorError(
            "CUDA error: no kernel image is available for execution on the device\nSearch for …"
        )

    monkeypatch.setattr(trainer.Trainer, "_gradients", too_old)
    assert cli.main(["--config", str(tiny_yaml), "--data", str(corpus)]) == 1
    said = capsys.readouterr().err
    assert "on the device; to do without the GPU, set LMLAB_DEVICE=cpu; run again with LMLAB_DEBUG=1" in said
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1


def test_a_run_that_does_not_fit_in_memory_is_one_line_with_what_to_change(corpus: Path) -> None:
    limited = (
        "import resource, sys\nfrom lmlab import cli\n"
        "import torch, lmlab.lab\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), resource.RLIM_INFINITY))\n"
        "cli.program()"
    )
    large = ["batch_size=8000", "gradient_accumulation_steps=1", "max_seq_len=256", "checkpoint_cadence=1"]
    sets = [part for each in large for part in ("--set", each)]
    done = subprocess.run(
        [sys.executable, "-c", limited, "--data", str(corpus), "--run-name", "large", *sets],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: out of memory: halve batch_size and double gradient_acc")
    assert "Traceback" not in done.stderr
    assert lab.Run(Path("runs/large")).status == "failed"


def test_runs_as_json_are_json_whatever_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    run = RunWriter(Path("runs") / "wild")
    run.start()
    run.step(1, loss=3.0)
    run.evaluate(1, math.nan)
    assert cli.main(["list-runs", "--json"]) == 0

    def refuse(word: str) -> None:
        raise AssertionError(word)

    (row,) = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert row["val_loss"] == "NaN"
