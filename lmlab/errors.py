"""Every error that a user of lmlab is meant to read. One line each: what, where, what to do next."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence


class LabError(Exception):
    """The base of all errors that lmlab raises on purpose. `exit_code` is the command line's exit status."""

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback, as the command line does; LMLAB_DEBUG=1 asks for all of it.

        A notebook keeps its last error, and with that every variable of what failed: without LMLAB_DEBUG they are let go,
        so that the memory of a model and its activations is free for the next try.
        """
        if os.environ.get("LMLAB_DEBUG"):
            return traceback.format_exception(self)
        let_go(self)
        return [f"{type(self).__name__}: {self}"]


def let_go(error: BaseException) -> None:
    """Empty the frames of an error and of those that led to it; what still runs is left alone."""
    chain = [error]
    for each in chain:
        traceback.clear_frames(each.__traceback__)
        chain += [led for led in (each.__cause__, each.__context__) if led is not None and led not in chain]


class LabWarning(UserWarning):
    """What a user of lmlab is to know of something that went on all the same."""


def warn_caller(messages: Sequence[str]) -> None:
    """Warn of each message at the line outside of lmlab that led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("lmlab."):
        frame, level = frame.f_back, level + 1
    for message in messages:
        warnings.warn(message, LabWarning, stacklevel=level)


class UsageError(LabError):
    """What was asked for cannot be meant: arguments that contradict each other or the run they name."""

    exit_code = 2


class ConfigError(LabError):
    """A configuration that cannot be read, or whose values are out of their limits."""

    exit_code = 2


class DataError(LabError):
    """Training text that is missing, unreadable or too short."""


class TokenizerError(LabError):
    """Text that a tokenizer cannot encode, or a tokenizer that cannot be loaded."""


class CheckpointError(LabError):
    """A checkpoint that is missing, incomplete or damaged."""


class RegistryError(LabError):
    """A registry of models that cannot be read, or a request that it refuses."""


class ModelNotFound(RegistryError):
    """A model name that the registry does not hold. The message lists the names that it holds."""


class HubError(LabError):
    """A model that could not be imported from where the user said."""


class RunError(LabError):
    """A run folder that is missing, in use by another process, or cannot be gone on with."""


class OutOfMemory(RunError):
    """A step, weights or samples for which the device has too little memory. The message says what makes room."""


class DivergedError(LabError):
    """A loss or gradient that is not finite: the update was not made, and the weights are those of the step before. Or a
    validation loss that is not a number: the weights are ruined, and not saved.

    asked_to_stop: whether a signal came in that very step.
    """

    asked_to_stop = False


class RankError(LabError):
    """Processes that train together and lost one another, or of which one could not go on."""
