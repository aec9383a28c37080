"""Letting a checkpoint, a run or a model write."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_config import TINY
from tiny_models import END_OF_TEXT
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

from lmlab import events, lab
from lmlab.adapters.custom import CustomTransformerAdapter
from lmlab.errors import LabError, RegistryError, TokenizerError, UsageError
from lmlab.export import register_checkpoint
from lmlab.generate import SamplingSettings
from lmlab.hub import import_model
from lmlab.loading import load_model_and_tokenizer
from lmlab.sampling import until_end, write, write_samples
from lmlab.study import samples
from lmlab.tokenizers import CharTokenizer
from lmlab.transformer import Transformer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> lab.Run:
    config = {**TINY, "precision": "fp32", "sampling_prompt": "The cat", "sampling_max_length": 9}
    return lab.run(config, corpus, run_name="r-1", runs_dir=tmp_path_factory.mktemp("runs"), listeners=[])


def test_a_run_its_folder_its_id_and_its_checkpoint_write_the_same(run: lab.Run) -> None:
    sample = [event["sample_text"] for event in events.read(run.log_path) if event["event"] == "sample"][-1]
    assert sample.startswith("The cat")
    assert len(sample) == 7 + 9
    newest = run.folder / "checkpoints" / "step-00000006"
    for where in (run, run.folder, newest):
        assert write_samples(where) == [sample]
    assert write_samples("r-1", runs_dir=run.folder.parent) == [sample]
    longer = [write_samples(where, sampling_max_length=80) for where in (newest, newest.with_name("step-00000003"))]
    assert longer[0] != longer[1]


def test_many_texts_are_drawn_together_and_differ(run: lab.Run) -> None:
    texts = write_samples(run.folder, "T", n=4, sampling_max_length=30)
    assert len(set(texts)) == 4
    assert all(text.startswith("T") and len(text) == 31 for text in texts)
    assert write_samples(run.folder, "T", n=4, sampling_max_length=30) == texts
    assert write_samples(run.folder, "T", n=4, sampling_max_length=30, sampling_seed=1) != texts
    cold = write_samples(run.folder, "T", n=3, sampling_temperature=0)
    assert len(set(cold)) == 1


def test_a_run_in_memory_writes_with_the_settings_of_its_newest_session(
    run: lab.Run, tmp_path: Path, lab_process: Callable[..., Any]
) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "runs" / "mine")
    seen = lab.Run(folder)
    before = write_samples(seen)
    settings = ("--set", "sampling_max_length=30", "--set", "sampling_temperature=2.5")
    done = lab_process("--resume", "mine", "--max-steps", 7, *settings)
    assert done.returncode == 0, done.stderr
    [side_by_side] = samples([seen], ["The cat"]).texts.values()
    assert side_by_side == write_samples(seen) == write_samples(folder) != before


def test_a_run_whose_log_is_damaged_writes_with_the_settings_of_its_checkpoint(run: lab.Run, tmp_path: Path) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "runs" / "mine")
    (folder / "log.jsonl").write_bytes(b"?" + run.log_path.read_bytes())
    assert write_samples(lab.Run(folder)) == write_samples(run)
    (folder / "log.jsonl").unlink()
    assert write_samples(lab.Run(folder)) == write_samples(run)


@pytest.fixture
def damaged(run: lab.Run, tmp_path: Path) -> Path:
    """A copy of the run, with one byte of its newest checkpoint's weights another one."""
    folder = shutil.copytree(run.folder, tmp_path / "runs" / "damaged")
    path = folder / "checkpoints" / "step-00000006" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return folder


PASSED_OVER = r"step-00000006/model\.safetensors is damaged: .*; going on from step-00000003"


@pytest.mark.parametrize(
    "use",
    [
        lambda folder: lab.Run(folder).load(),
        lambda folder: write_samples(lab.Run(folder)),
        lambda folder: write_samples("damaged"),
        lambda folder: samples([lab.Run(folder)]),
        lambda folder: lab.register("damaged", "kept"),
        lambda folder: lab.Run(folder).register("kept"),
    ],
)
def test_a_newest_checkpoint_that_is_damaged_is_passed_over_with_a_warning(
    damaged: Path, use: Callable[[Path], Any]
) -> None:
    for _ in range(2):  # also where a cell is run again
        with pytest.warns(UserWarning, match=PASSED_OVER) as told:
            use(damaged)
        assert {warning.filename for warning in told} == {__file__}
        shutil.rmtree("models", ignore_errors=True)


def test_a_branch_logs_which_checkpoints_it_passed_over(damaged: Path) -> None:
    branch = lab.branch("damaged", "other", max_steps=1, listeners=[])
    assert [warning for warning in branch.warnings if re.search(PASSED_OVER, warning)]
    assert branch.lineage[-1]["step"] == 3


def test_the_command_line_says_on_a_line_which_checkpoints_it_passed_over(
    damaged: Path, lab_command: Callable[..., Any]
) -> None:
    for arguments in (("sample", "damaged"), ("register-model", "damaged", "--name", "kept")):
        done = lab_command(*arguments)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(f"warning: .*{PASSED_OVER}\n", done.stderr)
        assert "damaged:" not in done.stdout


def test_what_cannot_be_written_is_said(run: lab.Run) -> None:
    with pytest.raises(UsageError, match="0 samples cannot be drawn"):
        write_samples(run.folder, n=0)
    with pytest.raises(UsageError, match="d_model does not change a sample"):
        write_samples(run.folder, d_model=8)
    with pytest.raises(TokenizerError, match="an empty prompt"):
        write_samples(run.folder, "")
    with pytest.raises(TokenizerError, match="'Ω'"):
        write_samples(run.folder, "TheΩ")
    with pytest.raises(LabError, match="no checkpoint, run or model is called nothing; list-runs and list-models show"):
        write_samples("nothing")
    with pytest.raises(LabError, match="sampling_temperature"):
        write_samples(run.folder, sampling_temperature=-1.0)


def test_the_settings_come_from_the_config(run: lab.Run) -> None:
    config = lab.read_config(None, sampling_max_length=5, sampling_temperature=0.5, sampling_top_k=3, sampling_seed=9)
    assert SamplingSettings.from_config(config) == SamplingSettings(5, 0.5, 3, None, 9)


def test_every_token_of_the_first_text_is_told_and_the_model_stays_as_it_was() -> None:
    tokenizer = CharTokenizer.from_text("abc 😀")
    model = Transformer(5, n_layers=1, d_model=8, n_heads=1, d_ff=8, dropout=0.5, max_seq_len=4, seed=0)
    adapter, told = CustomTransformerAdapter(model).train(), []
    settings = SamplingSettings(20, seed=3)
    texts = write(adapter, tokenizer, "ab", 2, settings, precision="fp32", on_token=told.append)
    assert "ab" + "".join(told) == texts[0]
    assert adapter.training
    torch.manual_seed(5)
    assert write(adapter, tokenizer, "ab", 2, settings, precision="fp32") == texts


@pytest.mark.parametrize(
    ("row", "n_prompt", "ends", "kept"),
    [
        ([5, 0, 6, 7, 0, 0, 0], 2, {0}, [5, 0, 6, 7, 0]),
        ([5, 0, 6, 7], 2, {0}, [5, 0, 6, 7]),
        ([5, 6, 7], 1, {None}, [5, 6, 7]),
        ([0, 0], 1, {0, 3}, [0, 0]),
        ([5, 3, 6, 7, 3, 3, 0], 2, {0, 3}, [5, 3, 6, 7, 3]),
    ],
)
def test_what_fills_a_text_that_ended_is_left_out(row: list[int], n_prompt: int, ends: Any, kept: list[int]) -> None:
    assert until_end(row, n_prompt, ends) == kept


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer ends a turn with one token, and whose config names two more: one of a text, one plain."""
    more = ["<|im_end|>", "<end_of_turn>"]
    folder = tiny_models.make(tmp_path_factory.mktemp("chat"), vocab_size=tiny_models.VOCABULARY + len(more))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(
        {"eos_token": more[0], "unk_token": END_OF_TEXT, "additional_special_tokens": more[1:]}
    )
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    ends = [tokenizer.convert_tokens_to_ids(token) for token in (END_OF_TEXT, more[1], "e")]
    (folder / "config.json").write_text(json.dumps({**settings, "eos_token_id": ends}))
    return folder


def test_a_sample_ends_with_a_text_or_a_turn_of_a_chat(chat_model: Path) -> None:
    adapter, tokenizer = load_model_and_tokenizer(chat_model)
    assert tokenizer.decode(tokenizer.border()) == END_OF_TEXT  # also where the same token stands for what is unknown
    texts = write(adapter, tokenizer, "the sea", 20, SamplingSettings(100, temperature=50.0, seed=1))
    ends = (END_OF_TEXT, "<|im_end|>", "<end_of_turn>")
    ended = [[end for end in ends if end in text] for text in texts]
    assert {end for found in ended for end in found} == set(ends)
    for text, found in zip(texts, ended, strict=True):
        assert not found or (len(found) == 1 and text.index(found[0]) == len(text) - len(found[0]))
    assert any("e" in text[len("the sea") : -20] for text in texts)  # named as an end, but it is text


def test_a_model_that_nests_its_text_config_may_name_its_ends_there_alone(tmp_path: Path) -> None:
    end = tiny_models.write_tokenizer(tmp_path, "PreTrainedTokenizerFast")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {**small, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": tiny_models.VOCABULARY, "eos_token_id": end}
    config = Gemma3Config(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8})
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    assert "eos_token_id" not in json.loads((tmp_path / "config.json").read_text())
    adapter, tokenizer = load_model_and_tokenizer(tmp_path)
    assert adapter.end_of_text_id == tokenizer.end_of_text_id == end


def test_a_turn_whose_end_the_settings_for_generation_alone_name_ends_a_sample(tmp_path: Path, corpus: Path) -> None:
    """As Phi 3's: of the model as imported, of a run of it, and of what is made of that."""
    folder, models, runs = tmp_path / "published", tmp_path / "models", tmp_path / "runs"
    tiny_models.make(folder, vocab_size=tiny_models.VOCABULARY + 1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.save_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.eos_token_id, end]}))
    import_model(str(folder), "chat", models_dir=models)
    config = {"model_name": "chat", "max_seq_len": 16, "batch_size": 2, "max_steps": 1, "sampling_max_length": 2}
    run = lab.run(config, corpus, runs_dir=runs, models_dir=models, listeners=[])
    run = run.resume(max_steps=2, models_dir=models, listeners=[])
    newest = run.newest_checkpoint
    assert newest is not None
    register_checkpoint(newest, "tuned", models)
    for where in (models / "chat", newest, models / "tuned"):
        assert load_model_and_tokenizer(where)[0].turn_ends == {end}


def test_a_model_trained_with_another_tokenizer_ends_with_the_ends_of_that_one(
    chat_model: Path, tmp_path: Path, corpus: Path
) -> None:
    models, other = tmp_path / "models", tmp_path / "other"
    import_model(str(chat_model), "chat", models_dir=models)
    tiny_models.write_tokenizer(other)
    config = {
        "model_name": "chat",
        "tokenizer_override": str(other),
        "max_seq_len": 16,
        "batch_size": 2,
        "max_steps": 1,
    }
    run = lab.run(config, corpus, runs_dir=tmp_path / "runs", models_dir=models, listeners=[])
    adapter, tokenizer = run.load()
    assert adapter.end_of_text_id == tokenizer.end_of_text_id is not None
    assert not adapter.turn_ends


def test_a_prompt_that_leaves_no_room_is_refused(tmp_path: Path) -> None:
    adapter, tokenizer = load_model_and_tokenizer(tiny_models.make(tmp_path / "model"))
    long = "the quiet sea " * 100
    n_tokens = len(tokenizer.encode(long))
    with pytest.raises(
        UsageError, match=f"the prompt has {n_tokens:,} tokens, and the model takes 128 in all; shorten it"
    ):
        write(adapter, tokenizer, long, 1, SamplingSettings(5))


def test_a_run_writes_whatever_the_registry_looks_like(run: lab.Run, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "registry.json").write_text("{,")
    folders = {"runs_dir": run.folder.parent, "models_dir": tmp_path / "models"}
    assert write_samples("r-1", **folders) == write_samples(run.folder)
    with pytest.raises(RegistryError):
        write_samples("nobody", **folders)


def test_a_bare_name_is_the_run_in_the_runs_folder_also_where_one_of_that_name_is_here(
    run: lab.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run.folder, tmp_path / "r-1")
    older = lab.resume(tmp_path / "r-1" / "checkpoints" / "step-00000003", listeners=[], learning_rate=0.1)
    expected, other = (write_samples(each, sampling_max_length=80) for each in (run, older))
    assert expected != other
    monkeypatch.chdir(tmp_path)
    assert write_samples("r-1", runs_dir=run.folder.parent, sampling_max_length=80) == expected
    assert write_samples("./r-1", runs_dir=run.folder.parent, sampling_max_length=80) == other
    assert write_samples("r-1", sampling_max_length=80) == other, "there is no other one"


def test_a_model_writes_from_within_its_folder(run: lab.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run.register("mine")
    (tmp_path / "runs").mkdir()
    (tmp_path / "models" / "mine" / "inner").mkdir()
    expected = write_samples("mine", "The")
    for folder, where in (("models/mine", "."), ("models/mine/inner", "..")):
        monkeypatch.chdir(tmp_path / folder)
        assert write_samples(where, "The") == expected


def test_a_name_that_a_run_and_a_model_bear_is_refused_with_a_name_for_each(run: lab.Run, tmp_path: Path) -> None:
    folders = {"runs_dir": run.folder.parent, "models_dir": tmp_path / "models"}
    run.register("r-1", tmp_path / "models")
    path = f"{run.folder} for the run, or {tmp_path / 'models' / 'r-1'} for the model"
    with pytest.raises(UsageError, match=f"^'r-1' is a run and a registered model; give {re.escape(path)}$"):
        write_samples("r-1", **folders)
    short = write_samples(run.folder, "The", **folders)
    assert len(short[0]) == 3 + 9, "with the run's own settings"
    for where in (tmp_path / "models" / "r-1", "models/r-1"):
        [long] = write_samples(where, "The", **folders)
        assert len(long) == 3 + 100, "with the usual settings"
    folders["runs_dir"] = tmp_path / "none"
    assert write_samples("r-1", "The", **folders) == [long]
