"""The faces over the library, driven as a user drives them: values set, buttons clicked, what is shown read."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from ipywidgets.widgets.widget import _instances
from run_logs import RunWriter, write_run

import lmlab as lab
from lmlab import forms
from lmlab.config import TrainingConfig
from lmlab.errors import ConfigError, UsageError
from lmlab.events import parse_line
from lmlab.settings import settings

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """What a test launched and did not stop, as one that fails does not, would train for hours."""
    yield
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # one that has ended, and that nobody has waited for yet
            if "lmlab.cli" in child.cmdline():
                child.kill()


@pytest.fixture
def hostile_run(tiny: dict[str, object], tmp_path: Path) -> lab.Run:
    """A run whose text, vocabulary and samples are made of markup."""
    text = tmp_path / "hostile.txt"
    text.write_text(f"The {HOSTILE} " * 200, encoding="utf-8")
    return lab.run(tiny, data=text, listeners=[], sampling_prompt=f"The {HOSTILE}", eval_cadence=3)


def wait_until(happened: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


# --- settings -------------------------------------------------------------------------------------------------------


def test_every_field_is_a_setting_with_the_limits_that_the_config_checks():
    found = {setting.name: setting for setting in settings(TrainingConfig())}
    assert list(found) == list(TrainingConfig.model_fields)
    for setting in found.values():
        assert setting.meaning
        if setting.kind in ("int", "float"):
            beyond = setting.most * 2
            with pytest.raises(ConfigError, match=setting.name):
                TrainingConfig.from_dict({setting.name: int(beyond) if setting.kind == "int" else beyond})
            with pytest.raises(ConfigError, match=setting.name):
                TrainingConfig.from_dict({setting.name: setting.least - 1})
    assert found["precision"].choices == ("auto", "fp32", "bf16")
    assert (found["grad_clip"].optional, found["max_steps"].optional) == (True, False)


@pytest.mark.parametrize(
    "name", [s.name for s in settings(TrainingConfig()) if s.optional and s.kind in ("int", "float")]
)
def test_what_is_off_is_switched_on_at_a_value_that_is_allowed(name: str):
    suggested = next(s.suggested for s in settings(TrainingConfig(eval_cadence=10)) if s.name == name)
    assert TrainingConfig.from_dict({"eval_cadence": 10, name: suggested}).to_dict()[name] == suggested


# --- the config form ------------------------------------------------------------------------------------------------


def test_the_form_says_what_it_was_given(tiny: dict[str, object]):
    config = TrainingConfig.from_dict({**tiny, "hooks": ["weight_norms:5"], "grad_clip": 1.0})
    form = lab.config_form(config)
    assert form.config == config
    assert form.message.value == ""
    form.close()


def test_switches_and_values_change_the_config(tiny: dict[str, object]):
    form = lab.config_form(tiny)
    control, switch = form.controls["eval_cadence"]
    assert control.disabled
    assert form.config.eval_cadence is None
    switch.value, control.value = True, 20
    form.controls["precision"][0].value = "fp32"
    assert not control.disabled
    assert form.config == TrainingConfig.from_dict({**tiny, "eval_cadence": 20, "precision": "fp32"})
    assert "changed: eval_cadence=20, precision=fp32" in form.message.value
    switch.value = False
    assert form.config.eval_cadence is None
    form.close()


def test_values_that_do_not_fit_together_are_named_and_run_waits(tiny: dict[str, object]):
    form = lab.config_form(tiny)
    form.controls["n_heads"][0].value = 3
    assert form.run_button.disabled
    assert "n_heads=3 does not divide d_model=32" in form.message.value
    form.controls["d_model"][0].value = 48
    assert not form.run_button.disabled
    form.close()


def test_run_and_stop_are_launch_and_stop(tiny: dict[str, object], corpus: Path):
    prompt = "The 🙂 said: #1"  # on its way through a command line
    form = lab.config_form(tiny, data=corpus, max_steps=1_000_000, checkpoint_cadence=None, sampling_prompt=prompt)
    form.run_button.click()
    assert form.run is not None
    assert form.run.config["sampling_prompt"] == prompt
    assert (form.run_button.disabled, form.stop_button.disabled) == (True, False)
    with pytest.raises(UsageError, match="goes on; stop it first"):  # a second click on its way
        form.start()
    wait_until(lambda: "running" in form.view.value and "<polyline" in form.view.value)
    form.stop_button.click()
    assert form.run.status == "stopped"
    assert form.run.newest_checkpoint.name == f"step-{form.run.step:08d}"
    wait_until(lambda: "stopped" in form.view.value)
    wait_until(lambda: not form.run_button.disabled)
    form.close()


def test_what_keeps_a_run_from_starting_is_shown(tiny: dict[str, object]):
    form = lab.config_form(tiny, data=f"no/{HOSTILE}")
    form.run_button.click()
    assert "lm-bad" in form.message.value
    assert "did not start" in form.message.value
    assert "<img" not in form.message.value
    assert not form.run_button.disabled
    form.close()


def test_a_run_that_did_not_stop_can_be_asked_again(tiny: dict[str, object], corpus: Path):
    form = lab.config_form(tiny, data=corpus, max_steps=1_000_000, checkpoint_cadence=None)
    run = form.start()
    process = run.folder / "process.json"
    known = process.read_bytes()
    process.write_text("{}")
    form.stop_button.click()
    assert "end that process by hand" in form.message.value
    assert (form.run_button.disabled, form.stop_button.disabled) == (True, False)
    process.write_bytes(known)
    form.stop_button.click()
    assert run.status == "stopped"
    form.close()


def test_who_followed_the_run_before_leaves_the_next_one_its_buttons(
    tiny: dict[str, object], corpus: Path, monkeypatch: pytest.MonkeyPatch
):
    late: list[Callable[[], None]] = []

    class Late:
        """A thread that wakes when the test lets it."""

        def __init__(self, target: Callable[..., None], args: tuple[object, ...], daemon: bool) -> None:
            late.append(lambda: target(*args))

        def start(self) -> None:
            pass

    monkeypatch.setattr(forms, "threading", SimpleNamespace(Thread=Late, Event=threading.Event, Lock=threading.Lock))
    form = lab.config_form({**tiny, "max_steps": 1}, data=corpus, checkpoint_cadence=None)
    form.start().wait()
    form.controls["max_steps"][0].value = 1_000_000
    second = form.start()
    late[0]()
    assert (form.run_button.disabled, form.stop_button.disabled) == (True, False)
    assert form.view.value == ""
    second.stop()
    late[1]()
    assert (form.run_button.disabled, form.stop_button.disabled) == (False, True)
    assert "stopped" in form.view.value
    form.close()


def test_an_error_that_is_none_of_ours_is_shown_and_run_can_be_clicked_again(tiny: dict[str, object]):
    form = lab.config_form(tiny, runs_dir=5)  # type: ignore[arg-type]
    form.run_button.click()
    assert "lm-bad" in form.message.value
    assert "TypeError: " in form.message.value
    assert (form.run_button.disabled, form.stop_button.disabled) == (False, True)
    form.close()


# --- the run picker -------------------------------------------------------------------------------------------------


def test_the_picker_compares_what_is_picked(tiny: dict[str, object], corpus: Path):
    for name, steps in (("one", 40), ("two", 40), ("three", 6)):
        lab.run(tiny, data=corpus, run_name=name, max_steps=steps, eval_cadence=3, listeners=[])
    picker = lab.run_picker()
    assert {run_id for _, run_id in picker.list.options} == {"one", "two", "three"}
    picker.list.value = ("one", "two")
    assert [run.run_id for run in picker.chosen] == ["two", "one"]  # newest first, as in the list
    drawn = {picker.view.value}
    picker.smoothing.value = 40
    drawn.add(picker.view.value)
    picker.axis.value = "tokens"
    drawn.add(picker.view.value)
    assert len(drawn) == 3
    assert ">one<" in picker.view.value
    assert ">three<" not in picker.view.value
    picker.list.value = ()
    assert picker.view.value == ""
    picker.close()


def test_the_picker_tells_copies_and_long_names_apart(tmp_path: Path):
    names = ["x" * 63 + end for end in "ab"]
    for name in names:
        write_run(tmp_path / "runs" / name, steps=4)
    shutil.copytree(tmp_path / "runs" / names[0], tmp_path / "runs" / "copy")
    picker = lab.run_picker()
    assert {folder for _, folder in picker.list.options} == {*names, "copy"}
    titles = [title.split("   ")[0] for title, _ in picker.list.options]
    assert sorted(titles) == sorted([*names, f"{names[0]} (folder copy)"])
    picker.list.value = ("copy",)
    assert [run.folder.name for run in picker.chosen] == ["copy"]
    assert f">{names[0]} (folder copy)<" in picker.view.value
    picker.close()


def test_the_picker_finds_new_runs_and_says_where_there_are_none(tiny: dict[str, object], corpus: Path):
    picker = lab.run_picker()
    assert "no runs in" in picker.message.value
    lab.run(tiny, data=corpus, run_name="late", listeners=[])
    picker.again.click()
    assert [run.run_id for run in picker.chosen] == ["late"]
    assert picker.message.value == ""
    picker.close()


def test_lists_of_runs_read_the_steps_of_those_alone_that_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for index in range(6):
        write_run(tmp_path / "runs" / f"run-{index}", steps=100, status=None)
    read: list[bytes] = []
    monkeypatch.setattr("lmlab.record.parse_line", lambda line: read.append(line) or parse_line(line))
    assert len(lab.runs()) == 6
    assert len(read) < 6 * 40
    read.clear()
    picker = lab.run_picker()
    assert len(read) < 6 * 40 + 3 * 150
    read.clear()
    RunWriter(tmp_path / "runs" / "run-0").step(101, 0.125)
    picker.again.click()
    assert len(read) == 1
    assert "step 101, loss 0.1250" in dict(map(reversed, picker.list.options))["run-0"]
    picker.close()


# --- the prompt box -------------------------------------------------------------------------------------------------


def test_the_box_writes_what_the_library_writes_and_shows_it_as_it_comes(hostile_run: lab.Run):
    box = lab.prompt_box(hostile_run)
    box.length.value, box.seed.value, box.temperature.value, box.top_k.value, box.top_p.value = 40, 3, 0.8, 5, 0.9
    shown: list[str] = []
    box.view.observe(lambda change: shown.append(change["new"]), "value")
    box.button.click()
    asked = {"max_length": 40, "seed": 3, "temperature": 0.8, "top_k": 5, "top_p": 0.9}
    [expected] = lab.write_samples(hostile_run, **{f"sampling_{name}": value for name, value in asked.items()})
    assert box.text == expected
    assert len(shown) >= 2
    assert len(shown[0]) < len(shown[-1])
    assert not box.button.disabled
    box.close()


@pytest.mark.parametrize("named", [lambda run: run, lambda run: run.run_id, lambda run: run.folder])
def test_the_box_writes_with_the_model_of_a_run_that_went_on(
    tiny: dict[str, object], corpus: Path, named: Callable[[lab.Run], object]
):
    run = lab.run(tiny, data=corpus, learning_rate=0.1, listeners=[])
    box = lab.prompt_box(named(run))
    before = box.write()
    assert box.message.value == ""
    loaded = box.writer
    box.button.click()
    assert box.writer is loaded, "nothing new"
    run = run.resume(max_steps=60, listeners=[], checkpoint_cadence=None)
    box.button.click()
    assert [box.text] == lab.write_samples(run, sampling_seed=0) != [before]
    assert "the run went on: this is the model of step 60" in box.message.value
    text, box.message.value = box.text, ""
    run.delete()
    assert box.write() == text, "with the model that it has"
    box.close()


def test_markup_in_prompts_and_texts_stays_text(hostile_run: lab.Run):
    box = lab.prompt_box(hostile_run)
    assert box.prompt.value == f"The {HOSTILE}"
    box.button.click()
    assert "&lt;img src=x onerror=alert(1)&gt;" in box.view.value
    assert "<img" not in box.view.value
    box.close()


def test_a_prompt_that_cannot_be_read_is_named(hostile_run: lab.Run):
    box = lab.prompt_box(hostile_run)
    box.prompt.value = "ZZZ"
    box.button.click()
    assert "not in the vocabulary" in box.message.value
    box.prompt.value = ""
    box.button.click()
    assert "empty prompt" in box.message.value
    box.close()


# --- the registry browser -------------------------------------------------------------------------------------------


def test_the_browser_shows_lineage_and_asks_before_it_deletes(hostile_run: lab.Run, tiny: dict[str, object]):
    hostile_run.register("base")
    lab.finetune("base", hostile_run.start["data"]["path"], "tuned", config=tiny, listeners=[])
    browser = lab.registry_browser()
    assert [name for _, name in browser.list.options] == ["base", "tuned"]
    browser.list.value = "tuned"
    assert "base → tuned" in browser.view.value

    browser.list.value = "base"
    browser.delete_button.click()
    assert "tuned would lose where they come from" in browser.message.value
    assert browser.question.layout.display == ""
    browser.keep_button.click()
    assert browser.question.layout.display == "none"
    assert lab.Registry().names() == ["base", "tuned"]

    browser.list.value = "tuned"
    browser.delete_button.click()
    browser.sure_button.click()
    assert lab.Registry().names() == ["base"]
    assert [name for _, name in browser.list.options] == ["base"]
    assert "tuned is deleted" in browser.message.value
    browser.sure_button.click()  # again, before the page had taken the button away
    assert lab.Registry().names() == ["base"]
    browser.close()


def test_an_empty_registry_says_how_to_get_a_model():
    browser = lab.registry_browser()
    assert "import_model" in browser.message.value
    assert browser.delete_button.disabled
    browser.close()


# --- all of them ----------------------------------------------------------------------------------------------------


def test_closing_a_face_frees_every_widget_of_it(hostile_run: lab.Run):
    before = len(_instances)
    faces = [lab.config_form(), lab.run_picker(), lab.prompt_box(hostile_run), lab.registry_browser()]
    assert len(_instances) > before + 100
    assert "application/vnd.jupyter.widget-view+json" in faces[1]._repr_mimebundle_()
    for face in faces:
        face.close()
        face.close()
    assert len(_instances) == before
    assert "closed" in faces[1]._repr_mimebundle_()["text/plain"]
