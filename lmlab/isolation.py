"""A run beside other things of its process: what a notebook has set, and other threads, change nothing of it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Switch off what autocast a caller has on."""
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


class Turns:
    """A lock for threads that take turns: who waits comes before who comes back. The one that has it may take it again."""

    def __init__(self) -> None:
        self._owner, self._depth = 0, 0
        self._make()

    def _make(self) -> None:
        self._queue, self._lock, self._process = threading.Lock(), threading.Lock(), os.getpid()

    def __enter__(self) -> None:
        if self._owner != threading.get_ident():
            if self._process != os.getpid():
                self._make()  # in a fork, where the thread that had it is gone
                self._depth = 0
            with self._queue:
                self._lock.acquire()
            self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = 0
            self._lock.release()


TURNS = Turns()  # torch's default generators and its switches are the whole process's


@contextlib.contextmanager
def on_its_own() -> Iterator[None]:
    """The context of a new model, a step, an evaluation: as in a process that does nothing else.

    What a notebook has set does not count: gradients are on, autocast is off, fp32 is multiplied as such, and a tensor of
    no said type or device is fp32 on the processor. Other threads that come here wait.
    """
    with TURNS, torch.inference_mode(False), torch.enable_grad(), without_autocast(), exact_products(), on_processor():
        dtype = torch.get_default_dtype()
        try:
            torch.set_default_dtype(torch.float32)
            yield
        finally:
            torch.set_default_dtype(dtype)


def on_processor() -> contextlib.AbstractContextManager[object]:
    """Make tensors on the processor where a caller's default is another device. A default takes time at every call."""
    cpu = torch.device("cpu")
    return contextlib.nullcontext() if torch.get_default_device() == cpu else cpu


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Multiply fp32 matrices in fp32, whatever coarser arithmetic a caller allows.

    torch has an older setting for all libraries and newer ones for each, and raises where the older is read while a newer
    one contradicts it: so it is looked at once those are exact, and set back before they are.
    """
    backends: Any = torch.backends
    libraries = ((backends.cuda.matmul, backends.cudnn), (backends.mkldnn.matmul, backends.mkldnn))
    newer = [(own, own.fp32_precision, library.fp32_precision) for own, library in libraries]
    for own, _, _ in newer:
        own.fp32_precision = "ieee"
    older = torch.get_float32_matmul_precision()
    try:
        if older != "highest":
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        if older != "highest":
            torch.set_float32_matmul_precision(older)
        for own, precision, of_library in newer:
            own.fp32_precision = precision if precision != of_library else "none"  # which goes by the library's
