"""GGUF files that lie: each is refused in a moment, by the import too, and a true one passes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from lmlab import gguf_header, hub
from lmlab.errors import HubError

LIST, STRING, UINT8, UINT32, FLOAT64 = 9, 8, 0, 4, 12


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def setting(kind: int, value: bytes, key: bytes = b"key") -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def many(kind: int, count: int, elements: bytes = b"") -> bytes:
    return setting(LIST, struct.pack("<IQ", kind, count) + elements)


def head(*settings: bytes, n_tensors: int = 0, n_settings: int | None = None, version: int = 3) -> bytes:
    count = len(settings) if n_settings is None else n_settings
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, count) + b"".join(settings)


def tensor(*dimensions: int, n_dimensions: int | None = None) -> bytes:
    count = len(dimensions) if n_dimensions is None else n_dimensions
    return string(b"w") + struct.pack(f"<I{len(dimensions)}QIQ", count, *dimensions, 0, 0)


LIES = {
    "an endless list": head(many(UINT8, 1 << 63)),
    "an endless list of nothing": head(many(99, 1 << 62)),
    "a list of lists": head(many(LIST, 1, struct.pack("<IQ", UINT8, 0))),
    "a list longer than the file": head(many(FLOAT64, 1 << 20)),
    "strings beyond the file": head(many(STRING, 1 << 20, string(b"a"))),
    "a string of 2^62 bytes": head(setting(STRING, struct.pack("<Q", 1 << 62))),
    "a key of 2^62 bytes": head(struct.pack("<Q", 1 << 62), n_settings=1),
    "2^63 settings": head(n_settings=1 << 63),
    "2^62 tensors": head(n_tensors=1 << 62),
    "2^30 dimensions": head(tensor(n_dimensions=1 << 30), n_tensors=1, n_settings=0),
    "sizes that overflow": head(tensor(4194305, 4194305, 211106198978564), n_tensors=1, n_settings=0),
    "one weight too many": head(tensor(1 << 40), n_tensors=1, n_settings=0),
    "an unknown type": head(setting(77, b"")),
    "a cut header": head(setting(UINT32, b"\1\0")),
    "version 1": head(version=1),
    "no GGUF": b"PK\3\4" + bytes(100),
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    (tmp_path / "lie.gguf").write_bytes(LIES[lie])
    with pytest.raises(gguf_header.UnsoundGguf):
        gguf_header.check(tmp_path / "lie.gguf")
    with pytest.raises(HubError, match=r"lie\.gguf cannot be read as a GGUF model: it"):
        hub.import_model(str(tmp_path / "lie.gguf"), models_dir=tmp_path / "models")
    assert not list((tmp_path / "models").glob("[!.]*"))


def test_a_true_file_passes(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(tmp_path / "true.gguf"), "llama")
    writer.add_name("true")
    writer.add_token_list(["a", "b", ""])
    writer.add_token_scores([0.5, 1.5])
    writer.add_uint32("general.alignment", 32)
    writer.add_bool("flag", True)
    writer.add_tensor("w", np.zeros((8, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    gguf_header.check(tmp_path / "true.gguf")
