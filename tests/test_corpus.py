"""Text that stays on disk is the text in memory: the same digest, characters, ids and runs, tokenized once."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

from lmlab import events, lab
from lmlab.config import TrainingConfig
from lmlab.corpus import LARGE, PIECE, Corpus, LargeCorpus, load_text
from lmlab.data import split_corpus
from lmlab.errors import DataError, TokenizerError
from lmlab.proof import TIMINGS
from lmlab.tokenizers import CharTokenizer, HFTokenizer, Tokenizer

STRANGE = "\ufeffÄ naïve 😀 漢字 \r\n\u2028 end.  Two spaces,\ttabs\n\n"


def large(path: Path) -> LargeCorpus:
    corpus = load_text(path, large=0)
    assert isinstance(corpus, LargeCorpus)
    return corpus


def small(path: Path) -> Corpus:
    corpus = load_text(path, large=10**12)
    assert isinstance(corpus, Corpus)
    return corpus


def cached(folder: Path) -> dict[str, tuple[int, int]]:
    """The files of a cache, with inode and time of change: what is written anew differs."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMLAB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_models.write_tokenizer(folder)
    return HFTokenizer(folder)


def write_text(path: Path) -> Path:
    """One file of several pieces, with characters of every width and runs of white space around the cuts."""
    path.write_text(STRANGE + ("the quiet sea,  and\n\n a naïve  boat. " * 9 + "\n") * (5 * PIECE // 300), "utf-8")
    return path


def write_folder(path: Path) -> Path:
    (path / "inner").mkdir(parents=True)
    write_text(path / "inner" / "long.txt")
    for name, text in (("a", "\ufefffirst"), ("b", " \n" * PIECE), ("c", "  third "), ("d", "")):
        (path / f"{name}.txt").write_text(text, "utf-8")
    (path / "notes.md").write_bytes(b"\xff")
    return path


def write_lines(path: Path) -> Path:
    texts = ["one", "two\u2028 lines\n", "", " ", "ä" * PIECE + " and more" * 9000, "last"]
    path.write_text("\n".join(json.dumps({"text": text, "n": 1}) for text in texts) + "\n\n", "utf-8")
    return path


KINDS = {"text.txt": write_text, "folder": write_folder, "lines.jsonl": write_lines}


@pytest.mark.parametrize("load", [small, large])
def test_a_jsonl_is_one_in_capitals_too(load: Any, tmp_path: Path) -> None:
    lower, upper = write_lines(tmp_path / "a.jsonl"), tmp_path / "B.JSONL"
    shutil.copy(lower, upper)
    assert (load(upper).sha256, load(upper).characters) == (load(lower).sha256, load(lower).characters)
    upper.write_text("\n")
    with pytest.raises(DataError, match="is empty: no line holds any text"):
        load(upper)


@pytest.mark.parametrize("name", KINDS)
def test_on_disk_as_in_memory(tmp_path: Path, name: str, bpe: HFTokenizer) -> None:
    path = KINDS[name](tmp_path / name)
    one, other = small(path), large(path)
    assert (other.path, other.sha256, other.characters) == (one.path, one.sha256, one.characters)
    for tokenizer in (CharTokenizer.from_text(one.text), bpe):
        expected, ids = one.encode(tokenizer), other.encode(tokenizer)
        assert len(ids) > PIECE
        assert np.array_equal(ids, expected)
        assert ids.dtype == (np.uint8 if tokenizer.vocab_size <= 256 else np.uint16)
        assert all(np.shares_memory(part, ids) for part in split_corpus(ids, 0.9))
        with pytest.raises(ValueError, match="read-only"):
            ids[0] = 0


def test_a_vocabulary_beyond_sixteen_bits_is_kept_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(chr(point) for point in range(0xE000, 0x1F000)), "utf-8")
    corpus = large(tmp_path / "a.txt")
    tokenizer = CharTokenizer(corpus.characters)
    assert tokenizer.vocab_size == 0x1F000 - 0xE000 > 2**16
    assert np.array_equal(corpus.encode(tokenizer), np.arange(tokenizer.vocab_size))


def test_folders_behind_links_are_read_once(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for folder, text in ((data, "first"), (elsewhere, "second")):
        folder.mkdir()
        (folder / f"{text}.txt").write_text(text)
    (data / "linked").symlink_to(elsewhere)
    (data / "linked again").symlink_to(elsewhere)
    (data / "circle").symlink_to(data)
    assert load_text(data).documents == ["first", "second"]
    (data / "latest").symlink_to(data / "version 2")  # of two that are there by themselves: their order stays
    for number in (1, 2):
        (data / f"version {number}").mkdir()
        (data / f"version {number}" / "a.txt").write_text(f"version {number}")
    assert load_text(data).documents == ["first", "second", "version 1", "version 2"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "private").mkdir(parents=True)
    (tmp_path / "data" / "a.txt").write_text("first")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if "private" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"cannot read .*private: Permission denied"):
        load_text(tmp_path / "data")


def test_the_second_start_tokenizes_nothing(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_text(tmp_path / "a.txt")
    first = large(path).encode(CharTokenizer(large(path).characters))
    said = [record.getMessage() for record in caplog.records]
    assert [str(path) in line and str(cache) in line for line in said] == [True, True]
    before = cached(cache)
    assert len(before) == 3
    caplog.clear()
    moved = path.rename(tmp_path / "b.txt")
    again = large(moved)
    assert np.array_equal(again.encode(CharTokenizer(again.characters)), first)
    assert (caplog.records, cached(cache)) == ([], before)
    other = CharTokenizer(again.characters + "\N{OGHAM LETTER BEITH}")
    again.encode(other)
    assert cached(cache).items() > before.items(), "another tokenizer has ids of its own"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["relative", "below", "above", "link", "link to its folder"])
def test_a_text_is_read_by_every_name_that_leads_to_it(
    kind: str, way: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a link, its own name says what kind of text it is: the cache of Hugging Face names files by their hashes."""
    (tmp_path / "data" / "inner").mkdir(parents=True)
    path = KINDS[kind](tmp_path / "data" / kind)
    plain = small(path)
    expected = plain.encode(CharTokenizer(plain.characters))
    given, named = Path("data", kind), path
    if way == "below":
        monkeypatch.chdir(path if path.is_dir() else path.parent)
        given = Path(".") if path.is_dir() else Path(kind)
    if way == "above":
        monkeypatch.chdir(path / "inner" if path.is_dir() else path.parent / "inner")
        given = Path("..") if path.is_dir() else Path("..", kind)
    if way == "link":
        given = named = tmp_path / f"linked-{kind}"
        path.rename(tmp_path / "0123abcd")
        given.symlink_to("0123abcd")
    if way == "link to its folder":
        (tmp_path / "linked").symlink_to(path.parent)
        given = tmp_path / "linked" / kind
    for corpus in (small(given), large(given)):
        assert (corpus.path, corpus.sha256) == (str(named), plain.sha256)
        assert np.array_equal(corpus.encode(CharTokenizer(corpus.characters)), expected)
    kept = cached(cache)
    large(named.resolve() if kind == "text.txt" else named).encode(CharTokenizer(plain.characters))
    assert cached(cache) == kept  # by another name, the same text is not tokenized again


def test_changed_content_is_noticed_whatever_its_times_say(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc" * 100)
    stat = path.stat()
    first = large(path)
    assert large(path).encode(CharTokenizer("abc"))[0] == 0
    path.write_text("cba" * 100)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = large(path)
    assert second.sha256 != first.sha256
    assert second.encode(CharTokenizer("abc"))[0] == 2
    path.write_text("abcabc" * 100)
    with pytest.raises(DataError, match=r"a\.txt changes while it is read; start again when it is complete"):
        first.encode(CharTokenizer("cab"))  # not yet kept, and not what it was
    assert large(path).encode(CharTokenizer("cab"))[0] == 1


@pytest.mark.parametrize("damage", ["flipped", "cut", "grown", "no manifest", "strange manifest", "no ids", "a file"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, cache: Path, damage: str) -> None:
    path = write_text(tmp_path / "a.txt")
    corpus = large(path)
    tokenizer = CharTokenizer(corpus.characters)
    expected = np.array(corpus.encode(tokenizer))
    (folder,) = [entry for entry in cache.iterdir() if entry.is_dir()]
    ids, manifest = folder / "ids.bin", folder / "manifest.json"
    content = ids.read_bytes()
    if damage == "flipped":
        ids.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        ids.write_bytes(content[:-1])
    elif damage == "grown":
        ids.write_bytes(content + b"\0")
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "strange manifest":
        manifest.write_text(manifest.read_text().replace("uint8", "float3"))
    elif damage == "no ids":
        ids.unlink()
    else:
        shutil.rmtree(folder)
        folder.write_text("in the way")
    assert np.array_equal(large(path).encode(tokenizer), expected)
    assert ids.read_bytes() == content
    (facts,) = cache.glob("*.json")
    for spoiled in (b"{", b"[]", facts.read_bytes().replace(b"characters", b"character")):
        facts.write_bytes(spoiled)
        assert large(path).characters == corpus.characters


BAD = [
    ("a.txt", b"abc \0def", "{path} is binary: it holds a NUL at byte 1048575"),
    ("a.txt", b"abc \xffdef", "{path} is not UTF-8 at byte 1048575"),
    ("a.txt", "abcé".encode()[:-1], "{path} is not UTF-8 at byte 1048574"),
    ("a.txt", "abcé".encode()[:-1] + b"\n", "{path} is not UTF-8 at byte 1048574"),
    ("a.jsonl", b'\n{"text": "a"}\nnonsense\n', "{path}, line 3: not a JSON object with a `text` field"),
    ("a.jsonl", b'\n{"text": "a\xff"}\n', "{path} is not UTF-8 at byte 1048583"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_used_is_refused_in_the_same_words(
    tmp_path: Path, cache: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b" " * (2**20 - 5) + content)  # the fault lies at the end of what is read at once
    for limit in (0, 10**12):
        with pytest.raises(DataError) as raised:
            load_text(path, large=limit)
        assert str(raised.value).startswith(message.format(path=path))
    assert not cached(cache)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "folder"])
def test_white_space_alone_is_no_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    ((path / "a.txt") if name == "folder" else path).write_text(" \n" * PIECE)
    messages = []
    for limit in (0, 10**12):
        with pytest.raises(DataError) as raised:
            load_text(path, large=limit)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_a_character_that_a_vocabulary_lacks_is_named_with_its_place(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = ["first", "a b " * (PIECE // 4) + "é"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.raises(TokenizerError, match=r"'é' .* at position 1 .*from character 262,143 of document 2"):
        large(path).encode(CharTokenizer(" \nabfirst"))
    assert len(cached(cache)) == 1, "what is half done is not kept"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setenv("LMLAB_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot keep tokens in .*file: .*; name another folder in LMLAB_CACHE_DIR"):
        large(tmp_path / "a.txt")


def test_what_another_machine_is_making_in_a_shared_cache_stays(tmp_path: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    theirs = cache / f".0123456789abcdef.tmp-{10**9}-0123abcd"  # of a process that cannot be seen from here
    theirs.mkdir()
    corpus = large(write_text(tmp_path / "a.txt"))
    corpus.encode(CharTokenizer(corpus.characters))
    assert theirs.is_dir()


def test_two_processes_at_once_make_it_once(tmp_path: Path, cache: Path) -> None:
    path = write_text(tmp_path / "a.txt")
    code = (
        "import sys, zlib\nfrom lmlab.corpus import load_text\nfrom lmlab.tokenizers import CharTokenizer\n"
        "corpus = load_text(sys.argv[1], large=0)\n"
        "print(zlib.crc32(corpus.encode(CharTokenizer(corpus.characters))))"
    )
    command = [sys.executable, "-c", code, str(path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], outputs
    assert len({answer for answer, _ in outputs}) == 1
    assert sorted(said.count("turning") for _, said in outputs) == [0, 0, 1]
    assert not [entry for entry in cache.iterdir() if entry.name.startswith(".")]


# --- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A file just beyond what is held in memory."""
    path = tmp_path_factory.mktemp("big") / "big.txt"
    text = corpus.read_text("utf-8") + "\n"
    path.write_text(text * (LARGE // len(text) + 1), "utf-8")
    return path


def told(run: lab.Run) -> list[dict[str, object]]:
    return [{k: v for k, v in e.items() if k not in TIMINGS} for e in events.read(run.folder / "log.jsonl")]


def test_a_run_on_large_text_resumes_bit_for_bit(big: Path, tiny: dict[str, object], cache: Path) -> None:
    tiny |= {"eval_cadence": 2, "eval_batches": 2, "train_ratio": 0.5}
    straight = lab.run(tiny, big, run_name="straight", listeners=[])
    kept = cached(cache)
    halved = lab.run(tiny, big, run_name="halved", listeners=[], max_steps=3, lr_decay_steps=6).resume(max_steps=6)
    assert cached(cache) == kept
    losses = [[(e["step"], e["loss"]) for e in told(run) if e["event"] == "step"] for run in (straight, halved)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
    tokenizer = straight.load()[1]
    ids = small(big).encode(tokenizer)
    data = straight.start["data"]
    assert data == {
        "path": str(big), "sha256": small(big).sha256, "n_tokens": len(ids), "n_train": len(ids) // 2,
        "n_val": len(ids) - len(ids) // 2, "begin_of_text_id": None,
    }  # fmt: skip


def test_a_large_text_behind_a_relative_path_is_trained_on(
    big: Path, tiny: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(big.parent)
    run = lab.run(tiny, big.name, listeners=[], max_steps=1)
    assert run.start["data"]["path"] == str(big)
    monkeypatch.chdir(tmp_path)
    assert run.resume(max_steps=2, listeners=[]).step == 2


def test_a_run_begun_in_memory_goes_on_from_disk(corpus: Path, tiny: dict[str, object], tmp_path: Path) -> None:
    """What a checkpoint says of its data holds for text on disk: old checkpoints of large files resume."""
    trainer = lab.build(tiny, corpus)
    disk = large(corpus)
    config, tokenizer = TrainingConfig.from_dict(tiny), trainer.tokenizer
    assert isinstance(tokenizer, Tokenizer)
    batches, _, facts = lab.load_batches(config, disk, tokenizer, seed=7)
    assert facts["data"] == trainer.facts["data"]
    for one, other, _ in zip(batches, trainer.train_dataloader or (), range(5), strict=False):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))


def test_tokenizers_that_end_documents_with_other_tokens_keep_other_ids(tmp_path: Path) -> None:
    """Of one vocabulary: a base model and its chat model may differ in just that."""
    (tmp_path / "texts").mkdir()
    for name in "abc":
        (tmp_path / "texts" / f"{name}.txt").write_text(f"the text of {name}")
    corpus, whole = large(tmp_path / "texts"), small(tmp_path / "texts")
    one, other = (tokenizer_ending_in(tmp_path / end, f"<|{end}|>") for end in ("one", "two"))
    assert one.identifier == other.identifier
    assert one.end_of_text_id != other.end_of_text_id
    for tokenizer in (one, other):
        assert corpus.encode(tokenizer).tolist() == whole.encode(tokenizer).tolist()


def tokenizer_ending_in(folder: Path, end: str) -> HFTokenizer:
    """A tokenizer with two tokens that could end documents, of which its settings name one."""
    from tokenizers import Tokenizer as Backend

    tiny_models.write_tokenizer(folder)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace("<|endoftext|>", "<|one|>"), "utf-8")
    backend = Backend.from_file(str(path))
    backend.add_special_tokens(["<|one|>", "<|two|>"])
    backend.save(str(path))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end})
    )
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    return HFTokenizer(folder)


def test_a_folder_gives_each_text_once_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "A.TXT").write_text("upper")
    (tmp_path / "b.txt").write_text("lower")
    (tmp_path / "latest.txt").symlink_to(tmp_path / "b.txt")
    assert load_text(tmp_path).documents == ["upper", "lower"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("hello".encode("utf-16"), "is UTF-16, not UTF-8; convert it: iconv -f UTF-16"),
        (gzip.compress(b"hello"), "is compressed by gzip; unpack it first"),
    ],
    ids=["UTF-16", "gzip"],
)
def test_text_in_another_wrapping_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=says):
        load_text(tmp_path / "a.txt")
