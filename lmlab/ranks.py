"""Ranks: the processes that train one model together under torchrun. Alone, a process is a world of one and asks nobody.

torchrun starts the processes and tells each its number; `join` lets them find one another over `torch.distributed`. What
they say to one another are tensors and text: nothing is pickled.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from lmlab.errors import LabError, RankError, UsageError

TIMEOUT = 600.0  # seconds after which a rank that does not answer is given up; LMLAB_RANK_TIMEOUT sets another number
CAUSE_FIRST = 1.5  # seconds for which a rank that only lost another one lets that one speak first
LOST = re.compile(r"gloo|NCCL|ProcessGroup|Connection (closed|reset|refused)|timed out|store|socket", re.IGNORECASE)


@dataclass(frozen=True)
class World:
    """The processes that train together, as one of them sees it. rank: its number; the one with 0 leads: it logs and saves.

    backend: how they talk, `gloo` or `nccl`; None alone. group: torch's name for their way of talking, None for the usual.
    """

    rank: int = 0
    size: int = 1
    backend: str | None = None
    group: Any = None

    @property
    def alone(self) -> bool:
        """Whether there is nobody else."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that logs, samples and saves for all."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of everybody's tensor, the same bits on every rank; it takes the place of the argument's values."""
        if not self.alone:
            torch.distributed.all_reduce(tensor, group=self.group)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes."""
        return flag if self.alone else bool(self.sum(self._tensor([int(flag)])))

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Everybody's tensor in order of ranks, all of one shape and type."""
        if self.alone:
            return [tensor]
        mine = tensor.to(self._device())
        everybody = [torch.empty_like(mine) for _ in range(self.size)]
        torch.distributed.all_gather(everybody, mine, group=self.group)
        return [each.to(tensor.device) for each in everybody]

    def text(self, value: str) -> str:
        """What rank 0 says."""
        if self.alone:
            return value
        data = value.encode("utf-8", "surrogatepass") if self.leads else b""  # a path may be no UTF-8
        length = self._tensor([len(data)])
        torch.distributed.broadcast(length, 0, group=self.group)
        content = self._tensor(list(data) if self.leads else [0] * int(length))
        torch.distributed.broadcast(content, 0, group=self.group)
        return bytes(content.tolist()).decode("utf-8", "surrogatepass")

    def first(self, work: Callable[[], Any]) -> str:
        """What `work` gives as text, done by rank 0 for all. Where it fails, every rank raises: RankError but for rank 0."""
        if self.alone:
            return str(work())
        if not self.leads:
            said = self.text("")
            if said.startswith("!"):
                raise RankError(f"rank 0 could not go on: {said[1:]}")
            return said[1:]
        try:
            value = str(work())
        except BaseException as error:
            with contextlib.suppress(RuntimeError):  # where others have died, this is still what went wrong here
                self.text(f"!{error}")
            raise
        self.text(f"={value}")
        return value

    def agree(self, what: str, value: str) -> None:
        """Make sure that this rank was given what rank 0 was. Raises UsageError where it was not."""
        first = self.text(value)
        if first != value:
            raise UsageError(
                f"rank {self.rank} was given another {what} than rank 0 ({value[:16]}, not {first[:16]}); give all the same"
            )

    def all(self, work: Callable[[], Any]) -> None:
        """Each rank's part of a common work. Where one fails, every rank raises: its own error, or RankError."""
        try:
            work()
        except BaseException:
            with contextlib.suppress(RuntimeError):
                self.any(True)
            raise
        if self.any(False):
            raise RankError("another rank could not go on; its own message says why")

    def share(self, count: int) -> slice:
        """This rank's part of `count` things, one after the other: sizes differ by one at the most."""
        each, rest = divmod(count, self.size)
        start = self.rank * each + min(self.rank, rest)
        return slice(start, start + each + (self.rank < rest))

    def aside(self) -> World:
        """The same processes with a second way of talking, for a thread: what it says comes between nobody's words."""
        if self.alone:
            return self
        return World(self.rank, self.size, "gloo", torch.distributed.new_group(backend="gloo", timeout=patience()))

    def _device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device()) if self.backend == "nccl" else torch.device("cpu")

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device())


ALONE = World()


def is_launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def under_torchrun() -> bool:
    """Whether torchrun started this process, be it the only one: it starts it again where it may."""
    return "RANK" in os.environ and "TORCHELASTIC_RUN_ID" in os.environ


def join() -> World:
    """The world that this process trains in; the first call under torchrun waits until all have come.

    Raises UsageError where torch was built without what it takes, or GPUs are too few, RankError where the others do not
    come.
    """
    if not is_launched():
        return ALONE
    if not torch.distributed.is_available():
        raise UsageError("this torch cannot train in several processes; install one that has torch.distributed")
    if not torch.distributed.is_initialized():
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        refuse_shared_store()
        on_gpu = torch.cuda.is_available() and named_device() in (None, "cuda")
        if on_gpu:
            torch.cuda.set_device(own_gpu())
        timeout = patience()
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        # On one machine torchrun keeps one store over its restarts: without a shelf of their own, those who were started
        # again would find the addresses of the dead.
        own = PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store) if shares_store() else store
        backend = "nccl" if on_gpu else "gloo"
        torch.distributed.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timeout)
    backend = torch.distributed.get_backend()
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size(), backend)


def own_gpu() -> int:
    """The number of this process's GPU on its machine. Raises UsageError where there is not one for each process."""
    own = int(os.environ.get("LOCAL_RANK", "0"))
    n_processes, n_gpus = max(own + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))), torch.cuda.device_count()
    if n_processes > n_gpus:
        raise UsageError(
            f"{n_processes} processes on this machine cannot share {n_gpus} GPU{'s' if n_gpus > 1 else ''}: start at most "
            f"{n_gpus}, or let all train on the processor with LMLAB_DEVICE=cpu"
        )
    return own


def named_device() -> str | None:
    """The kind of device that LMLAB_DEVICE asks for, `cpu`, `cuda` or `mps`; None where it is not set. Raises UsageError."""
    said = os.environ.get("LMLAB_DEVICE") or None
    if said not in (None, "cpu", "cuda", "mps"):
        raise UsageError(f"LMLAB_DEVICE={said[:40]!r} is no kind of device; write cpu, cuda or mps, or leave it out")
    return said


def patience() -> datetime.timedelta:
    """After what time a rank that does not answer is given up. Raises UsageError."""
    said = os.environ.get("LMLAB_RANK_TIMEOUT", str(TIMEOUT))
    if re.fullmatch(r"\d{1,9}(\.\d+)?", said) is None or float(said) == 0:
        raise UsageError(f"LMLAB_RANK_TIMEOUT={said[:40]!r} is not a number of seconds; write 600 for ten minutes")
    return datetime.timedelta(seconds=float(said))


def shares_store() -> bool:
    """Whether the processes meet in a store that torchrun keeps over its restarts."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def refuse_shared_store() -> None:
    """Raise UsageError where restarts would fail: a machine whose own processes did not die does not count them."""
    if shares_store() and may_restart() and int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "--max-restarts over several machines needs a new store for each start: give torchrun --rdzv-backend c10d, and "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"
        )


def leave() -> None:
    """Part from the others, if there are any."""
    if is_launched() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def end(status: int) -> NoReturn:
    """End this process; one of several ends without taking the interpreter apart.

    A thread of the process group that comes to Python in that moment aborts the process (3 of 46 runs that had done all
    their work), and torchrun takes the run for failed. Alone, the interpreter may be somebody else's: a notebook's.
    """
    if not is_launched():
        raise SystemExit(status)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read them has gone
            stream.flush()
    os._exit(status)


@contextlib.contextmanager
def losses_as_errors() -> Iterator[None]:
    """Turn what torch raises where another rank has died or does not answer into a RankError."""
    try:
        yield
    except LabError:
        raise
    except RuntimeError as error:  # gloo raises it plainly, nccl a kind of it
        if not is_launched() or not LOST.search(str(error)):
            raise
        rank, said = os.environ["RANK"], str(error).strip()
        if said.startswith("NCCL error") and "ncclRemoteError" not in said:  # here, and not because of another rank
            reason = said.partition("Last error:")[2].strip() or said.splitlines()[-1]
            raise RankError(
                f"rank {rank} cannot talk to the others: {reason[:200]} (NCCL_DEBUG=INFO says more)"
            ) from error
        first_line = said.splitlines()[0][:200]
        raise RankError(f"rank {rank} lost the others ({first_line}); the rank that failed first says why") from error


def record_failure(error: BaseException) -> None:
    """Tell torchrun why this process fails, in the error file that it names, so that it can show the first cause.

    It shows what failed first by whole seconds: who only lost another rank waits until that one's failure is seen.
    """
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        if isinstance(error, RankError):
            time.sleep(CAUSE_FIRST)
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        handler = get_error_handler()
        handler.initialize()
        handler.record_exception(error)


def launcher() -> str | None:
    """What tells one start of torchrun from all others, the same for the processes that it starts again; None without it."""
    if not under_torchrun():
        return None
    job, error_file = os.environ.get("TORCHELASTIC_RUN_ID", "none"), os.environ.get("TORCHELASTIC_ERROR_FILE")
    if job == "none" and error_file is not None:  # `FOLDER OF THIS START/attempt_0/RANK/error.json`
        return str(Path(error_file).parents[2])
    return job if job != "none" else f"{machine()}:{os.getppid()}"


def machine() -> str:
    """What tells the numbers of processes here from those elsewhere: this machine since its start, and its container.

    Other machines and containers may bear this one's name, and it may get another; it is the host's name where the system
    says nothing better.
    """
    found = []
    with contextlib.suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        found.append(str(os.stat("/proc/self/ns/pid").st_ino))
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            found.append(subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip())
    return ":".join(filter(None, found)) or platform.node()


def may_restart() -> bool:
    """Whether torchrun starts the processes again when one of them dies."""
    return under_torchrun() and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def was_restarted() -> bool:
    """Whether torchrun has started this process in place of one that died."""
    return under_torchrun() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be spread over the ranks, all of which have to ask."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: its rows of one that is spread, else all of it."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def own_range(tensor: Tensor) -> tuple[int, int]:
    """The first row that this rank holds of a tensor dealt out by rows, as torch.chunk does, and the one after its last."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    each = -(-tensor.size(0) // size)
    return min(rank * each, tensor.size(0)), min((rank + 1) * each, tensor.size(0))


def is_spread(tensor: Tensor) -> bool:
    """Whether the ranks hold different rows of a tensor."""
    return hasattr(tensor, "to_local")


def any_spread(tensors: Iterable[Tensor]) -> bool:
    """Whether the ranks hold different rows of some of these: of a model, whose blocks are whole while they run alone."""
    return any(map(is_spread, tensors))
