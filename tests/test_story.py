"""A model's whole life as its user lives it: every command of the README on models, in one lab, one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from forked import Nursery
from hub_server import HubServer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmlab import cli

ROOT = Path(__file__).resolve().parents[1]
BASE, STORIES, POEMS = "qwen-0.5b-base", "qwen-0.5b-stories", "qwen-0.5b-poems"
# The shipped configs are used as they are; only what would take minutes on a real model is made short.
SHORT = ("--set", "max_seq_len=16", "--set", "eval_batches=2", "--set", "sampling_max_length=4", "--set", "seed=1")


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """`python main.py ARGUMENTS` in an empty folder, with a hub that holds one tiny Qwen: what it printed.

    Each is a process of its own, forked from one that has imported what it takes.
    """
    text = tmp_path / "text.txt"
    text.write_text(tiny_models.text(6000), encoding="utf-8")
    with HubServer() as hub, Nursery("transformers.models.qwen2.modeling_qwen2") as nursery:
        hub.add("Qwen/Qwen2.5-0.5B", tiny_models.make(tmp_path / "published"))
        monkeypatch.setenv("LMLAB_HOME", str(tmp_path))
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        for name in ("LMLAB_RUNS_DIR", "LMLAB_MODELS_DIR"):
            monkeypatch.delenv(name)

        def call(*arguments: object, status: int = 0) -> str:
            ended, said = nursery.run(cli.main, list(map(str, arguments)))
            assert ended == status, said[-3000:]
            return said

        yield call


def events(folder: Path, run: str, kind: str) -> list[dict[str, Any]]:
    """The events of one kind in a run's log."""
    lines = (folder / "runs" / run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_imported_tuned_registered_tuned_again_branched_and_deleted(
    main: Callable[..., str], tmp_path: Path
) -> None:
    models, text = tmp_path / "models", tmp_path / "text.txt"

    # She brings a pretrained model in, having seen what it is.
    shown = main("import-model", "Qwen/Qwen2.5-0.5B", "--name", BASE, "--yes")
    assert "Qwen/Qwen2.5-0.5B at " in shown
    assert "qwen, 29k parameters, 132 kB in 7 files" in shown
    assert "licence apache-2.0" in shown
    assert f"imported {BASE}" in shown
    imported = contents(models / BASE)

    # She fine-tunes it on her text with the config that the project ships.
    tuning = ("--config", ROOT / "configs" / "qwen-base.yaml", "--data", text, "--max-steps", 20, *SHORT)
    shown = main(*tuning, "--run-name", "stories", "--set", "learning_rate=3e-3")
    assert "event=run_end" in shown
    (start,) = events(tmp_path, "stories", "run_start")
    assert (start["kind"], start["fine_tuned_from"]) == ("fine-tune", BASE)
    assert [event["step"] for event in events(tmp_path, "stories", "step")] == list(range(1, 21))
    evaluations = [event["val_loss"] for event in events(tmp_path, "stories", "eval")]
    assert evaluations[-1] < evaluations[0] - 0.2, "it learns"

    # The result gets a name. It is a model like any other, and needs no lmlab.
    main("register-model", tmp_path / "runs" / "stories" / "checkpoints" / "step-00000020", "--name", STORIES)
    assert STORIES in main("register-model", "stories", "--name", STORIES, status=1), "a name is given once"
    lines = main("list-models").splitlines()
    assert [line.split("qwen  ")[0].strip() for line in lines[1:3]] == [BASE, f"└─ {STORIES}"]
    assert lines[3].startswith("2 models, ")
    info = main("model-info", STORIES)
    assert f"fine-tuned from      {BASE}" in info
    assert f"Ancestors\n  {BASE}  its own weights" in info
    assert "stories  weights of step 20; fine-tune; val_loss" in info
    assert "licence  apache-2.0" in info
    assert "completed" in info
    assert STORIES in main("model-info", BASE).partition("Descendants")[2]
    AutoModelForCausalLM.from_pretrained(models / STORIES)
    AutoTokenizer.from_pretrained(models / STORIES)

    # She fine-tunes that one in turn; the chain is on record. It ends early, and she goes on with it the day after.
    again = ("--config", ROOT / "configs" / "qwen-finetuned.yaml", "--data", text, *SHORT)
    main(*again, "--run-name", "poems", "--max-steps", 3)
    main("--resume", "poems", "--max-steps", 5)
    began, resumed = events(tmp_path, "poems", "run_start")
    assert (began["kind"], resumed["kind"]) == ("fine-tune", "resumed")
    for key in ("fine_tuned_from", "fine_tuning_started_at", "lineage"):
        assert resumed[key] == began[key]
    assert began["fine_tuned_from"] == STORIES
    assert [(link["model_name"], link["run_id"], link["step"]) for link in began["lineage"]] == [
        (BASE, None, None),
        (STORIES, "stories", 20),
    ]
    assert [event["step"] for event in events(tmp_path, "poems", "step")] == [1, 2, 3, 4, 5]
    assert events(tmp_path, "poems", "eval")[0]["val_loss"] == pytest.approx(evaluations[-1]), "where stories ended"

    # From its checkpoint she branches off; the name makes the difference between going on and branching.
    before = {folder: contents(tmp_path / folder) for folder in (f"models/{BASE}", f"models/{STORIES}", "runs/poems")}
    checkpoint = tmp_path / "runs" / "poems" / "checkpoints" / "step-00000005"
    assert BASE in main("--resume", checkpoint, "--model-name", BASE, status=2), "a name that another model bears"
    branch = ("--resume", checkpoint, "--model-name", POEMS, "--run-name", "branch", "--max-steps", 2)
    assert f"registered {POEMS}; use it with" in main(*branch, "--set", "seed=3")
    (start,) = events(tmp_path, "branch", "run_start")
    assert (start["kind"], start["fine_tuned_from"], start["seed"]) == ("branch", STORIES, 3)
    assert [link["step"] for link in start["lineage"]] == [None, 20, 5]
    assert [event["step"] for event in events(tmp_path, "branch", "step")] == [1, 2]
    listed = {entry["model_name"]: entry for entry in json.loads(main("list-models", "--json"))}
    assert list(listed) == [BASE, STORIES, POEMS], "it registers itself"
    assert (listed[POEMS]["fine_tuned_from"], listed[POEMS]["run_id"], listed[POEMS]["step"]) == (STORIES, "branch", 2)
    assert {folder: contents(tmp_path / folder) for folder in before} == before, "byte for byte"
    assert main("sample", POEMS, "--prompt", "the capital", "--set", "sampling_max_length=3").startswith("the capital")

    # She tidies up. What others come from is kept, unless she insists; the others stay whole, and remember.
    refused = main("delete-model", STORIES, "--yes", status=1)
    assert f"{POEMS} comes from '{STORIES}'" in refused
    assert "--force" in refused
    assert (models / STORIES).is_dir()
    assert "--yes" in main("delete-model", POEMS, status=2), "nobody is there to be asked"
    deleted = main("delete-model", STORIES, "--yes", "--force")
    assert f"these come from it and stay: {POEMS}" in deleted
    assert f"deleted {STORIES}, 13" in deleted, "and how much room there is now"
    assert not (models / STORIES).exists()
    assert contents(models / BASE) == imported, "as it came from the hub"
    assert "2 models, each as it was registered" in main("validate-registry")
    assert f"{STORIES}  step 20 of run stories" in main("model-info", POEMS)

    # A damaged file and a stray folder are found; --fix removes what belongs to nothing, and keeps what may be dear.
    (models / "stray").mkdir()
    weights = models / POEMS / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    found = main("validate-registry", status=1)
    assert "stray: is a folder that no entry names\n" in found
    assert f"{POEMS}: its file {weights} is damaged: its sha256 is not the registered one" in found
    assert "2 problems" in found
    assert "stray: is a folder that no entry names (removed)" in main("validate-registry", "--fix", status=1)
    assert not (models / "stray").exists()
    main("delete-model", POEMS, "--yes")
    assert "1 model, as it was registered" in main("validate-registry")
