"""Branches and named fine-tunes: what they may change, how their ancestry is told, and that their name is not lost."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from tiny_config import TINY

import lmlab
from lmlab import catalogue, cli, events, hub, lab
from lmlab.checkpoint import step_folder
from lmlab.errors import ConfigError, RegistryError, UsageError
from lmlab.registry import Registry

CONFIG = {**TINY, "precision": "fp32", "max_steps": 4, "checkpoint_cadence": 2, "sampling_max_length": 3, "seed": 1}


def at_step(run: lab.Run, step: int) -> Path:
    return step_folder(run.folder / "checkpoints", step)


def told(run: lab.Run, kind: str, key: str) -> list[Any]:
    """One value of each event of a kind in a run's log."""
    return [event[key] for event in events.read(run.log_path) if event["event"] == kind]


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file of a run with what is in it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stop_after(step: int) -> Callable[[dict[str, Any]], None]:
    """A listener that interrupts the run after an update, as a user does with Ctrl-C."""

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == step:
            os.kill(os.getpid(), 2)

    return listen


@pytest.fixture
def custom(corpus: Path) -> lab.Run:
    """Four steps of a tiny Transformer of our own, registered nowhere."""
    return lab.run(CONFIG, corpus, run_name="custom", listeners=[])


@pytest.fixture
def base(tmp_path: Path) -> str:
    """The name of a registered tiny Qwen."""
    entry = hub.import_model(str(tiny_models.make(tmp_path / "base")))
    assert entry is not None
    return entry.model_name


def test_a_run_that_began_with_no_model_can_be_branched_and_the_branch_tuned(custom: lab.Run, corpus: Path) -> None:
    branch = lab.branch(at_step(custom, 2), "mine", run_name="branch", listeners=[])
    entry = Registry().get("mine")
    assert [link.model_dump() for link in entry.lineage] == [{"model_name": None, "run_id": "custom", "step": 2}]
    assert (entry.source, entry.fine_tuned_from, entry.run_id, entry.step) == ("custom", None, "branch", 4)
    assert branch.start["kind"] == "branch"
    assert "from run custom" in catalogue.render_list(Registry())
    assert "a new model  step 2 of run custom" in catalogue.render_info(Registry(), "mine", custom.folder.parent)
    card = (Registry().path("mine") / "README.md").read_text(encoding="utf-8")
    assert "a branch of another run" in card
    assert "1. a new model: step 2 of run custom\n2. mine: step 4 of run branch\n" in card

    lab.finetune("mine", corpus, "ours", config={**CONFIG, "max_steps": 1}, run_name="tuned", listeners=[])
    assert Registry().ancestors("ours") == ["mine"]
    assert [link.run_id for link in Registry().get("ours").lineage] == ["custom", "branch"]


def test_a_branch_of_a_registered_branch_comes_from_that(base: str, corpus: Path) -> None:
    """Of its last checkpoint, whose weights bear its name; an earlier one comes from what the run began with."""
    first = lab.run({**CONFIG, "model_name": base}, corpus, run_name="first", listeners=[])
    one = lab.branch(first.folder, "one", run_name="one", listeners=[])
    lab.branch(one.folder, "two", run_name="two", listeners=[], config={"model_name": "two"})
    entry = Registry().get("two")
    assert entry.fine_tuned_from == "one"
    assert [link.model_name for link in entry.lineage] == [base, base, "one"]
    assert [link.run_id for link in entry.lineage] == [None, "first", "one"]
    assert Registry().descendants("one") == ["two"]
    lab.branch(at_step(one, 2), "early", run_name="early", listeners=[])
    assert Registry().get("early").fine_tuned_from == base
    with pytest.raises(UsageError, match="--resume with --model-name NEW branches off under a new name"):
        lab.resume(one.folder, model_name="three", listeners=[])
    with pytest.raises(UsageError, match=f"model_name=other contradicts the checkpoint .* has model_name={base}"):
        lab.branch(one.folder, "three", listeners=[], model_name="other")


def test_a_branch_may_change_all_but_what_its_weights_rest_on(custom: lab.Run, corpus: Path) -> None:
    changes = {"seed": 5, "train_ratio": 0.8, "optimizer": "muon", "learning_rate": 1e-4, "max_steps": 1}
    branch = lab.branch(custom.folder, "other", run_name="other", listeners=[], **changes)
    assert {name: branch.config[name] for name in changes} == changes
    assert branch.start["seed"] == 5
    for name, value in {"n_layers": 5, "max_seq_len": 8, "tokenizer_override": "char"}.items():
        with pytest.raises(UsageError, match=f"{name}={value} contradicts the checkpoint"):
            lab.branch(custom.folder, "third", run_name="third", listeners=[], **{name: value})
    assert sorted(os.listdir(custom.folder.parent)) == ["custom", "other"]


def test_a_branch_of_a_model_may_change_the_window_within_what_the_model_can_take(base: str, corpus: Path) -> None:
    run = lab.run({**CONFIG, "model_name": base}, corpus, run_name="tuned", listeners=[])
    branch = lab.branch(run.folder, "wide", run_name="wide", listeners=[], max_seq_len=128, max_steps=1, batch_size=2)
    assert branch.config["max_seq_len"] == 128
    with pytest.raises(ConfigError, match="max_seq_len=129 is longer than"):
        lab.branch(run.folder, "wider", run_name="wider", listeners=[], max_seq_len=129)


@pytest.mark.parametrize("kind", ["branch", "fine-tune"])
def test_a_name_is_kept_until_the_run_completes(kind: str, base: str, corpus: Path) -> None:
    if kind == "branch":
        first = lab.run({**CONFIG, "model_name": base}, corpus, run_name="first", listeners=[])
        stopped = lab.branch(first.folder, "named", run_name="r", listeners=[stop_after(1)])
    else:
        stopped = lab.finetune(base, corpus, "named", config=CONFIG, run_name="r", listeners=[stop_after(1)])
    assert (stopped.status, stopped.step) == ("stopped", 1)
    assert Registry().names() == [base]
    again = lab.branch("r", "named", listeners=[])  # the run's own name: it goes on
    assert (again.run_id, again.status, again.step) == ("r", "completed", 4)
    assert told(again, "step", "step") == [1, 2, 3, 4]
    assert Registry().get("named").step == 4
    assert not any("stays as it is" in message for message in told(again, "warning", "message"))

    # made longer, the run goes on; the model that bears its name stays what it is, and that is said
    before = Registry().get("named")
    longer = lab.resume("r", listeners=[], max_steps=5)
    assert longer.step == 5
    assert Registry().get("named") == before
    warning = "the model named stays as it is; give what comes of this session a name of its own"
    assert told(longer, "warning", "message").count(warning) == 1


def test_validation_on_what_an_ancestor_was_trained_on_is_warned_of(corpus: Path, base: str) -> None:
    def warned(run: lab.Run) -> bool:
        return any("begins within what the run" in message for message in told(run, "warning", "message"))

    own = {**TINY, "eval_cadence": 3}
    lab.run(own, "storybook:100000", run_name="long", listeners=[])
    lab.run(own, corpus, run_name="text", listeners=[]).register("kept")
    assert warned(lab.branch("long", "shorter", data="storybook:9000", run_name="a", listeners=[]))
    assert not warned(lab.branch("long", "longer", data="storybook:200000", run_name="b", listeners=[]))
    assert not warned(lab.branch("long", "other", data=corpus, run_name="c", listeners=[]))
    assert not warned(lab.branch("text", "same", run_name="d", listeners=[]))
    assert warned(lab.branch("text", "cut", run_name="e", train_ratio=0.6, listeners=[]))
    assert warned(
        lab.run(
            {**CONFIG, "eval_cadence": 3, "model_name": "cut", "train_ratio": 0.5}, corpus, run_name="f", listeners=[]
        )
    )
    assert not warned(
        lab.run(
            {**CONFIG, "eval_cadence": 3, "model_name": base, "train_ratio": 0.5}, corpus, run_name="g", listeners=[]
        )
    )


def test_a_run_that_goes_on_takes_no_other_name(base: str, corpus: Path) -> None:
    run = lab.finetune(base, corpus, "named", config=CONFIG, run_name="r", listeners=[])
    before = contents(run.folder)
    assert run.step == 4
    for name in (base, "named"):
        with pytest.raises(UsageError, match="is the run's own model"):
            lab.branch("r", name, run_name="another", listeners=[], max_steps=9)
    assert contents(run.folder) == before
    assert not (run.folder.parent / "another").exists()


def test_a_run_is_registered_where_it_was_promised(base: str, corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(Registry().models_dir, tmp_path / "elsewhere")
    arguments = {"config": CONFIG, "run_name": "r", "models_dir": tmp_path / "elsewhere"}
    lab.finetune(base, corpus, "named", **arguments, listeners=[stop_after(1)])
    lab.resume("r", listeners=[])
    assert (Registry(tmp_path / "elsewhere").names(), Registry().names()) == ([base, "named"], [base])
    lab.resume("r", listeners=[])  # done: nothing is registered a second time
    assert Registry().names() == [base]


@pytest.mark.parametrize("way", ["the usual one", "a new one", "an environment variable's"])
def test_a_run_that_is_resumed_from_elsewhere_is_registered_where_it_was_promised(
    way: str, custom: lab.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    promised = tmp_path / {"the usual one": "models", "a new one": "new", "an environment variable's": "other"}[way]
    monkeypatch.setenv("LMLAB_MODELS_DIR", str(tmp_path / "other"))
    if way != "an environment variable's":
        monkeypatch.delenv("LMLAB_MODELS_DIR")
    named = promised if way == "a new one" else None
    run = lab.branch("custom", "named", run_name="r", models_dir=named, listeners=[stop_after(1)])
    assert run.status == "stopped"

    (tmp_path / "far").mkdir()
    monkeypatch.chdir(tmp_path / "far")
    monkeypatch.delenv("LMLAB_MODELS_DIR", raising=False)
    assert cli.main(["--resume", str(run.folder)]) == 0
    assert (Registry(promised).names(), Registry().names()) == (["named"], [])
    use = f"python main.py --models-dir {promised} --model-name named"
    assert f"registered named in {promised}; use it with: {use}\n" in capsys.readouterr().out


def test_a_run_of_a_project_that_was_moved_is_registered_in_the_usual_folder(
    custom: lab.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old").mkdir()
    lost = tmp_path / "old" / "models"
    lab.branch("custom", "named", run_name="r", models_dir=lost, listeners=[stop_after(1)])
    (tmp_path / "old").rmdir()
    assert cli.main(["--resume", "r"]) == 0
    assert Registry().names() == ["named"]
    line = f"registered named in {tmp_path / 'models'}, as the place of {lost} is gone; use it with: python main.py"
    assert f"{line} --model-name named\n" in capsys.readouterr().out


def test_a_run_of_a_project_that_was_copied_is_registered_in_the_copy(custom: lab.Run, tmp_path: Path) -> None:
    run = lab.branch("custom", "named", run_name="r", listeners=[stop_after(1)])
    shutil.copytree(run.folder.parent, tmp_path / "copy" / "runs")
    assert cli.main(["--resume", str(tmp_path / "copy" / "runs" / "r")]) == 0
    assert (Registry(tmp_path / "copy" / "models").names(), Registry().names()) == (["named"], [])
    assert cli.main(["--resume", "r"]) == 0
    assert Registry().names() == ["named"]


def test_a_folder_in_the_place_of_the_model_is_seen_before_the_training(base: str, corpus: Path) -> None:
    (Registry().models_dir / "mine").mkdir()
    with pytest.raises(RegistryError, match="exists but is not registered"):
        lab.finetune(base, corpus, "mine", config=CONFIG, run_name="r", listeners=[])
    run = lab.run({**CONFIG, "model_name": base}, corpus, run_name="r", listeners=[])
    for register in (lambda: lab.branch("r", "mine", listeners=[]), lambda: run.register("mine")):
        with pytest.raises(RegistryError, match="exists but is not registered"):
            register()
    assert [each.run_id for each in lmlab.runs()] == ["r"]


def test_a_name_that_was_taken_meanwhile_leaves_the_run_to_be_registered_under_another(
    custom: lab.Run, base: str, corpus: Path
) -> None:
    def take(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 1:
            lab.register(custom.folder, "wanted")

    with pytest.raises(RegistryError, match="'wanted' has become another model meanwhile; register it with") as raised:
        lab.finetune(base, corpus, "wanted", config=CONFIG, run_name="late", runs_dir="my runs", listeners=[take])
    assert Registry().get("wanted").run_id == "custom"
    advised = str(raised.value).split("`")[1]
    assert cli.main(shlex.split(advised.replace("NAME", "late"))) == 0
    assert Registry().get("late").step == 4
