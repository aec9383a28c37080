"""Real pretrained weights: SmolLM2-135M-Instruct, as a GGUF file that LMLAB_TEST_GGUF names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lmlab import lab, storybook
from lmlab.config import TrainingConfig
from lmlab.hub import import_model
from lmlab.registry import Registry
from lmlab.sampling import write_samples

pytestmark = pytest.mark.weights
NAME = "smollm2-135m"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the real model in it, imported once."""
    path = os.environ.get("LMLAB_TEST_GGUF", "")
    assert Path(path).is_file(), f"LMLAB_TEST_GGUF={path!r} is no file; .ci/run fetches it"
    models = tmp_path_factory.mktemp("real")
    import_model(path, name=NAME, models_dir=models, confirm=lambda plan: True)
    return models


def test_import_stores_safetensors_in_the_hugging_face_layout(imported: Path):
    entry = Registry(imported).get(NAME)
    assert entry.architecture_type == "llama"
    assert entry.source == "gguf"
    assert 130_000_000 < entry.n_parameters < 140_000_000
    assert "model.safetensors" in entry.files
    assert Registry(imported).validate() == []


def test_greedy_sample_knows_the_capital_of_france(imported: Path):
    (text,) = write_samples(
        NAME, "The capital of France is", models_dir=imported, sampling_temperature=0.0, sampling_max_length=6
    )
    assert text.startswith("The capital of France is Paris")


def test_plain_transformers_loads_it_and_agrees(imported: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lmlab.loading import load_adapter

    folder = Registry(imported).path(NAME)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("Once upon a time there was a")["input_ids"]])
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = load_adapter(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_short_fine_tune_lowers_the_validation_loss_and_registers(imported: Path, tmp_path: Path):
    shakespeare = Path(__file__).resolve().parents[2] / "shared" / "data" / "tinyshakespeare.txt"
    text = shakespeare.read_text(encoding="utf-8") if shakespeare.is_file() else storybook.generate(200_000)
    data = tmp_path / "text.txt"
    data.write_text(text[:200_000], encoding="utf-8")
    config = TrainingConfig(
        model_name=NAME, max_seq_len=128, batch_size=4, max_steps=12, learning_rate=5e-5, eval_cadence=12,
        eval_batches=6, sampling_max_length=10, checkpoint_cadence=None, seed=1,
    )  # fmt: skip
    run = lab.run(config, data, models_dir=imported, runs_dir=tmp_path / "runs", listeners=[])
    steps, losses = run.series("val_loss")
    assert steps.tolist() == [0, 12]
    assert losses[-1] < losses[0] - 0.2, losses
    entry = run.register("smollm2-tuned", models_dir=imported)
    assert entry.fine_tuned_from == NAME
    shutil.rmtree(run.folder)
