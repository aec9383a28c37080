"""The command line: parse, call the library, print. Imports torch only when something is trained or sampled."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from lmlab.errors import LabError, UsageError

DESCRIPTION = "lmlab: train language models, resume them bit for bit, import, fine-tune and compare them."
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """argparse, with errors in the form of all our errors and no guessing of abbreviated flags."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **arguments)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"error: {escaped(message)}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(UsageError.exit_code)


def parser() -> Parser:
    """The whole command line. Without a subcommand, it trains."""
    top = Parser(prog="main.py", description=DESCRIPTION + " Without a command, it trains.")
    add_training(top)
    commands = top.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    add_model_commands(commands)
    add_run_commands(commands)
    return top


def add_training(top: Parser) -> None:
    """The flags of training. Their defaults are None: what is not given is left to the config."""
    from lmlab.config import TrainingConfig

    fields = TrainingConfig.model_fields
    top.add_argument("--config", metavar="PATH", help="YAML file with settings; without it, the defaults")
    top.add_argument(
        "--data",
        metavar="PATH",
        help="text to train on: a UTF-8 file, a folder of .txt, a .jsonl; without it, the storybook",
    )
    top.add_argument("--resume", metavar="PATH|RUN", help="go on from a checkpoint, a run folder or a run id")
    top.add_argument("--max-steps", type=int, metavar="N", help=fields["max_steps"].description)
    top.add_argument(
        "--set", action="append", metavar="KEY=VALUE", help="set any config field; may be given more than once"
    )
    top.add_argument(
        "--run-name", metavar="NAME", help="the run's id and folder; without it, one made of date and time"
    )
    top.add_argument("--runs-dir", metavar="DIR", help="where runs are kept (LMLAB_RUNS_DIR, else runs)")
    top.add_argument("--models-dir", metavar="DIR", help="where models are kept (LMLAB_MODELS_DIR, else models)")
    top.add_argument(
        "--model-name", metavar="NAME", help="model of the registry to start from; with --resume, a new name branches"
    )
    width = max(map(len, fields))
    lines = [f"  {name:{width}}  {json.dumps(field.get_default())}" for name, field in fields.items()]
    top.epilog = "fields of --set and of a config file, with their defaults:\n" + "\n".join(lines)


def add_model_commands(commands: Any) -> None:
    """Commands on the registry of models."""
    add = commands.add_parser(
        "import-model", help="bring a model in: hub id or address, folder, .gguf, builtin:tiny-qwen"
    )
    add.add_argument("source", metavar="SOURCE")
    add.add_argument("--name", help="its name here; without it, the repository's in lower case")
    add.add_argument("--revision", help="branch, tag or commit of the hub")
    add.add_argument("--yes", action="store_true", help="do not ask")
    add.set_defaults(call=import_model)
    add = commands.add_parser("list-models", help="the registered models, with their lineage")
    add.add_argument("--json", action="store_true", help="print JSON")
    add.set_defaults(call=list_models)
    add = commands.add_parser("model-info", help="everything known of one model")
    add.add_argument("name", metavar="NAME")
    add.add_argument("--json", action="store_true", help="print JSON")
    add.set_defaults(call=model_info)
    add = commands.add_parser("delete-model", help="remove a model and its files")
    add.add_argument("name", metavar="NAME")
    add.add_argument("--yes", action="store_true", help="do not ask")
    add.add_argument("--force", action="store_true", help="even if other models come from it")
    add.set_defaults(call=delete_model)
    add = commands.add_parser("register-model", help="make a checkpoint a model of the registry")
    add.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, a run folder or a run id")
    add.add_argument("--name", required=True)
    add.set_defaults(call=register_model)
    add = commands.add_parser("validate-registry", help="check every entry, file and hash")
    add.add_argument("--fix", action="store_true", help="remove dead entries and orphans")
    add.set_defaults(call=validate_registry)
    for name in ("import-model", "list-models", "model-info", "delete-model", "register-model", "validate-registry"):
        add_folders(commands.choices[name], runs=name in ("model-info", "register-model"))


def add_run_commands(commands: Any) -> None:
    """Commands on runs, checkpoints and configs."""
    add = commands.add_parser("sample", help="let a checkpoint, a run or a model write")
    add.add_argument("model", metavar="CHECKPOINT|RUN|MODEL")
    add.add_argument("--prompt", help="text to go on from (sampling_prompt of the config)")
    add.add_argument("-n", "--n", type=int, default=1, help="how many samples")
    add.add_argument("--set", action="append", metavar="KEY=VALUE", help="set a sampling_… field of the config")
    add.set_defaults(call=sample)
    add = commands.add_parser(
        "verify-resume", help="prove that an interrupted run of a config is the uninterrupted one"
    )
    add.add_argument("--config", metavar="PATH")
    add.add_argument("--data", metavar="PATH")
    add.add_argument("--set", action="append", metavar="KEY=VALUE")
    add.add_argument("--steps", type=int, default=10, help="steps to train in all (10)")
    add.add_argument("--at", type=int, help="the step to interrupt at (half of them)")
    add.set_defaults(call=verify_resume)
    add = commands.add_parser("validate-config", help="check a config, and say what it will cost, without training")
    add.add_argument("path", metavar="PATH")
    add.add_argument("--data", metavar="PATH")
    add.set_defaults(call=validate_config)
    add = commands.add_parser("list-runs", help="the runs, newest first")
    add.add_argument("--json", action="store_true", help="print JSON")
    add.set_defaults(call=list_runs)
    add = commands.add_parser("delete-run", help="remove a run and its checkpoints")
    add.add_argument("run", metavar="RUN", help="a run folder or a run id")
    add.add_argument("--yes", action="store_true", help="do not ask")
    add.set_defaults(call=delete_run)
    for name in ("sample", "verify-resume", "validate-config", "list-runs", "delete-run"):
        add_folders(commands.choices[name], runs=name in ("sample", "list-runs", "delete-run"))


def add_folders(command: argparse.ArgumentParser, *, runs: bool) -> None:
    """The folder flags after a command; unset ones leave those before it as they are."""
    command.add_argument("--models-dir", metavar="DIR", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    if runs:
        command.add_argument("--runs-dir", metavar="DIR", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 done, 1 could not be done, 2 wrong usage or config."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character gets it escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        options = parser().parse_args(arguments)
        call: Callable[[argparse.Namespace], int] = getattr(options, "call", train)
        return call(options)
    except LabError as error:
        return report(str(error), error.exit_code, error)
    except KeyboardInterrupt:
        return report("interrupted; nothing that was not saved before is saved", INTERRUPTED)
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # whatever we did not foresee is one line, too
        what = f"unexpected {type(error).__name__}: {error}".splitlines()[0]
        return report(f"{what[:300]}; run again with LMLAB_DEBUG=1 to see where, and please report it", 1, error)


def report(message: str, status: int, error: Exception | None = None) -> int:
    """Print an error on one line and return the exit status. LMLAB_DEBUG=1 shows the traceback.

    Under torchrun the line says which rank it comes from, and torchrun is told of the error.
    """
    if "TORCHELASTIC_ERROR_FILE" in os.environ and error is not None:
        from lmlab.ranks import record_failure

        record_failure(error)
        message = f"rank {os.environ.get('RANK')}: {message}"
    if os.environ.get("LMLAB_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    print(f"error: {escaped(' '.join(message.split()))}", file=sys.stderr)
    return status


def escaped(text: str) -> str:
    """Text that stays on its line and cannot steer a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The config fields named on the command line. `--max-steps` and `--model-name` win over `--set`."""
    from lmlab.config import parse_override

    named = dict(parse_override(text) for text in options.set or [])
    if getattr(options, "max_steps", None) is not None:
        named["max_steps"] = options.max_steps
    return named


def confirm(question: str, yes: bool) -> bool:
    """Whether the user agrees. Raises UsageError naming `--yes` where nobody can answer."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"{question} There is nobody to ask; add --yes to agree")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


# --- training ---------------------------------------------------------------------------------------------------


def train(options: argparse.Namespace) -> int:
    """Train, resume or branch, alone or as one of torchrun's processes. Returns 128 + the signal that stopped it, else 0."""
    from lmlab import ranks

    with ranks.losses_as_errors():
        try:
            go_on_after_restart(options)
            return train_new(options) if options.resume is None else train_on(options)
        finally:
            ranks.leave()


def go_on_after_restart(options: argparse.Namespace) -> None:
    """Where torchrun has started the processes again: go on with the run that they were training."""
    from lmlab import ranks

    if ranks.was_restarted():
        from lmlab.config import find_runs_dir
        from lmlab.session import run_before_restart

        found = ranks.join().first(lambda: run_before_restart(find_runs_dir(options.runs_dir)) or "")
        if found:
            options.resume, options.run_name, options.model_name = found, None, None


def train_on(options: argparse.Namespace) -> int:
    """Resume a run, or branch off it."""
    if options.run_name is not None and options.model_name is None:
        raise UsageError("--run-name names a new run, and --resume goes on with an old one; leave one of them out")
    from lmlab import lab
    from lmlab.console import Console

    arguments: dict[str, Any] = {
        "config": options.config,
        "data": options.data,
        "runs_dir": options.runs_dir,
        "models_dir": options.models_dir,
        "listeners": [Console()],
        **settings(options),
    }
    if options.model_name is None:
        return finish(lab.resume(options.resume, **arguments))
    return finish(lab.branch(options.resume, options.model_name, run_name=options.run_name, **arguments))


def train_new(options: argparse.Namespace) -> int:
    """A new run, after a line that says what is to come."""
    from lmlab.config import TrainingConfig

    config = TrainingConfig.from_yaml(options.config) if options.config is not None else TrainingConfig()
    overrides = settings(options)
    if options.model_name is not None:
        overrides["model_name"] = options.model_name
    config = config.updated(**overrides) if overrides else config
    from lmlab import lab, planning
    from lmlab.console import Console

    trainer = lab.build(
        config, options.data, run_name=options.run_name, runs_dir=options.runs_dir, models_dir=options.models_dir
    )
    if trainer.world.leads:
        print(planning.plan(trainer), flush=True)
    return finish(lab.execute(trainer, [Console()]))


def finish(run: Any) -> int:
    """Say what is left to be said of a run, and its exit status.

    One of torchrun's processes that saved and stopped ends with 0: any other status asks torchrun to start it again.
    """
    from lmlab import ranks

    if not ranks.join().leads:
        return 0
    if run.was_done:
        print(f"the run {run.run_id} is done: it is at step {run.step} of {run.max_steps}; raise --max-steps to go on")
    if run.registered_as is not None:
        print(f"registered {run.registered_as}; use it with: python main.py --model-name {run.registered_as}")
    if run.stopped_by is None:
        return 0
    print(f"stopped at step {run.step}; go on with: python main.py --resume {run.folder}", file=sys.stderr)
    return 0 if ranks.is_launched() else 128 + int(run.stopped_by)


# --- models -----------------------------------------------------------------------------------------------------


def import_model(options: argparse.Namespace) -> int:
    """Bring a model in, after showing what it is."""
    from lmlab import hub

    def agree(plan: Any) -> bool:
        tell(str(plan))
        return confirm(f"Import it as {plan.name!r}?", options.yes)

    def tell(message: str) -> None:
        print(message, flush=True)

    folders = {"models_dir": options.models_dir}
    entry = hub.import_model(options.source, options.name, options.revision, **folders, confirm=agree, tell=tell)
    if entry is None:
        print("nothing was imported")
        return 1
    print(f"imported {entry.model_name}; fine-tune it with: python main.py --model-name {entry.model_name} --data TEXT")
    return 0


def list_models(options: argparse.Namespace) -> int:
    """The registered models, as a table or JSON."""
    from lmlab import catalogue
    from lmlab.registry import Registry

    registry = Registry(options.models_dir)
    if options.json:
        print(json.dumps([entry.model_dump(mode="json") for entry in registry.entries()], indent=2))
    else:
        print(catalogue.render_list(registry))
    return 0


def model_info(options: argparse.Namespace) -> int:
    """Everything known of one model."""
    from lmlab import catalogue
    from lmlab.config import find_runs_dir
    from lmlab.registry import Registry

    registry = Registry(options.models_dir)
    if options.json:
        print(json.dumps(registry.get(options.name).model_dump(mode="json"), indent=2))
    else:
        print(catalogue.render_info(registry, options.name, find_runs_dir(options.runs_dir)))
    return 0


def delete_model(options: argparse.Namespace) -> int:
    """Remove a model after saying what goes with it."""
    from lmlab import catalogue
    from lmlab.registry import Registry
    from lmlab.words import size

    registry = Registry(options.models_dir)
    entry, children = registry.get(options.name), registry.descendants(options.name)
    if children and not options.force:
        registry.remove(options.name)  # refuses, and says why
    print(f"{options.name}: {len(entry.files)} files, {size(entry.size_bytes)}, {catalogue.origin(entry)}")
    if children:
        print(f"these come from it and stay: {', '.join(children)}")
    if not confirm(f"Delete {options.name}?", options.yes):
        print("nothing was deleted")
        return 1
    freed = registry.remove(options.name, force=options.force)
    print(f"deleted {options.name}, {size(freed)} freed")
    return 0


def register_model(options: argparse.Namespace) -> int:
    """Make a checkpoint a model of the registry."""
    from lmlab import lab

    entry = lab.register(options.checkpoint, options.name, runs_dir=options.runs_dir, models_dir=options.models_dir)
    print(f"registered {entry.model_name}; use it with: python main.py --model-name {entry.model_name}")
    return 0


def validate_registry(options: argparse.Namespace) -> int:
    """Check the registry; 1 where something is wrong that was not removed."""
    from lmlab.registry import Registry

    registry = Registry(options.models_dir)
    problems = registry.validate(fix=options.fix)
    for problem in problems:
        print(problem)
    left = sum(not problem.fixed for problem in problems)
    if left and not options.fix:
        print(f"{left} problem{'s' * (left > 1)} in {registry.models_dir}; --fix removes dead entries and orphans")
    elif not problems:
        n_models = len(registry.names())
        found = {0: "no models", 1: "1 model, as it was registered"}
        all_right = found.get(n_models, f"{n_models} models, each as it was registered")
        print(f"nothing is wrong in {registry.models_dir}: {all_right}")
    return 1 if left else 0


# --- runs -------------------------------------------------------------------------------------------------------


def sample(options: argparse.Namespace) -> int:
    """Print samples, one after the other."""
    from lmlab.sampling import write_samples

    texts = write_samples(
        options.model,
        options.prompt,
        options.n,
        runs_dir=options.runs_dir,
        models_dir=options.models_dir,
        **settings(options),
    )
    for number, text in enumerate(texts, 1):
        if len(texts) > 1:
            print(f"--- {number}")
        print(text)
    return 0


def verify_resume(options: argparse.Namespace) -> int:
    """Prove that resuming is exact; 1 where it is not."""
    from lmlab import proof

    result = proof.verify_resume(
        options.config,
        options.data,
        steps=options.steps,
        at=options.at,
        models_dir=options.models_dir,
        **settings(options),
    )
    print(result)
    return 0 if result.identical else 1


def validate_config(options: argparse.Namespace) -> int:
    """Check a config and print what it will cost."""
    from lmlab import planning

    print(planning.check_config(options.path, options.data, models_dir=options.models_dir))
    return 0


def list_runs(options: argparse.Namespace) -> int:
    """The runs, newest first, as a table or JSON."""
    from lmlab.config import find_runs_dir
    from lmlab.record import Record, find_runs
    from lmlab.runs_table import render, row

    runs = find_runs(find_runs_dir(options.runs_dir), Record)
    print(json.dumps([row(run) for run in runs], indent=2) if options.json else render(runs))
    return 0


def delete_run(options: argparse.Namespace) -> int:
    """Remove a run after saying how large it is."""
    from lmlab.config import find_runs_dir
    from lmlab.record import Record
    from lmlab.record import delete_run as delete

    record = Record(find_runs_dir(options.runs_dir) / options.run)  # a path that is absolute stays as it is
    question = f"Delete the run {record.run_id} with {len(record.checkpoints())} checkpoints?"
    if not confirm(question, options.yes):
        print("nothing was deleted")
        return 1
    print(f"deleted {record.run_id}, {delete(record.folder) / 1e6:,.1f} MB freed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
