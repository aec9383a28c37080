"""What a run's evaluations add up to: whether it still improves, and which checkpoint is the best. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass
class Progress:
    """Validation losses in nats per token, infinite before the first.

    best: the lowest that the cadence asked for. without_improvement: evaluations in a row since then. best_saved: the
    lowest that a checkpoint of the run has. last: the step of the newest evaluation, and its loss.
    """

    best: float = math.inf
    without_improvement: int = 0
    best_saved: float = math.inf
    last: tuple[int, float] = (-1, math.inf)

    def note(self, step: int, val_loss: float, *, counts: bool) -> None:
        """Take in an evaluation. counts: whether the cadence asked for it; a second one of a step changes nothing."""
        again = self.last[0] == step
        self.last = (step, val_loss)
        if again or not counts:
            return
        if val_loss < self.best:
            self.best, self.without_improvement = val_loss, 0
        elif step > 0:
            self.without_improvement += 1

    def is_best(self, step: int) -> bool:
        """Whether a checkpoint of this step is better than all that the run has."""
        at, val_loss = self.last
        return at == step and val_loss < self.best_saved

    def claim_best(self, step: int) -> bool:
        """Whether the checkpoint of this step is the best of the run; its loss is then the one to beat."""
        improves = self.is_best(step)
        if improves:
            self.best_saved = self.last[1]
        return improves

    @property
    def has_any(self) -> bool:
        """Whether there was an evaluation to which another one can be compared."""
        return min(self.best, self.best_saved) < math.inf

    def begin_anew(self) -> None:
        """Begin early stopping anew, where what comes is not to be compared; the best checkpoint stays it."""
        self.best, self.without_improvement = math.inf, 0

    def to_state(self) -> dict[str, Any]:
        """What a checkpoint keeps, ready for JSON, which has no infinity."""
        return {
            "best_val_loss": None if math.isinf(self.best) else self.best,
            "best_saved_loss": None if math.isinf(self.best_saved) else self.best_saved,
            "evaluations_without_improvement": self.without_improvement,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of `to_state`. Raises KeyError, TypeError and ValueError."""
        best, best_saved = (
            math.inf if state[name] is None else float(state[name]) for name in ("best_val_loss", "best_saved_loss")
        )
        return cls(best, int(state["evaluations_without_improvement"]), best_saved)
