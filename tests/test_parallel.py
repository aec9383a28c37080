"""Several processes train one model under torchrun: with the losses of one, in DDP and FSDP, and without hanging."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torchrun import MAIN, ROOT, torchrun, worked
from transformers import AutoModelForCausalLM

import lmlab
from lmlab import checkpoint, cli, events, hub, lab, parallel, ranks, rehearsal
from lmlab.errors import RankError, RunError, UsageError
from lmlab.proof import differing_tensor
from lmlab.record import delete_run

WORK, MISHAP = ROOT / "tests" / "rank_work.py", ROOT / "tests" / "rank_mishap.py"
STRATEGIES = ("ddp", "fsdp")
HALF = 25  # where the runs of 50 steps have a checkpoint
ROUNDING = {"rtol": 2e-5, "atol": 0.0}

PLAIN = {
    "n_layers": 2, "d_model": 32, "n_heads": 2, "d_ff": 64, "max_seq_len": 16, "batch_size": 16, "max_steps": 50,
    "learning_rate": 3e-3, "dropout": 0.0, "precision": "fp32", "seed": 7, "eval_cadence": HALF,
    "checkpoint_cadence": HALF, "sampling_max_length": 12,
}  # fmt: skip
FULL = {
    **PLAIN,
    "max_steps": 12,
    "gradient_accumulation_steps": 2,
    "grad_clip": 0.5,
    "activation_checkpointing": True,
    "sampling_cadence": 6,
    "hooks": ["activation_stats:3", "attention_entropy:3", "weight_norms:3"],
}
QWEN = {**PLAIN, "max_steps": 15, "gradient_accumulation_steps": 2, "grad_clip": 0.5, "sampling_prompt": "the"}
DROPOUT = {**PLAIN, "dropout": 0.3, "max_steps": 12, "checkpoint_cadence": 6, "eval_cadence": 4}
MANY = {**DROPOUT, "max_steps": 300, "checkpoint_cadence": None, "eval_cadence": None, "d_model": 16}
LEAVING_OUT = {  # families of which some weights get no gradient: of no text, or of none of a single token
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
    "deepseek_v32": {},
    "rwkv": {},
}
SAVING = {**DROPOUT, "checkpoint_cadence": 3, "parallel": "fsdp", "hooks": []}
STOPPING = {  # as the learning rate rises, the loss does, too
    **PLAIN, "learning_rate": 0.3, "warmup_steps": 40, "early_stopping_patience": 2, "eval_cadence": 2,
    "checkpoint_cadence": None, "keep_checkpoints": 1, "async_checkpoints": True,
}  # fmt: skip


@dataclass
class Bench:
    """A folder with text, a model, and runs."""

    folder: Path

    @property
    def data(self) -> Path:
        """Text of 33 windows to validate on: the last batch of 16 has one for all ranks."""
        return self.folder / "corpus.txt"

    @property
    def documents(self) -> Path:
        """Many short documents: several in each window."""
        return self.folder / "documents"

    @property
    def where(self) -> dict[str, str]:
        return {"runs_dir": str(self.folder / "runs"), "models_dir": str(self.folder / "models")}

    def run(self, name: str) -> lab.Run:
        return lab.Run(self.folder / "runs" / name)

    def series(self, name: str, key: str = "loss") -> NDArray[np.float64]:
        return self.run(name).series(key)[1]

    def checkpoint(self, name: str, step: int) -> Path:
        return checkpoint.step_folder(self.folder / "runs" / name / "checkpoints", step)

    def training(self, name: str, config: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """The arguments of a new run."""
        return {"config": {**config, **changes}, "data": str(self.data), "run_name": name, **self.where}

    def tuning(self, name: str, **changes: Any) -> dict[str, Any]:
        """The arguments of a fine-tune that is registered under the run's name."""
        return {
            "model_name": "tiny-qwen",
            "data": str(self.documents),
            "name": name,
            "config": {**QWEN, **changes},
            "run_name": name,
            **self.where,
        }

    def going_on(self, source: str, name: str, step: int = HALF, **changes: Any) -> dict[str, Any]:
        """The arguments that resume a copy of a run at a step."""
        copy = self.folder / name / source  # a run keeps its name
        shutil.copytree(self.folder / "runs" / source, copy)
        return {"where": str(checkpoint.step_folder(copy / "checkpoints", step)), **changes}

    def resumed(self, source: str, name: str) -> lab.Run:
        return lab.Run(self.folder / name / source)

    def saw(self, name: str, size: int = 2) -> list[dict[str, Any]]:
        """What each rank saw in a job."""
        return [json.loads((self.folder / f"{name}.rank-{rank}.json").read_text()) for rank in range(size)]

    def work(self, size: int, jobs: list[dict[str, Any]]) -> None:
        """Do jobs with that many ranks."""
        path = self.folder / f"jobs-{size}.json"
        path.write_text(json.dumps(jobs))
        worked(size, WORK, path)


def job(do: str, name: str, arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"do": do, "name": name, "arguments": arguments, **more}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The folder, with the runs of one process alone."""
    made = Bench(tmp_path_factory.mktemp("bench"))
    draw = random.Random(1)
    words = "The cat dog bird saw found lost a red small old ball hat tree and then went home".split()
    sentences = [" ".join(draw.choice(words) for _ in range(draw.randint(3, 8))) + "." for _ in range(600)]
    made.data.write_text("\n".join(sentences)[:10_400], encoding="utf-8")
    made.documents.mkdir()
    for number, sentence in enumerate(sentences[:300]):
        (made.documents / f"{number:03d}.txt").write_text(sentence, encoding="utf-8")
    tiny = tiny_models.make(made.folder / "tiny-qwen", "qwen2")
    assert hub.import_model(str(tiny), name="tiny-qwen", models_dir=made.where["models_dir"]) is not None
    torch.set_num_threads(1)
    for name, config in (("alone", PLAIN), ("alone-full", FULL)):
        lab.run(listeners=[], **made.training(name, config))
    lab.finetune(listeners=[], **made.tuning("alone-qwen"))
    return made


@pytest.fixture(scope="module")
def pair(bench: Bench) -> Bench:
    """The same with two ranks, and what two ranks make of the run of one."""
    jobs = [{"do": "agree", "name": "agree"}, job("masks", "masks", bench.training("masks", DROPOUT))]
    for strategy in STRATEGIES:
        other = {"parallel": strategy}
        half = {**other, "max_steps": 8, "async_checkpoints": True}
        jobs += [
            job("train", f"{strategy}-2", bench.training(f"{strategy}-2", PLAIN, **other), sample=True),
            job("train", f"{strategy}-2-full", bench.training(f"{strategy}-2-full", FULL, **other)),
            job("finetune", f"{strategy}-2-qwen", bench.tuning(f"{strategy}-2-qwen", **other)),
            job("resume", f"{strategy}-1-to-2", bench.going_on("alone", f"{strategy}-1-to-2", **other)),
            job("train", f"{strategy}-stopping", bench.training(f"{strategy}-stopping", STOPPING, **other)),
            job("train", f"{strategy}-straight", bench.training(f"{strategy}-straight", DROPOUT, **other)),
            job("train", f"{strategy}-halves", bench.training(f"{strategy}-halves", DROPOUT, **half)),
            job(
                "resume",
                f"{strategy}-second-half",
                {"where": str(bench.folder / "runs" / f"{strategy}-halves"), "max_steps": 12},
            ),
        ]
    jobs += [
        {"do": "load", "name": "loaded", "folder": str(bench.checkpoint("fsdp-2", HALF))},
        job("train", "muon-2", bench.training("muon-2", DROPOUT, optimizer="muon", parallel="auto")),
        job("train", "undisturbed", bench.training("undisturbed", SAVING)),
        job("train", "many", bench.training("many", MANY)),
    ]
    bench.work(2, jobs)
    return bench


@pytest.fixture(scope="module")
def four(pair: Bench) -> Bench:
    """The same with four ranks, and what they make of the runs of two."""
    jobs = []
    for strategy in STRATEGIES:
        other = {"parallel": strategy}
        source = f"{strategy}-2"
        jobs += [
            job("train", f"{strategy}-4", pair.training(f"{strategy}-4", PLAIN, **other)),
            job("finetune", f"{strategy}-4-qwen", pair.tuning(f"{strategy}-4-qwen", **other)),
            job("resume", f"{strategy}-2-to-4", pair.going_on(source, f"{strategy}-2-to-4")),
        ]
    pair.work(4, jobs)
    return pair


def assert_same_curves(expected: lab.Run, got: lab.Run, start: int = 0) -> None:
    """Losses and validation losses of two runs agree within fp32 rounding, from a step on."""
    for key in ("loss", "val_loss"):
        (steps, values), (other_steps, others) = expected.series(key), got.series(key)
        after, others_after = steps > start, other_steps > start
        assert after.any()
        assert steps[after].tolist() == other_steps[others_after].tolist()
        np.testing.assert_allclose(others[others_after], values[after], **ROUNDING)
    assert expected.last("loss") < 0.9 * expected.series("loss")[1][0]  # and it is a run that learns


# --- the same numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_losses_do_not_depend_on_the_number_of_ranks(four: Bench, strategy: str) -> None:
    assert_same_curves(four.run("alone"), four.run(f"{strategy}-2"))
    assert_same_curves(four.run("alone"), four.run(f"{strategy}-4"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_tiny_qwen_has_the_same_losses_on_packed_documents(four: Bench, strategy: str) -> None:
    assert_same_curves(four.run("alone-qwen"), four.run(f"{strategy}-2-qwen"))
    assert_same_curves(four.run("alone-qwen"), four.run(f"{strategy}-4-qwen"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_accumulation_clipping_hooks_and_samples_are_those_of_one_process(pair: Bench, strategy: str) -> None:
    alone, run = pair.run("alone-full"), pair.run(f"{strategy}-2-full")
    assert_same_curves(alone, run)
    np.testing.assert_allclose(run.series("grad_norm")[1], alone.series("grad_norm")[1], rtol=1e-4)
    assert (alone.series("grad_norm")[1] > 0.5).any()  # so that clipping was needed
    assert [sample.text for sample in run.samples()] == [sample.text for sample in alone.samples()]
    for name, key in (("activation_stats", "std"), ("attention_entropy", "entropy"), ("weight_norms", "norms")):
        measured, expected = run.hook(name), alone.hook(name)
        assert len(measured) == len(expected) == 4
        for one, other in zip(measured, expected, strict=True):
            assert flat(one[key]) == pytest.approx(flat(other[key]), rel=1e-4)


def flat(value: Any) -> list[float]:
    """All numbers of a nested value, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    return [number for each in value for number in flat(each)] if isinstance(value, list) else [float(value)]


def test_dropout_differs_from_rank_to_rank_and_comes_again(pair: Bench) -> None:
    masks = [saw["masks"] for saw in pair.saw("masks")]
    assert masks[0][0] != masks[1][0]
    for first, second in masks:
        assert first == second
        assert len(set(first)) == 2
    assert pair.series("ddp-straight").tolist() == pair.series("fsdp-straight").tolist()  # and so for both strategies


def test_models_of_which_some_weights_get_no_gradient_train_in_copies(bench: Bench) -> None:
    for family, changes in LEAVING_OUT.items():
        source = tiny_models.make(bench.folder / family, family, **changes)
        hub.import_model(str(source), name=family, models_dir=bench.where["models_dir"])
        lab.run(listeners=[], **bench.training(f"{family}-1", QWEN, model_name=family, max_steps=3))
    names = {family: f"{family}-2" for family in LEAVING_OUT}
    bench.work(
        2, [job("train", name, bench.training(name, QWEN, model_name=f, max_steps=3)) for f, name in names.items()]
    )
    for family, name in names.items():
        assert bench.run(name).start["strategy"] == "ddp"
        for key in ("loss", "val_loss", "grad_norm"):
            np.testing.assert_allclose(bench.series(name, key), bench.series(f"{family}-1", key), rtol=1e-4)


def test_muon_trains_in_copies(pair: Bench) -> None:
    losses = pair.series("muon-2")
    assert pair.run("muon-2").start["strategy"] == "ddp"
    assert losses[-1] < losses[0]


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_with_early_stopping_several_ranks_save_what_is_better(pair: Bench, strategy: str) -> None:
    run = pair.run(f"{strategy}-stopping")
    losses = dict(zip(*(each.tolist() for each in run.series("val_loss")), strict=True))
    lowest = int(min(losses, key=losses.__getitem__))
    assert 0 < lowest < run.step < STOPPING["max_steps"]
    assert checkpoint.steps(run.folder / "checkpoints") == [lowest, run.step]
    assert run.best_checkpoint == pair.checkpoint(run.run_id, lowest)
    assert checkpoint.load(run.best_checkpoint).state["best_saved_loss"] == losses[lowest]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_saved_on_some_ranks_and_resumed_on_others(four: Bench, strategy: str, tmp_path: Path) -> None:
    alone, source = four.run("alone"), f"{strategy}-2"
    assert_same_curves(alone, four.resumed("alone", f"{strategy}-1-to-2"), HALF)
    assert_same_curves(alone, four.resumed(source, f"{strategy}-2-to-4"), HALF)
    back = lab.resume(listeners=[], **four.going_on(source, f"{strategy}-2-to-1"))
    assert_same_curves(alone, back, HALF)
    assert back.start["world_size"] == 1
    assert back.start["strategy"] is None


def test_saved_on_four_ranks_and_resumed_on_two(four: Bench) -> None:
    names = {strategy: f"{strategy}-4-to-2" for strategy in STRATEGIES}
    four.work(2, [job("resume", name, four.going_on(f"{strategy}-4", name)) for strategy, name in names.items()])
    for strategy, name in names.items():
        run = four.resumed(f"{strategy}-4", name)
        assert_same_curves(four.run("alone"), run, HALF)
        assert (run.start["world_size"], run.start["strategy"]) == (2, strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resumed_on_as_many_ranks_it_is_the_uninterrupted_run(pair: Bench, strategy: str) -> None:
    straight, halves = f"{strategy}-straight", f"{strategy}-halves"
    for key in ("loss", "val_loss", "grad_norm"):
        assert pair.series(straight, key).tolist() == pair.series(halves, key).tolist()
    ends = [checkpoint.load(pair.checkpoint(name, 12)) for name in (straight, halves)]
    assert differing_tensor(*ends) is None
    assert {"cpu", "rank-1.cpu"} == set(ends[0].tensors("rng"))
    assert differing_tensor(ends[0], checkpoint.load(pair.checkpoint(straight, 6))) is not None


def test_under_fsdp_no_rank_holds_the_whole_optimizer(four: Bench) -> None:
    for name in ("fsdp-2", "loaded"):
        saws = four.saw(name)
        assert sum(saw["held"] for saw in saws) == saws[0]["whole"]
        assert all(saw["held"] <= 0.55 * saw["whole"] for saw in saws)
    for size in (2, 4):
        saved = checkpoint.load(four.checkpoint(f"fsdp-{size}", 50))
        shards = sorted(saved.folder.glob("optimizer*"))
        assert [shard.name for shard in shards] == [
            f"optimizer-{number:05d}-of-{size:05d}.safetensors" for number in range(1, size + 1)
        ]
        elements = [sum(np.prod(shape) for shape in shapes_in(shard)) for shard in shards]
        alone = checkpoint.load(four.checkpoint("alone", 50)).tensors("optimizer")
        assert saved.tensors("optimizer").keys() == alone.keys()
        assert max(elements) < 1.3 * sum(elements) / size
        assert {name: saved.tensors("optimizer").shape(name) for name in alone} == {
            name: alone.shape(name) for name in alone
        }


def shapes_in(path: Path) -> list[list[int]]:
    with safe_open(path, "pt") as file:
        return [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118


def test_a_model_from_an_fsdp_run_is_whole(pair: Bench) -> None:
    folder = Path(pair.where["models_dir"]) / "fsdp-2-qwen"
    assert [saw["registered_as"] for saw in pair.saw("fsdp-2-qwen")] == ["fsdp-2-qwen", None]
    plain, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = AutoModelForCausalLM.from_pretrained(folder.parent / "alone-qwen").state_dict()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-4)
    held = {saw["n_parameters"] for name in ("ddp-2", "fsdp-2") for saw in pair.saw(name)}
    assert held == {pair.run("alone").model["n_parameters"]}  # each rank may load all of it


# --- the log ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_log_is_of_rank_0_and_speaks_for_all(four: Bench, strategy: str) -> None:
    for size in (2, 4):
        run = four.run(f"{strategy}-{size}")
        assert (run.start["world_size"], run.start["strategy"], run.start["backend"]) == (size, strategy, "gloo")
        told = [event["step"] for event in events.read(run.log_path) if event["event"] == "step"]
        assert told == list(range(1, 51))  # once each
        seconds = np.diff([0.0, *run.series("seconds")[1]])
        assert (run.series("tokens_per_second")[1] * seconds > 0.9 * 16 * 16).mean() > 0.9  # a step's whole batch
        ends = [events.read(run.folder / f"log.rank-{rank}.jsonl")[-1] for rank in range(1, size)]
        assert [end["status"] for end in ends] == ["completed"] * (size - 1)
    assert [saw["steps_read"] for saw in four.saw(f"{strategy}-4", 4)] == [50] * 4  # whole when `execute` returns
    assert "2 processes" in four.run(f"{strategy}-2")._repr_html_()


# --- mishaps ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def flags(pair: Bench) -> Callable[..., list[str]]:
    """The command line of a run in the bench."""

    def of(name: str, config: dict[str, Any]) -> list[str]:
        sets = [part for key, value in config.items() for part in ("--set", f"{key}={json.dumps(value)}")]
        folders = ["--runs-dir", pair.where["runs_dir"], "--models-dir", pair.where["models_dir"]]
        return ["--data", str(pair.data), "--run-name", name, *folders, *sets]

    return of


def test_a_failing_rank_ends_the_run_with_its_own_message(pair: Bench, flags: Callable[..., list[str]]) -> None:
    config = {**DROPOUT, "hooks": ["mishap:3"], "max_steps": 100_000}
    done = torchrun(2, MISHAP, "raise", 1, *flags("failing", config), timeout=60)
    assert done.returncode == 1
    assert "error: rank 1: No space left on the second disk; check the disk" in done.stderr
    cause = done.stderr.partition("Root Cause")[2]
    assert "No space left on the second disk" in cause  # torchrun has it from the error file
    last = events.read(pair.folder / "runs" / "failing" / "log.rank-1.jsonl")[-1]
    assert (last["event"], last["step"]) == ("error", 3)
    assert "No space left" in last["message"]
    assert pair.run("failing").status == "failed"
    assert pair.run("failing").step == 3


@pytest.mark.parametrize("path", ["runs", "Läufe", os.fsdecode(b"caf\xe9")])  # the last is no UTF-8, as a folder may be
def test_what_rank_0_says_arrives_whatever_it_is(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source, group: said.append(tensor.clone()))
    assert ranks.World(0, 2, "gloo").first(lambda: path) == path
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source, group: tensor.copy_(said.pop(0)))
    assert ranks.World(1, 2, "gloo").first(lambda: "") == path


def test_weights_are_dealt_out_to_the_processors_of_a_machine_with_another_accelerator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Apple's, from which several processes cannot talk. None is here: it is pretended, and so is the other process."""
    monkeypatch.setattr(torch._C, "_get_accelerator", lambda *_: torch.device("mps"))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    shape = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_ff": 8, "dropout": 0.0, "max_seq_len": 4, "seed": 0}
    adapter = lmlab.CustomTransformerAdapter(lmlab.Transformer(5, **shape))
    with rehearsal.fake_world(2):
        parallel.spread(adapter, lmlab.TrainingConfig(**PLAIN, parallel="fsdp"), torch.device("cpu"))
        parts = [ranks.own_part(weight) for weight in adapter.parameters()]
    assert {part.device.type for part in parts} == {"cpu"}
    assert sum(part.numel() for part in parts) < adapter.n_parameters()


def test_a_rank_that_was_given_something_else_is_refused(pair: Bench) -> None:
    said = [saw["said"] for saw in pair.saw("agree")]
    assert said[0] == ""
    assert said[1].startswith("rank 1 was given another text than rank 0 (text 1, not text 0)")


def test_a_rank_that_stands_still_is_given_up(pair: Bench, flags: Callable[..., list[str]]) -> None:
    config = {**DROPOUT, "hooks": ["mishap:3"], "max_steps": 100_000}
    done = torchrun(2, MISHAP, "hang", 1, *flags("hanging", config), timeout=90, LMLAB_RANK_TIMEOUT="4")
    assert done.returncode == 1
    assert "error: rank 0: rank 0 lost the others" in done.stderr
    assert pair.run("hanging").status == "failed"


NCCL = """NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, {0}, NCCL version 2.27.5
{1}: {2}"""
NO_SPACE = (
    "Error while creating shared memory segment /dev/shm/nccl-Yx2bQ3 (size 9637888), error: No space left on device"
)
REMOTE = "A call failed possibly due to a network error or a remote process exiting prematurely."


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            NCCL.format("unhandled system error", "ncclSystemError", "System call failed.")
            + "\nLast error:\n"
            + NO_SPACE,
            rf"rank 1 cannot talk to the others: {re.escape(NO_SPACE)} \(NCCL_DEBUG=INFO says more\)$",
        ),
        (
            NCCL.format("invalid usage", "ncclInvalidUsage", "This usually reflects invalid usage."),
            r"rank 1 cannot talk to the others: ncclInvalidUsage: This usually reflects invalid usage\. \(",
        ),
        (
            NCCL.format("remote process exited", "ncclRemoteError", REMOTE) + "\nLast error:\nsocket closed",
            "rank 1 lost the others .* the rank that failed first says why",
        ),
        (
            "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711\nmore",
            r"rank 1 lost the others \(\[gloo.*4711\); the rank that failed first says why",
        ),
    ],
    ids=["reason", "no reason", "remote", "gloo"],
)
def test_what_nccl_failed_of_is_told(said: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is here: the texts are those that torch raises."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RankError, match=expected), ranks.losses_as_errors():
        raise torch.distributed.DistBackendError(said)


def test_a_rank_killed_while_saving_leaves_the_checkpoint_before(pair: Bench, flags: Callable[..., list[str]]) -> None:
    done = torchrun(2, MISHAP, "die-saving", 0, *flags("killed", SAVING), timeout=60)
    assert done.returncode == 1
    checkpoints = pair.folder / "runs" / "killed" / "checkpoints"
    saved, refused = checkpoint.newest(checkpoints)
    assert (saved.step, refused) == (3, [])
    assert [path.name.partition(".tmp-")[0] for path in checkpoints.glob(".*")] == [".step-00000006"]
    run = lab.resume(pair.folder / "runs" / "killed", listeners=[])
    assert run.status == "completed"
    assert sorted(path.name for path in checkpoints.iterdir() if path.name != checkpoint.BEST) == [
        f"step-{step:08d}" for step in (3, 6, 9, 12)
    ]


def test_a_rank_killed_while_saving_comes_back_by_itself(pair: Bench, flags: Callable[..., list[str]]) -> None:
    done = torchrun(2, MISHAP, "die-saving", 1, *flags("restarted", SAVING), max_restarts=1, timeout=90)
    assert done.returncode == 0, done.stderr[-3000:]
    run, undisturbed = pair.run("restarted"), pair.run("undisturbed")
    assert [start["kind"] for start in run.starts] == ["new", "resumed"]
    for key in ("loss", "val_loss"):
        assert run.series(key)[1].tolist() == undisturbed.series(key)[1].tolist()
    ends = [checkpoint.load(pair.checkpoint(name, 12)) for name in ("restarted", "undisturbed")]
    assert differing_tensor(*ends) is None
    assert done.stdout.count("status=completed") == 1  # rank 0 alone speaks
    assert not list((run.folder / "checkpoints").glob(".*"))


@pytest.mark.parametrize("named", ["checkpoint", "link", "removed"])
def test_a_run_outside_of_the_runs_folder_comes_back_where_it_was(pair: Bench, tmp_path: Path, named: str) -> None:
    """Not at the checkpoint that it was resumed at, which may be gone by then."""
    copy = tmp_path / "elsewhere" / "undisturbed"
    shutil.copytree(pair.folder / "runs" / "undisturbed", copy)
    where = checkpoint.step_folder(copy / "checkpoints", 3)
    if named == "link":
        (tmp_path / "third").symlink_to(where)
        where = tmp_path / "third"
    given = ["--resume", str(where), "--runs-dir", pair.where["runs_dir"], "--set", "eval_cadence=null"]
    given += ["--set", "keep_checkpoints=1"] if named == "removed" else []
    done = torchrun(2, MISHAP, "die-saving", 1, *given, max_restarts=1, timeout=90)
    assert done.returncode == 0, done.stderr[-3000:]
    run = lab.Run(copy)
    begins = [Path(start["resumed_from"]).resolve().name for start in run.starts[-2:]]
    assert (run.status, run.step, begins) == ("completed", 12, ["step-00000003", "step-00000006"])
    assert sorted(path.name for path in copy.glob("superseded-*")) == ["superseded-1"]


def test_a_process_alone_under_torchrun_comes_back_too(pair: Bench, flags: Callable[..., list[str]]) -> None:
    done = torchrun(
        1, MISHAP, "die-saving", 0, *flags("lonely", {**SAVING, "parallel": "auto"}), max_restarts=1, timeout=90
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = pair.run("lonely")
    assert [start["kind"] for start in run.starts] == ["new", "resumed"]
    assert (run.status, run.step, run.start["world_size"]) == ("completed", 12, 1)


def test_a_run_comes_back_with_the_model_of_the_command_line(pair: Bench, flags: Callable[..., list[str]]) -> None:
    """Its config file names another one, which the flag was stronger than. The plan is what each process takes."""
    (pair.folder / "other.yaml").write_text("model_name: other\n")
    config = {**QWEN, "max_steps": 8, "checkpoint_cadence": 3, "eval_cadence": None, "parallel": "fsdp"}
    given = ["--config", str(pair.folder / "other.yaml"), "--model-name", "tiny-qwen", *flags("renamed", config)]
    done = torchrun(2, MISHAP, "die-saving", 1, *given, max_restarts=1, timeout=90)
    assert done.returncode == 0, done.stderr[-3000:]
    run = pair.run("renamed")
    assert [start["kind"] for start in run.starts] == ["fine-tune", "resumed"]
    assert {start["config"]["model_name"] for start in run.starts} == {"tiny-qwen"}
    plans = [line for line in done.stdout.splitlines() if line.startswith("plan: ")]
    assert len(plans) == 2
    assert all(" of memory in each of 2 processes, " in line for line in plans)


# --- from a notebook --------------------------------------------------------------------------------------------------


def test_a_launched_run_of_two_is_attached_to_stopped_and_resumed(
    pair: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    arguments = pair.training("launched", {**MANY, "max_steps": 1_000_000})
    launched = lmlab.launch(processes=2, **arguments)
    try:
        assert launched.start["world_size"] == 2
        run = lmlab.attach(launched.folder).wait(step=5)
        assert run.is_running()
        beside = [launched.folder.parent / name for name in (".launched.ranks", ".launched.out")]
        assert all(path.exists() for path in beside)
        assert not list(tmp_path.glob("torchelastic*"))
    finally:
        launched.stop()
    assert launched.status == "stopped"
    deadline = time.monotonic() + 30
    while beside[0].exists():  # torchrun ends after its ranks
        assert time.monotonic() < deadline, "torchrun's files are left"
        time.sleep(0.05)
    assert launched.newest_checkpoint is not None
    saved = checkpoint.load(launched.newest_checkpoint)
    assert saved.step == launched.step < 300
    worked(2, MAIN, "--resume", launched.folder, "--max-steps", 300)
    launched.refresh()
    assert launched.series("loss")[1].tolist() == pair.series("many").tolist()
    beside[0].mkdir()  # as where the notebook's kernel ended before the run
    delete_run(launched.folder)
    assert not any(path.exists() for path in (*beside, launched.folder))


def test_what_keeps_a_launched_run_from_starting_is_said(pair: Bench) -> None:
    with pytest.raises(RunError, match=r"did not start: rank \d: batch_size=1 cannot be shared by 2 processes"):
        lmlab.launch(processes=2, **pair.training("unshared", PLAIN, batch_size=1))
    with pytest.raises(UsageError, match="processes=0 cannot train"):
        lmlab.launch(processes=0, **pair.training("none", PLAIN))


def test_a_command_for_one_process_refuses_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["list-runs"]) == 2
    assert "list-runs is done by one process" in capsys.readouterr().err
    assert os.environ.get("MASTER_ADDR") is None
    assert not torch.distributed.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert cli.main(["list-runs"]) == 0
