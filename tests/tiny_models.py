"""Tiny random models in the real Hugging Face layout, with a byte-level BPE trained on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

END_OF_TEXT = "<|endoftext|>"
SENTENCE = "the capital of France is Paris and a small boat went over the quiet sea to find old friends"
VOCABULARY = 320  # 256 bytes, merges, one end-of-text


def text(n_words: int = 2000) -> str:
    """Words in a fixed order that repeats only late: enough to train a BPE and to fit a tiny model on."""
    words = SENTENCE.split()
    return " ".join(words[(i * i + i // 7) % len(words)] for i in range(n_words))


def write_tokenizer(
    folder: Path,
    tokenizer_class: str = "Qwen2Tokenizer",
    vocabulary: int = VOCABULARY,
    training_text: str | None = None,
) -> int:
    """Train a byte-level BPE on `text()`, or on another text, and write its files. Returns the id of end-of-text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([training_text or text()], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"]))
    settings = {"tokenizer_class": tokenizer_class, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    end = tokenizer.token_to_id(END_OF_TEXT)
    assert isinstance(end, int)
    return end


def write_llama_tokenizer(folder: Path, **settings: Any) -> Path:
    """A tokenizer as that of Llama 2: characters that have no token of their own are bytes. settings: besides the usual."""
    from tokenizers import Tokenizer, models

    words = {word for word in SENTENCE.split() if len(word) > 2}
    letters = sorted({"▁", *(letter for word in words for letter in word)})
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *letters,
        "▁t",
        "▁th",
        "▁the",
        "th",
        "the",
    ]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("t", "h"), ("th", "e")]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    values = {"tokenizer_class": "LlamaTokenizer", **special, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
LINEAR: dict[str, Any] = {  # attention with a state in the first layer, with all keys in the second
    **SHAPE,
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": {**SHAPE, "tie_word_embeddings": True},
    "qwen3": {**SHAPE, "head_dim": 16, "tie_word_embeddings": False},
    "llama": {**SHAPE, "tie_word_embeddings": False},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2},
    "qwen3_5_text": LINEAR,
    "qwen3_next": {
        **LINEAR,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "deepseek_v32": {  # of which a token looks at four others
        **SHAPE,
        "num_key_value_heads": 4,
        "index_topk": 4,
        "index_n_heads": 2,
        "index_head_dim": 16,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
}
TOKENIZER_CLASS = {"gpt2": "GPT2Tokenizer", "llama": "PreTrainedTokenizerFast"}


def make(folder: Path, model_type: str = "qwen2", seed: int = 0, **changes: Any) -> Path:
    """A random model of a transformers model type, saved as its authors would save it. Returns the folder.

    changes: values of the config. Weights are fp32.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    end = write_tokenizer(folder, TOKENIZER_CLASS.get(model_type, "Qwen2Tokenizer"))
    values = {"vocab_size": VOCABULARY, "eos_token_id": end, "bos_token_id": end, "pad_token_id": None}
    config = AutoConfig.for_model(model_type, **{**values, **CONFIGS.get(model_type, SHAPE), **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder
