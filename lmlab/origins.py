"""Where a model can come from besides the hub, and what every newcomer must show before it is registered.

A model's folder holds plain files only: weights in safetensors, its config, its tokenizer, its licence. Nothing else is
taken along, whatever the source: no code, no pickles, no folders.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmlab import gguf_header, gguf_splits, plain_yaml
from lmlab.entries import CONFIG, FILE_NAME, INDEX, WEIGHTS
from lmlab.errors import CheckpointError, HubError, TokenizerError
from lmlab.files import (
    describe_os_error,
    dump_json,
    is_disk_full,
    plain_os_errors,
    read_json,
    read_object,
    share_tensors,
    stays_in,
    write_atomic,
)
from lmlab.hostile_tokenizers import SPECIAL_TOKENS_MAP, special_tokens, without_paths
from lmlab.words import one_line

if TYPE_CHECKING:
    from lmlab.adapters.base import BaseAdapter

TOKENIZER_FILES = (
    "added_tokens.json", "char_tokenizer.json", "chat_template.jinja", "merges.txt", "sentencepiece.bpe.model",
    "special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "vocab.json", "vocab.txt",
)  # fmt: skip
LICENSE_LINES = re.compile(r"^(license|license_name):[ ]*(.*(?:\n[ ]*- .*)*)", re.MULTILINE)
LICENSE_FILE = re.compile(r"(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)(\.(txt|md))?", re.IGNORECASE)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
LARGEST = {CONFIG: 4 << 20, INDEX: 32 << 20}  # bytes; other files but weights: LARGEST_OTHER
LARGEST_OTHER = 256 << 20
TINY_PARAMETERS = 1_116_288  # of builtin:tiny-qwen
FACTORS = ("rope_freqs.", "rope_factors_")  # begin the names of a GGUF file's numbers for positions
PROBE = 8  # tokens of the forward pass that a newcomer has to survive


def chosen_files(names: Iterable[str], what: str) -> list[str]:
    """Which of a source's files to take, but for the shards that an index names. Raises HubError where weights lack."""
    there = set(names)
    if "adapter_config.json" in there and CONFIG not in there:
        raise HubError(
            f"{what} is an adapter (LoRA or the like), not a model; merge it into its model, then import that"
        )
    wanted = {CONFIG, "generation_config.json", *TOKENIZER_FILES}
    taken = sorted(name for name in there if name in wanted or LICENSE_FILE.fullmatch(name))
    if CONFIG not in there:
        raise HubError(f"{what} has no {CONFIG}, so it is no model in the Hugging Face layout; choose another one")
    weights = WEIGHTS if WEIGHTS in there else INDEX
    if weights not in there:
        pickled = next((name for name in sorted(there) if name.endswith(PICKLES)), None)
        has = f"only {one_line(pickled, 60)}, which can run code" if pickled else "no weights"
        raise HubError(f"{what} has no safetensors weights ({has}); choose one that has, or another revision of it")
    return [*taken, weights]


def shards(index: Path, names: Iterable[str], what: str) -> list[str]:
    """The weight files that an index names, all of which must be among `names`. Raises HubError."""
    from lmlab.adapters.pretrained import shard_names

    try:
        named = shard_names(index)
    except CheckpointError as error:
        raise HubError(f"the index of {what} is not sound; choose another model") from error
    missing = [name for name in named if name not in set(names)]
    if missing:
        raise HubError(f"{what} lacks {missing[0]}, which its index names; ask its authors, or choose another revision")
    return named


def refuse_oversized(name: str, size: int, what: str) -> None:
    """Raise HubError where a config, index or tokenizer is larger than any real one."""
    if not name.endswith(".safetensors") and size > LARGEST.get(name, LARGEST_OTHER):
        raise HubError(f"{name} of {what} has {size:,} bytes, far more than such a file has; choose another model")


def folder_files(folder: Path) -> dict[str, int]:
    """The plain files directly in a folder, by name, with their sizes; links count where they lead to a file."""
    found = {}
    for entry in os.scandir(folder):
        try:
            status = entry.stat()
        except OSError:  # a link that leads nowhere
            continue
        if stat.S_ISREG(status.st_mode) and FILE_NAME.fullmatch(entry.name):
            found[entry.name] = status.st_size
    return found


def select_from_folder(folder: Path) -> dict[str, int]:
    """The files of a local folder that make up its model, with their sizes. Raises HubError."""
    what = f"the folder {folder}"
    if (folder / "state.json").exists() and (folder / "manifest.json").exists():
        raise HubError(f"{folder} is a checkpoint of a run; use `register-model {folder} --name NAME`")
    if (folder / "log.jsonl").exists() and (folder / "checkpoints").is_dir():
        raise HubError(f"{folder} is a run; use `register-model {folder} --name NAME`")
    there = folder_files(folder)
    names = chosen_files(there, what)
    for name in names:
        refuse_oversized(name, there[name], what)
        refuse_link_away(folder, name)
    if names[-1] == INDEX:
        names += shards(folder / INDEX, there, what)
        for name in names:
            refuse_link_away(folder, name)
    return {name: there[name] for name in names}


def refuse_link_away(folder: Path, name: str) -> None:
    """Raise HubError where a file is a link to what is neither in its folder nor in the cache that the hub's client made.

    Else a folder from somebody else could bring any file of this machine into a model, to be published with it.
    """
    path = folder / name
    if not stays_in(folder, path):
        raise HubError(
            f"{name} of the folder {folder} is a link to {path.resolve()}, outside of it; put the file itself there"
        )


def license_of(folder: Path) -> str | None:
    """The licence that a folder's model card states at its head, None where it states none."""
    try:
        with open(folder / "README.md", encoding="utf-8") as file:
            _, head, _ = file.read(1 << 16).split("---\n", 2)
    except (OSError, ValueError):
        return None
    stating = LICENSE_LINES.findall(head)  # the rest may nest as it likes
    lines = "".join(f"{name}: {value}\n" for name, value in stating)
    try:
        stated, _ = plain_yaml.read_mapping(lines)
    except ValueError:
        return None
    named = stated.get("license_name") if stated.get("license") == "other" else None
    found = named or stated.get("license")
    return one_line(", ".join(map(str, found)) if isinstance(found, list) else found or "", 100) or None


def copy_files(folder: Path, names: Iterable[str], target: Path) -> None:
    """Copy files, not links, into `target`. Raises HubError, and OSError where the disk is full."""
    try:
        for name in names:
            shutil.copyfile(folder / name, target / name)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise HubError(
            f"cannot copy {name} from {folder}: {describe_os_error(error)}; check its permissions"
        ) from error


@contextlib.contextmanager
def gguf_errors(path: Path) -> Iterator[None]:
    """Turn whatever the readers of a GGUF file raise into a HubError."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise HubError("reading a .gguf file needs the extra `gguf`: pip install 'lmlab[gguf]'") from error
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # the readers raise whatever a damaged file makes of them; all of it means the same here
        raise HubError(f"{path} cannot be read as a GGUF model: {one_line(error)}; choose another file") from error


def gguf_facts(path: Path) -> tuple[int, str | None, list[str]]:
    """The number of weights in a GGUF file, the licence that it states, and what to know of it. Raises HubError."""
    with gguf_errors(path):
        from gguf import GGUFReader

        gguf_header.check(path)
        reader = GGUFReader(path)
        stated = reader.get_field("general.license")
        license = None if stated is None else one_line(stated.contents(), 100)
        n_weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
        scales, notes = scales_positions(reader), gguf_splits.split_notes(reader)
    if scales:
        raise HubError(
            f"{path} scales its positions in a way that is not taken over from a GGUF file; import the original model"
        )
    return n_weights, license, notes


def scales_positions(reader: Any) -> bool:
    """Whether a file's rotary positions are scaled, as those of Llama 3.1, in what transformers does not read of it."""
    stated = reader.get_field("general.architecture")
    architecture = None if stated is None else stated.contents()
    if architecture == "gpt-oss":  # the one that it reads all of
        return False
    scaling = reader.get_field(f"{architecture}.rope.scaling.type")
    factors = [tensor for tensor in reader.tensors if tensor.name.startswith(FACTORS)]
    named = scaling is not None and scaling.contents() != "none"
    return named or any(bool((tensor.data != 1).any()) for tensor in factors)


def refuse_left_out(path: Path, reader: Any, values: dict[str, Any], model: Any) -> None:
    """Raise HubError where a GGUF file holds tensors that transformers has no place for, and would drop without a word.

    values: the config as transformers reads it. model: what it describes, on the meta device.
    """
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    architecture = reader.get_field("general.architecture").contents()
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=values)
    places = get_gguf_hf_weights_map(model, processor)  # those of experts are named without the ending
    names = [tensor.name for tensor in reader.tensors if not tensor.name.startswith(FACTORS)]
    left_out = [name for name in names if name not in places and name.removesuffix(".weight") not in places]
    if left_out:
        named = one_line(", ".join(left_out[:3]), 120) + (f" and {len(left_out) - 3} more" if len(left_out) > 3 else "")
        raise HubError(
            f"{path} cannot be taken over whole: transformers reads no {one_line(architecture)} with {named}; import the "
            "original model"
        )


def convert_gguf(path: Path, target: Path) -> None:
    """Read a GGUF file through transformers and write config, tokenizer and fp32 safetensors. Raises HubError, OSError."""
    import torch
    from safetensors.torch import save_file
    from transformers import CONFIG_MAPPING
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    from lmlab.adapters.pretrained import model_class, quiet, refuse_absurd
    from lmlab.tokenizers import Tokenizer, keep_apart

    with gguf_errors(path):
        from gguf import GGUFReader

        gguf_header.check(path)
        reader = GGUFReader(path)
        with quiet():
            values = load_gguf_checkpoint(str(path))["config"]
            refuse_absurd(values, path)
            config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
            with torch.device("meta"):
                model = model_class(config)(config)
            refuse_left_out(path, reader, values, model)
            tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
            with tempfile.TemporaryDirectory() as alone:  # else the tokenizer would be read from what lies beside it
                (Path(alone) / "model.gguf").symlink_to(path.resolve())
                tokenizer = gguf_splits.read_tokenizer(Path(alone), reader)
    config.architectures = [type(model).__name__]
    config.dtype = torch.float32
    plain = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    with quiet(), plain_os_errors():
        tokenizer.save_pretrained(str(target))
        identifier = Tokenizer.load(target).identifier
        config.save_pretrained(str(target))
        keep_apart(target, identifier)  # from what transformers makes of any tokenizer beside some models
        save_file(plain, target / WEIGHTS, metadata={"format": "pt"})
        share_tensors(target)


def make_tiny_qwen(target: Path) -> None:
    """Write a random Qwen 2 of 1.1 million parameters with a byte-level BPE trained on the storybook, always the same.

    Raises OSError.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from lmlab import storybook
    from lmlab.adapters.pretrained import quiet
    from lmlab.isolation import on_its_own

    end = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([storybook.generate(200_000, seed=0)], trainer)
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": end, "pad_token": end, "model_max_length": 512}
    config = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.token_to_id(end),
    )
    with quiet(), on_its_own(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
    with quiet(), plain_os_errors():
        tokenizer.save(str(target / "tokenizer.json"))
        write_atomic(target / "tokenizer_config.json", dump_json(settings))
        model.save_pretrained(target)
        share_tensors(target)


def disarm(folder: Path) -> list[str]:
    """Take out of the JSON files what makes transformers run code or read elsewhere. Returns the files changed."""
    from lmlab.adapters.pretrained import harmless

    changed = []
    for name in (CONFIG, "generation_config.json", "tokenizer_config.json", SPECIAL_TOKENS_MAP):
        path = folder / name
        if path.exists():
            try:
                values = read_json(path)
            except ValueError as error:
                raise HubError(f"{name} is no JSON; choose another model or revision") from error
            safe = harmless(values)
            if name == "tokenizer_config.json":
                safe = without_paths(safe)
            if name == SPECIAL_TOKENS_MAP and isinstance(safe, dict):
                safe = special_tokens(safe)
            if safe != values:
                write_atomic(path, (json.dumps(safe, indent=2, ensure_ascii=False) + "\n").encode())  # Infinity, too
                changed.append(name)
    return changed


def examine(folder: Path, what: str) -> tuple[BaseAdapter, list[str]]:
    """Load the model in a folder and run a few tokens through it, and its tokenizer; with what to know of both.

    On the way its shapes are compared with the files' on the meta device, before memory is spent. Raises HubError saying
    what fails, and OutOfMemory.
    """
    from lmlab.isolation import on_its_own
    from lmlab.loading import load_adapter

    try:
        with on_its_own():
            adapter = load_adapter(folder)
            try_forward(adapter, what)
        notes = [*weights_notes(adapter), *tokenizer_notes(folder, adapter.vocab_size)]
    except CheckpointError as error:
        raise HubError(f"{what} cannot be used: {without_folder(error, folder)}") from error
    except TokenizerError as error:
        raise HubError(f"the tokenizer of {what} cannot be used: {without_folder(error, folder)}") from error
    return adapter, notes


def without_folder(error: Exception, folder: Path) -> str:
    """What an error says, without the path of the hidden folder that means nothing to a user."""
    return one_line(str(error).replace(f"{folder}{os.sep}", "").replace(str(folder), "it"), 300)


def architecture(folder: Path) -> dict[str, Any]:
    """The values of a folder's config. Raises CheckpointError."""
    return read_object(folder / CONFIG, CheckpointError)


def try_forward(adapter: BaseAdapter, what: str) -> None:
    """Run a few tokens: the logits must be finite, one for each token, and blind to the future. Raises HubError."""
    import torch

    ids_BT = torch.arange(PROBE)[None] % adapter.vocab_size
    changed_BT = ids_BT.clone()
    changed_BT[0, -1] = (ids_BT[0, -1] + 1) % adapter.vocab_size
    try:
        with torch.no_grad():
            logits_BTV, other_BTV = adapter.eval().logits(ids_BT), adapter.logits(changed_BT)
    except Exception as error:  # whatever a model raises on shapes that do not go together
        raise HubError(f"{what} cannot be used: its first forward pass fails with {one_line(error)}") from error
    if not bool(logits_BTV.isfinite().all()):
        raise HubError(f"{what} cannot be used: its logits are not finite, so its weights are damaged")
    if not torch.allclose(logits_BTV[:, :-1].float(), other_BTV[:, :-1].float(), rtol=1e-2, atol=1e-2):
        raise HubError(f"{what} is no causal language model: what follows a token changes what it predicts")


def weights_notes(adapter: BaseAdapter) -> list[str]:
    """What a user should know of a model's weights: that its files hold some that the model does not take."""
    unused = getattr(getattr(adapter, "model", None), "unused_tensors", [])
    if not unused:
        return []
    others = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
    return [f"{one_line(unused[0], 100)}{others} of its files are no part of this model, and are left out"]


def tokenizer_notes(folder: Path, n_rows: int) -> list[str]:
    """What a user should know of a folder's tokenizer: that its files have it draw how it splits words, and that it has
    ids which an embedding of so many rows lacks.

    Raises TokenizerError where there is one that cannot be loaded or saved.
    """
    from lmlab.tokenizers import Tokenizer, holds_tokenizer

    if not holds_tokenizer(folder):
        return ["it has no tokenizer: it cannot write yet; train it with a tokenizer_override"]
    tokenizer = Tokenizer.load(folder)
    with tempfile.TemporaryDirectory(prefix=".trial-", dir=folder) as trial:
        tokenizer.save(Path(trial))  # as every checkpoint will
    notes, n_tokens = [], tokenizer.vocab_size
    if tokenizer.drew:
        notes.append("its tokenizer draws how it splits words; here each is always split in one way")
    if n_tokens > n_rows:
        notes.append(
            f"its tokenizer has {n_tokens} tokens, its embedding {n_rows}: it reads no text with the others, and "
            "resize_embeddings: true makes room for them"
        )
    return notes
