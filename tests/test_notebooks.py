"""The notebooks' structure; nbmake runs them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = {
    "00_quickstart", "01_run_configs", "02_loss_curves", "03_compare_samples", "finetune_qwen",
    "05_interrupt_and_resume", "06_models", "07_dashboard", "08_inside_the_transformer", "09_floor",
}  # fmt: skip


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks_tool", ROOT / "tools" / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def a_notebook(
    *,
    title: str = "# Title",
    parameters: str = "STEPS = 3",
    body: str = "import lmlab as lab",
    end: str = "assert STEPS == 3",
):
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    return new_notebook(cells=[new_markdown_cell(title), first, new_code_cell(body), new_code_cell(end)])


def test_the_notebooks_are_there_and_as_git_should_see_them(tool: ModuleType, capsys: pytest.CaptureFixture[str]):
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == EXPECTED
    status = tool.main(["--check"])
    assert (status, capsys.readouterr().out) == (0, "")


def test_the_quickstart_makes_do_with_five_calls_of_the_library():
    notebook = nbformat.read(ROOT / "notebooks" / "00_quickstart.ipynb", as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert code.count("lab.") + code.count("run.plot(") + code.count("run.resume(") == 5


def test_the_readme_has_a_line_for_every_notebook():
    text = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    assert {name for name in EXPECTED if f"[`{name}`]({name}.ipynb)" in text} == EXPECTED


def test_a_sound_notebook_has_no_problems(tool: ModuleType):
    assert tool.problems(a_notebook()) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"body": "def f(): return 1"}, "FunctionDef is logic"),
        ({"body": "class A: pass"}, "ClassDef is logic"),
        ({"body": "for i in range(3): print(i)"}, "For is logic"),
        ({"body": "import os"}, "imports os"),
        ({"body": "from lmlab.trainer import Trainer"}, "imports lmlab.trainer"),
        ({"end": "print(STEPS)"}, "more than assertions"),
        ({"parameters": "STEPS = 3\nprint(STEPS)"}, "more than assignments"),
        ({"title": "no title"}, "no title"),
    ],
)
def test_each_problem_is_named(tool: ModuleType, change: dict[str, str], says: str):
    assert any(says in problem for problem in tool.problems(a_notebook(**change)))


def test_a_second_parameters_cell_or_none_is_a_problem(tool: ModuleType):
    none, two = a_notebook(), a_notebook()
    none.cells[1].metadata["tags"] = []
    two.cells[2].metadata["tags"] = ["parameters"]
    for notebook in (none, two):
        assert any("the tag `parameters`" in problem for problem in tool.problems(notebook))


def test_outputs_are_found_and_taken_out(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    notebook = a_notebook()
    notebook.cells[2].outputs = [new_output("stream", text="hello")]
    notebook.cells[2].execution_count = 7
    notebook.cells[2].metadata["scrolled"] = True
    path = tmp_path / "some.ipynb"
    nbformat.write(notebook, path)
    assert tool.main(["--check"], tmp_path) == 1
    assert "some.ipynb: has outputs" in capsys.readouterr().out
    assert "hello" in path.read_text()  # --check writes nothing
    assert tool.main([], tmp_path) == 0
    after = nbformat.read(path, as_version=4)
    assert after.cells[2].outputs == []
    assert after.cells[2].execution_count is None
    assert after.cells[2].metadata == {}
    assert after.cells[1].metadata["tags"] == ["parameters"]
    assert [cell.source for cell in after.cells] == [cell.source for cell in notebook.cells]
    assert tool.main(["--check"], tmp_path) == 0
