"""The shape of the package: who may import whom, and that importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEVELS = [
    {
        "errors",
        "files",
        "devices",
        "isolation",
        "gguf_header",
        "modes",
        "places",
        "plain_yaml",
        "problems",
        "ranks",
        "words",
    },
    {
        "progress",
        "storybook",
        "storybook_grammar",
        "storybook_words",
        "storybook_things",
        "storybook_plots",
        "config",
        "entries",
        "gguf_splits",
        "hostile_tokenizers",
        "events",
        "registry",
        "tokenizers",
        "transformer",
        "provenance",
        "signals",
    },
    {
        "beside",
        "token_cache",
        "corpus",
        "data",
        "optim",
        "generate",
        "checkpoint",
        "memory",
        "shares",
        "history",
        "arguments",
        "catalogue",
        "console",
        "settings",
        "adapters.head",
        "adapters.fused",
        "adapters.attention",
        "adapters.decoding",
        "adapters.documents",
        "adapters.caches",
        "adapters.longrope",
    },
    {"record", "adapters.base", "adapters.pretrained", "hooks", "promises"},
    {"adapters.custom", "adapters.huggingface", "comparison", "evaluate", "runs_table", "views"},
    {"batches", "hub", "hub_client", "model_card", "origins", "sources", "loading", "export", "parallel"},
    {"trainer", "resuming", "rehearsal"},
    {"run_folder", "session", "together"},
    {"lab"},
    {"planning", "sampling", "proof", "launching"},
    {"study", "scaling"},
    {"cli", "commands", "faces", "forms", "widgets"},
]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "lmlab").with_suffix("").parts)


def level_name(module: str) -> str:
    return "views" if module.startswith("views") else module


def imported_modules(path: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "lmlab":
                found |= {alias.name for alias in node.names}
            elif node.module and node.module.startswith("lmlab."):
                found.add(node.module.removeprefix("lmlab."))
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("lmlab.") for a in node.names if a.name.startswith("lmlab")}
    return found


def test_imports_lead_downwards_only():
    for path in sorted((ROOT / "lmlab").rglob("*.py")):
        if path.name == "__init__.py":
            continue
        own = level_name(module_name(path))
        assert own in LEVEL_OF, f"{own} has no level; give it one in this table"
        for module in imported_modules(path):
            other = level_name(module)
            if other == own and own == "views":
                continue
            candidates = [name for name in (other, other.rpartition(".")[0]) if name in LEVEL_OF]
            assert candidates, f"{path.name} imports lmlab.{module}, which has no level"
            assert LEVEL_OF[candidates[0]] <= LEVEL_OF[own], f"{own} imports {other}, which stands above it"


def test_no_import_circles():
    graph = {module_name(p): imported_modules(p) for p in (ROOT / "lmlab").rglob("*.py") if p.name != "__init__.py"}

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph.get(start, ()))
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += graph.get(module, ())
        return seen

    circles = [module for module in graph if module in reachable(module)]
    assert circles == []


def test_importing_the_package_and_the_light_modules_loads_nothing_heavy():
    light = "lmlab, lmlab.cli, lmlab.config, lmlab.registry, lmlab.events, lmlab.record, lmlab.catalogue, lmlab.console"
    code = (
        f"import sys, {light}\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'matplotlib', 'ipywidgets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists_and_no_module_bears_its_name():
    import lmlab

    modules = {path.stem for path in (ROOT / "lmlab").glob("*.py")}
    for name in lmlab.__all__:
        assert getattr(lmlab, name) is not None
    assert not modules & set(lmlab.__all__)
    for name in (
        "TrainingConfig", "Tokenizer", "split_corpus", "WindowDataset", "DataLoader", "Transformer",
        "create_optimizer", "Trainer", "CustomTransformerAdapter", "QwenAdapter",
    ):  # fmt: skip
        assert name in lmlab.__all__
