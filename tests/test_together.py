"""Plans for several processes: arithmetic against a rehearsed step, and against real processes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import yaml
from safetensors import safe_open
from torchrun import MAIN, worked

from lmlab import hub, planning, rehearsal, shares, together
from lmlab.adapters.custom import CustomTransformerAdapter
from lmlab.config import TrainingConfig
from lmlab.errors import ConfigError, UsageError
from lmlab.memory import FLOAT, Shape
from lmlab.transformer import Transformer
from lmlab.words import size

ROOT = Path(__file__).resolve().parents[1]
TINY = {"n_layers": 2, "d_model": 32, "n_heads": 2, "d_ff": 64, "max_seq_len": 16, "precision": "fp32"}
# 6.4 billion parameters in few layers: what takes time is to deal out each matrix.
WIDE = {"n_layers": 8, "d_model": 8192, "n_heads": 64, "d_ff": 32768}


def written(folder: Path, **values: Any) -> Path:
    path = folder / "config.yaml"
    TrainingConfig(**{**TINY, **values}).to_yaml(path)
    return path


@pytest.fixture
def tiny_qwen(tmp_path: Path) -> str:
    """The name of a registered random Qwen."""
    hub.import_model(str(tiny_models.make(tmp_path / "source")), name="tiny", models_dir=None)
    return "tiny"


def plan(path: Path, corpus: Path, world_size: int, strategy: str | None, device: str | None = None):
    report = planning.check_config(path, corpus, world_size=world_size, strategy=strategy, device_name=device)
    assert report.together is not None
    assert not torch.distributed.is_initialized()
    return report.together


# --- the arithmetic and the rehearsed step


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("world_size", [2, 8, 128])
@pytest.mark.parametrize("architecture", ["custom", "qwen"])
def test_the_rehearsed_step_sends_and_holds_what_is_planned(
    tmp_path: Path, corpus: Path, tiny_qwen: str, architecture: str, world_size: int, strategy: str
):
    model = {"model_name": tiny_qwen} if architecture == "qwen" else {}
    found = plan(written(tmp_path, batch_size=world_size, **model), corpus, world_size, strategy)
    share, done = found.share, found.rehearsal
    assert found.differences() == []
    assert found.warnings() == []
    if strategy == "ddp":
        assert done.payload == {"all_reduce": share.gradients}
        assert share.sent == 2 * share.gradients * (world_size - 1) // world_size
    else:
        assert done.collectives == {"all_gather": 4, "reduce_scatter": 2}  # small blocks at once, and what is outside
        assert done.payload["all_gather"] == 2 * done.payload["reduce_scatter"] == 2 * world_size * share.weights
        assert share.sent == 3 * (world_size - 1) * share.weights
    assert done.optimizer == 2 * done.weights == 2 * share.weights


def test_blocks_are_gathered_in_groups_that_fill_a_bucket(tmp_path: Path, corpus: Path):
    path = written(tmp_path, n_layers=5, d_model=512, d_ff=2048, batch_size=4)
    done = plan(path, corpus, 4, "fsdp").rehearsal
    assert done.collectives == {"all_gather": 8, "reduce_scatter": 4}  # two blocks of 12.6 MB, two, one, and the rest


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_accumulation_gathers_for_each_micro_batch_and_adds_up_once(tmp_path: Path, corpus: Path, strategy: str):
    one = plan(written(tmp_path), corpus, 4, strategy)
    three = plan(written(tmp_path, gradient_accumulation_steps=3), corpus, 4, strategy)
    assert three.differences() == []
    assert three.share.sent == (3 if strategy == "fsdp" else 1) * one.share.sent


@pytest.mark.parametrize(
    "changes",
    [{"activation_checkpointing": True}, {"precision": "bf16"}, {"dropout": 0.0}, {"grad_clip": 1.0}],
    ids=str,
)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_other_settings_send_the_same(tmp_path: Path, corpus: Path, strategy: str, changes: dict[str, Any]):
    plain, other = (plan(written(tmp_path, **values), corpus, 4, strategy) for values in ({}, changes))
    assert other.rehearsal.payload == plain.rehearsal.payload
    assert other.differences() == []


def test_muon_is_planned_with_ddp(tmp_path: Path, corpus: Path):
    found = plan(written(tmp_path, optimizer="muon"), corpus, 2, "ddp")
    assert found.differences() == []
    assert found.rehearsal.optimizer < 2 * found.rehearsal.weights


def test_a_model_whose_head_is_not_known_beforehand(tmp_path: Path, corpus: Path):
    hub.import_model(str(tiny_models.make(tmp_path / "source", "gpt2")), name="gpt", models_dir=None)
    for strategy in ("ddp", "fsdp"):
        assert plan(written(tmp_path, model_name="gpt"), corpus, 3, strategy).differences() == []


@pytest.mark.parametrize(
    ("family", "changes"),
    [("mixtral", {"num_local_experts": 4}), ("gpt_oss", {"num_local_experts": 4, "intermediate_size": 36})],
)
def test_a_mixture_of_experts_is_planned(tmp_path: Path, corpus: Path, family: str, changes: dict[str, int]):
    """Also where the rows of its products are not aligned."""
    hub.import_model(str(tiny_models.make(tmp_path / "source", family, **changes)), name="mixture", models_dir=None)
    for strategy in ("ddp", "fsdp"):
        for precision in ("fp32", "bf16"):
            path = written(tmp_path, model_name="mixture", precision=precision)
            assert plan(path, corpus, 2, strategy).differences() == []


def test_rows_that_do_not_divide_are_padded():
    assert [shares.own_size((70, 64), n) for n in (2, 8, 128)] == [35 * 64, 9 * 64, 64]
    assert shares.own_size((32,), 128) == 1


def test_what_is_held_and_sent_in_numbers():
    """A model of 48 numbers outside its blocks and 32 in each of two, on 4 processes."""
    shape = Shape(
        custom=True, n_layers=2, d_model=8, n_heads=1, attention_width=8, key_value_width=8, d_ff=8, vocab_size=6
    )
    groups = [[(6, 8)], [(4, 8)], [(4, 8)]]
    config = TrainingConfig(**{**TINY, "batch_size": 6})
    arguments = {"world_size": 4, "precision": "fp32", "device": "cuda"}
    dealt = shares.share(shape, config, groups, strategy="fsdp", **arguments)
    assert dealt.windows == (1, 2)
    assert dealt.weights == dealt.gradients == FLOAT * (2 * 8 + 8 + 8)  # two rows of six, of which the last has none
    assert dealt.optimizer == 2 * dealt.weights
    assert dealt.gathered == FLOAT * (2 * 64 + 3 * 32)
    assert dealt.sent == 3 * 3 * dealt.weights
    assert dealt.start == FLOAT * 48 + dealt.weights
    on_processors = shares.share(shape, config, groups, strategy="fsdp", **{**arguments, "device": "cpu"})
    assert on_processors.start == FLOAT * 112 + dealt.weights
    copied = shares.share(shape, config, groups, strategy="ddp", **arguments)
    assert copied.weights == copied.gradients == copied.start == FLOAT * 112
    assert copied.gathered == 0
    assert copied.sent == 2 * FLOAT * 112 * 3 // 4
    assert copied.memory == 4 * FLOAT * 112 + copied.activations
    assert dealt.activations == copied.activations


@pytest.mark.parametrize("changes", [{}, {"activation_checkpointing": True}, {"compile": True}], ids=str)
def test_each_process_loads_what_one_alone_would(tmp_path: Path, corpus: Path, changes: dict[str, Any]):
    path = written(tmp_path, **changes)
    alone = planning.check_config(path, corpus).estimate
    assert plan(path, corpus, 2, "ddp").share.libraries == alone.libraries > 0


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "changes", [{}, {"activation_checkpointing": True}, {"gradient_accumulation_steps": 2}], ids=str
)
def test_the_peak_of_the_rehearsed_step_is_about_what_is_planned(
    tmp_path: Path, corpus: Path, strategy: str, changes: dict[str, Any]
):
    wide = {"n_layers": 6, "d_model": 256, "n_heads": 4, "d_ff": 1024, "max_seq_len": 64, "batch_size": 8}
    found = plan(written(tmp_path, **wide, **changes), corpus, 8, strategy)
    planned = found.share.memory - found.share.libraries - found.share.allocator
    assert 0.7 * planned < found.rehearsal.peak < 1.1 * planned


def test_the_plan_of_seven_billion_weights_is_that_of_the_page():
    page = (ROOT / "docs" / "SCALING.md").read_text(encoding="utf-8")
    config = TrainingConfig.from_dict(yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1]))
    rows = re.findall(r"^\| (\d+) \| (\d+) × (\d+) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|", page, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [8, 64, 512]
    with torch.device("meta"):
        names = ("n_layers", "d_model", "n_heads", "d_ff", "dropout", "max_seq_len")
        adapter = CustomTransformerAdapter(Transformer(60, **{name: getattr(config, name) for name in names}))
    for world_size, batch_size, accumulation, *stated in rows:
        own = config.updated(batch_size=int(batch_size), gradient_accumulation_steps=int(accumulation))
        share = together.share_of(adapter, own, int(world_size), "fsdp", "bf16", "cuda")
        assert stated == [size(each) for each in (share.memory, share.gathered, share.activations, share.sent)]


# --- in words


def test_the_report_says_it_from_the_command_line(lab_command, tmp_path: Path, corpus: Path):
    path = written(tmp_path, batch_size=128)
    plain = lab_command("validate-config", path, "--data", corpus)
    done = lab_command(
        "validate-config", path, "--data", corpus, "--world-size", 128, "--strategy", "fsdp", "--device", "H100"
    )
    assert (plain.returncode, done.returncode) == (0, 0), done.stderr
    assert done.stderr == ""
    added = set(done.stdout.splitlines()) - set(plain.stdout.splitlines())
    words = "\n".join(line for line in done.stdout.splitlines() if line in added)
    for part in (
        "processes    128 × H100 (fp32), fsdp; 1 window of a micro-batch each",
        " of 80 GB at the peak: weights ",
        ", gathered ",
        " an update, in fp32: weights gathered ",
        "× 127/128",
        "rehearsal    one update of rank 0 of 128: 4 all_gather of ",
        ": as planned",
    ):
        assert part in words, words
    assert not any("processes" in line for line in plain.stdout.splitlines())


def test_the_configs_own_strategy_is_taken_and_auto_deals_out_what_does_not_fit(tmp_path: Path, corpus: Path):
    assert plan(written(tmp_path, parallel="fsdp"), corpus, 2, None).share.strategy == "fsdp"
    assert plan(written(tmp_path), corpus, 2, None, "H100").share.strategy == "ddp"
    found = plan(written(tmp_path, **WIDE), corpus, 8, None, "H100")
    assert found.share.strategy == "fsdp"
    assert found.differences() == []


def test_what_does_not_fit_a_device_is_a_warning(tmp_path: Path, corpus: Path):
    (copied,) = plan(written(tmp_path, **WIDE), corpus, 8, "ddp", "H100").warnings()
    assert copied.startswith("each process needs about 103 GB, and has 80 GB of H100: ")
    assert "--strategy fsdp" in copied
    assert plan(written(tmp_path, **WIDE, batch_size=512), corpus, 512, "fsdp", "L4").warnings() == []
    (whole,) = plan(written(tmp_path, **WIDE, batch_size=512), corpus, 512, "fsdp").warnings()
    assert "every process has all weights at the start" in whole


def test_processes_that_do_not_divide_the_batch_are_a_warning(tmp_path: Path, corpus: Path):
    (warning,) = plan(written(tmp_path, batch_size=6), corpus, 4, "ddp").warnings()
    assert warning.endswith("make batch_size a multiple of 4")


@pytest.mark.parametrize(
    ("values", "arguments", "error", "message"),
    [
        ({"batch_size": 4}, (8, "ddp"), ConfigError, "batch_size=4 cannot be shared by 8 processes"),
        ({"optimizer": "muon"}, (2, "fsdp"), ConfigError, "optimizer: muon needs whole matrices"),
        ({}, (1, "ddp"), UsageError, "--world-size 1: processes that train together are 2 to "),
        ({}, (-3, None), UsageError, "--world-size -3: "),
        ({}, (10**6, None), UsageError, "--world-size 1000000: "),
        (
            {},
            (2, "ddp", "H1000"),
            UsageError,
            "--device H1000: no such device is known; take the one nearest in memory of B200, ",
        ),
        ({}, (None, "ddp"), UsageError, "give --world-size, too"),
        ({}, (None, None, "H100"), UsageError, "give --world-size, too"),
    ],
    ids=str,
)
def test_plans_that_cannot_be_are_errors(
    tmp_path: Path,
    corpus: Path,
    values: dict[str, Any],
    arguments: tuple[Any, ...],
    error: type[Exception],
    message: str,
):
    names = dict(zip(("world_size", "strategy", "device_name"), arguments, strict=False))
    with pytest.raises(error, match=message) as caught:
        planning.check_config(written(tmp_path, **values), corpus, **names)
    assert "\n" not in str(caught.value)
    assert not torch.distributed.is_initialized()


def test_a_wrong_plan_is_one_line_on_the_command_line(lab_command, tmp_path: Path, corpus: Path):
    path = written(tmp_path, batch_size=4)
    done = lab_command("validate-config", path, "--data", corpus, "--world-size", 8)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: batch_size=4 cannot be shared by 8 processes")
    assert done.stderr.count("\n") == 1
    assert lab_command("validate-config", path, "--world-size", "many").returncode == 2


def test_a_rehearsal_that_fails_leaves_no_process_group(tmp_path: Path):
    def fails():
        raise ConfigError("no model")

    with pytest.raises(ConfigError, match="no model"):
        rehearsal.rehearse(fails, TrainingConfig(**TINY), 2, "ddp", "fp32")
    assert not torch.distributed.is_initialized()


# --- the real thing


def test_two_real_processes_hold_and_save_what_is_planned(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
):
    path = written(tmp_path, parallel="fsdp", batch_size=2, max_steps=1, seed=1)
    found = plan(path, corpus, 2, "fsdp")
    monkeypatch.chdir(tmp_path)
    worked(2, MAIN, "--config", path, "--data", corpus, "--run-name", "real", timeout=240)
    saved = tmp_path / "runs" / "real" / "checkpoints" / "step-00000001"
    sizes = []
    for number in (1, 2):
        with safe_open(saved / f"optimizer-0000{number}-of-00002.safetensors", "pt") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
        sizes.append(sum(tensor.nbytes for tensor in tensors if tensor.dim()))
    assert sizes[0] == found.share.optimizer == found.rehearsal.optimizer
    assert sum(sizes) == 2 * FLOAT * (model_numbers := sum_of(saved / "model.safetensors"))
    assert found.share.start == FLOAT * model_numbers + found.share.weights


def sum_of(path: Path) -> int:
    """How many numbers a file of weights holds."""
    with safe_open(path, "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
