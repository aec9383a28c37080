"""Training text: where it lies, whether it can be used, and its tokens.

Up to LARGE bytes of it are held in memory. What is larger stays on disk: it is read in pieces, and its tokens are a
mapped file (see `token_cache`), so that a corpus may be larger than memory.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from lmlab import storybook, token_cache
from lmlab.errors import DataError, TokenizerError
from lmlab.files import describe_os_error, is_hidden, sha256_bytes, sha256_file
from lmlab.places import find_file, from_root
from lmlab.tokenizers import SEPARATOR, Ids, Tokenizer
from lmlab.words import size

STORYBOOK = "storybook"
STORYBOOK_CHARACTERS = 1_000_000
LARGE = 16_000_000  # bytes; a tokenizer of Hugging Face takes some 50 bytes of memory for each
BLOCK = 1 << 20  # bytes read at once
PIECE = 1 << 18  # characters encoded at once, part of what a large corpus's ids are: see `cut`
GROUP = 8 * PIECE  # characters encoded side by side
READING = 1  # of the rules by which files become pieces; other rules make other ids

Stamps = tuple[tuple[Path, int, int], ...]  # files with their size and time of change


@dataclass(frozen=True)
class Corpus:
    """Training text and where it came from. documents: in order; path: as given, from the root where it is a file."""

    documents: list[str]
    path: str
    sha256: str

    @property
    def text(self) -> str:
        """All documents, separated by an empty line."""
        return SEPARATOR.join(self.documents)

    @property
    def characters(self) -> str:
        """Every character of the text, in the order of their code points."""
        return "".join(sorted(set(self.text)))

    @property
    def is_storybook(self) -> bool:
        """Whether this is the built-in corpus, whose entropy is known."""
        return is_storybook(self.path)

    def encode(self, tokenizer: Tokenizer) -> Ids:
        """The ids of the whole text, documents parted as the tokenizer does. Raises TokenizerError."""
        return tokenizer.encode_documents(self.documents)


@dataclass(frozen=True)
class LargeCorpus:
    """A corpus that stays on disk; `sha256`, `characters` and ids are what they would be in memory.

    files: what is read. content: the digest of their bytes, by which all that was found out about them is kept. It is
    computed anew at every start, a second or so for each GB: names, sizes and times of change may lie.
    """

    path: str
    sha256: str
    characters: str
    files: Stamps
    content: str
    is_storybook = False

    def encode(self, tokenizer: Tokenizer) -> Ids:
        """The ids of the whole text as a mapped file, made at the first call. Raises DataError and TokenizerError.

        A document longer than a piece is encoded piece by piece, as `cut` says.
        """
        return token_cache.kept_ids(
            # The identifier says nothing of what stands between documents.
            f"{self.content}-{tokenizer.identifier}-{tokenizer.end_of_text_id}-{tokenizer.begin_of_text_id}",
            tokenizer.vocab_size,
            lambda: tokens(unchanged(self.files, Path(self.path)), tokenizer),
            f"{self.path}: turning {size_of(self.files)} of text into tokens of {tokenizer.identifier}",
        )


def load_text(data: str | Path | None = None, *, large: int = LARGE) -> Corpus | LargeCorpus:
    """The corpus at `data`: a UTF-8 file, a folder of .txt, a .jsonl with a `text` field, or the built-in storybook.

    None or "storybook" is the built-in corpus of 1 MB, "storybook:N" of N characters; a file of that name is
    "./storybook". large: bytes from which on text stays on disk. Raises DataError naming the file, and the byte or line
    in it, that cannot be used.
    """
    if data is None or (isinstance(data, str) and data.split(":")[0] == STORYBOOK):
        return load_storybook(data or STORYBOOK)
    path = find_file(data)
    with errors_named(path):
        root = from_root(path)
        if sum(n_bytes for _, n_bytes, _ in stamps(files_of(path))) > large:
            return load_large(root, stamps(files_of(root)))
        pieces = list(read_pieces(path))  # whose errors name it as it was given
    documents = ["".join(p.text for p in parts) for _, parts in itertools.groupby(pieces, lambda p: p.document)]
    return Corpus(documents, str(root), sha256_bytes("\0".join(documents).encode()))


def is_large(data: str | Path | None = None) -> bool:
    """Whether it takes long to read what `load_text` would read, which is not done. Raises DataError where there is none."""
    if data is None or (isinstance(data, str) and data.split(":")[0] == STORYBOOK):
        return storybook_size(data or STORYBOOK) > LARGE
    path = find_file(data)
    with errors_named(path):
        return sum(n_bytes for _, n_bytes, _ in stamps(files_of(path))) > LARGE


@contextlib.contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Turn what the disk raises while `path` is read into a DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            f"no data at {path}: give --data a text file, a .jsonl or a folder of .txt, or leave it out"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {describe_os_error(error)}") from error


def is_storybook(path: object) -> bool:
    """Whether the path of a run's data, as its log has it, is that of the built-in corpus."""
    return str(path).split(":")[0] == STORYBOOK


def storybook_characters(path: object) -> int:
    """About how many characters of the built-in corpus such a path stands for."""
    n_characters = str(path).partition(":")[2]
    return int(n_characters) if n_characters.isdecimal() else STORYBOOK_CHARACTERS


def load_storybook(name: str) -> Corpus:
    """The built-in corpus: "storybook" or "storybook:N" for about N characters. Raises DataError on another N."""
    text = storybook.generate(storybook_size(name))
    return Corpus([text], name, sha256_bytes(text.encode()))


def storybook_size(name: str) -> int:
    """N of "storybook:N", that of "storybook" by itself. Raises DataError where it is no number that can be."""
    n_characters = name.partition(":")[2] or str(STORYBOOK_CHARACTERS)
    if not n_characters.isascii() or not n_characters.isdigit() or not 1 <= int(n_characters) <= 10**9:
        raise DataError(f"{name!r} is no size of the storybook: write storybook:N, N characters from 1 to 1000000000")
    return int(n_characters)


def load_large(path: Path, files: Stamps) -> LargeCorpus:
    """A corpus on disk, read through once if that was never done. Raises DataError and OSError."""
    kind = "folder" if path.is_dir() else "jsonl" if is_json_lines(path) else "text"
    digests = "".join(sha256_file(file) for file, _, _ in files)
    content = sha256_bytes(f"{kind} {READING} {digests}".encode())
    facts = token_cache.kept_facts(
        content, lambda: survey(unchanged(files, path)), f"{path}: reading {size_of(files)} of text for the first time"
    )
    return LargeCorpus(str(path), facts["sha256"], facts["characters"], files, content)


# --- reading ----------------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """A part of a document. document: its number; start: the characters of the document before it."""

    document: int
    start: int
    text: str


def files_of(path: Path) -> list[Path]:
    """The files of a corpus: every .txt below a folder in the order of their names, or `path` itself.

    Not hidden ones: editors keep copies in them, and a text must not be trained on and validated on. Links to folders
    are followed, each folder once. Raises OSError where a folder cannot be read.
    """
    if not path.is_dir():
        return [path]

    def refuse(error: OSError) -> NoReturn:
        raise error

    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    begins = [path]  # folders of its own come first, so that what a link leads to as well keeps its own name
    for begin in begins:
        for folder, folders, names in os.walk(begin, onerror=refuse):
            stat = os.stat(folder)
            shown = sorted(name for name in folders if not is_hidden(Path(name)))
            folders[:] = [name for name in shown if not os.path.islink(os.path.join(folder, name))]
            if (stat.st_dev, stat.st_ino) in seen:
                folders.clear()
                continue
            seen.add((stat.st_dev, stat.st_ino))
            begins += [Path(folder, name) for name in shown if name not in folders]
            texts = (name for name in names if name.lower().endswith(".txt"))
            found += [Path(folder, name) for name in texts if not is_hidden(Path(name))]
    once: dict[tuple[int, int], Path] = {}  # links and all, by the first of its names
    for file in sorted(found):
        if file.is_file():
            status = file.stat()
            once.setdefault((status.st_dev, status.st_ino), file)
    return list(once.values())


def stamps(files: Iterable[Path]) -> Stamps:
    """Files with their size and time of change. Raises OSError."""
    return tuple((file, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)


def size_of(files: Stamps) -> str:
    """The bytes of all files, in words."""
    return size(sum(n_bytes for _, n_bytes, _ in files))


def unchanged(files: Stamps, path: Path) -> Iterator[Piece]:
    """The pieces of a corpus. Raises DataError, at their end also where the files are not as they were."""
    try:
        yield from read_pieces(path)
        if stamps(files_of(path)) != files:
            raise DataError(f"{path} changes while it is read; start again when it is complete")
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {describe_os_error(error)}") from error


def read_pieces(path: Path) -> Iterator[Piece]:
    """The documents at `path` in pieces, those without text left out. Raises DataError and OSError."""
    n_documents = 0
    documents = read_json_lines(path) if is_json_lines(path) else map(read_file, files_of(path))
    for document in documents:
        start = 0
        for text in from_first_text(cut(document)):
            yield Piece(n_documents, start, text)
            start += len(text)
        n_documents += start > 0
    if n_documents == 0 and path.is_dir():
        raise DataError(f"the folder {path} holds no .txt file with text in it; give one file, or name them so")
    if n_documents == 0:
        what = "no line holds any text" if is_json_lines(path) else "give a file with text in it"
        raise DataError(f"{path} is empty: {what}")


def is_json_lines(path: Path) -> bool:
    """Whether a path is read as a .jsonl: a file that is named so, in capitals or not."""
    return path.suffix.lower() == ".jsonl" and not path.is_dir()


def read_file(path: Path) -> Iterator[str]:
    """The text of one file as it is read. Raises DataError where it is binary or not UTF-8, and OSError."""
    with open(path, "rb") as file:
        yield from decoded(iter(lambda: file.read(BLOCK), b""), path)


def read_json_lines(path: Path) -> Iterator[list[str]]:
    """The `text` of every line of a .jsonl, each a document. Raises DataError naming the line, and OSError."""
    with open(path, "rb") as file:
        for number, line in enumerate(decoded(file, path), 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: not a JSON object with a `text` field") from error
            if not isinstance(text, str):
                raise DataError(f"{path}, line {number}: `text` is not a string")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                what = f"U+{ord(text[error.start]):04X} at {error.start}"
                raise DataError(f"{path}, line {number}: `text` holds half of a surrogate pair, {what}") from error
            yield [text]


def decoded(chunks: Iterable[bytes], path: Path) -> Iterator[str]:
    """UTF-8 bytes as text, a byte-order mark dropped. Raises DataError with the offset of the first wrong byte."""
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    for chunk in itertools.chain(chunks, [b""]):
        if offset == 0 and (other := other_format(chunk)):
            raise DataError(f"{path} is {other}")
        if b"\0" in chunk:
            at = offset + chunk.index(0)
            raise DataError(f"{path} is binary: it holds a NUL at byte {at}; give a UTF-8 text file")
        begun = len(decoder.getstate()[0])  # bytes of a character that the last chunk left unfinished
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            at = offset - begun + error.start
            raise DataError(f"{path} is not UTF-8 at byte {at}; convert it to UTF-8 first") from error
        yield text.removeprefix("\ufeff") if offset == 0 else text
        offset += len(chunk)


def other_format(begin: bytes) -> str:
    """What a file is that begins so and is no UTF-8, with what to do; empty where that is not known."""
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW"
    return "compressed by gzip; unpack it first: gunzip FILE.gz" if begin.startswith(b"\x1f\x8b") else ""


def cut(texts: Iterable[str]) -> Iterator[str]:
    """Text cut anew into pieces of at most PIECE characters, the same however it comes in.

    A piece ends before a space that follows no other white space. There the patterns by which byte-level tokenizers cut
    text into words end a word, too, so that the ids are those of the uncut text; a tokenizer that sees more than a word
    may give other ids around a cut. Where the last half of a piece has no such space, it ends anywhere.
    """
    left = ""
    for text in texts:
        left += text
        while len(left) > PIECE:
            end = left.rfind(" ", PIECE // 2, PIECE)
            while end > 0 and left[end - 1].isspace():
                end = left.rfind(" ", PIECE // 2, end)
            end = end if end > 0 else PIECE
            yield left[:end]
            left = left[end:]
    if left:
        yield left


def from_first_text(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces of a document, none where all of it is white space."""
    blank = []
    for piece in pieces:
        blank.append(piece)
        if piece.strip():
            yield from blank
            yield from pieces


# --- large text ---------------------------------------------------------------------------------------------------


def survey(pieces: Iterable[Piece]) -> dict[str, str]:
    """The digest of a text and its characters, from its pieces."""
    digest, seen, document = hashlib.sha256(), np.zeros(0x110000, dtype=bool), 0
    for piece in pieces:
        if piece.document != document:
            digest.update(b"\0")
            seen[[ord(character) for character in SEPARATOR]] = True
        document = piece.document
        digest.update(piece.text.encode())
        seen[np.frombuffer(piece.text.encode("utf-32-le"), dtype=np.uint32)] = True
    return {"sha256": digest.hexdigest(), "characters": "".join(map(chr, np.flatnonzero(seen)))}


def tokens(pieces: Iterable[Piece], tokenizer: Tokenizer) -> Iterator[Ids]:
    """The ids of documents in a row, with the tokenizer's border between them. Raises TokenizerError with the place."""
    document = 0
    for group in in_groups(pieces):
        try:
            encoded = tokenizer.encode_batch([piece.text for piece in group])
        except TokenizerError:
            refuse_piece(group, tokenizer)
            raise
        for piece, ids in zip(group, encoded, strict=True):
            if piece.document != document:
                yield tokenizer.border()
                ids = tokenizer.begun(ids) if tokenizer.end_of_text_id is not None else ids
            document = piece.document
            yield ids


def in_groups(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces together, as many as make up GROUP characters."""
    group: list[Piece] = []
    n_characters = 0
    for piece in pieces:
        group.append(piece)
        n_characters += len(piece.text)
        if n_characters >= GROUP:
            yield group
            group, n_characters = [], 0
    if group:
        yield group


def refuse_piece(group: Sequence[Piece], tokenizer: Tokenizer) -> None:
    """Raise the TokenizerError of the first piece that has one, saying where the piece begins."""
    for piece in group:
        try:
            tokenizer.encode(piece.text)
        except TokenizerError as error:
            where = f"counted from character {piece.start:,} of document {piece.document + 1}"
            raise TokenizerError(f"{error} ({where})") from error
