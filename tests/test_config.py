"""Configurations: what they hold, how they are read and written, and the one clear line that each bad one gets."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmlab.config import GROUPS, TrainingConfig, group_fields, parse_override
from lmlab.errors import ConfigError, UsageError
from lmlab.places import find_file, find_models_dir, find_runs_dir, home

ROOT = Path(__file__).resolve().parent.parent
SPECIFIED = {
    "n_layers": 4, "d_model": 256, "n_heads": 4, "d_ff": 1024, "dropout": 0.1, "learning_rate": 3e-4,
    "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "batch_size": 16, "max_steps": 10000, "max_seq_len": 256,
    "train_ratio": 0.95, "eval_cadence": None, "sampling_cadence": None, "sampling_temperature": 1.0,
    "sampling_prompt": "The",
    "sampling_max_length": 100, "sampling_seed": 42, "checkpoint_cadence": 1000, "seed": None, "model_name": None,
}  # fmt: skip
BEYOND: dict[str, Any] = {
    "tokenizer_override": None, "resize_embeddings": False, "precision": "auto", "optimizer": "adamw",
    "lr_schedule": "constant", "lr_decay_steps": None, "warmup_steps": 0, "grad_clip": None,
    "gradient_accumulation_steps": 1, "eval_batches": None, "hooks": [], "compile": False,
    "activation_checkpointing": False, "early_stopping_patience": None, "keep_checkpoints": None,
    "sampling_top_k": None, "sampling_top_p": None, "parallel": "auto", "async_checkpoints": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LMLAB_HOME", raising=False)


def write(folder: Path, content: str | bytes, name: str = "some.yaml") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- fields -----------------------------------------------------------------------------------------------------


def test_the_fields_and_defaults_are_those_specified() -> None:
    assert TrainingConfig().to_dict() == SPECIFIED | BEYOND


def test_every_field_is_documented_in_one_group() -> None:
    grouped = [name for group in GROUPS for name in group_fields(group)]
    assert sorted(grouped) == sorted(TrainingConfig.model_fields)
    for name, field in TrainingConfig.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        about: Any = field.json_schema_extra
        assert about["reasonable_range"], name
        assert about["interactions"].endswith("."), name
        assert "|" not in field.description + about["reasonable_range"] + about["interactions"], "would break the table"


def test_a_config_is_frozen() -> None:
    with pytest.raises(ConfigError, match=r"a config does not change; make another one: config.updated\(n_layers=5\)"):
        TrainingConfig().n_layers = 5  # type: ignore[misc]


def test_importing_config_loads_no_torch() -> None:
    code = "import sys, lmlab.config; print(*sorted(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "numpy", "matplotlib"} & set(shown.split())


def test_a_whole_number_is_a_fine_float_and_equal_values_share_a_hash() -> None:
    config = TrainingConfig(learning_rate=3)
    assert isinstance(config.learning_rate, float)
    assert config.config_hash == TrainingConfig(learning_rate=3.0).config_hash


def test_a_negative_zero_is_a_zero() -> None:
    config = TrainingConfig(weight_decay=-0.0)
    assert str(config.weight_decay) == "0.0"
    assert config.config_hash == TrainingConfig(weight_decay=0.0).config_hash
    assert TrainingConfig().updated(dropout=-0.0).to_dict() == TrainingConfig(dropout=0.0).to_dict()


def test_integers_of_numpy_are_integers() -> None:
    configs = [TrainingConfig().updated(seed=seed, learning_rate=np.int32(1)) for seed in np.arange(2)]
    configs.append(TrainingConfig.from_dict({"seed": np.uint8(2)}))
    assert [config.seed for config in configs] == [0, 1, 2]
    assert all(type(config.seed) is int for config in configs)
    assert configs[1].config_hash == TrainingConfig(seed=1, learning_rate=1.0).config_hash
    for value in (np.bool_(True), np.float64(1.0), np.array([1])):
        with pytest.raises(ConfigError, match="must be a whole number"):
            TrainingConfig.from_dict({"seed": value})


def test_the_hash_does_not_depend_on_process_or_order_and_every_field_moves_it() -> None:
    code = "from lmlab.config import TrainingConfig; print(TrainingConfig().config_hash)"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    default = TrainingConfig()
    assert hashes == {default.config_hash}
    canonical = json.dumps(default.to_dict(), sort_keys=True, separators=(",", ":"))
    assert default.config_hash == hashlib.sha256(canonical.encode()).hexdigest()[:16]
    backwards = dict(reversed(default.to_dict().items()))
    assert TrainingConfig.from_dict(backwards).config_hash == default.config_hash
    other = {
        **{name: value * 2 for name, value in SPECIFIED.items() if isinstance(value, int)},
        "n_layers": 3, "dropout": 0.2, "learning_rate": 1e-3, "weight_decay": 0.2, "beta1": 0.8, "beta2": 0.9,
        "train_ratio": 0.9, "eval_cadence": 5, "sampling_cadence": 5, "sampling_temperature": 0.5,
        "sampling_prompt": "A", "seed": 1, "model_name": "tiny", "tokenizer_override": "char", "resize_embeddings": True,
        "precision": "fp32",
        "optimizer": "muon", "lr_schedule": "cosine", "lr_decay_steps": 9, "warmup_steps": 3, "grad_clip": 1.0,
        "gradient_accumulation_steps": 2, "eval_batches": 2, "hooks": ["weight_norms"], "compile": True,
        "activation_checkpointing": True, "keep_checkpoints": 2, "sampling_top_k": 3, "sampling_top_p": 0.5,
        "parallel": "ddp", "async_checkpoints": True,
    }  # fmt: skip
    assert set(other) == set(TrainingConfig.model_fields) - {"early_stopping_patience"}  # which does not go alone
    hashes = {default.updated(**{name: value}).config_hash for name, value in other.items()}
    assert len(hashes | {default.config_hash}) == len(other) + 1


@pytest.mark.parametrize(
    "values",
    [
        {"sampling_temperature": 0}, {"dropout": 0}, {"weight_decay": 0.0}, {"sampling_top_p": 1.0}, {"max_steps": 1},
        {"max_seq_len": 1}, {"seed": 2**63 - 1}, {"sampling_seed": 0}, {"checkpoint_cadence": None},
        {"d_model": 2, "n_heads": 1},
        {"warmup_steps": 100, "max_steps": 5}, {"hooks": ["activation_stats", "attention_entropy:50"]},
        {"early_stopping_patience": 3, "eval_cadence": 10}, {"lr_decay_steps": 11, "warmup_steps": 10},
    ],
    ids=str,
)  # fmt: skip
def test_values_at_the_edge_are_accepted(values: dict[str, Any]) -> None:
    config = TrainingConfig.from_dict(values)
    assert {name: config.to_dict()[name] for name in values} == values


# --- reading ----------------------------------------------------------------------------------------------------


def test_values_of_the_file_override_defaults_and_missing_ones_keep_them(tmp_path: Path) -> None:
    path = write(tmp_path, "n_layers: 2\nlearning_rate: 3e-3\nhooks:\n  - weight_norms\n")
    config = TrainingConfig.from_yaml(path)
    expected = SPECIFIED | BEYOND | {"n_layers": 2, "learning_rate": 3e-3, "hooks": ["weight_norms"]}
    assert config.to_dict() == expected


def test_an_old_config_with_only_the_early_fields_loads(tmp_path: Path) -> None:
    early = {
        "learning_rate": 3e-4, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "batch_size": 16, "max_seq_len": 256,
        "eval_cadence": None, "sampling_cadence": None, "sampling_temperature": 1.0, "sampling_prompt": "The",
        "sampling_max_length": 100, "sampling_seed": 42, "seed": None,
    }  # fmt: skip
    assert TrainingConfig.from_dict(early) == TrainingConfig()
    assert TrainingConfig.from_yaml(write(tmp_path, yaml.safe_dump(early))) == TrainingConfig()


@pytest.mark.parametrize("text", ["# nothing to say\n", "---\n", "{}", "\n# a\n\n# b", "--- # only this\n...\n"])
def test_a_file_of_comments_alone_is_all_defaults(tmp_path: Path, text: str) -> None:
    assert TrainingConfig.from_yaml(write(tmp_path, text)) == TrainingConfig()


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("learning_rate: 3e-4", 3e-4), ("learning_rate: 3E-4", 3e-4), ("learning_rate: .5", 0.5),
        ("learning_rate: 1.", 1.0),
        ("learning_rate: +1e-2", 0.01), ("max_steps: 0x10", 16), ("max_steps: 0o17", 15), ("max_steps: 010", 10),
        ("max_steps: +12", 12), ("seed: ~", None), ("seed:", None), ("seed: Null", None), ("compile: True", True),
        ("sampling_prompt: no", "no"), ("sampling_prompt: Off", "Off"), ("sampling_prompt: y", "y"),
        ("sampling_prompt: 2024-01-01", "2024-01-01"), ("sampling_prompt: 12:30:45", "12:30:45"),
        ("sampling_prompt: 1_000", "1_000"), ("sampling_prompt: '3'", "3"), ("sampling_prompt: \"a\\tb\"", "a\tb"),
        ("sampling_prompt: |\n  one\n  two\n", "one\ntwo\n"), ("sampling_prompt: =", "="),
        ("sampling_prompt: <<", "<<"),
        ("hooks: [a, 'b']", ("a", "b")),
    ],
)  # fmt: skip
def test_scalars_mean_what_yaml_1_2_says(tmp_path: Path, written: str, value: Any) -> None:
    config = TrainingConfig.from_yaml(write(tmp_path, written))
    read = getattr(config, written.partition(":")[0])
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("prefix", ["\ufeff", "%YAML 1.2\n---\n"])
def test_a_byte_order_mark_or_a_directive_does_no_harm(tmp_path: Path, prefix: str) -> None:
    assert TrainingConfig.from_yaml(write(tmp_path, prefix + "n_layers: 3\r\nd_ff: 8\r\n")).n_layers == 3


# --- from Python ------------------------------------------------------------------------------------------------


def test_from_dict_names_its_source() -> None:
    with pytest.raises(ConfigError, match=r"^state\.json: unknown key 'nlayers'; the nearest real one is n_layers$"):
        TrainingConfig.from_dict({"nlayers": 3}, source="state.json")
    with pytest.raises(ConfigError, match=r"^config: the key 5 is not a name$"):
        TrainingConfig.from_dict({5: 3})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"^config: \[3\] is not a mapping"):
        TrainingConfig.from_dict([3])  # type: ignore[arg-type]


def test_the_constructor_and_updated_raise_the_same_error_without_a_source() -> None:
    with pytest.raises(ConfigError, match=r"^n_heads=3 does not divide d_model=256; try 4$") as caught:
        TrainingConfig(n_heads=3)
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match=r"^max_steps=0 must be at least 1$"):
        TrainingConfig().updated(max_steps=0)
    with pytest.raises(ConfigError, match=r"^unknown key 'max_step'; the nearest real one is max_steps$"):
        TrainingConfig().updated(max_step=3)
    with pytest.raises(ConfigError, match="more than a thousand digits must be a number"):
        TrainingConfig(learning_rate=10**6000)


def test_updated_replaces_values_and_none_is_a_value() -> None:
    config = TrainingConfig(checkpoint_cadence=50, n_layers=2, hooks=("weight_norms",))
    changed = config.updated(checkpoint_cadence=None, max_steps=7)
    assert (changed.checkpoint_cadence, changed.max_steps, changed.n_layers) == (None, 7, 2)
    assert changed.hooks == ("weight_norms",)
    assert config.checkpoint_cadence == 50
    assert config.updated() == config


def test_a_change_to_the_dict_does_not_reach_the_config() -> None:
    config = TrainingConfig.from_dict({"hooks": ["weight_norms"]})
    config.to_dict()["hooks"].append("more")
    assert config.to_dict()["hooks"] == ["weight_norms"]
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


# --- writing ----------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
COUNT = st.integers(1, 10**6)
RATE = st.floats(1e-12, 50, allow_subnormal=False)
CONFIGS_TO_WRITE = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": RATE,
        "weight_decay": st.floats(0, 100),
        "dropout": st.floats(0, 1, exclude_max=True),
        "train_ratio": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "max_steps": COUNT,
        "checkpoint_cadence": st.none() | COUNT,
        "seed": st.none() | st.integers(0, 2**63 - 1),
        "grad_clip": st.none() | RATE,
        "sampling_prompt": TEXT,
        "model_name": st.none() | TEXT,
        "compile": st.booleans(),
        "hooks": st.lists(TEXT, unique=True, max_size=4),
        "lr_schedule": st.sampled_from(["constant", "cosine", "linear"]),
    },
)


@settings(max_examples=200, deadline=None)
@given(CONFIGS_TO_WRITE)
@example({"sampling_prompt": "a\nb\t\u2028\x85\ufeff\x00\U0001f600 é \"q\" 'q' # : - \\"})
@example({"sampling_prompt": "many words " * 30})
@example({"learning_rate": 5e-05, "weight_decay": 5e-324, "hooks": ["null", "- x", "a, b", "]"]})
def test_what_is_written_reads_back_exactly(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    config = TrainingConfig.from_dict(values)
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    config.to_yaml(path)
    again = TrainingConfig.from_yaml(path)
    assert again == config
    assert again.config_hash == config.config_hash
    assert path.read_bytes().count(b"\n") == 2 * len(TrainingConfig.model_fields) + 2 * len(GROUPS) + 1, "a line each"
    assert yaml.safe_load(path.read_bytes()) == config.to_dict(), "other programs read the same"


def test_a_written_config_explains_each_field_and_leaves_nothing_else_behind(tmp_path: Path) -> None:
    TrainingConfig(learning_rate=1e-5).to_yaml(tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    for name, field in TrainingConfig.model_fields.items():
        assert f"# {field.description}\n{name}: " in text
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


# --- --set and paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_steps=5", ("max_steps", 5)), ("learning_rate=3e-4", ("learning_rate", 3e-4)),
        ("seed=null", ("seed", None)),
        ("hooks=[a, b]", ("hooks", ["a", "b"])), ("hooks=[]", ("hooks", [])), ("compile=true", ("compile", True)),
        ("max_steps = 5", ("max_steps", 5)), ("optimizer=muon", ("optimizer", "muon")),
        ("sampling_prompt=Once upon", ("sampling_prompt", "Once upon")),
        ("sampling_prompt=5", ("sampling_prompt", "5")),
        ("sampling_prompt=a=b", ("sampling_prompt", "a=b")),
        ("sampling_prompt=He: no # x", ("sampling_prompt", "He: no # x")),
        ("sampling_prompt=[x", ("sampling_prompt", "[x")), ('sampling_prompt="a\\nb"', ("sampling_prompt", "a\nb")),
        ("sampling_prompt='Twas", ("sampling_prompt", "'Twas")), ("model_name=null", ("model_name", None)),
        ("model_name='null'", ("model_name", "null")),
    ],
)  # fmt: skip
def test_an_override_is_a_key_and_a_yaml_value(text: str, expected: tuple[str, Any]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_steps", "write KEY=VALUE, for example --set max_steps=100"), ("", "write KEY=VALUE"),
        ("max_step=5", "unknown key 'max_step'; the nearest real one is max_steps"), ("=5", "write KEY=VALUE"),
        ("seed=", "seed= has no value; write seed=null for none"), ("seed=#5", "there is no value"),
        ("max_steps=", "max_steps= has no value; give one, or leave it out"),
        ("hooks=[a", "cannot be read: not valid YAML"), ("hooks=[*a]", "an alias"), ("a\nb=5", r"unknown key 'a\nb'"),
    ],
)  # fmt: skip
def test_a_bad_override_gets_one_clear_line(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_override(text)
    assert str(caught.value).startswith("--set")
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


def test_an_override_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    config = TrainingConfig.from_yaml(write(tmp_path, "n_layers: 2\nmax_steps: 50\n"))
    config = config.updated(**dict([parse_override("max_steps=7")]))
    assert (config.max_steps, config.n_layers, config.d_model) == (7, 2, 256)


def test_paths_are_looked_up_here_then_in_the_project_and_home_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "project" / "notebooks" / "deep"
    inner.mkdir(parents=True)
    (tmp_path / "project" / "configs").mkdir()
    write(tmp_path / "project" / "configs", "n_layers: 2", "a.yaml")
    monkeypatch.chdir(inner)
    assert home() == tmp_path / "project"
    assert TrainingConfig.from_yaml("configs/a.yaml").n_layers == 2
    (inner / "configs").mkdir()
    write(inner / "configs", "n_layers: 3", "a.yaml")
    assert TrainingConfig.from_yaml("configs/a.yaml").n_layers == 3
    elsewhere = tmp_path / "elsewhere" / "configs"
    elsewhere.mkdir(parents=True)
    write(elsewhere, "n_layers: 5", "a.yaml")
    for find in (find_runs_dir, find_models_dir):  # the unset variable of a script
        with pytest.raises(UsageError, match="an empty path names nothing"):
            find("")
    monkeypatch.setenv("LMLAB_HOME", str(tmp_path / "elsewhere"))
    assert home() == tmp_path / "elsewhere"
    assert TrainingConfig.from_yaml("configs/a.yaml").n_layers == 5
    write(inner, "n_layers: 6", "only-here.yaml")
    assert TrainingConfig.from_yaml("only-here.yaml").n_layers == 6
    absolute = inner / "configs" / "a.yaml"
    assert find_file(absolute) == absolute
    assert find_file("nowhere.yaml") == Path("nowhere.yaml")


def test_what_nobody_named_stays_unnamed_in_an_updated_copy() -> None:
    config = TrainingConfig(d_model=64).updated(max_steps=5)
    assert config.model_fields_set == {"d_model", "max_steps"}
    assert config.updated(seed=None).model_fields_set == {"d_model", "max_steps", "seed"}


def test_what_a_run_drew_stands_beside_its_config(tmp_path: Path) -> None:
    TrainingConfig().to_yaml(tmp_path / "c.yaml", {"seed": "This run drew 17."})
    assert "# This run drew 17.\nseed: null\n" in (tmp_path / "c.yaml").read_text()
    assert TrainingConfig.from_yaml(tmp_path / "c.yaml") == TrainingConfig()
