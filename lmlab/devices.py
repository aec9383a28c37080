"""What the machine can do: device, precision, threads, random numbers, peak arithmetic. All such choices are here."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmlab.errors import OutOfMemory, UsageError
from lmlab.isolation import TURNS, without_autocast
from lmlab.ranks import is_launched, is_spread, named_device

WELL_ABOVE = 1.5  # rates are either two times apart or more, or bf16 is the slower one: noise does not cross this
LONG_ENOUGH = 0.004  # seconds for which products are timed at least
FEW_VECTORS = 2  # vectors whose product with a matrix torch's own kernels do sooner than oneDNN
ALIGNMENT = 64  # bytes of which an address is a multiple where torch allocates memory
CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # Linux's limits, and under which ones this is
# What torch, and the libraries of its products, say where there is none.
NO_MEMORY = re.compile(
    "out of memory|can't allocate memory|DefaultCPUAllocator|could not create a memory|_STATUS_ALLOC_FAILED|"
    "Invalid buffer size"
)
MORE_ROOM = (
    "close what else takes the device's memory, choose a smaller model, or set LMLAB_DEVICE=cpu where it is a GPU"
)
# Dense bf16 peak in TFLOP/s and memory in GB of common accelerators, from the makers' data sheets; keys are words
# of device names, and the more particular ones come first.
ACCELERATORS = {
    "B200": (2250, 180),
    "H200": (989, 141),
    "H100 PCIe": (756, 80),
    "H100 NVL": (835, 94),
    "H100": (989, 80),
    "A100": (312, 80),
    "L40S": (362, 48),
    "L40": (181, 48),
    "L4": (121, 24),
    "4090": (165, 24),
    "3090": (71, 24),
}


def pick_device() -> torch.device:
    """The fastest device of this machine: CUDA, then Apple's MPS, then the processor; or what LMLAB_DEVICE names.

    Not MPS for one of several processes, which have no way to talk from it. Raises UsageError where what is named is not
    there.
    """
    named = named_device()
    if named in (None, "cuda") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if named in (None, "mps") and torch.backends.mps.is_available() and not is_launched():
        return torch.device("mps")
    if named in (None, "cpu"):
        return torch.device("cpu")
    alone = "" if named == "cuda" or not is_launched() else " that one of several processes can use"
    raise UsageError(f"LMLAB_DEVICE={named}, and torch finds no such device here{alone}; write cpu, or leave it out")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether matrix products in bf16 run well above the fp32 rate: tensor cores, AMX, or what is measured to be so.

    AVX512-BF16 by itself says little: with it some processors are four times as fast in bf16, others half as fast.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        abilities = torch.cpu.get_capabilities()
        if abilities.get("amx_bf16") or not abilities.get("avx512_bf16"):
            return bool(abilities.get("amx_bf16"))
        threads = torch.get_num_threads()
        return peak_flops(device, "bf16", threads) > WELL_ABOVE * peak_flops(device, "fp32", threads)
    return False


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` becomes `bf16` where the device is fast at it, else `fp32`; the other two stay as they are."""
    if precision == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    return precision


def slow_precision(precision: str, device: torch.device) -> str:
    """A warning where a processor multiplies in bf16 well below its fp32 rate, as all do without instructions for it;
    else empty."""
    if precision != "bf16" or device.type != "cpu" or has_fast_bf16(device):
        return ""
    threads = torch.get_num_threads()
    times = peak_flops(device, "fp32", threads) / peak_flops(device, "bf16", threads)
    if times < WELL_ABOVE:
        return ""
    return (
        f"products in bf16 take {times:.1f} times as long as in fp32 on this processor; precision: fp32 is faster here"
    )


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context in which a forward pass runs: bf16 matrix products over fp32 weights, or plain ones for `fp32`."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return without_autocast()


def row_norms(x: Tensor) -> Tensor:
    """The norms of a tensor's last axis, whose norm is that of the tensor; an accelerator's stays as it is.

    On a processor torch adds up all squares in a few fp32 sums: of 100 million numbers the norm comes out 1 % too small.
    """
    return torch.linalg.vector_norm(x, dim=-1) if x.dim() > 1 and x.device.type == "cpu" else x


def align(tensors: Iterable[Tensor]) -> None:
    """Move what begins where torch would begin no tensor, as weights mapped from a file may, to where it would.

    On a processor the last bits of a product with few rows, such as an expert's, depend on it. In place.
    """
    for x in tensors:
        if x.device.type == "cpu" and not is_spread(x) and x.data_ptr() % ALIGNMENT:
            x.data = x.data.clone()


def product_type(x: Tensor) -> torch.dtype:
    """The type of matrix products of `x`: that of autocast where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def type_of_keys(weight: Tensor) -> torch.dtype:
    """The type in which a key-value cache is read soonest: that of products, but for bf16 on a processor.

    There attention of a single query takes three times as long in bf16 as in fp32.
    """
    dtype = product_type(weight)
    return torch.float32 if weight.device.type == "cpu" and dtype == torch.bfloat16 else dtype


@contextlib.contextmanager
def products_of(x_N: Tensor) -> Iterator[None]:
    """The context for products of N vectors with the matrices of linear layers.

    For a few vectors in bf16 on a processor it keeps oneDNN out, where torch's own kernels take a third to a half of the
    time. For matrices that lie the other way they take longer.
    """
    library: Any = torch.backends.mkldnn
    few = x_N.device.type == "cpu" and len(x_N) <= FEW_VECTORS
    if not few or torch.backends.flags_frozen():
        yield
        return
    with TURNS:
        enabled = library.enabled
        try:
            library.enabled = False
            yield
        finally:
            library.enabled = enabled


def memory_of(device: torch.device) -> int | None:
    """Bytes of a device: an accelerator's own, else the machine's, or the container's or job's where that is less.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    return min([total, *memory_limits()])


def memory_limits() -> list[int]:
    """The limits in bytes of this process's control group and of those that hold it; none elsewhere."""
    limits = []
    for folder, version in control_groups("memory"):
        with contextlib.suppress(OSError, ValueError):  # not to be seen from a container, or `max`
            limits.append(int((folder / ("memory.limit_in_bytes" if version == 1 else "memory.max")).read_text()))
    return limits


def processor_limits() -> list[float]:
    """How many processors' time this process's control group is granted, and those that hold it; none elsewhere."""
    limits = []
    for folder, version in control_groups("cpu"):
        with contextlib.suppress(OSError, ValueError):  # as above; version 1 has -1 for no limit
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if version == 1 else ("cpu.max",)
            quota, period = map(int, " ".join((folder / name).read_text() for name in names).split())
            limits += [quota / period] if quota > 0 else []
    return limits


def control_groups(kind: str) -> Iterator[tuple[Path, int]]:
    """The folders of the control groups that this process is in, the innermost first, each with its version."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:  # `0::/PATH` of version 2, `7:memory:/PATH` or `4:cpu,cpuacct:/PATH` of version 1
        kinds, path = line.split(":", 2)[1:]
        if kinds and kind not in kinds.split(","):
            continue
        root = CGROUPS / kind if kinds else CGROUPS
        group = root / path.strip("/")
        yield from ((folder, 1 if kinds else 2) for folder in (group, *group.parents) if folder.is_relative_to(root))


def mind_processor_limits() -> None:
    """Use no more threads than a container or a job is granted processors: torch counts those of the machine.

    Threads beyond that wait for each other while the group has to pause. Who sets OMP_NUM_THREADS has chosen.
    """
    limits = processor_limits()
    if limits and "OMP_NUM_THREADS" not in os.environ:
        set_threads(min(torch.get_num_threads(), math.ceil(min(limits))))


def set_threads(threads: int) -> None:
    """Use that many processor threads. The sum of floats depends on it, so a run keeps the number it began with."""
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def require_compiler(device: torch.device) -> None:
    """Raise UsageError where torch.compile would find no C++ compiler, which it needs on a processor."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise UsageError(
            f"compile: true needs a C++ compiler, and there is no {compiler}; install one, or set compile: false"
        )


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for what comes next, once per process; returns whether it could be asked to.

    By default every tensor above some MB is given back to the system and its successor faulted in anew, page by page,
    which takes up to half of a step. The process then stays as large as it was at its largest. Scraps that the allocator
    cuts off around a tensor join it when it is freed; else the next tensor of its size would not fit in its place.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from other C libraries
    trim_threshold, mmap_threshold, small = -1, -3, 1  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MXFAST
    if mallopt is None or not (mallopt(trim_threshold, 2**31 - 1) and mallopt(mmap_threshold, 2**30)):
        return False
    mallopt(small, 0)
    return True


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the default random generators that training on `device` draws from, as uint8 tensors."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put `random_state` back. A state saved on another kind of device restores the parts that both have."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def seeded_random_state(seed: int, device: torch.device) -> dict[str, Tensor]:
    """The random state that `seed` starts, by generators of its own: those of whoever calls stay where they are."""
    state = {"cpu": torch.Generator().manual_seed(seed).get_state()}
    if device.type in ("cuda", "mps"):
        state[device.type] = torch.Generator(device).manual_seed(seed).get_state()
    return state


class RandomStream:
    """A run's own random numbers: inside `with stream:` the default generators are the run's, outside the caller's.

    So two runs in one notebook, or a cell that draws numbers between two steps, do not move each other's masks.
    """

    def __init__(self, state: dict[str, Tensor], device: torch.device) -> None:
        self.state, self.device = state, device
        self._outside: dict[str, Tensor] = {}

    def __enter__(self) -> RandomStream:
        self._outside = random_state(self.device)
        set_random_state(self.state, self.device)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:  # what was interrupted is done again, with the same numbers
            self.state = random_state(self.device)
        set_random_state(self._outside, self.device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def data_sheet(name: str) -> tuple[int, int] | None:
    """Peak in TFLOP/s and memory in GB of an accelerator by its full name; None of one that is not known, such as a
    laptop's, or a part of one."""
    if re.search(r" MIG |-\d+[CQ]$", name):  # a slice, or a virtual GPU: `GRID A100-10C`
        return None
    for words, numbers in ACCELERATORS.items():
        if re.search(rf"\b{words}\b(?! (Ti|D|SUPER|Laptop))", name):
            return numbers
    return None


@functools.lru_cache(maxsize=8)
def peak_flops(device: torch.device, precision: str, threads: int) -> float:
    """The floating-point operations per second that matrix products reach here; measured once, in some 10 ms.

    Known accelerators in bf16 have their data sheet's number; on one that is full, smaller matrices are measured. threads:
    part of the key, since the rate hangs on it.
    """
    if device.type == "cuda" and precision == "bf16":
        known = data_sheet(torch.cuda.get_device_name(device))
        if known is not None:
            return known[0] * 1e12
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cpu":
        best = 0.0
        for n in (256, 512, 1024):  # a small product tells as much, unless it is over in no time
            started = time.perf_counter()
            best = max(best, product_rate(n, dtype, device))
            if time.perf_counter() - started > LONG_ENOUGH:
                break
        return best
    for n in (4096, 1024):
        with contextlib.suppress(OutOfMemory), out_of_memory_as_error(MORE_ROOM):
            return product_rate(n, dtype, device)
    return product_rate(256, dtype, device)


def product_rate(n: int, dtype: torch.dtype, device: torch.device) -> float:
    """The floating-point operations per second of products of n × n matrices, the best of six.

    They lie as in a step, where one of the two is transposed: processors without bf16 take ten times as long for others.
    """
    a = torch.full((n, n), 0.5, dtype=dtype, device=device)
    best = 0.0
    for repetition in range(6):
        left, right = (a, a.mT) if repetition % 2 else (a.mT, a)
        synchronize(device)
        start = time.perf_counter()
        left @ right
        synchronize(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


@contextlib.contextmanager
def in_one_order(device: torch.device) -> Iterator[None]:
    """On a processor, let a compiler make no code whose sums hang on which thread comes first.

    It goes by a switch of torch's, which is put back at the end of the block.
    """
    if device.type != "cpu" or torch.are_deterministic_algorithms_enabled():
        yield
        return
    switches: Any = torch.utils.deterministic
    filled = switches.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    switches.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        switches.fill_uninitialized_memory = filled


def recomputation(device: torch.device) -> dict[str, Any]:
    """Arguments with which torch.utils.checkpoint computes again what it computed, dropout included.

    On Apple's GPUs it does not see to the random numbers by itself.
    """
    return {"use_reentrant": False, **({"context_fn": as_before_on_mps} if device.type == "mps" else {})}


def as_before_on_mps() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Contexts of a forward pass, which begins now, and of its repetition with the same random numbers."""
    state = torch.mps.get_rng_state()

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        after = torch.mps.get_rng_state()
        torch.mps.set_rng_state(state)
        try:
            yield
        finally:
            torch.mps.set_rng_state(after)

    return contextlib.nullcontext(), again()


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    """Set the number of threads back after the block to what it was before."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        set_threads(threads)


@contextlib.contextmanager
def out_of_memory_as_error(advice: str) -> Iterator[None]:
    """Turn running out of memory in the block into an OutOfMemory that ends in `advice`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"out of memory: {advice}") from error
    except RuntimeError as error:
        if not NO_MEMORY.search(str(error)):
            raise
        raise OutOfMemory(f"out of memory: {advice}") from error
