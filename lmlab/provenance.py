"""Where a run comes from: its id, the commit of the code, the versions of what it stands on. Imports no torch."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
import secrets
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from lmlab.errors import UsageError

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PACKAGES = ("lmlab", "torch", "transformers", "safetensors", "numpy")


def new_run_id() -> str:
    """An id that sorts by time and that no other run has: 20260131-184500-3f9a."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def check_run_name(name: str) -> str:
    """`name` itself, if it can be a run's id and folder. Raises UsageError."""
    if not RUN_NAME.fullmatch(name):
        raise UsageError(
            f"run name {name!r}: use 1 to 64 letters, digits, dots, dashes and underscores, first a letter or digit"
        )
    return name


def git(*arguments: str) -> str | None:
    """What git prints in the folder of this code, None where it is no repository or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def git_state() -> tuple[str | None, bool | None]:
    """The commit of the code and whether tracked files differ from it; (None, None) outside a repository."""
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None, None  # installed somewhere inside another project's repository
    commit = git("rev-parse", "HEAD")
    return commit, None if commit is None else bool(git("status", "--porcelain", "--untracked-files=no"))


@functools.cache
def versions() -> dict[str, str]:
    """The version of Python and of each package that results can hang on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
