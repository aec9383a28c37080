"""Every scenario of the specification has its test: a file per requirement, and in it a test per scenario."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
SCENARIOS = {
    "Training Pipeline Orchestration": (
        "End-to-end training execution",
        "Component integration",
    ),
    "Configuration Loading": (
        "Load configuration from YAML file",
        "Use default configuration",
        "Load configuration with model_name",
        "Command-line argument overrides",
        "TrainingConfig serialization includes model_name",
        "Example configs for different models",
    ),
    "Data Loading and Setup": ("Load data and create datasets",),
    "Model and Trainer Initialization": ("Create model and trainer",),
    "Checkpoint Resume": (
        "Resume from checkpoint",
        "Checkpoint file errors",
    ),
    "Training Loop Execution": (
        "Run training loop",
        "Periodic checkpoint saving",
    ),
    "Structured Logging": (
        "Log format is parseable",
        "Complete metadata logging",
        "Training progress logging",
    ),
    "Command-Line Interface": (
        "Resume from checkpoint argument",
        "Configuration file argument",
        "Data file argument",
        "Max steps argument",
        "Help/usage information",
    ),
    "Error Handling": (
        "Missing data file",
        "Invalid configuration",
    ),
    "Integration Testing": (
        "End-to-end training pipeline test",
        "Checkpoint resume produces identical results",
        "Reproducibility verification",
        "Training dynamics verification (smoke test)",
        "Logging completeness verification",
        "TrainingConfig includes all new hyperparameters",
        "Config loading from YAML works correctly",
        "Config integration with main.py works correctly",
        "Backward compatibility with old configs",
        "Example config files work correctly",
    ),
    "Comprehensive README Documentation": (
        "README contains comprehensive configuration guide",
        "README contains detailed hyperparameter reference",
        "README contains practical examples",
        "README contains troubleshooting guidance",
        "README Quick Start mentions config files",
        "README links to example config files",
        "README documentation matches actual system behavior",
    ),
    "Model Loading and Initialization": (
        "Load custom Transformer when model_name is None",
        "Load model from registry by model_name",
        "Model registry lookup fails",
        "Model files missing for registry entry",
        "Initialize optimizer with adapter model",
    ),
    "Model Metadata Logging": (
        "Log custom Transformer metadata",
        "Log imported model metadata",
        "Log fine-tuning lineage",
    ),
    "Fine-Tuning Workflow": (
        "Start fine-tuning from base model",
        "Register fine-tuned model after training",
        "Continue fine-tuning from checkpoint",
        "Start new fine-tuning branch from checkpoint",
    ),
    "Model Management CLI Commands": (
        "Import model command",
        "List models command",
        "Model info command",
        "Delete model command",
        "Main.py subcommand routing",
    ),
    "Tokenizer Handling for Different Architectures": (
        "Use model's native tokenizer",
        "Use char-level tokenizer for custom Transformer",
        "Override tokenizer in config",
        "Tokenizer in checkpoint",
    ),
    "Integration Testing for Multi-Model Support": (
        "End-to-end custom Transformer (backward compatibility)",
        "End-to-end Qwen model import and inference",
        "End-to-end Qwen model fine-tuning",
        "Checkpoint resume with Qwen model",
        "Switch between model architectures",
        "Model registry CLI integration test",
    ),
}


def snake_case(title: str) -> str:
    """A title as part of a Python name."""
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")


def functions_of(path: Path) -> dict[str, str]:
    """The test functions of a file with their docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {function.name: ast.get_docstring(function) or "" for function in functions}


def test_every_scenario_has_its_test_and_every_test_its_scenario() -> None:
    """17 requirements, 68 scenarios; each test says in its docstring when, and then what."""
    assert len(SCENARIOS) == 17
    assert sum(map(len, SCENARIOS.values())) == 68
    files = {f"test_{snake_case(requirement)}.py" for requirement in SCENARIOS}
    assert {path.name for path in HERE.glob("test_*.py")} - {Path(__file__).name} == files
    for requirement, scenarios in SCENARIOS.items():
        path = HERE / f"test_{snake_case(requirement)}.py"
        found = functions_of(path)
        assert list(found) == [f"test_{snake_case(scenario)}" for scenario in scenarios], path.name
        for name, docstring in found.items():
            assert docstring.startswith("WHEN "), name
            assert " THEN " in " ".join(docstring.split()), name
        assert f'"""Requirement: {requirement}."""' in path.read_text(encoding="utf-8")
