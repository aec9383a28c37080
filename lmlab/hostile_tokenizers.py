"""Tokenizers that would have transformers run code, or read or write elsewhere: refused, or made harmless."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmlab.entries import CONFIG
from lmlab.errors import TokenizerError
from lmlab.files import read_object, stays_in

READ_BY_NAME = re.compile(r".*_(files?|spm|path|dir)|(.*_)?vocab|merges")  # settings that transformers opens as a file
NEVER_OPENED = ("name_or_path", "_name_or_path")  # where its author had it, written over when it is loaded
# Settings that transformers hands on to constructors and readers unseen, or that name another config to read.
GIVEN_ON = ("init_inputs", "gguf_file", "configuration_files")
SPECIAL_TOKENS_MAP = "special_tokens_map.json"  # all of it becomes arguments of the tokenizer
SPECIAL_TOKEN = re.compile(r"\w+_token|(additional|extra)_special_tokens")
TEMPLATES = "additional_chat_templates"  # the folder of those beside the usual one
TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def refuse_hostile(folder: Path) -> None:
    """Raise TokenizerError where a folder would have transformers run code, or read or write elsewhere."""
    refuse_links_away(folder)
    for path in (folder / CONFIG, folder / "tokenizer_config.json", folder / SPECIAL_TOKENS_MAP):
        values = read_object(path, TokenizerError) if path.exists() else {}
        if "auto_map" in values:
            raise TokenizerError(f"{path} names code of its own (auto_map), and none is run; use another tokenizer")
        for key in values if path.name == SPECIAL_TOKENS_MAP else ():
            if not SPECIAL_TOKEN.fullmatch(key):
                raise TokenizerError(f"{path} sets {key!r}, which is no special token; take it out")
        for key in GIVEN_ON:
            if values.get(key):
                raise TokenizerError(f"{path} sets {key}, with which a tokenizer can read any file; take it out")
        for key, value in reads_outside(values, folder, handed_on=path.name != CONFIG):
            raise TokenizerError(f"{path} reads {value!r}, which is not of its folder; take {key} out of it")
        for name, template in chat_templates(values.get("chat_template")):
            if not TEMPLATE_NAME.fullmatch(name):
                raise TokenizerError(
                    f"{path} has a chat template of the name {name!r}, which is no plain name; rename it"
                )
            if not isinstance(template, str):
                raise TokenizerError(f"{path} has a chat template {name!r} that is no text; take it out")


def refuse_links_away(folder: Path) -> None:
    """Raise TokenizerError where a file that could be a tokenizer's is a link out of its folder: saving would copy it."""
    for path in (*folder.iterdir(), *(folder / TEMPLATES).glob("*")):
        if path.suffix != ".safetensors" and path.exists() and not stays_in(folder, path):
            raise TokenizerError(
                f"{path} is a link to {path.resolve()}, outside of its folder; put the file itself there"
            )


def reads_outside(value: Any, folder: Path, key: str = "", *, handed_on: bool = True) -> Iterator[tuple[str, Any]]:
    """The settings, at every depth, that transformers could open as a file which is not of the folder, with their keys.

    handed_on: whether they become arguments of the tokenizer; those of the model's config do not.
    """
    opened = READ_BY_NAME.fullmatch(key) is not None and key not in NEVER_OPENED
    if isinstance(value, dict) and not opened:  # else a vocabulary, whose keys are tokens
        for name, item in value.items():
            yield from reads_outside(item, folder, name, handed_on=handed_on)
    elif isinstance(value, list):
        for item in value:
            if not isinstance(item, int):
                yield from reads_outside(item, folder, key, handed_on=handed_on)
    elif isinstance(value, str) and key not in NEVER_OPENED:
        if (opened or os.sep in value) and leads_outside(value, folder, folders=opened and handed_on):
            yield key, value
    elif (
        opened and handed_on and isinstance(value, int) and not isinstance(value, bool)
    ):  # opens what this process has open
        yield key, value


def without_paths(value: Any) -> Any:
    """A tokenizer's settings without those that transformers opens as a file; what it needs it finds by its usual name."""
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: item if READ_BY_NAME.fullmatch(key) else without_paths(item)
        for key, item in value.items()
        if key not in GIVEN_ON and not (READ_BY_NAME.fullmatch(key) and isinstance(item, str | int | list))
    }


def special_tokens(values: dict[str, Any]) -> dict[str, Any]:
    """What of a `special_tokens_map.json` names special tokens."""
    return {key: value for key, value in values.items() if SPECIAL_TOKEN.fullmatch(key)}


def leads_outside(value: str, folder: Path, *, folders: bool) -> bool:
    """Whether a text names a file (or a folder) that exists, seen from here or from `folder`, and is not in that.

    Paths of its author's machine name nothing.
    """
    try:
        named = [Path(path) for path in (value, f"{folder}{os.sep}{value}") if value and os.path.lexists(path)]
        return any((folders or not path.is_dir()) and not stays_in(folder, path) for path in named)
    except (OSError, ValueError, RuntimeError):  # no file can have this name, or a link leads in circles
        return False


def chat_templates(templates: Any) -> Iterator[tuple[str, Any]]:
    """A tokenizer's named chat templates; each name becomes that of a file where the tokenizer is saved."""
    if isinstance(templates, dict):
        yield from templates.items()
    for entry in templates if isinstance(templates, list) else ():
        if isinstance(entry, dict):
            yield str(entry.get("name")), entry.get("template")
