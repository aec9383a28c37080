"""Requirement: Model Management CLI Commands."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from hub_server import HubServer
from workbench import Lab, Session, contents

from lmlab.words import size

SUBCOMMANDS = (
    "import-model",
    "list-models",
    "model-info",
    "delete-model",
    "register-model",
    "validate-registry",
    "sample",
    "verify-resume",
    "validate-config",
    "list-runs",
    "delete-run",
)


def answered(lab: Lab, answer: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python main.py ARGUMENTS` with somebody at the keyboard who types `answer`."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode())
        return lab.call(*arguments, stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)


def test_import_model_command(hub: HubServer, qwen_folder: Path, own_lab: Lab) -> None:
    """WHEN the user runs `python main.py import-model Qwen/Qwen-0.5B` THEN the model is downloaded and imported."""
    lab = Lab(own_lab.folder, environment={"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"})
    done = answered(lab, "y\n", "import-model", "Qwen/Qwen-0.5B")
    assert done.returncode == 0, done.stderr
    for shown in ("Qwen/Qwen-0.5B", "apache-2.0", "[y/N]", "imported qwen-0.5b"):
        assert shown in done.stdout
    assert any(name.startswith("model.safetensors") for name in hub.downloads())

    assert lab.names() == ["qwen-0.5b"]
    entry = lab.entry("qwen-0.5b")
    assert (entry["model_id"], entry["source"], entry["license"]) == ("Qwen/Qwen-0.5B", "huggingface", "apache-2.0")
    assert entry["revision"] == hub.repositories["Qwen/Qwen-0.5B"].branches["main"]
    published = contents(qwen_folder)
    imported = contents(lab.models / "qwen-0.5b")
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= imported.keys()
    assert imported["model.safetensors"] == published["model.safetensors"]
    for name, info in entry["files"].items():
        assert info == {"size": len(imported[name]), "sha256": hashlib.sha256(imported[name]).hexdigest()}

    assert "--yes" in lab.refusal("import-model", "Qwen/Qwen2.5-0.5B", status=2)
    assert lab.names() == ["qwen-0.5b"]


def test_list_models_command(family: Lab) -> None:
    """WHEN the user runs `python main.py list-models` THEN all models of the registry are displayed."""
    lines = family.main("list-models").stdout.splitlines()
    base = next(line for line in lines if "qwen-0.5b-base" in line)
    notes = next(line for line in lines if "qwen-notes" in line)
    assert lines.index(base) < lines.index(notes)
    assert base.startswith("qwen-0.5b-base")
    assert notes.startswith("└─ qwen-notes"), "children stand under what they come from"
    for word in ("qwen", "Qwen/Qwen2.5-0.5B", "apache-2.0"):
        assert word in base
    assert "from qwen-0.5b-base" in notes
    assert lines[-1].startswith("2 models")

    listed = json.loads(family.main("list-models", "--json").stdout)
    assert listed == [family.entry("qwen-0.5b-base"), family.entry("qwen-notes")]


def test_model_info_command(family: Lab) -> None:
    """WHEN the user runs `python main.py model-info NAME` THEN detailed information on the model is displayed."""
    shown = family.main("model-info", "qwen-notes").stdout
    entry = family.entry("qwen-notes")
    for section in ("Origin", "Architecture", "Tokenizer", "Licence", "Files", "Ancestors", "Descendants", "Runs"):
        assert f"\n{section}\n" in shown
    for fact in ("qwen-0.5b-base", "apache-2.0", f"{entry['n_parameters']:,}", "num_hidden_layers", "tuned"):
        assert fact in shown
    for name, info in entry["files"].items():
        assert re.search(rf"{re.escape(name)} +sha256 {info['sha256']}, {re.escape(size(info['size']))}", shown)
    assert "qwen-notes" in family.main("model-info", "qwen-0.5b-base").stdout.partition("\nDescendants\n")[2]
    assert json.loads(family.main("model-info", "qwen-notes", "--json").stdout) == entry
    assert "qwen-0.5b-base, qwen-notes" in family.refusal("model-info", "no-such-model")


def test_delete_model_command(family: Lab, tmp_path: Path) -> None:
    """WHEN the user runs `python main.py delete-model NAME` THEN the model is deleted."""
    lab = family.copy_to(tmp_path / "lab")
    kept = contents(lab.models / "qwen-0.5b-base")
    message = lab.refusal("delete-model", "qwen-0.5b-base", "--yes")
    assert "qwen-notes" in message
    assert "--force" in message
    assert "--yes" in lab.refusal("delete-model", "qwen-notes", status=2)
    assert lab.names() == ["qwen-0.5b-base", "qwen-notes"]

    done = answered(lab, "y\n", "delete-model", "qwen-notes")
    assert done.returncode == 0, done.stderr
    assert "deleted qwen-notes" in done.stdout
    assert lab.names() == ["qwen-0.5b-base"]
    assert not (lab.models / "qwen-notes").exists()
    assert contents(lab.models / "qwen-0.5b-base") == kept


def test_main_py_subcommand_routing(own_lab: Lab, straight: Session) -> None:
    """WHEN main.py is invoked with a subcommand THEN it goes to its handler; without one it trains as before; --help
    displays all subcommands."""
    shown = own_lab.main("--help").stdout
    for command in SUBCOMMANDS:
        assert re.search(rf"^    {command}\s", shown, re.MULTILINE), command
    assert "no models" in own_lab.main("list-models").stdout
    assert "no runs" in own_lab.main("list-runs").stdout
    assert "nothing is wrong" in own_lab.main("validate-registry").stdout
    refused = own_lab.refusal("import-model", "no/such/model", "--yes")
    assert "no/such/model" in refused
    assert not own_lab.runs.exists()
    assert straight.steps == list(range(1, 13)), "no subcommand: it trains"

    check = (
        "import sys\nfrom lmlab.cli import main\n"
        "for words in (['list-models'], ['list-models', '--json'], ['validate-registry']):\n"
        "    assert main(words) == 0\n"
        "assert main(['model-info', 'none']) == main(['delete-model', 'none', '--yes']) == 1\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", check],
        cwd=own_lab.folder,
        env={**own_lab.variables(), "PYTHONPATH": str(own_lab.project)},
        check=True,
        capture_output=True,
    )
