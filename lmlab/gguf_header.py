"""A look at the head of a GGUF file before any reader believes it: what it counts must be there.

The readers take every count of a file at its word, and one of 43 bytes can keep them busy, and filling memory, for
ever. The layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

MOST_ENTRIES = 1 << 16  # settings, or tensors
MOST_ELEMENTS = 1 << 24  # of one list; a vocabulary is the longest there is
MOST_DIMENSIONS = 4
WEIGHTS_A_BYTE = 8  # no format stores a weight in less than a bit
STRING, LIST = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of each plain type


class UnsoundGguf(ValueError):
    """A file whose head counts more than the file holds, or that is no GGUF file at all."""


class Head:
    """The part of a file that has been read, and how much there is of it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size = file, os.fstat(file.fileno()).st_size

    def number(self, kind: str) -> int:
        """The next number, of one of `struct`'s kinds. Raises UnsoundGguf."""
        width = struct.calcsize(f"<{kind}")
        data = self.file.read(width)
        if len(data) != width:
            raise UnsoundGguf("it ends within its header")
        value: int = struct.unpack(f"<{kind}", data)[0]
        return value

    def pass_over(self, n_bytes: int) -> None:
        """Go on behind the next bytes. Raises UnsoundGguf where there are fewer."""
        if n_bytes > self.size - self.file.tell():
            raise UnsoundGguf(f"its header speaks of {n_bytes:,} bytes that it does not hold")
        self.file.seek(n_bytes, os.SEEK_CUR)

    def count(self, kind: str, most: int, what: str) -> int:
        """The next number, which counts something. Raises UnsoundGguf where it is more than `most`."""
        value = self.number(kind)
        if value > most:
            raise UnsoundGguf(f"it counts {value:,} {what}, more than the {most:,} that any model has")
        return value

    def value(self) -> None:
        """Pass over one value, whatever its type. Raises UnsoundGguf."""
        kind = self.number("I")
        if kind != LIST:
            return self.elements(kind, 1)
        kind = self.number("I")
        return self.elements(kind, self.count("Q", MOST_ELEMENTS, "elements in a list"))

    def elements(self, kind: int, count: int) -> None:
        """Pass over so many values of a type that holds no others. Raises UnsoundGguf."""
        if kind == STRING:
            for _ in range(count):
                self.pass_over(self.number("Q"))
        elif kind in SIZES:
            self.pass_over(SIZES[kind] * count)
        else:
            raise UnsoundGguf(f"it has a value of the unknown type {kind}")


def check(path: Path) -> None:
    """Walk through the head of a GGUF file in bounded time and memory. Raises UnsoundGguf, OSError."""
    with open(path, "rb") as file:
        head = Head(file)
        if file.read(4) != b"GGUF":
            raise UnsoundGguf("it is no GGUF file")
        if head.number("I") not in (2, 3):
            raise UnsoundGguf("it is of a version of GGUF that is not read here")
        n_tensors = head.count("Q", MOST_ENTRIES, "tensors")
        for _ in range(head.count("Q", MOST_ENTRIES, "settings")):
            head.elements(STRING, 1)
            head.value()
        n_weights = 0
        for _ in range(n_tensors):
            head.elements(STRING, 1)
            weights = 1
            for _ in range(head.count("I", MOST_DIMENSIONS, "dimensions of a tensor")):
                weights *= head.number("Q")
            head.pass_over(4 + 8)  # its type and place
            n_weights += weights
        if n_weights > WEIGHTS_A_BYTE * head.size:
            raise UnsoundGguf(f"it speaks of {n_weights:,} weights, which do not fit its {head.size:,} bytes")
