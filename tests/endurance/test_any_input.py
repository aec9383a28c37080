"""Any input at all gets an answer: 500 command lines, and configs, tokenizers, logs and registries of any content."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_config import TINY

from lmlab import cli, events, hub, lab
from lmlab.config import TrainingConfig
from lmlab.entries import Entry
from lmlab.errors import LabError
from lmlab.record import Record
from lmlab.registry import Registry
from lmlab.tokenizers import HFTokenizer, Tokenizer

pytestmark = pytest.mark.endurance
ROOT = Path(__file__).resolve().parents[2]
IN_PROCESS, REAL = 500, 30
PATIENCE = 3.0  # seconds after which a run that trains in earnest is asked to stop

# --- the command line -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a command line came to."""

    arguments: list[str]
    status: int
    said: str
    complained: str
    was_stopped: bool

    def assert_is_one(self) -> None:
        shown = f"{self.arguments} gave {self.status}:\n{self.said[-500:]}\n{self.complained[-3000:]}"
        stopped = (130, 143, -signal.SIGTERM) if self.was_stopped else ()
        assert self.status in (0, 1, 2, *stopped), shown
        assert "Traceback" not in self.said + self.complained, shown
        assert "unexpected" not in self.complained, shown
        lines = [line for line in self.complained.splitlines() if line.startswith("error: ")]
        assert len(lines) <= 1, shown
        if self.status == 2:
            assert len(lines) == 1, shown
        if lines:
            assert self.status in (1, 2, *stopped), shown
            assert self.complained.rstrip().splitlines()[-1] == lines[0], shown


@pytest.fixture(scope="module")
def full_lab(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A folder with runs, models, data and configs, sound and damaged ones."""
    home = tmp_path_factory.mktemp("full")
    folders = {"runs_dir": home / "runs", "models_dir": home / "models"}
    (home / "text.txt").write_bytes(corpus.read_bytes())
    lab.run({**TINY, "checkpoint_cadence": 2}, home / "text.txt", run_name="good", listeners=[], **folders)
    shutil.copytree(home / "runs" / "good", home / "runs" / "torn")
    (home / "runs" / "torn" / "log.jsonl").write_bytes(b'{"event": "step", "step"')
    (home / "runs" / "torn" / "checkpoints" / "step-00000006" / "state.json").write_text("{}")
    (home / "runs" / "empty").mkdir()
    hub.import_model(str(tiny_models.make(home / "published")), name="tiny", models_dir=home / "models")
    lab.register(home / "runs" / "good", "mine", **folders)
    (home / "tiny.yaml").write_text("".join(f"{key}: {value}\n" for key, value in TINY.items()))
    (home / "bad.yaml").write_text("n_layers: [\n")
    (home / "odd.yaml").write_text("n_layer: 3\nmax_steps: 1e99\n")
    (home / "bytes.bin").write_bytes(bytes(range(256)))
    (home / "void.txt").write_bytes(b"")
    (home / "lines.jsonl").write_text('{"text": "a story"}\n[3]\n')
    (home / "rotten").mkdir()
    (home / "rotten" / "registry.json").write_text('{"version": 1, "models": {"x": 3, "../up": {}}}')
    return home


WORDS = [
    "", " ", ".", "..", "/", "-", "--", "a\nb", "ä😀", "\udcff", "\x1b[31m", "%s%n", "{x}", "x" * 300, "0", "-1", "1e9",
    "nan", "null", "true", "1", "2", "3", "good", "torn", "empty", "tiny", "mine", "nope", "runs", "models", "runs/good",
    "runs/torn", "text.txt", "tiny.yaml", "bad.yaml", "odd.yaml", "bytes.bin", "void.txt", "lines.jsonl", "published",
    "rotten", "/dev/null", "/etc/passwd",
    "runs/good/checkpoints/step-00000006", "runs/good/checkpoints/step-00000002", "runs/torn/checkpoints/step-00000006",
    "runs/good/log.jsonl", "builtin:tiny-qwen", "builtin:nope", "a/b", "https://example.invalid/a/b", "file.gguf",
    "18446744073709551616",
]  # fmt: skip
FLAGS = [
    "--config", "--data", "--resume", "--max-steps", "--set", "--run-name", "--runs-dir", "--models-dir", "--model-name",
    "--help", "-h", "--json", "--yes", "--force", "--fix", "--name", "--revision", "--prompt", "-n", "--n", "--steps",
    "--at", "--nonsense", "--conf",
]  # fmt: skip
COMMANDS = {
    "import-model": ["SOURCE", "--name", "--revision", "--yes"], "list-models": ["--json"],
    "model-info": ["MODEL", "--json"],
    "delete-model": ["MODEL", "--yes", "--force"], "register-model": ["RUN", "--name"], "validate-registry": ["--fix"],
    "sample": ["RUN", "--prompt", "-n", "--set"], "verify-resume": ["--config", "--data", "--set", "--steps", "--at"],
    "validate-config": ["CONFIG", "--data"], "list-runs": ["--json"], "delete-run": ["RUN", "--yes"],
}  # fmt: skip
LIKELY = {
    "SOURCE": ["published", "builtin:tiny-qwen", "text.txt", "runs/good/checkpoints/step-00000002"],
    "MODEL": ["tiny", "mine", "nope"],
    "RUN": ["good", "torn", "empty", "runs/good", "runs/good/checkpoints/step-00000002", "tiny"],
    "CONFIG": ["tiny.yaml", "bad.yaml", "odd.yaml"],
    "--config": ["tiny.yaml", "tiny.yaml", "bad.yaml", "odd.yaml"],
    "--data": ["text.txt", "text.txt", "void.txt", "lines.jsonl", "bytes.bin"],
    "--resume": ["good", "torn", "empty", "runs/good/checkpoints/step-00000002"],
    "--model-name": ["tiny", "mine", "new-one"],
    "--max-steps": ["1", "2", "7", "8"],
    "--n": ["1", "2"],
    "-n": ["1", "2"],
    "--steps": ["2", "3"],
    "--at": ["1", "2"],
    "--name": ["new-one", "tiny"],
    "--prompt": ["The", "ß"],
    "--run-name": ["fresh", "good"],
    "--runs-dir": ["runs"],
    "--models-dir": ["models", "rotten"],
}
FIELDS = [*TrainingConfig.model_fields, "nope", "", "d_model.x"]
VALUES = [
    *WORDS[:24],
    "4",
    "16",
    "0.5",
    "adamw",
    "muon",
    "cosine",
    "bf16",
    "char",
    "[]",
    "[norms]",
    "[residual:2]",
    "{a: b}",
]


def setting(draw: random.Random) -> str:
    """An argument of `--set`."""
    return draw.choice([f"{draw.choice(FIELDS)}={draw.choice(VALUES)}", draw.choice(WORDS)])


def argument_list(draw: random.Random) -> list[str]:
    """A command line, more or less likely to mean something."""
    command = draw.choice([*COMMANDS, None, None, None, None, draw.choice(WORDS)])
    chosen = ["--config", "tiny.yaml", "--data", "text.txt", "--max-steps", "2"] if command is None else [command]
    for part in COMMANDS.get(command or "", ["--resume", "--model-name", "--run-name", "--set", "--runs-dir"]):
        if part.startswith("-") and draw.random() < 0.6:
            continue
        if part.startswith("-"):
            chosen.append(part)
        if part in ("--json", "--yes", "--force", "--fix"):
            continue
        likely = LIKELY.get(part, WORDS) if draw.random() < 0.7 else WORDS
        chosen.append(setting(draw) if part == "--set" else draw.choice(likely))
    for _ in range(draw.choice([0, 0, 0, 1, 1, 2])):
        place = draw.randrange(len(chosen) + 1)
        match draw.randrange(4):
            case 0:
                chosen.insert(place, draw.choice(WORDS))
            case 1:
                flag = draw.choice(FLAGS)
                chosen[place:place] = [flag, setting(draw) if flag == "--set" else draw.choice(LIKELY.get(flag, WORDS))]
            case 2:
                del chosen[place : place + 1]
            case _:
                chosen.insert(place, draw.choice(FLAGS))
    return [each.replace("\0", "") for each in chosen]


def ask_in_fork(arguments: list[str], home: Path, place: Path) -> Answer:
    """Give a command line to a copy of this process, in a folder of its own."""
    shutil.copytree(home, place, symlinks=True)
    said, complained = place / "said", place / "complained"
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.chdir(place)
            for name in ("LMLAB_RUNS_DIR", "LMLAB_MODELS_DIR"):
                os.environ.pop(name, None)
            os.environ |= {"LMLAB_HOME": str(place), "HF_ENDPOINT": "http://127.0.0.1:9"}
            for number, path in ((1, said), (2, complained)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115 - until the end
            try:
                status = cli.main(arguments)
            except SystemExit as end:
                status = int(end.code or 0)
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    deadline, was_stopped = time.monotonic() + PATIENCE, False
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        time.sleep(0.01)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL if was_stopped else signal.SIGTERM)
            deadline, was_stopped = time.monotonic() + 60.0, True
    answer = Answer(
        arguments,
        os.waitstatus_to_exitcode(ended[1]),
        said.read_text("utf-8", "replace"),
        complained.read_text("utf-8", "replace"),
        was_stopped,
    )
    shutil.rmtree(place)
    return answer


def test_500_command_lines_get_an_answer(full_lab: Path, tmp_path: Path) -> None:
    draw = random.Random(6)
    statuses: dict[int, int] = {}
    wrong = []
    for number in range(IN_PROCESS):
        answer = ask_in_fork(argument_list(draw), full_lab, tmp_path / str(number))
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
        try:
            answer.assert_is_one()
        except AssertionError as error:
            wrong.append(str(error))
    assert not wrong, f"{len(wrong)} of {IN_PROCESS}\n\n" + "\n\n".join(wrong)
    assert min(statuses.get(status, 0) for status in (0, 1, 2)) >= IN_PROCESS // 20, statuses


def test_the_same_through_real_processes(full_lab: Path, tmp_path: Path) -> None:
    draw = random.Random(7)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LMLAB_")}
    for number in range(REAL):
        place = tmp_path / str(number)
        shutil.copytree(full_lab, place)
        arguments = [each for each in argument_list(draw) if each] or ["list-runs"]
        done = subprocess.run(
            [sys.executable, str(ROOT / "main.py"), *map(os.fsencode, arguments)],
            cwd=place,
            env={**environment, "LMLAB_HOME": str(place), "HF_ENDPOINT": "http://127.0.0.1:9"},
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
        said, complained = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
        Answer(arguments, done.returncode, said, complained, was_stopped=False).assert_is_one()
        shutil.rmtree(place)


# --- readers ----------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
THOROUGH = settings(max_examples=500, deadline=None)


def refusal(ask: Callable[[], object]) -> str | None:
    """The one line with which something is refused, None where it is not."""
    try:
        ask()
    except LabError as error:
        line = str(error)
    else:
        return None
    assert line
    assert "\n" not in line
    assert len(line) < 5000
    return line


@THOROUGH
@given(
    values=st.dictionaries(st.sampled_from([*TrainingConfig.model_fields, "nope"]), JSON, max_size=4)
    | st.dictionaries(st.text(), JSON)
)
def test_any_values_are_a_config_or_one_line(values: dict[str, object]) -> None:
    if refusal(lambda: TrainingConfig.from_dict(values)) is None:
        assert TrainingConfig.from_dict(TrainingConfig.from_dict(values).to_dict()) == TrainingConfig.from_dict(values)


@THOROUGH
@given(content=st.binary(max_size=200) | st.text(alphabet="ab: -[]{},#&*!|>'\"%@\n\t0", max_size=60).map(str.encode))
def test_any_file_is_a_config_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    assert "any.yaml" in (refusal(lambda: TrainingConfig.from_yaml(path)) or "any.yaml")


@THOROUGH
@given(
    content=st.binary(max_size=100)
    | JSON.map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda value: json.dumps({"type": "char", "characters": value}).encode())
)
def test_any_file_is_a_vocabulary_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "char_tokenizer.json").write_bytes(content)
    said = refusal(lambda: Tokenizer.load(folder))
    assert "char_tokenizer.json" in (said or "char_tokenizer.json")
    if said is None:
        tokenizer = Tokenizer.load(folder)
        everything = tokenizer.decode(range(tokenizer.vocab_size))
        assert tokenizer.decode(tokenizer.encode(everything)) == everything


PARTS = ["normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "added_tokens", "version", "truncation"]
KINDS = [
    "Precompiled", "Split", "Sequence", "Replace", "Strip", "Metaspace", "ByteLevel", "BPE", "WordPiece", "Unigram",
    "WordLevel",
    "TemplateProcessing", "BertProcessing", "CTC", "Fuse", "Prepend", "BertNormalizer", "FixedLength", "Digits",
]  # fmt: skip
PIECE = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS)},
    optional={
        "precompiled_charsmap": st.sampled_from(["", "AAAA", "BAAAAAAAAAA="]),
        "pattern": st.sampled_from([{"String": ""}, {"Regex": "("}, {"Regex": "a*"}]),
        "content": st.text(max_size=3),
        "behavior": st.sampled_from(["Isolated", "Removed", "x"]),
        "vocab": JSON,
        "merges": JSON,
        "unk_id": st.integers(-1, 10),
        "normalizers": JSON,
        "pretokenizers": JSON,
        "single": JSON,
        "special_tokens": JSON,
    },
)


@settings(max_examples=200, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(PARTS), PIECE | JSON, min_size=1, max_size=2))
def test_any_tokenizer_of_hugging_face_writes_or_is_one_line(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object]
) -> None:
    sound = tmp_path_factory.getbasetemp() / "sound"
    if not sound.exists():
        tiny_models.write_tokenizer(sound)
    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copytree(sound, folder, dirs_exist_ok=True)
    values = json.loads((sound / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**values, **changes}))

    def use() -> None:
        tokenizer = HFTokenizer(folder)
        ids = tokenizer.encode("the capital of\n\tFrance é😀")
        assert ids.max(initial=0) < tokenizer.vocab_size
        assert isinstance(tokenizer.decode(ids.tolist()), str)
        (folder / "saved").mkdir()
        tokenizer.save(folder / "saved")

    refusal(use)
    shutil.rmtree(folder)


LINE = st.dictionaries(
    st.sampled_from(
        ["event", "run_id", "time", "step", "loss", "val_loss", "config", "model", "data", "lineage", "status"]
    ),
    JSON | st.sampled_from(["step", "run_start", "eval", "sample", "checkpoint", "run_end", "warning", "hook"]),
).map(lambda value: json.dumps(value).encode())


@THOROUGH
@given(lines=st.lists(LINE | st.binary(max_size=40), max_size=6))
def test_any_log_is_read_shown_and_listed(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    from lmlab.runs_table import render
    from lmlab.views.cards import run_card

    folder = tmp_path_factory.getbasetemp() / "run"
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_bytes(b"\n".join(lines))
    assert len(events.read(folder / "log.jsonl")) <= sum(line.count(b"\n") + 1 for line in lines)
    record = Record(folder)
    assert "<div" in run_card(record).html
    assert len(render([record]).splitlines()) == 2


ENTRY = st.fixed_dictionaries({}, optional=dict.fromkeys(Entry.model_fields, JSON))
REGISTRY = st.fixed_dictionaries(
    {}, optional={"version": st.just(1) | JSON, "models": st.dictionaries(st.text(max_size=8), ENTRY | JSON) | JSON}
).map(lambda value: json.dumps(value).encode())


@THOROUGH
@given(content=REGISTRY | st.binary(max_size=60))
def test_any_registry_is_listed_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    from lmlab.catalogue import render_list

    folder = tmp_path_factory.getbasetemp() / "any-models"
    folder.mkdir(exist_ok=True)
    registry = Registry(folder)
    registry.file.write_bytes(content)
    for ask in (registry.names, registry.entries, registry.damaged, registry.validate, lambda: render_list(registry)):
        refusal(ask)
    for name in ("tiny", "..", ""):
        assert refusal(lambda name=name: registry.path(name)) is not None
