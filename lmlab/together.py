"""The plan of a run in several processes: what each holds and sends by arithmetic, held against a rehearsed step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lmlab import devices, memory, parallel
from lmlab.adapters.base import BaseAdapter
from lmlab.config import TrainingConfig
from lmlab.errors import UsageError
from lmlab.rehearsal import Rehearsal, rehearse
from lmlab.shares import BUCKET, Share, share
from lmlab.words import duration, size

MOST_PROCESSES = 1 << 16


@dataclass(frozen=True)
class Target:
    """The devices that a run is planned for. memory: bytes of each, None where not known.

    teraflops: dense bf16, None where the device is this machine's.
    """

    name: str
    kind: str
    precision: str
    memory: int | None
    teraflops: int | None


def target_for(device_name: str | None, config: TrainingConfig, world_size: int) -> Target:
    """A known accelerator by its name, or, where that is None, what this machine has. Raises UsageError."""
    if device_name is None:
        device = devices.pick_device()
        precision = devices.resolve_precision(config.precision, device)
        return Target(device.type, device.type, precision, parallel.memory_for_each(device, world_size), None)
    if device_name not in devices.ACCELERATORS:
        known = ", ".join(devices.ACCELERATORS)
        raise UsageError(f"--device {device_name}: no such device is known; take the one nearest in memory of {known}")
    teraflops, gigabytes = devices.ACCELERATORS[device_name]
    precision = "bf16" if config.precision == "auto" else config.precision
    return Target(device_name, "cuda", precision, gigabytes * 10**9, teraflops if precision == "bf16" else None)


@dataclass(frozen=True)
class Together:
    """A run of several processes: the share of each, what the rehearsal found, and the devices it is meant for.

    seconds: of the arithmetic of one update, without what is sent; None where the devices' speed is not known.
    """

    target: Target
    share: Share
    rehearsal: Rehearsal
    seconds: float | None

    def rows(self) -> dict[str, str]:
        """What `validate-config` says, a line each."""
        s, done = self.share, self.rehearsal
        room = "" if self.target.memory is None else f" of {size(self.target.memory)}"
        least, most = s.windows
        windows = f"{most}" if least == most else f"{least} or {most}"
        gathered = (
            f", gathered {size(s.gathered)}" if s.gathered else f" in buckets of {size(min(BUCKET, s.gradients))}"
        )
        parts = f"weights {size(s.weights)}, gradients {size(s.gradients)}{gathered}, optimizer {size(s.optimizer)}"
        libraries = f", libraries {size(s.libraries)}, allocator {size(s.allocator)}" if s.libraries else ""
        copies = f", a checkpoint's copy {size(s.copies)}" if s.copies else ""
        found = {
            "processes": f"{s.world_size} × {self.target.name} ({self.target.precision}), {s.strategy}; "
            f"{windows} window{'s' * (most > 1)} of a micro-batch each",
            "each holds": f"about {size(s.memory)}{room} at the peak: {parts}, activations {size(s.activations)}"
            f"{libraries}{copies}; before the first step {size(s.start)}",
            "each sends": f"{size(s.sent)} an update, in fp32: {self._sent()}",
            "rehearsal": f"one update of rank 0 of {s.world_size}: {made(done)}; it holds weights {size(done.weights)}, "
            f"optimizer {size(done.optimizer)}, {size(done.peak)} at the peak: "
            + ("as planned" if not self.differences() else "not as planned"),
        }
        if self.seconds is not None:
            found["arithmetic"] = f"about {duration(self.seconds)} an update, without what is sent"
        return found

    def _sent(self) -> str:
        s = self.share
        others = f"{s.world_size - 1}/{s.world_size}"
        if s.strategy == "ddp":
            return f"gradients of {size(s.all_reduce)} added up, × 2 × {others}"
        return f"weights gathered {size(s.all_gather)}, gradients dealt out {size(s.reduce_scatter)}, × {others}"

    def differences(self) -> list[str]:
        """Where the rehearsed step and the arithmetic disagree; empty where they do not."""
        s, done = self.share, self.rehearsal
        pairs = {
            "bytes gathered": (s.all_gather, done.payload.get("all_gather", 0)),
            "bytes dealt out": (s.reduce_scatter, done.payload.get("reduce_scatter", 0)),
            "bytes added up": (s.all_reduce, done.payload.get("all_reduce", 0)),
            "bytes of weights": (s.weights, done.weights),
            "bytes of the optimizer": (s.optimizer, done.optimizer),
        }
        return [f"{name}: {planned:,} planned, {met:,} met" for name, (planned, met) in pairs.items() if planned != met]

    def warnings(self) -> list[str]:
        """What will not go well."""
        s, found = self.share, []
        if self.target.memory is not None and s.memory > self.target.memory:
            advice = "lower batch_size or max_seq_len, set activation_checkpointing, or take more processes"
            if s.memory - s.libraries == s.start:
                advice = "every process has all weights at the start; make the model smaller, or take larger devices"
            elif s.strategy == "ddp":
                advice += " with --strategy fsdp"
            found.append(
                f"each process needs about {size(s.memory)}, and has {size(self.target.memory)} of {self.target.name}: "
                f"{advice}"
            )
        if len(set(s.windows)) > 1:
            found.append(
                f"{s.world_size} processes do not divide the windows of a micro-batch: some wait for the others; make "
                f"batch_size a multiple of {s.world_size}"
            )
        return found + [f"the rehearsed step is not as planned: {each}" for each in self.differences()]


def made(done: Rehearsal) -> str:
    """The collectives of a step in words: 26 all_gather of 680 MB, 13 reduce_scatter of 340 MB."""
    return ", ".join(f"{n} {kind} of {size(done.payload[kind])}" for kind, n in done.collectives.items())


def plan_together(
    adapter: BaseAdapter,
    make: Callable[[], BaseAdapter],
    config: TrainingConfig,
    world_size: int,
    strategy: str | None = None,
    device_name: str | None = None,
) -> Together:
    """What a run of `world_size` processes takes, and one step of it rehearsed.

    adapter: its model on the meta device. make: the same on the processor, called where tensors have no content.
    strategy: `ddp` or `fsdp`, None for the config's own. device_name: one of `devices.ACCELERATORS`, None for this
    machine. Raises UsageError, and ConfigError on what cannot be.
    """
    if not 2 <= world_size <= MOST_PROCESSES:
        raise UsageError(f"--world-size {world_size}: processes that train together are 2 to {MOST_PROCESSES}")
    if strategy is not None:
        config = config.updated(parallel=strategy)
    target = target_for(device_name, config, world_size)
    chosen = parallel.strategy_for(config, adapter.n_parameters(), target.memory, world_size)
    assert chosen is not None
    found = share_of(adapter, config, world_size, chosen, target.precision, target.kind)
    seconds = None
    if target.teraflops is not None:
        tokens = config.batch_size * config.gradient_accumulation_steps * config.max_seq_len
        flops = adapter.flops_per_token(config.max_seq_len) * tokens * (4 / 3 if config.activation_checkpointing else 1)
        seconds = flops / (world_size * target.teraflops * 1e12 * memory.UTILIZATION[target.precision])
    return Together(target, found, rehearse(make, config, world_size, chosen, target.precision), seconds)


def share_of(
    adapter: BaseAdapter, config: TrainingConfig, world_size: int, strategy: str, precision: str, device: str
) -> Share:
    """One process's share of the training of an adapter, whose weights need not be there. Arguments as for `share`."""
    return share(
        memory.shape_of(adapter.architecture()),
        config,
        groups_of(adapter, strategy),
        world_size=world_size,
        strategy=strategy,
        precision=precision,
        device=device,
    )


def groups_of(adapter: BaseAdapter, strategy: str) -> list[list[tuple[int, ...]]]:
    """The shapes of the weights that FSDP gathers at once: what is outside the blocks, then each group of blocks.

    DDP gathers none, and asks no model for its blocks: all shapes are one group.
    """
    if strategy == "ddp":
        return [[tuple(parameter.shape) for parameter in adapter.parameters()]]
    groups = [[p for block in blocks for p in block.parameters()] for blocks in parallel.gathered_at_once(adapter)]
    inside = {id(parameter) for group in groups for parameter in group}
    outside = [parameter for parameter in adapter.parameters() if id(parameter) not in inside]
    return [[tuple(parameter.shape) for parameter in group] for group in (outside, *groups)]
