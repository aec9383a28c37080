"""What torchrun starts for `test_parallel.py`: the command line, with a mishap on one rank, the first time round.

torchrun ... rank_mishap.py KIND RANK ARGUMENTS OF MAIN.PY
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from lmlab import checkpoint, cli, hooks

KIND, RANK, *ARGUMENTS = sys.argv[1:]
STRUCK = os.environ["RANK"] == RANK and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
WRITES = {"0": 5, "1": 2}  # how often a rank has written tensors when it is in the middle of its second checkpoint


class Mishap(hooks.Hook):
    """A hook in which a rank fails, or stands still."""

    name = "mishap"

    def measure(self, model: Any, inputs_BT: Any) -> dict[str, Any]:
        if STRUCK and KIND == "raise":
            raise OSError(28, "No space left on the second disk")
        if STRUCK and KIND == "hang":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(600)
        return {}


def die_while_saving() -> None:
    """End this process, as a power loss would, in the middle of its second checkpoint."""
    write, calls = checkpoint.write_tensors, []

    def write_or_die(path: Path, tensors: Any) -> None:
        calls.append(path)
        if len(calls) == WRITES[RANK]:
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, tensors)

    checkpoint.write_tensors = write_or_die


if __name__ == "__main__":
    hooks.HOOKS["mishap"] = Mishap
    if STRUCK and KIND == "die-saving":
        die_while_saving()
    sys.argv[1:] = ARGUMENTS
    cli.program()
