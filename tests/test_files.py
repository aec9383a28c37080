"""Writing so that nothing is lost: crashes, failures and the order of syncs, at every file operation."""

from __future__ import annotations

import builtins
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lmlab import files
from lmlab.events import EventLog

ROOT = Path(__file__).resolve().parents[1]

# Dies without any cleanup at the Nth file operation; half of what was to be written may be there.
CRASH = """
import builtins, os, sys
from lmlab import files

count, deadline = 0, int(sys.argv[2])
def tick():
    global count
    count += 1
    if count == deadline:
        os._exit(9)

def counted(real):
    def call(*arguments, **options):
        tick()
        return real(*arguments, **options)
    return call

class File:
    def __init__(self, file):
        self.file = file
    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        tick()
        return self.file.write(data[len(data) // 2 :])
    def __getattr__(self, name):
        return getattr(self.file, name)
    def __enter__(self):
        return self
    def __exit__(self, *_):
        tick()
        self.file.close()

real_open = builtins.open
def opening(path, mode="r", *arguments, **options):
    tick()
    file = real_open(path, mode, *arguments, **options)
    return File(file) if "b" in mode and ("w" in mode or "x" in mode) else file

builtins.open = opening
for name in ("open", "close", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
exec(sys.argv[1])
os._exit(0)
"""


def crash_at_every_operation(code: str, prepare: Callable[[], None], check: Callable[[bool], None]) -> int:
    """Run `code` in processes that die at the first, second… operation, until one ends; returns the operations."""
    for operation in range(1, 200):
        prepare()
        done = subprocess.run([sys.executable, "-c", CRASH, code, str(operation)], cwd=ROOT, check=False, timeout=60)
        assert done.returncode in (0, 9)
        check(done.returncode == 0)
        if done.returncode == 0:
            return operation - 1
    raise AssertionError("the code never ended")


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if files.TEMPORARY.match(path.name)]


def test_a_crash_at_any_operation_of_write_atomic_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    path, seen = tmp_path / "state.json", set()

    def check(done: bool) -> None:
        content = path.read_bytes()
        seen.add(content)
        assert content in (b"old", b"new" * 1000)
        assert not done or content == b"new" * 1000
        assert all(other == path or files.TEMPORARY.match(other.name) for other in tmp_path.iterdir())
        files.sweep(tmp_path)  # the writer is dead: its debris goes
        assert list(tmp_path.iterdir()) == [path]

    code = f"files.write_atomic({str(path)!r}, b'new' * 1000)"
    operations = crash_at_every_operation(code, lambda: path.write_bytes(b"old") and None, check)
    assert operations >= 6  # open, write, fsync, close, replace, and the folder's sync
    assert len(seen) == 2


def test_a_crash_at_any_operation_of_atomic_folder_leaves_nothing_or_all(tmp_path: Path) -> None:
    target, seen = tmp_path / "step-00000001", set()
    code = f"""
with files.atomic_folder({str(target)!r}) as folder:
    files.write_atomic(folder / "a", b"A" * 100)
    os.mkdir(folder / "inner")
    files.write_atomic(folder / "inner" / "b", b"B" * 100)
"""

    def check(done: bool) -> None:
        seen.add(target.exists())
        assert target.exists() or not done
        if target.exists():
            assert (target / "a").read_bytes() == b"A" * 100
            assert (target / "inner" / "b").read_bytes() == b"B" * 100
            assert sorted(p.name for p in target.rglob("*")) == ["a", "b", "inner"]
        files.sweep(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] in ([], [target.name])

    operations = crash_at_every_operation(code, lambda: files.remove_tree(target), check)
    assert operations >= 15
    assert seen == {False, True}


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, operation: int) -> Iterator[list[str]]:
    """Raise "no space left" at the Nth of the file operations in the block; gives the operations that were made."""
    made: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            made.append(name)
            if len(made) == operation:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", counted("open file", builtins.open))
        for name in ("open", "fsync", "replace", "rename", "mkdir"):
            patch.setattr(os, name, counted(name, getattr(os, name)))
        yield made


def test_a_failure_at_any_operation_of_write_atomic_is_raised_and_leaves_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    for operation in range(1, 20):
        path.write_bytes(b"old")
        with failing(monkeypatch, operation) as made:
            raised = False
            try:
                files.write_atomic(path, b"new")
            except OSError as error:
                raised = error.errno == errno.ENOSPC
        assert raised == (len(made) >= operation)
        assert list(tmp_path.iterdir()) == [path]
        renamed = "replace" in made[: operation - 1]
        assert path.read_bytes() == (b"new" if renamed else b"old")
        if not raised:
            assert operation >= 5
            return
    raise AssertionError("it never ended")


def test_a_failure_at_any_operation_of_atomic_folder_is_raised_and_leaves_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for operation in range(1, 40):
        target = tmp_path / f"{operation}" / "folder"
        with failing(monkeypatch, operation) as made:
            raised = False
            try:
                with files.atomic_folder(target) as folder:
                    files.write_atomic(folder / "a", b"A")
                    files.write_atomic(folder / "b", b"B")
            except OSError as error:
                raised = error.errno == errno.ENOSPC
        assert raised == (len(made) >= operation)
        renamed = "rename" in made[: operation - 1]
        left = [path.name for path in target.parent.iterdir()] if target.parent.exists() else []
        assert left == (["folder"] if renamed else [])
        if not raised:
            assert operation >= 15
            return
    raise AssertionError("it never ended")


def test_files_are_synced_before_the_rename_and_the_parent_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace: list[str] = []
    sync, rename, replace = os.fsync, os.rename, os.replace

    def name(path: object) -> str:
        return ".TMP" if files.TEMPORARY.match(Path(str(path)).name) else Path(str(path)).name

    def traced_sync(descriptor: int) -> None:
        trace.append(f"sync {name(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        sync(descriptor)

    def traced_rename(source: Any, target: Any) -> None:
        trace.append(f"rename {name(source)} {name(target)}")
        rename(source, target)

    def traced_replace(source: Any, target: Any) -> None:
        trace.append(f"rename {name(source)} {name(target)}")
        replace(source, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("the names of descriptors are known on Linux alone")
    monkeypatch.setattr(os, "fsync", traced_sync)
    monkeypatch.setattr(os, "rename", traced_rename)
    monkeypatch.setattr(os, "replace", traced_replace)
    parent = tmp_path.name
    files.write_atomic(tmp_path / "file", b"x")
    assert trace == ["sync .TMP", "rename .TMP file", f"sync {parent}"]
    trace.clear()
    with files.atomic_folder(tmp_path / "folder") as folder:
        (folder / "a").write_bytes(b"a")
        (folder / "inner").mkdir()
        (folder / "inner" / "b").write_bytes(b"b")
    assert trace == ["sync b", "sync inner", "sync a", "sync .TMP", "rename .TMP folder", f"sync {parent}"]


@pytest.mark.parametrize("said", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: int
) -> None:
    real, refuse, synced = os.fsync, stat.S_ISDIR, []

    def sync(descriptor: int) -> None:
        if refuse(os.fstat(descriptor).st_mode):
            raise OSError(said, os.strerror(said))
        synced.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    files.write_atomic(tmp_path / "file", b"x")
    with files.atomic_folder(tmp_path / "new" / "folder") as folder:
        (folder / "a").write_bytes(b"a")
    EventLog(tmp_path / "log.jsonl", "r").close()
    assert (tmp_path / "new" / "folder" / "a").read_bytes() == b"a"
    assert len(synced) == 2

    refuse = stat.S_ISREG  # the same of a file is an error
    with pytest.raises(OSError, match=os.strerror(said)):
        files.write_atomic(tmp_path / "file", b"y")
    refuse, said = stat.S_ISDIR, errno.EIO  # and any other of a folder
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.write_atomic(tmp_path / "file", b"z")


def test_atomic_folder_refuses_a_target_that_exists_or_comes_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError), files.atomic_folder(tmp_path / "there"):
        raise AssertionError("the block must not run")
    with pytest.raises(FileExistsError), files.atomic_folder(tmp_path / "late") as folder:  # noqa: PT012
        (folder / "mine").write_text("mine")
        (tmp_path / "late").mkdir()  # empty: a plain rename would take its place without a word
    assert sorted(path.name for path in tmp_path.iterdir()) == ["late", "there"]
    assert list((tmp_path / "late").iterdir()) == []
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError), files.atomic_folder(tmp_path / "link"):
        raise AssertionError("the block must not run")


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_atomic_folder_is_gone_when_its_block_fails(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), files.atomic_folder(tmp_path / "a" / "folder") as folder:  # noqa: PT012
        (folder / "half").write_text("half")
        raise error
    assert list((tmp_path / "a").iterdir()) == []


def test_write_atomic_replaces_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other")
    (tmp_path / "link").symlink_to(tmp_path / "other")
    files.write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "other").read_text() == "other"
    assert (tmp_path / "link").read_text() == "new"
    assert not (tmp_path / "link").is_symlink()


def test_remove_tree_never_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (tmp_path / "doomed").mkdir()
    (tmp_path / "doomed" / "link").symlink_to(tmp_path / "precious", target_is_directory=True)
    files.remove_tree(tmp_path / "doomed")
    files.remove_tree(tmp_path / "doomed")  # missing is fine
    (tmp_path / "link").symlink_to(tmp_path / "precious", target_is_directory=True)
    files.remove_tree(tmp_path / "link")
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["precious", "precious/file"]


def test_remove_tree_that_dies_halfway_shows_no_half_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    for name in "abc":
        (tmp_path / "model" / name).write_text(name)

    def die(path: Path, **_: object) -> None:
        os.unlink(path / "a")
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", die)
        with pytest.raises(OSError, match="Input/output"):
            files.remove_tree(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert len(temporaries(tmp_path)) == 1
    assert len(files.sweep(tmp_path, alone=True)) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("said", [errno.EBUSY, errno.ESTALE])
def test_what_nfs_keeps_of_a_folder_in_use_is_out_of_sight_and_goes_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: int
) -> None:
    folder, real = tmp_path / "step-00000001", os.unlink
    (folder / "inner").mkdir(parents=True)
    for name in ("a", "mapped", "z", "inner/mapped", "inner/z"):
        (folder / name).write_text(name)

    def unlink(path: Any, *, dir_fd: int | None = None) -> None:
        """As NFS does: a file in use gets another name in its folder, and that one cannot be removed."""
        if str(path).startswith(".nfs"):
            raise OSError(said, os.strerror(said))
        if str(path) == "mapped":
            os.rename(path, ".nfs0001", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        else:
            real(path, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        files.remove_tree(folder)
        (left,) = temporaries(tmp_path)
        assert list(tmp_path.iterdir()) == [left]
        kept = sorted(path.relative_to(left).as_posix() for path in left.rglob("*"))
        assert kept == [".nfs0001", "inner", "inner/.nfs0001"]
        assert files.sweep(tmp_path, alone=True) == []
        assert left.exists()
    assert files.sweep(tmp_path, alone=True) == [left]
    assert list(tmp_path.iterdir()) == []


def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_sweep_removes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    stay = [f".log.tmp-{os.getpid()}-00112233", ".log.tmp-x-00112233", "log.tmp-1-00112233", ".hidden", "step-00000001"]
    go = [f".log.tmp-{dead_process()}-00112233", f".log.tmp-{10**30}-00112233"]
    for name in stay + go:
        (tmp_path / name).write_text(name)
    (tmp_path / f".folder.tmp-{dead_process()}-00112233").mkdir()
    removed = files.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)
    assert len(removed) == 3
    assert files.sweep(tmp_path) == []
    assert files.sweep(tmp_path / "missing") == []
    files.sweep(tmp_path, alone=True, only="other")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)
    files.sweep(tmp_path, alone=True)  # under a lock that all writers hold, our own number is a dead one's, too
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay[1:])


HOLD = """
import sys, time
from lmlab import files
with files.lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_held_by_one_process_and_a_dead_holders_is_free(tmp_path: Path) -> None:
    path = tmp_path / "new" / "registry.json"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        started = time.monotonic()
        with pytest.raises(TimeoutError, match="in use"), files.lock(path, timeout=0.2):
            raise AssertionError("two hold the lock")
        assert time.monotonic() - started >= 0.15
        process.send_signal(signal.SIGKILL)
        process.wait()
        with files.lock(path, timeout=5), pytest.raises(TimeoutError), files.lock(path, timeout=0):
            raise AssertionError("two hold the lock")
    with files.lock(path, timeout=0):
        pass


def test_json_sizes_and_hashes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_atomic(path, files.dump_json({"z": "é", "a": [1, None]}))
    assert path.read_bytes().endswith(b"\n")
    assert list(files.read_json(path)) == ["z", "a"]
    with pytest.raises(ValueError):
        files.dump_json({"x": float("nan")})
    path.write_bytes(b"\xff{}")
    with pytest.raises(ValueError):
        files.read_json(path)
    assert files.sha256_file(path) == files.sha256_bytes(b"\xff{}")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "inner")
    assert files.tree_size(tmp_path) == 3 + 5 + (tmp_path / "link").lstat().st_size
    assert json.loads(files.dump_json([1])) == [1]


@pytest.mark.parametrize("refused", [False, True])
def test_where_the_drive_has_a_cache_of_its_own_it_is_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    fully: list[int] = []
    plainly: list[int] = []

    def full(descriptor: int, request: int) -> int:
        assert request == 51
        fully.append(os.fstat(descriptor).st_ino)
        if refused:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        return 0

    assert files.fcntl is not None
    monkeypatch.setattr(files.fcntl, "F_FULLFSYNC", 51, raising=False)  # its number on macOS
    monkeypatch.setattr(files.fcntl, "fcntl", full)
    monkeypatch.setattr(os, "fsync", lambda descriptor: plainly.append(os.fstat(descriptor).st_ino))
    with files.atomic_folder(tmp_path / "folder") as folder:
        files.write_atomic(folder / "a", b"a")
    log = EventLog(tmp_path / "log.jsonl", "r")
    log.sync()
    log.close()
    written = (tmp_path, tmp_path / "folder", tmp_path / "folder" / "a", tmp_path / "log.jsonl")
    assert set(fully) == {path.stat().st_ino for path in written}
    assert plainly == (fully if refused else [])


def test_an_os_error_is_told_in_words() -> None:
    assert files.describe_os_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) == "No space left on device"
    assert files.describe_os_error(OSError("plain")) == "plain"
    assert files.describe_os_error(PermissionError()) == "PermissionError"
