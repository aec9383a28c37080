"""Training and evaluation mode of modules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def in_mode(module: Any, *, training: bool) -> Iterator[None]:
    """A module in training mode (with dropout) or not for the length of the block; then as it was."""
    was_training = module.training
    module.train(training)
    try:
        yield
    finally:
        module.train(was_training)
