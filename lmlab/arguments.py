"""The words of the command line: its commands and flags, with what they mean. Imports no torch."""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from lmlab.errors import LabError, UsageError

DESCRIPTION = "lmlab: train language models, resume them bit for bit, import, fine-tune and compare them."
CHECKPOINT = "a checkpoint folder, a run folder or a run id"
CONFIG = "YAML file with settings; without it, the defaults"
DATA = "text to train on: a UTF-8 file, a folder of .txt, a .jsonl; without it, the storybook"
TRAINING_ALONE = ("--config", "--data", "--resume", "--max-steps", "--set", "--run-name", "--model-name")
SET_AFTER = "set_after_command"  # where --set of a command goes: argparse would put it in the place of one before that


class Once(argparse.Action):
    """Keeps the one value of a flag, which argparse would let a second one replace."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        if option_string is not None and self.dest in parser.given:
            first = parser.given[self.dest]
            parser.error(f"{option_string} is given twice, as {first!r} and as {values!r}; give it once")
        parser.given[self.dest] = values
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """argparse, with errors in the form of all our errors and no guessing of abbreviated flags.

    given: values that came so far by the names that they go to, of a command those of the flags before it, too.
    """

    def __init__(self, given: dict[str, Any] | None = None, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **arguments)
        self.given: dict[str, Any] = {} if given is None else given
        self.register("action", None, Once)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As in argparse, but a flag that does not exist is named, and not the word after it taken for a command."""
        given = list(sys.argv[1:] if args is None else args)
        commands = next((action.choices for action in self._actions if action.dest == "command"), None) or ()
        if commands:  # none of a command's own parser, which goes on with the same line
            self.given.clear()
        for word in given:
            if word == "--" or word in commands:
                break
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                self.error(f"unknown option {flag}{self._hint(flag)}")
        return super().parse_known_args(given, namespace)

    def _hint(self, flag: str) -> str:
        """What was probably meant by a flag: another one, or a field of the config, as in other programs."""
        from lmlab.config import TrainingConfig

        name = flag[2:].replace("-", "_")
        known = TrainingConfig.model_fields if "--data" in self._option_string_actions else ()  # not of a sample
        if "--set" in self._option_string_actions and name in known:
            return f"; a field of the config is set with --set {name}=VALUE"
        return nearest(flag, self._option_string_actions)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.dest == "command" and action.choices is not None and value not in action.choices:
            if "data" in self.given and os.path.exists(value):  # as of `--data *.txt`
                raise argparse.ArgumentError(None, f"{value!r}: --data takes one path; give a folder for several texts")
            hint = nearest(value, action.choices) or f"; there are {', '.join(action.choices)}"
            raise argparse.ArgumentError(None, f"unknown command {value!r}{hint}")
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and exit with the status of wrong usage."""
        from lmlab.problems import escaped

        self.print_usage(sys.stderr)
        print(f"error: {escaped(message)}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(UsageError.exit_code)


def nearest(word: str, names: Iterable[str]) -> str:
    """A hint at the name that was probably meant; nothing where none is near."""
    found = difflib.get_close_matches(word, list(names), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What a command line says; `command` is None where it trains. Exits on `--help` and on wrong usage.

    Flags of a command may stand before it, too; those of training that it does not know are wrong usage.
    """
    top = parser()
    options = top.parse_args(arguments)
    options.set = (options.set or []) + vars(options).pop(SET_AFTER, []) or None
    try:
        check(options)
    except LabError as error:
        top.error(str(error))
    if options.command is not None:
        commands: Any = next(action.choices for action in top._actions if action.dest == "command")
        known = commands[options.command]._option_string_actions
        for name in TRAINING_ALONE:
            if name not in known and getattr(options, name[2:].replace("-", "_")) is not None:
                top.error(f"{options.command} knows no {name}")
    return options


def check(options: argparse.Namespace) -> None:
    """Raise UsageError or ConfigError for words that are wrong by themselves, whatever files they lead to."""
    from lmlab.config import parse_override
    from lmlab.provenance import check_run_name

    for text in options.set or []:
        parse_override(text)
    if options.max_steps is not None and options.max_steps < 1:
        raise UsageError(f"--max-steps {options.max_steps} makes no update; give 1 or more")
    if options.run_name is not None:
        check_run_name(options.run_name)
        if options.resume is not None and options.model_name is None:
            raise UsageError("--run-name names a new run, and --resume goes on with an old one; leave one of them out")


def parser() -> Parser:
    """The whole command line. Without a subcommand, it trains."""
    top = Parser(prog="main.py", description=DESCRIPTION + " Without a command, it trains.")
    add_training(top)
    of_command: Any = functools.partial(Parser, top.given)
    commands = top.add_subparsers(dest="command", title="commands", metavar="COMMAND", parser_class=of_command)
    add_model_commands(commands)
    add_run_commands(commands)
    return top


def add_training(top: Parser) -> None:
    """The flags of training. Their defaults are None: what is not given is left to the config."""
    from lmlab.config import TrainingConfig

    fields = TrainingConfig.model_fields
    top.add_argument("--config", metavar="PATH", help=CONFIG)
    top.add_argument("--data", metavar="PATH", help=DATA)
    top.add_argument("--resume", metavar="PATH|RUN", help=f"go on from {CHECKPOINT}")
    top.add_argument("--max-steps", type=int, metavar="N", help="updates to make, counted from the run's first")
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


def add_command(commands: Any, name: str, does: str, *, runs: bool = False, models: bool = False) -> Parser:
    """A command with what it does, and the folders that it looks into; unset ones leave those before it as they are."""
    command: Parser = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
    if models:
        command.add_argument("--models-dir", metavar="DIR", default=argparse.SUPPRESS, help="where models are kept")
    if runs:
        command.add_argument("--runs-dir", metavar="DIR", default=argparse.SUPPRESS, help="where runs are kept")
    return command


def add_set(command: Parser, help_text: str) -> None:
    """The flag `--set` of a command; `parse` puts what stands before the command and after it together."""
    command.add_argument(
        "--set", action="append", metavar="KEY=VALUE", dest=SET_AFTER, default=argparse.SUPPRESS, help=help_text
    )


def add_model_commands(commands: Any) -> None:
    """Commands on the registry of models."""
    add = add_command(
        commands, "import-model", "bring a model in: hub id or address, folder, .gguf, builtin:tiny-qwen", models=True
    )
    add.add_argument("source", metavar="SOURCE", help="ORGANISATION/MODEL, its address, a path, or builtin:tiny-qwen")
    add.add_argument("--name", help="its name here; without it, the repository's in lower case")
    add.add_argument("--revision", help="branch, tag or commit of the hub")
    add.add_argument("--yes", action="store_true", help="do not ask")
    add = add_command(commands, "list-models", "the registered models, with their lineage", models=True)
    add.add_argument("--json", action="store_true", help="print JSON")
    add = add_command(commands, "model-info", "everything known of one model", models=True, runs=True)
    add.add_argument("name", metavar="NAME", help="a name of list-models")
    add.add_argument("--json", action="store_true", help="print JSON")
    add = add_command(commands, "delete-model", "remove a model and its files", models=True)
    add.add_argument("name", metavar="NAME", help="a name of list-models")
    add.add_argument("--yes", action="store_true", help="do not ask")
    add.add_argument("--force", action="store_true", help="even if other models come from it")
    add = add_command(commands, "register-model", "make a checkpoint a model of the registry", models=True, runs=True)
    add.add_argument("checkpoint", metavar="CHECKPOINT|RUN", help=f"{CHECKPOINT}; a run means its newest checkpoint")
    add.add_argument("--name", required=True, help="the model's name: a-z, 0-9, dot, dash and underscore")
    add = add_command(commands, "validate-registry", "check every entry, file and hash", models=True)
    add.add_argument(
        "--fix",
        action="store_true",
        help="take out dead entries and remains; what may be all of a model moves to .unregistered",
    )


def add_run_commands(commands: Any) -> None:
    """Commands on runs, checkpoints and configs."""
    add = add_command(commands, "sample", "let a checkpoint, a run or a model write", models=True, runs=True)
    add.add_argument("model", metavar="CHECKPOINT|RUN|MODEL", help=f"{CHECKPOINT}, or a name of list-models")
    add.add_argument("--prompt", metavar="TEXT", help="text to go on from (sampling_prompt of the config)")
    add.add_argument("-n", "--n", type=int, default=1, help="how many samples")
    add_set(add, "set a sampling_… field of the config")
    add = add_command(
        commands, "verify-resume", "prove that an interrupted run of a config is the uninterrupted one", models=True
    )
    add.add_argument("--config", metavar="PATH", default=argparse.SUPPRESS, help=CONFIG)
    add.add_argument("--data", metavar="PATH", default=argparse.SUPPRESS, help=DATA)
    add_set(add, "set any config field")
    add.add_argument("--steps", type=int, metavar="N", default=10, help="steps to train in all (10)")
    add.add_argument("--at", type=int, metavar="N", help="the step to interrupt at (half of them)")
    add = add_command(
        commands, "validate-config", "check a config, and say what it will cost, without training", models=True
    )
    add.add_argument("path", metavar="PATH", help="the YAML file")
    add.add_argument("--max-steps", type=int, metavar="N", default=argparse.SUPPRESS, help="updates to make")
    add.add_argument("--data", metavar="PATH", default=argparse.SUPPRESS, help=DATA)
    add_set(add, "set any config field")
    add.add_argument("--world-size", type=int, metavar="N", help="plan for N processes, and rehearse a step of one")
    add.add_argument("--strategy", choices=("ddp", "fsdp"), help="how they share the work (parallel of the config)")
    add.add_argument("--device", metavar="NAME", help="what each has, such as H100; without it, what is here")
    add = add_command(commands, "list-runs", "the runs, newest first", runs=True)
    add.add_argument("--json", action="store_true", help="print JSON")
    add = add_command(commands, "delete-run", "remove a run and its checkpoints", runs=True)
    add.add_argument("run", metavar="RUN", help="a run folder or a run id")
    add.add_argument("--yes", action="store_true", help="do not ask")
