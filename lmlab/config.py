"""`TrainingConfig`: every setting of a run with its default, its limits and its description. Imports no torch.

The fields are the only source of defaults. Command-line help, the tables of the README and `configs/schema.json`
are made from them (`python tools/docs.py`).
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from lmlab import plain_yaml
from lmlab.errors import ConfigError
from lmlab.files import write_atomic
from lmlab.places import find_file
from lmlab.problems import describe, escaped, head_problems, in_one_line, shortened, shown, unknown_key

LARGEST_SEED = 2**63 - 1
MOST_STEPS = 10**9

MODEL = "Model architecture"
TRAINING = "Training"
DATASET = "Dataset"
EVALUATION = "Evaluation and sampling"
CHECKPOINTING = "Checkpointing"
OTHER = "Other"
GROUPS = (MODEL, TRAINING, DATASET, EVALUATION, CHECKPOINTING, OTHER)

ARCHITECTURE = ("n_layers", "d_model", "n_heads", "d_ff", "dropout")  # of the custom Transformer alone


def setting(
    default: Any, group: str, *, description: str, reasonable_range: str, interactions: str, **limits: Any
) -> Any:
    """A field of `TrainingConfig` with what its documentation says of it. `limits` are pydantic's: `ge`, `lt`, …"""
    about: dict[str, Any] = {"group": group, "reasonable_range": reasonable_range, "interactions": interactions}
    return Field(default, description=description, json_schema_extra=about, **limits)


def _tuple_from_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


HookName = Annotated[str, Field(min_length=1, max_length=200)]
HookNames = Annotated[tuple[HookName, ...], BeforeValidator(_tuple_from_list)]


class TrainingConfig(BaseModel):
    """The settings of one run. Frozen; every value is checked when it is made, and ConfigError says what is wrong.

    None means off, or "decide for me". Types are strict: a bool is no int, "5" is no number, but 3 is a fine float.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=(), title="TrainingConfig"
    )

    n_layers: int = setting(
        4, MODEL, ge=1, le=512, reasonable_range="2 to 24",
        description="Number of Transformer blocks, one after the other.",
        interactions="Time and memory grow in proportion. Ignored with `model_name`.",
    )  # fmt: skip
    d_model: int = setting(
        256, MODEL, ge=2, le=32768, reasonable_range="64 to 1024",
        description="Width of the vectors that flow through the model.",
        interactions=(
            "Must be divisible by `n_heads`, and `d_model / n_heads` must be even (rotary positions turn pairs)."
            " Parameters grow with its square. Ignored with `model_name`."
        ),
    )  # fmt: skip
    n_heads: int = setting(
        4, MODEL, ge=1, le=512, reasonable_range="2 to 16",
        description="Number of attention heads; each sees `d_model / n_heads` of the width.",
        interactions="Must divide `d_model` into heads of even width; 32 to 128 is usual. Ignored with `model_name`.",
    )  # fmt: skip
    d_ff: int = setting(
        1024, MODEL, ge=1, le=131072, reasonable_range="2 to 4 times `d_model`",
        description="Width of the feed-forward layer inside each block.",
        interactions="Usually `4 × d_model`: two thirds of a block's parameters. Ignored with `model_name`.",
    )  # fmt: skip
    dropout: float = setting(
        0.1, MODEL, ge=0, lt=1, reasonable_range="0.0 to 0.3",
        description="Share of activations set to zero while training (from 0.0, off, to below 1.0).",
        interactions="Helps when the text is read many times over. Applies to the custom model alone.",
    )  # fmt: skip
    model_name: str | None = setting(
        None, MODEL, min_length=1, max_length=200, reasonable_range="null or a name of `list-models`",
        description="Model of the registry (see `list-models`) to start from; null: the custom Transformer.",
        interactions="Its architecture wins: `n_layers`, `d_model`, `n_heads`, `d_ff`, `dropout` are ignored.",
    )  # fmt: skip

    learning_rate: float = setting(
        3e-4, TRAINING, gt=0, le=100, reasonable_range="1e-4 to 3e-3 from scratch, 1e-5 to 5e-5 fine-tuning",
        description="Step size of the optimizer, at its highest.",
        interactions="Smaller models and larger batches stand more. Shaped by `warmup_steps` and `lr_schedule`.",
    )  # fmt: skip
    weight_decay: float = setting(
        0.1, TRAINING, ge=0, le=100, reasonable_range="0.0 to 0.2",
        description="How strongly matrices are pulled towards zero (decoupled, as in AdamW).",
        interactions="Acts in proportion to the learning rate; vectors (norms, biases) are not decayed.",
    )  # fmt: skip
    beta1: float = setting(
        0.9, TRAINING, ge=0, lt=1, reasonable_range="0.85 to 0.95",
        description="Decay of AdamW's running mean of gradients.",
        interactions="Higher is smoother and slower to turn.",
    )  # fmt: skip
    beta2: float = setting(
        0.95, TRAINING, ge=0, lt=1, reasonable_range="0.9 to 0.999",
        description="Decay of AdamW's running mean of squared gradients.",
        interactions="Higher is steadier; with small batches, 0.99 to 0.999 often does better.",
    )  # fmt: skip
    batch_size: int = setting(
        16, TRAINING, ge=1, le=65536, reasonable_range="4 to 128",
        description="Windows in one micro-batch, counted over all processes.",
        interactions="Memory grows with it and `max_seq_len`; `gradient_accumulation_steps` multiplies it.",
    )  # fmt: skip
    max_steps: int = setting(
        10000, TRAINING, ge=1, le=MOST_STEPS, reasonable_range="100 to 100000",
        description="Updates to make, counted from the run's first.",
        interactions="`--max-steps` overrides it. The decay of `lr_schedule` ends here unless `lr_decay_steps` is set.",
    )  # fmt: skip
    optimizer: Literal["adamw", "muon"] = setting(
        "adamw", TRAINING, reasonable_range="`adamw`; `muon` to learn more per step",
        description="How gradients become updates: `adamw`, or `muon` for the matrices inside the blocks.",
        interactions="`muon` leaves embeddings, vectors and the stacked matrices of a mixture's experts to AdamW, to which "
        "alone `beta1` and `beta2` belong.",
    )  # fmt: skip
    lr_schedule: Literal["constant", "cosine", "linear"] = setting(
        "constant", TRAINING, reasonable_range="`cosine` for final results, `constant` for exploring",
        description="Course of the learning rate after the warmup: level, or down to a tenth of it.",
        interactions="Falls until `lr_decay_steps`; `constant` ignores that.",
    )  # fmt: skip
    lr_decay_steps: int | None = setting(
        None, TRAINING, ge=1, le=MOST_STEPS, reasonable_range="null, or `max_steps`",
        description="Step at which a falling learning rate ends; null: the `max_steps` of the first start, kept on resume.",
        interactions="Must be above `warmup_steps`. Unused with `lr_schedule: constant`.",
    )  # fmt: skip
    warmup_steps: int = setting(
        0, TRAINING, ge=0, le=MOST_STEPS, reasonable_range="0 to 10 % of `max_steps`",
        description="Updates over which the learning rate rises in a line from near zero.",
        interactions="A high `learning_rate` or a fine-tune wants some.",
    )  # fmt: skip
    grad_clip: float | None = setting(
        None, TRAINING, gt=0, le=1e6, reasonable_range="null, or 0.5 to 2.0",
        description="Largest norm of the whole gradient; a longer one is scaled down to it. null is off.",
        interactions="Measured after accumulation, over all parameters.",
    )  # fmt: skip
    gradient_accumulation_steps: int = setting(
        1, TRAINING, ge=1, le=65536, reasonable_range="1 to 32",
        description="Micro-batches whose gradients make one update.",
        interactions="Equal to a `batch_size` that many times larger but for the masks of `dropout`, in the memory of one "
        "micro-batch.",
    )  # fmt: skip
    early_stopping_patience: int | None = setting(
        None, TRAINING, ge=1, le=MOST_STEPS, reasonable_range="null, or 3 to 10",
        description="Evaluations in a row without a better validation loss after which the run ends, while one that is "
        "better than all checkpoints is saved. null is off.",
        interactions="Needs `eval_cadence`. Saves whatever `checkpoint_cadence` says, so that `checkpoints/best` is the "
        "best; `keep_checkpoints` limits the others.",
    )  # fmt: skip

    max_seq_len: int = setting(
        256, DATASET, ge=1, le=1048576, reasonable_range="64 to 2048",
        description="Tokens in one training window.",
        interactions="The training split needs more tokens than this. Attention's time grows with its square.",
    )  # fmt: skip
    train_ratio: float = setting(
        0.95, DATASET, gt=0, lt=1, reasonable_range="0.8 to 0.99",
        description="Share of the tokens used for training; the rest is for validation.",
        interactions="Two tokens of the rest are enough to evaluate on; few make a noisy estimate.",
    )  # fmt: skip
    tokenizer_override: str | None = setting(
        None, DATASET, min_length=1, max_length=4096, reasonable_range="null",
        description="Tokenizer to use in place of the model's own: `char`, a registry name, or a folder.",
        interactions="Its ids must fit the model's embedding, unless `resize_embeddings` is true.",
    )  # fmt: skip
    resize_embeddings: bool = setting(
        False, DATASET, reasonable_range="false",
        description="Whether a loaded model's embedding may be resized to the tokenizer's vocabulary.",
        interactions="Only matters with `model_name` and `tokenizer_override`; new rows start untrained.",
    )  # fmt: skip

    eval_cadence: int | None = setting(
        None, EVALUATION, ge=1, le=MOST_STEPS, reasonable_range="null, or 50 to 1000",
        description="Updates between evaluations on the validation split. null is off.",
        interactions="Also evaluates before the first update and after the last. Costs what `eval_batches` says.",
    )  # fmt: skip
    eval_batches: int | None = setting(
        None, EVALUATION, ge=1, le=MOST_STEPS, reasonable_range="null, or 10 to 200",
        description="Batches of the validation split in one evaluation; null is the whole split.",
        interactions="Fewer are quicker and less exact. Unused without `eval_cadence`.",
    )  # fmt: skip
    sampling_cadence: int | None = setting(
        None, EVALUATION, ge=1, le=MOST_STEPS, reasonable_range="null, or 50 to 1000",
        description="Updates between text samples. null is off, but for the sample at the end.",
        interactions="Each sample takes up to `sampling_max_length` passes through the model.",
    )  # fmt: skip
    sampling_temperature: float = setting(
        1.0, EVALUATION, ge=0, le=100, reasonable_range="0.7 to 1.2",
        description="How freely tokens are drawn; 0 always takes the likeliest.",
        interactions="With 0, `sampling_top_k`, `sampling_top_p` and `sampling_seed` have no effect.",
    )  # fmt: skip
    sampling_prompt: str = setting(
        "The", EVALUATION, min_length=1, max_length=10000, reasonable_range="a few words in the style of the data",
        description="Text that samples begin with.",
        interactions="A character tokenizer knows only the characters of its training text.",
    )  # fmt: skip
    sampling_max_length: int = setting(
        100, EVALUATION, ge=1, le=1000000, reasonable_range="50 to 500",
        description="Tokens that a sample adds to the prompt.",
        interactions=(
            "Beyond `max_seq_len`, the custom model's attention slides along. An imported model stops at its longest"
            " context, and any model at an end of text or of a turn."
        ),
    )  # fmt: skip
    sampling_seed: int = setting(
        42, EVALUATION, ge=0, le=LARGEST_SEED, reasonable_range="any whole number from 0",
        description="Seed of the draws of samples, apart from the training's.",
        interactions="The same weights, prompt and seed give the same sample.",
    )  # fmt: skip
    sampling_top_k: int | None = setting(
        None, EVALUATION, ge=1, le=10**7, reasonable_range="null, or 20 to 200",
        description="Draw only among this many likeliest tokens. null is off.",
        interactions="Applied before `sampling_top_p`.",
    )  # fmt: skip
    sampling_top_p: float | None = setting(
        None, EVALUATION, gt=0, le=1, reasonable_range="null, or 0.8 to 0.98",
        description="Draw only among the likeliest tokens that together hold this probability. null is off.",
        interactions="Applied after `sampling_temperature` and `sampling_top_k`.",
    )  # fmt: skip

    checkpoint_cadence: int | None = setting(
        1000, CHECKPOINTING, ge=1, le=MOST_STEPS, reasonable_range="100 to 5000",
        description="Updates between checkpoints. null is off, but for the checkpoint at the end.",
        interactions="A stopped run loses nothing; a killed one loses what came after its last checkpoint.",
    )  # fmt: skip
    keep_checkpoints: int | None = setting(
        None, CHECKPOINTING, ge=1, le=MOST_STEPS, reasonable_range="null, or 2 to 5",
        description="How many of the newest checkpoints are kept; null keeps all.",
        interactions="Each takes about three times the model's size. The best one is kept besides.",
    )  # fmt: skip
    async_checkpoints: bool = setting(
        False, CHECKPOINTING, reasonable_range="false; true where disks are slow and memory is plenty",
        description="Whether training waits only while a checkpoint's tensors are copied, and a thread writes them.",
        interactions="Takes the memory of one checkpoint. A killed run may lose the one that was being written.",
    )  # fmt: skip

    seed: int | None = setting(
        None, OTHER, ge=0, le=LARGEST_SEED, reasonable_range="null, or any whole number from 0",
        description="Seed of weights, data order and dropout; null draws one and logs it.",
        interactions="The same config, data, seed, device and threads give the same losses, bit for bit.",
    )  # fmt: skip
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", OTHER, reasonable_range="`auto`",
        description="Arithmetic of the forward and backward pass; weights stay float32.",
        interactions="`auto` is `bf16` where the machine is fast at it, else `fp32`.",
    )  # fmt: skip
    compile: bool = setting(
        False, OTHER, reasonable_range="false on a CPU, true for long runs on a GPU",
        description="Whether the model is compiled with `torch.compile`.",
        interactions="The first steps take a minute or more; every new shape compiles again.",
    )  # fmt: skip
    activation_checkpointing: bool = setting(
        False, OTHER, reasonable_range="false",
        description="Whether activations are computed again in the backward pass instead of kept.",
        interactions="Saves memory, most with many layers and long windows; a step takes about a third longer.",
    )  # fmt: skip
    parallel: Literal["auto", "ddp", "fsdp"] = setting(
        "auto", OTHER, reasonable_range="`auto`",
        description="How several processes share the work (under `torchrun`).",
        interactions="`auto` is `ddp`, or `fsdp` where the run does not fit one device. Unused by one process.",
    )  # fmt: skip
    hooks: HookNames = setting(
        (), OTHER, max_length=64, reasonable_range="[] or a few names",
        description="Research hooks that watch the run, each as `NAME` or `NAME:CADENCE`.",
        interactions="`activation_stats`, `attention_entropy`, `weight_norms`; each takes time and writes to the log.",
    )  # fmt: skip

    @field_validator("*", mode="before")
    @classmethod
    def _own_integer(cls, value: Any) -> Any:
        """Integers of other libraries, such as those of `np.arange`, as Python's own."""
        return operator.index(value) if isinstance(value, Integral) and not isinstance(value, int) else value

    @field_validator("*", mode="after")
    @classmethod
    def _unsigned_zero(cls, value: Any) -> Any:
        """-0.0 as 0.0: equal values, equal hash."""
        return 0.0 if isinstance(value, float) and value == 0 else value

    @model_validator(mode="after")
    def _check_together(self) -> TrainingConfig:
        """What no field can say alone. Several problems make one message."""
        problems = head_problems(self.d_model, self.n_heads)
        if self.early_stopping_patience is not None and self.eval_cadence is None:
            problems.append(f"early_stopping_patience={self.early_stopping_patience} needs an eval_cadence; set it too")
        if self.lr_decay_steps is not None and self.lr_decay_steps <= self.warmup_steps:
            value = f"lr_decay_steps={self.lr_decay_steps}"
            problems.append(f"{value} must be above warmup_steps={self.warmup_steps}; raise it, or lower warmup_steps")
        twice = sorted({name for name in self.hooks if self.hooks.count(name) > 1})
        if twice:
            problems.append(f"hooks names {shown(twice[0])} twice; name it once")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, handler: Any, info: ValidationInfo) -> Any:
        """Turns pydantic's report of many lines into a ConfigError of one, with file and lines where they are known."""
        try:
            return handler(values)
        except ValidationError as error:
            found = describe(error, cls.model_fields)
        context = info.context or {"source": "", "lines": {}}
        placed = sorted(((context["lines"].get(key, 0), text) for key, text in found), key=lambda pair: pair[0])
        texts = [f"line {line}: {text}" if line else text for line, text in placed]
        raise ConfigError((f"{context['source']}: " if context["source"] else "") + in_one_line(texts))

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises ConfigError: what a run was begun with does not change."""
        raise ConfigError(f"a config does not change; make another one: config.updated({name}={shown(value)})")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config") -> TrainingConfig:
        """A config from plain values; missing keys take their defaults. `source` is named in the ConfigError."""
        plain = dict(values) if isinstance(values, Mapping) else values
        return cls.model_validate(plain, context={"source": escaped(source), "lines": {}})

    def to_dict(self) -> dict[str, Any]:
        """Every field with its value, ready for JSON; `from_dict` turns it back."""
        return self.model_dump(mode="json")

    @classmethod
    def from_yaml(cls, path: Path | str) -> TrainingConfig:
        """The config in a YAML file, found by `find_file`. Raises ConfigError: one line, with file and line number."""
        path = find_file(path)
        source = escaped(str(path))
        try:
            values, lines = plain_yaml.read_file(path)
        except plain_yaml.PlainYamlError as error:
            place = f"{source}: line {error.line}" if error.line else source
            raise ConfigError(f"{place}: {shortened(escaped(str(error)), 200)}") from None
        return cls.model_validate(values, context={"source": source, "lines": lines})

    def to_yaml(self, path: Path | str, remarks: Mapping[str, str] | None = None) -> None:
        """Write every field with its description, so that `from_yaml` gives an equal config. Raises OSError.

        remarks: more to be said of a field, by name.
        """
        values = self.to_dict()
        lines = ["# A complete lmlab configuration."]
        for group in GROUPS:
            lines += ["", f"# --- {group}"]
            for name, field in group_fields(group).items():
                remark = [f"# {remarks[name]}"] if remarks and name in remarks else []
                lines += [f"# {field.description}", *remark, f"{name}: {plain_yaml.format_value(values[name])}"]
        write_atomic(path, ("\n".join(lines) + "\n").encode())

    def updated(self, /, **overrides: Any) -> TrainingConfig:
        """A checked copy with some values replaced; None is a value like any other. Raises ConfigError.

        What was left at its default counts as not named there, either: a resumed run keeps its own value of it.
        """
        return TrainingConfig(**{**self.model_dump(mode="json", exclude_unset=True), **overrides})

    @property
    def config_hash(self) -> str:
        """The first 16 hex digits of the sha256 of the canonical JSON of `to_dict()`: equal values, equal hash."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


ConfigLike = TrainingConfig | Mapping[str, Any] | str | Path | None


def read_config(config: ConfigLike = None, **overrides: Any) -> TrainingConfig:
    """A config from a file, plain values or nothing (the defaults), with `overrides` on top. Raises ConfigError."""
    if isinstance(config, str | Path):
        config = TrainingConfig.from_yaml(config)
    elif not isinstance(config, TrainingConfig):
        config = TrainingConfig.from_dict(config or {})
    return config.updated(**overrides) if overrides else config


def group_fields(group: str) -> dict[str, FieldInfo]:
    """The fields of one of GROUPS by name, in the order in which they are declared."""
    return {
        name: field
        for name, field in TrainingConfig.model_fields.items()
        if cast("dict[str, str]", field.json_schema_extra)["group"] == group
    }


def parse_override(text: str) -> tuple[str, Any]:
    """The field and value of a `--set KEY=VALUE`. VALUE is a YAML scalar or list, or plain text where text is wanted.

    Raises ConfigError for an unknown key or unreadable value; whether the value suits the field, `updated` checks.
    """
    key, equals, raw = text.partition("=")
    key, written = key.strip(), raw.strip()
    if not equals or not key:
        raise ConfigError(f"--set {shown(text)}: write KEY=VALUE, for example --set max_steps=100")
    if key not in TrainingConfig.model_fields:
        raise ConfigError(f"--set: {unknown_key(key, TrainingConfig.model_fields.keys())}")
    annotation = TrainingConfig.model_fields[key].annotation
    wants_text = str in (annotation, *get_args(annotation))
    if not written:
        advice = f"write {key}=null for none" if type(None) in get_args(annotation) else "give one, or leave it out"
        raise ConfigError(f"--set: {key}= has no value; {advice}")
    if wants_text and written[0] not in "\"'":  # as it stands, so that `He said: no # never` stays whole
        return key, None if plain_yaml.resolve(written) is None else raw
    try:
        return key, plain_yaml.read_value(written)
    except plain_yaml.PlainYamlError as error:
        if wants_text:  # `'Twas the night` only looks quoted
            return key, raw
        raise ConfigError(f"--set: {key}={shown(written)} cannot be read: {escaped(str(error))}") from None
