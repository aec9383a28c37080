"""Bit rot: 1,000 flipped bytes and a cut at every 1/64 over all files of a checkpoint and of a model."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_models
from tiny_config import TINY

from lmlab import checkpoint, events, hub, lab
from lmlab.errors import CheckpointError, LabError, RegistryError
from lmlab.registry import Registry
from lmlab.sampling import load_writer

pytestmark = pytest.mark.endurance
FLIPS, CUTS = 1000, 64
EVERYTHING = {
    **TINY,
    "checkpoint_cadence": 2,
    "eval_cadence": 2,
    "eval_batches": 1,
    "dropout": 0.1,
    "optimizer": "muon",
}


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damages(folder: Path) -> Iterator[Path]:
    """Damage one file after the other, each in many ways, and give its path; before the next it is whole again.

    Half of the flips go where the bytes are, half to every file alike, so that small files have their share.
    """
    draw, paths = random.Random(8), files_of(folder)
    sizes = [path.stat().st_size for path in paths]
    for number in range(FLIPS):
        path = draw.choices(paths, sizes)[0] if number % 2 else paths[number // 2 % len(paths)]
        content = path.read_bytes()
        at = draw.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ draw.randrange(1, 256)]) + content[at + 1 :])
        yield path
        path.write_bytes(content)
    for path in paths:
        content = path.read_bytes()
        for cut in {len(content) * part // CUTS for part in range(CUTS)}:
            path.write_bytes(content[:cut])
            yield path
        path.write_bytes(content)


def count_refused(folder: Path, load: Callable[[], object], error: type[LabError]) -> int:
    """How often a damaged folder was refused with the name of the damaged file. Anything else fails the test."""
    refused = 0
    for path in damages(folder):
        with pytest.raises(error) as raised:
            load()
        line = str(raised.value)
        # a changed hash in the manifest speaks against the file that it belongs to
        assert path.name in line or (path.name == "manifest.json" and str(folder) in line), line
        refused += 1
    load()
    return refused


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A lab with a run of three checkpoints and an imported model."""
    home = tmp_path_factory.mktemp("home")
    lab.run(EVERYTHING, corpus, run_name="run", runs_dir=home / "runs", models_dir=home / "models", listeners=[])
    hub.import_model(str(tiny_models.make(home / "published")), name="tiny", models_dir=home / "models")
    return home


def test_a_checkpoint_that_rots_is_refused_by_name(home: Path) -> None:
    folder = checkpoint.step_folder(home / "runs" / "run" / "checkpoints", 6)
    assert count_refused(folder, lambda: checkpoint.load(folder), CheckpointError) >= FLIPS + len(files_of(folder))


def test_a_model_that_rots_is_refused_by_name(home: Path) -> None:
    folder = home / "models" / "tiny"
    refused = count_refused(folder, lambda: load_writer("tiny", models_dir=home / "models"), RegistryError)
    assert refused >= FLIPS + len(files_of(folder))


def test_a_run_goes_on_from_the_checkpoint_before_and_says_why(home: Path, corpus: Path, tmp_path: Path) -> None:
    whole = home / "runs" / "run"
    names = [path.relative_to(whole) for path in files_of(whole / "checkpoints" / "step-00000006")]
    expected = {event["step"]: event["loss"] for event in events.read(whole / "log.jsonl") if event["event"] == "step"}
    for number, name in enumerate(names):
        run = tmp_path / str(number) / "run"
        shutil.copytree(whole, run)
        content = bytearray((run / name).read_bytes())
        content[len(content) // 2] ^= 0x10
        (run / name).write_bytes(content)
        resumed = lab.resume(run, listeners=[])
        log = events.read(run / "log.jsonl")
        warning, went_back = (event["message"] for event in log if event["event"] == "warning")
        assert str(run / "checkpoints" / "step-00000006") in warning
        assert warning.endswith("going on from step-00000004")
        assert name.name in warning or name.name == "manifest.json"
        assert went_back.startswith("went back to step 4: ")
        assert {event["step"]: event["loss"] for event in log if event["event"] == "step"} == expected
        assert resumed.status == "completed"
        checkpoint.verify(run / "checkpoints" / "step-00000006")


def test_nothing_else_starts_from_a_model_that_rots(home: Path, corpus: Path) -> None:
    folder, models = home / "models" / "tiny", home / "models"
    tuning = {**TINY, "model_name": "tiny"}
    starts: list[Callable[[], object]] = [
        lambda: lab.build(tuning, corpus, models_dir=models),
        lambda: lab.build({**TINY, "tokenizer_override": "tiny"}, corpus, models_dir=models),
        lambda: lab.finetune("tiny", corpus, config=TINY, models_dir=models, listeners=[]),
        lambda: load_writer("tiny", models_dir=models),
    ]
    for path in files_of(folder):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        for number, start in enumerate(starts):
            if number == 1 and path.suffix == ".safetensors":
                continue  # a tokenizer alone reads no weights
            with pytest.raises(RegistryError, match=f"{path.name} is damaged"):
                start()
        path.write_bytes(content)
    assert Registry(models).validate() == []
