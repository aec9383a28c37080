"""Keep the notebooks as git should see them: no outputs, one parameters cell, no logic, checks at the end.

`python tools/notebooks.py` takes outputs, counts and editors' traces out; `--check` writes nothing, names what is wrong,
and ends with exit status 1 if anything is.
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
IMPORTS = {"lmlab", "math", "pathlib"}
LOGIC = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While, ast.If, ast.Try)
KEPT_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def stripped(notebook: Any) -> Any:
    """The notebook without outputs, counts and what editors leave behind; tags and ids stay. Changes it in place."""
    notebook.metadata = nbformat.from_dict(KEPT_METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {})
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def written(notebook: Any) -> str:
    """A notebook as the text of its file."""
    return nbformat.writes(notebook) + "\n"


def problems(notebook: Any) -> list[str]:
    """What is wrong with a notebook's content; empty where nothing is."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    parameters = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    trees = [ast.parse(cell.source) for cell in code]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    found = []
    if parameters != code[:1]:
        found.append("the first code cell, and no other, has the tag `parameters`")
    elif not all(isinstance(node, ast.Assign) for node in trees[0].body):
        found.append("the parameters cell holds more than assignments")
    if not trees or not all(isinstance(node, ast.Assert) for node in trees[-1].body):
        found.append("the last code cell holds more than assertions")
    found += [
        f"{type(node).__name__} is logic, which belongs in the library" for node in nodes if isinstance(node, LOGIC)
    ]
    found += [f"imports {name}" for name in sorted(imported(nodes) - IMPORTS)]
    if not notebook.cells[0].source.startswith("# "):
        found.append("the first cell is no title")
    return found


def imported(nodes: list[ast.AST]) -> set[str]:
    """The packages that some code imports, by their first names; a name out of lmlab counts with its module."""
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}


def main(arguments: list[str] | None = None, folder: Path = FOLDER) -> int:
    """The exit status: 0 if all is well or was written, 1 if `--check` found something."""
    parser = argparse.ArgumentParser(description="Strip the notebooks' outputs and check their structure.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if something is wrong")
    check = parser.parse_args(arguments).check
    status = 0
    for path in sorted(folder.glob("*.ipynb")):
        before = path.read_text(encoding="utf-8")
        notebook = stripped(nbformat.reads(before, as_version=4))
        found = problems(notebook)
        if written(notebook) != before and check:
            found.append("has outputs or traces of an editor; run `python tools/notebooks.py`")
        elif written(notebook) != before:
            path.write_text(written(notebook), encoding="utf-8")
        for problem in found:
            print(f"{path.name}: {problem}")
        status |= bool(found)
    return status


if __name__ == "__main__":
    sys.exit(main())
