"""The hub's token reaches the hub, and nothing else: no file, no output and no notebook holds it in any spelling."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import tiny_models
from hub_server import HubServer
from nbclient import NotebookClient

pytestmark = pytest.mark.endurance
ROOT = Path(__file__).resolve().parents[2]
CANARY = "hf_c4n4ry/+7531=QzXvBnMkLp"
SPELLINGS = {
    CANARY, CANARY[3:], urllib.parse.quote(CANARY, safe=""), CANARY.encode().hex(), repr(CANARY)[1:-1],
    *(base64.b64encode((b" " * shift) + CANARY.encode())[4 * (shift > 0) : -4].decode() for shift in range(3)),
}  # fmt: skip


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A hub with an open model, one behind the canary, and one that nobody may have."""
    folder = tiny_models.make(tmp_path_factory.mktemp("published") / "qwen")
    with HubServer() as server:
        for name in ("Open/model", "Gated/model", "Closed/model"):
            server.add(name, folder)
        server.repositories["Gated/model"].gated = True
        server.repositories["Gated/model"].token = CANARY
        server.repositories["Closed/model"].private = True
        yield server


CELLS = """
import lmlab as lab
from lmlab.hub import import_model
entry = import_model("Gated/model", name="by-notebook")
entry
---
run = lab.finetune("by-notebook", "text.txt", "tuned-here", config="tiny.yaml", max_steps=3)
run
---
lab.runs()
---
lab.models()
---
import_model("Closed/model")
"""


def test_nothing_that_is_written_or_said_holds_the_token(
    hub: HubServer, tiny_yaml: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_bytes(corpus.read_bytes())
    (tmp_path / "home").mkdir()
    for name, value in {
        "HF_TOKEN": CANARY, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HOME": str(tmp_path / "home"),
        "HF_HOME": str(tmp_path / "home" / "hf"), "LMLAB_DEBUG": "1", "HF_HUB_VERBOSITY": "debug", "HF_DEBUG": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    said: list[str] = []

    def main(*arguments: object, status: int = 0, **environment: str) -> None:
        done = subprocess.run(
            [sys.executable, str(ROOT / "main.py"), *map(str, arguments)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=600,
        )
        said.extend([done.stdout, done.stderr])
        assert done.returncode == status, done.stderr

    main("import-model", "Gated/model", "--name", "gated", "--yes")
    hub.cut["model.safetensors"] = 1000
    main("import-model", "Open/model", "--name", "open", "--yes")
    main("import-model", "Closed/model", "--yes", status=1)
    main("import-model", "Open/model", "--name", "x", "--yes", status=1, HF_ENDPOINT="http://127.0.0.1:9")
    hub.store_broken = 500
    main("import-model", "Open/model", "--name", "broken", "--yes", status=1)
    hub.store_broken = None
    settings = ("--config", tiny_yaml, "--data", corpus)
    main(*settings, "--run-name", "plain", "--max-steps", "3")
    main(*settings, "--run-name", "tuned", "--model-name", "gated", "--max-steps", "3")
    main("--resume", "tuned", "--max-steps", "4")
    main("--resume", "tuned", "--model-name", "branched", "--max-steps", "2", "--run-name", "branch")
    main("register-model", "tuned", "--name", "mine")
    main("sample", "mine", "--prompt", "The")
    for command in (("list-models", "--json"), ("model-info", "mine"), ("validate-registry",), ("list-runs", "--json")):
        main(*command, status=1 if command[0] == "validate-registry" else 0)  # the broken import is left over
    main(*settings, "--set", "nonsense=1", status=2)
    main("--resume", "nowhere", status=1)

    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS.strip().split("---\n")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=180, kernel_name="python3", allow_errors=True).execute(cwd=str(tmp_path))
    failed = [o for cell in notebook.cells[:-1] for o in cell.outputs if o.output_type == "error"]
    assert failed == []
    nbformat.write(notebook, tmp_path / "executed.ipynb")

    asked = [request for request in hub.requests if request.server == "hub" and "/model" in request.path.lower()]
    assert {request.authorization for request in asked} == {f"Bearer {CANARY}"}, "the token was not in use"
    assert {request.authorization for request in hub.requests if request.server == "store"} == {None}
    hits = [
        (str(path), spelling)
        for path in [*tmp_path.rglob("*"), *(tmp_path / "home").rglob("*")]
        if path.is_file()
        for content in [path.read_bytes()]
        for spelling in SPELLINGS
        if spelling.encode() in content
    ]
    hits += [("output", spelling) for text in said for spelling in SPELLINGS if spelling in text]
    assert hits == []
    looked_at = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {"log.jsonl", "state.json", "README.md", "registry.json", "executed.ipynb", "config.yaml"} <= looked_at
