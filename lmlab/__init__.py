"""lmlab: a language-model research lab that lives in notebooks. Importing it loads nothing until a name is used."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Where each public name lives. Heavy modules load when one of their names is first used.
_HOMES = {
    "lmlab.config": ("TrainingConfig",),
    "lmlab.tokenizers": ("Tokenizer", "CharTokenizer", "HFTokenizer"),
    "lmlab.data": ("load_text", "split_corpus", "Batch", "WindowDataset", "DataLoader"),
    "lmlab.transformer": ("Transformer",),
    "lmlab.optim": ("create_optimizer",),
    "lmlab.trainer": ("Trainer",),
    "lmlab.adapters.base": ("BaseAdapter",),
    "lmlab.adapters.custom": ("CustomTransformerAdapter",),
    "lmlab.adapters.huggingface": ("CausalLMAdapter", "QwenAdapter"),
    "lmlab.generate": ("SamplingSettings",),
    "lmlab.loading": ("load_adapter", "load_model", "load_tokenizer"),
    "lmlab.registry": ("Registry",),
    "lmlab.record": ("Record",),
    "lmlab.errors": ("LabError",),
    "lmlab.lab": ("Run", "build", "run", "resume", "branch", "finetune", "register"),
    "lmlab.launching": ("launch", "attach"),
    "lmlab.sampling": ("write_samples",),
    "lmlab.proof": ("verify_resume",),
    "lmlab.storybook": ("parsed_share",),
    "lmlab.hub": ("import_model",),
    "lmlab.scaling": ("by_position", "scaling_law"),
    "lmlab.forms": ("config_form",),
    "lmlab.widgets": ("prompt_box", "registry_browser", "run_picker"),
    "lmlab.study": (
        "Look",
        "compare",
        "diff",
        "free_name",
        "get_model",
        "look",
        "microscope",
        "models",
        "noise",
        "plot_hook",
        "runs",
        "samples",
        "samples_by_step",
        "sweep",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lmlab' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
