"""The small, unsurprising part of YAML that a configuration needs: a mapping of names to scalars and lists.

PyYAML scans the text; the values are built here, from its events. Scalars follow the YAML 1.2 core schema, so that
`3e-4` is a number, `no` and `2024-01-01` are text, and only `true` and `false` are truth values. What makes YAML
dangerous or ambiguous is refused: anchors and aliases, tags, duplicate keys, keys that are no text, several documents,
deep nesting.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEEPEST = 4
LARGEST_FILE = 64 * 1024
NULL = re.compile(r"(?:~|null|Null|NULL)?")
TRUE = re.compile(r"true|True|TRUE")
FALSE = re.compile(r"false|False|FALSE")
INTEGER = re.compile(r"[-+]?[0-9]+")
OCTAL = re.compile(r"0o[0-7]+")
HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
INFINITY = re.compile(r"[-+]?\.(?:inf|Inf|INF)")
NOT_A_NUMBER = re.compile(r"\.(?:nan|NaN|NAN)")
LONGEST_NUMBER = 400


class PlainYamlError(ValueError):
    """Text that is not YAML, or YAML beyond the plain part. `line` counts from 1, None where it is not known."""

    def __init__(self, problem: str, line: int | None = None):
        super().__init__(problem)
        self.line = line


def read_mapping(text: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping at the top of `text`, and the line of each of its keys. Comments alone are an empty mapping.

    Raises PlainYamlError.
    """
    lines: dict[str, int] = {}
    value = _read_document(text, lines)
    if value is None:
        return {}, lines
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "a single value"
        raise PlainYamlError(f"holds {kind} where lines of the form `key: value` are expected")
    return value, lines


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """`read_mapping` of a UTF-8 file of at most 64 KB. Raises PlainYamlError, also where the file cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise PlainYamlError("no such file; check the path, or see configs/README.md for what is there") from None
    except IsADirectoryError:
        raise PlainYamlError("is a folder; name a YAML file in it") from None
    except OSError as error:
        raise PlainYamlError(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise PlainYamlError("no file can have this name") from None
    if len(data) > LARGEST_FILE:
        raise PlainYamlError("is larger than 64 KB; a config is a few lines of `key: value`")
    if b"\0" in data:
        raise PlainYamlError(f"is a binary file (byte {data.index(0)} is null); a config is YAML text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PlainYamlError(f"is not UTF-8 (byte {error.start}); save it as UTF-8 text") from None
    if not text.strip():
        raise PlainYamlError("is empty; for all defaults, write a comment that says so")
    return read_mapping(text)


def read_value(text: str) -> Any:
    """The scalar, list or mapping that `text` stands for. Raises PlainYamlError."""
    if not text.strip() or text.lstrip().startswith("#"):
        raise PlainYamlError("there is no value")
    return _read_document(text, {})


def format_value(value: Any) -> str:
    """`value` (None, bool, int, float, str, or a list of these) on one line that `read_value` turns back exactly."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        mantissa, exponent, power = repr(value).partition("e")
        return mantissa + (".0" if exponent and "." not in mantissa else "") + exponent + power
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return str(yaml.safe_dump(value, default_style='"', allow_unicode=True, width=math.inf)).rstrip("\n")
    return "[" + ", ".join(format_value(item) for item in value) + "]"


def resolve(text: str, line: int | None = None) -> Any:
    """What a plain (unquoted) scalar means in the YAML 1.2 core schema. Raises PlainYamlError for endless numbers."""
    if NULL.fullmatch(text):
        return None
    if TRUE.fullmatch(text):
        return True
    if FALSE.fullmatch(text):
        return False
    if NOT_A_NUMBER.fullmatch(text):
        return math.nan
    if INFINITY.fullmatch(text):
        return -math.inf if text.startswith("-") else math.inf
    for pattern, base in ((INTEGER, 10), (OCTAL, 8), (HEXADECIMAL, 16)):
        if pattern.fullmatch(text):
            if len(text) > LONGEST_NUMBER:
                raise PlainYamlError(f"a number of {len(text)} digits", line)
            return int(text if base == 10 else text[2:], base)
    return float(text) if FLOAT.fullmatch(text) else text


def _read_document(text: str, lines: dict[str, int]) -> Any:
    """The one document in `text`, None where there is none. `lines` is filled with the lines of the outermost keys."""
    events = _events(text)
    next(events)  # the start of the stream
    if isinstance(next(events), yaml.StreamEndEvent):
        return None
    value = _read(next(events), events, depth=0, lines=lines)
    next(events)  # the end of the document
    following = next(events)
    if not isinstance(following, yaml.StreamEndEvent):
        raise PlainYamlError("a second document (`---`) begins here; a config is one document", _line(following))
    return value


def _events(text: str) -> Iterator[yaml.Event]:
    """PyYAML's parse of `text`, its errors turned into PlainYamlError."""
    try:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "it cannot be parsed"
        if "'\\t'" in problem:
            problem = "a tab where YAML wants spaces"
        elif problem == "mapping values are not allowed here":
            problem = "a `:` where no key can be (is the line indented, or a text with `: ` not quoted?)"
        raise PlainYamlError(f"not valid YAML: {problem}", mark.line + 1 if mark else None) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise PlainYamlError(f"not valid YAML: the character U+{ord(text[error.position]):04X}", line) from None
    except (ValueError, OverflowError):  # PyYAML lets out what chr() and int() say of escapes and directives
        raise PlainYamlError("not valid YAML: a number in an escape or directive is out of range") from None


def _line(event: yaml.Event) -> int | None:
    return event.start_mark.line + 1 if event.start_mark else None


def _read(event: yaml.Event, events: Iterator[yaml.Event], depth: int, lines: dict[str, int]) -> Any:
    """The value that begins with `event`; what belongs to it is taken from `events`."""
    if isinstance(event, yaml.AliasEvent):
        raise PlainYamlError("an alias (`*name`) is not allowed; write the value out", _line(event))
    assert isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent))
    if event.anchor is not None:
        raise PlainYamlError("an anchor (`&name`) is not allowed; quote a text that begins with `&`", _line(event))
    if event.tag is not None:
        raise PlainYamlError("a tag (`!name`) is not allowed; quote a text that begins with `!`", _line(event))
    if isinstance(event, yaml.ScalarEvent):
        return resolve(event.value, _line(event)) if event.implicit[0] else event.value
    if depth >= DEEPEST:
        raise PlainYamlError(f"nested more than {DEEPEST} levels deep", _line(event))
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_read(event, events, depth + 1, {}))
        return items
    return _read_entries(events, depth, lines)


def _read_entries(events: Iterator[yaml.Event], depth: int, lines: dict[str, int]) -> dict[str, Any]:
    """The entries of a mapping up to its end. `lines` is filled with the line of each key."""
    entries: dict[str, Any] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _read(event, events, depth=DEEPEST, lines={})
        if not isinstance(key, str):
            raise PlainYamlError(f"the key {format_value(key)} is not a name", _line(event))
        if key in entries:
            first = f", first in line {lines[key]}" if key in lines else ""
            raise PlainYamlError(f"the key {key!r} stands twice{first}", _line(event))
        lines[key] = _line(event) or 0
        entries[key] = _read(next(events), events, depth + 1, {})
    return entries
