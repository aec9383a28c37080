"""What a run will take, said before it begins: the line printed before training, and `validate-config`.

B batch, T time.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lmlab import devices, hooks, loading, memory, parallel
from lmlab.adapters.base import BaseAdapter
from lmlab.adapters.custom import CustomTransformerAdapter, load_architecture
from lmlab.batches import loaders
from lmlab.config import TrainingConfig, read_config
from lmlab.corpus import is_large
from lmlab.data import load_text, split_corpus
from lmlab.entries import CONFIG, CUSTOM
from lmlab.errors import UsageError
from lmlab.files import free_space
from lmlab.generate import prompt_problem
from lmlab.memory import Estimate
from lmlab.places import find_file, find_runs_dir
from lmlab.registry import Registry
from lmlab.session import ignored_settings
from lmlab.together import Together, plan_together, share_of
from lmlab.tokenizers import Tokenizer
from lmlab.trainer import Trainer
from lmlab.transformer import Transformer
from lmlab.words import count, duration, size


@dataclass(frozen=True)
class Plan:
    """What is to come. As text: one line. machine_memory: bytes of the device that will train, None where unknown.

    Of several processes, the memory of each and what it has.
    """

    estimate: Estimate
    machine_memory: int | None
    n_processes: int = 1

    def __str__(self) -> str:
        e = self.estimate
        tokens = f"{e.tokens:,} tokens" + (f" ({epochs(e.epochs)})" if e.epochs is not None else "")
        amount = "at least" if e.at_least else "about"
        of_each = f" in each of {self.n_processes} processes" if self.n_processes > 1 else ""
        line = (
            f"plan: {count(e.n_parameters)} parameters, {tokens}, {amount} {size(e.memory)} of memory{of_each}, "
            f"{duration(e.seconds)}, {size(e.disk)} on disk"
        )
        problem = beyond(e.memory, self.machine_memory, "the machine" if self.n_processes == 1 else "each process")
        return line + (f"; {problem}" if problem else "")


def plan(trainer: Trainer) -> Plan:
    """What is left to do of a run that is built, and what it takes, of each of several processes its own."""
    config, device, world = trainer.config, trainer.device, trainer.world
    n_train = trainer.facts.get("data", {}).get("n_train")
    n_val = len(trainer.val_dataloader.dataset.ids) if trainer.val_dataloader is not None else 0
    steps = max(0, config.max_steps - trainer.step)
    whole = estimate(trainer.model, config, device, n_train, n_val, steps)
    if trainer.strategy is None:
        return Plan(whole, devices.memory_of(device))
    own = share_of(trainer.model, config, world.size, trainer.strategy, trainer.precision, device.type)
    each = replace(whole, memory=own.memory, seconds=whole.seconds / world.size)
    return Plan(each, parallel.memory_for_each(device, world.size), world.size)


def estimate(
    adapter: BaseAdapter,
    config: TrainingConfig,
    device: torch.device,
    n_train: int | None,
    n_val: int,
    steps: int | None = None,
) -> Estimate:
    """What training takes on a device, whose speed is measured. The adapter may be on the meta device."""
    precision = devices.resolve_precision(config.precision, device)
    return memory.estimate(
        memory.shape_of(adapter.architecture()),
        config,
        n_parameters=adapter.n_parameters(),
        flops_per_token=adapter.flops_per_token(config.max_seq_len),
        peak_flops=devices.peak_flops(device, precision, torch.get_num_threads()),
        precision=precision,
        device=device.type,
        n_train=n_train,
        n_val=n_val,
        steps=steps,
    )


@dataclass(frozen=True)
class Report:
    """What `validate-config` found: a config that can be run, what that takes, and what to mind."""

    path: Path
    config: TrainingConfig
    model: dict[str, Any]
    data: dict[str, Any]
    device: str
    precision: str
    estimate: Estimate
    warnings: tuple[str, ...]
    together: Together | None = None

    def __str__(self) -> str:
        lines = [f"{self.path} is a valid config"]
        rows = self._rows()
        if self.together is not None:
            rows = {name: text for name, text in rows.items() if name not in ("memory", "time")} | self.together.rows()
        lines += [f"  {name:<12} {text}" for name, text in rows.items()]
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings])

    def _rows(self) -> dict[str, str]:
        config, e = self.config, self.estimate
        model = {k: v for k, v in self.model.items() if k not in ("architecture_type", "n_parameters", "size_bytes")}
        windows = f"{config.batch_size} × {config.max_seq_len}"
        if config.gradient_accumulation_steps > 1:
            windows = f"{config.gradient_accumulation_steps} × {windows}"
        seen = "" if e.epochs is None else f", {epochs(e.epochs)}"
        amount = "at least" if e.at_least else "about"
        in_turn = " in turn with gradients" if config.gradient_accumulation_steps == 1 else ""
        return {
            "config hash": config.config_hash,
            "model": f"{self.model['architecture_type']}: " + ", ".join(f"{k} {v}" for k, v in model.items()),
            "parameters": f"{e.n_parameters:,}",
            "data": "{path}: {n_train:,} tokens to train on, {n_val:,} to validate on".format_map(self.data),
            "batches": f"{windows} = {e.tokens // config.max_steps:,} tokens an update",
            "steps": f"{config.max_steps:,} updates, {e.tokens:,} tokens{seen}",
            "memory": f"{amount} {size(e.memory)} at the peak: weights {size(e.weights)}, gradients {size(e.gradients)}, "
            f"optimizer {size(e.optimizer)}, activations {size(e.activations)}{in_turn}"
            + (f", libraries {size(e.libraries)}, allocator {size(e.allocator)}" if e.libraries else "")
            + (f", a checkpoint's copy {size(e.copies)}" if e.copies else ""),
            "time": f"about {duration(e.seconds)} on this machine ({self.device}, {self.precision}, "
            f"{e.flops_per_step / 1e9:,.3g} GFLOP an update)",
            "disk": f"{size(e.disk)}: checkpoints × {e.n_checkpoints} of {size(e.checkpoint)}, and the log",
        }


def check_config(
    path: str | Path,
    data: str | Path | None = None,
    *,
    models_dir: str | Path | None = None,
    world_size: int | None = None,
    strategy: str | None = None,
    device_name: str | None = None,
    **overrides: Any,
) -> Report:
    """Check a config file with the text and the model it would be run with, and say what that takes.

    Nothing is trained, and no weights are made or read. data, overrides: as for `lab.build`. world_size: plan for as
    many processes instead, as `plan_together` does with `strategy` and `device_name`. Raises the LabError that training
    would begin with: ConfigError, ModelNotFound, DataError, TokenizerError, CheckpointError, UsageError; that on a wrong
    plan, too.
    """
    if world_size is None and (strategy, device_name) != (None, None):
        raise UsageError("--strategy and --device are of a plan for several processes; give --world-size, too")
    config = read_config(path, **overrides)
    refuse_at_once(config, models_dir, here=device_name is None)
    corpus = load_text(data)
    tokenizer = loading.load_tokenizer(config, corpus, models_dir)
    train_ids, val_ids = split_corpus(corpus.encode(tokenizer), config.train_ratio)
    loaders(config, train_ids, val_ids, tokenizer.begin_of_text_id, seed=0)  # refuses a split that is too short
    adapter = outline(config, tokenizer, models_dir)
    refuse_untried(adapter, config)
    devices.mind_processor_limits()
    device = devices.pick_device()
    precision = devices.resolve_precision(config.precision, device)
    found = estimate(adapter, config, device, len(train_ids), len(val_ids))
    together = None
    if world_size is not None:
        make = partial(outline, config, tokenizer, models_dir, device="cpu")
        together = plan_together(adapter, make, config, world_size, strategy, device_name)
    warnings = [
        *ignored_settings(config),
        devices.slow_precision(precision, device) if device_name is None else "",
        prompt_problem(config.sampling_prompt, tokenizer, adapter.max_positions),
        *([beyond(found.memory, devices.memory_of(device))] if together is None else together.warnings()),
        disk_warning(found) if device_name is None else "",
    ]
    return Report(
        path=find_file(path),
        config=config,
        model=adapter.describe(),
        data={"path": corpus.path, "n_train": len(train_ids), "n_val": len(val_ids)},
        device=device.type,
        precision=precision,
        estimate=found,
        warnings=tuple(warning for warning in warnings if warning),
        together=together,
    )


def refuse(config: TrainingConfig, data: str | Path | None = None, models_dir: str | Path | None = None) -> None:
    """Raise the LabError that a run would begin with, as far as it can be foretold in a moment.

    No weights are made or read; of large text, only whether it is there.
    """
    refuse_at_once(config, models_dir)
    tokenizer = loading.named_tokenizer(config, models_dir)
    if not is_large(data):
        corpus = load_text(data)
        tokenizer = tokenizer or loading.load_tokenizer(config, corpus, models_dir)
        splits = split_corpus(corpus.encode(tokenizer), config.train_ratio)
        loaders(config, *splits, tokenizer.begin_of_text_id, seed=0)
    if config.model_name is not None and tokenizer is not None:
        refuse_untried(outline(config, tokenizer, models_dir), config)


def refuse_at_once(config: TrainingConfig, models_dir: str | Path | None = None, *, here: bool = True) -> None:
    """Raise the LabError of what a config asks for that is not there: a hook, a model, or `here`, a compiler."""
    hooks.activate(config.hooks)
    if config.model_name is not None:
        Registry(models_dir).path(config.model_name)
    if config.compile and here:
        devices.require_compiler(devices.pick_device())


def refuse_untried(adapter: BaseAdapter, config: TrainingConfig) -> None:
    """Raise the ConfigError of what an outline does not show to hooks or cannot do.

    What hooks read is left to the run where it cannot be made without numbers.
    """
    adapter.settle_untried()
    with contextlib.suppress(RuntimeError):  # torch's, of a tensor without content
        hooks.try_on(hooks.activate(config.hooks), adapter)
    if config.activation_checkpointing:
        adapter.enable_activation_checkpointing()


def outline(
    config: TrainingConfig, tokenizer: Tokenizer, models_dir: str | Path | None = None, *, device: str = "meta"
) -> BaseAdapter:
    """The model of a config with shapes but no weights, on the meta device. Raises what `load_model` raises.

    device: another one where tensors have no content anyhow, under PyTorch's fake tensors.
    """
    adapter: BaseAdapter
    if config.model_name is None:
        return loading.load_model(config, tokenizer, device=device)
    registry = Registry(models_dir)
    entry, folder = registry.get(config.model_name), registry.path(config.model_name)
    if entry.architecture_type == CUSTOM:
        with torch.device(device):
            adapter = CustomTransformerAdapter(Transformer(**load_architecture(folder / CONFIG)))
    else:
        from lmlab.adapters.huggingface import adapter_for  # loads transformers, which takes seconds
        from lmlab.adapters.pretrained import model_class, quiet, read_config

        architecture = read_config(folder)
        with quiet(), torch.device(device):
            model = model_class(architecture)(architecture)
            if model.num_parameters() < entry.n_parameters:  # its files have a head of its own
                architecture.tie_word_embeddings = False
                model = model_class(architecture)(architecture)
        adapter = adapter_for(architecture.model_type)(model)
    loading.fit(adapter, tokenizer, config)
    return adapter


# --- warnings: what stops no one from trying, one line each, empty where all is well -----------------------------


def beyond(needed: int, available: int | None, whose: str = "the machine") -> str:
    """A warning where memory will not do."""
    if available is None or needed <= available:
        return ""
    return (
        f"this needs about {size(needed)} of memory, and {whose} has {size(available)}: lower batch_size or "
        "max_seq_len, set activation_checkpointing, or make the model smaller"
    )


def disk_warning(found: Estimate) -> str:
    """A warning where the disk will not do for the checkpoints."""
    folder = find_runs_dir()
    free = free_space(folder)
    if found.disk_peak <= free:
        return ""
    return (
        f"this writes {size(found.disk_peak)} of checkpoints, and {size(free)} are free in {folder}: raise "
        "checkpoint_cadence or set keep_checkpoints"
    )


def epochs(number: float) -> str:
    """How often the text is read: 0.4 epochs, 12 epochs."""
    return f"{number:.1f} epochs" if number < 9.95 else f"{number:,.0f} epochs"
