"""What a training run prints: a progress bar on a terminal, one `key=value` line per event in a pipe. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from lmlab.events import Event

LINE_FIELDS = {
    "run_start": ("kind", "config_hash", "git_commit", "hooks", "seed", "device", "precision", "threads", "tokenizer"),
    "step": ("loss", "learning_rate", "grad_norm", "tokens_per_second"),
    "eval": ("val_loss", "perplexity", "bits_per_byte"),
    "sample": ("prompt", "sample_text"),
    "checkpoint": ("path",),
    "hook": ("name",),
    "warning": ("message",),
    "run_end": ("status", "seconds"),
}


def key_value(event: Event) -> str:
    """An event as one line of `key=value`; text is quoted as in JSON, so that a line stays a line."""
    fields = {"event": event["event"], "run_id": event["run_id"], "time": event["time"]}
    fields |= {name: event[name] for name in ("step", *LINE_FIELDS.get(event["event"], ())) if name in event}
    return " ".join(f"{name}={written(value)}" for name, value in fields.items())


def written(value: Any) -> str:
    """A value for `key_value`: numbers short, words bare, all else as JSON."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and value and not any(c.isspace() or c in '"=\\' or not c.isprintable() for c in value):
        return value
    return json.dumps(value)


class Console:
    """A listener that prints a run's events. Output that nobody takes any more ends the printing, not the run."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream, self.max_steps = stream or sys.stdout, 0
        self._bar: Any = None
        self._closed = False

    def __call__(self, event: Event) -> None:
        if self._closed:
            return
        if event["event"] == "run_start":
            self.max_steps = event["config"]["max_steps"]
        with self._while_it_is_read():
            if self.stream.isatty():
                self._show(event)
            else:
                print(key_value(event), file=self.stream, flush=True)
                if event["event"] == "run_start":
                    for name in ("config", "model", "data", "lineage"):
                        print(f"event={name} {json.dumps(event[name])}", file=self.stream, flush=True)

    def say(self, text: str) -> None:
        """Print a line that is no event."""
        if not self._closed:
            with self._while_it_is_read():
                self._say(text)

    @contextlib.contextmanager
    def _while_it_is_read(self) -> Iterator[None]:
        """A reader that went away, or a disk that is full, ends the printing."""
        try:
            yield
        except OSError:
            self._closed = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())  # nothing is written there at exit, either

    def _show(self, event: Event) -> None:
        """Terminal: a bar for the steps, lines for everything else."""
        kind = event["event"]
        if kind == "run_start":
            self._say("\n".join(start_lines(event)))
        elif kind == "step":
            self._advance(event)
        elif kind == "eval":
            self._say(f"step {event['step']}: validation loss {float(event['val_loss']):.4f}")
        elif kind == "sample":
            self._say(f"step {event['step']}: sample\n{printable(event['sample_text'])}")
        elif kind == "checkpoint":
            self._say(f"step {event['step']}: checkpoint {event['path']}")
        elif kind == "warning":
            self._say(f"warning: {printable(event['message'])}")
        elif kind == "run_end":
            if self._bar is not None:
                self._bar.close()
            self._say(f"{event['status']} after {event['seconds']:.1f} s")

    def _advance(self, event: Event) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(
                total=self.max_steps, initial=event["step"] - 1, unit="step", file=self.stream, dynamic_ncols=True
            )
        self._bar.set_postfix_str(
            f"loss {float(event['loss']):.4f}, {event['tokens_per_second']:,.0f} tokens/s", refresh=False
        )
        self._bar.update(1)

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)


def start_lines(event: Event) -> list[str]:
    """A run's beginning for people: id, model, data, and the resolved config with its values."""
    model, data, config = event["model"], event["data"], event["config"]
    name = (
        f"{model['model_name']} ({model['architecture_type']})" if model["model_name"] else model["architecture_type"]
    )
    lines = [
        f"run {event['run_id']} ({event['kind']}), config {event['config_hash']}, commit {event['git_commit'] or 'none'}",
        f"model {name}, {model['n_parameters']:,} parameters; {event['device']}, {event['precision']}, "
        f"{event['threads']} thread{'' if event['threads'] == 1 else 's'}, seed {event['seed']}",
        f"data {data['path']}: {data['n_train']:,} training and {data['n_val']:,} validation tokens ({event['tokenizer']})",
    ]
    if event["lineage"]:
        lines.append("lineage " + " → ".join(map(ancestor, event["lineage"])))
    if event["loss_floor"]:  # of the part of a story, nothing is known, and the floor is 0
        lines.append(f"no model can expect a validation loss below {event['loss_floor']:.4f} on this corpus")
    lines.append("config " + ", ".join(f"{key}={written(value)}" for key, value in config.items() if value is not None))
    return lines


def ancestor(link: dict[str, Any]) -> str:
    """A model that a run's weights come from, and which of its weights, where a run made them."""
    name = link["model_name"] or "a new model"
    return f"{name} (step {link['step']} of {link['run_id']})" if link.get("run_id") else str(name)


def printable(text: str) -> str:
    """Text with its control characters escaped, but for line ends and tabs, so that it cannot steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
