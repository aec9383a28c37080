"""SIGINT, SIGTERM and a closed terminal as a request: finish the step, save, end.

A second SIGINT or SIGTERM ends the process at once; that a terminal is closed may be said several times. Where no signal
reaches, in another thread than the main one, a file is the request.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

HANDLED = (signal.SIGINT, signal.SIGTERM)


def handled() -> list[int]:
    """The signals that ask a run to stop: SIGHUP of a terminal that goes, too, but where it is ignored, as by nohup."""
    hang_ups = [getattr(signal, name) for name in ("SIGHUP",) if hasattr(signal, name)]  # not on every system
    return [*HANDLED, *(number for number in hang_ups if signal.getsignal(number) == signal.SIG_DFL)]


def deaf_thread() -> int | None:
    """The number of this thread where it cannot handle signals; None for the main one, which alone can."""
    return None if threading.current_thread() is threading.main_thread() else threading.get_native_id()


class StopSignals:
    """Inside `with StopSignals() as signals:` the first signal is kept in `signals.received` instead of acted on.

    Only the main thread can handle signals; in another one nothing is changed. request: a file that, as soon as it is
    there, counts as SIGTERM in such a thread.
    """

    def __init__(self, request: Path | None = None) -> None:
        self.received: int | None = None
        self._request = request if deaf_thread() is not None else None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if deaf_thread() is None:
            self._before = {number: signal.signal(number, self._receive) for number in handled()}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        if self._request is not None and self.received is None and os.path.lexists(self._request):
            self.received = signal.SIGTERM
        return self.received is not None

    def _restore(self) -> None:
        for number, handler in self._before.items():
            if number not in HANDLED and self.received == number:
                handler = signal.SIG_IGN  # once the terminal is gone, it has no more to say
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            return
        if number not in HANDLED:  # that a terminal goes the shell says, and then the system, too
            return
        self._restore()
        os.kill(os.getpid(), number)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let an interrupt of a notebook's cell wait for the end of the block, which half done would be done twice."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # no interrupt comes here, or it is kept already
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
