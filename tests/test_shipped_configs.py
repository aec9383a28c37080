"""The configurations in `configs/`, and what is generated from the fields: the schema and the README's tables."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml

from lmlab.config import TrainingConfig
from lmlab.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
SHIPPED = (
    "custom-transformer", "default", "detailed-eval", "fast-training", "large-model", "quick-text", "qwen-base",
    "qwen-finetuned", "small-model",
)  # fmt: skip
SPECIFIED = {
    "n_layers",
    "d_model",
    "n_heads",
    "d_ff",
    "dropout",
    "learning_rate",
    "weight_decay",
    "beta1",
    "beta2",
    "batch_size",
    "max_steps",
    "max_seq_len",
    "train_ratio",
    "eval_cadence",
    "sampling_cadence",
    "sampling_temperature",
    "sampling_prompt",
    "sampling_max_length",
    "sampling_seed",
    "checkpoint_cadence",
    "seed",
    "model_name",
}


def shipped(name: str) -> TrainingConfig:
    return TrainingConfig.from_yaml(CONFIGS / f"{name}.yaml")


def named_keys(name: str) -> set[str]:
    return set(yaml.safe_load((CONFIGS / f"{name}.yaml").read_bytes()))


def block_parameters(config: TrainingConfig) -> int:
    """Weights of the matrices in the custom Transformer's blocks."""
    return config.n_layers * (4 * config.d_model**2 + 2 * config.d_model * config.d_ff)


def test_the_shipped_configs_are_the_ones_listed_and_the_readme_names_each() -> None:
    assert tuple(sorted(path.stem for path in CONFIGS.glob("*.yaml"))) == SHIPPED
    readme = (CONFIGS / "README.md").read_text(encoding="utf-8")
    for name in SHIPPED:
        assert f"[{name}.yaml]({name}.yaml)" in readme


def test_the_examples_of_the_readme_are_what_they_say(tmp_path: Path) -> None:
    readme = (CONFIGS / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    path = tmp_path / "my-config.yaml"
    path.write_text(example)
    assert TrainingConfig.from_yaml(path).to_dict() == TrainingConfig().to_dict() | yaml.safe_load(example)
    (errors,) = re.findall(r"```text\n(.*?)```", readme, re.DOTALL)
    for text, shown in zip(("d_ff: 8\nn_layer: 2\n", "n_heads: 3\n"), errors.splitlines(), strict=True):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            TrainingConfig.from_yaml(path)
        assert str(caught.value).replace(str(path), "my-config.yaml") == shown


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_is_valid_and_explains_model_name_and_model_id(name: str) -> None:
    config = shipped(name)
    comments = [
        line for line in (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines() if line.startswith("#")
    ]
    assert any(line.startswith("# model_name:") for line in comments)
    assert any(line.startswith("# model_id:") for line in comments)
    assert config.lr_decay_steps is None
    assert config.warmup_steps < config.max_steps
    schema = json.loads((CONFIGS / "schema.json").read_bytes())
    jsonschema.validate({key: config.to_dict()[key] for key in named_keys(name)}, schema)


def test_default_states_every_specified_field_at_its_default() -> None:
    assert named_keys("default") == set(SPECIFIED)
    assert shipped("default") == TrainingConfig()


def test_the_small_and_the_large_model_are_what_they_are_called() -> None:
    small, default, large = shipped("small-model"), TrainingConfig(), shipped("large-model")
    assert (small.n_layers, small.d_model, small.n_heads, small.d_ff) == (2, 128, 4, 512)
    assert (large.n_layers, large.d_model, large.n_heads, large.d_ff) == (8, 512, 8, 2048)
    assert block_parameters(default) / block_parameters(small) == 8  # as their comments say
    assert block_parameters(large) / block_parameters(default) == 8
    assert large.batch_size * large.gradient_accumulation_steps == 16


def test_fast_training_is_short_and_small_and_detailed_eval_looks_often() -> None:
    fast, detailed = shipped("fast-training"), shipped("detailed-eval")
    assert fast.max_steps <= 500
    assert fast.learning_rate > TrainingConfig().learning_rate
    assert block_parameters(fast) < block_parameters(TrainingConfig())
    assert (detailed.eval_cadence, detailed.sampling_cadence, detailed.eval_batches) == (50, 50, None)
    assert block_parameters(detailed) == block_parameters(TrainingConfig())


def test_the_custom_transformer_names_its_architecture() -> None:
    assert {"model_name", "n_layers", "d_model", "n_heads", "d_ff", "dropout"} <= named_keys("custom-transformer")
    assert shipped("custom-transformer").model_name is None


def test_the_qwen_configs_name_their_models_and_say_how_they_were_made() -> None:
    base, tuned = shipped("qwen-base"), shipped("qwen-finetuned")
    assert (base.model_name, tuned.model_name) == ("qwen-0.5b-base", "qwen-0.5b-stories")
    text = (CONFIGS / "qwen-base.yaml").read_text(encoding="utf-8")
    assert "python main.py import-model Qwen/Qwen2.5-0.5B --name qwen-0.5b-base\n" in text
    text = (CONFIGS / "qwen-finetuned.yaml").read_text(encoding="utf-8")
    assert f"checkpoints/step-{base.max_steps:08d} --name qwen-0.5b-stories\n" in text
    for config in (base, tuned):
        assert config.learning_rate <= 2e-5
        assert (config.lr_schedule, config.grad_clip, config.batch_size, config.max_seq_len) == ("cosine", 1.0, 2, 256)
        assert config.warmup_steps > 0


# --- what is generated ------------------------------------------------------------------------------------------


@pytest.fixture(name="docs")
def _docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs", ROOT / "tools" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_schema_and_tables_are_up_to_date(docs: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.main(["--check"]) == 0, capsys.readouterr().out


def test_check_finds_what_is_out_of_date_and_a_run_mends_it(docs: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{docs.BEGIN}\nold\n{docs.END}\nafter\n")
    assert docs.main(["--check"], root=tmp_path) == 1
    assert "old" in readme.read_text()
    assert docs.main([], root=tmp_path) == 0
    assert docs.main(["--check"], root=tmp_path) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{docs.BEGIN}\n### Model architecture\n")
    assert text.endswith(f"{docs.END}\nafter\n")
    readme.write_text(text.replace("`3e-4`", "`4e-4`"), encoding="utf-8")
    assert docs.main(["--check"], root=tmp_path) == 1
    with pytest.raises(ValueError, match="each once"):
        docs.with_tables("no markers")


def test_the_tables_hold_every_field_once_with_its_default(docs: ModuleType) -> None:
    rows = [line.split(" | ") for line in docs.hyperparameter_tables().splitlines() if line.startswith("| `")]
    written = {cells[0].strip("| `"): cells[1].strip("`") for cells in rows}
    assert len(rows) == len(written) == len(TrainingConfig.model_fields)
    assert all(len(cells) == 4 for cells in rows)
    assert {name: yaml_value(text) for name, text in written.items()} == TrainingConfig().to_dict()
    assert (written["learning_rate"], written["sampling_prompt"], written["seed"]) == ("3e-4", '"The"', "null")


def yaml_value(text: str) -> Any:
    return float(text) if "e-" in text else yaml.safe_load(text)


def test_the_schema_refuses_what_the_config_refuses(docs: ModuleType) -> None:
    schema = docs.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for good in ({}, {"seed": None}, {"hooks": ["a"]}, TrainingConfig().to_dict()):
        assert validator.is_valid(good)
    for bad in ({"n_layer": 2}, {"n_layers": 0}, {"n_layers": "2"}, {"max_steps": None}, {"optimizer": "sgd"}):
        assert not validator.is_valid(bad)
        with pytest.raises(ConfigError):
            TrainingConfig.from_dict(bad)
