"""Requirement: Command-Line Interface."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from workbench import STRAIGHT, Lab, Session, error_line

OPTIONS = (
    "--help",
    "--config",
    "--data",
    "--resume",
    "--max-steps",
    "--set",
    "--run-name",
    "--runs-dir",
    "--models-dir",
    "--model-name",
)
TINY = ("--set", "n_layers=1", "--set", "d_model=16", "--set", "d_ff=16", "--set", "max_seq_len=16")


def test_resume_from_checkpoint_argument(interrupted: Session, resumed: Session) -> None:
    """WHEN main.py is invoked with --resume PATH THEN training resumes from that checkpoint."""
    assert resumed.start["resumed_from"] == str(resumed.lab.checkpoint("interrupted", 7))
    assert resumed.start["run_id"] == interrupted.start["run_id"]
    assert resumed.events[: len(interrupted.events)] == interrupted.events
    assert resumed.steps == list(range(1, 13))
    assert resumed.steps[len(interrupted.steps)] == 8


def test_configuration_file_argument(straight: Session) -> None:
    """WHEN main.py is invoked with --config PATH THEN the configuration is loaded from that YAML file."""
    assert {key: straight.start["config"][key] for key in STRAIGHT} == STRAIGHT


def test_data_file_argument(own_lab: Lab, straight: Session, corpus: Path) -> None:
    """WHEN main.py is invoked with --data PATH THEN the training data is loaded from that file."""
    assert straight.start["data"]["path"] == str(corpus)
    text = "Nur dieser Text, sonst nichts. " * 40
    (own_lab.folder / "own.txt").write_text(text, encoding="utf-8")
    own_lab.main("--data", "own.txt", "--max-steps", 1, "--run-name", "own", "--set", "sampling_prompt=Nur", *TINY)
    data = own_lab.start("own")["data"]
    assert data["path"] == str(own_lab.folder / "own.txt")
    assert data["n_tokens"] == len(text)
    (sample,) = own_lab.events("own", "sample")
    assert set(sample["sample_text"]) <= set(text)


def test_max_steps_argument(interrupted: Session, defaults: Session) -> None:
    """WHEN main.py is invoked with --max-steps N THEN training runs for exactly N steps, whatever the config says."""
    assert STRAIGHT["max_steps"] == 12
    assert interrupted.steps == [1, 2, 3, 4, 5, 6, 7]
    assert interrupted.lab.checkpoint("interrupted", 7).is_dir()
    assert defaults.steps == [1, 2]


def test_help_usage_information(own_lab: Lab) -> None:
    """WHEN main.py is invoked with --help or invalid arguments THEN usage is displayed with the available options."""
    shown = own_lab.main("--help")
    assert shown.stdout.startswith("usage: main.py")
    assert shown.stderr == ""
    assert all(option in shown.stdout for option in OPTIONS)
    assert all(f"  {option}" in shown.stdout for option in OPTIONS[1:]), "each option is listed with what it does"

    for wrong in (
        ("--no-such-option",), ("--max-steps", "many"), ("--max-steps",), ("no-such-command",), ("--max-steps", "0"),
        ("--set", "nonsense"), ("--set", "nokey=1"), ("--run-name", "a", "--resume", "b"),
    ):  # fmt: skip
        refused = own_lab.call(*wrong)
        assert refused.returncode == 2
        assert refused.stdout == ""
        assert refused.stderr.startswith("usage: main.py")
        assert all(option in refused.stderr for option in OPTIONS[1:])
        assert len(refused.stderr.splitlines()) <= 26
        assert wrong[0] in error_line(refused.stderr)
    assert not own_lab.runs.exists()

    check = "import sys; sys.argv = ['main.py', '--help']\nfrom lmlab.cli import main\n"
    check += "try:\n    main()\nexcept SystemExit:\n    assert 'torch' not in sys.modules\n"
    check += "else:\n    raise AssertionError('it did not end')"
    subprocess.run([sys.executable, "-c", check], cwd=own_lab.project, check=True, capture_output=True)
