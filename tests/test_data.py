"""From text to batches: nothing read wrongly, nothing seen twice, any place taken up again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.data import IGNORED, DataLoader, Sampler, WindowDataset, load_text, split_corpus
from lmlab.errors import DataError
from lmlab.files import sha256_bytes


def ids(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int32)


# --- text -----------------------------------------------------------------------------------------------------------


def test_a_file_is_its_text(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes("\ufeffÄ\r\n😀\n".encode())
    corpus = load_text(path)
    assert corpus.text == "Ä\r\n😀\n"
    assert corpus.path == str(path)
    assert corpus.sha256 == sha256_bytes("Ä\r\n😀\n".encode())
    assert not corpus.is_storybook
    assert load_text("notes.txt").path == str(path)  # relative here, absolute in the log


def test_a_folder_is_its_txt_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name, text in (("c.txt", "third"), ("a.txt", "first"), ("b/z.txt", "second"), ("e.txt", " \n"), ("x.md", "no")):
        (tmp_path / name).write_text(text)
    assert load_text(tmp_path).documents == ["first", "second", "third"]
    assert load_text(tmp_path).text == "first\n\nsecond\n\nthird"


def test_json_lines_give_their_texts(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    lines = [json.dumps({"text": text, "id": 1}) for text in ("one\u2028\ntwo", "", "three")]
    path.write_text("\n".join([lines[0], "", *lines[1:]]) + "\n", encoding="utf-8")
    assert load_text(path).documents == ["one\u2028\ntwo", "three"]


def test_how_documents_are_cut_is_part_of_the_hash(tmp_path: Path) -> None:
    hashes = set()
    for texts in (["a", "b"], ["a\n\nb"], ["ab"], ["b", "a"]):
        path = tmp_path / "d.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        hashes.add(load_text(path).sha256)
    assert len(hashes) == 4


BAD = [
    ("missing.txt", None, "no data at {path}: give --data a text file"),
    ("a.txt", b"", "{path} is empty"),
    ("a.txt", b" \n\t", "{path} is empty"),
    ("a.txt", b"abc\0def", "{path} is binary: it holds a NUL at byte 3"),
    ("a.txt", b"abc\xffdef", "{path} is not UTF-8 at byte 3"),
    ("a.txt", b"\xef\xbb\xbfabc\xff", "{path} is not UTF-8 at byte 6"),
    ("a.txt", "é".encode()[:1], "{path} is not UTF-8 at byte 0"),
    ("a.jsonl", b"", "{path} is empty"),
    ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "{path}, line 2: not a JSON object with a `text` field"),
    ("a.jsonl", b'{"text": "a"}\nnonsense\n', "{path}, line 2: not a JSON object"),
    ("a.jsonl", b"[1]\n", "{path}, line 1: not a JSON object"),
    ("a.jsonl", b'{"text": 5}\n', "{path}, line 1: `text` is not a string"),
    ("a.jsonl", b'\n{"text": "a\\ud83db"}\n', "{path}, line 2: `text` holds half of a surrogate pair, U+D83D at 1"),
    ("a.jsonl", b'{"text": ""}\n', "{path} is empty"),
    ("a.jsonl", b"[" * 100_000, "{path}, line 1: not a JSON object"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD, ids=range(len(BAD)))
def test_text_that_cannot_be_used_is_one_clear_line(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as raised:
        load_text(path)
    assert str(raised.value).startswith(message.format(path=path))
    assert "\n" not in str(raised.value)


def test_folders_without_text_and_bad_files_in_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("text")
    with pytest.raises(DataError, match=r"holds no \.txt file with text in it"):
        load_text(tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"inner/bad\.txt is not UTF-8 at byte 0"):
        load_text(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError):
        load_text(tmp_path / "folder.jsonl")


@pytest.mark.parametrize("name", ["storybook:0", "storybook:-5", "storybook:1e6", "storybook:²"])
def test_a_size_of_the_storybook_is_a_number(name: str) -> None:
    with pytest.raises(DataError, match="is no size of the storybook"):
        load_text(name)


def test_the_storybook_is_the_default_and_the_same_every_time() -> None:
    small = load_text("storybook:5000")
    assert small.is_storybook
    assert small.path == "storybook:5000"
    assert 5000 <= len(small.text) < 8000
    assert load_text("storybook:5000").sha256 == small.sha256
    default = load_text(None)
    assert default.path == "storybook"
    assert default.sha256 == load_text("storybook").sha256
    assert default.text.startswith(small.text.rstrip("\n"))
    assert load_text("storybook:").sha256 == default.sha256


def test_a_folder_called_storybook_is_read_only_where_it_is_meant(tmp_path: Path) -> None:
    (tmp_path / "storybook").mkdir()
    (tmp_path / "storybook" / "one.txt").write_text("mine")
    assert load_text(None).is_storybook
    assert load_text("storybook").is_storybook
    for where in ("./storybook", Path("storybook"), str(tmp_path / "storybook")):
        assert load_text(where).documents == ["mine"]


def test_hidden_copies_of_a_text_are_no_documents(tmp_path: Path) -> None:
    """As JupyterLab keeps them: the text to validate on would be trained on."""
    for name in ("a.txt", "z.txt", ".ipynb_checkpoints/z-checkpoint.txt", "._a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {Path(name).name[0]}")
    assert load_text(tmp_path).documents == ["text of a", "text of z"]
    hidden = tmp_path / ".ipynb_checkpoints"
    assert load_text(hidden).documents == ["text of z"]  # it was asked for


# --- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "ratio", "cut"), [(100, 0.95, 95), (10, 0.5, 5), (7, 0.9, 6), (0, 0.5, 0)])
def test_a_split_keeps_every_token_in_order(n: int, ratio: float, cut: int) -> None:
    train, val = split_corpus(ids(n), ratio)
    assert len(train) == cut
    assert np.array_equal(np.concatenate([train, val]), ids(n))


def test_targets_are_the_tokens_that_follow() -> None:
    dataset = WindowDataset(ids(20), 6)
    assert len(dataset) == 14
    inputs_T, targets_T = dataset[13]
    assert inputs_T.tolist() == [13, 14, 15, 16, 17, 18]
    assert targets_T.tolist() == [14, 15, 16, 17, 18, 19]
    assert inputs_T.dtype == torch.int64
    for start in (14, -1):
        with pytest.raises(IndexError):
            dataset[start]
    batch = dataset.batch(np.array([0, 5]))
    assert batch.windows_B.tolist() == [0, 5]
    assert torch.equal(batch.inputs_BT[1], dataset[5][0])
    assert torch.equal(batch.inputs_BT[:, 1:], batch.targets_BT[:, :-1])


def test_a_window_past_the_end_is_padded_with_targets_that_do_not_count() -> None:
    batch = WindowDataset(ids(5), 4).batch(np.array([3]))
    assert batch.targets_BT.tolist() == [[4, IGNORED, IGNORED, IGNORED]]
    assert batch.inputs_BT.tolist() == [[3, 4, 0, 0]]  # any id that there is
    assert batch.inputs_BT.data_ptr() != batch.targets_BT.data_ptr()
    assert WindowDataset(ids(2), 8)[0][1].tolist() == [1] + [IGNORED] * 7
    for n in (0, 1):
        with pytest.raises(DataError, match=f"{n} tokens are too few"):
            WindowDataset(ids(n), 8)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 80), width=st.integers(1, 20), batch_size=st.integers(1, 9))
def test_an_evaluation_counts_every_token_but_the_first_once(n: int, width: int, batch_size: int) -> None:
    loader = DataLoader(WindowDataset(ids(n), width), batch_size)
    batches = list(loader)
    assert len(batches) == len(loader)
    targets = torch.cat([batch.targets_BT[batch.targets_BT != IGNORED] for batch in batches])
    assert targets.tolist() == list(range(1, n))
    for batch in batches:
        counted = batch.targets_BT != IGNORED
        assert torch.equal(batch.inputs_BT[counted] + 1, batch.targets_BT[counted])


# --- the order of training ------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 12), extra=st.integers(1, 120), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 5))
def test_an_epoch_shows_no_token_twice_and_nearly_all_once(width: int, extra: int, seed: int, epoch: int) -> None:
    sampler = Sampler(width + extra, width, seed)
    starts = sampler.starts(epoch * sampler.epoch_length, sampler.epoch_length)
    targets = np.concatenate([np.arange(start + 1, start + width + 1) for start in starts])
    assert len(set(targets)) == len(targets)
    assert targets.min() >= 1
    assert targets.max() < sampler.n_tokens
    assert sampler.n_tokens - 1 - len(targets) < 2 * width


def test_the_order_is_a_function_of_seed_epoch_and_position() -> None:
    sampler = Sampler(1000, 10, 3)
    length = sampler.epoch_length
    order = sampler.starts(0, 5 * length)
    for position in (0, 1, length - 1, length, length + 7, 3 * length):
        for count in (1, 5, length, 2 * length):
            assert np.array_equal(Sampler(1000, 10, 3).starts(position, count), order[position : position + count])
    epochs = order.reshape(5, length)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert len({tuple(sorted(epoch)) for epoch in epochs}) > 1  # the tiling itself moves between epochs
    assert not np.array_equal(order, Sampler(1000, 10, 4).starts(0, 5 * length))


def test_what_is_handed_out_may_be_changed_by_its_owner() -> None:
    sampler = Sampler(1000, 10, 3)
    first = sampler.starts(0, 5)
    kept = first.copy()
    first[:] = -1
    assert np.array_equal(sampler.starts(0, 5), kept)


def test_every_token_comes_as_a_target_over_the_epochs() -> None:
    sampler = Sampler(101, 10, 0)
    starts = sampler.starts(0, 200 * sampler.epoch_length)
    seen = {int(target) for start in starts for target in range(start + 1, start + 11)}
    assert seen == set(range(1, 101))


@pytest.mark.parametrize("at", [1, 7, 20, 33])
def test_a_loader_taken_up_mid_epoch_deals_the_same_windows(at: int) -> None:
    dataset = WindowDataset(ids(200), 8)
    whole = iter(DataLoader(dataset, 3, seed=5))
    straight = [next(whole) for _ in range(60)]
    loader = DataLoader(dataset, 3, seed=5)
    batches = iter(loader)
    for _ in range(at):
        next(batches)
    assert loader.position == 3 * at
    resumed = iter(DataLoader(dataset, 3, seed=5, position=loader.position))
    for expected in straight[at:]:
        got = next(resumed)
        assert torch.equal(got.windows_B, expected.windows_B)
        assert torch.equal(got.inputs_BT, expected.inputs_BT)
        assert torch.equal(got.targets_BT, expected.targets_BT)


def test_a_batch_larger_than_an_epoch_runs_on_into_the_next() -> None:
    loader = DataLoader(WindowDataset(ids(50), 10), 10, seed=0)
    assert len(loader) == 1
    batch = next(iter(loader))
    assert batch.inputs_BT.shape == (10, 10)
    assert not (batch.targets_BT == IGNORED).any()


def test_training_text_too_short_for_a_window_says_by_how_much() -> None:
    with pytest.raises(DataError, match=r"10 training tokens do not fill one window of max_seq_len=10 and its target"):
        DataLoader(WindowDataset(ids(10), 10), 2, seed=0)
    assert next(iter(DataLoader(WindowDataset(ids(11), 10), 2, seed=0))).windows_B.tolist() == [0, 0]
