"""What a run prints: a line per event in a pipe, a bar on a terminal, and nothing where nobody reads."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import pytest

from lmlab.console import Console, key_value, printable, start_lines, written

START: dict[str, Any] = {
    "event": "run_start", "run_id": "r-1", "time": "2026-01-01T00:00:00.000000Z", "kind": "new", "config_hash": "ab12",
    "git_commit": None, "hooks": ["weight_norms"], "seed": 7, "device": "cpu", "precision": "fp32", "threads": 2,
    "config": {"max_steps": 3, "hooks": ["weight_norms"], "model_name": None, "sampling_prompt": "The end"},
    "model": {"model_name": None, "architecture_type": "custom-transformer", "n_parameters": 1234567},
    "data": {"path": "a b.txt", "n_train": 1000, "n_val": 50}, "tokenizer": "char-4-ab", "lineage": [],
    "loss_floor": 0.51234, "fine_tuned_from": None,
}  # fmt: skip


def event(name: str, step: int, /, **fields: Any) -> dict[str, Any]:
    return {"event": name, "run_id": "r-1", "time": "t", "step": step, **fields}


EVENTS = [
    START,
    event("eval", 0, val_loss=4.2, perplexity=float("inf"), bits_per_byte=6.1),
    event("step", 1, loss=1.23456789, learning_rate=3e-4, grad_norm=float("nan"), tokens_per_second=12345.6),
    event("step", 2, loss=1.1, learning_rate=3e-4, grad_norm=0.5, tokens_per_second=12345.6),
    event("hook", 2, name="weight_norms", norms={"a": 1.0}),
    event("sample", 2, prompt="The end", sample_text='The end\n"\x1b[31m" \u2028ok = yes'),
    event("checkpoint", 2, path="runs/r 1/checkpoints/step-00000002", seconds=0.1),
    event("warning", 2, message="careful\nnow\x1b]0;x\x07"),
    event("run_end", 2, status="stopped", seconds=1.25),
]


def lines_in_a_pipe() -> list[str]:
    stream = io.StringIO()
    console = Console(stream)
    for each in EVENTS:
        console(each)
    return stream.getvalue().splitlines()


def test_in_a_pipe_every_event_is_one_line_of_key_and_value() -> None:
    lines = lines_in_a_pipe()
    assert len(lines) == len(EVENTS) + 4  # the start also gives config, model, data and lineage as JSON
    assert (
        "event=step run_id=r-1 time=t step=1 loss=1.23457 learning_rate=0.0003 grad_norm=nan tokens_per_second=12345.6"
        in lines
    )
    assert "event=hook run_id=r-1 time=t step=2 name=weight_norms" in lines
    assert 'event=checkpoint run_id=r-1 time=t step=2 path="runs/r 1/checkpoints/step-00000002"' in lines
    assert "event=run_end run_id=r-1 time=t step=2 status=stopped seconds=1.25" in lines
    assert lines[0].startswith("event=run_start run_id=r-1 time=2026-01-01T00:00:00.000000Z kind=new config_hash=ab12")
    assert 'git_commit=null hooks=["weight_norms"] seed=7' in lines[0]
    (config,) = [line for line in lines if line.startswith("event=config ")]
    assert json.loads(config.removeprefix("event=config ")) == START["config"]
    assert not any("\x1b" in line or "\x07" in line for line in lines)


def test_text_stays_on_its_line_and_can_be_read_back() -> None:
    (line,) = [line for line in lines_in_a_pipe() if line.startswith("event=sample ")]
    text = line.partition("sample_text=")[2]
    assert json.loads(text) == EVENTS[5]["sample_text"]
    assert 'prompt="The end"' in line


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1 + 0.2, "0.3"), (1e-9, "1e-09"), (float("inf"), "inf"), (3, "3"), (True, "true"), (None, "null"), ("", '""'),
        ("plain", "plain"), ("a b", '"a b"'), ("a=b", '"a=b"'), ('"', '"\\""'), ("\\", '"\\\\"'), ("né", "né"),
        ("\x1b", '"\\u001b"'), ("\u202e", '"\\u202e"'), ([1, "a"], '[1, "a"]'),
    ],
)  # fmt: skip
def test_values_are_short_and_unmistakable(value: object, text: str) -> None:
    assert written(value) == text


def test_a_line_has_only_what_the_event_has() -> None:
    assert key_value(event("step", 3)) == "event=step run_id=r-1 time=t step=3"
    assert key_value(event("news", 3, what=1)) == "event=news run_id=r-1 time=t step=3"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_and_nothing_that_could_steer_it() -> None:
    stream = Terminal()
    console = Console(stream)
    for each in EVENTS:
        console(each)
    shown = stream.getvalue()
    assert "run r-1 (new), config ab12, commit none" in shown
    assert "custom-transformer, 1,234,567 parameters; cpu, fp32, 2 threads, seed 7" in shown
    assert "no model can expect a validation loss below 0.5123" in shown
    assert "2/3" in shown
    assert "loss 1.1000, 12,346 tokens/s" in shown
    assert "step 0: validation loss 4.2000" in shown
    assert 'The end\n"\\x1b[31m" \\u2028ok = yes' in shown
    assert "warning: careful\nnow\\x1b]0;x\\x07" in shown
    assert "stopped after 1.2 s" in shown
    assert "\x1b[31m" not in shown
    assert "\x07" not in shown


def test_a_fine_tuned_models_lineage_is_told() -> None:
    model = {**START["model"], "model_name": "tiny-qwen", "architecture_type": "qwen"}
    lineage = [{"model_name": "base"}, {"model_name": "tiny-qwen"}]
    text = "\n".join(start_lines({**START, "model": model, "lineage": lineage, "loss_floor": None}))
    assert "model tiny-qwen (qwen), " in text
    assert "lineage base → tiny-qwen" in text
    assert "no model can expect" not in text


def test_a_floor_of_nothing_is_not_told() -> None:
    """As where an evaluation counts no whole story."""
    text = "\n".join(start_lines({**START, "loss_floor": 0.0}))
    assert "no model can expect" not in text
    assert 'sampling_prompt="The end"' in text
    assert "model_name" not in text


def test_a_reader_that_goes_away_ends_the_printing_and_nothing_else() -> None:
    read, write = os.pipe()
    stream = os.fdopen(write, "w")
    console = Console(stream)
    console(EVENTS[2])
    assert os.read(read, 10_000).startswith(b"event=step")
    os.close(read)
    for _ in range(3):
        console(EVENTS[3])
    stream.close()  # what is left in its buffer goes nowhere, without an error


def test_printable_keeps_letters_of_every_language_and_line_ends() -> None:
    assert printable("naïve 漢字 😀\n\tok") == "naïve 漢字 😀\n\tok"
    assert printable("\r\x00\x9b\u202e") == "\\r\\x00\\x9b\\u202e"
