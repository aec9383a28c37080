"""The command line: parse, call the library, print. Imports torch only when something is trained or sampled."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from lmlab import commands
from lmlab.arguments import parse
from lmlab.errors import LabError, UsageError

INTERRUPTED = 130


def program() -> NoReturn:
    """`main` as a process of its own. By the time it returns all is saved: an interrupt while it ends says no more."""
    status = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "RANK" in os.environ:
        from lmlab.ranks import end

        end(status)
    raise SystemExit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 done, 1 could not be done, 2 wrong usage or config."""
    prepare_streams()
    try:
        options = parse(arguments)
        if options.command is not None:
            refuse_ranks(options.command)
        status = COMMANDS[options.command](options)
        sys.stdout.flush()
        return status
    except LabError as error:
        return report(str(error), error.exit_code, error)
    except KeyboardInterrupt:
        return report("interrupted; what was not saved before is lost", INTERRUPTED)
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that may not be written: nothing to report to us
        where = f"{error.filename}: " if error.filename else ""
        return report(f"{where}{error.strerror or error}; check the disk and its permissions", 1, error)
    except Exception as error:  # whatever we did not foresee is one line, too
        what = f"unexpected {type(error).__name__}: {error}".splitlines()[0][:300]
        if type(error).__name__ == "AcceleratorError":  # of torch, which may not be loaded
            what += "; to do without the GPU, set LMLAB_DEVICE=cpu"
        return report(f"{what}; run again with LMLAB_DEBUG=1 to see where, and please report it", 1, error)


def prepare_streams() -> None:
    """Standard streams that can be used: one that was closed leads nowhere, and what one cannot show is escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open until the process ends
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def report(message: str, status: int, error: Exception | None = None) -> int:
    """Print an error on one line and return the exit status. LMLAB_DEBUG=1 shows the traceback.

    Under torchrun the line says which rank it comes from, and torchrun is told of the error.
    """
    under_torchrun = "TORCHELASTIC_ERROR_FILE" in os.environ and error is not None
    if under_torchrun:
        message = f"rank {os.environ.get('RANK')}: {message}"
    if os.environ.get("LMLAB_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    from lmlab.problems import escaped

    print(f"error: {escaped(' '.join(message.split()))}", file=sys.stderr, flush=True)
    if under_torchrun and error is not None:
        from lmlab.ranks import record_failure

        record_failure(error)
    return status


def refuse_ranks(command: str) -> None:
    """Raise UsageError for a command that several processes of torchrun would each do: they only train together."""
    if "RANK" in os.environ:
        from lmlab.ranks import is_launched

        if is_launched():
            raise UsageError(f"{command} is done by one process; start it without torchrun")


# --- training ---------------------------------------------------------------------------------------------------


def train(options: argparse.Namespace) -> int:
    """Train, resume or branch, alone or as one of torchrun's processes. Returns 128 + the signal that stopped it, else 0."""
    with uncollected():
        from lmlab import lab, planning, ranks  # noqa: F401 - all that training takes

    with ranks.losses_as_errors():
        try:
            go_on_after_restart(options)
            return train_new(options) if options.resume is None else train_on(options)
        finally:
            ranks.leave()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the collector of cyclic garbage: what imports make stays, and looking through it is a tenth of the start."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def go_on_after_restart(options: argparse.Namespace) -> None:
    """Where torchrun has started the processes again: go on with the run that they were training."""
    from lmlab import ranks

    if ranks.may_restart() and ranks.join().any(ranks.was_restarted()):  # each machine counts its own processes' ends
        from lmlab.places import find_runs_dir
        from lmlab.run_folder import run_before_restart

        runs_dir = find_runs_dir(options.runs_dir)
        found = ranks.join().first(lambda: run_before_restart(runs_dir, options.run_name, options.resume) or "")
        if found:
            if options.resume is None and options.model_name is not None:  # it was stronger than the file, and still is
                options.set = [*(options.set or []), f"model_name={options.model_name}"]
            options.resume, options.run_name, options.model_name = found, None, None


def train_on(options: argparse.Namespace) -> int:
    """Resume a run, or branch off it."""
    from lmlab import lab
    from lmlab.console import Console

    console = Console()
    arguments: dict[str, Any] = {
        "config": options.config,
        "data": options.data,
        "runs_dir": options.runs_dir,
        "models_dir": options.models_dir,
        "listeners": [console],
        "on_ready": say_plan(console),
        **commands.settings(options),
    }
    if options.model_name is None:
        return finish(lab.resume(options.resume, **arguments))
    return finish(lab.branch(options.resume, options.model_name, run_name=options.run_name, **arguments))


def train_new(options: argparse.Namespace) -> int:
    """A new run, after a line that says what is to come."""
    from lmlab.config import read_config

    overrides = commands.settings(options)
    if options.model_name is not None:
        overrides["model_name"] = options.model_name
    config = read_config(options.config, **overrides)
    from lmlab import lab
    from lmlab.console import Console

    folders = {"runs_dir": options.runs_dir, "models_dir": options.models_dir}
    with uncollected():
        trainer = lab.build(config, options.data, run_name=options.run_name, **folders)
    console = Console()
    return finish(lab.execute(trainer, [console], on_ready=say_plan(console)))


def say_plan(console: Any) -> Callable[[Any], None]:
    """What says, of a Trainer that is ready, what is to come."""
    from lmlab import planning

    return lambda trainer: console.say(str(planning.plan(trainer)))


def finish(run: Any) -> int:
    """Say what is left to be said of a run, and its exit status.

    One of torchrun's processes that saved and stopped ends with 0: any other status asks torchrun to start it again.
    """
    from lmlab import ranks

    if not ranks.join().leads:
        return 0
    if run.was_done:
        go_on = "give --set early_stopping_patience=null" if run.steps_left > 0 else "raise --max-steps"
        at, end = run.held_step, run.held_step + max(run.steps_left, 0)
        what = f"the run {run.title} is done: it" if at == run.step else f"the checkpoint of the run {run.title}"
        print(f"{what} is at step {at} of {end}; {go_on} to go on")
    if run.registered_as is not None:
        print(commands.registered(run.registered_as, run.registered_in, run.lost_models_dir))
    if run.stopped_by is None:
        return 0
    with contextlib.suppress(OSError):  # of a terminal that was closed
        print(
            f"stopped at step {run.step}; go on with: python main.py --resume {shlex.quote(str(run.folder))}",
            file=sys.stderr,
            flush=True,
        )
    return 0 if ranks.under_torchrun() else 128 + int(run.stopped_by)


COMMANDS = {
    None: train,
    "import-model": commands.import_model,
    "list-models": commands.list_models,
    "model-info": commands.model_info,
    "delete-model": commands.delete_model,
    "register-model": commands.register_model,
    "validate-registry": commands.validate_registry,
    "sample": commands.sample,
    "verify-resume": commands.verify_resume,
    "validate-config": commands.validate_config,
    "list-runs": commands.list_runs,
    "delete-run": commands.delete_run,
}

if __name__ == "__main__":
    program()
