"""Checkpoints: whole or not there, verified to the byte, and never a step back beyond the one before."""

from __future__ import annotations

import builtins
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lmlab import checkpoint, files
from lmlab.errors import CheckpointError
from lmlab.tokenizers import CharTokenizer

TENSORS = {
    "model": {"a.weight": torch.arange(12.0).view(3, 4), "half": torch.ones(5, dtype=torch.bfloat16)},
    "optimizer": {"a.weight.exp_avg": torch.full((3, 4), -0.0), "a.weight.step": torch.tensor(3.0)},
    "rng": {"cpu": torch.arange(200, dtype=torch.uint8)},
}
TOKENIZER = CharTokenizer.from_text("abc 😀")


def save(folder: Path, step: int = 3, **changes: Any) -> Path:
    contents = checkpoint.collect(**{name: changes.pop(name, TENSORS[name]) for name in TENSORS})
    arguments: dict[str, Any] = {
        "architecture": {"model_type": "custom-transformer"},
        "state": {"step": step, "config": {"a": 1}},
        "tokenizer": TOKENIZER,
        **changes,
    }
    return checkpoint.save(folder, contents, **arguments)


def run_with(tmp_path: Path, *steps: int) -> Path:
    checkpoints = tmp_path / "checkpoints"
    for step in steps:
        save(checkpoint.step_folder(checkpoints, step), step)
    return checkpoints


def test_a_checkpoint_is_read_wherever_the_current_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "step-00000003")
    (tmp_path / "gone").mkdir()
    saved = checkpoint.load("step-00000003")
    monkeypatch.chdir("gone")
    above = checkpoint.load("../step-00000003")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").rmdir()
    for each in (saved, above):
        assert each.folder == tmp_path / "step-00000003"
        assert each.tensors("model").keys() == TENSORS["model"].keys()
        assert each.tokenizer().identifier == TOKENIZER.identifier


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    folder = save(tmp_path / "step-00000003")
    saved = checkpoint.load(folder)
    assert saved.step == 3
    assert saved.state == {"step": 3, "config": {"a": 1}}
    assert saved.tokenizer().identifier == TOKENIZER.identifier
    for part, tensors in TENSORS.items():
        loaded = saved.tensors(part)
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[name].dtype == tensor.dtype
            assert torch.equal(loaded[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "config.json", "manifest.json", "model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json",
        "tokenizer/char_tokenizer.json",
    ]  # fmt: skip


def test_the_manifest_names_every_file_with_size_and_hash(tmp_path: Path) -> None:
    folder = save(tmp_path / "one")
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    for name, entry in listed.items():
        assert entry == {"size": (folder / name).stat().st_size, "sha256": files.sha256_file(folder / name)}
    assert len(listed) == 6
    assert checkpoint.read_manifest(folder) == checkpoint.read_manifest(save(tmp_path / "other"))
    assert checkpoint.read_manifest(folder) != checkpoint.read_manifest(save(tmp_path / "third", step=4))


def test_a_run_before_its_first_step_and_without_tokenizer_can_be_saved(tmp_path: Path) -> None:
    folder = save(tmp_path / "step-00000000", step=0, optimizer={}, tokenizer=None)
    saved = checkpoint.load(folder)
    assert saved.step == 0
    assert saved.tensors("optimizer") == {}
    assert not (folder / "tokenizer").exists()


def test_tensors_on_a_graph_or_out_of_order_are_saved_by_value(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    folder = save(tmp_path / "c", model={"w": weight, "t": weight.detach().T})
    loaded = checkpoint.load(folder).tensors("model")
    assert torch.equal(loaded["w"], weight.detach())
    assert torch.equal(loaded["t"], weight.detach().T)


def test_who_may_read_a_checkpoint_may_read_its_tensors(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = save(tmp_path / "step-00000003")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_file()} == {0o640}


def test_a_checkpoint_is_never_written_over(tmp_path: Path) -> None:
    folder = save(tmp_path / "step-00000003")
    before = checkpoint.read_manifest(folder)
    with pytest.raises(CheckpointError, match="exists already; resume from it or remove it first"):
        save(folder, step=4)
    assert checkpoint.read_manifest(folder) == before


# --- crashes and failures -------------------------------------------------------------------------------------------


class Dead(BaseException):
    """What a process does after SIGKILL: nothing, not even its cleanup."""


def crashing(patch: pytest.MonkeyPatch, operation: int) -> list[str]:
    """From the Nth file operation on, nothing happens any more; of what is written then, half is there."""
    made: list[str] = []

    def counted(name: str, real: Callable[..., Any], half: Callable[..., Any] | None = None) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            made.append(name)
            if len(made) == operation and half is not None:
                half(*arguments, **options)
            if len(made) >= operation:
                raise Dead
            return real(*arguments, **options)

        return call

    def half_a_file(tensors: dict[str, Tensor], path: Path, **options: Any) -> None:
        save_file(tensors, path, **options)
        os.truncate(path, path.stat().st_size // 2)

    patch.setattr(checkpoint, "save_file", counted("save_file", save_file, half_a_file))
    patch.setattr(builtins, "open", counted("open file", builtins.open))
    for name in ("open", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir"):
        patch.setattr(os, name, counted(name, getattr(os, name)))
    return made


def test_a_crash_at_any_operation_of_a_save_loses_nothing_that_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = run_with(tmp_path, 1)
    new = checkpoint.step_folder(checkpoints, 2)
    found = set()
    for operation in range(1, 200):
        with monkeypatch.context() as patch:
            made = crashing(patch, operation)
            try:
                save(new, 2)
                ended = True
            except Dead:
                ended = False
        saved, refused = checkpoint.newest(checkpoints)
        found.add(saved.step)
        assert refused == []
        assert saved.step == 2 or not ended
        assert checkpoint.steps(checkpoints) == list(range(1, saved.step + 1))
        files.sweep(checkpoints, alone=True)  # what the next session in this run does under its lock
        assert sorted(path.name for path in checkpoints.iterdir()) == [
            checkpoint.step_folder(checkpoints, step).name for step in range(1, saved.step + 1)
        ]
        if ended:
            assert {"save_file", "fsync", "rename", "replace"} <= set(made)
            assert operation > 30
            break
        files.remove_tree(new)
    else:
        raise AssertionError("the save never ended")
    assert found == {1, 2}


def test_a_disk_that_is_full_at_any_moment_is_one_line_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = run_with(tmp_path, 1)
    for operation in range(40):
        real = os.fsync
        left = iter(range(operation))

        def full(descriptor: int, left: Any = left, real: Callable[[int], None] = real) -> None:
            if next(left, None) is None:
                raise OSError(28, "No space left on device")
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                save(checkpoint.step_folder(checkpoints, 2), 2)
                break
            except CheckpointError as error:
                message = str(error)
        assert "step-00000002: No space left on device; free some space, then go on from the newest" in message
        assert "\n" not in message
        if checkpoint.steps(checkpoints) == [1, 2]:  # only the parent's sync failed: it is there, and whole
            checkpoint.load(checkpoint.step_folder(checkpoints, 2))
            shutil.rmtree(checkpoint.step_folder(checkpoints, 2))
        assert [path.name for path in checkpoints.iterdir()] == ["step-00000001"]
        assert checkpoint.newest(checkpoints)[0].step == 1
    else:
        raise AssertionError("the save never ended")


def test_a_folder_that_is_gone_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is deleted while its tensors are written, whose library says the number of the error in its text."""
    made = checkpoint.new_folder_beside
    monkeypatch.setattr(checkpoint, "new_folder_beside", lambda folder: shutil.rmtree(path := made(folder)) or path)
    with pytest.raises(
        CheckpointError, match=r"No such file or directory.*; check the folder and its permissions, then"
    ):
        save(tmp_path / "step-00000001", 1)


@pytest.mark.parametrize(
    "name", [".DS_Store", "._state.json", ".ipynb_checkpoints/state-checkpoint.json", "tokenizer/.DS_Store"]
)
def test_hidden_files_that_programs_leave_are_no_damage(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path / "step-00000003")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("left by a program")
    assert checkpoint.load(folder).step == 3
    assert name not in checkpoint.manifest(folder)["files"]
    listed = checkpoint.manifest(folder)["files"] | {name: {"size": 17, "sha256": "0" * 64}}
    (folder / "manifest.json").write_bytes(files.dump_json({"version": 1, "files": listed}))
    with pytest.raises(CheckpointError, match="is damaged"):  # what the manifest lists is checked
        checkpoint.load(folder)


def test_a_hidden_chat_template_is_damage_because_it_would_be_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "step-00000003")
    (folder / "tokenizer" / "additional_chat_templates").mkdir(parents=True)
    (folder / "tokenizer" / "additional_chat_templates" / "._tool.jinja").write_text("left by a program")
    with pytest.raises(CheckpointError, match=r"_tool\.jinja is not in the checkpoint's manifest"):
        checkpoint.load(folder)


# --- damage ---------------------------------------------------------------------------------------------------------


def test_every_flipped_byte_and_every_cut_is_refused_by_name(tmp_path: Path) -> None:
    folder = save(tmp_path / "step-00000003")
    draw = random.Random(0)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        damaged = [content[: len(content) * cut // 16] for cut in range(16)] + [content + b"\0"]
        for _ in range(40):
            at = draw.randrange(len(content))
            damaged.append(content[:at] + bytes([content[at] ^ draw.randrange(1, 256)]) + content[at + 1 :])
        for other in damaged:
            path.write_bytes(other)
            with pytest.raises(CheckpointError) as raised:
                checkpoint.load(folder)
            assert str(folder) in str(raised.value)
            assert path.name in str(raised.value) or path.name == "manifest.json"
        path.write_bytes(content)
    checkpoint.load(folder)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "step-00000003")
    for name in ("model.safetensors", "tokenizer/char_tokenizer.json"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=f"{name} is missing; use an older checkpoint"):
            checkpoint.load(folder)
        (tmp_path / "elsewhere").write_bytes(content)
        (folder / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(CheckpointError, match=f"{name} is damaged"):
            checkpoint.load(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    (folder / "tokenizer" / "extra.py").write_text("print()")
    with pytest.raises(CheckpointError, match=r"extra\.py is not in the checkpoint's manifest"):
        checkpoint.load(folder)


def test_what_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere: the folder does not exist"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is no complete checkpoint"):
        checkpoint.load(tmp_path)
    for content in (
        b"",
        b"[]",
        b'{"files": 3}',
        b'{"files": {"a": 1}}',
        b'{"files": {"a": {"size": "x"}}}',
        b"[" * 10**5,
    ):
        (tmp_path / "manifest.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
            checkpoint.load(tmp_path)
    for state in (b"[]", b"{}", b'{"step": "3"}', b"nonsense", b"[" * 10**5):
        (tmp_path / "state.json").write_bytes(state)
        files.write_atomic(tmp_path / "manifest.json", files.dump_json(checkpoint.manifest(tmp_path)))
        with pytest.raises(CheckpointError, match=r"state\.json is"):
            checkpoint.load(tmp_path)


def test_a_manifest_cannot_lead_outside_its_folder(tmp_path: Path) -> None:
    folder = save(tmp_path / "inner" / "step-00000003")
    (tmp_path / "inner" / "secret").write_text("secret")
    content = json.loads((folder / "manifest.json").read_text())
    content["files"]["../secret"] = {"size": 6, "sha256": files.sha256_bytes(b"secret")}
    files.write_atomic(folder / "manifest.json", files.dump_json(content))
    with pytest.raises(CheckpointError, match="secret is missing"):
        checkpoint.load(folder)


# --- the checkpoints of a run ---------------------------------------------------------------------------------------


def test_the_newest_that_verifies_is_found_and_the_damaged_ones_are_named(tmp_path: Path) -> None:
    checkpoints = run_with(tmp_path, 5, 10, 15)
    (checkpoints / "step-00000015" / "model.safetensors").write_bytes(b"x")
    (checkpoints / "step-00000010" / "rng.safetensors").unlink()
    (checkpoints / "step-7").mkdir()
    (checkpoints / ".step-00000020.tmp-1-00000000").mkdir()
    (checkpoints / "step-00000030").write_text("a file")
    assert checkpoint.steps(checkpoints) == [5, 10, 15]
    saved, refused = checkpoint.newest(checkpoints)
    assert saved.step == 5
    assert ["step-00000015/model.safetensors" in refused[0], "step-00000010/rng.safetensors" in refused[1]] == [
        True,
        True,
    ]
    shutil.rmtree(checkpoints / "step-00000005")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be loaded; the newest: .*step-00000015"):
        checkpoint.newest(checkpoints)
    with pytest.raises(CheckpointError, match="the run saved none"):
        checkpoint.newest(tmp_path / "other")


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    checkpoints = run_with(tmp_path, 1, 2, 3, 4, 5)
    checkpoint.prune(checkpoints, None)
    assert checkpoint.steps(checkpoints) == [1, 2, 3, 4, 5]
    checkpoint.set_best(checkpoints, 2)
    checkpoint.prune(checkpoints, 2)
    assert checkpoint.steps(checkpoints) == [2, 4, 5]
    assert checkpoint.best(checkpoints) == checkpoints / "step-00000002"
    checkpoint.set_best(checkpoints, 5)
    checkpoint.prune(checkpoints, 1)
    assert checkpoint.steps(checkpoints) == [5]


@pytest.mark.parametrize("content", [b"", b"step-00000009\n", b"../../etc\n", b"\xff", b"step-00000001/..\n"])
def test_a_pointer_to_nothing_points_nowhere(tmp_path: Path, content: bytes) -> None:
    checkpoints = run_with(tmp_path, 1)
    assert checkpoint.best(checkpoints) is None
    (checkpoints / "best").write_bytes(content)
    assert checkpoint.best(checkpoints) is None


def test_damaged_tensors_are_named_even_where_the_hash_was_made_for_them(tmp_path: Path) -> None:
    folder = save(tmp_path / "c")
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    files.write_atomic(folder / "manifest.json", files.dump_json(checkpoint.manifest(folder)))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        checkpoint.load(folder).tensors("model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.Checkpoint(folder, {"step": 1}).tensors("model")
