"""The proof that resuming is exact, for a config of the user's: straight against interrupted, every tensor compared."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmlab import checkpoint, events, lab
from lmlab.checkpoint import Checkpoint
from lmlab.config import ConfigLike, read_config
from lmlab.errors import UsageError
from lmlab.files import sha256_bytes

TIMINGS = {"time", "run_id", "path", "seconds", "tokens_per_second", "flops_utilization"}


@dataclass(frozen=True)
class Proof:
    """What the comparison found. difference: the first event or tensor that differs, None where none does."""

    steps: int
    at: int
    n_tensors: int
    fingerprint: str
    difference: str | None

    @property
    def identical(self) -> bool:
        """Whether the resumed run is the uninterrupted one, bit for bit."""
        return self.difference is None

    def __str__(self) -> str:
        where = f"{self.steps} steps straight against {self.at} steps, resumed, {self.steps - self.at} more"
        if self.difference is not None:
            return f"NOT identical: {where}: {self.difference}"
        return (
            f"identical: {where}: every loss, learning rate, evaluation, sample and all {self.n_tensors} tensors of "
            f"model, optimizer and random state agree bit for bit (sha256 {self.fingerprint})"
        )


def verify_resume(
    config: ConfigLike = None,
    data: str | Path | None = None,
    *,
    steps: int = 10,
    at: int | None = None,
    models_dir: str | Path | None = None,
    **overrides: Any,
) -> Proof:
    """Train `steps` steps twice from one seed, the second time interrupted after step `at`, and compare everything.

    Works in a temporary folder, without early stopping, so that all steps are made. Raises UsageError where `at` is not
    between 1 and `steps` - 1, and what `run` raises.
    """
    at = steps // 2 if at is None else at
    if steps < 2:
        raise UsageError(f"{steps} steps cannot be interrupted and gone on with; train 2 or more")
    if not 0 < at < steps:
        raise UsageError(f"cannot interrupt {steps} steps after step {at}; choose a step from 1 to {steps - 1}")
    resolved = read_config(config, **overrides)
    seed = resolved.seed if resolved.seed is not None else 0
    decay = resolved.lr_decay_steps or resolved.max_steps
    resolved = resolved.updated(
        seed=seed,
        lr_decay_steps=max(decay, resolved.warmup_steps + 1),
        checkpoint_cadence=None,
        early_stopping_patience=None,
    )
    with tempfile.TemporaryDirectory(prefix="lmlab-proof-") as folder:
        where: dict[str, Any] = {"runs_dir": Path(folder).resolve(), "models_dir": models_dir, "listeners": []}
        straight = whole(lab.run(resolved, data, run_name="straight", max_steps=steps, **where))
        whole(lab.run(resolved, data, run_name="resumed", max_steps=at, **where))
        resumed = whole(
            lab.resume(where["runs_dir"] / "resumed", max_steps=steps, data=data, runs_dir=folder, listeners=[])
        )
        ends = [
            checkpoint.load(checkpoint.step_folder(run.folder / "checkpoints", steps)) for run in (straight, resumed)
        ]
        difference = differing_event(straight, resumed, at) or differing_tensor(*ends)
        n_tensors = sum(len(ends[0].tensors(part)) for part in ("model", "optimizer", "rng"))
        return Proof(steps, at, n_tensors, fingerprint(ends[1]), difference)


def whole(run: lab.Run) -> lab.Run:
    """A run that was not stopped by a signal: one that was proves nothing, and its user wants to end."""
    if run.stopped_by is not None:
        raise KeyboardInterrupt
    return run


def differing_event(straight: lab.Run, resumed: lab.Run, at: int) -> str | None:
    """The first event that differs, but for times; those with which the interrupted session ended are its own."""
    own = {"run_start", "warning", "checkpoint", "run_end"}
    sequences = []
    for run in (straight, resumed):
        told = [event for event in events.read(run.log_path) if event["event"] not in own]
        sequences.append([{k: v for k, v in event.items() if k not in TIMINGS} for event in told])
    expected, got = sequences
    extra = [
        event for event in got if event not in expected and event["step"] == at and event["event"] in ("eval", "sample")
    ]
    got = [event for event in got if event not in extra]
    for one, other in zip(expected, got, strict=False):
        if one != other:
            return f"{one['event']} of step {one['step']}: {one} straight, {other} resumed"
    return None if len(expected) == len(got) else f"{len(expected)} events straight, {len(got)} resumed"


def differing_tensor(straight: Checkpoint, resumed: Checkpoint) -> str | None:
    """The name of the first tensor that differs in any bit."""
    for part in ("model", "optimizer", "rng"):
        one, other = straight.tensors(part), resumed.tensors(part)
        if one.keys() != other.keys():
            return f"{part} holds other tensors: {sorted(one.keys() ^ other.keys())[0]}"
        for name in sorted(one):
            if one[name].dtype != other[name].dtype or not torch.equal(bits(one[name]), bits(other[name])):
                return f"tensor {part}:{name}"
    return None


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes, so that NaN equals NaN and -0.0 differs from 0.0."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def fingerprint(saved: Checkpoint) -> str:
    """The first digits of one hash over the saved tensor files."""
    listed = checkpoint.read_manifest(saved.folder)
    parts = (listed[f"{part}.safetensors"][1] for part in ("model", "optimizer", "rng"))
    return sha256_bytes("".join(parts).encode())[:16]
