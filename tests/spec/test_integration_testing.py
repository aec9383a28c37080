"""Requirement: Integration Testing."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from workbench import (
    ARCHITECTURE,
    ROOT,
    SPECIFIED_DEFAULTS,
    STRAIGHT,
    Event,
    Lab,
    Session,
    architecture_of,
    comparable,
    contents,
    read_log,
    state_of,
)

from lmlab import LabError, TrainingConfig, build, run
from lmlab.evaluate import Evaluation
from lmlab.lab import execute
from lmlab.optim import parts
from lmlab.sampling import write_samples

NEW_FIELDS = {
    "n_layers": 4,
    "d_model": 256,
    "n_heads": 4,
    "d_ff": 1024,
    "dropout": 0.1,
    "train_ratio": 0.95,
    "max_steps": 10000,
    "checkpoint_cadence": 1000,
}
EXAMPLES = ("default", "small-model", "large-model", "fast-training", "detailed-eval")
PROGRESS = ("step", "eval", "sample", "hook")


def of(events: list[Event], *kinds: str) -> list[Event]:
    """Events of some kinds, without what two equal runs differ in."""
    return comparable([event for event in events if event["event"] in kinds])


def test_end_to_end_training_pipeline_test(own_lab: Lab, corpus: Path) -> None:
    """WHEN the integration test runs with a tiny corpus THEN load data → tokenize → create datasets → train →
    checkpoint → resume → verify all work, without errors."""
    config = own_lab.config("config", **{**STRAIGHT, "max_steps": 4})
    own_lab.main("--config", config, "--data", corpus, "--run-name", "pipeline")
    data = own_lab.start("pipeline")["data"]
    assert data["n_tokens"] == data["n_train"] + data["n_val"] == len(corpus.read_text(encoding="utf-8"))
    assert own_lab.checkpoint_steps("pipeline") == [4]
    own_lab.main("--resume", "pipeline", "--max-steps", 6)
    assert list(own_lab.series("pipeline", "loss")) == [1, 2, 3, 4, 5, 6]
    assert own_lab.checkpoint_steps("pipeline") == [4, 5, 6]
    statuses = [event["status"] for event in own_lab.events("pipeline", "run_end")]
    assert statuses == ["completed", "completed"]
    verified = own_lab.main("verify-resume", "--config", config, "--data", corpus, "--steps", 6, "--at", 4)
    assert verified.stdout.startswith("identical: 6 steps straight against 4 steps, resumed, 2 more")


def test_checkpoint_resume_produces_identical_results(own_lab: Lab, corpus: Path) -> None:
    """WHEN training is interrupted and resumed from a checkpoint THEN the loss progression is identical, the step counter
    continues, and the results are reproduced."""
    rarely = {"eval_cadence": 50, "sampling_cadence": 40, "checkpoint_cadence": None, "hooks": ["weight_norms:60"]}
    config = own_lab.config("config", **{**STRAIGHT, **rarely, "max_steps": 300, "lr_decay_steps": 300})
    arguments = ("--config", config, "--data", corpus, "--run-name")
    own_lab.main(*arguments, "straight")
    stopped_at = interrupt(own_lab, 20, *arguments, "interrupted")
    assert 20 <= stopped_at < 300
    assert own_lab.checkpoint_steps("interrupted") == [stopped_at]
    own_lab.main("--resume", own_lab.run_folder("interrupted"))

    straight, resumed = own_lab.events("straight"), own_lab.events("interrupted")
    assert [e["status"] for e in resumed if e["event"] == "run_end"] == ["stopped", "completed"]
    assert [e["step"] for e in resumed if e["event"] == "step"] == list(range(1, 301))
    assert of(resumed, *PROGRESS) == of(straight, *PROGRESS)
    ends = [own_lab.checkpoint(name, 300) for name in ("straight", "interrupted")]
    assert weights(ends[0]) == weights(ends[1])


def interrupt(lab: Lab, after: int, *arguments: object) -> int:
    """Train until a step is printed, interrupt as Ctrl-C does, and return the step that was saved."""
    command = [sys.executable, "-u", str(lab.project / "main.py"), *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=lab.folder, env=lab.variables(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("event=step") and f" step={after} " in line:
                os.kill(process.pid, signal.SIGINT)
                break
        process.stdout.read()
        message = process.stderr.read()
    assert process.returncode == 130, message
    assert "--resume" in message
    return int(message.split("stopped at step ")[1].split(";")[0])


def weights(checkpoint: Path) -> dict[str, bytes]:
    """The tensor files of a checkpoint."""
    return {name: content for name, content in contents(checkpoint).items() if name.endswith(".safetensors")}


def test_reproducibility_verification(
    straight: Session, straight_config: Path, corpus: Path, own_lab: Lab, tmp_path: Path
) -> None:
    """WHEN several runs use the same seed and configuration THEN their losses are identical at each step, and so are the
    samples."""
    own_lab.main("--config", straight_config, "--data", corpus, "--run-name", "again")
    again = own_lab.events("again")
    assert of(again, "step") == of(straight.events, "step")
    assert len(of(again, "step")) == 12
    assert of(again, "sample") == of(straight.events, "sample")
    assert len(of(again, "sample")) == 4
    assert comparable(again) == comparable(straight.events), "every event of the log"
    ends = (own_lab.checkpoint("again", 12), straight.lab.checkpoint("straight", 12))
    assert weights(ends[0]) == weights(ends[1])

    other = run(STRAIGHT, corpus, seed=8, max_steps=3, run_name="other", runs_dir=tmp_path / "others", listeners=[])
    assert other.series("loss")[1].tolist() != list(straight.losses.values())[:3], "another seed is another run"


@pytest.mark.usefixtures("one_thread")
def test_training_dynamics_verification_smoke_test(corpus: Path, tmp_path: Path) -> None:
    """WHEN training runs on simple data THEN the loss decreases, the model demonstrates learning, and the generated
    samples improve."""
    values = {
        **STRAIGHT,
        "d_model": 64,
        "d_ff": 128,
        "dropout": 0.0,
        "learning_rate": 1e-2,
        "batch_size": 8,
        "max_seq_len": 32,
        "lr_decay_steps": 150,
        "eval_cadence": 50,
        "sampling_cadence": None,
        "checkpoint_cadence": None,
        "hooks": [],
    }
    young = run(values, corpus, max_steps=1, run_name="learning", runs_dir=tmp_path / "runs", listeners=[])
    before = share_of_words(young.folder / "checkpoints" / "step-00000001", corpus)
    grown = young.resume(max_steps=150, listeners=[])

    steps, losses = grown.series("loss")
    assert steps.tolist() == list(range(1, 151))
    means = losses.reshape(5, 30).mean(axis=1)
    assert all(means[1:] < means[:-1]), f"the loss does not fall: {means}"
    _, evaluations = grown.series("val_loss")
    n_characters = len(set(corpus.read_text(encoding="utf-8")))
    assert abs(evaluations[0] - math.log(n_characters)) < 0.3
    assert evaluations[-1] < 0.5 * evaluations[0], "text that it was not trained on is understood, too"
    after = share_of_words(grown.folder / "checkpoints" / "step-00000150", corpus)
    assert before < 0.2 < 0.6 < after, f"words of the corpus among those sampled: {before:.2f}, then {after:.2f}"


def share_of_words(checkpoint: Path, corpus: Path) -> float:
    """The share of the words in 64 samples that are words of the corpus; the first and the last may be cut."""
    known = set(corpus.read_text(encoding="utf-8").replace(".", " ").split())
    texts = write_samples(checkpoint, "The", 64, sampling_max_length=60)
    words = [word for text in texts for word in text.replace(".", " ").split()[1:-1]]
    return sum(word in known for word in words) / len(words)


def test_logging_completeness_verification(straight: Session) -> None:
    """WHEN training runs and logs are captured THEN they include run_id, config_hash, git_commit, step and loss, val_loss
    and sample_text when their cadences trigger, in a parseable format, with all metadata that reproduction needs."""
    lines = (straight.lab.run_folder("straight") / "log.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    first = events[0]
    assert first["event"] == "run_start"
    assert {"run_id", "config_hash", "git_commit"} <= first.keys()
    assert all(event["run_id"] == "straight" for event in events)
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 13))
    assert all(math.isfinite(event["loss"]) for event in steps)
    expected = {
        "eval": ("val_loss", [0, 4, 8, 12]),
        "sample": ("sample_text", [3, 6, 9, 12]),
    }
    for kind, (key, at) in expected.items():
        assert [event["step"] for event in events if event["event"] == kind and event[key]] == at

    needed = ("config", "seed", "data", "model", "tokenizer", "hooks", "device", "precision", "threads", "versions")
    assert all(first[name] not in (None, {}, "") for name in needed)
    assert TrainingConfig.from_dict(first["config"]).config_hash == first["config_hash"]
    assert first["seed"] == STRAIGHT["seed"]
    assert len(first["data"]["sha256"]) == 64
    assert {"python", "torch"} <= first["versions"].keys()


def test_trainingconfig_includes_all_new_hyperparameters() -> None:
    """WHEN TrainingConfig tests run THEN all new hyperparameters are included with the expected defaults, `from_dict`
    loads them, and `to_dict` includes them."""
    plain = TrainingConfig().to_dict()
    for name, default in NEW_FIELDS.items():
        assert getattr(TrainingConfig(), name) == default
        assert plain[name] == default
        assert type(plain[name]) is type(default)
        changed = 0.25 if isinstance(default, float) else default * 2
        config = TrainingConfig.from_dict({name: changed})
        assert getattr(config, name) == changed
        assert config.to_dict() == {**plain, name: changed}


def test_config_loading_from_yaml_works_correctly(tmp_path: Path) -> None:
    """WHEN config loading tests run THEN configs/default.yaml and custom files load, missing fields take their defaults,
    invalid YAML gives a clear error, and so do values of a wrong type."""
    default = ROOT / "configs" / "default.yaml"
    assert TrainingConfig.from_yaml(default) == TrainingConfig()
    named = yaml.safe_load(default.read_text(encoding="utf-8"))
    assert named.keys() == SPECIFIED_DEFAULTS.keys()

    path = tmp_path / "own.yaml"
    path.write_text("n_layers: 2\nlearning_rate: 1e-3\nsampling_prompt: 'Once: upon'\neval_cadence: null\n")
    values = {"n_layers": 2, "learning_rate": 1e-3, "sampling_prompt": "Once: upon", "eval_cadence": None}
    assert TrainingConfig.from_yaml(path).to_dict() == {**TrainingConfig().to_dict(), **values}

    for text in ("n_layers: [1, 2\n", "n_layers: 4\n  d_model: 8\n", "\tn_layers: 4\n", "n_layers 4\n"):
        path.write_text(text)
        message = error_of(path)
        assert "line" in message or "mapping" in message or "key" in message, message
    wrong = {"n_layers": "four", "dropout": "much", "max_steps": 1.5, "seed": True, "sampling_prompt": 3, "hooks": 7}
    for name, value in wrong.items():
        path.write_text(f"{name}: {json.dumps(value)}\n")
        assert name in error_of(path)


def error_of(path: Path) -> str:
    """Why a config is refused: one line that names the file."""
    with pytest.raises(LabError) as caught:
        TrainingConfig.from_yaml(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_config_integration_with_main_py_works_correctly(
    straight: Session, interrupted: Session, defaults: Session, corpus: Path
) -> None:
    """WHEN integration tests run with config files THEN main.py uses the config for the model, the split and the
    checkpoint cadence, --max-steps takes precedence, and without a file the defaults are used."""
    saved = architecture_of(straight.lab.checkpoint("straight", 12))
    assert {name: saved[name] for name in ARCHITECTURE} == {name: STRAIGHT[name] for name in ARCHITECTURE}
    n_tokens = len(corpus.read_text(encoding="utf-8"))
    assert straight.start["data"]["n_train"] == int(n_tokens * STRAIGHT["train_ratio"]) != int(n_tokens * 0.95)
    assert straight.lab.checkpoint_steps("straight") == [5, 10, 12]
    assert interrupted.steps[-1] == 7 != STRAIGHT["max_steps"]

    saved = architecture_of(defaults.lab.checkpoint(defaults.run, 2))
    assert {name: saved[name] for name in ARCHITECTURE} == {name: SPECIFIED_DEFAULTS[name] for name in ARCHITECTURE}
    n_tokens = defaults.start["data"]["n_tokens"]
    assert defaults.start["data"]["n_train"] == int(n_tokens * 0.95)
    assert defaults.lab.checkpoint_steps(defaults.run) == [2]


def test_backward_compatibility_with_old_configs(own_lab: Lab, corpus: Path, defaults: Session) -> None:
    """WHEN an old config without the new hyperparameters is loaded THEN it loads, missing fields take their defaults,
    training proceeds, and behaviour without a config matches the values that were hardcoded before."""
    old = {name: value for name, value in SPECIFIED_DEFAULTS.items() if name not in (*NEW_FIELDS, "model_name")}
    old |= {"batch_size": 2, "max_seq_len": 16, "sampling_max_length": 4, "seed": 3}
    path = own_lab.config("old", **old)
    config = TrainingConfig.from_yaml(path)
    assert {name: getattr(config, name) for name in NEW_FIELDS} == NEW_FIELDS
    own_lab.main("--config", path, "--data", corpus, "--max-steps", 2, "--run-name", "old")
    assert own_lab.start("old")["config"] == {**TrainingConfig().to_dict(), **old, "max_steps": 2}
    assert list(own_lab.series("old", "loss")) == [1, 2]
    assert own_lab.events("old", "run_end")[0]["status"] == "completed"
    saved = architecture_of(own_lab.checkpoint("old", 2))
    assert {name: saved[name] for name in ARCHITECTURE} == {name: NEW_FIELDS[name] for name in ARCHITECTURE}

    used = {name: defaults.start["config"][name] for name in NEW_FIELDS}
    assert used == {**NEW_FIELDS, "max_steps": 2}
    assert state_of(defaults.lab.checkpoint(defaults.run, 2))["config"] == defaults.start["config"]


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.usefixtures("one_thread")
def test_example_config_files_work_correctly(name: str, corpus: Path, tmp_path: Path) -> None:
    """WHEN each example config is loaded and used THEN the model has the architecture of the file, and training,
    checkpoints and evaluation follow its values; small is smaller, large larger, fast faster, detailed more frequent."""
    path = ROOT / "configs" / f"{name}.yaml"
    named = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = TrainingConfig.from_yaml(path)
    assert config.to_dict() == {**TrainingConfig().to_dict(), **{k: plain_number(v) for k, v in named.items()}}
    check_purpose(name, config)
    check_parts(path, config, corpus, tmp_path)

    little: dict[str, Any] = {"batch_size": 1, "max_seq_len": 16, "sampling_max_length": 4, "seed": 1}
    own = run(path, corpus, **little, max_steps=2, eval_batches=1, eval_cadence=None, runs_dir=tmp_path, listeners=[])
    assert own.status == "completed"
    assert own.newest_checkpoint is not None
    saved = architecture_of(own.newest_checkpoint)
    assert {field: saved[field] for field in ARCHITECTURE} == {field: getattr(config, field) for field in ARCHITECTURE}
    rates = [config.learning_rate * min(1.0, step / max(1, config.warmup_steps)) for step in (1, 2)]
    assert own.series("learning_rate")[1].tolist() == pytest.approx(rates)

    check_cadences(config, corpus, tmp_path)


def plain_number(value: Any) -> Any:
    """`3e-4` as the number that it is; PyYAML alone reads it as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def check_purpose(name: str, config: TrainingConfig) -> None:
    """An example is what its name says, measured against the defaults."""
    default = TrainingConfig()
    size = config.n_layers * config.d_model * (4 * config.d_model + 2 * config.d_ff)
    usual = default.n_layers * default.d_model * (4 * default.d_model + 2 * default.d_ff)
    if name == "default":
        assert config == default
    elif name == "small-model":
        assert size < usual / 4
    elif name == "large-model":
        assert size > usual * 4
    elif name == "fast-training":
        assert size < usual / 4
        assert config.max_steps <= default.max_steps / 10
        assert config.learning_rate > default.learning_rate
    else:
        assert config.eval_cadence is not None
        assert config.sampling_cadence is not None
        assert max(config.eval_cadence, config.sampling_cadence) <= 100
        assert config.checkpoint_cadence is not None
        assert config.checkpoint_cadence < 1000


def check_parts(path: Path, config: TrainingConfig, corpus: Path, runs_dir: Path) -> None:
    """What is built of the file as it stands, untrained: batches and optimizer have its values, and so has the Trainer."""
    trainer = build(path, corpus, runs_dir=runs_dir)
    assert trainer.config == config
    train, val = trainer.train_dataloader, trainer.val_dataloader
    assert train is not None
    assert val is not None
    windows = config.batch_size * config.gradient_accumulation_steps
    assert next(iter(train)).inputs_BT.shape == (windows, config.max_seq_len)
    assert (val.batch_size, val.dataset.max_seq_len) == (config.batch_size, config.max_seq_len)

    kinds = {"adamw": [torch.optim.AdamW], "muon": [torch.optim.Muon, torch.optim.AdamW]}[config.optimizer]
    made = parts(trainer.optimizer)
    assert [isinstance(part, kind) for part, kind in zip(made, kinds, strict=True)] == [True] * len(kinds)
    groups = [(part, group) for part in made for group in part.param_groups]
    assert {group["lr"] for _, group in groups} == {config.learning_rate}
    betas = {group["betas"] for part, group in groups if isinstance(part, torch.optim.AdamW)}
    assert betas == {(config.beta1, config.beta2)}
    decays = {(p.dim() >= 2, group["weight_decay"]) for _, group in groups for p in group["params"]}
    assert decays == {(True, config.weight_decay), (False, 0.0)}


def check_cadences(config: TrainingConfig, corpus: Path, runs_dir: Path) -> None:
    """A model of no size trained one step past the file's own checkpoint cadence keeps all the file's cadences, and
    evaluates on as many batches as the file says."""
    assert config.checkpoint_cadence is not None
    last = config.checkpoint_cadence + 1
    tiny = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_ff": 8, "max_seq_len": 8, "batch_size": 1, "seed": 1}
    short = config.updated(**tiny, sampling_max_length=1, max_steps=last)
    trainer = build(short, corpus, runs_dir=runs_dir, run_name="cadences", train_ratio=0.97)
    evaluate, evaluations = trainer.evaluate, list[Evaluation]()

    def watched() -> Evaluation:
        evaluations.append(evaluate())
        return evaluations[-1]

    trainer.evaluate = watched  # type: ignore[method-assign]
    trained = execute(trainer, [])
    assert [path.name for path in trained.checkpoints()] == [f"step-{last - 1:08d}", f"step-{last:08d}"]
    at = {kind: [event["step"] for event in read_log(trained.folder, kind)] for kind in ("eval", "sample")}
    assert at["eval"] == ([*range(0, last, config.eval_cadence), last] if config.eval_cadence else [])
    n_targets = trainer.facts["data"]["n_val"] - 1
    assert n_targets > 8 * (config.eval_batches or 0), "more than one evaluation takes"
    counted = n_targets if config.eval_batches is None else 8 * config.eval_batches  # batches of one window
    assert [evaluation.n_tokens for evaluation in evaluations] == [counted] * len(at["eval"])
    every = config.sampling_cadence
    assert at["sample"] == ([*range(every, last, every), last] if every else [last])
