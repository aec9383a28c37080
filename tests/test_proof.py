"""`verify-resume`: it proves what is so, and shows what is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor

from lmlab import import_model, lab
from lmlab.errors import ConfigError, UsageError
from lmlab.proof import bits, verify_resume
from lmlab.trainer import Trainer


def config(tiny: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        **tiny,
        "dropout": 0.2,
        "eval_cadence": 2,
        "eval_batches": 2,
        "sampling_cadence": 3,
        "precision": "fp32",
        **changes,
    }


def test_an_interrupted_run_is_proven_to_be_the_uninterrupted_one(tiny: dict[str, Any], corpus: Path) -> None:
    proof = verify_resume(config(tiny, lr_schedule="cosine", warmup_steps=2), corpus, steps=5, at=2)
    assert proof.identical, proof
    assert (proof.steps, proof.at) == (5, 2)
    n_model = 2 * 6 + 2  # matrices and vectors of two blocks, embedding and last norm
    assert proof.n_tensors >= n_model * 4 + 1
    assert str(proof).startswith("identical: 5 steps straight against 2 steps, resumed, 3 more")
    assert proof.fingerprint in str(proof)
    assert not Path("runs").exists()  # it works in a folder of its own
    again = verify_resume(config(tiny, lr_schedule="cosine", warmup_steps=2), corpus, steps=5, at=3)
    assert again.fingerprint == proof.fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling_prompt": "Ünsayable"},  # each session warns of it once
        {"early_stopping_patience": 1, "learning_rate": 10.0, "eval_cadence": 1},
        {"keep_checkpoints": 1, "seed": None, "warmup_steps": 3, "max_steps": 2},
        {"tokenizer_override": "char"},  # each session warns of it
    ],
    ids=["prompt", "early stopping", "drawn seed", "ignored setting"],
)
def test_what_a_session_says_for_itself_is_no_difference(
    changes: dict[str, Any], tiny: dict[str, Any], corpus: Path
) -> None:
    proof = verify_resume(config(tiny, **changes), corpus, steps=4)
    assert proof.identical, proof


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_mixture_of_experts_resumes_exactly_wherever_its_weights_lie_in_a_file(
    precision: str, tiny: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    """Products of an expert's few rows hang on where its weights begin, which is another place in each file."""
    experts = {"num_experts": 8, "num_experts_per_tok": 1, "hidden_size": 16, "moe_intermediate_size": 8, "head_dim": 8}
    import_model(str(tiny_models.make(tmp_path / "source", "qwen3_moe", **experts)), "mixture")
    proof = verify_resume(config(tiny, model_name="mixture", precision=precision), corpus, steps=5)
    assert proof.identical, proof


def test_random_numbers_that_are_not_restored_are_found(
    tiny: dict[str, Any], corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.restore
    monkeypatch.setattr(Trainer, "restore", lambda self, state, rng: real(self, state, {}))
    proof = verify_resume(config(tiny), corpus, steps=5)
    assert not proof.identical
    assert proof.difference is not None
    assert proof.difference.startswith("step of step 3: ")
    assert str(proof).startswith("NOT identical: 5 steps straight against 2 steps")


def test_a_tensor_that_differs_is_named_even_where_no_loss_shows_it(
    tiny: dict[str, Any], corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.restore

    def nudge(self: Trainer, state: dict[str, Any], rng: dict[str, Tensor]) -> None:
        real(self, state, rng)
        self.optimizer.state[self.model.model.norm.weight]["exp_avg_sq"][3] *= 1.001

    monkeypatch.setattr(Trainer, "restore", nudge)
    proof = verify_resume(config(tiny, learning_rate=1e-9), corpus, steps=3, at=2)
    assert proof.difference is not None
    assert proof.difference == "tensor optimizer:norm.weight.exp_avg_sq"


def test_batches_in_another_order_are_found(
    tiny: dict[str, Any], corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lab.load_batches
    monkeypatch.setattr(
        lab,
        "load_batches",
        lambda config, data, tokenizer, seed, position=0: real(config, data, tokenizer, seed + position),
    )
    proof = verify_resume(config(tiny), corpus, steps=4)
    assert proof.difference is not None
    assert proof.difference.startswith("step of step 3: ")


@pytest.mark.parametrize(("steps", "at"), [(10, 0), (10, 10), (10, 11), (1, None), (0, None), (1, 1), (10, -1)])
def test_a_step_that_cannot_be_interrupted_is_refused(steps: int, at: int | None) -> None:
    with pytest.raises(
        UsageError, match=f"cannot interrupt {steps} steps after step|{steps} steps cannot be interrupted"
    ):
        verify_resume(steps=steps, at=at)


def test_bad_configs_are_refused_as_anywhere(tiny: dict[str, Any], corpus: Path) -> None:
    with pytest.raises(ConfigError):
        verify_resume({**tiny, "n_heads": 3}, corpus)


def test_bits_tell_apart_what_equality_does_not() -> None:
    zeros, nans = torch.tensor([0.0, -0.0]), torch.tensor([float("nan")] * 2)
    assert not torch.equal(bits(zeros[:1]), bits(zeros[1:]))
    assert torch.equal(bits(nans[:1]), bits(nans[1:]))
    assert bits(torch.tensor(1.0)).tolist() == [0, 0, 128, 63]


def test_the_command_proves_and_exits_0(lab_command: Callable[..., Any], tiny_yaml: Path, corpus: Path) -> None:
    done = lab_command("verify-resume", "--config", tiny_yaml, "--data", corpus, "--steps", 4, "--set", "dropout=0.3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("identical: 4 steps straight against 2 steps, resumed, 2 more: every loss")
    assert done.stderr == ""
