"""Under pytest every notebook has runs and models of its own, in a temporary folder, and no network."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Kernels inherit the environment; it is as it was when the notebook has ended. Other tests pass by unchanged."""
    if not item.path.is_relative_to(HERE):
        return (yield)
    with tempfile.TemporaryDirectory(prefix="lmlab-notebook-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMLAB_RUNS_DIR", f"{folder}/runs")
        patch.setenv("LMLAB_MODELS_DIR", f"{folder}/models")
        patch.setenv("IPYTHONDIR", f"{folder}/ipython")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("LMLAB_HOME", raising=False)
        return (yield)
