"""Bad configurations: each gets one clear line that names the file, the place, and what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmlab.config import TrainingConfig, parse_override
from lmlab.errors import ConfigError
from lmlab.problems import ELSEWHERE

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{n}: &{n} [*{m},*{m},*{m},*{m}]\n" for m, n in zip("abcde", "bcdef", strict=True)
)
BAD_FILES: dict[str, tuple[str | bytes, str]] = {
    # what a file is
    "zero bytes": (b"", "is empty"),
    "only spaces": (" \n\n \n", "is empty"),
    "only a byte order mark": (b"\xef\xbb\xbf\n", "is empty"),
    "binary": (b"\x7fELF\x02\x01\x01\x00\x00", "is a binary file (byte 7 is null)"),
    "not UTF-8": (b"n_layers: 4\nsampling_prompt: caf\xe9\n", "is not UTF-8 (byte 32)"),
    "UTF-16": ("n_layers: 4".encode("utf-16"), "binary"),
    "too large": ("# " + "x" * 65536 + "\n", "larger than 64 KB"),
    "a list at the top": ("- n_layers: 4\n", "holds a list where lines of the form `key: value` are expected"),
    "a word": ("hello\n", "holds a single value where lines"),
    "JSON lines": ('{"n_layers": 4}\n{"n_layers": 5}\n', "line 2: not valid YAML"),
    # YAML that is none
    "open bracket": ("n_layers: 4\nhooks: [a, b\nd_ff: 3\n", "line 3: not valid YAML"),
    "open quote": ("n_layers: 4\nsampling_prompt: 'The\n", "line 3: not valid YAML"),
    "tab": ("n_layers: 4\n\td_ff: 3\n", "line 2: not valid YAML: a tab where YAML wants spaces"),
    "indented line": ("n_layers: 4\n  d_ff: 3\n", "line 2: not valid YAML: a `:` where no key can be"),
    "colon in a text": ("sampling_prompt: Once: upon\n", "line 1: not valid YAML: a `:` where no key can be"),
    "control character": ("n_layers: 4\nsampling_prompt: a\x07b\n", "line 2: not valid YAML: the character U+0007"),
    "impossible escape": ('sampling_prompt: "\\UFFFFFFFF"\n', "not valid YAML: a number in an escape"),
    "unknown escape": ('n_layers: 3\nsampling_prompt: "\\q"\n', "line 2: not valid YAML"),
    "reserved character": ("sampling_prompt: @home\n", "line 1: not valid YAML"),
    # YAML that is too much
    "duplicate key": (
        "n_layers: 4\nd_ff: 8\nn_layers: 5\n",
        "line 3: the key 'n_layers' stands twice, first in line 1",
    ),
    "duplicate key in quotes": ('n_layers: 4\n"n_layers": 5\n', "line 2: the key 'n_layers' stands twice"),
    "alias": ("d_model: &width 64\nd_ff: *width\n", "line 1: an anchor (`&name`) is not allowed"),
    "alias without anchor": ("d_ff: *width\n", "line 1: an alias (`*name`) is not allowed"),
    "alias bomb": (LAUGHS, "line 1: an anchor (`&name`) is not allowed"),
    "merge key": ("base: {d_ff: 8}\n<<: *base\n", "line 2: an alias"),
    "deep nesting": ("hooks: " + "[" * 30000, "line 1: nested more than 4 levels deep"),
    "deep mapping": ("hooks: " + "{a: " * 9, "line 1: nested more than 4 levels deep"),
    "deep block": ("- " * 20000, "nested more than 4 levels deep"),
    "tag": ("n_layers: !!int 4\n", "line 1: a tag (`!name`) is not allowed"),
    "dangerous tag": ("n_layers: !!python/object/apply:os.system ['true']\n", "line 1: a tag (`!name`) is not allowed"),
    "two documents": ("n_layers: 4\n---\nn_layers: 5\n", "line 2: a second document"),
    "a number as key": ("n_layers: 4\n5: 6\n", "line 2: the key 5 is not a name"),
    "null as key": ("~: 6\n", "line 1: the key null is not a name"),
    "a list as key": ("? [a]\n: 6\n", "line 1: nested"),
    "endless number": ("max_steps: " + "9" * 5000, "line 1: a number of 5000 digits"),
    # keys
    "misspelt key": ("d_ff: 8\nn_layer: 4\n", "line 2: unknown key 'n_layer'; the nearest real one is n_layers"),
    "key of another house": ("LR: 3e-4\n", "line 1: unknown key 'LR'; the nearest real one is learning_rate"),
    "key of transformers": ("hidden_size: 128\n", "line 1: unknown key 'hidden_size'; the nearest real one is d_model"),
    "key of nanoGPT": ("block_size: 128\n", "line 1: unknown key 'block_size'; the nearest real one is max_seq_len"),
    "key with capitals": ("Learning_Rate: 1e-4\n", "the nearest real one is learning_rate"),
    "model_id as key": ("model_id: Qwen/Qwen2.5-0.5B\n", "line 1: unknown key 'model_id'"),
    "ugly key": ('"a\\nb\\e[31m": 4\n', r"unknown key 'a\nb\x1b[31m'"),
    "endless key": (f"? {'k' * 2000}\n: 4\n", "kkk..."),
    # types
    "text for a whole number": ("n_layers: four\n", "line 1: n_layers='four' must be a whole number"),
    "quoted number": ("n_layers: '4'\n", "line 1: n_layers='4' must be a whole number; write 4 without quotes"),
    "quoted float": ("learning_rate: '3e-4'\n", "must be a number; write 3e-4 without quotes"),
    "thousands": ("max_steps: 10_000\n", "max_steps='10_000' must be a whole number; write 10000 without quotes"),
    "fraction": ("n_layers: 4.5\n", "line 1: n_layers=4.5 must be a whole number"),
    "whole float": ("max_steps: 1e4\n", "max_steps=10000.0 must be a whole number; write 10000"),
    "truth for a number": ("batch_size: true\n", "batch_size=true must be a whole number"),
    "truth for a float": ("dropout: true\n", "dropout=true must be a number"),
    "number for truth": ("compile: 1\n", "compile=1 must be true or false; write true"),
    "yes for truth": ("compile: yes\n", "compile='yes' must be true or false; write true"),
    "no for truth": ("compile: no\n", "compile='no' must be true or false; write false"),
    "number for text": ("sampling_prompt: 5\n", "sampling_prompt=5 must be text; put it in quotes"),
    "list for a number": ("n_heads: [4]\n", "n_heads=[4] must be a whole number"),
    "mapping for a number": ("n_heads: {a: 4}\n", 'n_heads={"a": 4} must be a whole number'),
    "nested groups": ("model:\n  n_layers: 4\n", "line 1: unknown key 'model'"),
    "text for a list": ("hooks: weight_norms\n", "hooks='weight_norms' must be a list; write [weight_norms]"),
    "number in a list": ("hooks: [weight_norms, 3]\n", "hooks[1]=3 must be text"),
    "null in a list": ("hooks: [~]\n", "hooks[0]=null must be text"),
    "null": ("max_steps: null\n", "line 1: max_steps may not be null; leave it out for the default, 10000"),
    "null by silence": ("d_ff: 8\nlearning_rate:\n", "line 2: learning_rate may not be null"),
    "off": ("eval_cadence: off\n", "eval_cadence='off' must be a whole number or null; write null"),
    # ranges
    "no layers": ("n_layers: 0\n", "n_layers=0 must be at least 1"),
    "absurdly many layers": ("n_layers: 1000000000\n", "n_layers=1000000000 must be at most 512"),
    "absurd width": ("d_model: 100000000\n", "must be at most 32768"),
    "negative dropout": ("dropout: -0.1\n", "dropout=-0.1 must be at least 0"),
    "all dropped": ("dropout: 1.0\n", "dropout=1.0 must be below 1"),
    "rate of zero": ("learning_rate: 0\n", "learning_rate=0 must be above 0"),
    "rate without end": ("learning_rate: .inf\n", "must be a finite number"),
    "rate that is none": ("learning_rate: .nan\n", "must be a finite number"),
    "rate beyond floats": ("learning_rate: 1e999\n", "must be a finite number"),
    "beta of one": ("beta2: 1.0\n", "beta2=1.0 must be below 1"),
    "nothing to validate": ("train_ratio: 1.0\n", "train_ratio=1.0 must be below 1"),
    "nothing to train": ("train_ratio: 0\n", "train_ratio=0 must be above 0"),
    "empty batch": ("batch_size: 0\n", "batch_size=0 must be at least 1"),
    "cadence of zero": ("eval_cadence: 0\n", "eval_cadence=0 must be at least 1"),
    "no steps": ("max_steps: 0\n", "max_steps=0 must be at least 1"),
    "negative seed": ("seed: -1\n", "seed=-1 must be at least 0"),
    "seed of 65 bits": (f"seed: {2**63}\n", f"seed={2**63} must be at most {2**63 - 1}"),
    "empty prompt": ("sampling_prompt: ''\n", "sampling_prompt='' must not be empty"),
    "half a character": ('sampling_prompt: "\\ud800"\n', "must be valid Unicode text"),
    "probability above one": ("sampling_top_p: 1.1\n", "sampling_top_p=1.1 must be at most 1"),
    "unknown optimizer": ("optimizer: sgd\n", "optimizer='sgd' must be one of adamw or muon"),
    "unknown schedule": ("lr_schedule: Cosine\n", "lr_schedule='Cosine' must be one of constant, cosine or linear"),
    "a value with a line end": ('optimizer: "a\\nb"\n', r"optimizer='a\nb' must be"),
    "an endless value": (f"optimizer: {'x' * 5000}\n", "xxx... must be one of"),
    # fields that contradict each other
    "heads that do not divide": ("n_heads: 3\n", "n_heads=3 does not divide d_model=256; try 4"),
    "heads of odd width": ("d_model: 12\nn_heads: 4\n", "n_heads=4 cuts d_model=12 into heads of width 3"),
    "odd model": ("d_model: 7\nn_heads: 7\n", "and rotary positions need an even one; try d_model=14"),
    "patience without evaluation": ("early_stopping_patience: 3\n", "needs an eval_cadence"),
    "decay before the warmup ends": ("warmup_steps: 9\nlr_decay_steps: 9\n", "must be above warmup_steps=9"),
    "a hook twice": ("hooks: [weight_norms, weight_norms]\n", "hooks names 'weight_norms' twice"),
}


def refusal(path: Path | str) -> str:
    """The message with which a config file is refused."""
    with pytest.raises(ConfigError) as caught:
        TrainingConfig.from_yaml(path)
    return str(caught.value)


def write(folder: Path, content: str | bytes, name: str = "bad.yaml") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_gets_one_clear_line(tmp_path: Path, case: str) -> None:
    content, expected = BAD_FILES[case]
    path = write(tmp_path, content)
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert message.isprintable(), "one line, and nothing that steers a terminal"
    assert len(message) < len(str(path)) + 260


@pytest.mark.parametrize(
    ("name", "value", "ending"),
    [
        ("learning_rate", "0,001", "must be a number; write 0.001"),
        ("learning_rate", "1,5E-4", "must be a number; write 1.5e-4"),
        ("sampling_temperature", "1,000", "must be a number"),  # a thousand, or one
        ("grad_clip", "1,000.5", "must be a number or null; write 1000.5 without quotes"),
        ("max_steps", "10,000", "must be a whole number; write 10000 without quotes"),
        ("max_steps", "0,5", "must be a whole number"),
        ("n_layers", "３", "must be a whole number"),
        ("learning_rate", "３e-4", "must be a number"),
    ],
)
def test_only_what_is_surely_meant_is_advised(name: str, value: str, ending: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig().updated(**dict([parse_override(f"{name}={value}")]))
    assert str(caught.value) == f"{name}={value!r} {ending}"


def test_a_missing_file_and_a_folder_get_one_clear_line(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml").startswith(f"{tmp_path}/none.yaml: no such file")
    assert refusal(tmp_path).startswith(f"{tmp_path}: is a folder")
    write(tmp_path, "", "file")
    assert "cannot be read: Not a directory" in refusal(tmp_path / "file" / "a.yaml")
    assert "File name too long" in refusal(tmp_path / ("x" * 400))
    assert refusal("a\0b").startswith(r"a\x00b: ")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read" in refusal(tmp_path / "loop")


def test_several_problems_are_one_line_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "foo: 1\nn_layers: x\ndropout: 7\nbeta1: 2\nseed: -1\n", "line\nend.yaml")
    message = refusal(path)
    assert message.isprintable()
    places = [message.index(f"line {number}: ") for number in (1, 2, 3)]
    assert places == sorted(places)
    assert message.endswith("; and 2 more")
    assert "end.yaml" in message


def test_the_suggested_number_of_heads_works() -> None:
    refused = 0
    for d_model in range(2, 70, 2):
        for n_heads in range(1, 70):
            try:
                TrainingConfig(d_model=d_model, n_heads=n_heads)
            except ConfigError as error:
                refused += 1
                suggested = int(str(error).rpartition("try ")[2])
                assert TrainingConfig(d_model=d_model, n_heads=suggested).n_heads == suggested != n_heads
    fitting = sum(d_model % (2 * n_heads) == 0 for d_model in range(2, 70, 2) for n_heads in range(1, 70))
    assert refused == 34 * 69 - fitting


@settings(max_examples=300, deadline=None)
@given(st.text() | st.from_regex(r"([a-z_]{1,9}: [\[\]{}&*!|>'\"%@`,#?: \-\n0-9a-z\\]{0,12}\n){1,4}", fullmatch=True))
@example("? ? ? ?")
@example("%YAML 99999999999999999999.1\n---\na: 1")
@example('"\\x')
@example("%TAG ! !\n---\n!a b: c")
def test_whatever_a_file_holds_it_is_a_config_or_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        TrainingConfig.from_yaml(path)
        message = f"{path}: fine"
    except ConfigError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()


def test_what_settings_are_called_elsewhere_leads_to_one_that_is_there() -> None:
    known = TrainingConfig.model_fields
    assert set(ELSEWHERE.values()) <= known.keys()
    assert not ELSEWHERE.keys() & known.keys()
