"""What is wrong with a value, in words that fit on one line. Imports no torch."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Mapping
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

LONGEST = 80
MOST_SHOWN = 3
WANTED = {
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "text",
    "tuple_type": "a list",
}
TRUE_WORDS = ("true", "yes", "on", "y")
FALSE_WORDS = ("false", "no", "off", "n")
NUMBERS = {"int_type": re.compile(r"[-+]?[0-9]+"), "float_type": re.compile(r"[-+]?[0-9]*\.?[0-9]+(e[-+]?[0-9]+)?")}
IN_THOUSANDS = re.compile(r"[-+]?[1-9][0-9]{0,2}(,[0-9]{3})+(\.[0-9]+)?")
DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+(e[-+]?[0-9]+)?")
BOUNDS = {"greater_than": "above", "greater_than_equal": "at least", "less_than": "below", "less_than_equal": "at most"}

# What nanoGPT, transformers and their readers call settings that have another name here.
ELSEWHERE = {
    "amp": "precision", "bf16": "precision", "block_size": "max_seq_len", "context_length": "max_seq_len",
    "dtype": "precision", "embed_dim": "d_model", "epochs": "max_steps", "eval_every": "eval_cadence",
    "eval_interval": "eval_cadence", "eval_steps": "eval_cadence", "ffn_dim": "d_ff", "fp16": "precision",
    "grad_accum": "gradient_accumulation_steps", "hidden_size": "d_model", "intermediate_size": "d_ff",
    "lr": "learning_rate", "max_grad_norm": "grad_clip", "max_position_embeddings": "max_seq_len", "model": "model_name",
    "n_ctx": "max_seq_len", "n_embd": "d_model", "n_inner": "d_ff", "n_positions": "max_seq_len",
    "num_train_epochs": "max_steps", "save_every": "checkpoint_cadence", "save_steps": "checkpoint_cadence",
    "wd": "weight_decay",
}  # fmt: skip


def escaped(text: str) -> str:
    """`text` on one line: control characters, line ends and lone surrogates are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, longest: int = LONGEST) -> str:
    """`text`, or its beginning and three dots where it has more than `longest` characters."""
    return text if len(text) <= longest else text[: longest - 3] + "..."


def shown(value: Any) -> str:
    """A value as a message quotes it: on one line, short, text in quotes, None as null."""
    if isinstance(value, str):
        return shortened(repr(value[: LONGEST + 1]))
    if isinstance(value, int) and value.bit_length() > 4000:
        return "a number of more than a thousand digits"
    try:
        return shortened(escaped(json.dumps(value, ensure_ascii=False)))
    except (TypeError, ValueError, RecursionError):
        return shortened(escaped(repr(value)))


def unknown_key(key: str, names: Collection[str]) -> str:
    """A key that is not there, and the one of `names` that was probably meant: by what others call it, or the nearest."""
    meant = ELSEWHERE.get(key.lower())
    nearest = meant if meant in names else difflib.get_close_matches(key[:LONGEST], names, n=1, cutoff=0.0)[0]
    return f"unknown key {shown(key)}; the nearest real one is {nearest}"


def in_one_line(problems: list[str]) -> str:
    """The first few of `problems` and the number of the others."""
    more = len(problems) - MOST_SHOWN
    return "; ".join(problems[:MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def describe(error: ValidationError, fields: Mapping[str, FieldInfo]) -> list[tuple[str, str]]:
    """Each problem that pydantic found: the key that it is about ("" where it is about several), and what it is."""
    problems = []
    for detail in error.errors(include_url=False):
        key = str(detail["loc"][0]) if detail["loc"] else ""
        if detail["type"] == "value_error":
            text = str(detail["ctx"]["error"])
        elif detail["type"] == "extra_forbidden":
            text = unknown_key(key, fields.keys())
        elif detail["type"] == "invalid_key":
            text = f"the key {shown(detail['input'])} is not a name"
        elif detail["type"] == "model_type":
            text = f"{shown(detail['input'])} is not a mapping of names to values"
        elif detail["input"] is None and len(detail["loc"]) == 1:
            text = f"{key} may not be null; leave it out for the default, {shown(fields[key].default)}"
        else:
            text = f"{_place(detail['loc'])}={shown(detail['input'])} {_complaint(detail, fields[key])}"
        problems.append((key, text))
    return problems


def head_problems(d_model: int, n_heads: int) -> list[str]:
    """What is wrong with cutting `d_model` into `n_heads` heads, with a number that works, if anything is."""
    if d_model % (2 * n_heads) == 0:
        return []
    works = [heads for heads in range(1, min(d_model // 2, 512) + 1) if d_model % (2 * heads) == 0]
    nearest_width = 2 * n_heads * max(1, round(d_model / (2 * n_heads)))
    advice = f"{min(works, key=lambda heads: (abs(heads - n_heads), -heads))}" if works else f"d_model={nearest_width}"
    if d_model % n_heads:
        return [f"n_heads={n_heads} does not divide d_model={d_model}; try {advice}"]
    width = d_model // n_heads
    problem = f"n_heads={n_heads} cuts d_model={d_model} into heads of width {width}"
    return [f"{problem}, and rotary positions need an even one; try {advice}"]


def _place(loc: tuple[int | str, ...]) -> str:
    return str(loc[0]) + "".join(f"[{part}]" for part in loc[1:] if isinstance(part, int))


def _complaint(detail: Any, field: FieldInfo) -> str:
    """What a value must be and is not. `detail` is one of pydantic's errors."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in WANTED:
        nullable = type(None) in get_args(field.annotation)
        return f"must be {WANTED[kind]}{' or null' if nullable else ''}{_hint(kind, value, nullable)}"
    if kind in BOUNDS:
        return f"must be {BOUNDS[kind]} {next(iter(context.values()))}"
    if kind == "literal_error":
        return f"must be one of {context['expected']}".replace("'", "")
    if kind == "finite_number":
        return "must be a finite number"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "string_too_long":
        return f"must have at most {context['max_length']} characters"
    if kind == "too_long":
        return f"must have at most {context['max_length']} items"
    if kind == "string_unicode":
        return "must be valid Unicode text"
    return f"is refused: {escaped(str(detail['msg']))}"


def _hint(kind: str, value: Any, nullable: bool) -> str:
    """How to write what was probably meant by a value of the wrong type, if that can be told."""
    word = value.lower() if isinstance(value, str) else ""
    if nullable and word in ("none", "off", "nil"):
        return "; write null"
    if kind == "bool_type" and (word in TRUE_WORDS + FALSE_WORDS or value in (0, 1)):
        return f"; write {'true' if word in TRUE_WORDS or value == 1 else 'false'}"
    bare = word.replace("_", "").strip()
    in_thousands = IN_THOUSANDS.fullmatch(bare)
    if kind == "float_type" and DECIMAL_COMMA.fullmatch(bare):  # 1,000 may be a thousand or one
        return "" if in_thousands else f"; write {shortened(bare.replace(',', '.'))}"
    bare = bare.replace(",", "") if in_thousands else bare
    if kind in ("int_type", "float_type") and NUMBERS[kind].fullmatch(bare):
        return f"; write {shortened(bare)} without quotes"
    if kind == "int_type" and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"; write {int(value)}"
    if kind == "string_type" and not isinstance(value, list | dict):
        return "; put it in quotes"
    if kind == "tuple_type" and word and len(value) < LONGEST:
        return f"; write [{escaped(value)}]"
    return ""
