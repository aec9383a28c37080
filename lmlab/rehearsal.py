"""One training step of rank 0 among N, without the other N - 1, and without a number in it.

PyTorch's fake process group answers for ranks that are not there, and fake tensors have shapes but no content: the step
of a large model on 128 devices is taken on a laptop, by the code that trains. What is learnt is what such a step sends
and holds.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmlab import devices, parallel
from lmlab.adapters.base import BaseAdapter
from lmlab.config import TrainingConfig
from lmlab.errors import UsageError
from lmlab.optim import create_optimizer, parts
from lmlab.ranks import World, own_part

KINDS = {"all_gather": "allgather", "reduce_scatter": "reduce_scatter", "all_reduce": "allreduce"}


@dataclass(frozen=True)
class Rehearsal:
    """What one step did on rank 0.

    collectives: how many of each kind (`all_gather`, `reduce_scatter`, `all_reduce`) made its gradients; payload: the
    bytes of the whole tensors that they were about. (A step adds up its loss, the norm of its gradient and the wish to
    stop besides, 8 bytes each.) weights, optimizer: bytes that the rank holds of them. peak: of all tensors at a time,
    as on a processor, where nothing is gathered ahead.
    """

    collectives: dict[str, int]
    payload: dict[str, int]
    weights: int
    optimizer: int
    peak: int


def rehearse(
    make: Callable[[], BaseAdapter], config: TrainingConfig, world_size: int, strategy: str, precision: str
) -> Rehearsal:
    """One update of the model that `make` makes on the processor, as rank 0 of a world, `strategy` `ddp` or `fsdp`.

    Takes no memory for tensors, and leaves no process group behind. Raises UsageError where there is one already.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with fake_world(world_size) as mesh, FakeTensorMode(), GroupedProducts():
        adapter = make()
        adapter.settle_untried()
        world = World(0, world_size, "fake")
        if strategy == "fsdp":
            parallel.deal_out(adapter, mesh)
        optimizer = create_optimizer(adapter.model, config)
        if config.activation_checkpointing:
            adapter.enable_activation_checkpointing()
        replica = parallel.replicate(adapter, world, rehearsed=True)
        with Watch(adapter.parameters()) as watch:
            backward(replica, config, world, precision, watch)
        optimizer.step()
        state = sum(own_part(t).nbytes for t in states(optimizer))
        return Rehearsal(
            collectives=dict(watch.collectives),
            payload=dict(watch.payload),
            weights=sum(own_part(p).nbytes for p in adapter.parameters()),
            optimizer=state,
            peak=watch.peak + state,
        )


@contextlib.contextmanager
def fake_world(world_size: int) -> Iterator[Any]:
    """The mesh of all ranks of a fake process group, which is gone after the block. Raises UsageError."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if torch.distributed.is_initialized():
        raise UsageError("this process trains with others already; rehearse a step in a process of its own")
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield init_device_mesh("cpu", (world_size,))
    finally:
        torch.distributed.destroy_process_group()


def backward(replica: nn.Module, config: TrainingConfig, world: World, precision: str, watch: Watch) -> None:
    """The gradients of one update, as `Trainer` makes them but for what it reads of the numbers.

    Of many micro-batches two are enough: all but the last send the same.
    """
    rows = world.share(config.batch_size)
    ids_BT = torch.zeros(rows.stop - rows.start, config.max_seq_len, dtype=torch.int64)
    replica.train()
    before_last = config.gradient_accumulation_steps - 1
    for last, times in ((False, before_last), (True, 1)):
        if times:
            watch.times = times
            with parallel.accumulating(replica, last), devices.autocast(precision, torch.device("cpu")):
                loss = replica(ids_BT, ids_BT, "sum") / config.batch_size
            loss.backward()


def states(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors that an optimizer keeps for its parameters, but for counts of steps."""
    kept = (value for part in parts(optimizer) for state in part.state.values() for value in state.values())
    return [value for value in kept if isinstance(value, Tensor) and value.dim()]


class GroupedProducts(TorchDispatchMode):
    """Gives the products of a mixture's experts their shape: torch knows that of fake ones in bf16 alone."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if any(hasattr(each, "to_local") for each in types):
            return NotImplemented  # as in Watch
        if function is not torch.ops.aten._grouped_mm.default or arguments[0].dtype == torch.bfloat16:
            return function(*arguments, **(keywords or {}))
        left, right, ends_of_groups = arguments[:3]
        n_groups = [len(ends_of_groups)] if left.dim() == right.dim() else []
        return left.new_empty([*n_groups, left.size(-2), right.size(-1)])


class Watch(TorchDispatchMode):
    """Counts the collectives of a block, and the most bytes that tensors hold after any of its operations.

    times: how often what comes now is to be counted.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.collectives: Counter[str] = Counter()
        self.payload: Counter[str] = Counter()
        self.peak, self.times = 0, 1
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in tensors:
            self._see(own_part(tensor))

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if any(hasattr(each, "to_local") for each in types):
            return NotImplemented  # a tensor dealt out over ranks: its own operations come by
        result = function(*arguments, **(keywords or {}))
        for each in tree_leaves((arguments, result)):
            if isinstance(each, Tensor):
                self._see(each)
        if function.namespace in ("c10d", "_c10d_functional"):
            self._count(function._schema.name, arguments)
        held = (storage() for storage in tuple(self._alive.values()))
        self.peak = max(self.peak, sum(storage.nbytes() for storage in held if storage is not None))
        return result

    def _see(self, tensor: Tensor) -> None:
        """Remember a tensor's memory for as long as it lives; FSDP gives it back and takes it again meanwhile."""
        storage = tensor.untyped_storage()
        key = id(storage)
        self._alive[key] = weakref.ref(storage, lambda _: self._alive.pop(key, None))

    def _count(self, name: str, arguments: Any) -> None:
        kind = next((kind for kind, part in KINDS.items() if part in name), None)
        n_bytes = max((each.nbytes for each in tree_leaves(arguments) if isinstance(each, Tensor)), default=0)
        if kind is not None:
            self.collectives[kind] += self.times
            self.payload[kind] += self.times * n_bytes
