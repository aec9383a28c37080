"""Requirement: Tokenizer Handling for Different Architectures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer
from workbench import TUNING, Lab, Session, printed, state_of

from lmlab import (
    CharTokenizer,
    HFTokenizer,
    Tokenizer,
    TrainingConfig,
    build,
    load_tokenizer,
)
from lmlab.corpus import load_text
from lmlab.sampling import write_samples


def test_use_model_s_native_tokenizer(qwen: Lab, tuned: Session, corpus: Path) -> None:
    """WHEN a model with its own tokenizer is loaded from the registry THEN that one, from the model's directory, encodes
    and decodes, in training and inference alike."""
    text = corpus.read_text(encoding="utf-8")
    native = AutoTokenizer.from_pretrained(str(qwen.models / "qwen-0.5b-base"))
    expected = native(text, add_special_tokens=False, verbose=False)["input_ids"]
    tokenizer = load_tokenizer(TrainingConfig(model_name="qwen-0.5b-base"), text, qwen.models)
    assert isinstance(tokenizer, HFTokenizer)
    assert tokenizer.folder == qwen.models / "qwen-0.5b-base"
    assert tokenizer.encode(text).tolist() == expected
    assert tokenizer.decode(expected) == text

    trainer = build({"max_seq_len": 16, "batch_size": 2}, corpus, model_name="qwen-0.5b-base", models_dir=qwen.models)
    assert np.array_equal(trainer.train_dataloader.dataset.ids, expected[: int(len(expected) * 0.95)])

    assert tuned.start["tokenizer"] == tokenizer.identifier
    assert tuned.start["data"]["n_tokens"] == len(expected) < len(text)
    for folder in (tuned.lab.checkpoint("tuned", step) for step in (5, 10, 12)):
        assert Tokenizer.load(folder / "tokenizer").encode(text).tolist() == expected
    (written,) = write_samples(tuned.lab.checkpoint("tuned", 12))
    assert written == tuned.of("sample")[-1]["sample_text"]


def test_use_char_level_tokenizer_for_custom_transformer(straight: Session, corpus: Path) -> None:
    """WHEN the custom Transformer is used THEN the tokenizer is character-level as before."""
    text = corpus.read_text(encoding="utf-8")
    tokenizer = load_tokenizer(TrainingConfig(), load_text(corpus))
    assert isinstance(tokenizer, CharTokenizer)
    characters = sorted(set(text))
    assert tokenizer.encode(text).tolist() == [characters.index(c) for c in text]
    assert tokenizer.decode(range(len(characters))) == "".join(characters)
    assert straight.start["tokenizer"] == tokenizer.identifier
    assert straight.start["data"]["n_tokens"] == len(text)
    saved = Tokenizer.load(straight.lab.checkpoint("straight", 12) / "tokenizer")
    assert isinstance(saved, CharTokenizer)
    assert saved.characters == "".join(characters)


def test_override_tokenizer_in_config(qwen: Lab, corpus: Path, tmp_path: Path) -> None:
    """WHEN the config has a tokenizer override THEN that tokenizer is used instead of the native one, the override is in
    the training metadata, and a warning of possible incompatibility is logged."""
    lab = qwen.copy_to(tmp_path / "lab")
    config = lab.config("override", **{**TUNING, "tokenizer_override": "char", "max_steps": 1})
    done = lab.main("--config", config, "--data", corpus, "--run-name", "override")
    text = corpus.read_text(encoding="utf-8")
    characters = CharTokenizer.from_text(text)
    start = lab.start("override")
    assert start["tokenizer"] == characters.identifier
    assert start["data"]["n_tokens"] == len(text)
    assert start["config"]["tokenizer_override"] == "char"
    saved = lab.checkpoint("override", 1)
    assert state_of(saved)["config"]["tokenizer_override"] == "char"
    assert state_of(saved)["tokenizer"] == characters.identifier
    assert isinstance(Tokenizer.load(saved / "tokenizer"), CharTokenizer)
    (sample,) = lab.events("override", "sample")
    assert set(sample["sample_text"]) <= set(text)

    messages = [event["message"] for event in lab.events("override", "warning")]
    assert any("tokenizer_override" in message and "char" in message for message in messages)
    assert any("tokenizer_override" in row["message"] for row in printed(done.stdout, "warning"))


def test_tokenizer_in_checkpoint(straight: Session, tuned: Session) -> None:
    """WHEN a checkpoint is saved THEN it has the tokenizer's identifier, can be loaded with the right tokenizer, and
    samples are decoded with that one."""
    for session in (straight, tuned):
        saved = session.lab.checkpoint(session.run, 12)
        tokenizer = Tokenizer.load(saved / "tokenizer")
        assert state_of(saved)["tokenizer"] == tokenizer.identifier == session.start["tokenizer"]
        last = session.of("sample")[-1]
        assert last["step"] == 12
        settings = {"sampling_max_length": session.start["config"]["sampling_max_length"]}
        assert write_samples(saved, "The", **settings) == [last["sample_text"]]
    assert straight.start["tokenizer"] != tuned.start["tokenizer"]


@pytest.fixture(autouse=True)
def on_one_thread(one_thread: None) -> None:
    """Sums as in the processes that trained."""
