"""A tokenizer in place of the model's own: by name, from a folder, and with an embedding that has to grow for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from tiny_config import TINY
from tokenizers import Tokenizer as Tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from lmlab import hub, lab
from lmlab.errors import ConfigError, TokenizerError
from lmlab.registry import Registry
from lmlab.tokenizers import HFTokenizer, Tokenizer

CONFIG = {**TINY, "precision": "fp32", "max_steps": 2, "sampling_max_length": 3, "seed": 1}
LARGE = 400  # tokens, where the embedding of the tiny Qwen has 320


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A models folder with a tiny Qwen called `base`."""
    assert hub.import_model(str(tiny_models.make(tmp_path / "published")), name="base") is not None
    return tmp_path / "models"


@pytest.fixture
def large(tmp_path: Path) -> HFTokenizer:
    """A tokenizer of more tokens than `base` has, in the folder `large`."""
    (tmp_path / "configs").mkdir()  # makes the folder a project
    words = [f"{a}{b}{c}" for a in "bdfglm" for b in "aeiou" for c in "nprst"]
    tiny_models.write_tokenizer(tmp_path / "large", vocabulary=LARGE, training_text=" ".join(words * 3))
    return HFTokenizer(tmp_path / "large")


def train(corpus: Path, **changes: Any) -> lab.Run:
    return lab.run({**CONFIG, "model_name": "base", **changes}, corpus, run_name="run", listeners=[])


def test_the_tokenizer_of_another_registered_model(models: Path, tmp_path: Path, corpus: Path) -> None:
    other = tiny_models.make(tmp_path / "other")
    tiny_models.write_tokenizer(other, vocabulary=290)
    assert hub.import_model(str(other)) is not None
    run = train(corpus, tokenizer_override="other")
    expected = Tokenizer.load(models / "other")
    assert run.start["tokenizer"] == expected.identifier != Tokenizer.load(models / "base").identifier
    assert run.start["data"]["n_tokens"] == len(expected.encode(corpus.read_text(encoding="utf-8")))
    assert lab.register(run.folder, "tuned").fine_tuned_from == "base"
    assert Tokenizer.load(models / "tuned").identifier == expected.identifier


def test_only_a_model_that_starts_with_another_tokenizer_is_warned_of(models: Path, corpus: Path) -> None:
    def warned(run: lab.Run) -> int:
        return sum("trained embeddings mean nothing" in message for message in run.warnings)

    run = train(corpus, tokenizer_override="char")
    assert warned(run) == 1
    assert warned(run.resume(max_steps=3, listeners=[])) == 1, "the resumed embeddings were trained with it"
    assert warned(lab.branch(run, "other", run_name="branch", listeners=[])) == 0
    scratch = {**CONFIG, "tokenizer_override": "base", "max_steps": 1}
    assert warned(lab.run(scratch, corpus, run_name="scratch", listeners=[])) == 0, "none of its embeddings are trained"


def test_a_folder_is_found_from_below_the_project_as_every_path_is(
    models: Path, large: HFTokenizer, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    with pytest.raises(TokenizerError, match=r"'larger' is neither `char`, nor a folder, nor a registered model"):
        train(corpus, tokenizer_override="larger")
    run = train(corpus, tokenizer_override="large", resize_embeddings=True)
    assert run.start["tokenizer"] == large.identifier


def test_an_embedding_grows_only_when_told_to_and_the_model_is_whole_afterwards(
    models: Path, large: HFTokenizer, corpus: Path
) -> None:
    assert large.vocab_size > tiny_models.VOCABULARY
    with pytest.raises(
        ConfigError, match=rf"has {large.vocab_size} tokens, the embedding of base only 320; set resize"
    ):
        train(corpus, tokenizer_override="large")
    run = train(corpus, tokenizer_override="large", resize_embeddings=True)
    assert run.start["model"]["vocab_size"] == large.vocab_size
    assert run.resume(max_steps=3, listeners=[]).step == 3
    branch = lab.branch(run.folder, "branch", max_steps=1, listeners=[])
    assert branch.start["tokenizer"] == large.identifier
    entry = lab.register(run.folder, "grown")
    plain = AutoModelForCausalLM.from_pretrained(models / "grown")
    assert plain.get_input_embeddings().weight.size(0) == plain.config.vocab_size == large.vocab_size
    assert plain.num_parameters() == entry.n_parameters
    assert Registry().validate() == []


def test_a_registered_model_keeps_a_tokenizer_that_is_of_another_kind(
    models: Path, tmp_path: Path, corpus: Path
) -> None:
    """transformers makes of every tokenizer beside a Qwen's config one with Qwen's own pre-tokenizer."""
    (tmp_path / "configs").mkdir()
    tiny_models.write_tokenizer(tmp_path / "words", vocabulary=300)
    inner = Tokenizers.from_file(str(tmp_path / "words" / "tokenizer.json"))
    inner.pre_tokenizer = Sequence([Split("e", "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>").save_pretrained(str(tmp_path / "words"))
    run = train(corpus, tokenizer_override="words")
    lab.register(run.folder, "tuned")
    kept = Tokenizer.load(models / "tuned")
    assert kept.identifier == run.start["tokenizer"]
    text = "There were three trees."
    assert kept.encode(text).tolist() == HFTokenizer(tmp_path / "words").encode(text).tolist()
    again = lab.finetune("tuned", corpus, config=CONFIG, run_name="again", listeners=[], name="grandchild")
    assert again.start["tokenizer"] == run.start["tokenizer"], "without an override by now"
    assert Tokenizer.load(models / "grandchild").identifier == run.start["tokenizer"]
    assert "`lmlab.Tokenizer.load(folder)`" in (models / "grandchild" / "README.md").read_text(encoding="utf-8")


def test_what_is_saved_names_the_special_tokens_of_the_tokenizer_in_use(
    models: Path, tmp_path: Path, corpus: Path
) -> None:
    before = json.loads((models / "base" / "config.json").read_text(encoding="utf-8"))
    assert before["eos_token_id"] is not None
    generation = {"eos_token_id": before["eos_token_id"], "temperature": 0.5}
    settings = tmp_path / "published" / "generation_config.json"
    settings.write_text(json.dumps(generation), encoding="utf-8")
    assert hub.import_model(str(tmp_path / "published"), name="chatty") is not None
    run = train(corpus, model_name="chatty", tokenizer_override="char")
    lab.register(run.folder, "tuned")
    own = json.loads((models / "tuned" / "config.json").read_text(encoding="utf-8"))
    assert (own["bos_token_id"], own["eos_token_id"], own["pad_token_id"]) == (None, None, None)
    generation = AutoModelForCausalLM.from_pretrained(models / "tuned").generation_config
    assert (generation.eos_token_id, generation.temperature) == (None, 0.5)
    assert "`lmlab.Tokenizer.load(folder)`" in (models / "tuned" / "README.md").read_text(encoding="utf-8")
    lab.finetune("base", corpus, config=CONFIG, run_name="usual", listeners=[], name="plain")
    own = json.loads((models / "plain" / "config.json").read_text(encoding="utf-8"))
    assert own["eos_token_id"] == before["eos_token_id"], "where the tokenizer is the model's, all stays"
