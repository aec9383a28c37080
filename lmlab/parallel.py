"""One model over several processes, by PyTorch's own engines: DDP copies it to each, FSDP2 deals its weights out.

Either way the update is that of one process: every rank takes its share of each micro-batch, losses are divided by the
tokens of the whole batch, and gradients are summed. Alone, nothing here does anything.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmlab import devices, ranks
from lmlab.adapters.base import BaseAdapter
from lmlab.config import TrainingConfig
from lmlab.errors import ConfigError
from lmlab.memory import FLOAT
from lmlab.modes import in_mode
from lmlab.shares import BUCKET

BYTES_PER_WEIGHT = 16  # of training in fp32: the weight, its gradient, and AdamW's two moments
FULLEST = 0.8  # share of a device's memory that these may take; the rest is for activations
FORWARD = ("logits", "next_logits", "hidden_states", "unembed", "attentions")  # what runs the model besides `forward`


def strategy_for(config: TrainingConfig, n_parameters: int, memory: int | None, world_size: int) -> str | None:
    """`ddp` or `fsdp` for a run of that many processes; None for one alone. Raises ConfigError on what cannot be.

    `parallel: auto` is `ddp` where weights, gradients and optimizer fit in `memory`, the bytes that each process has.
    """
    if world_size == 1:
        return None
    if config.batch_size < world_size:
        raise ConfigError(
            f"batch_size={config.batch_size} cannot be shared by {world_size} processes: it counts windows over all of "
            f"them; raise it to {world_size} or more"
        )
    strategy = config.parallel
    if strategy == "auto":
        fits = memory is None or n_parameters * BYTES_PER_WEIGHT <= FULLEST * memory
        strategy = "ddp" if fits else "fsdp"
    if strategy == "fsdp" and config.optimizer == "muon":
        raise ConfigError(
            "optimizer: muon needs whole matrices, which parallel: fsdp deals out; use adamw, or parallel: ddp"
        )
    return strategy


def spread(adapter: BaseAdapter, config: TrainingConfig, device: torch.device) -> None:
    """Move an adapter to a device: whole, or, where the strategy is FSDP, this rank's share of its weights.

    Before the optimizer is made, which then keeps state for a rank's own rows alone. Raises ConfigError.
    """
    world = ranks.join()
    world.agree("config", config.config_hash)
    strategy = strategy_for(config, adapter.n_parameters(), memory_for_each(device, world.size), world.size)
    with devices.out_of_memory_as_error(f"the weights do not fit on {device.type}; {devices.MORE_ROOM}"):
        if world.text(str(strategy)) == "fsdp":  # rank 0 decides: other ranks' machines may have more memory, or less
            from torch.distributed.device_mesh import init_device_mesh

            # Group by group, so that an accelerator never holds the whole.
            deal_out(adapter, init_device_mesh(device.type, (world.size,)))
        else:
            adapter.to(device)


def memory_for_each(device: torch.device, world_size: int) -> int | None:
    """Bytes that each of the processes has: an accelerator's, or its share of a machine. None where not known."""
    memory = devices.memory_of(device)
    if memory is not None and device.type == "cpu":
        memory //= world_size  # gloo's ranks share a machine more often than not
    return memory


def deal_out(adapter: BaseAdapter, mesh: Any) -> None:
    """FSDP2 over groups of blocks and what remains: each rank holds a share of the rows of every weight.

    mesh: of all ranks, on the devices that they train on, which need not be the machine's fastest.
    Gradients are summed, not averaged: losses are divided by the tokens of all ranks already.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    adapter.settle()  # what an adapter finds out by trying its model, every rank would have to try at the same time
    groups: list[Any] = [*gathered_at_once(adapter), adapter]
    for modules in groups:
        fully_shard(modules, mesh=mesh, reshard_after_forward=True)
    for module in adapter.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    for name in FORWARD:
        register_fsdp_forward_method(adapter, name)


def gathered_at_once(adapter: BaseAdapter) -> list[list[nn.Module]]:
    """Blocks in groups that FSDP gathers at once, as many as fill a bucket: at each group all wait for the slowest rank."""
    groups: list[list[nn.Module]] = []
    room = 0
    for block in adapter.blocks():
        n_bytes = FLOAT * sum(parameter.numel() for parameter in block.parameters())
        if n_bytes > room:
            groups.append([])
            room = BUCKET
        groups[-1].append(block)
        room -= n_bytes
    return groups


def strategy_of(adapter: BaseAdapter, world: ranks.World) -> str | None:
    """How an adapter is spread: `ddp`, `fsdp`, or None alone."""
    if world.alone:
        return None
    return "fsdp" if ranks.any_spread(adapter.parameters()) else "ddp"


def replicate(adapter: BaseAdapter, world: ranks.World, *, rehearsed: bool = False) -> nn.Module:
    """What a training step calls for its loss: the adapter, in DDP where it is copied to several ranks.

    rehearsed: leave out what needs the others' numbers, the comparison of weights and the order of buckets.
    """
    if strategy_of(adapter, world) != "ddp":
        return adapter
    unreached = weights_unreached(adapter, adapter.loss)
    if rehearsed:
        for weight in unreached:
            weight.requires_grad_(False)  # DDP reads numbers to look for them
    some_unreached = not rehearsed and world.any(bool(unreached))
    engine: Any = nn.parallel.DistributedDataParallel
    known = inspect.signature(engine.__init__).parameters
    # The second is its name before torch 2.13.
    sync = next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in known)
    settings = {"init_sync": not rehearsed, "find_unused_parameters": some_unreached, sync: False}  # buffers: alike
    replica = engine(adapter, gradient_as_bucket_view=True, **settings)
    replica.register_comm_hook(None, lambda _, bucket: summed(bucket))
    if not rehearsed and not some_unreached:  # else the buckets keep their first order
        order_buckets(replica, adapter)
    return replica


def summed(bucket: Any) -> torch.futures.Future[Tensor]:
    """A bucket of gradients summed over the ranks, where DDP by itself takes the mean."""
    gradients = bucket.buffer()
    work = torch.distributed.all_reduce(gradients, async_op=True)
    return work.get_future().then(lambda _: gradients)


def order_buckets(replica: nn.Module, adapter: BaseAdapter) -> None:
    """Let DDP see one backward pass before the first step.

    It then orders its buckets by when their gradients come, and with them the sums of three ranks or more: a resumed run
    would add up its first step in another order than one that was not interrupted.
    """
    weights_unreached(adapter, replica)


def weights_unreached(adapter: BaseAdapter, loss: Callable[..., Tensor]) -> list[nn.Parameter]:
    """The trainable weights to which a backward pass from a short text gives no gradient; of the others, none is kept.

    DDP waits for the gradients of all, unless it is told to look for those that will not come.
    """
    token = 1 if adapter.end_of_text_id == 0 else 0  # all in one document: a single token may need fewer weights
    ids_BT = torch.full((1, 4), token, dtype=torch.int64, device=next(adapter.parameters()).device)
    with in_mode(adapter, training=False):  # no dropout, and so no random numbers
        loss(ids_BT[:, :-1], ids_BT[:, 1:], "sum").backward()
    unreached = [parameter for parameter in adapter.parameters() if parameter.requires_grad and parameter.grad is None]
    for parameter in adapter.parameters():
        parameter.grad = None
    return unreached


def accumulating(replica: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
    """The context of a backward pass: DDP sends gradients after the last of an update alone."""
    if last or not isinstance(replica, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    wait: Callable[[], contextlib.AbstractContextManager[object]] = replica.no_sync
    return wait()


def own_seed(seed: int, world: ranks.World) -> int:
    """The seed of a rank's dropout: the run's own for rank 0, another for each of the others."""
    return (seed + world.rank * 0x9E3779B97F4A7C15) % 2**63


def gathered(states: Mapping[str, Tensor], world: ranks.World) -> dict[str, Tensor]:
    """The states of everybody's random numbers, for a checkpoint: rank 0's under plain names, `rank-1.cpu` and so on."""
    named: dict[str, Tensor] = {}
    for name, state in states.items():
        for rank, each in enumerate(world.gather(state)):
            named[name if rank == 0 else f"rank-{rank}.{name}"] = each
    return named


def own_states(saved: Mapping[str, Tensor], world: ranks.World) -> dict[str, Tensor]:
    """A rank's own of what `gathered` named; none where fewer ranks saved, which leaves it with a fresh one."""
    if world.leads:
        return {name: state for name, state in saved.items() if not name.startswith("rank-")}
    prefix = f"rank-{world.rank}."
    return {name.removeprefix(prefix): state for name, state in saved.items() if name.startswith(prefix)}
