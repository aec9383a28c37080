"""A checkpoint to a registered model: the Hugging Face layout, a model card, an entry with its lineage.

What it writes loads with plain `AutoModelForCausalLM.from_pretrained` where the architecture is one of transformers; a
custom Transformer has the same folder shape and loads with lmlab.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lmlab import checkpoint
from lmlab.checkpoint import Checkpoint
from lmlab.entries import CONFIG, WEIGHTS, Entry, FileInfo, check_name
from lmlab.errors import CheckpointError, RegistryError, warn_caller
from lmlab.events import now
from lmlab.files import (
    describe_os_error,
    dump_json,
    read_json,
    remove_tree,
    sha256_file,
    temporary_sibling,
    write_atomic,
)
from lmlab.hostile_tokenizers import TEMPLATES
from lmlab.model_card import card
from lmlab.origins import LICENSE_FILE, TOKENIZER_FILES
from lmlab.registry import Registry
from lmlab.tokenizers import CHAR_FILE, SPECIAL_TOKENS, keep_apart, stands_alone
from lmlab.words import one_line

CARD = "README.md"
MODEL_FILES = (CONFIG, WEIGHTS)


def register_checkpoint(checkpoint_folder: Path | str, name: str, models_dir: Path | str | None = None) -> Entry:
    """Make the model of a checkpoint a model of the registry. The checkpoint stays as it is.

    Raises CheckpointError where it does not verify or its weights are ruined, RegistryError on a bad or taken name and where
    the disk refuses.
    """
    registry = Registry(models_dir)
    again = check_name(name) in registry.names()
    if again and registry.lacks(name) is None:
        raise RegistryError(f"a model {name!r} is registered already; choose another name")
    registry.refuse_placed(name)
    saved = checkpoint.load(checkpoint_folder)
    if again:
        refuse_another(registry.get(name), saved)
    refuse_ruined(saved)
    with staged(registry, name) as folder:
        copy_model(saved, folder)
        sound = sound_ancestor(registry, saved)
        if sound is not None:
            source = registry.models_dir / sound.local_path
            copy_beside(source, sound.files, folder)
            keep_special_tokens(source, folder)
        files = {
            path.name: FileInfo(size=path.stat().st_size, sha256=sha256_file(path)) for path in sorted(folder.iterdir())
        }
        refuse_altered(saved, files)
        entry = entry_of(saved, name, files, nearest_ancestor(registry, saved))
        is_plain = not (folder / CHAR_FILE).exists() and not stands_alone(folder)
        write_atomic(folder / CARD, card(entry, saved, hub_base(registry, saved), is_plain).encode())
        try:
            registry.admit(folder, entry, again)
        except BaseException:
            take_back(registry, folder, name)
            raise
    return entry


def refuse_another(entry: Entry, saved: Checkpoint) -> None:
    """Raise RegistryError where a model that has lost files does not have the weights of that checkpoint."""
    weights = entry.files.get(WEIGHTS)
    if weights is None or weights.sha256 != checkpoint.read_manifest(saved.folder)[WEIGHTS][1]:
        raise RegistryError(
            f"a model {entry.model_name!r} is registered already, and has lost files: {entry.remedy}, or choose another name"
        )


def refuse_ruined(saved: Checkpoint) -> None:
    """Raise CheckpointError where a weight is not finite. Reads one after the other, mapped, and copies none."""
    for name, tensor in saved.tensors("model").items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        least, most = (float(value) for value in tensor.aminmax())  # both NaN where any value is
        is_limit = tensor.dim() == 0 and math.isinf(least)  # that there is none, as Gemma 4 has it
        if not is_limit and not (math.isfinite(least) and math.isfinite(most)):
            raise CheckpointError(
                f"the weights of {saved.folder} are ruined: {name} has values that are not finite; use an older checkpoint"
            )


def take_back(registry: Registry, staged: Path, name: str) -> None:
    """Remove the folder of a model that was placed and got no entry, as where the disk takes no more: it is but a copy."""
    with contextlib.suppress(OSError, RegistryError):
        if not os.path.lexists(staged) and name not in registry.names():
            remove_tree(registry.models_dir / name)


@contextlib.contextmanager
def staged(registry: Registry, name: str) -> Iterator[Path]:
    """A hidden folder beside the models, gone at the end unless it was admitted. Raises RegistryError for the disk."""
    folder = temporary_sibling(registry.models_dir / name)
    try:
        registry.models_dir.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        yield folder
    except OSError as error:
        raise RegistryError(
            f"cannot write the model {name!r} to {registry.models_dir}: {describe_os_error(error)}; free some space, or "
            "choose another --models-dir"
        ) from error
    finally:
        remove_tree(folder)


def copy_model(saved: Checkpoint, folder: Path) -> None:
    """Copy config, weights and tokenizer out of a checkpoint, flat into `folder`. Raises OSError."""
    for name in MODEL_FILES:
        shutil.copyfile(saved.folder / name, folder / name)
    for name in TOKENIZER_FILES:
        if (saved.folder / "tokenizer" / name).is_file():
            shutil.copyfile(saved.folder / "tokenizer" / name, folder / name)
    more = sorted((saved.folder / "tokenizer" / TEMPLATES).glob("*.jinja"))
    if more:
        keep_templates(more, folder)
    if saved.state.get("tokenizer") is not None:
        keep_apart(folder, saved.tokenizer().identifier)


def keep_templates(more: list[Path], folder: Path) -> None:
    """Put all chat templates of a tokenizer that has several into its settings, as a list: a model has no folders."""
    settings, default = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    named = {path.stem: path.read_text(encoding="utf-8") for path in more}
    if default.is_file():
        named["default"] = default.read_text(encoding="utf-8")
        default.unlink()
    templates = [{"name": name, "template": text} for name, text in named.items()]
    write_atomic(settings, dump_json({**read_json(settings), "chat_template": templates}))


def copy_beside(source: Path, names: Iterable[str], folder: Path) -> None:
    """Take the licence and the settings for generation out of a model's files. Raises OSError."""
    for name in names:
        if name == "generation_config.json" or LICENSE_FILE.fullmatch(name):
            shutil.copyfile(source / name, folder / name)


def keep_special_tokens(source: Path, folder: Path) -> None:
    """Where a model has other special tokens than its source, have its settings for generation name its own."""
    settings = folder / "generation_config.json"
    if not settings.is_file() or not (source / "config.json").is_file():
        return
    own, before = (read_json(path / "config.json") for path in (folder, source))
    if any(own.get(name) != before.get(name) for name in SPECIAL_TOKENS):
        kept = {name: value for name, value in read_json(settings).items() if name not in SPECIAL_TOKENS}
        named = {name: own[name] for name in SPECIAL_TOKENS if own.get(name) is not None}
        write_atomic(settings, dump_json({**kept, **named}))


def refuse_altered(saved: Checkpoint, files: dict[str, FileInfo]) -> None:
    """Compare the copies of the model's files with the checkpoint's manifest. Raises CheckpointError."""
    listed = read_json(saved.folder / checkpoint.MANIFEST)["files"]
    for name in MODEL_FILES:
        if listed.get(name, {}).get("sha256") != files[name].sha256:
            raise CheckpointError(f"{saved.folder / name} changed while it was copied; register the checkpoint again")


def nearest_ancestor(registry: Registry, saved: Checkpoint) -> Entry | None:
    """The newest ancestor of a checkpoint that is still registered, and whose entry can be read."""
    return next(reversed(ancestors(registry, saved)), None)


def sound_ancestor(registry: Registry, saved: Checkpoint) -> Entry | None:
    """The newest ancestor whose files, weights aside, are as they were registered. The caller is warned of newer ones."""
    for entry in reversed(ancestors(registry, saved)):
        try:
            registry.verify(entry.model_name, weights=False)
        except RegistryError as error:
            warn_caller([f"licence files and settings for generation of a damaged model are not taken over: {error}"])
        else:
            return entry
    return None


def hub_base(registry: Registry, saved: Checkpoint) -> str | None:
    """The hub id that the model comes from in the end, where one of its ancestors was imported from there."""
    return next((entry.model_id for entry in ancestors(registry, saved) if entry.source == "huggingface"), None)


def ancestors(registry: Registry, saved: Checkpoint) -> list[Entry]:
    """The entries of a checkpoint's lineage, oldest first, without those that are gone, or whose name another model has."""
    known = {entry.model_name: entry for entry in registry.entries()}
    links = [link for link in saved.state.get("lineage") or [] if link.get("model_name") in known]
    return [known[link["model_name"]] for link in links if is_meant(known[link["model_name"]], link, saved.state)]


def is_meant(entry: Entry, link: dict[str, Any], state: dict[str, Any]) -> bool:
    """Whether a registered model is the one that a link of a run's lineage names.

    Others may have the name of a folder or file, too: what came in from one must have been there when the run began.
    """
    model = state.get("model") or {}
    same_id = entry.model_id == model.get("model_id") and entry.architecture_type == model.get("architecture_type")
    same_weights = (entry.run_id, entry.step) == (link.get("run_id"), link.get("step"))
    began = state.get("fine_tuning_started_at") or ""
    was_there = entry.source not in ("local", "gguf") or entry.created_at <= began
    return same_id and same_weights and was_there


def entry_of(saved: Checkpoint, name: str, files: dict[str, FileInfo], ancestor: Entry | None) -> Entry:
    """The registry's entry for a checkpoint. Raises CheckpointError where its state does not say what is needed."""
    state, model = saved.state, saved.state.get("model") or {}
    tuned = state.get("fine_tuned_from") is not None
    try:
        return Entry(
            model_name=name,
            model_id=model.get("model_id"),
            source="fine-tuned" if tuned else "custom",
            architecture_type=model["architecture_type"],
            local_path=name,
            files=files,
            license=ancestor.license if ancestor is not None else model.get("license"),
            n_parameters=model["n_parameters"],
            size_bytes=sum(info.size for info in files.values()),
            created_at=now(),
            fine_tuned_from=state.get("fine_tuned_from"),
            fine_tuning_started_at=state.get("fine_tuning_started_at"),
            lineage=tuple(state.get("lineage") or ()),
            run_id=state.get("run_id"),
            step=saved.step,
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{saved.folder / 'state.json'} does not say what model it is ({one_line(error, 80)}); use a checkpoint of a run"
        ) from error
