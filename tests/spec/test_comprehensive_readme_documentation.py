"""Requirement: Comprehensive README Documentation."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import HubServer
from workbench import ROOT, SPECIFIED_DEFAULTS, Lab

from lmlab import TrainingConfig, cli
from lmlab.config import GROUPS, group_fields

# The groups of the specification with their hyperparameters, under the headings of the README.
GROUPED = {
    "Model architecture": ("n_layers", "d_model", "n_heads", "d_ff", "dropout"),
    "Training": ("learning_rate", "weight_decay", "beta1", "beta2", "batch_size", "max_steps"),
    "Dataset": ("max_seq_len", "train_ratio"),
    "Evaluation and sampling": (
        "eval_cadence",
        "sampling_cadence",
        "sampling_temperature",
        "sampling_prompt",
        "sampling_max_length",
        "sampling_seed",
    ),
    "Checkpointing": ("checkpoint_cadence",),
    "Other": ("seed",),
}
EXAMPLES = ("default", "small-model", "large-model", "fast-training", "detailed-eval")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"(?<![\w/.-])(?:configs|notebooks|lmlab|tools|tests)/[\w./-]*\w")
SMALL = ("batch_size=2", "max_seq_len=32", "sampling_max_length=8")
SMALL_MODEL = ("n_layers=1", "d_model=32", "n_heads=2", "d_ff=32")

# Runs each command as `python main.py` does, in one process, because loading torch takes longer than all of them.
RUNNER = """
import contextlib, io, json, runpy, sys
for arguments in json.load(sys.stdin):
    sys.argv = ["main.py", *arguments]
    output, errors, status = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            runpy.run_path("main.py", run_name="__main__")
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, output.getvalue(), errors.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def readme() -> str:
    """The text of README.md."""
    return (ROOT / "README.md").read_text(encoding="utf-8")


def section(readme: str, title: str) -> str:
    """What stands under a heading, down to the next one of its rank or above."""
    fences = re.sub(r"^```.*?^```$", lambda match: match[0].replace("#", "\0"), readme, flags=re.MULTILINE | re.DOTALL)
    found = re.search(rf"^(#+) {re.escape(title)}$", fences, re.MULTILINE)
    assert found is not None, f"README.md has no section {title!r}"
    end = re.search(rf"^#{{1,{len(found[1])}}} ", fences[found.end() :], re.MULTILINE)
    return fences[found.end() :][: end.start() if end else None].replace("\0", "#")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return [content for name, content in BLOCK.findall(text) if name == language]


def commands(text: str) -> list[list[str]]:
    """The arguments of every `python main.py` in the code blocks of a text, in order."""
    lines = [
        part.strip() for _, block in BLOCK.findall(text) for line in block.splitlines() for part in line.split("&&")
    ]
    return [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("python main.py")]


def rows(readme: str, group: str) -> dict[str, list[str]]:
    """The table of a group of hyperparameters: name to the other cells."""
    table: dict[str, list[str]] = {}
    for line in section(section(readme, "Hyperparameter reference"), group).splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and (name := re.fullmatch(r"`(\w+)`", cells[0])):
            table[name[1]] = cells[1:]
    return table


def loaded(text: str, folder: Path) -> TrainingConfig:
    """A piece of YAML as a config file."""
    path = folder / "example.yaml"
    path.write_text(text, encoding="utf-8")
    return TrainingConfig.from_yaml(path)


def test_readme_contains_comprehensive_configuration_guide(readme: str) -> None:
    """WHEN users examine README.md THEN a "Configuration" section has an overview, how to use --config, how to create
    custom configs, how to override values, and a link to configs/README.md."""
    text = section(readme, "Configuration")
    overview = text.partition("\n**")[0]
    assert "TrainingConfig" in overview
    assert "default" in overview
    parts = {title.lower(): part for title, part in re.findall(r"^\*\*(.+?)\*\*(.*?)(?=^\*\*|\Z)", text, re.M | re.S)}
    use = next(part for title, part in parts.items() if "use a config" in title)
    assert any("--config" in command for command in commands(use))
    create = next(part for title, part in parts.items() if "create" in title)
    assert "null" in create
    assert "](configs/README.md)" in create
    override = next(part for title, part in parts.items() if "override" in title)
    (example,) = commands(override)
    assert {"--config", "--max-steps", "--set"} <= set(example)
    assert re.search(r"flag wins over the file, and the file over the default", override)


def test_readme_contains_detailed_hyperparameter_reference(readme: str) -> None:
    """WHEN users examine README.md THEN every hyperparameter is documented in its group with description, default,
    reasonable range and interactions, and the constraints are."""
    assert set(GROUPED) == set(GROUPS)
    for group, names in GROUPED.items():
        table = rows(readme, group)
        for name in names:
            default, reasonable_range, prose = table[name]
            assert yaml_value(default) == SPECIFIED_DEFAULTS[name]
            assert reasonable_range
            field = group_fields(group)[name]
            about: Any = field.json_schema_extra
            assert field.description is not None
            assert len(field.description) > 15
            assert field.description in prose
            assert len(about["interactions"]) > 15
            assert about["interactions"] in prose
    constraints = section(readme, "Constraints")
    for words in (
        r"`d_model` must be divisible by `n_heads`",
        r"`dropout` is between 0\.0 and 1\.0",
        r"`train_ratio` is",
    ):
        assert re.search(words, constraints)


def yaml_value(cell: str) -> Any:
    """A default of the tables as a value; `3e-4` is a number here."""
    value = yaml.safe_load(cell.strip("`"))
    with contextlib.suppress(ValueError, TypeError):
        return float(value) if isinstance(value, str) else value
    return value


def test_readme_contains_practical_examples(readme: str, tmp_path: Path) -> None:
    """WHEN users examine README.md THEN there are examples of the default config, a custom file, a few values changed, a
    small and a large model, with commands or valid YAML, explanations and trade-offs."""
    examples = section(readme, "Examples")
    titles = re.findall(r"^### (.+)$", examples, re.MULTILINE)
    assert len(titles) == 5
    parts = {title.lower(): section(examples, title) for title in titles}
    for part in parts.values():
        prose = BLOCK.sub("", part).split()
        assert len(prose) > 12, "an explanation beside the code"

    (command,) = commands(parts["use the default config"])
    assert "--config" not in command
    (command,) = commands(parts["use a custom config file"])
    assert "--config" in command
    (few,) = blocks(parts["modify specific hyperparameters"], "yaml")
    config = loaded(few, tmp_path)
    assert 0 < len(yaml.safe_load(few)) <= 8
    assert config != TrainingConfig()

    for title, factor in (("a small model", 0.25), ("a large model", 4)):
        (text,) = blocks(parts[title], "yaml")
        config = loaded(text, tmp_path)
        assert {"n_layers", "d_model", "n_heads", "d_ff"} <= yaml.safe_load(text).keys()
        size, usual = parameters(config), parameters(TrainingConfig())
        assert (size < factor * usual) if factor < 1 else (size > factor * usual)
        stated = re.search(r"^([\d.]+) million parameters", parts[title], re.MULTILINE)
        assert stated is not None
        assert float(stated[1]) == pytest.approx(size / 1e6, rel=0.05)
        assert re.search(r"arithmetic", parts[title])
        assert re.search(r"\d+ MB", parts[title])


def parameters(config: TrainingConfig) -> int:
    """The weights in the blocks of the custom Transformer."""
    return config.n_layers * config.d_model * (4 * config.d_model + 2 * config.d_ff)


def test_readme_contains_troubleshooting_guidance(readme: str) -> None:
    """WHEN users examine README.md THEN troubleshooting covers the common config errors, how to validate a config, and
    how to see which one is active."""
    text = section(readme, "Troubleshooting")
    errors = section(text, "Common config errors")
    for title in ("File not found", "Invalid YAML", "Invalid values", "Unknown hyperparameters"):
        found = re.search(rf"\*\*{title}\.\*\*.*?^```text\n(error: .*?)^```", errors, re.MULTILINE | re.DOTALL)
        assert found is not None, title
    validate = section(text, "Validate a config")
    assert commands(validate) == [["validate-config", "configs/default.yaml"]]
    for words in ("YAML", "constraint", "from_yaml"):
        assert words in validate
    active = section(text, "Which config is active?")
    for words in ("log.jsonl", "run_start", "config.yaml", "config_hash"):
        assert words in active


def test_readme_quick_start_mentions_config_files(readme: str) -> None:
    """WHEN users examine the Quick Start THEN it mentions --config, links to the config examples, and says that the
    default config is used if none is specified."""
    text = section(readme, "Quick Start")
    prose = BLOCK.sub("", text)
    assert "`--config`" in prose
    assert any("--config" in command for command in commands(text))
    assert "](configs/README.md)" in text
    assert re.search(r"No `--config` was named, so the default config was used", prose.replace("\n", " "))


def test_readme_links_to_example_config_files(readme: str) -> None:
    """WHEN users examine README.md THEN it links to the example configs and configs/README.md, and the links work."""
    links = LINK.findall(readme)
    assert {*(f"configs/{name}.yaml" for name in EXAMPLES), "configs/README.md"} <= set(links)
    local = [link for link in links if "://" not in link]
    assert len(local) > 10
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", readme, re.MULTILINE)
    }
    for link in local:
        path, _, anchor = link.partition("#")
        assert not path or (ROOT / path).exists(), link
        assert not anchor or path or anchor in anchors, link


def test_readme_documentation_matches_actual_system_behavior(
    readme: str, project: Path, hub: HubServer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WHEN users follow README.md THEN all defaults match TrainingConfig, all examples work, all file paths are correct,
    and what it says of the config system is so."""
    documented = {name: cells[0] for group in GROUPS for name, cells in rows(readme, group).items()}
    assert documented.keys() == TrainingConfig.model_fields.keys()
    defaults = TrainingConfig().to_dict()
    assert {name: yaml_value(cell) for name, cell in documented.items()} == defaults

    mentioned = set(PATH.findall(readme)) | {"constraints.txt", "environment.yml"}
    assert len(mentioned) > 8
    for path in mentioned:
        assert (ROOT / path).exists(), path

    for text in blocks(readme, "yaml"):
        loaded(text, tmp_path)
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    check_commands(readme, Lab(folder, folder, {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}))
    check_python(readme, folder)
    check_errors(readme, corpus, tmp_path, monkeypatch)


def check_commands(readme: str, lab: Lab) -> None:
    """Every `python main.py` of the README ends with status 0, in order, in a fresh copy of the project."""
    asked = commands(readme)
    assert len(asked) >= 20
    assert {command[0] for command in asked if command and not command[0].startswith("-")} >= {
        "import-model", "list-models", "model-info", "delete-model", "register-model", "validate-registry", "sample",
        "verify-resume", "validate-config", "list-runs",
    }  # fmt: skip
    (lab.folder / "my-text.txt").write_text("The small boat went over the quiet sea. " * 200, encoding="utf-8")
    (lab.folder / "my-config.yaml").write_text(blocks(section(readme, "Modify specific hyperparameters"), "yaml")[0])
    environment = {k: v for k, v in lab.variables().items() if k not in ("LMLAB_RUNS_DIR", "LMLAB_MODELS_DIR")}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        cwd=lab.folder,
        env=environment,
        input=json.dumps([lighter(command) for command in asked]),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(asked), done.stderr
    for command, (status, output, errors) in zip(asked, results, strict=True):
        assert status == 0, f"python main.py {shlex.join(command)}: {output[-1000:]}{errors}"
        wanted = [command[i + 1] for i, word in enumerate(command) if word == "--max-steps"]
        if wanted and "validate" not in command[0]:
            assert re.search(rf"^event=step .* step={wanted[0]} ", output, re.MULTILINE), command
    assert (lab.folder / "runs" / "first" / "checkpoints").is_dir()
    assert (lab.folder / "models" / "registry.json").is_file()


def lighter(command: list[str]) -> list[str]:
    """A command of the README with less text, a smaller model and fewer steps where it names none of its own."""
    trains = not command or command[0].startswith("-") or command[0] == "verify-resume"
    if command[:1] == ["import-model"] and "--yes" not in command:
        return [*command, "--yes"]  # nobody is there to answer
    if command[:1] == ["sample"]:
        return [*command, "--set", "sampling_max_length=8"]
    if not trains or "--resume" in command:
        return command
    imported = "--model-name" in command or "configs/qwen-base.yaml" in command
    values = SMALL if imported else (*SMALL, *SMALL_MODEL)
    extra = [
        word for value in values if value.split("=")[0] + "=" not in " ".join(command) for word in ("--set", value)
    ]
    if "--data" not in command:
        extra += ["--data", "storybook:20000"]
    if "--max-steps" not in command and command[:1] != ["verify-resume"]:
        extra += ["--max-steps", "3"]
    return [*command, *extra]


def check_python(readme: str, project: Path) -> None:
    """The Python of the README runs as it stands; only the config that it names is made smaller."""
    scripts = blocks(readme, "python")
    assert len(scripts) >= 2
    values = dict(value.split("=") for value in (*SMALL, *SMALL_MODEL))
    path = project / "configs" / "fast-training.yaml"
    TrainingConfig.from_yaml(path).updated(**{name: int(value) for name, value in values.items()}).to_yaml(path)
    environment = {name: value for name, value in Lab(project).variables().items() if not name.startswith("LMLAB_")}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(scripts)],
        cwd=project,
        env={**environment, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def config_error(text: str | None) -> Callable[[Path], list[str]]:
    """How to see what a config file of this text is answered; None is no file."""

    def provoke(folder: Path) -> list[str]:
        if text is not None:
            (folder / "my-config.yaml").write_text(text, encoding="utf-8")
        return ["--config", "my-config.yaml"]

    return provoke


def data_error(content: bytes | None) -> Callable[[Path], list[str]]:
    """How to see what a text file with this content is answered; None is no file."""

    def provoke(folder: Path) -> list[str]:
        if content is not None:
            (folder / "my-text.txt").write_bytes(content)
        return ["--data", "my-text.txt", "--set", "d_model=8"]

    return provoke


PROVOKED = (
    config_error(None),
    config_error("n_layers: 4\n  d_model: 8\n"),
    config_error("dropout: 1.5\n"),
    config_error("max_steps: many\n"),
    config_error("n_heads: 3\n"),
    config_error("d_ff: 8\nn_layer: 2\n"),
    data_error(None),
    data_error(b"a\xff"),
    data_error(b"abcdefghijk"),
)


def check_errors(readme: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every error that the README shows is what a user sees, word for word; of a diverging run, but for its numbers."""
    shown = {line for block in blocks(readme, "text") for line in block.splitlines() if line.startswith("error: ")}
    (diverged,) = [line for line in shown if "the update was not made" in line]
    shown.remove(diverged)
    assert len(shown) == len(PROVOKED)
    settings = [word for value in (*SMALL_MODEL, "learning_rate=100") for word in ("--set", value)]
    assert without_numbers(answer("--data", str(corpus), "--max-steps", "50", *settings)) == without_numbers(diverged)
    answers: set[str] = set()
    for number, provoke in enumerate(PROVOKED):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        answers.add(answer(*provoke(folder)))
    assert answers == shown


def answer(*arguments: str) -> str:
    """What the command line says to arguments that it refuses."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(arguments) in (1, 2)
    return errors.getvalue().rstrip("\n")


def without_numbers(message: str) -> str:
    """A message of divergence without the numbers of its run: which of the two it was, the step, and the windows."""
    message = re.sub(
        r"the (loss|gradient norm) of step \d+ is (nan|inf)", "the NUMBER of step N is not finite", message
    )
    return re.sub(r"(\d+, )+…", "…", message)
