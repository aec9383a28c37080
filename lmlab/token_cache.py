"""Large texts as tokens on disk: made once, mapped into memory ever after. Imports no torch.

What is kept is named after the content it came from, so nothing here grows old: other text, or another tokenizer, is
another name. All of it can be deleted at any time, and is made again.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lmlab.errors import DataError, TokenizerError
from lmlab.files import (
    atomic_folder,
    describe_os_error,
    dump_json,
    lock,
    read_object,
    remove_tree,
    sha256_file,
    sweep,
    write_atomic,
)
from lmlab.places import find_folder, find_runs_dir
from lmlab.tokenizers import Ids

Kept = TypeVar("Kept")
IDS, MANIFEST = "ids.bin", "manifest.json"


def find_cache_dir() -> Path:
    """Where tokens are kept: LMLAB_CACHE_DIR, else `.cache/lmlab` beside the runs."""
    return find_folder(None, "LMLAB_CACHE_DIR", find_runs_dir().parent / ".cache" / "lmlab")


def kept(name: str, read: Callable[[Path], Kept | None], make: Callable[[Path], None], notice: str) -> Kept:
    """What `read` finds under a name of the cache, made first where it finds nothing whole.

    notice: what is said before making it, which takes long. One process makes it while others wait. Raises DataError
    where the folder cannot be written, and whatever `make` raises.
    """
    folder = find_cache_dir()
    found = read(folder / name)
    if found is not None:
        return found
    try:
        with lock(folder / name, timeout=math.inf):  # for as long as another process takes to make it
            sweep(folder, alone=True, only=name)
            found = read(folder / name)
            if found is None:
                logging.getLogger("lmlab").warning("%s; kept in %s", notice, folder / name)
                remove_tree(folder / name)
                make(folder / name)
                found = read(folder / name)
    except OSError as error:
        raise DataError(
            f"cannot keep tokens in {folder}: {describe_os_error(error)}; name another folder in LMLAB_CACHE_DIR"
        ) from error
    if found is None:
        raise DataError(f"{folder / name} is not what was written there a moment ago; is the disk sound?")
    return found


def read_manifest(path: Path) -> dict[str, Any] | None:
    """A JSON object, None where it is missing or damaged."""
    try:
        return read_object(path, DataError)
    except DataError:
        return None


def kept_facts(name: str, make: Callable[[], dict[str, str]], notice: str) -> dict[str, str]:
    """Plain facts under a name, from `make` where they are not there yet. Raises what `kept` raises."""

    def write(path: Path) -> None:
        facts = make()
        digest = hashlib.sha256(dump_json(facts)).hexdigest()
        write_atomic(path, dump_json({"facts": facts, "digest": digest}))

    def read(path: Path) -> dict[str, str] | None:
        values = read_manifest(path) or {}
        facts = values.get("facts")
        whole = isinstance(facts, dict) and hashlib.sha256(dump_json(facts)).hexdigest() == values.get("digest")
        return facts if whole else None

    return kept(f"{name}.json", read, write, notice)


def kept_ids(name: str, vocab_size: int, make: Callable[[], Iterable[Ids]], notice: str) -> Ids:
    """The ids under a name as a read-only map of a file, from the parts that `make` gives where there is none yet.

    They are uint8, uint16 or int32, as the vocabulary needs. A file that is not what was written, by its sha256, is
    made again. Raises what `kept` raises, and TokenizerError on an id that such a number cannot hold.
    """

    def write(path: Path) -> None:
        with atomic_folder(path) as folder:
            write_ids(folder, vocab_size, make())

    return kept(name, read_ids, write, notice)


def write_ids(folder: Path, vocab_size: int, parts: Iterable[Ids]) -> None:
    """Write ids as they come, with a manifest of what they are. Raises OSError, and TokenizerError on a strange id."""
    dtype = np.dtype("uint8" if vocab_size <= 2**8 else "uint16" if vocab_size <= 2**16 else "int32")
    digest, n_tokens = hashlib.sha256(), 0
    with open(folder / IDS, "xb") as file:
        for part in parts:
            if part.size and int(part.max()) > np.iinfo(dtype).max:
                raise TokenizerError(f"the tokenizer gave the id {part.max()}, far beyond its {vocab_size} tokens")
            content = part.astype(dtype).tobytes()
            digest.update(content)
            file.write(content)
            n_tokens += part.size
    manifest = {"dtype": dtype.name, "n_tokens": n_tokens, "sha256": digest.hexdigest()}
    write_atomic(folder / MANIFEST, dump_json(manifest))


def read_ids(folder: Path) -> Ids | None:
    """The ids that `write_ids` wrote, mapped; None where they are missing or not whole."""
    manifest, path = read_manifest(folder / MANIFEST), folder / IDS
    try:
        if manifest is None or sha256_file(path) != manifest.get("sha256"):
            return None
        ids = np.asarray(np.memmap(path, dtype=np.dtype(manifest["dtype"]), mode="r"))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return ids if len(ids) == manifest.get("n_tokens") else None
