"""What is said before a run, and `validate-config`."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import peak
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

import lmlab
from lmlab import hub, lab, planning
from lmlab.config import TrainingConfig
from lmlab.errors import ConfigError, DataError, ModelNotFound, TokenizerError, UsageError
from lmlab.loading import load_adapter
from lmlab.together import groups_of
from lmlab.tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = (
    "default", "small-model", "large-model", "fast-training", "quick-text", "detailed-eval", "custom-transformer",
)  # fmt: skip

CHECKED = """
import json, sys
import psutil
from peak import peak_bytes
from lmlab import planning

before = psutil.Process().memory_info().rss
report = planning.check_config(*sys.argv[1:])
found = {"grown": peak_bytes() - before, "n_parameters": report.estimate.n_parameters}
print(json.dumps({**found, "warnings": report.warnings, "text": str(report)}))
"""


def written(folder: Path, **values: Any) -> Path:
    path = folder / "config.yaml"
    TrainingConfig(**values).to_yaml(path)
    return path


@pytest.fixture
def tiny_qwen(tmp_path: Path) -> str:
    """The name of a registered random Qwen that takes windows of 128 tokens at most."""
    hub.import_model(str(tiny_models.make(tmp_path / "source")), name="tiny", models_dir=None)
    return "tiny"


# --- the line before training


def test_the_plan_is_one_line_with_what_the_run_takes(tiny: dict[str, Any], corpus: Path):
    trainer = lab.build(tiny, corpus)
    plan = planning.plan(trainer)
    n_train = trainer.facts["data"]["n_train"]
    assert plan.estimate.n_parameters == trainer.model.n_parameters()
    assert plan.estimate.tokens == 6 * 4 * 16
    assert plan.estimate.epochs == 6 * 4 * 16 / n_train
    line = str(plan)
    assert "\n" not in line
    assert line.startswith("plan: ")
    for part in ("k parameters, 384 tokens (0.0 epochs), about ", " MB of memory, ", " on disk"):
        assert part in line
    assert re.search(r" of memory, \d+(\.\d+)? m?s, ", line)


def test_the_plan_counts_what_is_left(tiny: dict[str, Any], corpus: Path):
    trainer = lab.build(tiny, corpus)
    trainer.step = 4
    assert planning.plan(trainer).estimate.tokens == 2 * 4 * 16


def test_the_plan_of_a_trainer_without_a_run(tiny: dict[str, Any], corpus: Path):
    trainer = lab.build(tiny, corpus)
    trainer.facts, trainer.val_dataloader = {}, None
    assert "epochs" not in str(planning.plan(trainer))


def test_the_plan_says_when_the_machine_is_too_small(tiny: dict[str, Any], corpus: Path):
    plan = planning.plan(lab.build(tiny, corpus))
    assert "this needs" not in str(plan)
    line = str(dataclasses.replace(plan, machine_memory=1_000_000))
    assert line.count("\n") == 0
    assert "and the machine has 1 MB: lower batch_size" in line


def test_training_from_the_command_line_prints_the_plan_first(lab_command, tiny_yaml: Path, corpus: Path):
    done = lab_command("--config", tiny_yaml, "--data", corpus, "--max-steps", 1)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("plan: ")
    assert not any(line.startswith("plan: ") for line in lines[1:])


def test_resuming_and_branching_say_what_is_left_first(lab_command, tiny_yaml: Path, corpus: Path):
    done = lab_command("--config", tiny_yaml, "--data", corpus, "--max-steps", 2, "--run-name", "first")
    assert done.returncode == 0, done.stderr
    tokens = 4 * 16
    for arguments, steps in ((("--max-steps", 5), 3), (("--model-name", "branch", "--max-steps", 4), 4)):
        done = lab_command("--resume", "first", *arguments)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0].startswith("plan: ")
        assert f" parameters, {steps * tokens} tokens (" in lines[0]
    done = lab_command("--resume", "first")
    assert done.stdout.startswith("the run first is done")


def test_processes_with_copies_of_a_model_are_planned_whose_layers_are_not_known(tmp_path: Path):
    adapter = load_adapter(tiny_models.make(tmp_path / "opt", "opt", word_embed_proj_dim=32))
    (shapes,) = groups_of(adapter, "ddp")
    assert sum(map(math.prod, shapes)) == adapter.n_parameters()
    with pytest.raises(ConfigError, match="the layers of opt are not known"):
        groups_of(adapter, "fsdp")


# --- validate-config


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_is_valid(name: str, corpus: Path):
    report = planning.check_config(ROOT / "configs" / f"{name}.yaml", corpus)
    assert report.warnings == ()
    config = TrainingConfig.from_yaml(ROOT / "configs" / f"{name}.yaml")
    text = str(report)
    assert text.splitlines()[0] == f"{ROOT / 'configs' / name}.yaml is a valid config"
    for part in (
        config.config_hash,
        f"custom-transformer: vocab_size {len(set(corpus.read_text()))}, n_layers {config.n_layers}, d_model "
        f"{config.d_model}",
        f"{report.estimate.n_parameters:,}",
        "19,000 tokens to train on, 1,000 to validate on",
        f"{config.max_steps:,} updates",
        "at the peak: weights ",
        ", gradients ",
        ", optimizer ",
        ", activations ",
        "GFLOP an update",
        "and the log",
    ):
        assert part in text, part


def test_the_report_is_about_the_model_that_would_be_built(tiny: dict[str, Any], tiny_yaml: Path, corpus: Path):
    report = planning.check_config(tiny_yaml, corpus)
    trainer = lab.build(tiny, corpus)
    assert report.model == trainer.model.describe()
    plan = planning.plan(trainer).estimate
    assert dataclasses.replace(report.estimate, seconds=0.0) == dataclasses.replace(plan, seconds=0.0)


def test_nothing_is_written_or_trained(tmp_path: Path, tiny_yaml: Path, corpus: Path):
    before = set(tmp_path.rglob("*"))
    random = torch.get_rng_state()
    planning.check_config(tiny_yaml, corpus)
    assert set(tmp_path.rglob("*")) == before
    assert torch.equal(torch.get_rng_state(), random)


def test_a_model_beyond_the_machine_is_a_warning_and_takes_no_memory(tmp_path: Path, corpus: Path):
    path = written(tmp_path, n_layers=96, d_model=12288, n_heads=96, d_ff=49152)
    found = json.loads(peak.output_of(CHECKED, path, corpus))
    assert found["grown"] < 200e6
    assert found["n_parameters"] > 170e9  # GPT-3 (Brown et al. 2020, table 2.1) but for its embeddings
    (warning,) = [each for each in found["warnings"] if "of memory" in each]
    assert "lower batch_size or max_seq_len" in warning
    assert f"\nwarning: {warning}" in found["text"]


def test_more_checkpoints_than_the_disk_holds_are_a_warning(tmp_path: Path, corpus: Path):
    path = written(tmp_path, max_steps=10**9, checkpoint_cadence=1)
    (warning,) = planning.check_config(path, corpus).warnings
    assert "raise checkpoint_cadence or set keep_checkpoints" in warning
    pruned = written(tmp_path, max_steps=10**6, checkpoint_cadence=1, keep_checkpoints=2)
    assert planning.check_config(pruned, corpus).warnings == ()


def test_a_text_too_short_for_the_windows_is_refused_as_by_training(tmp_path: Path, corpus: Path):
    path = written(tmp_path, max_seq_len=19_000, batch_size=1)
    for refuses in (planning.check_config, lab.build):
        with pytest.raises(DataError, match="do not fill one window of max_seq_len=19000"):
            refuses(path, corpus)


def test_no_text_left_to_validate_on_is_refused_as_by_training(tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("The cat sat. " * 10)
    path = written(tmp_path, max_seq_len=16, eval_cadence=5, train_ratio=0.995)
    for refuses in (planning.check_config, lab.build):
        with pytest.raises(ConfigError, match="there is no validation text; lower train_ratio"):
            refuses(path, text)


def test_a_prompt_that_the_text_cannot_spell_is_a_warning(tmp_path: Path, corpus: Path):
    (warning,) = planning.check_config(written(tmp_path, sampling_prompt="Ünder"), corpus).warnings
    assert warning.startswith("sampling_prompt cannot be encoded")


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"model_name": "absent"}, ModelNotFound, "no model 'absent'"),
        ({"hooks": ["spy"]}, ConfigError, "no hook 'spy'; there are"),
        ({"hooks": ["weight_norms:often"]}, ConfigError, "no cadence"),
        ({"tokenizer_override": "nowhere"}, TokenizerError, "neither `char`"),
    ],
)
def test_names_that_do_not_exist_are_errors(
    tmp_path: Path, corpus: Path, values: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        planning.check_config(written(tmp_path, **values), corpus)


REFUSED = [  # what a run of a model is refused for before its first step
    ("mamba", {"hooks": ["attention_entropy"]}, ConfigError, "the attention of mamba is not known; leave out"),
    ("opt", {"hooks": ["activation_stats"]}, ConfigError, "the layers of opt are not known; leave out hooks"),
    ("openai-gpt", {"activation_checkpointing": True}, ConfigError, "does not work with openai-gpt; set it to false"),
    (None, {"compile": True}, UsageError, "compile: true needs a C++ compiler, and there is no "),
]


@pytest.mark.parametrize(("kind", "values", "error", "message"), REFUSED)
def test_what_a_run_is_refused_for_at_its_beginning_is_an_error(
    kind: str | None, values: dict[str, Any], error: type[Exception], message: str,
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    if kind is not None:
        hub.import_model(str(tiny_models.make(tmp_path / "source", kind)), name=kind)
    config = {"model_name": kind, "max_seq_len": 16, "max_steps": 1, "batch_size": 2, "n_layers": 1}
    for refuses in (lab.build, planning.check_config):
        with pytest.raises(error, match=re.escape(message)):
            refuses(written(tmp_path, **config, **values), corpus)
    with pytest.raises(error, match=re.escape(message)):
        lmlab.sweep(config, [{"seed": 1}, values], corpus, listeners=[])
    assert len(lmlab.runs()) == 0


def test_hooks_are_no_error_where_their_model_shows_what_they_read(tmp_path: Path, corpus: Path, tiny_qwen: str):
    for name in (tiny_qwen, None):
        path = written(tmp_path, model_name=name, max_seq_len=16, hooks=["attention_entropy", "activation_stats:3"])
        assert planning.check_config(path, corpus, activation_checkpointing=True).config.hooks


def test_a_compiler_is_not_asked_for_on_devices_that_are_not_here(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    path = written(tmp_path, n_layers=1, d_model=16, n_heads=2, max_seq_len=16, compile=True)
    assert planning.check_config(path, corpus, world_size=2, device_name="H100").together is not None


def test_bad_files_and_bad_data_are_errors(tmp_path: Path, tiny_yaml: Path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("n_heads: 3\n")
    with pytest.raises(ConfigError, match="n_heads"):
        planning.check_config(bad)
    with pytest.raises(DataError, match="no data at"):
        planning.check_config(tiny_yaml, tmp_path / "absent.txt")


def test_a_registered_model_of_transformers(tmp_path: Path, corpus: Path, tiny_qwen: str):
    path = written(tmp_path, model_name=tiny_qwen, max_seq_len=64, batch_size=2, n_layers=7)
    report = planning.check_config(path, corpus)
    trainer = lab.build(path, corpus)
    assert report.model == trainer.model.describe()
    assert report.data["n_train"] == trainer.facts["data"]["n_train"]
    assert report.estimate.memory == planning.plan(trainer).estimate.memory
    assert "qwen: " in str(report)
    assert report.warnings == ("tiny has its own architecture; ignored: n_layers",)


def test_a_head_that_is_not_tied_as_its_config_says_is_counted(tmp_path: Path, corpus: Path):
    folder = tiny_models.make(tmp_path / "own-head")
    tensors = load_file(folder / "model.safetensors")
    own_VD = torch.randn_like(tensors["model.embed_tokens.weight"])
    save_file({**tensors, "lm_head.weight": own_VD}, folder / "model.safetensors", metadata={"format": "pt"})
    entry = hub.import_model(str(folder), models_dir=tmp_path / "models")
    assert entry is not None
    config = TrainingConfig(model_name="own-head", max_seq_len=16)
    model = planning.outline(config, Tokenizer.load(folder), tmp_path / "models")
    assert model.n_parameters() == entry.n_parameters == sum(t.numel() for t in tensors.values()) + own_VD.numel()


def test_a_registered_custom_transformer(tmp_path: Path, tiny: dict[str, Any], corpus: Path):
    lab.run(tiny, corpus, run_name="first", listeners=[]).register("own")
    report = planning.check_config(written(tmp_path, model_name="own", max_seq_len=16), corpus)
    assert report.model["d_model"] == tiny["d_model"]
    assert report.estimate.n_parameters == lab.build(tiny, corpus).model.n_parameters()


def test_a_prompt_that_leaves_no_room_for_a_sample_is_a_warning(tmp_path: Path, corpus: Path, tiny_qwen: str):
    values = {"model_name": tiny_qwen, "max_seq_len": 64, "sampling_prompt": "The cat sat. " * 60}
    (warning,) = planning.check_config(written(tmp_path, **values), corpus).warnings
    assert warning.endswith("tokens, and the model takes 128 in all: samples end with it")


def test_windows_and_tokenizers_that_do_not_fit_a_model_are_errors(tmp_path: Path, corpus: Path, tiny_qwen: str):
    with pytest.raises(ConfigError, match=r"max_seq_len=129 is longer than tiny can take; its limit is 128"):
        planning.check_config(written(tmp_path, model_name=tiny_qwen, max_seq_len=129), corpus)
    many = tmp_path / "many.txt"
    many.write_text("".join(chr(0x4E00 + i) for i in range(400)) * 20, encoding="utf-8")
    values = {"model_name": tiny_qwen, "max_seq_len": 64, "tokenizer_override": "char", "sampling_prompt": "一"}
    with pytest.raises(ConfigError, match="set resize_embeddings: true"):
        planning.check_config(written(tmp_path, **values), many)
    report = planning.check_config(written(tmp_path, resize_embeddings=True, **values), many)
    assert report.model["vocab_size"] == 400
    assert report.estimate.n_parameters == lab.build(tmp_path / "config.yaml", many).model.n_parameters()


def test_validate_config_from_the_command_line(lab_command, tmp_path: Path, tiny_yaml: Path, corpus: Path):
    done = lab_command("validate-config", tiny_yaml, "--data", corpus)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tiny_yaml} is a valid config\n")
    wrong = written(tmp_path, model_name="absent")
    done = lab_command("validate-config", wrong, "--data", corpus)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no model 'absent'")
    assert done.stderr.count("\n") == 1
