"""The registry: names, entries, concurrent writers, hostile content, and what its tables say."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lmlab.registry as registry_module
from lmlab import files
from lmlab.catalogue import render_info, render_list
from lmlab.entries import Entry, FileInfo, check_name
from lmlab.errors import ModelNotFound, RegistryError
from lmlab.files import sha256_file
from lmlab.places import find_models_dir
from lmlab.registry import Registry

HOSTILE_NAMES = [
    "..",
    ".",
    "",
    "/etc",
    "a/b",
    "..\\x",
    "a\0b",
    "-x",
    ".x",
    "A",
    "ä",
    "a b",
    "a\n",
    "x" * 65,
    "registry.json",
]


def register(registry: Registry, name: str, **fields: Any) -> Entry:
    """A model of one small file, with its entry."""
    folder = registry.models_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(name.encode() * 10)
    values: dict[str, Any] = {
        "model_name": name,
        "source": "local",
        "created_at": "2026-11-20T12:00:00.000000Z",
        "architecture_type": "qwen",
        "local_path": name,
        "n_parameters": 1234,
        "size_bytes": 10 * len(name),
        "files": {
            "model.safetensors": FileInfo(
                size=10 * len(name), sha256=sha256_file(folder / "model.safetensors")
            ).model_dump()
        },
        **fields,
    }
    entry = Entry.model_validate(values)
    registry.add(entry)
    return entry


def family(registry: Registry) -> None:
    """base, and a chain of two fine-tunes below it, and one on its own."""
    register(registry, "base", model_id="Qwen/Qwen2.5-0.5B", source="huggingface", revision="a" * 40, license="mit")
    link = {"model_name": "base", "run_id": None, "step": None}
    register(registry, "child", source="fine-tuned", fine_tuned_from="base", lineage=[link], run_id="run-1", step=20)
    chain = registry.lineage("child")
    register(
        registry, "grandchild", source="fine-tuned", fine_tuned_from="child", lineage=chain, run_id="run-2", step=7
    )
    register(registry, "other")


def test_an_entry_comes_back_as_it_was_added(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "models")
    entry = register(registry, "tiny", revision="0" * 40, license="apache-2.0")
    assert Registry(tmp_path / "models").get("tiny") == entry
    assert registry.names() == ["tiny"]
    assert registry.path("tiny") == tmp_path / "models" / "tiny"
    assert json.loads(registry.file.read_text())["version"] == 1
    with pytest.raises(RegistryError, match="registered already"):
        registry.add(entry)
    registry.add(entry.model_copy(update={"license": "mit"}), replace=True)
    assert registry.get("tiny").license == "mit"


def test_fields_of_a_newer_lmlab_survive_a_write(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    register(registry, "tiny", stars=5)
    register(registry, "other")
    assert json.loads(registry.file.read_text())["models"]["tiny"]["stars"] == 5


def test_a_missing_model_is_named_with_those_that_exist(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    with pytest.raises(ModelNotFound, match="there are none yet; get one with `import-model"):
        registry.get("qwen")
    register(registry, "tiny")
    with pytest.raises(ModelNotFound, match=r"no model 'qwen' in .*registry\.json; there are: tiny"):
        registry.path("qwen")


def test_a_name_that_is_none_stays_on_its_line(tmp_path: Path) -> None:
    (tmp_path / "registry.json").write_text('{"version": 1, "models": {"a\\nb\\u001b[31m": 3}}')
    with pytest.raises(ModelNotFound, match=r"there are: a b\?\[31m; `import-model SOURCE --name NAME` gets another$"):
        Registry(tmp_path).get("tiny")


def test_missing_and_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    register(registry, "tiny")
    weights = tmp_path / "tiny" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[3] ^= 1
    weights.write_bytes(content)
    assert registry.path("tiny") == tmp_path / "tiny"
    with pytest.raises(RegistryError, match=r"model\.safetensors is damaged.*validate-registry"):
        registry.verify("tiny")
    weights.write_bytes(content[:-1])
    with pytest.raises(RegistryError, match=r"damaged: 39 bytes, not 40"):
        registry.path("tiny")
    weights.unlink()
    with pytest.raises(RegistryError, match=r"missing; import it again or run `validate-registry`"):
        registry.path("tiny")


def test_only_what_is_not_read_need_not_be_hashed(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    register(registry, "tiny")
    weights = tmp_path / "tiny" / "model.safetensors"
    weights.write_bytes(b"x" * weights.stat().st_size)
    assert registry.verify("tiny", weights=False) == tmp_path / "tiny"
    with pytest.raises(RegistryError, match=r"model\.safetensors is damaged: its sha256 is not the registered one"):
        registry.verify("tiny")


def test_ancestry_is_read_in_both_directions(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    family(registry)
    assert registry.ancestors("grandchild") == ["base", "child"]
    assert registry.descendants("base") == ["child", "grandchild"]
    assert registry.descendants("grandchild") == []
    assert registry.lineage("grandchild")[-1] == {"model_name": "grandchild", "run_id": "run-2", "step": 7}


def test_delete_refuses_an_ancestor_and_frees_the_disk(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    family(registry)
    with pytest.raises(
        RegistryError, match="child, grandchild come from 'base'; delete what comes from it first, or use --force"
    ):
        registry.remove("base")
    assert (tmp_path / "base").is_dir()
    assert registry.names()[0] == "base"
    assert registry.remove("grandchild") == 100
    assert not (tmp_path / "grandchild").exists()
    registry.remove("base", force=True)
    assert registry.names() == ["child", "other"]
    assert registry.ancestors("child") == ["base"]
    assert registry.validate() == []


def test_a_model_that_takes_the_name_of_a_deleted_one_takes_no_descendants(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    family(registry)
    registry.remove("child", force=True)
    register(registry, "child", source="custom", run_id="run-9", step=20)
    assert registry.descendants("child") == []
    assert registry.descendants("base") == ["grandchild"]
    assert "nothing was fine-tuned from it" in render_info(registry, "child", tmp_path / "runs")
    lines = render_list(registry).splitlines()
    assert [line.split("qwen")[0].rstrip() for line in lines[1:5]] == ["base", "grandchild", "other", "child"]
    registry.remove("child")
    register(registry, "child", source="custom", run_id="run-1", step=20)  # the one that was deleted, registered again
    assert registry.descendants("child") == ["grandchild"]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=repr)
def test_hostile_names_are_refused(name: str) -> None:
    with pytest.raises(RegistryError, match="cannot name a model"):
        check_name(name)


@pytest.mark.parametrize("path", ["..", ".", "", "/tmp", "../victim", "a/../../victim", "a/b", "victim\0"], ids=repr)
def test_an_entry_that_climbs_is_never_followed(tmp_path: Path, path: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("keep")
    registry = Registry(tmp_path / "models")
    register(registry, "good")
    content = json.loads(registry.file.read_text())
    content["models"]["evil"] = {**content["models"]["good"], "model_name": "evil", "local_path": path}
    registry.file.write_text(json.dumps(content))
    for forbidden in (registry.path, registry.remove, registry.get):
        with pytest.raises(RegistryError, match=r"damaged.*validate-registry --fix"):
            forbidden("evil")
    assert "evil: damaged" in render_list(registry)
    assert [p.name for p in registry.validate(fix=True)] == ["evil"]
    assert registry.names() == ["good"]
    assert (victim / "precious").read_text() == "keep"
    assert registry.verify("good") == registry.path("good")


def test_deleting_removes_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    registry = Registry(tmp_path / "models")
    register(registry, "tiny")
    register(registry, "linked")
    (registry.models_dir / "tiny" / "inner").symlink_to(victim)
    for path in (registry.models_dir / "linked").iterdir():
        path.rename(victim / path.name)
    (registry.models_dir / "linked").rmdir()
    (registry.models_dir / "linked").symlink_to(victim)
    registry.remove("tiny")
    registry.remove("linked")
    assert os.listdir(victim) == ["model.safetensors"]
    assert registry.names() == []
    assert not (registry.models_dir / "linked").is_symlink()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"version": 1}', b"\xff\xfe", b'{"version": 1, "models": []}', b"[" * 100_000],
    ids=lambda content: repr(content[:30]),
)
def test_a_damaged_registry_is_one_line_that_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    registry = Registry(tmp_path)
    (tmp_path / "precious").mkdir()
    registry.file.write_bytes(content)
    for call in (registry.names, lambda: registry.validate(fix=True), lambda: render_list(registry)):
        with pytest.raises(RegistryError, match=r"damaged .*; restore it from a copy, or move it away") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert registry.file.read_bytes() == content
    assert (tmp_path / "precious").is_dir()


def test_a_registry_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.file.write_text('{"version": 2, "models": {}}')
    with pytest.raises(RegistryError, match=r"version 2, this lmlab reads 1"):
        registry.names()


def test_validate_finds_everything_and_fix_leaves_a_clean_folder(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for name in ("sound", "gone", "half", "rotten"):
        register(registry, name)
    (tmp_path / "gone" / "model.safetensors").unlink()
    (tmp_path / "gone").rmdir()
    (tmp_path / "half" / "model.safetensors").unlink()
    (tmp_path / "rotten" / "model.safetensors").write_bytes(b"x" * 60)
    (tmp_path / "orphan").mkdir()
    (tmp_path / "orphan" / "model.safetensors").write_bytes(b"dear")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".unregistered" / "orphan").mkdir(parents=True)  # of an earlier time
    (tmp_path / ".partial-broken").mkdir()
    (tmp_path / ".partial-active").mkdir()
    (tmp_path / ".dead.tmp-999999999-0123abcd").mkdir()
    (tmp_path / f".alive.tmp-{os.getpid()}-0123abcd").mkdir()
    cut_off = f".registry.json.tmp-{os.getpid()}-0123abcd"  # of a writer whose number is borne by another process now
    (tmp_path / cut_off).write_text("{")
    (tmp_path / "notes.txt").write_text("mine")
    expected = {"gone", "half", "rotten", "orphan", "empty", ".partial-broken", ".dead.tmp-999999999-0123abcd", cut_off}
    with registry.importing("active", timeout=1):
        found = registry.validate()
        assert sorted(problem.name for problem in found) == sorted(expected), "each once"
        assert not any(problem.fixed for problem in found)
        fixed = {problem.name: problem.fixed for problem in registry.validate(fix=True)}
        assert fixed == {name: name != "rotten" for name in expected}
        assert (tmp_path / ".partial-active").is_dir()
    assert registry.names() == ["sound", "rotten"]
    assert [problem.name for problem in registry.validate(fix=True)] == ["rotten", ".partial-active"]
    left = {"sound", "rotten", "notes.txt", "registry.json", "registry.json.lock", f".alive.tmp-{os.getpid()}-0123abcd"}
    assert set(os.listdir(tmp_path)) == left | {".unregistered"}
    assert set(os.listdir(tmp_path / ".unregistered")) == {"orphan", "orphan-2", "half.json"}
    assert (tmp_path / ".unregistered" / "orphan-2" / "model.safetensors").read_bytes() == b"dear"


def test_fix_keeps_the_models_of_a_registry_that_was_lost(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    register(registry, "tuned")
    registry.file.write_text("{")
    with pytest.raises(RegistryError, match=r"move it away, run `validate-registry --fix`, and import .*unregistered"):
        registry.names()
    registry.file.unlink()
    moved = "is a folder that no entry names (moved to .unregistered/tuned; delete it there, or import it from there)"
    assert [str(problem) for problem in registry.validate(fix=True)] == [f"tuned: {moved}"]
    assert registry.validate() == []
    assert (tmp_path / ".unregistered" / "tuned" / "model.safetensors").exists()


def test_fix_moves_a_folder_with_links_and_pipes_as_it_is(tmp_path: Path) -> None:
    """As a copied snapshot of the hub's cache, whose links lead nowhere; a pipe that is opened waits for ever."""
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "config.json").write_text("{}")
    (copied / "model.safetensors").symlink_to("../../blobs/abc")
    os.mkfifo(copied / "pipe")
    [problem] = Registry(tmp_path).validate(fix=True)
    assert problem.done.startswith("moved to .unregistered/copied")
    moved = tmp_path / ".unregistered" / "copied"
    assert set(os.listdir(moved)) == {"config.json", "model.safetensors", "pipe"}
    assert os.readlink(moved / "model.safetensors") == "../../blobs/abc"


def test_what_the_disk_refuses_to_move_keeps_nothing_else_from_being_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path)
    for name in ("half", "lost"):
        register(registry, name)
        (tmp_path / name / "model.safetensors").rename(tmp_path / name / "other")
    for name in ("a-held", "b-free"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    rename, replace = os.rename, os.replace

    def refuse(do: Any, name: str, source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise PermissionError(13, "Permission denied", str(source))
        do(source, target)

    monkeypatch.setattr(os, "rename", lambda *paths: refuse(rename, "a-held", *paths))
    monkeypatch.setattr(os, "replace", lambda *paths: refuse(replace, "lost.json", *paths))
    problems = registry.validate(fix=True)
    assert {problem.name for problem in problems if problem.fixed} == {"half", "b-free"}
    held, lost = sorted((problem for problem in problems if not problem.fixed), key=lambda problem: problem.name)
    assert str(held).startswith("a-held: is a folder that no entry names; it cannot be put aside (Permission denied: ")
    assert (lost.name, registry.names()) == ("lost", ["lost"])
    assert set(os.listdir(tmp_path / ".unregistered")) == {"half", "half.json", "b-free"}
    monkeypatch.undo()
    assert all(problem.fixed for problem in registry.validate(fix=True))
    assert registry.validate() == []


ADDERS = """
import os, sys
from lmlab.registry import Registry
from lmlab.entries import Entry

def add(number):
    registry = Registry(sys.argv[1])
    for i in range(int(sys.argv[3])):
        name = f"model-{number}-{i}"
        registry.add(Entry(model_name=name, source="local", architecture_type="qwen", local_path=name))
    assert "torch" not in sys.modules and "transformers" not in sys.modules and "huggingface_hub" not in sys.modules

wait, go = os.pipe()
for number in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(go)
            os.read(wait, 1)
            add(number)
            status = 0
        finally:
            os._exit(status)
    print(child, flush=True)
os.close(go)
while True:
    print(*os.wait(), flush=True)
"""


@contextlib.contextmanager
def adding(folder: Path, n_processes: int, count: int) -> Iterator[tuple[list[int], Iterator[tuple[int, int]]]]:
    """Processes that begin at once to add `count` entries each: their numbers, and those of the ones that end, as they
    do, with their exit statuses."""
    arguments = [sys.executable, "-c", ADDERS, str(folder), str(n_processes), str(count)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        children = [int(process.stdout.readline()) for _ in range(n_processes)]
        lines = (line.split() for line in process.stdout)
        yield children, ((int(child), os.waitstatus_to_exitcode(int(status))) for child, status in lines)


def test_sixteen_processes_adding_fifty_entries_leave_eight_hundred(tmp_path: Path) -> None:
    with adding(tmp_path, 16, 50) as (children, ended):
        assert dict(ended) == dict.fromkeys(children, 0)
    assert len(children) == 16
    assert set(Registry(tmp_path).names()) == {f"model-{n}-{i}" for n in range(16) for i in range(50)}
    assert set(os.listdir(tmp_path)) == {"registry.json", "registry.json.lock"}


def test_a_kill_at_any_moment_leaves_a_registry_that_parses(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    with adding(tmp_path, 4, 100_000) as (children, ended):
        for child, delay in zip(children, (0.05, 0.11, 0.03, 0.07), strict=True):
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            assert next(ended) == (child, -signal.SIGKILL)
            before = {entry.model_name for entry in registry.entries()}
            assert before <= set(registry.names())  # the processes that live go on adding between the two
    assert registry.entries()
    registry.validate(fix=True)
    assert registry.names() == []
    assert set(os.listdir(tmp_path)) == {"registry.json", "registry.json.lock"}


def test_a_model_is_on_the_disk_before_the_registry_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path)
    staged = registry.partial("new")
    entry = register(Registry(tmp_path / "elsewhere"), "new")
    (tmp_path / "elsewhere" / "new").rename(staged)
    told: list[str] = []
    sync, hold = files.sync, registry_module.lock

    def synced(path: Path) -> None:
        told.append(path.name)
        sync(path)

    def held(path: Path) -> Any:
        told.append("lock")
        return hold(path)

    monkeypatch.setattr(files, "sync", synced)
    monkeypatch.setattr(registry_module, "lock", held)
    registry.admit(staged, entry)
    assert told[:3] == ["model.safetensors", staged.name, "lock"]
    assert "model.safetensors" not in told[3:]
    assert registry.verify("new") == tmp_path / "new"


def test_a_disk_that_fails_to_sync_a_new_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = register(Registry(tmp_path / "elsewhere"), "new")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RegistryError, match=r"cannot write .*new: No space left on device"):
        Registry(tmp_path).admit(tmp_path / "elsewhere" / "new", entry)
    assert (tmp_path / "elsewhere" / "new").is_dir()
    assert Registry(tmp_path).names() == []


def test_hidden_files_that_programs_leave_are_no_damage(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    register(registry, "one")
    for name in (".DS_Store", "._x", ".ipynb_checkpoints/config-checkpoint.json"):
        for folder in (tmp_path, tmp_path / "one"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("left by a program")
    assert registry.verify("one") == registry.path("one")
    assert registry.validate(fix=True) == []


KILLS = """
import os, signal, sys
from pathlib import Path
import filelock
from lmlab.files import remove_tree, sha256_file
from lmlab.registry import Registry
from lmlab.entries import Entry, FileInfo

registry = Registry(sys.argv[1])
WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "shutil.rmtree"}

def gather(folder, name):
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(name.encode())
    files = {"model.safetensors": FileInfo(size=len(name), sha256=sha256_file(folder / "model.safetensors"))}
    return Entry(model_name=name, source="local", architecture_type="qwen", local_path=name, files=files)

def live(moment):
    passed = 0
    def die(event, arguments):
        nonlocal passed
        if event in WATCHED:
            passed += 1
            if passed == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(die)
    with registry.importing("new", timeout=0):
        registry.admit(registry.partial("new"), gather(registry.partial("new"), "new"))
    registry.remove("old")

seen, moment, status = set(), 0, None
while status != 0:
    moment += 1
    staged = registry.models_dir / "staged"
    registry.admit(staged, gather(staged, "old"))
    pid = os.fork()
    if pid == 0:
        live(moment)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), (moment, status)
    names = registry.names()
    for name in names:
        registry.verify(name)
    registry.validate(fix=True)
    assert registry.validate() == [] and registry.names() == names, moment
    left = set(os.listdir(registry.models_dir)) - {".unregistered"}
    assert left == {*names, "registry.json", "registry.json.lock"}, (moment, left)
    seen.add(tuple(names))
    for name in names:
        registry.remove(name)
print(moment, sorted(seen))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process for every moment")
def test_a_kill_at_each_operation_on_the_disk_leaves_whole_models_and_nothing_that_fix_does_not_remove(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", KILLS, str(tmp_path / "models")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    moments, seen = done.stdout.split(maxsplit=1)
    assert int(moments) > 20
    assert seen.strip() == "[('new',), ('old',), ('old', 'new')]"


def test_the_table_shows_lineage_as_a_tree_and_the_disk_used(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert "import-model builtin:tiny-qwen" in render_list(registry)
    family(registry)
    lines = render_list(registry).splitlines()
    names = [line.split("qwen")[0].rstrip() for line in lines[1:5]]
    assert names == ["base", "└─ child", "   └─ grandchild", "other"]
    assert "Qwen/Qwen2.5-0.5B@aaaaaaa" in lines[1]
    assert "mit" in lines[1]
    assert lines[-1] == f"4 models, 240 B on disk in {tmp_path}"


def test_models_that_name_each_other_as_parents_are_listed_once(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for name, parent in (("hen", "egg"), ("egg", "hen"), ("self", "self")):
        register(registry, name, fine_tuned_from=parent, lineage=[{"model_name": parent}])
    lines = render_list(registry).splitlines()[1:]
    assert sorted(line.split("qwen")[0].strip(" └─") for line in lines[:3]) == ["egg", "hen", "self"]
    assert len(lines) == 4


def test_info_tells_everything_about_a_model(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "models")
    family(registry)
    (tmp_path / "models" / "child" / "config.json").write_text('{"model_type": "qwen2", "hidden_size": 896}')
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|end|>", "model_max_length": int(1e30)}
    (tmp_path / "models" / "child" / "tokenizer_config.json").write_text(json.dumps(settings))
    run = tmp_path / "runs" / "run-1"
    run.mkdir(parents=True)
    events = [
        {"event": "run_start", "run_id": "run-1", "kind": "fine-tune"},
        {"event": "eval", "step": 20, "val_loss": 1.5},
        {"event": "run_end", "step": 20, "status": "completed"},
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    info = render_info(registry, "child", tmp_path / "runs")
    for title in ("Origin", "Architecture", "Tokenizer", "Licence", "Files", "Ancestors", "Descendants", "Runs"):
        assert f"\n{title}\n" in info
    assert registry.get("child").files["model.safetensors"].sha256 in info
    assert "hidden_size  896" in info
    assert "Qwen2Tokenizer" in info
    assert "end of sequence  <|end|>" in info
    assert "longest text" not in info  # the number stands for none
    assert "grandchild  from child" in info
    assert "run-1  weights of step 20; fine-tune; val_loss 1.5000 at step 20; completed" in info
    assert "base  its own weights" in info
    assert "run-2  weights of step 7; its folder is not in" in render_info(registry, "grandchild", tmp_path / "runs")


def test_info_tells_of_the_run_that_made_a_model_and_of_no_other_of_its_name(tmp_path: Path) -> None:
    registry, runs = Registry(tmp_path / "models"), tmp_path / "runs"
    register(registry, "tuned", run_id="week", step=4, created_at="2026-01-02T00:00:00.000000Z")

    def write_log(name: str, time: str, val_loss: float) -> None:
        (runs / name).mkdir(parents=True)
        start = {"event": "run_start", "run_id": "week", "time": time, "kind": "fine-tune"}
        lines = [json.dumps(event) + "\n" for event in (start, {"event": "eval", "step": 4, "val_loss": val_loss})]
        (runs / name / "log.jsonl").write_text("".join(lines))

    write_log("week", "2026-01-03T00:00:00.000000Z", 9.0)  # begun under the same name after the other was deleted
    assert f"week  weights of step 4; its folder is not in {runs}" in render_info(registry, "tuned", runs)
    write_log("week-old", "2026-01-01T00:00:00.000000Z", 1.5)  # or after its folder was renamed
    shown = render_info(registry, "tuned", runs)
    assert "week  in folder week-old; weights of step 4; fine-tune; val_loss 1.5000 at step 4" in shown


def test_nothing_in_an_entry_can_steer_the_terminal_or_leave_the_runs_folder(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    register(registry, "evil", model_id="\x1b[2Jx\u202ey\n", license="a\nb" * 200, run_id="../../etc", step=1)
    for shown in (render_list(registry), render_info(registry, "evil", tmp_path / "runs")):
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "?[2Jx?y" in shown
    assert "not a run's name" in render_info(registry, "evil", tmp_path / "runs")


def test_the_models_folder_is_found_from_the_environment_or_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LMLAB_MODELS_DIR", raising=False)
    monkeypatch.delenv("LMLAB_HOME", raising=False)
    (tmp_path / "configs").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert Registry().models_dir == find_models_dir() == tmp_path / "models"
    (tmp_path / "others").mkdir()
    assert Registry("others").models_dir == tmp_path / "others", "found from a folder below, as every path"
    monkeypatch.setenv("LMLAB_HOME", "/home/lab")
    assert find_models_dir() == Path("/home/lab/models")
    monkeypatch.setenv("LMLAB_MODELS_DIR", "/elsewhere")
    assert find_models_dir() == Path("/elsewhere")
    assert find_models_dir("/named") == Path("/named")


def test_a_log_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    os.mkfifo(tmp_path / "one" / "log.jsonl")
    says = f"print(run_facts(Path({str(tmp_path)!r}), 'one', 3, ''))"
    code = f"from pathlib import Path; from lmlab.catalogue import run_facts; {says}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == f"weights of step 3; its folder is not in {tmp_path}\n"
