"""What each command but training does: call the library, print, and return the exit status. Imports no torch by itself."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmlab.errors import UsageError
from lmlab.places import find_models_dir


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The config fields named on the command line. `--max-steps` wins over `--set max_steps=…`."""
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
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        print()
        return False


@contextlib.contextmanager
def warned_in_lines() -> Iterator[None]:
    """Print what the library warns of as lines on stderr, as errors are, without the place in the code."""
    from lmlab.errors import LabWarning
    from lmlab.problems import escaped

    with warnings.catch_warnings():
        warnings.simplefilter("always", LabWarning)
        warnings.showwarning = lambda message, *_: print(f"warning: {escaped(str(message))}", file=sys.stderr)
        yield


# --- models -----------------------------------------------------------------------------------------------------


def import_model(options: argparse.Namespace) -> int:
    """Bring a model in, after showing what it is."""
    from lmlab import hub

    def agree(plan: Any) -> bool:
        tell(str(plan))
        return confirm(f"Import it as {plan.name!r}?", options.yes)

    def tell(message: str) -> None:
        with contextlib.suppress(OSError):  # nobody takes it any more: that is no fault of the models' disk
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
    from lmlab.places import find_runs_dir
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

    folders = {"runs_dir": options.runs_dir, "models_dir": options.models_dir}
    with warned_in_lines():
        entry = lab.register(options.checkpoint, options.name, **folders)
    print(registered(entry.model_name, find_models_dir(options.models_dir)))
    return 0


def registered(name: str, models_dir: Path, lost: Path | None = None) -> str:
    """The line that says of a model that it is registered, and where, if not in the usual folder.

    lost: the models folder that it was to go to, where the place of that is gone.
    """
    usual = models_dir == find_models_dir()
    where = "" if usual and lost is None else f" in {models_dir}"
    why = "" if lost is None else f", as the place of {lost} is gone"
    folder = "" if usual else f"--models-dir {shlex.quote(str(models_dir))} "
    return f"registered {name}{where}{why}; use it with: python main.py {folder}--model-name {name}"


def validate_registry(options: argparse.Namespace) -> int:
    """Check the registry; 1 where something is wrong that was not taken away."""
    from lmlab.registry import Registry
    from lmlab.words import one_line

    registry = Registry(options.models_dir)
    problems = registry.validate(fix=options.fix)
    for problem in problems:
        print(one_line(problem, 400))
    left = sum(not problem.fixed for problem in problems)
    if left and not options.fix:
        print(f"{left} problem{'s' * (left > 1)} in {registry.models_dir}; --fix takes dead entries and orphans away")
    elif not problems:
        n_models = len(registry.names())
        found = {0: "no models", 1: "1 model, as it was registered"}
        all_right = found.get(n_models, f"{n_models} models, each as it was registered")
        print(f"nothing is wrong in {registry.models_dir}: {all_right}")
    return 1 if left else 0


# --- runs -------------------------------------------------------------------------------------------------------


def sample(options: argparse.Namespace) -> int:
    """Print samples, one after the other."""
    from lmlab.console import printable
    from lmlab.sampling import write_samples

    folders = {"runs_dir": options.runs_dir, "models_dir": options.models_dir}
    with warned_in_lines():
        texts = write_samples(options.model, options.prompt, options.n, **folders, **settings(options))
    for number, text in enumerate(texts, 1):
        if len(texts) > 1:
            print(f"--- {number}")
        print(printable(text) if sys.stdout.isatty() else text)
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
    """Check a config and print what it will cost, alone or in several processes."""
    from lmlab import planning

    report = planning.check_config(
        options.path,
        options.data,
        models_dir=options.models_dir,
        world_size=options.world_size,
        strategy=options.strategy,
        device_name=options.device,
        **settings(options),
    )
    print(report)
    return 0


def list_runs(options: argparse.Namespace) -> int:
    """The runs, newest first, as a table or JSON."""
    from lmlab.events import plain
    from lmlab.places import find_runs_dir
    from lmlab.record import Record, find_runs
    from lmlab.runs_table import render, row

    runs = find_runs(find_runs_dir(options.runs_dir), Record)
    print(json.dumps(plain([row(run) for run in runs]), indent=2) if options.json else render(runs))
    return 0


def delete_run(options: argparse.Namespace) -> int:
    """Remove a run after saying how large it is."""
    from lmlab.places import find_runs_dir
    from lmlab.record import Record, find_run
    from lmlab.record import delete_run as delete
    from lmlab.runs_table import LONGEST_TITLE
    from lmlab.words import one_line, size

    record = Record(find_run(options.run, find_runs_dir(options.runs_dir)))
    title, n_checkpoints = one_line(record.title, LONGEST_TITLE), len(record.checkpoints())
    question = f"Delete the run {title} with {n_checkpoints} checkpoint{'s' * (n_checkpoints != 1)}?"
    if not confirm(question, options.yes):
        print("nothing was deleted")
        return 1
    print(f"deleted {title}, {size(delete(record.folder))} freed")
    return 0
