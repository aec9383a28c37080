"""Where the lab keeps things, and where the paths that people write lead. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from lmlab.errors import UsageError


def home() -> Path:
    """The project's folder: `LMLAB_HOME`, else the nearest one from here upwards that holds `configs/`, else here."""
    if os.environ.get("LMLAB_HOME"):
        return expanded(os.environ["LMLAB_HOME"])
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "configs").is_dir()), here)


def expanded(path: Path | str) -> Path:
    """A path whose `~` stands for a home folder; as it is, where there is none of that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def find_runs_dir(runs_dir: Path | str | None = None) -> Path:
    """Where runs are kept: `runs_dir` looked up as every path, else LMLAB_RUNS_DIR, else `runs` under `home()`."""
    return find_folder(runs_dir, "LMLAB_RUNS_DIR", "runs")


def find_models_dir(models_dir: Path | str | None = None) -> Path:
    """Where models are kept: `models_dir` looked up as every path, else LMLAB_MODELS_DIR, else `models` under `home()`."""
    return find_folder(models_dir, "LMLAB_MODELS_DIR", "models")


def find_folder(named: Path | str | None, variable: str, default: Path | str) -> Path:
    """Where things of a kind are kept: `named` looked up as every path, else an environment variable's, else `default`
    under `home()`. A new relative one goes under LMLAB_HOME where that is set. Raises UsageError where `named` is empty."""
    if named is None:
        named = os.environ.get(variable) or None
    if named is None:
        return absolute(home() / default)
    found = find_file(named)
    if os.environ.get("LMLAB_HOME") and not os.path.lexists(found):
        found = home() / found
    return absolute(found)


def find_file(path: Path | str) -> Path:
    """Where a relative path leads: under `LMLAB_HOME` if set, in the current folder, or under `home()`; the first that
    exists. `path` as it is where none does. An absolute path stays as it is. Raises UsageError where it is empty."""
    if path == "":  # an unset variable of a script: not the current folder
        raise UsageError("an empty path names nothing; name a file or a folder, or leave it out")
    path = expanded(path)
    candidates = [path, home() / path]
    if os.environ.get("LMLAB_HOME"):
        candidates.reverse()
    return next((candidate for candidate in candidates if os.path.lexists(candidate)), path)


def from_root(path: Path) -> Path:
    """A path from the root, in one form whatever way leads there, under the name that it was given.

    A link that it is itself is not followed: its name may end in `.jsonl`, and that of what it leads to in nothing.
    """
    if path.name in ("", ".."):  # no name of its own
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent), path.name)


def absolute(path: Path) -> Path:
    """A path from the root that is good wherever the current folder will be, and without `..`, when that folder is gone."""
    return from_root(path) if ".." in path.parts else path.absolute()
