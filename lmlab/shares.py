"""What each of several processes that train one model holds and sends, from plain numbers. Imports no torch.

DDP copies weights, gradients and optimizer to every process and adds the gradients up. FSDP deals their rows out: a
group of weights (a block, or several small ones; all that is outside the blocks) is gathered when it is used and let go
after, once on the way forward and once on the way back, when its gradient is summed and dealt out again. Zhao et al.
2023 (PyTorch FSDP); bytes of a ring after Thakur et al. 2005 (Optimization of Collective Communication Operations in
MPICH, section 4).

Weights and gradients travel as they are kept, in fp32, whatever the precision of the products. All sizes are bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lmlab.config import TrainingConfig
from lmlab.memory import FLOAT, Shape, activation_bytes, copies_checkpoints, optimizer_bytes, untensored_bytes

# Gradients that DDP sends at a time, beside activations that are still to be used; and FSDP's small blocks.
BUCKET = 25 << 20

Group = Sequence[tuple[int, ...]]  # the shapes of weights that are gathered together


@dataclass(frozen=True)
class Share:
    """What the process with the largest share holds at the peak of a step, and sends in one update.

    windows: the least and the most windows of a micro-batch that one process gets. gathered: FSDP's whole weights and
    gradients at their peak. start: while the weights are copied or dealt out. memory: the peak of all.
    all_gather, reduce_scatter, all_reduce: the sizes of the whole tensors of an update's collectives, added up.
    """

    world_size: int
    strategy: str
    windows: tuple[int, int]
    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    libraries: int
    allocator: int
    copies: int
    start: int
    memory: int
    all_gather: int
    reduce_scatter: int
    all_reduce: int

    @property
    def sent(self) -> int:
        """What one process sends in an update, and as much is received: in a ring, each part passes each process once."""
        passes = self.all_gather + self.reduce_scatter + 2 * self.all_reduce
        return passes * (self.world_size - 1) // self.world_size


def share(
    shape: Shape,
    config: TrainingConfig,
    groups: Sequence[Group],
    *,
    world_size: int,
    strategy: str,
    precision: str,
    device: str,
) -> Share:
    """One process's share of a run of `world_size` processes.

    groups: the shapes of all weights, first those outside the blocks, then those of blocks gathered at once. strategy:
    `ddp` or `fsdp`. precision, device: as for `memory.estimate`.
    """
    least, most = config.batch_size // world_size, -(-config.batch_size // world_size)
    whole = [FLOAT * sum(map(math.prod, group)) for group in groups]
    activations = activation_bytes(shape, config.updated(batch_size=most), precision, device)
    libraries, allocator = untensored_bytes(config, activations, device)
    all_gather = reduce_scatter = all_reduce = gathered = 0
    if strategy == "fsdp":
        dealt = [FLOAT * sum(own_size(each, world_size) for each in group) for group in groups]
        weights = gradients = sum(dealt)
        optimizer = 2 * weights
        gathered = gathered_bytes([world_size * size for size in dealt])
        reduce_scatter = config.gradient_accumulation_steps * world_size * weights
        all_gather = 2 * reduce_scatter
    else:
        weights = all_reduce = sum(whole)
        # Gradients of micro-batches that are not sent are gathered beside the buckets, which DDP keeps throughout.
        gradients = weights * (2 if config.gradient_accumulation_steps > 1 else 1)
        optimizer = optimizer_bytes(shape, config, weights // FLOAT)
    start = sum(whole)
    if strategy == "fsdp":  # an accelerator is given one group after the other, and keeps its share of each
        start = weights + (sum(whole) if device == "cpu" else max(whole))
    copies = sum(whole) + optimizer if copies_checkpoints(config, device) else 0  # of rank 0, which gathers the weights
    training = weights + gradients + optimizer + gathered + activations + allocator + copies
    return Share(
        world_size=world_size,
        strategy=strategy,
        windows=(least, most),
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        gathered=gathered,
        activations=activations,
        libraries=libraries,
        allocator=allocator,
        copies=copies,
        start=start,
        memory=libraries + max(start, training),
        all_gather=all_gather,
        reduce_scatter=reduce_scatter,
        all_reduce=all_reduce,
    )


def own_size(shape: tuple[int, ...], world_size: int) -> int:
    """Numbers of a weight that rank 0 holds: rows are dealt out evenly, and the last ranks' missing ones are padding."""
    return -(-shape[0] // world_size) * math.prod(shape[1:])


def gathered_bytes(sizes: Sequence[int]) -> int:
    """The most that is whole at a time. sizes: of each group; the first is whole from the beginning to the end.

    On the way back: the first group with its gradient; of the others one with its gradient, the gradient of the one
    before, laid out to be sent, and one that is gathered meanwhile, if there are as many.
    """
    return 2 * sizes[0] + min(len(sizes), 4) * max(sizes[1:], default=0)
