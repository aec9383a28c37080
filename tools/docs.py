"""Write what is generated from the fields of `TrainingConfig`: `configs/schema.json` and the tables of the README.

`python tools/docs.py` writes them; `python tools/docs.py --check` writes nothing, and ends with exit status 1 if one of
them is out of date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Literal, get_origin

from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lmlab import plain_yaml  # noqa: E402
from lmlab.config import GROUPS, TrainingConfig, group_fields  # noqa: E402
from lmlab.files import dump_json, write_atomic  # noqa: E402

BEGIN = "<!-- hyperparameters:begin -->"
END = "<!-- hyperparameters:end -->"


def hyperparameter_tables() -> str:
    """A Markdown table for each group of fields: name, default, reasonable range, description and interactions."""
    parts = []
    for group in GROUPS:
        rows = ["| name | default | reasonable range | description and interactions |", "| --- | --- | --- | --- |"]
        for name, field in group_fields(group).items():
            about: Any = field.json_schema_extra
            prose = f"{field.description} {about['interactions']}"
            rows.append(f"| `{name}` | `{written_default(field)}` | {about['reasonable_range']} | {prose} |")
        parts.append("\n".join([f"### {group}", "", *rows]))
    return "\n\n".join(parts) + "\n"


def written_default(field: FieldInfo) -> str:
    """A default as one writes it by hand: `3e-4`, `"The"`, `adamw`."""
    if isinstance(field.default, float) and 0 < field.default < 1e-3:
        return f"{field.default:e}".replace(".000000e-0", "e-")
    if get_origin(field.annotation) is Literal:
        return str(field.default)
    return plain_yaml.format_value(field.default)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config file, with which editors complete and check while one types."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TrainingConfig.model_json_schema()}


def with_tables(readme: str) -> str:
    """The README with the text between its two markers replaced by the tables. Raises ValueError without markers."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(END) < readme.index(BEGIN):
        raise ValueError(f"README.md must hold {BEGIN} and then {END}, each once")
    before, _, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{hyperparameter_tables()}{END}{after}"


def generated(root: Path) -> dict[Path, bytes]:
    """Each file that is generated, wholly or in part, and what it is to hold."""
    files = {root / "configs" / "schema.json": dump_json(json_schema())}
    readme = root / "README.md"
    if readme.exists():
        files[readme] = with_tables(readme.read_text(encoding="utf-8")).encode()
    return files


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """The exit status: 0 if all is up to date or was written, 1 if `--check` found a difference."""
    parser = argparse.ArgumentParser(description="Generate configs/schema.json and the README's hyperparameter tables.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a file is out of date")
    check = parser.parse_args(arguments).check
    files = generated(root)
    stale = {path: data for path, data in files.items() if not path.exists() or path.read_bytes() != data}
    for path, data in stale.items():
        print(f"{path.relative_to(root)}: {'out of date; run `python tools/docs.py`' if check else 'written'}")
        if not check:
            write_atomic(path, data)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
