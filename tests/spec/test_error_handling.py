"""Requirement: Error Handling."""

from __future__ import annotations

import pytest
from workbench import Lab

from lmlab import cli

INVALID = {
    "not YAML": ("n_layers: [1\n", "line"),
    "a list": ("- n_layers\n", "list"),
    "zero bytes": ("", "empty"),
    "a wrong type": ("max_steps: many\n", "max_steps"),
    "out of range": ("dropout: 1.5\n", "dropout"),
    "an unknown key": ("n_layer: 2\n", "n_layers"),
    "heads that do not divide": ("d_model: 256\nn_heads: 3\n", "n_heads"),
    "a required field left empty": ("batch_size:\n", "batch_size"),
    "a required field that is null": ("learning_rate: null\n", "learning_rate"),
}


def test_missing_data_file(own_lab: Lab) -> None:
    """WHEN the data file does not exist THEN an error message is displayed, and the program exits gracefully with a
    non-zero exit code."""
    message = own_lab.refusal("--data", own_lab.folder / "no-such.txt", "--max-steps", 1)
    assert str(own_lab.folder / "no-such.txt") in message
    assert "--data" in message
    assert not own_lab.runs.exists()


@pytest.mark.parametrize("kind", INVALID)
def test_invalid_configuration(kind: str, own_lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """WHEN the configuration file is invalid or missing required fields THEN an error message is displayed, and the
    program exits gracefully with a non-zero exit code."""
    text, named = INVALID[kind]
    path = own_lab.folder / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    assert cli.main(["--config", str(path), "--max-steps", "1"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"error: {path}")
    assert named in output.err
    assert output.err.count("\n") == 1
    assert not own_lab.runs.exists()
    if kind == "an unknown key":  # as a user sees it, and for a file that is not there
        assert named in own_lab.refusal("--config", path, "--max-steps", 1, status=2)
        assert "no-such.yaml" in own_lab.refusal("--config", "no-such.yaml", status=2)
