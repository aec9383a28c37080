"""Named research hooks: what to measure inside a model while it trains.

A config names them, `hooks: [activation_stats, "attention_entropy:50"]`; the number after the colon is the cadence in
steps (10 where none is given). After a measured update the hook sees the model and the inputs of the step in a pass of
its own, without gradients or dropout, so that it moves no number of the run; on other steps nothing is called.

B batch, T time, D model width, H heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmlab.adapters.base import BaseAdapter
from lmlab.devices import row_norms
from lmlab.errors import ConfigError, UsageError
from lmlab.events import HOOK_EVENT
from lmlab.modes import in_mode
from lmlab.ranks import whole

DEFAULT_CADENCE = 10
MEASURED_WINDOWS = 4  # windows of the batch that a hook looks at


class Hook(ABC):
    """One measurement. Subclass it, give it a `name` of its own, and add it to HOOKS."""

    name = ""
    reads = ""  # the method of a model that shows what is measured, tried when a run is built; "" for none

    @abstractmethod
    def measure(self, model: BaseAdapter, inputs_BT: Tensor) -> dict[str, Any]:
        """Values for a `hook` event, by names that are not in `events.HOOK_EVENT`: text, numbers, arrays, tensors, lists and
        mappings of them. The model is in evaluation mode, without gradients."""


class ActivationStats(Hook):
    """Mean, deviation and largest size of the residual stream after the embedding and each block."""

    name = "activation_stats"
    reads = "hidden_states"

    def measure(self, model: BaseAdapter, inputs_BT: Tensor) -> dict[str, Any]:
        states = [x_BTD.float() for x_BTD in model.hidden_states(inputs_BT)]
        return {
            "mean": [float(x_BTD.mean()) for x_BTD in states],
            "std": [float(x_BTD.std()) for x_BTD in states],
            "max_abs": [float(x_BTD.abs().max()) for x_BTD in states],
        }


class AttentionEntropy(Hook):
    """Entropy of the attention of every layer and head in nats: 0 looks at one token, ln T at all alike."""

    name = "attention_entropy"
    reads = "attentions"

    def measure(self, model: BaseAdapter, inputs_BT: Tensor) -> dict[str, Any]:
        entropies_H = []
        for probabilities_BHTT in model.attentions(inputs_BT):
            entropy_BHT = torch.special.entr(probabilities_BHTT.float()).sum(dim=-1)
            entropies_H.append([float(value) for value in entropy_BHT.mean(dim=(0, 2))])
        return {"entropy": entropies_H}


class WeightNorms(Hook):
    """The Euclidean norm of every parameter."""

    name = "weight_norms"

    def measure(self, model: BaseAdapter, inputs_BT: Tensor) -> dict[str, Any]:
        return {
            "norms": {
                name: float(whole(row_norms(p.detach().float()).norm())) for name, p in model.model.named_parameters()
            }
        }


HOOKS: dict[str, type[Hook]] = {hook.name: hook for hook in (ActivationStats, AttentionEntropy, WeightNorms)}


@dataclass(frozen=True)
class ActiveHook:
    """A hook and the cadence at which a run calls it."""

    hook: Hook
    cadence: int


def activate(names: Sequence[str]) -> list[ActiveHook]:
    """The hooks that a config names. Raises ConfigError on an unknown name or a cadence that is no positive number."""
    active = []
    for entry in names:
        name, colon, cadence = entry.partition(":")
        if name not in HOOKS:
            raise ConfigError(f"hooks: no hook {name!r}; there are: {', '.join(sorted(HOOKS))}")
        if colon and not (cadence.isascii() and cadence.isdigit() and int(cadence) > 0):
            raise ConfigError(f"hooks: {entry!r} has no cadence in steps after its colon; write {name}:50, say")
        active.append(ActiveHook(HOOKS[name](), int(cadence) if colon else DEFAULT_CADENCE))
    return active


@torch.no_grad()
def try_on(hooks: Sequence[ActiveHook], model: BaseAdapter) -> None:
    """Ask a model with a few tokens for what hooks read of it. Raises ConfigError where it does not show that."""
    inputs_BT = torch.zeros(1, 2, dtype=torch.int64, device=next(model.parameters()).device)
    with in_mode(model, training=False):
        for reads in sorted({active.hook.reads for active in hooks} - {""}):
            getattr(model, reads)(inputs_BT)


@torch.no_grad()
def measure(active: ActiveHook, model: BaseAdapter, inputs_BT: Tensor) -> dict[str, Any]:
    """One measurement on the first windows of a batch, as the log holds it; the model is left in the mode it was in.

    Raises UsageError where an event cannot hold what the hook returned.
    """
    name = active.hook.name
    with in_mode(model, training=False):
        measured: Any = active.hook.measure(model, inputs_BT[:MEASURED_WINDOWS])
    if not isinstance(measured, Mapping):
        raise UsageError(f"the hook {name!r} returned a {type(measured).__name__}; return a mapping of names to values")
    taken = sorted(set(HOOK_EVENT) & set(measured))
    if taken:
        raise UsageError(f"the hook {name!r} returned {taken[0]!r}, which its event says by itself; call it otherwise")
    return {str(key): written(value, f"{key!r} of the hook {name!r}") for key, value in measured.items()}


def written(value: Any, what: str) -> Any:
    """A value as JSON has it: arrays and tensors as lists, their scalars as numbers. Raises UsageError naming `what`."""
    if hasattr(value, "tolist"):
        return written(value.tolist(), what)
    if isinstance(value, Mapping):
        return {str(key): written(item, what) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [written(item, what) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise UsageError(f"{what} is a {type(value).__name__}, which the log cannot hold; return numbers, text or lists")
