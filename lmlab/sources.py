"""The kinds of source that a model can be imported from. Each says what it would bring, and then brings it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lmlab import hub_client, origins
from lmlab.entries import CONFIG, CUSTOM, INDEX
from lmlab.errors import CheckpointError, HubError
from lmlab.files import remove_tree
from lmlab.hub_client import HubFile, Listing
from lmlab.places import find_file, from_root
from lmlab.words import count, one_line, size

Kind = Literal["huggingface", "local", "gguf", "builtin"]
BUILTIN = "builtin:"
TINY_QWEN = "tiny-qwen"


@dataclass(frozen=True)
class ImportPlan:
    """What an import is going to do, to be shown before it starts. Printed, it is one line.

    download: bytes still to come, from the hub or from another folder. notes: what else a user should know.
    """

    name: str
    source: Kind
    model_id: str | None
    revision: str | None
    architecture_type: str
    n_parameters: int | None
    license: str | None
    size_bytes: int
    download: int
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        at = f" at {self.revision[:12]}" if self.revision else ""
        parameters = f"{count(self.n_parameters)} parameters, " if self.n_parameters else ""
        files = f" in {len(self.files)} files" if self.files else ""
        facts = f"{self.architecture_type}, {parameters}{size(self.size_bytes)}{files}"
        still = f" ({size(self.download)} to fetch)" if 0 < self.download < self.size_bytes else ""
        license = f", licence {one_line(self.license or 'not stated', 80)}"
        return "; ".join([f"{one_line(self.model_id or self.source)}{at}: {facts}{still}{license}", *self.notes])


class Origin:
    """One kind of source. `plan` looks and fetches at most small files into `folder`; `fetch` brings the rest."""

    source: Kind
    model_id: str | None = None

    def default_name(self) -> str:
        """The name of the model where the user gives none."""
        raise NotImplementedError

    def plan(self, name: str, folder: Callable[[ImportPlan], Path]) -> ImportPlan:
        """What is to come. `folder` gives the import's own folder once the plan says which model it is for."""
        raise NotImplementedError

    def fetch(self, folder: Path) -> None:
        """Bring every file of the plan into `folder`. Raises HubError, Unfinished."""
        raise NotImplementedError


class FromHub(Origin):
    """A repository of the hub at one commit."""

    source: Kind = "huggingface"

    def __init__(self, text: str, revision: str | None) -> None:
        self.model_id, named = hub_client.parse_address(text)
        if revision and named and revision != named:
            raise HubError(f"the address names revision {named!r} and --revision {revision!r}; leave one of them out")
        self.revision = revision or named
        self.listing: Listing
        self.names: list[str] = []

    def default_name(self) -> str:
        """The repository's name in lower case."""
        assert self.model_id is not None
        return self.model_id.rpartition("/")[2].lower()

    def plan(self, name: str, folder: Callable[[ImportPlan], Path]) -> ImportPlan:
        """Look the repository up and fetch its config and index."""
        assert self.model_id is not None
        self.listing = listing = hub_client.look_up(self.model_id, self.revision)
        self.names = origins.chosen_files(listing.files, self.model_id)
        for file in self.names:
            origins.refuse_oversized(file, listing.files[file].size, self.model_id)
        plan = ImportPlan(name, self.source, self.model_id, listing.commit, "", None, listing.license, 0, 0, ())
        target = folder(plan)
        self._get(CONFIG, target)
        if self.names[-1] == INDEX:
            self._get(INDEX, target)
            self.names += origins.shards(target / INDEX, listing.files, self.model_id)
        total = sum(listing.files[file].size for file in self.names)
        with as_hub_error(self.model_id, target):
            architecture_type, n_parameters = described(target, total)
        code = sorted(file for file in listing.files if file.endswith(".py"))
        notes = [f"its code ({one_line(', '.join(code), 80)}) stays behind"] if code else []
        left = {file: listing.files[file].size - there(target, listing.files[file]) for file in self.names}
        return replace(
            plan,
            architecture_type=architecture_type,
            n_parameters=n_parameters,
            size_bytes=total,
            download=sum(left.values()),
            files=tuple(self.names),
            notes=tuple(notes),
        )

    def fetch(self, folder: Path) -> None:
        """Download what is not there yet, the small files first."""
        for file in sorted(self.names, key=lambda name: self.listing.files[name].size):
            self._get(file, folder)

    def _get(self, name: str, folder: Path) -> None:
        file = self.listing.files[name]
        if file.matches(folder / name):
            return
        remove_tree(folder / name)
        hub_client.download(self.listing, file, folder)


class FromFolder(Origin):
    """A folder in the Hugging Face layout, or one that lmlab exported."""

    source: Kind = "local"

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.model_id = self.path.name

    def default_name(self) -> str:
        """The folder's name in lower case."""
        return self.path.name.lower()

    def plan(self, name: str, folder: Callable[[ImportPlan], Path]) -> ImportPlan:
        """See which files make up the model."""
        self.files = origins.select_from_folder(self.path)
        total = sum(self.files.values())
        with as_hub_error(f"the folder {self.path}", self.path):
            architecture_type, n_parameters = described(self.path, total)
        facts = (architecture_type, n_parameters, origins.license_of(self.path), total)
        return ImportPlan(name, self.source, self.model_id, None, *facts, total, tuple(self.files))

    def fetch(self, folder: Path) -> None:
        """Copy the files."""
        origins.copy_files(self.path, self.files, folder)


class FromGguf(Origin):
    """A GGUF file, stored as fp32 safetensors."""

    source: Kind = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = from_root(path)
        self.model_id = self.path.name

    def default_name(self) -> str:
        """The file's name in lower case without its ending."""
        return self.path.stem.lower()

    def plan(self, name: str, folder: Callable[[ImportPlan], Path]) -> ImportPlan:
        """Four bytes for every weight, however few the file has for it."""
        n_parameters, license, notes = origins.gguf_facts(self.path)
        facts = ("gguf", n_parameters, license, 4 * n_parameters, 4 * n_parameters)
        unpacked = "its weights are stored unpacked, as fp32"
        return ImportPlan(name, self.source, self.model_id, None, *facts, (), (unpacked, *notes))

    def fetch(self, folder: Path) -> None:
        """Convert the file."""
        origins.convert_gguf(self.path, folder)


class Builtin(Origin):
    """The tiny Qwen, random, the same every time."""

    source: Kind = "builtin"
    model_id = BUILTIN + TINY_QWEN

    def default_name(self) -> str:
        """`tiny-qwen`."""
        return TINY_QWEN

    def plan(self, name: str, folder: Callable[[ImportPlan], Path]) -> ImportPlan:
        """Nothing needs to be looked at."""
        note = "random weights, made on the spot"
        facts = ("qwen", origins.TINY_PARAMETERS, "MIT", 4 * origins.TINY_PARAMETERS, 4 * origins.TINY_PARAMETERS)
        return ImportPlan(name, self.source, self.model_id, None, *facts, (), (note,))

    def fetch(self, folder: Path) -> None:
        """Make the model."""
        origins.make_tiny_qwen(folder)


def origin_of(source: str, revision: str | None) -> Origin:
    """The kind of source that a text names. Raises HubError where it names none."""
    is_path = "\0" not in source and "://" not in source and not source.startswith(BUILTIN)
    path = find_file(source) if is_path and source else None
    if path is not None:
        is_gguf = os.path.isfile(path) and path.suffix.lower() == ".gguf"
        if revision is not None and (is_gguf or os.path.isfile(path / CONFIG)):
            kind = "file" if is_gguf else "folder"
            raise HubError(f"{one_line(source)} is a {kind}, which has no revisions; leave --revision out")
        if is_gguf:
            return FromGguf(path)
        if revision is None and os.path.isdir(path):
            return FromFolder(path)
        if revision is None and os.path.isfile(path):
            raise HubError(f"{one_line(source)} is a file; give the folder that holds the whole model, or a .gguf file")
    if source.startswith(BUILTIN):
        if source != BUILTIN + TINY_QWEN or revision is not None:
            raise HubError(
                f"there is no {one_line(source)!r}; the built-in model is {BUILTIN}{TINY_QWEN}, without a revision"
            )
        return Builtin()
    if source.lower().endswith(".gguf"):
        raise HubError(f"no file {one_line(source)}; give the path of a .gguf file, without a revision")
    return FromHub(source, revision)


def there(folder: Path, file: HubFile) -> int:
    """How many bytes of a file have come, whole or in part."""
    if file.matches(folder / file.name):
        return file.size
    part = folder / f".{file.name}.part"
    return min(part.stat().st_size, file.size) if part.is_file() else 0


def described(folder: Path, total: int) -> tuple[str, int | None]:
    """The architecture type that a folder's config names, and the weights that it describes: None of a custom Transformer.

    total: bytes of the model's files. Raises CheckpointError.
    """
    from lmlab.adapters.huggingface import architecture_type_of
    from lmlab.adapters.pretrained import count_parameters, read_config

    model_type = str(origins.architecture(folder).get("model_type"))
    n_parameters = None if model_type == CUSTOM else count_parameters(read_config(folder), folder, 2 * total)
    return architecture_type_of(model_type), n_parameters


@contextlib.contextmanager
def as_hub_error(what: str, folder: Path) -> Iterator[None]:
    """Turn what is wrong with a model's config into a HubError that names the model in place of the hidden folder."""
    try:
        yield
    except CheckpointError as error:
        raise HubError(f"{what} cannot be used: {origins.without_folder(error, folder)}") from error
