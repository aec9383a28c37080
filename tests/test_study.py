"""What one does with runs in a notebook: sweep, noise, compare, diff, samples, microscope, look, hooks; errors there."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

import lmlab as lab
from lmlab import cli
from lmlab.errors import CheckpointError, ConfigError, DataError, ModelNotFound, RunError, TokenizerError, UsageError
from lmlab.loading import load_model_and_tokenizer
from lmlab.views import cards

Settings = dict[str, object]


@pytest.fixture
def run(tiny: Settings, corpus: Path) -> lab.Run:
    return lab.run(tiny, corpus, run_name="one", eval_cadence=3, hooks=["attention_entropy:2"], listeners=[])


def test_a_sweep_is_one_run_for_each_change(tiny: Settings, corpus: Path):
    changes = [{"learning_rate": 1e-3, "run_name": "low"}, {"learning_rate": 1e-2, "run_name": "high"}]
    swept = lab.sweep(tiny, changes, corpus, eval_cadence=3, listeners=[])
    assert [run.run_id for run in swept] == ["low", "high"]
    assert [run.config["learning_rate"] for run in swept] == [1e-3, 1e-2]
    assert {run.config["eval_cadence"] for run in swept} == {3}
    alone = lab.run(tiny, corpus, eval_cadence=3, learning_rate=1e-2, run_name="alone", listeners=[])
    assert lab.diff(swept[1], alone).first_step is None


def interrupt_at(step: int, run_name: str) -> Any:
    """A listener that does what Ctrl-C does, in one run at one step."""

    def listener(event: Settings) -> None:
        if (event["event"], event.get("step"), event["run_id"]) == ("step", step, run_name):
            os.kill(os.getpid(), signal.SIGINT)

    return listener


def test_an_interrupt_ends_a_sweep_and_what_there_is_comes_back(tiny: Settings, corpus: Path):
    changes = [
        {"learning_rate": rate, "run_name": name} for rate, name in ((1e-3, "one"), (2e-3, "two"), (3e-3, "three"))
    ]
    swept = lab.sweep(tiny, changes, corpus, listeners=[interrupt_at(4, "two")])
    assert [(run.run_id, run.status, run.step) for run in swept] == [("one", "completed", 6), ("two", "stopped", 4)]
    assert not (lab.runs()[0].folder.parent / "three").exists()


def test_an_interrupt_that_comes_after_the_last_step_of_a_run_ends_the_sweep_too(tiny: Settings, corpus: Path):
    changes = [{"run_name": name} for name in ("one", "two")]
    swept = lab.sweep(tiny, changes, corpus, listeners=[interrupt_at(6, "one")])
    assert [(run.run_id, run.status, run.stopped_by) for run in swept] == [("one", "completed", None)]
    assert swept[0].asked_to_stop


def test_an_interrupt_between_two_runs_gives_those_that_there_are(
    tiny: Settings, corpus: Path, monkeypatch: pytest.MonkeyPatch
):
    build = lab.lab.build

    def interrupted(*given: Any, **more: Any) -> Any:
        if more["run_name"] == "two":
            raise KeyboardInterrupt
        return build(*given, **more)

    monkeypatch.setattr(lab.lab, "build", interrupted)
    changes = [{"run_name": name} for name in ("one", "two")]
    assert [run.run_id for run in lab.sweep(tiny, changes, corpus, listeners=[])] == ["one"]
    with pytest.raises(KeyboardInterrupt):
        lab.sweep(tiny, changes[1:], corpus, listeners=[])


def test_a_sweep_over_texts_and_configs(tiny: Settings, corpus: Path, tmp_path: Path):
    other = tmp_path / "other.txt"
    other.write_text(corpus.read_text() + " and more of it")
    swept = lab.sweep(
        tiny, [{"data": corpus}, {"data": other}, {"config": {**tiny, "max_steps": 2}}], corpus, listeners=[]
    )
    assert [Path(run.start["data"]["path"]).name for run in swept] == [corpus.name, "other.txt", corpus.name]
    assert [run.step for run in swept] == [6, 6, 2]


def test_a_trial_that_diverges_is_one_of_the_sweep(tiny: Settings, corpus: Path):
    wild = {"learning_rate": 100.0, "optimizer": "muon", "weight_decay": 50.0}
    changes = [{"run_name": "one"}, {"run_name": "wild", "max_steps": 500, **wild}, {"run_name": "two"}]
    swept = lab.sweep(tiny, changes, corpus, listeners=[])
    assert [(run.run_id, run.status) for run in swept] == [
        ("one", "completed"),
        ("wild", "diverged"),
        ("two", "completed"),
    ]
    assert swept[1].step > 0


def test_the_noise_of_runs_that_were_stopped_is_refused(tiny: Settings, corpus: Path):
    def interrupt(event: Settings) -> None:
        if event["event"] == "step" and event["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(UsageError, match="stopped in run 1 of 2"):
        lab.noise(tiny, seeds=2, data=corpus, listeners=[interrupt])
    assert len(lab.runs()) == 1

    def interrupt_the_last(event: Settings) -> None:
        if len(lab.runs()) == 3:
            interrupt(event)

    with pytest.raises(UsageError, match="is stopped at step 4"):
        lab.noise(tiny, seeds=2, data=corpus, listeners=[interrupt_the_last])


def test_what_other_processes_trained_since_is_shown(run: lab.Run, tiny: Settings, corpus: Path):
    other = lab.run(tiny, corpus, run_name="two", max_steps=9, eval_cadence=3, listeners=[])
    before, listed = lab.attach("one"), lab.runs()
    lab.resume("one", max_steps=9, listeners=[])
    assert "9/9" in repr(listed)
    assert "6/6" not in repr(listed)
    assert lab.diff(other, before).losses["loss"].common == 9
    assert re.search(r"^one .* 9 ", repr(lab.compare([lab.attach("two"), run])), re.MULTILINE)


def test_a_diff_names_where_the_rate_ends_and_the_weights_come_from(tiny: Settings, corpus: Path):
    falling = {**tiny, "lr_schedule": "cosine", "seed": None}
    straight = lab.run(falling, corpus, listeners=[])
    halved = lab.run(falling, corpus, max_steps=3, listeners=[]).resume(max_steps=6, listeners=[])
    assert straight.config == halved.config
    seeds = straight.start["seed"], halved.start["seed"]
    assert lab.diff(straight, halved).config == {"seed": seeds, "lr_decay_steps": (6, 3)}
    steps = [lab.lab.branch(path, f"from-{path.name}", listeners=[], seed=0) for path in straight.checkpoints()]
    assert len(steps) == 2
    links = tuple(f"custom (run {straight.run_id}, step {step})" for step in (3, 6))
    assert lab.diff(*steps).model == {"lineage": links}


def test_a_run_s_folder_is_found_from_another_one(
    tiny: Settings, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LMLAB_RUNS_DIR", "myruns")
    monkeypatch.setenv("LMLAB_MODELS_DIR", "mymodels")
    runs = [lab.run(tiny, corpus, listeners=[]), lab.run(tiny, corpus, runs_dir="out", listeners=[])]
    registry = lab.Registry()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for run, name in zip(runs, ("myruns", "out"), strict=True):
        assert run.folder.parent == tmp_path / name
        assert run.resume(max_steps=8, listeners=[]).step == 8
    assert registry.models_dir == tmp_path / "mymodels"


def test_a_run_outlives_the_folder_that_it_was_begun_in(
    tiny: Settings, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("RUNS", "MODELS"):
        monkeypatch.delenv(f"LMLAB_{name}_DIR")
    monkeypatch.setenv("LMLAB_HOME", "..")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir("notebooks")
    run, registry = lab.run(tiny, corpus, run_name="one", listeners=[]), lab.Registry()
    again = lab.resume("../runs/one", max_steps=7, listeners=[])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").rmdir()
    assert (run.folder, again.folder, registry.models_dir) == (*[tmp_path / "runs" / "one"] * 2, tmp_path / "models")
    assert again.resume(max_steps=8, listeners=[]).step == 8
    assert ".." not in run.log_path.read_text("utf-8")


def test_noise_is_what_the_seeds_alone_make(tiny: Settings, corpus: Path):
    noise = lab.noise(tiny, seeds=3, data=corpus, listeners=[])
    finals = torch.tensor([run.last("val_loss") for run in lab.runs()], dtype=torch.float64)
    assert len(finals) == 3
    assert noise == pytest.approx(4.303 * float(finals.std()) * math.sqrt(2), rel=1e-3)  # t of 2 degrees of freedom
    with pytest.raises(UsageError, match="2 or more"):
        lab.noise(tiny, seeds=1)


def test_compare_shows_a_band_for_the_noise_and_what_differs(run: lab.Run, tiny: Settings, corpus: Path):
    other = lab.run(tiny, corpus, run_name="two", eval_cadence=3, n_heads=4, listeners=[])
    shown = lab.compare([run, other], noise=100.0, labels=["base", "more heads"])
    assert "n_heads" in repr(shown)
    assert "noise of the seed" in repr(shown)
    assert re.findall(r"^(base|more heads|one|two) ", repr(shown), re.MULTILINE) == ["base", "more heads"]
    assert len(shown.figure.axes) == 2
    assert "lm-figure" in shown._repr_html_()


def test_runs_and_registered_models_write_side_by_side(run: lab.Run):
    run.register("kept")
    asked = {"sampling_temperature": 0.7, "sampling_max_length": 20}
    written = lab.samples([run, "kept"], ["The ", "a "], **asked)
    assert list(written.texts) == ["one", "kept"]
    assert written.texts["one"] == written.texts["kept"]  # the same weights and the same draws
    assert written.texts["one"] == [lab.write_samples(run, prompt, **asked)[0] for prompt in ("The ", "a ")]
    assert list(lab.samples({"mine": run}).texts) == ["mine"]


def test_what_bears_one_name_is_told_apart(run: lab.Run):
    run.register("one")
    shutil.copytree(run.folder, run.folder.parent / "copy")
    copy = lab.attach("copy")
    written = lab.samples([run, "one", copy, run], sampling_max_length=5)
    assert list(written.texts) == ["one", "one (model)", "one (folder copy)", "one (2)"]
    assert repr(lab.microscope(["one", run], "The cat")).startswith("one (model): ")


def test_samples_by_step_are_those_of_the_log(tiny: Settings, corpus: Path):
    run = lab.run(tiny, corpus, sampling_cadence=2, listeners=[])
    shown = lab.samples_by_step(run)
    assert list(shown.texts) == ["step 2", "step 4", "step 6"]
    assert [text for [text] in shown.texts.values()] == [sample.text for sample in run.samples()]
    assert shown.prompts == ["The"]
    run = run.resume(max_steps=9, sampling_prompt="a ", listeners=[])
    shown = lab.samples_by_step(run)
    assert shown.prompts == ["The", "a "]
    assert {label: [text is not None for text in texts] for label, texts in shown.texts.items()} == {
        **{f"step {step}": [True, False] for step in (2, 4, 6)}, "step 8": [False, True], "step 9": [False, True],
    }  # fmt: skip
    assert [text for texts in shown.texts.values() for text in texts if text] == [s.text for s in run.samples()]
    assert re.findall(r"^ *(prompt '.*'|step \d+)", repr(shown), re.MULTILINE) == [
        "prompt 'The'", "step 2", "step 4", "step 6", "prompt 'a '", "step 8", "step 9",
    ]  # fmt: skip


def test_the_microscope_reads_models_and_earlier_checkpoints(run: lab.Run):
    run.register("kept")
    text = "The cat saw a ball."
    view = lab.microscope({"run": run, "model": "kept"}, text)
    losses = [line.split(": ", 1)[1] for line in repr(view).splitlines()]
    assert len(losses) == 2
    assert losses[0] == losses[1]
    assert "not predicted" in view.html  # the first character
    earlier = repr(lab.microscope(run, text, before=True))
    assert "one, step-00000003" in earlier
    assert "one, newest" in earlier
    for named in ("one", str(run.folder), run.folder):
        assert repr(lab.microscope({"one": named}, text, before=True)) == earlier
    for model in ("kept", Path("models/kept"), run.newest_checkpoint):
        with pytest.raises(UsageError, match=r"has no checkpoint to show .* or leave before out"):
            lab.microscope(model, text, before=True)
    with pytest.raises(UsageError, match="too few"):
        lab.microscope(run, "a")


def test_a_text_that_is_longer_than_a_model_takes_is_refused_in_one_line():
    lab.get_model("builtin:tiny-qwen", "tiny")
    with pytest.raises(UsageError, match=r"the text has .* tokens, and the model takes 512 in all; shorten it"):
        lab.microscope("tiny", "The cat saw a ball. " * 512)


def test_models_that_cut_text_differently_are_not_read_together(run: lab.Run, tiny: Settings):
    other = lab.run(tiny, "storybook:6000", listeners=[])
    with pytest.raises(UsageError, match="cut text differently"):
        lab.microscope([run, other], "The cat")


def test_look_has_the_model_s_own_numbers(run: lab.Run):
    run.register("kept")
    look = lab.look("kept", "The cat")
    adapter, tokenizer = run.load()
    ids_BT = torch.from_numpy(tokenizer.encode("The cat")).long()[None]
    torch.testing.assert_close(look.logits_LTV[-1], adapter.logits(ids_BT)[0].detach())
    assert look.probabilities_LHTT.shape == (2, 2, 7, 7)
    torch.testing.assert_close(look.probabilities_LHTT.sum(-1), torch.ones(2, 2, 7))
    assert look.tokens == list("The cat")
    assert [len(figure.axes) for figure in (look.attention(), look.lens())] == [5, 2]
    with pytest.raises(UsageError, match="look at 2 to"):
        lab.look(run, "The cat " * 20)


def test_a_look_at_a_model_that_was_imported_in_bf16_shows_what_it_would_say(tmp_path: Path):
    folder = tiny_models.make(tmp_path / "half")
    weights = folder / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    lab.import_model(str(folder), "half")
    look = lab.look("half", "the quiet sea")
    adapter, _ = load_model_and_tokenizer("models/half")
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        torch.testing.assert_close(look.logits_LTV[-1], adapter.logits(torch.tensor([look.ids]))[0].float())
    assert look._repr_html_().count("<img ") == 2


def test_a_look_shows_itself_also_where_a_figure_has_no_room_for_all_maps(
    tiny: Settings, corpus: Path, monkeypatch: pytest.MonkeyPatch
):
    deep = lab.run(tiny, corpus, n_layers=9, n_heads=8, max_steps=1, listeners=[])
    look = lab.look(deep, "The cat")
    monkeypatch.delattr(type(look), "logits_LTV")  # of all layers at once they can be gigabytes
    shown = look._repr_html_()
    assert "9 layers × 8 heads are too many for one figure: look.attention(layers=[…], heads=[…])" in shown
    assert shown.count("<img ") == 1  # the lens
    assert len(look.attention(layers=[1, 9], heads=[0, 7]).axes) == 5
    with pytest.raises(UsageError, match="choose layers and heads"):
        look.attention()


def test_a_model_is_imported_once_and_names_are_counted_on():
    entry = lab.get_model("builtin:tiny-qwen", "tiny")
    assert lab.get_model("builtin:tiny-qwen", "tiny") == entry
    assert [model.model_name for model in lab.models()] == ["tiny"]
    with pytest.raises(UsageError, match="'tiny' is a model from builtin:tiny-qwen"):
        lab.get_model("Qwen/Qwen2.5-0.5B", "tiny")
    assert [lab.free_name("other"), lab.free_name("tiny")] == ["other", "tiny-v2"]
    lab.get_model("builtin:tiny-qwen", "tiny-v2")
    assert lab.free_name("tiny") == "tiny-v3"


def test_a_cell_that_imports_a_folder_can_run_twice(tmp_path: Path):
    source = str(tiny_models.make(tmp_path / "Tiny-Source"))
    entry = lab.get_model(source, "mine")
    assert lab.get_model(source, "mine") == entry
    with pytest.raises(UsageError, match="'mine' is a model from Tiny-Source"):
        lab.get_model("builtin:tiny-qwen", "mine")


def test_what_a_hook_measured_is_drawn(run: lab.Run):
    [axes] = lab.plot_hook(run, "attention_entropy").axes
    assert [len(line.get_xdata()) for line in axes.lines] == [3] * 4  # steps 2, 4, 6; two layers of two heads
    with pytest.raises(UsageError, match="attention_entropy"):
        lab.plot_hook(run, "weight_norms")


def test_only_the_newest_run_holds_its_model_and_the_others_come_from_disk(run: lab.Run, tiny: Settings, corpus: Path):
    before = run.load()[0]
    assert before is run.load()[0]
    lab.run(tiny, corpus, run_name="newer", listeners=[])
    after = run.load()[0]
    assert after is not before
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_error_shows_itself_as_one_line_unless_all_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError) as caught:
        lab.TrainingConfig.from_dict({"n_heads": 3})
    [line] = caught.value._render_traceback_()
    assert line.startswith("ConfigError: config: n_heads=3 does not divide")
    monkeypatch.setenv("LMLAB_DEBUG", "1")
    assert caught.value._render_traceback_()[0].startswith("Traceback")


def test_the_model_of_a_run_is_loaded_as_it_will_be_from_disk(tiny: Settings, corpus: Path):
    run = lab.run(tiny, corpus, dropout=0.5, listeners=[])
    adapter, tokenizer = run.load()
    ids_BT = torch.from_numpy(tokenizer.encode("The cat")).long()[None]
    assert torch.equal(adapter.logits(ids_BT), adapter.logits(ids_BT))
    from_disk, _ = lab.Run(run.folder).load()
    assert torch.equal(adapter.logits(ids_BT), from_disk.logits(ids_BT))


def test_the_lens_knows_tokens_by_their_ids_and_not_by_their_looks(run: lab.Run, monkeypatch: pytest.MonkeyPatch):
    look = lab.look(run, "The cat")
    monkeypatch.setattr(type(look._tokenizer), "pieces", lambda self, ids: ["same"] * len(list(ids)))
    drawn: list[Any] = []
    monkeypatch.setattr("lmlab.views.plots.lens_figure", lambda *given, **more: drawn.append(more["hits_LT"]))
    look.lens()
    best = look.logits_LTV.argmax(dim=-1)[:, :-1]
    assert (drawn[0] == (best == torch.tensor(look.ids[1:])).numpy()).all()
    assert not drawn[0].all()


@pytest.mark.parametrize(
    ("changes", "arguments", "error", "says"),
    [
        ([{"seed": 1}, {"learning_rat": 1e-3}], {}, ConfigError, "unknown key 'learning_rat'; the nearest"),
        ([{"seed": 1}, {"d_model": 30, "n_heads": 4}], {}, ConfigError, "n_heads=4 does not divide d_model=30"),
        ([{"seed": 1}, {"seed": 2}], {"run_name": "same"}, UsageError, "two runs of the sweep would have the name 'same'"),
        ({"seed": 1}, {}, UsageError, "changes are a list of mappings"),
        ([{"seed": 1}, {"hooks": ["weight_norm"]}], {}, ConfigError, "no hook 'weight_norm'; there are:"),
        ([{"seed": 1}, {"hooks": ["weight_norms:x"]}], {}, ConfigError, "'weight_norms:x' has no cadence"),
        ([{"seed": 1}, {"model_name": "absent"}], {}, ModelNotFound, "no model 'absent'"),
        ([{"seed": 1}, {"tokenizer_override": "absent"}], {}, TokenizerError, "'absent' is neither `char`, nor"),
        ([{"seed": 1}, {"data": "absent.txt"}], {}, DataError, "no data at absent.txt"),
        ([{"seed": 1}, {"data": "storybook:x"}], {}, DataError, "'storybook:x' is no size of the storybook"),
        ([{"seed": 1}, {"max_seq_len": 30000}], {}, DataError, "do not fill one window of max_seq_len=30000"),
        ([{"seed": 1}, {"train_ratio": 0.99999, "eval_cadence": 1}], {}, ConfigError, "there is no validation text"),
    ],
)  # fmt: skip
def test_a_sweep_reads_all_its_changes_before_it_trains(
    tiny: Settings, corpus: Path, changes: Any, arguments: Settings, error: type[Exception], says: str
):
    with pytest.raises(error, match=re.escape(says)):
        lab.sweep(tiny, changes, corpus, listeners=[], **arguments)
    assert len(lab.runs()) == 0


def test_a_sweep_knows_beforehand_what_is_too_long_for_a_model(tiny: Settings, corpus: Path, monkeypatch: Any):
    lab.get_model("builtin:tiny-qwen", name="qwen")
    changes = [{"seed": 1}, {"model_name": "qwen", "max_seq_len": 5000}]
    for large in (16_000_000, 1000):
        monkeypatch.setattr("lmlab.corpus.LARGE", large)
        with pytest.raises(ConfigError, match="max_seq_len=5000 is longer than qwen can take"):
            lab.sweep(tiny, changes, corpus, listeners=[])
    assert len(lab.runs()) == 0


def test_runs_of_a_sweep_in_folders_of_their_own_may_share_a_name(tiny: Settings, corpus: Path, tmp_path: Path):
    changes = [{"runs_dir": tmp_path / "one"}, {"runs_dir": tmp_path / "two"}]
    swept = lab.sweep(tiny, changes, corpus, run_name="same", listeners=[])
    assert [run.folder for run in swept] == [tmp_path / "one" / "same", tmp_path / "two" / "same"]


def test_a_run_that_memory_was_too_small_for_leaves_a_sweep_its_others(tiny: Settings, corpus: Path):
    def refuse(event: Settings) -> None:
        if (event["run_id"], event["event"]) == ("large", "step"):
            raise torch.OutOfMemoryError("no room")

    changes = [{"run_name": name} for name in ("small", "large", "next")]
    with pytest.warns(UserWarning, match="large: out of memory: halve batch_size"):
        swept = lab.sweep(tiny, changes, corpus, listeners=[refuse])
    assert [(run.run_id, run.status) for run in swept] == [
        ("small", "completed"), ("large", "failed"), ("next", "completed"),
    ]  # fmt: skip


def test_one_run_one_name_and_one_prompt_need_no_list(run: lab.Run):
    assert list(lab.samples(run, "The", sampling_max_length=3).prompts) == ["The"]
    assert repr(lab.compare(run, "loss")) == repr(lab.compare([run], ["loss"]))
    assert len(run.plot("loss").axes) == 1


def test_a_run_may_be_given_by_its_folder_or_its_id(run: lab.Run, tiny: Settings, corpus: Path):
    other = lab.run(tiny, "storybook:6000", run_name="two", eval_cadence=3, listeners=[])
    for named in (lambda run: run.folder, lambda run: str(run.folder), lambda run: run.run_id):
        one, two = named(run), named(other)
        assert repr(lab.compare(one)) == repr(lab.compare(run))
        assert repr(lab.compare([one, two])) == repr(lab.compare([run, other]))
        assert repr(lab.diff(one, two)) == repr(lab.diff(run, other))
        assert repr(lab.samples_by_step(one)) == repr(lab.samples_by_step(run))
        assert len(lab.plot_hook(one, "attention_entropy").axes) == 1
        assert repr(lab.by_position(two)) == repr(lab.by_position(other))
        [texts] = lab.samples(one, sampling_max_length=5).texts.values()
        assert [texts] == list(lab.samples(run, sampling_max_length=5).texts.values())
        assert list(lab.samples(one, sampling_max_length=5).texts) == [str(one)]
        assert repr(lab.microscope(one, "The cat")).startswith(f"{one}: ")
        assert lab.look(one, "The cat").tokens == list("The cat")
    with pytest.raises(RunError, match=r"no run in .*nothing: there is no such folder; `list-runs` shows"):
        lab.compare("nothing")


def test_the_card_of_a_run_that_early_stopping_ended_says_how_to_go_on(tiny: Settings, corpus: Path):
    changes = {"eval_cadence": 1, "early_stopping_patience": 1, "learning_rate": 1e-12}
    run = lab.run(tiny, corpus, run_name="early", listeners=[], **changes)
    assert run.status == "completed"
    assert run.step < 6
    command = cards.resume_command(run)
    assert command == "python main.py --resume runs/early --set early_stopping_patience=null"
    assert cli.main(command.removeprefix("python main.py ").split()) == 0
    run.refresh()
    assert (run.status, run.step) == ("completed", 6)


def test_whatever_takes_a_path_takes_a_run(run: lab.Run):
    assert lab.resume(run, listeners=[], max_steps=8).step == 8
    assert lab.register(run, "stories").step == 8
    assert os.fspath(run) == str(run.folder)


def test_changes_may_come_one_by_one(tiny: Settings, corpus: Path):
    swept = lab.sweep(tiny, ({"seed": seed} for seed in range(2)), corpus, listeners=[])
    assert [run.config["seed"] for run in swept] == [0, 1]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            CheckpointError("cannot save the checkpoint: No space left on device"),
            "cannot save the checkpoint: No space",
        ),
        (ValueError("math domain error"), "ValueError: math domain error"),  # of a hook of one's own
    ],
)
def test_what_a_sweep_has_trained_outlives_an_error(error: Exception, says: str, tiny: Settings, corpus: Path):
    def refuse(event: Settings) -> None:
        if (event["run_id"], event["event"]) == ("two", "step"):
            raise error

    changes = [{"run_name": name} for name in ("one", "two", "three")]
    with pytest.warns(UserWarning, match=f"the sweep ends after 1 runs: {says}"):
        swept = lab.sweep(tiny, changes, corpus, listeners=[refuse])
    assert [run.run_id for run in swept] == ["one"]
    with pytest.raises(type(error)):
        lab.sweep(tiny, [{"run_name": "two", "runs_dir": "elsewhere"}], corpus, listeners=[refuse])


def test_a_name_that_a_model_of_ones_own_has_is_not_taken_for_an_import(run: lab.Run):
    lab.register(run, "stories")
    with pytest.raises(UsageError, match="'stories' is a model that was trained here already; choose another name"):
        lab.get_model("builtin:tiny-qwen", name="stories")


def test_a_fine_tune_is_not_taken_for_the_model_that_it_is_from(tiny: Settings, corpus: Path):
    lab.get_model("builtin:tiny-qwen", "tiny")
    lab.finetune("tiny", corpus, "b1", config={**tiny, "max_steps": 1}, listeners=[])
    with pytest.raises(UsageError, match="'b1' is a model that was trained here already; choose another name"):
        lab.get_model("builtin:tiny-qwen", "b1")
