"""Work beside the training: a thread does it while steps go on, one piece at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from lmlab.ranks import World, losses_as_errors


class Beside:
    """One piece of work that a thread does, or nothing. Every rank begins the same work and asks for it at the same steps.

    A process that ends by itself waits for its thread, and `fit` does in any case.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._aside: World | None = None  # what the thread may talk in
        self._thread: ThreadPoolExecutor | None = None
        self._work: Future[object] | None = None

    def prepare(self) -> None:
        """Make what work needs now, so that what stands in its way is known before it is begun."""
        if self._aside is None:
            self._aside = self._world.aside()

    @property
    def busy(self) -> bool:
        """Whether something was begun whose end nobody has waited for."""
        return self._work is not None

    def begin(self, work: Callable[[World], object]) -> None:
        """Begin work, which is given the world that it may talk in. What was begun before must have been waited for."""
        assert self._work is None
        self.prepare()
        assert self._aside is not None
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="lmlab")
        self._work = self._thread.submit(_done, work, self._aside)

    def is_done(self) -> bool:
        """Whether the work is done on every rank."""
        return self._work is not None and not self._world.any(not self._work.done())

    def wait(self) -> None:
        """Wait until the work is done, and raise what it raised."""
        if self._work is not None:
            error = self._work.exception()
            self._work = None
            if error is not None:
                raise error

    def close(self) -> None:
        """End the thread, when it is done. What is begun later has another."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None


def _done(work: Callable[[World], object], world: World) -> None:
    with losses_as_errors():
        work(world)
