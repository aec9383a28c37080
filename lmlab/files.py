"""Writing so that nothing is lost: where files are synced and renamed. Imports no torch.

A file or folder is first written under a temporary name beside its target (`.NAME.tmp-PID-HEX`), synced, and then
renamed over; the parent folder is synced last. Whoever reads sees the old state or the new one, never a half.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePath
from typing import Any

TEMPORARY = re.compile(r"^\.(.+)\.tmp-(\d+)-[0-9a-f]{8}$")
LARGEST_JSON = 32 << 20  # bytes of a config, a state or an index
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)  # what file systems say that cannot sync a folder
# What NFS says of a file that is open or mapped, and of its folder.
IN_USE = (errno.ENOTEMPTY, errno.EBUSY, errno.ESTALE)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as libraries written in Rust name its number
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # what a file system answers that cannot lock a file


def temporary_sibling(path: Path) -> Path:
    """A name beside `path` that `sweep` recognises as this process's unfinished work."""
    return path.parent / f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"


def sync_descriptor(descriptor: int) -> None:
    """Force what is open to the disk itself: macOS leaves it to another call to empty the drive's cache. Raises OSError."""
    flush = getattr(fcntl, "F_FULLFSYNC", None)
    if flush is not None:
        with contextlib.suppress(OSError):  # not every file system there knows it
            fcntl.fcntl(descriptor, flush)
            return
    os.fsync(descriptor)


def sync(path: Path) -> None:
    """Force a file's or a folder's content to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Force a folder's list of names to the disk, where system and file system can. Raises OSError.

    Windows cannot open a folder; folders shared with a virtual machine and some network file systems sync files alone.
    """
    if os.name == "nt":
        return
    try:
        sync(path)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def make_folder(path: Path | str) -> None:
    """Make a folder and those above it that are missing, each synced into the one above. Raises OSError."""
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync_folder(folder.parent)


def write_atomic(path: Path | str, data: bytes) -> None:
    """Replace the file `path` by `data`, wholly or not at all. Raises OSError, leaving the old file as it was."""
    path = Path(path)
    temporary = temporary_sibling(path)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            sync_descriptor(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def share_tensors(folder: Path) -> None:
    """Give a folder's safetensors files the permissions of its `config.json`: they come readable for their owner alone."""
    for path in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", path)


def new_folder_beside(path: Path) -> Path:
    """Make an empty folder under a temporary name, to become `path` by `move_folder`. Raises FileExistsError, OSError."""
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "exists already", str(path))
    make_folder(path.parent)
    temporary = temporary_sibling(path)
    os.mkdir(temporary)
    return temporary


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and is removed when it does not.

    Every file in it is synced, then the folders, then it is renamed, then the parent is synced.
    Raises FileExistsError if `path` exists, at entry or when it is to be renamed.
    """
    path = Path(path)
    temporary = new_folder_beside(path)
    try:
        yield temporary
        move_folder(temporary, path)
    except BaseException:
        remove_tree(temporary)
        raise


def move_folder(source: Path | str, target: Path | str) -> None:
    """Rename a finished folder to `target`, both on one disk, so that after a power loss it is there wholly or not.

    Raises FileExistsError if `target` exists, and OSError; the source stays where it was then.
    """
    sync_tree(source)
    rename_folder(source, target)


def sync_tree(path: Path | str) -> None:
    """Force every file below a folder to the disk, then the folders, whose lists hold links and pipes. Raises OSError."""
    for folder, _, names in os.walk(path, topdown=False):
        for file in (Path(folder) / name for name in sorted(names)):
            if stat.S_ISREG(file.lstat().st_mode):
                sync(file)
        sync_folder(Path(folder))


def rename_folder(source: Path | str, target: Path | str) -> None:
    """The end of `move_folder`, for a source that `sync_tree` has synced. Raises FileExistsError, OSError."""
    source, target = Path(source), Path(target)
    if os.path.lexists(target):  # rename would silently replace an empty folder
        raise FileExistsError(errno.EEXIST, "exists already", str(target))
    os.rename(source, target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def remove_tree(path: Path | str) -> None:
    """Remove a file, a link or a whole folder. A link is removed itself, never what it points to. Missing is fine.

    A folder is first renamed out of sight, so that a reader never finds half of it. What NFS keeps of it while somebody
    uses a file in it stays there for `sweep`. Raises OSError.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    doomed = path
    if not TEMPORARY.match(path.name):
        doomed = temporary_sibling(path)
        os.rename(path, doomed)
    if sys.version_info >= (3, 12):  # neither follows links
        shutil.rmtree(doomed, onexc=pass_over_used)
    else:
        shutil.rmtree(doomed, onerror=pass_over_used)


def pass_over_used(*_: object) -> None:
    """Go on where `shutil.rmtree` met what is in use; raise again whatever else it met."""
    error = sys.exception()
    if not isinstance(error, OSError) or error.errno not in IN_USE:
        raise


def is_alive(pid: int) -> bool:
    """Whether a process of that number runs on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no such process, or a number that none can have
        return False
    except OSError:
        return True
    return True


def sweep(
    folder: Path | str, *, alone: bool = False, shared: Collection[str] = (), only: str | None = None
) -> list[Path]:
    """Remove what writers that died left in `folder`; a living writer's files stay. Returns what was removed.

    alone: the caller holds the lock under which all writers here work, so that all of them but itself are dead, whoever
    bears their process numbers now (in containers they come again soon). shared: names that others may write all the
    same. only: the one name that the lock is for; a folder that machines share holds others' work, whose processes
    cannot be seen from here.
    """
    removed: list[Path] = []
    folder = Path(folder)
    if not folder.is_dir():
        return removed
    for path in sorted(folder.iterdir()):
        match = TEMPORARY.match(path.name)
        if match is None or (only is not None and match[1] != only):
            continue
        if (alone and match[1] not in shared) or not is_alive(int(match[2])):
            # Another process may sweep the same folder, and what others left need not be ours to remove.
            with contextlib.suppress(FileNotFoundError if alone else OSError):
                remove_tree(path)
                if not os.path.lexists(path):
                    removed.append(path)
    return removed


@contextlib.contextmanager
def lock(path: Path | str, timeout: float = 60.0) -> Iterator[None]:
    """Hold `path`.lock for the length of the block, alone among all processes. A dead holder's lock is free.

    timeout: seconds to wait; raises TimeoutError after them. Raises OSError, which says so where there are no locks.
    """
    import filelock

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    holder = filelock.FileLock(f"{target}.lock", timeout=timeout)
    try:
        holder.acquire()
    except filelock.Timeout as error:
        raise TimeoutError(f"{target} is in use by another process") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise OSError(error.errno, f"its file system has no locks ({error.strerror})", str(target)) from error
    try:
        yield
    finally:
        holder.release()


def is_locked(path: Path | str) -> bool:
    """Whether a process, be it this one, holds `path`.lock. Writes nothing, so that it can be asked in others' folders."""
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDONLY | os.O_NONBLOCK)  # nobody waits for a pipe
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:  # without locks the file itself is one, and goes when it is let go
        return error.errno in (errno.ENOSYS, errno.EACCES)
    finally:
        os.close(descriptor)
    return False


def stays_in(folder: Path, path: Path) -> bool:
    """Whether a path, all links followed, is in a folder, or in the cache of the hub's client that the folder belongs to."""
    real, home = path.resolve(), folder.resolve()
    cached = home.parent.name == "snapshots" and real.parent == home.parents[1] / "blobs"
    return cached or real.is_relative_to(home)


def sha256_bytes(data: bytes) -> str:
    """The sha256 of `data` in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path | str) -> str:
    """The sha256 of a file's content in hexadecimal digits, read in pieces. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_hidden(path: PurePath) -> bool:
    """Whether a relative path is one that editors and file managers keep copies and notes in: a part begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def is_there(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether a path leads to something of a kind, such as `stat.S_ISREG`; what may not be looked at counts as there."""
    try:
        return kind(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def tree_size(path: Path | str) -> int:
    """The bytes of all files below `path`; links count as themselves."""
    path = Path(path)
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(entry.lstat().st_size for entry in path.rglob("*") if entry.is_symlink() or entry.is_file())


def free_space(folder: Path) -> int:
    """The bytes that are free on the disk where a folder is, or is to be made."""
    return shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.exists())).free


def dump_json(value: Any) -> bytes:
    """`value` as indented JSON with a newline at its end, ready for `write_atomic`. NaN is refused (ValueError).

    A path whose bytes are no UTF-8 has lone surrogates in it, which JSON can name but UTF-8 cannot hold: then all is ASCII.
    """
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def read_json(path: Path | str) -> Any:
    """The value in a JSON file. Raises OSError, or ValueError where it is not JSON in UTF-8, or nested beyond reading."""
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error


def read_object(path: Path, error_type: type[Exception], largest: int = LARGEST_JSON) -> dict[str, Any]:
    """The object in a JSON file of bounded size. Raises `error_type` naming the file."""
    try:
        if path.stat().st_size > largest:
            raise error_type(f"{path} is larger than {largest >> 20} MB: it is no such file")
        values = read_json(path)
    except OSError as error:
        raise error_type(f"cannot read {path}: {describe_os_error(error)}") from error
    except ValueError as error:
        raise error_type(f"{path} is damaged: it is not JSON") from error
    if not isinstance(values, dict):
        raise error_type(f"{path} is damaged: it holds no object")
    return values


@contextlib.contextmanager
def plain_os_errors() -> Iterator[None]:
    """Raise as OSError what tokenizers and safetensors make of one: an exception of any kind that says `(os error 28)`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        said = OS_ERROR.search(str(error))
        if said is None:
            raise
        raise OSError(int(said[1]), os.strerror(int(said[1]))) from error


def is_disk_full(error: Exception) -> bool:
    """Whether an error of writing says that the disk is full, or a quota or the largest size of a file reached."""
    named = OS_ERROR.search(str(error))
    return getattr(error, "errno", None) in DISK_FULL or (named is not None and int(named[1]) in DISK_FULL)


def describe_os_error(error: OSError) -> str:
    """An OSError in words for a user: `No space left on device`, without numbers and names."""
    return error.strerror or str(error) or type(error).__name__
