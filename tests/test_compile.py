"""`compile: true`: the same numbers within rounding, and one line where there is nothing to compile with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lmlab import devices, hub, lab
from lmlab.errors import UsageError


@pytest.mark.compiler
@pytest.mark.filterwarnings("default")  # torch's own, of what it compiles
@pytest.mark.parametrize(
    ("model_name", "precision"), [(None, "fp32"), (None, "bf16"), ("tiny-qwen", "bf16")], ids=lambda value: str(value)
)
def test_a_compiled_run_has_the_losses_of_a_plain_one_and_resumes(
    model_name: str | None, precision: str, tiny: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    if model_name is not None:
        hub.import_model("builtin:tiny-qwen", models_dir=tmp_path / "models")
    own = {"model_name": model_name, "precision": precision, "dropout": 0.0, "max_steps": 3, "eval_cadence": 1}
    places = {"runs_dir": tmp_path, "models_dir": tmp_path / "models", "listeners": []}
    losses = {}
    for compiled in (False, True):
        run = lab.run({**tiny, **own, "compile": compiled}, corpus, run_name=f"compiled-{compiled}", **places)
        run = run.resume(max_steps=4)
        assert run.status == "completed"
        losses[compiled] = [torch.from_numpy(run.series(name)[1]) for name in ("loss", "val_loss")]
    tolerance = 1e-5 if precision == "fp32" else 2e-3
    for plain, compiled in zip(losses[False], losses[True], strict=True):
        assert len(plain) >= 4
        torch.testing.assert_close(compiled, plain, rtol=tolerance, atol=0.0)


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("model_name", "precision"), [(None, "fp32"), (None, "bf16"), ("tiny-qwen", "bf16")], ids=lambda value: str(value)
)
def test_a_compiled_run_goes_on_bit_for_bit_in_another_process(
    model_name: str | None, precision: str, tiny: dict[str, Any], lab_process: Callable[..., Any], tmp_path: Path
) -> None:
    if model_name is not None:
        hub.import_model("builtin:tiny-qwen", models_dir=tmp_path / "models")
    shape = {"n_layers": 2, "d_model": 64, "d_ff": 128, "max_seq_len": 64, "seed": 1, "eval_cadence": 2, "max_steps": 8}
    (tmp_path / "tiny.yaml").write_text(
        yaml.safe_dump({**tiny, **shape, "model_name": model_name, "dropout": 0.1, "precision": precision})
    )
    begin = ["--config", "tiny.yaml", "--data", "storybook:20000", "--set", "compile=true"]
    folders = {"LMLAB_RUNS_DIR": str(tmp_path / "runs"), "LMLAB_MODELS_DIR": str(tmp_path / "models")}
    for arguments in (
        [*begin, "--run-name", "straight"],
        [*begin, "--run-name", "cut", "--max-steps", 3],
        ["--resume", "cut", "--max-steps", 8],
    ):
        done = lab_process(*arguments, OMP_NUM_THREADS="2", **folders)
        assert done.returncode == 0, done.stderr
    straight, cut = (tmp_path / "runs" / name / "checkpoints" / "step-00000008" for name in ("straight", "cut"))
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (straight / name).read_bytes() == (cut / name).read_bytes()


def test_without_a_compiler_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"compile: true needs a C\+\+ compiler, and there is no .*none; install one"):
        devices.require_compiler(torch.device("cpu"))
    devices.require_compiler(torch.device("cuda"))
