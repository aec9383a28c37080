"""Import a model: from the hub, a local folder, a GGUF file, or a tiny one made on the spot.

A newcomer is gathered in a hidden folder beside the models, checked there, and moved into place and registered in one
go. An import that was interrupted leaves only that folder, and so does one from the hub that the disk refused: the same
import goes on with it (from a folder or file it begins anew). One that was refused leaves nothing of its own, but for whole
files of weights beside one that came wrong.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmlab import origins
from lmlab.entries import Entry, FileInfo, check_name, is_name
from lmlab.errors import HubError, LabError, RegistryError
from lmlab.events import now
from lmlab.files import describe_os_error, dump_json, is_disk_full, read_json, remove_tree, sha256_file, write_atomic
from lmlab.hub_client import Unfinished, WrongHash, need_space
from lmlab.registry import Registry
from lmlab.sources import FromFolder, FromGguf, FromHub, ImportPlan, Origin, origin_of
from lmlab.words import one_line

MARKER = ".import.json"  # in a folder that an import made: which model it is to be
A_DAY = 86_400.0


def import_model(
    source: str,
    name: str | None = None,
    revision: str | None = None,
    models_dir: Path | str | None = None,
    confirm: Callable[[ImportPlan], bool] = lambda plan: True,
    tell: Callable[[str], None] = lambda message: None,
) -> Entry | None:
    """Bring a model in and register it. None where `confirm` declined its plan.

    source: hub id, its web address, a folder, a .gguf file, or `builtin:tiny-qwen`. revision: branch, tag or commit of
    the hub. tell: called with a line for people where the import has to wait for another process, and where checking
    what came begins.
    Raises HubError on whatever keeps the model out, RegistryError on a bad name or a damaged registry.
    """
    origin = origin_of(source, revision)
    registry = Registry(models_dir)
    name = check_name(name) if name is not None else make_name(origin.default_name())
    with disk_errors(registry.models_dir, origin), alone(registry, name, tell) as waited:
        attempt = Attempt(registry, name, origin)
        try:
            plan = origin.plan(name, attempt.folder_for)
            again = name in registry.names()
            if again and not (is_of(registry.get(name), plan) and registry.lacks(name)):
                attempt.remove()
                return existing(registry, plan, waited)
            folder = attempt.folder_for(plan)
            registry.refuse_placed(name)
            need_space(registry.models_dir, plan.download, f"the model {name}")
            if not confirm(plan):
                attempt.forget()  # what an earlier attempt has downloaded stays
                return None
            attempt.begin_to_fetch(plan)
            origin.fetch(folder)
            tell("checking the files and the model's first forward pass")
            return admit(registry, plan, folder, tell, again)
        except (Unfinished, OSError):
            attempt.leave()
            raise
        except WrongHash:
            if not attempt.has_weights():  # of which others may have taken hours
                attempt.forget()
            raise
        except LabError as error:
            if isinstance(error, RegistryError) and isinstance(error.__cause__, OSError):  # no fault of the model's
                attempt.leave()
            else:
                attempt.forget()
            raise


def make_name(text: str) -> str:
    """A model name close to `text`. Raises RegistryError where nothing is left of it."""
    return check_name("".join(c if is_name(f"a{c}") else "-" for c in text).strip("._-")[:64])


class Attempt:
    """The hidden folder in which one import gathers its files, whether begun now or by an earlier attempt.

    fetches: whether this attempt has come as far as to add to what it found.
    """

    def __init__(self, registry: Registry, name: str, origin: Origin) -> None:
        self.registry, self.name, self.origin = registry, name, origin
        self.folder = registry.partial(name)
        self.begun, self.found, self.fetches = False, False, False

    def folder_for(self, plan: ImportPlan) -> Path:
        """The folder, emptied of what belongs to another model, and taken back where a kill left it half-registered."""
        wanted = {"source": plan.source, "model_id": plan.model_id, "revision": plan.revision}
        if isinstance(self.origin, FromFolder | FromGguf):  # whose id is a name that others may have, too
            wanted["path"] = str(self.origin.path)
        placed = self.registry.models_dir / self.name
        unregistered = self.name not in self.registry.names()
        if unregistered and not self.folder.exists() and not placed.is_symlink() and read_marker(placed) == wanted:
            placed.rename(self.folder)
        marked = read_marker(self.folder)
        if marked == wanted:
            self.found |= not self.begun
        elif isinstance(self.origin, FromHub) and is_of_another_revision(marked, wanted):
            self.found |= not self.begun  # whole files are compared with the new hashes
            for path in self.folder.glob(".*.part"):
                path.unlink()
            write_atomic(self.folder / MARKER, dump_json(wanted))
        else:
            remove_tree(self.folder)
            self.folder.mkdir(parents=True)
            write_atomic(self.folder / MARKER, dump_json(wanted))
        self.begun = True
        return self.folder

    def begin_to_fetch(self, plan: ImportPlan) -> None:
        """Note that the folder is added to from now on. What this import cannot go on with is taken out before."""
        self.fetches = True
        files = plan.files if isinstance(self.origin, FromHub) else ()
        kept = {MARKER, *files, *(f".{name}.part" for name in files)}
        for path in self.folder.iterdir():
            if path.name not in kept:
                remove_tree(path)

    def has_weights(self) -> bool:
        """Whether a file of weights has come as a whole."""
        return self.begun and any(self.folder.glob("*.safetensors"))

    def remove(self) -> None:
        """Remove everything that was gathered; what an earlier attempt at another model left stays."""
        if self.begun:
            remove_tree(self.folder)

    def forget(self) -> None:
        """The same after a failure, but that what an earlier attempt left stays where this one has not begun to fetch."""
        if self.fetches or not self.found:
            self.remove()

    def leave(self) -> None:
        """Leave the folder where there is something in it to go on with: what has come from the hub."""
        if not isinstance(self.origin, FromHub):
            self.forget()
        elif self.folder.is_dir() and not any(p.stat().st_size for p in self.folder.iterdir() if p.name != MARKER):
            self.remove()


def read_marker(folder: Path) -> Any:
    """Which model an import's folder is for; None where it is none."""
    try:
        return read_json(folder / MARKER)
    except (OSError, ValueError):
        return None


def is_of_another_revision(marked: Any, wanted: dict[str, Any]) -> bool:
    """Whether a marker is of the same model of the hub, if of another commit."""
    return isinstance(marked, dict) and {**marked, "revision": None} == {**wanted, "revision": None}


def is_of(entry: Entry, plan: ImportPlan) -> bool:
    """Whether a registered model is the one that a plan brings in, as far as their names tell."""
    return (entry.source, entry.model_id, entry.revision) == (plan.source, plan.model_id, plan.revision)


def existing(registry: Registry, plan: ImportPlan, waited: bool) -> Entry:
    """The registered model, where another process has just imported the very same. Else raises HubError."""
    entry = registry.get(plan.name)
    same = is_of(entry, plan)
    if same and waited and plan.source not in ("local", "gguf"):  # whose ids are names that others may have, too
        return entry
    free = next(name for n in range(2, 10_000) if (name := f"{plan.name[:58]}-v{n}") not in registry.names())
    if same and plan.revision is not None:
        raise HubError(f"{plan.name!r} is this very model already; use it, or import it again with --name {free}")
    if not same and is_of(entry, replace(plan, revision=entry.revision)) and registry.lacks(plan.name):
        raise HubError(
            f"{plan.name!r} is another revision of this model and has lost files; --revision {entry.revision} puts them "
            f"back, or choose another name: --name {free}"
        )
    other = f" from {one_line(entry.model_id)}" if entry.model_id and entry.model_id != plan.model_id else ""
    raise HubError(f"a model {plan.name!r} is registered already{other}; choose another name: --name {free}")


def admit(registry: Registry, plan: ImportPlan, folder: Path, tell: Callable[[str], None], again: bool) -> Entry:
    """Check the gathered files, move them into place and register them, and tell what a user should know of them.

    again: see `Registry.admit`. Raises HubError, RegistryError.
    """
    what = plan.model_id or plan.name
    origins.disarm(folder)
    for path in folder.iterdir():
        if path.is_dir() or (path.name.startswith(".") and path.name != MARKER):
            remove_tree(path)
    adapter, notes = origins.examine(folder, what)
    for note in notes:
        tell(f"{one_line(what)}: {note}")
    kept = sorted(path for path in folder.iterdir() if path.name != MARKER)
    files = {path.name: FileInfo(size=path.stat().st_size, sha256=sha256_file(path)) for path in kept}
    entry = Entry(
        model_name=plan.name,
        model_id=plan.model_id,
        source=plan.source,
        architecture_type=adapter.architecture_type,
        local_path=plan.name,
        revision=plan.revision,
        files=files,
        license=plan.license,
        n_parameters=adapter.n_parameters(),
        size_bytes=sum(info.size for info in files.values()),
        created_at=now(),
    )
    placed = registry.admit(folder, entry, again)
    with contextlib.suppress(OSError):
        (placed / MARKER).unlink()
    return entry


@contextlib.contextmanager
def alone(registry: Registry, name: str, tell: Callable[[str], None]) -> Iterator[bool]:
    """Hold the right to import under a name. The block gets whether another process had to be waited for."""
    with contextlib.ExitStack() as stack:
        waited = False
        try:
            stack.enter_context(registry.importing(name, timeout=0))
        except TimeoutError:
            waited = True
            tell(f"another process is importing {name!r}; waiting for it")
            try:
                stack.enter_context(registry.importing(name, timeout=A_DAY))
            except TimeoutError as error:
                raise HubError(
                    f"another process has been importing {name!r} for a day; end it and try again"
                ) from error
        yield waited


@contextlib.contextmanager
def disk_errors(models_dir: Path, origin: Origin) -> Iterator[None]:
    """Turn what the disk refuses during an import into a HubError."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            then = ": it goes on" if isinstance(origin, FromHub) else ""
            raise Unfinished(
                f"the disk of {models_dir} is full; free some space and run the same import again{then}"
            ) from error
        reason = "a file is in its place" if error.errno in (errno.EEXIST, errno.ENOTDIR) else describe_os_error(error)
        raise HubError(
            f"cannot write to {models_dir}: {reason}; check its permissions, or choose another --models-dir"
        ) from error
