"""Requirement: Configuration Loading."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from workbench import ARCHITECTURE, ROOT, SPECIFIED_DEFAULTS, STRAIGHT, TUNING, Lab, Session, architecture_of

from lmlab import LabError, TrainingConfig

EXAMPLES = {
    "custom-transformer": None,
    "qwen-base": "qwen-0.5b-base",
    "qwen-finetuned": "qwen-0.5b-stories",
}


def test_load_configuration_from_yaml_file(straight: Session, straight_config: Path) -> None:
    """WHEN main.py is invoked with --config THEN the YAML becomes a TrainingConfig whose values override the defaults,
    and which has model_name and all existing hyperparameters."""
    written = yaml.safe_load(straight_config.read_text(encoding="utf-8"))
    assert written == STRAIGHT
    assert straight.start["config"] == {**TrainingConfig().to_dict(), **written}
    saved = architecture_of(straight.lab.checkpoint("straight", 12))
    assert {name: saved[name] for name in ARCHITECTURE} == {name: STRAIGHT[name] for name in ARCHITECTURE}
    assert TrainingConfig.from_yaml(straight_config).to_dict() == straight.start["config"]
    assert "model_name" in TrainingConfig.model_fields
    assert SPECIFIED_DEFAULTS.keys() <= TrainingConfig.model_fields.keys()


def test_use_default_configuration(defaults: Session) -> None:
    """WHEN main.py is invoked without --config THEN the default TrainingConfig is used, model_name is None (the custom
    Transformer), and training proceeds with sensible defaults."""
    assert defaults.start["config"] == {**TrainingConfig().to_dict(), "max_steps": 2}
    named = {name: defaults.start["config"][name] for name in SPECIFIED_DEFAULTS}
    assert named == {**SPECIFIED_DEFAULTS, "max_steps": 2}
    assert defaults.start["config"]["model_name"] is None
    assert defaults.start["model"]["architecture_type"] == "custom-transformer"
    n_characters = int(defaults.start["tokenizer"].split("-")[1])
    assert abs(defaults.losses[1] - math.log(n_characters)) < 0.5, "an untrained model should know nothing"
    assert defaults.losses[2] < defaults.losses[1]
    assert [event["status"] for event in defaults.of("run_end")] == ["completed"]


def test_load_configuration_with_model_name(tuned: Session) -> None:
    """WHEN the YAML has model_name: "qwen-0.5b-base" THEN TrainingConfig.model_name is that, the model is loaded from
    the registry, and its architecture takes precedence over the config's."""
    path = tuned.lab.folder / "tuning.yaml"
    assert 'model_name: "qwen-0.5b-base"' in path.read_text(encoding="utf-8")
    assert TrainingConfig.from_yaml(path).model_name == "qwen-0.5b-base"
    assert tuned.start["model"]["model_name"] == "qwen-0.5b-base"
    own = architecture_of(tuned.lab.models / "qwen-0.5b-base")
    trained = architecture_of(tuned.lab.checkpoint("tuned", 12))
    for name in ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"):
        assert trained[name] == own[name]
    assert own["num_hidden_layers"] != TUNING["n_layers"]
    assert own["hidden_size"] != TUNING["d_model"]
    (warning,) = [e["message"] for e in tuned.of("warning") if "architecture" in e["message"]]
    assert "n_layers" in warning
    assert "d_model" in warning


def test_command_line_argument_overrides(interrupted: Session) -> None:
    """WHEN main.py is invoked with --max-steps N THEN it overrides the config, and training runs for exactly N steps."""
    assert STRAIGHT["max_steps"] == 12
    assert interrupted.start["config"] == {**TrainingConfig().to_dict(), **STRAIGHT, "max_steps": 7}
    assert interrupted.steps == [1, 2, 3, 4, 5, 6, 7]
    assert [event["status"] for event in interrupted.of("run_end")] == ["completed"]


def test_trainingconfig_serialization_includes_model_name() -> None:
    """WHEN TrainingConfig.to_dict() is called THEN it includes model_name, which can be None."""
    assert TrainingConfig().to_dict()["model_name"] is None
    named = TrainingConfig(model_name="qwen-0.5b-base")
    assert named.to_dict()["model_name"] == "qwen-0.5b-base"
    for config in (TrainingConfig(), named):
        assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_configs_for_different_models(name: str, own_lab: Lab) -> None:
    """WHEN users examine configs/ THEN there are configs for a custom architecture, an imported Qwen base model and a
    fine-tuned variant, each with comments that explain model_id."""
    path = ROOT / "configs" / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(text)
    config = TrainingConfig.from_yaml(path)
    assert config.model_name == values["model_name"] == EXAMPLES[name]
    own_architecture = {key for key in ARCHITECTURE if key in values}
    assert own_architecture == (set(ARCHITECTURE) if name == "custom-transformer" else set())

    comments = [line.partition("#")[2] for line in text.splitlines() if "#" in line]
    first = next(i for i, line in enumerate(comments) if line.strip().startswith("model_id:"))
    explanation = " ".join(comments[first : first + 3])
    assert "Qwen/Qwen2.5-0.5B" in explanation
    assert "not a config key" in " ".join(explanation.split())
    assert any(line.strip().startswith("model_name:") for line in comments)

    wrong = own_lab.config("wrong", **values, model_id="Qwen/Qwen2.5-0.5B")
    with pytest.raises(LabError, match="model_id"):
        TrainingConfig.from_yaml(wrong)
