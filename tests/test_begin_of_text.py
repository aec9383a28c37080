"""Models whose tokenizer puts a token before every text, as Gemma's and Llama's do: they are read from it on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_config import TINY
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmlab import checkpoint, events, hub, lab, storybook
from lmlab.data import IGNORED, DataLoader, WindowDataset, load_text
from lmlab.loading import load_model_and_tokenizer
from lmlab.optim import create_optimizer
from lmlab.sampling import write_samples
from lmlab.tokenizers import HFTokenizer
from lmlab.trainer import Trainer

BEGIN, END = "<|begin|>", tiny_models.END_OF_TEXT
CONFIG = {**TINY, "model_name": "tiny", "precision": "fp32", "eval_cadence": 3, "sampling_prompt": "The"}


def begin_with(folder: Path, begin: str) -> None:
    """Let the tokenizer of a folder put a token before each text."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens([begin])
    special = [(begin, backend.token_to_id(begin))]
    backend.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=special)
    backend.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": begin}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a tiny Llama that reads any text from a token of its own on."""
    folder = tmp_path_factory.mktemp("models")
    source = tiny_models.make(folder / ".source", "llama", vocab_size=tiny_models.VOCABULARY + 1)
    begin_with(source, BEGIN)
    hub.import_model(str(source), name="tiny", models_dir=folder)
    return folder


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    texts = storybook.generate(4000).split("\n\n")
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def test_the_token_stands_before_documents_and_before_nothing_else(models: Path) -> None:
    tokenizer = HFTokenizer(models / "tiny")
    begin, end = tokenizer.begin_of_text_id, tokenizer.end_of_text_id
    assert tokenizer.decode([begin]) == BEGIN
    one, two = tokenizer.encode("one"), tokenizer.encode("two")
    assert begin not in one
    assert tokenizer.begun(one).tolist() == [begin, *one]
    assert tokenizer.encode_documents(["one", "two"]).tolist() == [*one, end, begin, *two]
    written = f"{BEGIN}two"  # by hand, or by a chat template
    assert tokenizer.begun(tokenizer.encode(written)).tolist() == [begin, *two]
    assert tokenizer.encode_documents(["one", written]).tolist() == [*one, end, begin, *two]


def test_a_token_that_ends_texts_tells_nothing_of_a_beginning(tmp_path: Path) -> None:
    tiny_models.write_tokenizer(tmp_path)
    assert HFTokenizer(tmp_path).begin_of_text_id is None
    begin_with(tmp_path, END)
    assert HFTokenizer(tmp_path).inner("")["input_ids"]
    assert HFTokenizer(tmp_path).begin_of_text_id is None


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 80), width=st.integers(1, 20), batch_size=st.integers(1, 9), begins=st.sets(st.integers(0, 79)))
def test_an_evaluation_counts_every_token_once_but_no_beginning(
    n: int, width: int, batch_size: int, begins: set[int]
) -> None:
    ids = np.arange(1, n + 1, dtype=np.int32)
    ids[[at for at in begins if at < n]] = 0
    loader = DataLoader(WindowDataset(ids, width, begin_id=0), batch_size)
    batches = list(loader)
    assert len(batches) == len(loader)
    targets = torch.cat([batch.targets_BT[batch.targets_BT != IGNORED] for batch in batches])
    assert targets.tolist() == [i for i in ids.tolist() if i]
    for batch in batches:
        assert (batch.inputs_BT[:, 0] == 0).all()
        for start, inputs_T in zip(batch.windows_B.tolist(), batch.inputs_BT.tolist(), strict=True):
            inside = ids[start : start + width - 1].tolist()
            assert inputs_T[1 : 1 + len(inside)] == inside


def test_the_loss_before_the_first_step_is_that_of_the_model_on_texts_that_begin(models: Path, documents: Path) -> None:
    run = lab.run({**CONFIG, "max_steps": 3}, documents, run_name="r-1", models_dir=models, listeners=[])
    tokenizer = HFTokenizer(models / "tiny")
    begin, end = tokenizer.begin_of_text_id, tokenizer.end_of_text_id
    files = sorted(documents.glob("*.txt"))
    ids = tokenizer.encode_documents([file.read_text("utf-8") for file in files])
    ids = ids[int(len(ids) * 0.95) :].tolist()
    model = AutoModelForCausalLM.from_pretrained(models / "tiny")
    total, count = 0.0, 0
    for start in range(0, len(ids), 16):
        window = ids[start : start + 16]
        texts: list[list[int]] = [[begin]]
        for i in window:  # a document is read by itself
            texts[-1].append(i)
            texts += [[]] if i == end else []
        for text in filter(lambda text: len(text) > 1, texts):
            with torch.no_grad():
                logits = model(torch.tensor([text])).logits[0, :-1]
            wanted = torch.tensor(text[1:])
            counted = wanted != begin
            total += float(F.cross_entropy(logits, wanted, reduction="none")[counted].sum())
            count += int(counted.sum())
    assert run.series("val_loss")[1][0] == pytest.approx(total / count, rel=1e-4)
    assert run.start["data"]["begin_of_text_id"] == begin


def test_samples_are_drawn_from_it_and_do_not_show_it(models: Path, documents: Path) -> None:
    run = lab.run(CONFIG, documents, run_name="r-1", models_dir=models, listeners=[])
    sample = [event["sample_text"] for event in events.read(run.log_path) if event["event"] == "sample"][-1]
    assert sample.startswith("The")
    assert BEGIN not in sample
    (text,) = write_samples(run.folder, "The", sampling_temperature=0.0, sampling_max_length=5)
    model, tokenizer = run.load()
    begun = torch.tensor([[tokenizer.begin_of_text_id, *tokenizer.encode("The")]])
    with torch.no_grad():
        for _ in range(5):
            begun = torch.cat([begun, model.logits(begun)[:, -1:].argmax(-1)], dim=1)
    assert text == tokenizer.decode(begun[0, 1:].tolist())


def test_a_run_goes_on_as_it_began_also_one_of_before(models: Path, documents: Path) -> None:
    """Older versions read windows without the token: the rest of such a run does, too."""
    straight = lab.run({**CONFIG, "max_steps": 9}, documents, run_name="r-1", models_dir=models, listeners=[])
    lab.run(CONFIG, documents, run_name="r-2", models_dir=models, listeners=[])
    resumed = lab.resume("r-2", models_dir=models, listeners=[], max_steps=9, lr_decay_steps=9)
    assert resumed.series("loss")[1].tolist() == straight.series("loss")[1].tolist()
    assert straight.newest_checkpoint is not None
    old = checkpoint.load(straight.newest_checkpoint)
    assert old.state.pop("begin_of_text_id") is not None
    for begins in (True, False):  # for a short time it stood beside the data alone, and before that nowhere
        trainer = lab.rebuild(old, lab.read_config(straight.config), load_text(documents), straight.folder)
        assert (trainer.train_dataloader.dataset.begin_id is not None) == begins
        if (
            old.state["data"].pop("begin_of_text_id", None) is not None
        ):  # which all documents but the first had before them
            old.state["data"]["n_tokens"] -= len(list(documents.glob("*.txt"))) - 1
    assert trainer.val_dataloader.dataset.begin_id is None
    assert trainer.tokenizer.begin_of_text_id is None


def test_a_checkpoint_of_before_keeps_its_end_of_text(models: Path, tmp_path: Path) -> None:
    """A token that stands for what is unknown, too, was not taken for it before: the end of a turn was, in its place."""
    adapter, _ = load_model_and_tokenizer(models / "tiny")
    inner = AutoTokenizer.from_pretrained(models / "tiny")
    end = tiny_models.END_OF_TEXT
    inner.add_special_tokens({"unk_token": end, "eos_token": "the"})
    inner.save_pretrained(tmp_path / "tokenizer")
    tokenizer = HFTokenizer(tmp_path / "tokenizer")
    trainer = Trainer(adapter, create_optimizer(adapter.model, lab.read_config(CONFIG)), lab.read_config(CONFIG))
    state = json.loads((trainer.save_checkpoint(tmp_path / "saved", tokenizer) / "state.json").read_text())
    for kept, text in ((tokenizer.end_of_text_id, end), (tokenizer.end_of_sequence_id, "the"), (None, "the")):
        altered = {key: value for key, value in state.items() if key != "end_of_text_id"}
        altered |= {} if kept is None else {"end_of_text_id": kept}
        (tmp_path / "saved" / "state.json").write_text(json.dumps(altered))
        _, found = load_model_and_tokenizer(tmp_path / "saved")
        assert found.decode(found.border()) == text


def test_a_trainer_put_together_by_hand_comes_back_with_it(models: Path, tmp_path: Path) -> None:
    adapter, tokenizer = load_model_and_tokenizer(models / "tiny")
    config = lab.read_config(CONFIG)
    trainer = Trainer(adapter, create_optimizer(adapter.model, config), config, tokenizer=tokenizer)
    trainer.save_checkpoint(tmp_path / "saved")
    back = Trainer.from_checkpoint(tmp_path / "saved")
    assert back.tokenizer.begin_of_text_id == tokenizer.begin_of_text_id is not None
    assert back.sample() == trainer.sample()
    assert load_model_and_tokenizer(tmp_path / "saved")[1].begin_of_text_id == tokenizer.begin_of_text_id
    altered = json.loads((tmp_path / "saved" / "state.json").read_text())
    del altered["begin_of_text_id"]  # as older versions wrote it
    (tmp_path / "saved" / "state.json").write_text(json.dumps(altered))
    assert load_model_and_tokenizer(tmp_path / "saved")[1].begin_of_text_id is None
