"""The name that a run's model is to have once the run completes, and the models folder that it goes to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab.entries import check_name
from lmlab.errors import UsageError
from lmlab.places import absolute, find_models_dir
from lmlab.registry import Registry


def refuse_taken(name: str, models_dir: str | Path | None, advice: str) -> None:
    """Raise UsageError where a model of a name is registered, RegistryError where its folder's place is taken."""
    registry = Registry(models_dir)
    if check_name(name) in registry.names():
        raise UsageError(f"the model {name!r} is registered already; {advice}")
    registry.refuse_placed(name)


def promise(name: str, models_dir: str | Path | None, folder: Path) -> dict[str, Any]:
    """What a run in `folder` keeps of the name that its model is to have, and of the models folder.

    That is found again wherever the run is resumed, and in a copy of a project it is that of the copy.
    """
    where, folder = absolute(find_models_dir(models_dir)), absolute(folder)
    within = where.is_relative_to(folder.parent.parent)  # the project in which runs and models lie side by side
    return {"register_as": name, "register_in": os.path.relpath(where, folder) if within else str(where)}


def begun_in(facts: Mapping[str, Any], folder: Path) -> Path | None:
    """The models folder that the run in `folder` was begun with, if it was promised a name."""
    kept = facts.get("register_in")
    return Path(os.path.normpath(absolute(folder) / kept)) if isinstance(kept, str) else None


def promised_in(facts: Mapping[str, Any], models_dir: str | Path | None, folder: Path) -> Path:
    """The models folder that a session names, else the one that the run was begun with, else the usual one.

    One that need not exist yet, if only there is a place for it: that of a project which was moved may be gone.
    """
    begun_with = begun_in(facts, folder)
    has_place = begun_with is not None and begun_with.parent.is_dir()
    return find_models_dir(begun_with if models_dir is None and has_place else models_dir)
