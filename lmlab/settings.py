"""The fields of `TrainingConfig` as a form asks for them: kind, limits, choices, meaning. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lmlab.config import GROUPS, TrainingConfig, group_fields

KINDS = {"integer": "int", "number": "float", "boolean": "bool", "string": "text", "array": "list"}
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?")


@dataclass(frozen=True)
class Setting:
    """One field. kind: `int`, `float`, `bool`, `text`, `list`, or `choice` among `choices`. optional: may be None, off.

    value: in the config asked about. suggested: what to begin with where it is off. least, most: the limits of a
    number; a float may have to be above `least`, which `TrainingConfig` checks.
    """

    name: str
    group: str
    kind: str
    optional: bool
    value: Any
    suggested: Any
    least: float | None
    most: float | None
    choices: tuple[str, ...]
    meaning: str
    interactions: str
    reasonable_range: str


def settings(config: TrainingConfig) -> list[Setting]:
    """Every field of a config, group by group, in the order in which they are declared."""
    properties = TrainingConfig.model_json_schema()["properties"]
    return [setting_of(config, name, group, properties[name]) for group in GROUPS for name in group_fields(group)]


def setting_of(config: TrainingConfig, name: str, group: str, schema: dict[str, Any]) -> Setting:
    """One field from its JSON schema."""
    variants = schema.get("anyOf", [schema])
    main = next(variant for variant in variants if variant.get("type") != "null")
    kind = "choice" if "enum" in main else KINDS[main["type"]]
    least = main.get("minimum", main.get("exclusiveMinimum"))
    value = getattr(config, name)
    about: Any = TrainingConfig.model_fields[name].json_schema_extra
    return Setting(
        name=name,
        group=group,
        kind=kind,
        optional=len(variants) > 1,
        value=list(value) if kind == "list" else value,
        suggested=value if value is not None else suggestion(kind, about["reasonable_range"], least),
        least=least,
        most=main.get("maximum", main.get("exclusiveMaximum")),
        choices=tuple(main.get("enum", ())),
        meaning=str(TrainingConfig.model_fields[name].description),
        interactions=about["interactions"],
        reasonable_range=about["reasonable_range"],
    )


def suggestion(kind: str, reasonable_range: str, least: float | None) -> Any:
    """What to begin with when a setting that is off is switched on: the first number of its reasonable range."""
    if kind not in ("int", "float"):
        return ""
    found = NUMBER.search(reasonable_range)
    number = float(found[0]) if found else float(least or 1)
    return int(number) if kind == "int" else number
