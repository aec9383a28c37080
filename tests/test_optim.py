"""Optimizers, their state as tensors, and schedules, by their numbers."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor, nn

from lmlab.config import TrainingConfig
from lmlab.data import DataLoader, WindowDataset
from lmlab.errors import UsageError
from lmlab.loading import load_adapter
from lmlab.optim import (
    AdamW,
    Muon,
    MuonWithAdamW,
    create_optimizer,
    learning_rate_at,
    load_optimizer_tensors,
    optimizer_tensors,
    parts,
    set_learning_rate,
    set_precision,
)
from lmlab.trainer import Trainer
from lmlab.transformer import Transformer


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**changes)


def tiny() -> Transformer:
    return Transformer(11, n_layers=2, d_model=16, n_heads=2, d_ff=32, dropout=0.0, max_seq_len=8, seed=0)


def train(model: Transformer, optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
    """A few updates on batches that follow from the step; returns the weights."""
    for step in steps:
        ids_BT = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(step))
        set_learning_rate(optimizer, 0.01 / (1 + step))
        model(ids_BT).logsumexp(dim=-1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


def test_counts_go_to_the_device_of_their_parameters_as_moments_do() -> None:  # fused updates want them there
    model = tiny()
    optimizer = create_optimizer(model, config())
    train(model, optimizer, range(1))
    state = optimizer_tensors(optimizer, model)
    elsewhere = tiny().to("meta")
    loaded = create_optimizer(elsewhere, config())
    load_optimizer_tensors(loaded, elsewhere, state)
    kept = [value for values in loaded.state.values() for value in values.values()]
    assert len(kept) == len(state) == 3 * len(list(model.parameters()))
    assert all(value.is_meta for value in kept)


def test_adamw_decays_matrices_and_nothing_else() -> None:
    model = tiny()
    optimizer = create_optimizer(model, config(learning_rate=0.1, weight_decay=0.5, beta1=0.8, beta2=0.99))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {n: decay[id(p)] for n, p in model.named_parameters()} == {
        n: 0.5 if p.dim() >= 2 else 0.0 for n, p in model.named_parameters()
    }
    assert {(group["betas"], group["lr"]) for group in optimizer.param_groups} == {((0.8, 0.99), 0.1)}
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, parameter in zip(before, model.parameters(), strict=True):
        assert torch.allclose(parameter, old * (1 - 0.1 * 0.5) if old.dim() >= 2 else old, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_biases_of_stacked_experts_are_not_decayed_and_older_checkpoints_are_gone_on_with(
    name: str, tmp_path: Path
) -> None:
    """They are matrices, a row for each expert."""
    model = load_adapter(tiny_models.make(tmp_path / "model", "gpt_oss", num_local_experts=4, head_dim=8)).model
    named = dict(model.named_parameters())
    decayed = {n for n, p in named.items() if p.dim() >= 2 and not n.endswith("bias")}
    biases = {n for n, p in named.items() if p.dim() == 2 and n.endswith("bias")}
    assert len(biases) == 2 * 2
    optimizer = create_optimizer(model, config(optimizer=name, weight_decay=0.3))
    groups = [group for part in parts(optimizer) for group in part.param_groups if group["weight_decay"] == 0.3]
    held = {id(p) for group in groups for p in group["params"]}
    assert {n for n, p in named.items() if id(p) in held} == decayed
    older = torch.optim.AdamW([named[n] for n in sorted(biases)], weight_decay=0.3)
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    older.step()
    state = optimizer_tensors(older, model)
    assert len(state) == 3 * len(biases)
    load_optimizer_tensors(optimizer, model, state)
    kept = optimizer_tensors(optimizer, model)
    assert all(torch.equal(kept[key], state[key]) for key in state)


def test_adamw_is_the_published_formula() -> None:
    model = nn.Linear(3, 2, bias=False)
    rate, decay, beta1, beta2 = 0.01, 0.1, 0.9, 0.95
    optimizer = create_optimizer(
        model, config(learning_rate=rate, weight_decay=decay, beta1=beta1, beta2=beta2, max_steps=10)
    )
    w = model.weight.detach().double().clone()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, 6):
        g = torch.randn(2, 3, generator=torch.Generator().manual_seed(t))
        model.weight.grad = g.clone()
        optimizer.step()
        m, v = beta1 * m + (1 - beta1) * g.double(), beta2 * v + (1 - beta2) * g.double() ** 2
        update = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + 1e-8)
        w = w * (1 - rate * decay) - rate * update
    assert torch.allclose(model.weight.detach().double(), w, atol=1e-6)


def test_frozen_parameters_are_left_out() -> None:
    model = tiny()
    model.embedding.weight.requires_grad_(False)
    for optimizer_name in ("adamw", "muon"):
        optimizer = create_optimizer(model, config(optimizer=optimizer_name))
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_muon_takes_the_matrices_inside_the_blocks_and_adamw_the_rest() -> None:
    model = tiny()
    optimizer = create_optimizer(model, config(optimizer="muon", weight_decay=0.3))
    assert isinstance(optimizer, MuonWithAdamW)
    muon, adamw = optimizer.optimizers
    held = {id(p) for group in muon.param_groups for p in group["params"]}
    assert {n for n, p in model.named_parameters() if id(p) in held} == {
        n for n, p in model.named_parameters() if n.startswith("blocks.") and p.dim() == 2
    }
    others = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert held | others == {id(p) for p in model.parameters()}
    assert not held & others
    set_learning_rate(optimizer, 0.123)
    assert all(group["lr"] == 0.123 for part in optimizer.optimizers for group in part.param_groups)
    before = [p.detach().clone() for p in model.parameters()]
    after = train(model, optimizer, range(1))
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def names_of_muon(model: nn.Module) -> set[str]:
    (muon,) = (part for part in parts(create_optimizer(model, config(optimizer="muon"))) if isinstance(part, Muon))
    return {name for name, p in model.named_parameters() if any(p is q for g in muon.param_groups for q in g["params"])}


def matrices(model: nn.Module, *besides: str) -> set[str]:
    """All matrices of a model but those in whose name one of these words stands."""
    return {n for n, p in model.named_parameters() if p.dim() == 2 and not any(word in n for word in besides)}


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "mixtral", "gpt2", "mamba"])
def test_muon_takes_the_matrices_that_multiply_inside(kind: str, tmp_path: Path) -> None:
    adapter = load_adapter(tiny_models.make(tmp_path / kind, kind))
    model = adapter.model
    taken = names_of_muon(model)
    assert taken == matrices(model, "embed", "lm_head", "wte", "wpe", "A_log")
    assert {name.removeprefix("model.") for name in names_of_muon(adapter)} == taken
    assert any("wpe" in name or "A_log" in name for name in matrices(model)) == (kind in ("gpt2", "mamba"))


def test_a_head_that_is_a_layer_of_its_own_is_not_hidden() -> None:
    class Untied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.inner, self.out = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)

        def get_output_embeddings(self) -> nn.Module:
            return self.out

    model = Untied()
    assert names_of_muon(model) == {"inner.weight"}
    tied = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
    tied[2].weight = tied[0].weight
    assert names_of_muon(tied) == {"1.weight"}


def test_state_of_the_other_optimizer_is_named() -> None:
    model = tiny()
    optimizer = create_optimizer(model, config(optimizer="muon"))
    for name, key, kind in (
        ("embedding", "momentum_buffer", "AdamW"),
        ("blocks.0.attention.output", "exp_avg", "Muon"),
    ):
        tensor = torch.zeros_like(model.get_parameter(f"{name}.weight"))
        with pytest.raises(ValueError, match=rf"{name}\.weight\.{key} is not of {kind}, which updates"):
            load_optimizer_tensors(optimizer, model, {f"{name}.weight.{key}": tensor})


def test_muon_steps_in_a_direction_without_scale() -> None:
    model = nn.Linear(16, 8, bias=False)
    optimizer = create_optimizer(model, config(optimizer="muon", learning_rate=0.1, weight_decay=0.0))
    before = model.weight.detach().clone()
    gradient = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    model.weight.grad = gradient * 1e-3
    optimizer.step()
    values = torch.linalg.svdvals(before - model.weight.detach())
    assert float(values.max() / values.min()) < 2.0  # Newton-Schulz makes the update nearly orthogonal
    expected = 0.1 * 0.2 * math.sqrt(16)  # 0.2 √max(rows, columns): the size of AdamW's steps (Liu et al. 2025)
    assert float(values.mean()) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("shape", [(8, 16), (16, 8), (8, 8)])
def test_muon_is_that_of_torch_in_the_precision_of_the_run(shape: tuple[int, int]) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    layers = {name: nn.Linear(*reversed(shape), bias=False) for name in ("fp32", "bf16", "torch")}
    for layer in layers.values():
        layer.weight = nn.Parameter(start.clone())
    weights = {name: layer.weight for name, layer in layers.items()}
    settings = config(optimizer="muon", learning_rate=0.01, weight_decay=0.1)
    ours = {name: MuonWithAdamW(layers[name], settings) for name in ("fp32", "bf16")}
    for name, optimizer in ours.items():
        set_precision(optimizer, name)
    theirs = torch.optim.Muon([weights["torch"]], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        for weight in weights.values():
            weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(10 + step))
        theirs.step()
        for optimizer in ours.values():
            optimizer.step()
    moved = (weights["torch"] - start).detach().norm()
    away = {name: float((weights[name] - weights["torch"]).detach().norm() / moved) for name in ours}
    assert away["bf16"] < 1e-6
    assert 1e-5 < away["fp32"] < 0.02  # what bf16 rounds off


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_trainer_gives_muon_its_precision(precision: str, dtype: torch.dtype) -> None:
    model, settings = tiny(), config(optimizer="muon", precision=precision)
    optimizer = create_optimizer(model, settings)
    Trainer(model, optimizer, settings)
    assert isinstance(optimizer, MuonWithAdamW)
    (muon,) = (part for part in optimizer.optimizers if isinstance(part, Muon))
    assert muon.dtype == dtype


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_the_state_goes_through_tensors_bit_for_bit(name: str, at: int) -> None:
    straight = tiny()
    expected = train(straight, create_optimizer(straight, config(optimizer=name)), range(8))
    model = tiny()
    optimizer = create_optimizer(model, config(optimizer=name))
    train(model, optimizer, range(at))
    saved = {key: tensor.clone() for key, tensor in optimizer_tensors(optimizer, model).items()}
    assert bool(saved) == (at > 0)
    resumed = tiny()
    resumed.load_state_dict(model.state_dict())
    fresh = create_optimizer(resumed, config(optimizer=name))
    load_optimizer_tensors(fresh, resumed, saved)
    got = train(resumed, fresh, range(at, 8))
    assert all(torch.equal(one, other) for one, other in zip(expected, got, strict=True))
    again = optimizer_tensors(fresh, resumed)
    assert not saved or again.keys() == saved.keys()
    assert all(again[key] is not saved[key] for key in saved)


OF_ONES_OWN: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {  # with state of any name and shape
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.01),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.01),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.9, centered=True),
    "amsgrad": lambda parameters: AdamW(parameters, lr=0.01, amsgrad=True),
}


@pytest.mark.parametrize("put_in", [True, False])
@pytest.mark.parametrize("kind", OF_ONES_OWN)
def test_an_optimizer_of_ones_own_resumes_bit_for_bit(
    kind: str, put_in: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it was put into `create_optimizer`, or is given again."""

    def own(model: nn.Module, _: object = None) -> torch.optim.Optimizer:
        return OF_ONES_OWN[kind](list(model.parameters()))

    settings = config(max_seq_len=8, batch_size=2, max_steps=6, precision="fp32", learning_rate=0.01)
    if put_in:
        monkeypatch.setattr("lmlab.trainer.create_optimizer", own)
    ids = torch.randint(0, 11, (300,), generator=torch.Generator().manual_seed(0)).numpy().astype("uint16")
    batches = DataLoader(WindowDataset(ids, 8), 2, seed=3)
    model = tiny()
    trainer = Trainer(model, own(model), settings)
    trainer.fit(batches, should_stop=lambda: trainer.step == 3)
    saved = trainer.save_checkpoint(tmp_path / "half")
    trainer.fit(batches)
    resumed = Trainer.from_checkpoint(saved, optimizer=None if put_in else own)
    resumed.fit(DataLoader(WindowDataset(ids, 8), 2, seed=3))
    assert resumed.step == trainer.step == 6
    for one, other in zip(resumed.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)
    states = [optimizer_tensors(each.optimizer, each.model.model) for each in (resumed, trainer)]
    assert states[0].keys() == states[1].keys() != set()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_an_optimizer_of_ones_own_does_not_become_another(kind: type[torch.optim.Optimizer], tmp_path: Path) -> None:
    model = tiny()
    settings = config(max_seq_len=8, batch_size=2, precision="fp32")
    saved = Trainer(model, kind(model.parameters(), lr=0.01), settings).save_checkpoint(tmp_path / "start")
    with pytest.raises(
        UsageError, match=rf"was trained with torch\.optim\.\w+\.{kind.__name__}, an optimizer of one's own"
    ):
        Trainer.from_checkpoint(saved)


def test_state_of_an_optimizer_of_ones_own_is_none_of_adamw() -> None:
    model = tiny()
    theirs = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    train(model, theirs, range(1))
    with pytest.raises(ValueError, match=r"embedding\.weight\.momentum_buffer is not of AdamW, which updates"):
        load_optimizer_tensors(create_optimizer(model, config()), model, optimizer_tensors(theirs, model))


def test_state_that_fits_nothing_is_named() -> None:
    model = tiny()
    optimizer = create_optimizer(model, config())
    for name, tensor in (("nobody.exp_avg", torch.zeros(3)), ("norm", torch.zeros(16))):
        with pytest.raises(ValueError, match=f"tensor {name} belongs to no trained parameter"):
            load_optimizer_tensors(optimizer, model, {name: tensor})
    with pytest.raises(ValueError, match=r"norm\.weight\.exp_avg has shape \[3\], not \[16\]"):
        load_optimizer_tensors(optimizer, model, {"norm.weight.exp_avg": torch.zeros(3)})


def rates(decay_steps: int, steps: range, **changes: Any) -> list[float]:
    settings = config(learning_rate=1.0, **changes)
    return [learning_rate_at(step, settings, decay_steps) for step in steps]


def test_the_values_of_the_schedules() -> None:
    assert rates(100, range(1, 4)) == [1.0, 1.0, 1.0]
    assert rates(100, range(1, 7), warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    linear = rates(14, range(4, 17), warmup_steps=4, lr_schedule="linear")
    assert linear == pytest.approx([*(1.0 - 0.09 * k for k in range(11)), 0.1, 0.1])
    cosine = rates(14, range(4, 17), warmup_steps=4, lr_schedule="cosine")
    expected = [0.1 + 0.45 * (1 + math.cos(math.pi * k / 10)) for k in range(11)]
    assert cosine == pytest.approx([*expected, 0.1, 0.1])
    assert cosine[5] == pytest.approx(0.55)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_never_rises_after_its_warmup_even_when_that_takes_all(schedule: str) -> None:
    for warmup, decay in ((0, 1), (5, 20), (10, 10), (10, 3)):
        values = rates(decay, range(1, 40), warmup_steps=warmup, lr_schedule=schedule)
        after = values[max(0, warmup - 1) :]
        assert after == sorted(after, reverse=True)
        assert values[-1] == pytest.approx(0.1)
        assert min(values) > 0


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_first_update_does_not_load_the_compiler(kind: str) -> None:
    """It takes as long to import as torch itself."""
    code = (
        "import sys, torch\nfrom lmlab.config import TrainingConfig\nfrom lmlab.optim import create_optimizer\n"
        f"model = torch.nn.Linear(2, 2)\noptimizer = create_optimizer(model, TrainingConfig(optimizer={kind!r}))\n"
        "model(torch.ones(1, 2)).sum().backward()\noptimizer.step()\noptimizer.zero_grad()\n"
        "assert model.weight.grad is None and 'torch._dynamo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_adamw_called_directly_is_that_of_torch_and_makes_no_graph() -> None:
    one, other = tiny(), tiny()
    ours = create_optimizer(one, config(learning_rate=0.01, weight_decay=0.0))
    theirs = torch.optim.AdamW(other.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for a, b in zip(train(one, ours, range(5)), train(other, theirs, range(5)), strict=True):
        assert torch.equal(a, b)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in one.parameters())
