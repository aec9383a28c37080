"""The training loop by its numbers: one update is one large batch's, cadences are kept, bad numbers change nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from diverging import Diverging
from torch import Tensor

from lmlab import checkpoint
from lmlab.adapters.custom import CustomTransformerAdapter
from lmlab.config import TrainingConfig
from lmlab.data import IGNORED, Batch, DataLoader, WindowDataset
from lmlab.errors import CheckpointError, ConfigError, DataError, DivergedError, TokenizerError, UsageError
from lmlab.optim import create_optimizer, learning_rate_at
from lmlab.tokenizers import CharTokenizer, HFTokenizer, Ids, Tokenizer
from lmlab.trainer import Trainer
from lmlab.transformer import Transformer

TEXT = "the cat saw a dog. the dog saw a cat. a bird sat on the cat and the dog ran home.\n" * 30
TOKENIZER = CharTokenizer.from_text(TEXT)
IDS = TOKENIZER.encode(TEXT)
WIDTH = 16


def config(**changes: Any) -> TrainingConfig:
    values = {
        "max_seq_len": WIDTH, "batch_size": 4, "max_steps": 6, "precision": "fp32", "seed": 1, "sampling_prompt": "the",
        "sampling_max_length": 5, "learning_rate": 3e-3, **changes,
    }  # fmt: skip
    return TrainingConfig(**values)


def model(
    dropout: float = 0.0, kind: type[CustomTransformerAdapter] = CustomTransformerAdapter
) -> CustomTransformerAdapter:
    return kind(
        Transformer(
            TOKENIZER.vocab_size, n_layers=2, d_model=32, n_heads=2, d_ff=64, dropout=dropout, max_seq_len=WIDTH, seed=2
        )
    )


def loader(windows: int = 4, position: int = 0) -> DataLoader:
    return DataLoader(WindowDataset(IDS[:2000], WIDTH), windows, seed=3, position=position)


def validation() -> DataLoader:
    return DataLoader(WindowDataset(IDS[2000:], WIDTH), 8)


class Told(list[dict[str, Any]]):
    """A listener that keeps what it is told."""

    def __call__(self, event: dict[str, Any]) -> None:
        self.append(event)

    def of(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self if event["event"] == name]


def make(adapter: CustomTransformerAdapter | None = None, sgd: bool = False, **arguments: Any) -> tuple[Trainer, Told]:
    adapter = adapter or model()
    settings = arguments.pop("config", None) or config()
    optimizer = (
        torch.optim.SGD(adapter.parameters(), lr=settings.learning_rate)
        if sgd
        else create_optimizer(adapter.model, settings)
    )
    told = Told()
    defaults = {"val_dataloader": validation(), "tokenizer": TOKENIZER, "seed": 5}
    return Trainer(adapter, optimizer, settings, listeners=[told], **{**defaults, **arguments}), told


def weights(trainer: Trainer) -> list[Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- one update -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("windows", "batch_size"), [(8, 2), (8, 4), (7, 3), (5, 4), (3, 16), (1, 1)])
def test_accumulation_is_one_large_batch(windows: int, batch_size: int) -> None:
    """The ragged last micro-batch, and windows with fewer tokens that count, weigh as much as they hold."""
    batch = loader(windows).dataset.batch(np.arange(windows) * 37)
    batch.targets_BT[0, 5:] = -100
    batch.targets_BT[-1, :3] = -100
    settings = config(batch_size=batch_size, learning_rate=1.0)
    accumulated, _ = make(sgd=True, config=settings)
    whole, _ = make(sgd=True, config=config(batch_size=windows, learning_rate=1.0))
    loss, expected = accumulated.training_step(batch), whole.training_step(batch)
    assert loss == pytest.approx(expected, rel=1e-6)
    reference = model()
    total = reference.loss(batch.inputs_BT, batch.targets_BT, "sum") / int((batch.targets_BT != -100).sum())
    total.backward()
    assert loss == pytest.approx(total.item(), rel=1e-6)
    for got, large, start in zip(weights(accumulated), weights(whole), reference.parameters(), strict=True):
        assert start.grad is not None
        assert torch.allclose(got, large, atol=1e-6)
        assert torch.allclose(got, start.detach() - start.grad, atol=1e-6)  # one step of SGD at rate 1


@pytest.mark.parametrize("limit", [0.05, 1e3])
def test_clipping_scales_the_whole_gradient(limit: float) -> None:
    trainer, told = make(sgd=True, config=config(grad_clip=limit, learning_rate=1.0))
    before = weights(trainer)
    trainer.training_step(next(iter(loader())))
    moved = math.sqrt(
        sum(float((b - a).double().square().sum()) for a, b in zip(before, weights(trainer), strict=True))
    )
    (step,) = told.of("step")
    assert moved == pytest.approx(min(limit, step["grad_norm"]), rel=1e-4)
    unclipped, other = make(sgd=True, config=config(learning_rate=1.0))
    unclipped.training_step(next(iter(loader())))
    assert step["grad_norm"] == other.of("step")[0]["grad_norm"] > 0.05


def test_the_schedule_is_followed_and_logged() -> None:
    settings = config(lr_schedule="cosine", warmup_steps=3, max_steps=9, lr_decay_steps=8)
    trainer, told = make(config=settings)
    trainer.fit(loader())
    rates = [event["learning_rate"] for event in told.of("step")]
    assert rates == [learning_rate_at(step, settings, 8) for step in range(1, 10)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[7] == rates[8] == pytest.approx(3e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_learns(optimizer: str) -> None:
    trainer, told = make(config=config(max_steps=60, optimizer=optimizer, eval_cadence=30, batch_size=8))
    trainer.fit(loader(8))
    losses = [event["loss"] for event in told.of("step")]
    evaluations = [event["val_loss"] for event in told.of("eval")]
    assert abs(losses[0] - math.log(TOKENIZER.vocab_size)) < 0.2
    assert losses[-1] < losses[0] - 1.0
    assert evaluations == sorted(evaluations, reverse=True)


def test_the_logged_loss_is_that_before_the_update() -> None:
    trainer, told = make()
    batch = next(iter(loader()))
    expected = model().loss(batch.inputs_BT, batch.targets_BT).item()
    assert trainer.training_step(batch) == pytest.approx(expected, rel=1e-6)
    step = told.of("step")[0]
    assert (step["loss"], step["step"]) == (pytest.approx(expected, rel=1e-6), 1)
    assert step["tokens_per_second"] > 0
    assert 0 <= step["flops_utilization"] < 10


def test_bf16_and_activation_checkpointing_train_to_nearly_the_same() -> None:
    results = {}
    for name, changes in (
        ("plain", {}), ("checkpointed", {"activation_checkpointing": True}), ("bf16", {"precision": "bf16"}),
    ):  # fmt: skip
        trainer, told = make(model(dropout=0.2), config=config(max_steps=10, **changes))
        trainer.fit(loader())
        results[name] = [event["loss"] for event in told.of("step")]
    assert results["checkpointed"] == results["plain"]
    assert results["bf16"] == pytest.approx(results["plain"], abs=0.05)
    assert results["bf16"] != results["plain"]


# --- reproducible ---------------------------------------------------------------------------------------------------


def run_losses(seed: int, between: Callable[[], object] = lambda: None) -> list[float]:
    trainer, told = make(model(dropout=0.3), seed=seed, config=config(eval_cadence=2, sampling_cadence=3))
    batches = iter(loader())
    for _ in range(6):
        between()
        trainer.training_step(next(batches))
    return [event.get("loss", event.get("val_loss")) for event in told if event["event"] in ("step", "eval")]


def test_a_seed_makes_the_run_whatever_the_caller_draws_between_its_steps() -> None:
    torch.manual_seed(1)
    expected = run_losses(seed=5)
    torch.manual_seed(99)
    assert run_losses(seed=5, between=lambda: torch.rand(3)) == expected
    assert run_losses(seed=5, between=lambda: torch.manual_seed(0)) == expected
    assert run_losses(seed=6) != expected


def test_a_run_moves_no_number_of_its_caller() -> None:
    trainer, _ = make(model(dropout=0.3), config=config(hooks=["activation_stats:1"], eval_cadence=2))
    torch.manual_seed(4)
    before = torch.get_rng_state()
    trainer.fit(loader())
    assert torch.equal(torch.get_rng_state(), before)


def test_two_runs_side_by_side_are_the_two_runs_alone() -> None:
    alone = [run_losses(seed=5), run_losses(seed=6)]
    trainers = [
        make(model(dropout=0.3), seed=seed, config=config(eval_cadence=2, sampling_cadence=3)) for seed in (5, 6)
    ]
    batches = [iter(loader()), iter(loader())]
    for _ in range(6):
        for (trainer, _), own in zip(trainers, batches, strict=True):
            trainer.training_step(next(own))
    for (_, told), expected in zip(trainers, alone, strict=True):
        got = [event.get("loss", event.get("val_loss")) for event in told if event["event"] in ("step", "eval")]
        assert got == expected


class Interrupted(CustomTransformerAdapter):
    """Is interrupted in the forward pass of a chosen call."""

    calls, at = 0, -1

    def loss(self, inputs_BT: Tensor, targets_BT: Tensor, reduction: str = "mean") -> Tensor:
        result = super().loss(inputs_BT, targets_BT, reduction)
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return result


def test_a_step_that_was_interrupted_can_be_done_again() -> None:
    """As when a notebook's cell is interrupted between two micro-batches, and run again."""
    settings = config(batch_size=2)
    straight, _ = make(model(dropout=0.3), config=settings)
    broken, _ = make(model(dropout=0.3, kind=Interrupted), config=settings)
    broken.model.at = 4  # the second micro-batch of the second step
    first, second = (batch for batch, _ in zip(loader(), range(2), strict=False))
    expected = [straight.training_step(first), straight.training_step(second)]
    assert broken.training_step(first) == expected[0]
    with pytest.raises(KeyboardInterrupt):
        broken.training_step(second)
    assert broken.step == 1
    assert broken.training_step(second) == expected[1]
    assert same(weights(broken), weights(straight))


# --- the loop -------------------------------------------------------------------------------------------------------


def test_every_cadence_is_kept_and_the_end_is_evaluated_sampled_and_saved(tmp_path: Path) -> None:
    settings = config(max_steps=7, eval_cadence=4, sampling_cadence=3, checkpoint_cadence=5, hooks=["weight_norms:2"])
    trainer, told = make(config=settings, folder=tmp_path)
    assert trainer.fit(loader()) == "completed"
    assert [(event["event"], event["step"]) for event in told] == [
        ("eval", 0), ("step", 1), ("step", 2), ("hook", 2), ("step", 3), ("sample", 3), ("step", 4), ("hook", 4),
        ("eval", 4), ("step", 5), ("checkpoint", 5), ("step", 6), ("hook", 6), ("sample", 6), ("step", 7), ("eval", 7),
        ("sample", 7), ("checkpoint", 7), ("run_end", 7),
    ]  # fmt: skip
    assert checkpoint.steps(tmp_path / "checkpoints") == [5, 7]
    assert told[-1]["status"] == "completed"
    assert trainer.fit(loader()) == "completed"  # nothing is left to do, and nothing is done twice
    assert [event["event"] for event in told[19:]] == ["run_end"]


def test_what_the_last_steps_cadences_did_is_not_done_again(tmp_path: Path) -> None:
    settings = config(max_steps=4, eval_cadence=2, sampling_cadence=2, checkpoint_cadence=2)
    trainer, told = make(config=settings, folder=tmp_path)
    trainer.fit(loader())
    assert [(event["event"], event["step"]) for event in told][-5:] == [
        ("step", 4), ("eval", 4), ("sample", 4), ("checkpoint", 4), ("run_end", 4),
    ]  # fmt: skip


@pytest.mark.parametrize("folder", ["mine", Path("mine")])
def test_a_trainer_saves_in_its_folder_wherever_the_current_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str | Path
) -> None:
    trainer, _ = make(config=config(max_steps=1), folder=folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    trainer.fit(loader())
    assert checkpoint.steps(tmp_path / "mine" / "checkpoints") == [1]


def test_with_cadences_off_a_run_still_ends_with_sample_and_checkpoint(tmp_path: Path) -> None:
    trainer, told = make(config=config(max_steps=3, checkpoint_cadence=None), folder=tmp_path, val_dataloader=None)
    trainer.fit(loader())
    assert [event["event"] for event in told] == ["step"] * 3 + ["sample", "checkpoint", "run_end"]


def test_asked_to_stop_it_saves_after_the_step_and_says_so(tmp_path: Path) -> None:
    trainer, told = make(config=config(max_steps=100, eval_cadence=50), folder=tmp_path)
    assert trainer.fit(loader(), should_stop=lambda: trainer.step >= 3) == "stopped"
    assert trainer.step == 3
    assert checkpoint.load(tmp_path / "checkpoints" / "step-00000003").step == 3
    assert [event["event"] for event in told][-2:] == ["checkpoint", "run_end"]
    assert told[-1]["status"] == "stopped"


def test_stopped_before_its_first_step_it_saves_the_start(tmp_path: Path) -> None:
    settings = config(eval_cadence=2)
    trainer, told = make(config=settings, folder=tmp_path)
    assert trainer.fit(loader(), should_stop=lambda: True) == "stopped"
    assert [event["event"] for event in told] == ["eval", "checkpoint", "run_end"]
    resumed = Trainer.from_checkpoint(tmp_path / "checkpoints" / "step-00000000", validation(), listeners=[told])
    resumed.fit(loader())
    assert [event["step"] for event in told.of("eval")] == [0, 2, 4, 6]  # the start is not evaluated twice


def test_what_ends_a_run_badly_is_logged_and_raised() -> None:
    trainer, told = make()
    with pytest.raises(UsageError, match="the training batches end after step 2; give fit an endless DataLoader"):
        trainer.fit([next(iter(loader()))] * 2)
    assert told[-1]["event"] == "run_end"
    assert told[-1]["status"] == "failed"


@pytest.mark.parametrize("given", [2, 0])
def test_too_little_memory_and_too_few_batches_cost_no_step(
    given: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = make(folder=tmp_path / "few")
    with pytest.raises(UsageError, match="the training batches end"):
        trainer.fit([next(iter(loader()))] * given)
    trainer, _ = make(folder=tmp_path / "memory")

    def loss(*arguments: Any) -> Tensor:
        if trainer.step == given:
            raise torch.OutOfMemoryError("no room")
        return real(*arguments)

    real = trainer.model.forward
    monkeypatch.setattr(trainer.model, "forward", loss)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.fit(loader())
    for folder in (tmp_path / "few", tmp_path / "memory"):
        assert checkpoint.steps(folder / "checkpoints") == ([given] if given else [])  # nothing was done


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval_cadence is set, .* give the Trainer a val_dataloader"):
        make(config=config(eval_cadence=2), val_dataloader=None)[0].fit(loader())
    settings = config(eval_cadence=2, max_steps=2)
    make(config=settings)[0].save_checkpoint(tmp_path / "saved")
    with pytest.raises(ConfigError, match="give the Trainer a val_dataloader, or set eval_cadence to null"):
        Trainer.from_checkpoint(tmp_path / "saved").fit(loader())
    assert Trainer.from_checkpoint(tmp_path / "saved", validation()).fit(loader()) == "completed"
    trainer, _ = make(val_dataloader=None, tokenizer=None)
    with pytest.raises(UsageError, match="there is nothing to train on"):
        trainer.fit()
    with pytest.raises(UsageError, match="no validation split"):
        trainer.evaluate()
    with pytest.raises(UsageError, match="no run folder"):
        trainer.save_checkpoint()
    assert trainer.sample() is None


def test_an_evaluation_that_would_not_end_is_refused() -> None:
    with pytest.raises(UsageError, match="the val_dataloader has a seed, and so no end"):
        make(val_dataloader=loader())[0].evaluate()
    assert make(val_dataloader=loader(), config=config(eval_batches=2))[0].evaluate().n_tokens == 2 * 4 * WIDTH


def test_a_plain_transformer_is_taken_as_it_is() -> None:
    inner, settings, told = model().model, config(), Told()
    trainer = Trainer(inner, create_optimizer(inner, settings), settings, tokenizer=TOKENIZER, listeners=[told])
    assert isinstance(trainer.model, CustomTransformerAdapter)
    assert trainer.model.model is inner
    trainer.train_dataloader = loader()
    assert trainer.fit() == "completed"
    assert len(told.of("step")) == 6


def test_a_trainer_put_together_by_hand_keeps_the_documents_of_a_window_apart(tmp_path: Path) -> None:
    end = tiny_models.write_tokenizer(tmp_path)
    tokenizer, settings = HFTokenizer(tmp_path), config(dropout=0.0)
    ids = tokenizer.encode_documents(["the capital of France", "a small boat", "the quiet sea", "is Paris"] * 20)
    trained: list[tuple[list[float], str | None]] = []
    for told_before in (True, False):
        inner = Transformer(
            tokenizer.vocab_size, n_layers=1, d_model=16, n_heads=2, d_ff=32, dropout=0.0, max_seq_len=WIDTH, seed=2
        )
        adapter = CustomTransformerAdapter(inner)
        if told_before:
            adapter.use_tokenizer(tokenizer)
        trainer = Trainer(adapter, create_optimizer(inner, settings), settings, tokenizer=tokenizer, seed=5)
        saved = trainer.save_checkpoint(tmp_path / f"saved-{told_before}")
        for each in (trainer, Trainer.from_checkpoint(saved)):
            batches = iter(DataLoader(WindowDataset(ids, WIDTH), 4, seed=3))
            trained.append(([each.training_step(next(batches)) for _ in range(3)], each.sample()))
    assert trainer.model.end_of_text_id == end
    assert trained == [trained[0]] * 4


# --- samples --------------------------------------------------------------------------------------------------------


def test_a_sample_goes_on_from_the_prompt_and_follows_its_seed() -> None:
    trainer, told = make(config=config(sampling_prompt="the dog", sampling_max_length=30))
    first = trainer.sample()
    assert first is not None
    assert first.startswith("the dog")
    assert len(first) == 7 + 30  # longer than the window
    assert trainer.sample() == first
    assert [event["prompt"] for event in told.of("sample")] == ["the dog"] * 2
    other, _ = make(config=config(sampling_prompt="the dog", sampling_max_length=30, sampling_seed=1))
    assert other.sample() != first


def test_a_prompt_that_cannot_be_said_is_warned_of_once() -> None:
    trainer, told = make(config=config(sampling_prompt="Zebra"))
    for _ in range(3):
        text = trainer.sample()
        assert text is not None
        assert text[0] == TOKENIZER.characters[0]
    (warning,) = told.of("warning")
    assert "sampling_prompt cannot be encoded (character 'Z'" in warning["message"]
    assert told.of("sample")[0]["prompt"] == TOKENIZER.characters[0]
    assert "warned" not in trainer.state()


def test_a_prompt_that_leaves_no_room_is_warned_of_once() -> None:
    trainer, told = make(config=config(sampling_prompt="the dog"))
    trainer.model.max_positions = 8
    assert trainer.sample() != "the dog", "the last place is the model's"
    trainer.model.max_positions = 7
    assert [trainer.sample(), trainer.sample()] == ["the dog"] * 2
    (warning,) = told.of("warning")
    assert warning["message"] == "sampling_prompt has 7 tokens, and the model takes 7 in all: samples end with it"


# --- early stopping, and the best checkpoint ------------------------------------------------------------------------


class Judged(CustomTransformerAdapter):
    """Trains as ever, and is evaluated to the losses of a list, one after the other."""

    verdicts: Iterator[float] = iter(())

    def loss(self, inputs_BT: Tensor, targets_BT: Tensor, reduction: str = "mean") -> Tensor:
        if self.training:
            return super().loss(inputs_BT, targets_BT, reduction)
        return torch.tensor(next(self.verdicts)) * (targets_BT != -100).sum()


def judged(verdicts: list[float], tmp_path: Path, **changes: Any) -> tuple[Trainer, Told]:
    adapter = model(kind=Judged)
    adapter.verdicts = iter(verdicts)
    settings = config(**{"eval_cadence": 2, "eval_batches": 1, "checkpoint_cadence": 2, **changes})
    return make(adapter, config=settings, folder=tmp_path)


@pytest.mark.parametrize(
    ("verdicts", "patience", "ends"),
    [
        ([3.0, 2.0, 2.5, 2.4, 2.3], 2, 6),
        ([3.0, 3.0, 3.0], 2, 4),
        ([3.0, 2.9, 3.0, 2.8, 2.9, 2.9, 2.9], 3, 12),
        ([3.0, float("inf"), 3.1], 2, 4),
        ([1.0, 2.0], 1, 2),
    ],
)
def test_a_run_ends_when_the_validation_loss_no_longer_falls(
    verdicts: list[float], patience: int, ends: int, tmp_path: Path
) -> None:
    trainer, told = judged(verdicts, tmp_path, max_steps=50, early_stopping_patience=patience)
    assert trainer.fit(loader()) == "completed"
    assert trainer.step == ends
    assert [event["event"] for event in told][-3:] == ["checkpoint", "sample", "run_end"]
    assert checkpoint.load(tmp_path / "checkpoints" / f"step-{ends:08d}").step == ends


def test_the_evaluation_at_the_end_does_not_count_towards_stopping(tmp_path: Path) -> None:
    """Else a run that is made longer would not be the one that was long from the start."""
    trainer, _ = judged([3.0, 2.0, 1.0], tmp_path, max_steps=3, early_stopping_patience=5)
    trainer.fit(loader())
    assert trainer.progress.best == 2.0
    assert trainer.progress.without_improvement == 0


def best_step(tmp_path: Path) -> str:
    best = checkpoint.best(tmp_path / "checkpoints")
    return "" if best is None else best.name.removeprefix("step-0000000")


@pytest.mark.parametrize(
    ("verdicts", "max_steps", "best"),
    [
        ([9.0, 3.0, 2.0, 4.0], 6, "4"),
        ([1.0, 3.0, 2.0, 4.0], 6, "4"),  # the start is not saved, so that it cannot be the best
        ([9.0, 3.0, 3.0, 3.0], 6, "2"),
        ([9.0, 3.0, 4.0, 2.0], 5, "5"),  # the evaluation at the end
        ([9.0, float("inf"), 4.0, 5.0], 6, "4"),
    ],
)
def test_best_points_at_the_lowest_validation_loss_that_was_saved(
    verdicts: list[float], max_steps: int, best: str, tmp_path: Path
) -> None:
    trainer, _ = judged(verdicts, tmp_path, max_steps=max_steps, keep_checkpoints=1)
    trainer.fit(loader())
    assert best_step(tmp_path) == best
    kept = {int(best), max_steps}
    assert checkpoint.steps(tmp_path / "checkpoints") == sorted(kept)


def test_an_evaluation_after_the_last_steps_checkpoint_still_moves_best(tmp_path: Path) -> None:
    adapter = model(kind=Judged)
    adapter.verdicts = iter([9.0, 3.0, 2.0])
    settings = config(eval_cadence=2, eval_batches=1, checkpoint_cadence=1, max_steps=3, keep_checkpoints=1)
    trainer, told = make(adapter, config=settings, folder=tmp_path)
    trainer.fit(loader())
    assert [event["event"] for event in told][-4:] == ["checkpoint", "eval", "sample", "run_end"]
    assert best_step(tmp_path) == "3"
    assert checkpoint.steps(tmp_path / "checkpoints") == [3], "the one that was the best before goes"


@pytest.mark.parametrize("beside", [False, True])
def test_a_checkpoint_that_the_disk_refused_is_saved_when_fit_is_called_again_and_is_the_best(
    beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"max_steps": 4, "checkpoint_cadence": 2, "keep_checkpoints": 1, "async_checkpoints": beside}
    trainer, _ = judged([9.0, 3.0, 2.0], tmp_path, **changes)
    save = checkpoint.save

    def refuse(folder: Path, *given: Any, **more: Any) -> Path:
        if folder.name == "step-00000004":
            raise CheckpointError("the disk is full")
        return save(folder, *given, **more)

    with monkeypatch.context() as full:
        full.setattr(checkpoint, "save", refuse)
        with pytest.raises(CheckpointError, match="the disk is full"):
            trainer.fit(loader())
    assert best_step(tmp_path) == "2"
    assert trainer.fit(loader()) == "completed"
    assert checkpoint.steps(tmp_path / "checkpoints") == [4]
    assert best_step(tmp_path) == "4"


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(
    ("verdicts", "changes", "saved", "kept"),
    [
        ([9.0, 3.0, 2.0, 4.0, 5.0], {}, [2, 4, 8], [2, 4, 8]),
        ([9.0, 3.0, 2.0, 4.0, 5.0], {"keep_checkpoints": 1}, [2, 4, 8], [4, 8]),
        ([9.0, 3.0, 2.0, 4.0, 5.0], {"checkpoint_cadence": 4, "keep_checkpoints": 1}, [2, 4, 8], [4, 8]),
        ([9.0, 3.0, 2.0, 4.0, 5.0], {"checkpoint_cadence": 3, "keep_checkpoints": 1}, [2, 3, 4, 6, 8], [4, 8]),
        ([1.0, 3.0, 2.0], {}, [2, 4], [2, 4]),  # better than all that is saved, if not than the start
        ([9.0, 3.0, float("inf"), 4.0], {}, [2, 6], [2, 6]),
        ([9.0, 3.0, 2.0, 4.0, 1.0], {"max_steps": 7}, [2, 4, 7], [2, 4, 7]),
        ([9.0, 3.0, 2.0, 4.0, 5.0], {"early_stopping_patience": None, "max_steps": 8}, [8], [8]),
    ],
)
def test_with_early_stopping_what_is_better_is_saved(
    verdicts: list[float], changes: dict[str, Any], saved: list[int], kept: list[int], beside: bool, tmp_path: Path
) -> None:
    settings = {"max_steps": 50, "early_stopping_patience": 2, "checkpoint_cadence": None, "async_checkpoints": beside}
    trainer, told = judged(verdicts, tmp_path, **{**settings, **changes})
    assert trainer.fit(loader()) == "completed"
    assert [event["step"] for event in told.of("checkpoint")] == saved
    assert checkpoint.steps(tmp_path / "checkpoints") == kept
    losses = {event["step"]: event["val_loss"] for event in told.of("eval")}
    assert best_step(tmp_path) == str(min(kept, key=lambda step: losses.get(step, math.inf)))


def test_an_evaluation_that_no_cadence_asked_for_is_not_saved_as_better(tmp_path: Path) -> None:
    changes = {"max_steps": 4, "early_stopping_patience": 5, "eval_cadence": 4, "checkpoint_cadence": None}
    trainer, told = judged([9.0, 3.0, 2.0], tmp_path, **changes)
    trainer.listeners.append(
        lambda event: trainer.evaluate() if (event["event"], event["step"]) == ("step", 2) else None
    )
    trainer.fit(loader())
    assert [event["step"] for event in told.of("checkpoint")] == [4]


def saving_each_best(trainer: Trainer) -> None:
    """A listener of a user's own, that saves where an evaluation is better than those before it."""
    best = [math.inf]

    def save(event: dict[str, Any]) -> None:
        if event["event"] == "eval" and event["val_loss"] < best[0]:
            best[0] = event["val_loss"]
            trainer.save_checkpoint()

    trainer.listeners.append(save)


@pytest.mark.parametrize("beside", [False, True])
def test_what_a_listener_saves_at_an_evaluation_is_the_best_with_all_that_is_known_of_it(
    beside: bool, tmp_path: Path
) -> None:
    """Also where the cadence falls on the step that is saved by then."""
    trainer, told = judged(
        [9.0, 3.0, 2.0, 4.0],
        tmp_path,
        max_steps=6,
        keep_checkpoints=1,
        early_stopping_patience=5,
        async_checkpoints=beside,
    )
    saving_each_best(trainer)
    assert trainer.fit(loader()) == "completed"
    assert [event["step"] for event in told.of("checkpoint")] == [0, 2, 4, 6]
    assert best_step(tmp_path) == "4"
    assert checkpoint.steps(tmp_path / "checkpoints") == [4, 6]
    state = checkpoint.load(tmp_path / "checkpoints" / "step-00000004").state
    assert (state["best_val_loss"], state["best_saved_loss"], state["evaluations_without_improvement"]) == (2.0, 2.0, 0)


# --- numbers that are not finite ------------------------------------------------------------------------------------


def test_facts_that_no_checkpoint_could_hold_are_refused_at_once() -> None:
    for facts in ({"folder": Path("here")}, {"data": {"score": math.nan}}):
        with pytest.raises(UsageError, match="facts are kept as JSON, which cannot hold them: "):
            make(model(), facts=facts)


def test_a_batch_without_a_target_that_counts_is_said_to_be_one_and_loses_no_step(tmp_path: Path) -> None:
    trainer, told = make(model(), folder=tmp_path)
    batches = iter(loader())
    first, second = next(batches), next(batches)
    blank = Batch(second.inputs_BT, torch.full_like(second.targets_BT, IGNORED), second.windows_B)
    with pytest.raises(
        DataError, match="no target of the batch of step 2 counts: all are -100; leave such batches out"
    ):
        trainer.fit([first, blank])
    assert checkpoint.steps(tmp_path / "checkpoints") == [1]
    assert (told[-1]["event"], told[-1]["status"]) == ("run_end", "failed")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("micro_batch", [0, 1, 2])
@pytest.mark.parametrize("grad_clip", [None, 1.0])
def test_a_number_that_is_not_finite_stops_before_the_update(
    value: float, where: str, micro_batch: int, grad_clip: float | None, tmp_path: Path
) -> None:
    """At step 3, in any of three micro-batches, with the evaluation of step 2 between."""
    settings = config(batch_size=4, checkpoint_cadence=2, eval_cadence=2, eval_batches=1, grad_clip=grad_clip)
    adapter = model(kind=Diverging)
    adapter.at, adapter.value, adapter.where = 2 * 3 + 1 + micro_batch, value, where
    trainer, told = make(adapter, config=settings, folder=tmp_path)
    batches = loader(10)
    third = batches.sampler.starts(20, 10).tolist() if batches.sampler else []
    name = "loss" if where == "loss" else "gradient norm"
    with pytest.raises(DivergedError) as raised:
        trainer.fit(batches)
    message = str(raised.value)
    assert f"the {name} of step 3 is " in message
    assert f"with the windows at tokens {', '.join(map(str, third[:8]))}, …; the update was not made" in message
    assert "\n" not in message
    assert trainer.step == 2
    saved = checkpoint.load(tmp_path / "checkpoints" / "step-00000002")
    assert checkpoint.steps(tmp_path / "checkpoints") == [2]
    for name, tensor in saved.tensors("model").items():
        assert torch.equal(tensor, trainer.model.tensors()[name]), name
    assert all(p.grad is None for p in trainer.model.parameters())
    assert (told[-1]["event"], told[-1]["status"], told[-1]["step"]) == ("run_end", "diverged", 2)
    assert [event["step"] for event in told.of("step")] == [1, 2]


@pytest.mark.parametrize(
    ("verdicts", "at"), [([math.nan], 0), ([9.0, 3.0, math.nan], 4), ([9.0, 3.0, 3.0, math.nan], 5)]
)
@pytest.mark.parametrize("beside", [False, True])
def test_a_validation_loss_that_is_no_number_ends_the_run_before_that_step_is_saved(
    verdicts: list[float], at: int, beside: bool, tmp_path: Path
) -> None:
    """In the evaluation before the first step, in one that its cadence asks for, and in the one at the end."""
    trainer, told = judged(verdicts, tmp_path, max_steps=5, async_checkpoints=beside)
    with pytest.raises(DivergedError, match=f"the validation loss of step {at} is nan: the weights are ruined"):
        trainer.fit(loader())
    assert checkpoint.steps(tmp_path / "checkpoints") == [step for step in (2, 4) if step < at]
    assert told.of("eval")[-1]["step"] == at
    assert math.isnan(told.of("eval")[-1]["val_loss"])
    assert (told[-1]["event"], told[-1]["status"], told[-1]["step"]) == ("run_end", "diverged", at)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_a_trainer_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    settings = config(max_steps=10, lr_schedule="linear", eval_cadence=2, early_stopping_patience=9)
    trainer, _ = make(model(dropout=0.3), config=settings, facts={"run_id": "r-1", "data": {"path": "x"}, "note": [1]})
    batches = iter(loader())
    for _ in range(5):
        trainer.training_step(next(batches))
    folder = trainer.save_checkpoint(tmp_path / "mine")
    assert folder == tmp_path / "mine"
    torch.set_num_threads(1 if torch.get_num_threads() > 1 else 2)
    told = Told()
    back = Trainer.from_checkpoint(folder, validation(), listeners=[told])
    assert (back.step, back.position, back.seed, back.decay_steps) == (5, 20, 5, 10)
    assert back.facts == {"run_id": "r-1", "data": {"path": "x"}, "note": [1]}
    assert back.config == settings
    assert back.progress.best == trainer.progress.best
    assert back.state() == trainer.state()
    assert torch.get_num_threads() == back.state()["threads"]
    expected = [trainer.training_step(batch) for batch, _ in zip(loader(4, 20), range(4), strict=False)]
    assert [back.training_step(batch) for batch, _ in zip(loader(4, 20), range(4), strict=False)] == expected
    assert same(weights(back), weights(trainer))
    assert {event["run_id"] for event in told} == {"r-1"}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_was_frozen_stays_so_when_a_trainer_comes_back(tmp_path: Path, optimizer: str) -> None:
    adapter = model()
    adapter.model.embedding.weight.requires_grad_(False)  # before the optimizer is made
    trainer, _ = make(adapter, config=config(optimizer=optimizer))
    batches = iter(loader())
    trainer.training_step(next(batches))
    for parameter in adapter.blocks()[0].parameters():  # and once it has state of them
        parameter.requires_grad_(False)
    trainer.training_step(next(batches))
    before = {name: tensor.clone() for name, tensor in trainer.model.tensors().items()}
    back = Trainer.from_checkpoint(trainer.save_checkpoint(tmp_path / "saved"), validation())
    assert back.state() == trainer.state()
    for each in (trainer, back):
        for batch, _ in zip(loader(4, 8), range(2), strict=False):
            each.training_step(batch)
    assert same(weights(back), weights(trainer))
    moved = {name for name, tensor in back.model.tensors().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert not any(name.startswith(("embedding", "blocks.0")) for name in moved)


def test_a_checkpoint_elsewhere_is_not_one_of_the_run(tmp_path: Path) -> None:
    trainer, told = make(config=config(keep_checkpoints=1), folder=tmp_path / "run")
    other = CharTokenizer.from_text("xyz")
    trainer.save_checkpoint(tmp_path / "elsewhere", tokenizer=other)
    assert checkpoint.load(tmp_path / "elsewhere").tokenizer().identifier == other.identifier
    assert not (tmp_path / "run").exists()
    assert told.of("checkpoint")[0]["path"] == str(tmp_path / "elsewhere")
    trainer.save_checkpoint()
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [0]


def test_a_copy_of_the_last_step_does_not_take_the_place_of_the_runs_own(tmp_path: Path) -> None:
    trainer, _ = make(config=config(max_steps=3, checkpoint_cadence=None), folder=tmp_path / "run")

    def copy(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            trainer.save_checkpoint(tmp_path / "copy")

    trainer.listeners.append(copy)
    trainer.fit(loader())
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [3]


@pytest.mark.parametrize("lacks", ["config", "threads", "seed", "tokenizer", "data", "decay_steps", "best_val_loss"])
def test_a_state_that_lacks_something_is_named(tmp_path: Path, lacks: str) -> None:
    trainer, _ = make()
    state = {key: value for key, value in trainer.state().items() if key != lacks}
    checkpoint.save(
        tmp_path / "c",
        checkpoint.collect(trainer.model.tensors(), {}, trainer.random.state),
        architecture=trainer.model.architecture(),
        state=state,
        tokenizer=TOKENIZER,
    )
    with pytest.raises(CheckpointError, match=f"is no checkpoint of this version of lmlab.*{lacks}"):
        Trainer.from_checkpoint(tmp_path / "c", validation())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_trainer_whose_weights_have_another_precision_comes_back_with_it(tmp_path: Path, dtype: torch.dtype) -> None:
    trainer, _ = make(model(dropout=0.3).to(dtype))
    trainer.training_step(next(iter(loader())))
    back = Trainer.from_checkpoint(trainer.save_checkpoint(tmp_path / "saved"), validation())
    for each in (trainer, back):
        for batch, _ in zip(loader(4, 4), range(2), strict=False):
            each.training_step(batch)
    assert same(weights(back), weights(trainer))
    assert {tensor.dtype for tensor in weights(back)} == {dtype}


class Words(Tokenizer):
    """A tokenizer of one's own: a word is a token."""

    def __init__(self) -> None:
        self.words = sorted(set(TEXT.split()))
        self.vocab_size, self.identifier = len(self.words), f"words-{len(self.words)}"

    def encode(self, text: str) -> Ids:
        return np.array([self.words.index(word) for word in text.split()], dtype=np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(self.words[i] for i in ids)

    def save(self, folder: Path) -> None:
        (folder / "words.txt").write_text("\n".join(self.words))


def test_a_trainer_with_a_tokenizer_of_ones_own_comes_back_with_it(tmp_path: Path) -> None:
    own = Words()
    trainer, _ = make(tokenizer=own)
    saved = trainer.save_checkpoint(tmp_path / "saved")
    with pytest.raises(TokenizerError, match="no tokenizer can be loaded"):
        Trainer.from_checkpoint(saved)
    back = Trainer.from_checkpoint(saved, tokenizer=own)
    assert back.tokenizer is own
    assert back.sample() == trainer.sample()
    assert back.state() == trainer.state()


@pytest.mark.parametrize("argument", [{"listener": [print]}, {"seed": 1}])
def test_a_wrong_argument_is_not_blamed_on_the_checkpoint(tmp_path: Path, argument: dict[str, Any]) -> None:
    saved = make()[0].save_checkpoint(tmp_path / "saved")
    with pytest.raises(TypeError, match=next(iter(argument))):
        Trainer.from_checkpoint(saved, **argument)


def test_a_batch_names_its_windows() -> None:
    trainer, _ = make()
    batch = next(iter(loader()))
    assert isinstance(batch, Batch)
    assert batch.windows_B.tolist() == loader().sampler.starts(0, 4).tolist()  # type: ignore[union-attr]
    assert len(set(batch.windows_B.tolist())) == 4
    for start, inputs_T in zip(batch.windows_B.tolist(), batch.inputs_BT, strict=True):
        assert TOKENIZER.decode(inputs_T.tolist()) == TEXT[start : start + WIDTH]
    trainer.training_step(batch)
    assert trainer.position == 4


def test_a_look_at_a_batch_takes_none_from_the_run() -> None:
    straight, looked = (make(train_dataloader=loader(), val_dataloader=None)[0] for _ in range(2))
    assert looked.train_dataloader is not None
    next(iter(looked.train_dataloader))
    straight.fit()
    looked.fit()
    assert same(weights(straight), weights(looked))


def test_a_trainer_from_a_checkpoint_goes_on_with_the_windows_that_come_next(tmp_path: Path) -> None:
    """Of a loader that it is given fresh; what a user has moved, and what is no loader of ours, stays where it is."""
    straight, told = make(config=config(checkpoint_cadence=3), folder=tmp_path)
    straight.fit(loader())
    expected = [event["loss"] for event in told.of("step")]

    def losses(batches: Any) -> list[float]:
        again = Told()
        saved = tmp_path / "checkpoints" / "step-00000003"
        Trainer.from_checkpoint(saved, validation(), listeners=[again]).fit(batches)
        return [event["loss"] for event in again.of("step")]

    assert losses(loader()) == losses(loader(position=12)) == losses(iter(loader(position=12))) == expected[3:]
    elsewhere = loader(position=40)
    assert losses(elsewhere) == losses(iter(loader(position=40))) != expected[3:]
    assert elsewhere.position == 52
    assert losses(iter(loader())) != expected[3:]


def test_after_an_interrupt_fit_goes_on_with_the_batch_that_was_interrupted() -> None:
    straight, _ = make(model(dropout=0.3), train_dataloader=loader())
    straight.fit()
    broken, _ = make(model(dropout=0.3, kind=Interrupted), train_dataloader=loader())
    broken.model.at = 3
    with pytest.raises(KeyboardInterrupt):
        broken.fit()
    assert broken.step == 2
    broken.fit()
    assert same(weights(straight), weights(broken))


def test_what_the_last_sample_raises_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, told = make(config=config(checkpoint_cadence=None), folder=tmp_path)

    def fail(*_arguments: Any) -> Tensor:
        raise MemoryError("no room for a cache")

    monkeypatch.setattr(trainer.model, "generate", fail)
    with pytest.raises(MemoryError):
        trainer.fit(loader())
    assert checkpoint.load(tmp_path / "checkpoints" / "step-00000006").step == 6
    assert [event["event"] for event in told][-2:] == ["checkpoint", "run_end"]
    assert told[-1]["status"] == "failed"


def test_an_evaluation_that_is_asked_for_again_counts_once() -> None:
    trainer, _ = make(config=config(eval_cadence=2, learning_rate=1e-12))
    batches = iter(loader())
    for _ in range(2):
        trainer.training_step(next(batches))
    counted = trainer.progress.without_improvement
    trainer.evaluate()
    trainer.evaluate()
    assert trainer.progress.without_improvement == counted


def test_the_norm_of_a_large_gradient_is_exact() -> None:
    """torch adds the squares of a whole tensor up in a few fp32 sums: 1 % is missing at 100 million numbers."""
    trainer, _ = make(config=config(grad_clip=1.0))
    large = torch.nn.Parameter(torch.zeros(20_000, 1000))
    large.grad = torch.randn(20_000, 1000, generator=torch.Generator().manual_seed(0))
    exact = float(large.grad.double().norm())
    trainer.model.register_parameter("large", large)
    assert trainer._clip() == pytest.approx(exact, rel=1e-6)
    assert float(large.grad.double().norm()) == pytest.approx(1.0, rel=1e-6)
