"""The model registry: `models/registry.json` and one folder per model. Imports no torch.

Every write takes the registry's lock, reads the file again, and replaces it atomically, so that writers never lose each
other's entries and a kill leaves the old file or the new one. What a damaged or hostile registry says is never followed
out of the models folder.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lmlab.entries import REGISTRY_FILE, Entry, Link, Problem, is_name
from lmlab.errors import ModelNotFound, RegistryError
from lmlab.files import (
    TEMPORARY,
    describe_os_error,
    dump_json,
    is_alive,
    is_there,
    lock,
    move_folder,
    read_json,
    remove_tree,
    rename_folder,
    sha256_file,
    sync_tree,
    tree_size,
    write_atomic,
)
from lmlab.places import find_models_dir
from lmlab.words import one_line

VERSION = 1
PARTIAL = ".partial-"  # begins the name of a folder that holds an import which is not complete
UNREGISTERED = ".unregistered"  # where `validate` puts folders that no entry names: they may be all there is of a model
IMPORT_LOCK = ".import-"  # begins the name of the lock that its import holds
LARGEST_REGISTRY = 256 << 20  # bytes; a larger file is none of ours


class Registry:
    """The models of one folder. Nothing is kept in memory: every call reads the file as it is now."""

    def __init__(self, models_dir: Path | str | None = None) -> None:
        """models_dir: see `find_models_dir`. It need not exist yet."""
        self.models_dir = find_models_dir(models_dir)
        self.file = self.models_dir / REGISTRY_FILE

    def names(self) -> list[str]:
        """The names of all models, in the order they were added."""
        return list(self._read())

    def entries(self) -> list[Entry]:
        """Every entry that can be read; `damaged` has the others."""
        return [Entry.model_validate(v) for name, v in self._read().items() if self._flaw(name, v) is None]

    def damaged(self) -> dict[str, str]:
        """Why an entry cannot be used, by name. Empty in a sound registry."""
        return {name: reason for name, v in self._read().items() if (reason := self._flaw(name, v)) is not None}

    def get(self, name: str) -> Entry:
        """The entry of that name. Raises ModelNotFound listing what there is, RegistryError on a damaged entry."""
        models = self._read()
        if name not in models:
            known = (
                f"are: {', '.join(map(one_line, models))}; `import-model SOURCE --name NAME` gets another"
                if models
                else "are none yet; get one with `import-model SOURCE`"
            )
            raise ModelNotFound(f"no model {name!r} in {self.file}; there {known}")
        flaw = self._flaw(name, models[name])
        if flaw is not None:
            raise RegistryError(
                f"entry {name!r} in {self.file} is damaged: {flaw}; correct it there, or `validate-registry --fix` takes it "
                "out"
            )
        return Entry.model_validate(models[name])

    def path(self, name: str) -> Path:
        """The folder of a model. Raises ModelNotFound, and RegistryError where files are missing or of another size."""
        entry = self.get(name)
        self._refuse(entry, self._problem(entry, hashes=False))
        return self.models_dir / entry.local_path

    def verify(self, name: str, *, weights: bool = True) -> Path:
        """The same as `path`, after comparing every file with its sha256. Raises RegistryError naming the file.

        weights: False leaves out the hashes of what takes long, for a caller that reads only the other files.
        """
        entry = self.get(name)
        self._refuse(entry, self._problem(entry, hashes=True, weights=weights))
        return self.models_dir / entry.local_path

    def ancestors(self, name: str) -> list[str]:
        """The models that this one comes from, oldest first, whether or not they are still registered."""
        return [link.model_name for link in self.get(name).lineage if link.model_name is not None]

    def descendants(self, name: str) -> list[str]:
        """Registered models that come from this one, directly or not, in the order they were added.

        Raises ModelNotFound, and RegistryError on a damaged entry.
        """
        entry = self.get(name)
        return [each.model_name for each in self.entries() if each.comes_from(entry) and each.model_name != name]

    def lineage(self, name: str) -> list[dict[str, Any]]:
        """The ancestry of a run that starts from this model: the model's own, and then the model itself."""
        entry = self.get(name)
        own = Link(model_name=entry.model_name, run_id=entry.run_id, step=entry.step)
        return [link.model_dump() for link in (*entry.lineage, own)]

    def add(self, entry: Entry, replace: bool = False) -> None:
        """Write an entry. Raises RegistryError where the name is taken, unless it is to be replaced."""
        with self._writing() as models:
            if not replace:
                self._refuse_taken(entry.model_name, models)
            models[entry.model_name] = entry.model_dump(mode="json")

    def lacks(self, name: str) -> str | None:
        """The first file of a model that is not as it was registered, in words; None where all are.

        Raises ModelNotFound, and RegistryError on a damaged entry.
        """
        return self._problem(self.get(name), hashes=True)

    def admit(self, staged: Path, entry: Entry, again: bool = False) -> Path:
        """Move the finished folder `staged` into place and write its entry, in one go for every other process.

        again: of a model that is registered and has lost files; what is left of them is put into `.unregistered`. Raises
        RegistryError where name or folder is taken; `staged` stays where it is then.
        """
        target = self.models_dir / entry.local_path
        try:
            sync_tree(staged)  # before the lock, because it takes long
        except OSError as error:
            raise RegistryError(f"cannot write {staged}: {describe_os_error(error)}; check the disk") from error
        with self._writing() as models:
            if not again:
                self._refuse_taken(entry.model_name, models)
            elif os.path.lexists(target):
                move_folder(target, self._unregistered(entry.local_path))
            try:
                rename_folder(staged, target)
            except FileExistsError as error:
                raise self._not_registered(target) from error
            models[entry.model_name] = entry.model_dump(mode="json")
        return target

    def remove(self, name: str, force: bool = False) -> int:
        """Remove a model, entry and folder, and return the bytes freed. A link is removed, not what it points to.

        Raises ModelNotFound; RegistryError where models come from it, unless forced, and where the disk refuses.
        """
        with self._writing() as models:
            children = self.descendants(name)
            entry = self.get(name)
            if children and not force:
                come = "come" if len(children) > 1 else "comes"
                raise RegistryError(
                    f"{', '.join(children)} {come} from {name!r}; delete what comes from it first, or use --force"
                )
            del models[name]
            shared = any(isinstance(v, dict) and v.get("local_path") == entry.local_path for v in models.values())
        folder = self.models_dir / entry.local_path
        if shared or not os.path.lexists(folder):
            return 0
        freed = tree_size(folder)
        try:
            remove_tree(folder)
        except OSError as error:
            raise RegistryError(f"cannot remove {folder}: {describe_os_error(error)}; remove it by hand") from error
        return freed

    def validate(self, fix: bool = False) -> list[Problem]:
        """Check every entry, file, size and hash, and look for folders without an entry and remains of dead writers.

        fix: take out entries that cannot be read or whose files are gone, each kept in `.unregistered/NAME.json` unless
        all of its model is gone, unfinished imports and remains; folders that no entry names move into `.unregistered`. A
        damaged file and a link that leads nowhere are reported only, and an import that is under way is left alone.
        """
        if not self.models_dir.is_dir():
            return []
        problems: list[Problem] = []
        for entry in self.entries():  # before the lock, because hashing takes long
            damage = None if self._missing(entry) else self._problem(entry, hashes=True)
            if damage is not None:
                problems.append(Problem(entry.model_name, f"{damage}; delete it or {entry.remedy}"))
        with self._writing() if fix else self._reading() as models:
            for name, value in list(models.items()):
                flaw = self._flaw(name, value)
                reason = flaw or self._missing(Entry.model_validate(value))
                if reason is None:
                    continue
                path = self.models_dir / value["local_path"] if flaw is None else None
                all_gone = path is not None and not is_there(path, bool)
                if all_gone and path is not None and path.is_symlink():
                    problems.append(Problem(name, f"the link {path} leads nowhere; is its disk there?"))
                    continue
                with self._attempted(name, reason, problems):
                    done = "removed" if all_gone or not fix else self._set_aside(name, value)
                    problems.append(Problem(name, reason, done if fix else ""))
                    if fix or flaw is not None:
                        del models[name]
            used = {value["local_path"] for value in models.values()}
            for path, reason in self._orphans(used):
                with self._attempted(path.name, reason, problems):
                    problems.append(Problem(path.name, reason, self._clear(path) if fix else ""))
        return problems

    @contextlib.contextmanager
    def _attempted(self, name: str, reason: str, problems: list[Problem]) -> Iterator[None]:
        """Note a problem as one that stays where the disk refuses what the block does about it: others are mended."""
        try:
            yield
        except OSError as error:
            refusal = f"{describe_os_error(error)}: {error.filename}" if error.filename else describe_os_error(error)
            problems.append(Problem(name, f"{reason}; it cannot be put aside ({refusal}); do so by hand"))

    def _set_aside(self, name: str, value: Any) -> str:
        """Keep an entry that is taken out of the registry in a file of its own; returns what was done."""
        path = self._unregistered(f"{name if is_name(name) else 'entry'}.json")
        write_atomic(path, json.dumps({name: value}, indent=2).encode())  # whatever it holds, NaN, too
        return f"removed; {UNREGISTERED}/{path.name} is what it was"

    def _unregistered(self, name: str) -> Path:
        """A free place of about that name for what is taken out of the registry."""
        folder, (stem, dot, suffix) = self.models_dir / UNREGISTERED, name.partition(".json")
        folder.mkdir(exist_ok=True)
        names = itertools.chain([name], (f"{stem}-{number}{dot}{suffix}" for number in itertools.count(2)))
        return next(folder / each for each in names if not os.path.lexists(folder / each))

    def _clear(self, path: Path) -> str:
        """Take an orphan out of the way, without a loss where it may be a model; returns what was done."""
        if path.is_symlink() or not is_name(path.name) or not any(path.iterdir()):
            remove_tree(path)
            return "removed"
        target = self._unregistered(path.name)
        move_folder(path, target)
        return f"moved to {UNREGISTERED}/{target.name}; delete it there, or import it from there"

    def _orphans(self, used: set[str]) -> Iterator[tuple[Path, str]]:
        """Folders that no entry names, unfinished imports that nobody works on, and remains of dead writers.

        The caller holds the lock, so that whoever wrote the registry is dead, even if its process number lives again.
        """
        for path in sorted(self.models_dir.iterdir()):
            temporary = TEMPORARY.match(path.name)
            if temporary:
                if temporary[1] == REGISTRY_FILE or not is_alive(int(temporary[2])):
                    yield path, "is left over from a process that died"
            elif path.name.startswith((PARTIAL, IMPORT_LOCK)):
                name = path.name.removeprefix(PARTIAL).removeprefix(IMPORT_LOCK).removesuffix(".lock")
                with contextlib.suppress(OSError), self.importing(name, timeout=0):  # held, or not to be had here
                    if path.name.startswith(PARTIAL):
                        yield path, "holds an import that did not finish; the same import-model goes on with it"
            elif is_name(path.name) and path.name not in used and (path.is_dir() or path.is_symlink()):
                yield path, "is a folder that no entry names"

    @contextlib.contextmanager
    def importing(self, name: str, timeout: float) -> Iterator[None]:
        """Hold the right to import a model of that name, alone among all processes. Raises TimeoutError."""
        path = self.models_dir / f"{IMPORT_LOCK}{name}"
        with lock(path, timeout):
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # Windows keeps a file that is open
                    path.with_name(f"{path.name}.lock").unlink()

    def partial(self, name: str) -> Path:
        """Where an import of that name gathers its files, on the disk of the models folder and hidden from readers."""
        return self.models_dir / f"{PARTIAL}{name}"

    def _flaw(self, name: str, value: Any) -> str | None:
        """What makes an entry unusable, None where it is sound."""
        try:
            entry = Entry.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            return f"{'.'.join(map(str, first['loc'])) or 'entry'}: {first['msg']}"
        return None if entry.model_name == name else f"it calls itself {entry.model_name!r}"

    def _refuse(self, entry: Entry, problem: str | None) -> None:
        if problem is not None:
            raise RegistryError(f"model {entry.model_name!r}: {problem}; {entry.remedy} or run `validate-registry`")

    def refuse_placed(self, name: str) -> None:
        """Raise RegistryError where a folder that is not registered stands where the model of a name would go."""
        if os.path.lexists(self.models_dir / name) and name not in self.names():
            raise self._not_registered(self.models_dir / name)

    @staticmethod
    def _not_registered(folder: Path) -> RegistryError:
        return RegistryError(
            f"the folder {folder} exists but is not registered; move it away, then try again: import-model reads models "
            "from any folder"
        )

    def _refuse_taken(self, name: str, models: dict[str, Any]) -> None:
        if name in models:
            raise RegistryError(f"a model {name!r} is registered already; choose another name or delete it")

    def _missing(self, entry: Entry) -> str | None:
        """The first file that is not there, in words; None where all are."""
        folder = self.models_dir / entry.local_path
        if not is_there(folder, stat.S_ISDIR):
            return f"its folder {folder} is missing"
        for name in entry.files:
            if not is_there(folder / name, stat.S_ISREG):
                return f"its file {folder / name} is missing"
        return None

    def _problem(self, entry: Entry, hashes: bool, weights: bool = True) -> str | None:
        """The first file that is missing, or not of the registered size (or hash), in words; None where all are right."""
        path = self.models_dir / entry.local_path
        try:
            for name, info in entry.files.items():
                path = self.models_dir / entry.local_path / name
                if not is_there(path, stat.S_ISREG):
                    break
                if path.stat().st_size != info.size:
                    return f"its file {path} is damaged: {path.stat().st_size} bytes, not {info.size}"
                hashed = hashes and (weights or path.suffix != ".safetensors")
                if hashed and sha256_file(path) != info.sha256:
                    return f"its file {path} is damaged: its sha256 is not the registered one"
            return self._missing(entry)
        except OSError as error:
            return f"{path} cannot be read: {describe_os_error(error)}"

    def _read(self) -> dict[str, Any]:
        """The entries as they stand in the file, unchecked, by name. Raises RegistryError."""
        try:
            if self.file.stat().st_size > LARGEST_REGISTRY:
                raise ValueError("it is far larger than a registry can be")
            content = read_json(self.file)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise RegistryError(
                f"cannot read {self.file}: {describe_os_error(error)}; check its permissions"
            ) from error
        except ValueError as error:
            raise self._unreadable(str(error).splitlines()[0]) from error
        if not isinstance(content, dict) or not isinstance(content.get("models"), dict):
            raise self._unreadable("it holds no models")
        if content.get("version") != VERSION:
            raise RegistryError(
                f"{self.file} has version {content.get('version')!r}, this lmlab reads {VERSION}; use a newer lmlab"
            )
        models: dict[str, Any] = content["models"]
        return models

    def _held(self) -> RegistryError:
        return RegistryError(f"{self.file} is locked by another process for too long; try again")

    def _unreadable(self, reason: str) -> RegistryError:
        return RegistryError(
            f"{self.file} is damaged ({reason[:120]}); restore it from a copy, or move it away, run `validate-registry "
            f"--fix`, and import the models again from {self.models_dir / UNREGISTERED}"
        )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[dict[str, Any]]:
        """The entries, that nobody changes meanwhile, unless the folder is one in which no lock can be made."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock(self.file))
            except TimeoutError as error:
                raise self._held() from error
            except OSError:  # of a folder that may not be written: nobody changes it from here
                pass
            yield self._read()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[dict[str, Any]]:
        """The entries, read under the lock, to be changed in the block and written when it ends well."""
        try:
            self.models_dir.mkdir(parents=True, exist_ok=True)
            with lock(self.file):
                models = self._read()
                yield models
                write_atomic(self.file, dump_json({"version": VERSION, "models": models}))
        except TimeoutError as error:
            raise self._held() from error
        except OSError as error:
            reason = "is no folder" if error.errno == errno.EEXIST else describe_os_error(error)
            raise RegistryError(f"cannot write {self.file}: {reason}; check space and permissions") from error
