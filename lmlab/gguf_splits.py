"""How the byte-level tokenizer of a GGUF file splits text before it merges bytes: the file has a name for it, no more.

The names, and what they stand for: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmlab.words import one_line

LIKE_GPT2 = {
    "a.x-4.0", "exaone4", "gigachat", "gpt-2", "granite-docling", "jais", "mellum", "mpt", "olmo", "phi-2", "trillion",
}  # fmt: skip
DIGITS_APART = {"codeshell", "command-r", "exaone", "mellum2", "minerva-7b", "refact", "smollm", "starcoder"}
PROBE = "It's DON'T  2024 ½ helloWorld, cafe\u0301?!\n\n  a/b/\n c "  # no two of all splits make the same of it


def name_of_split(reader: Any) -> tuple[bool, str | None]:
    """Whether a GGUF file's tokenizer is byte-level, and the name of its split, None where it states none."""
    model, name = (reader.get_field(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    return model is not None and model.contents() == "gpt2", None if name is None else str(name.contents())


def split_of(name: str | None) -> Any:
    """The pre-tokenizer of a name, None where it is not known."""
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    like_gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in LIKE_GPT2:
        return like_gpt2
    if name in DIGITS_APART:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), like_gpt2])
    if name not in GGUF_PRE_TOKENIZER_SPLITS:
        return None
    split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def split_notes(reader: Any) -> list[str]:
    """What a user should know of the tokenizer of a GGUF file: that its split of text is not known."""
    byte_level, name = name_of_split(reader)
    if not byte_level or split_of(name) is not None:
        return []
    how = "is not stated" if name is None else f"({one_line(name, 60)}) is not known here"
    return [f"how its tokenizer splits text {how}: it may give other tokens than the model was trained on"]


def read_tokenizer(folder: Path, reader: Any) -> Any:
    """The tokenizer of the `model.gguf` in a temporary folder, which splits text as the file says where that is known.

    Its class is one that brings a split of its own when it is loaded again only where that is the same.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf", local_files_only=True)
    byte_level, name = name_of_split(reader)
    split = split_of(name) if byte_level else None
    if split is None:
        return tokenizer
    tokenizer.save_pretrained(folder / "again")
    again = type(tokenizer).from_pretrained(folder / "again", local_files_only=True)
    if pieces(again.backend_tokenizer.pre_tokenizer) == pieces(split):
        return tokenizer
    plain = PreTrainedTokenizerFast.from_pretrained(folder / "again", local_files_only=True)
    plain.backend_tokenizer.pre_tokenizer = split
    return plain


def pieces(split: Any) -> list[str]:
    """What a pre-tokenizer makes of the probe."""
    return [] if split is None else [piece for piece, _ in split.pre_tokenize_str(PROBE)]
