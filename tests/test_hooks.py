"""Research hooks: what they measure is true, and measuring moves nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from lmlab import events, hooks, hub, lab
from lmlab.adapters.custom import CustomTransformerAdapter
from lmlab.config import TrainingConfig
from lmlab.data import Batch
from lmlab.errors import ConfigError, UsageError
from lmlab.optim import create_optimizer
from lmlab.trainer import Trainer
from lmlab.transformer import Transformer

IDS = torch.randint(0, 11, (6, 8), generator=torch.Generator().manual_seed(0))


def adapter() -> CustomTransformerAdapter:
    model = Transformer(11, n_layers=3, d_model=16, n_heads=2, d_ff=32, dropout=0.5, max_seq_len=8, seed=0)
    return CustomTransformerAdapter(model)


def test_names_and_cadences_are_read_from_the_config() -> None:
    active = hooks.activate(["activation_stats", "attention_entropy:50", "weight_norms:1"])
    assert [(each.hook.name, each.cadence) for each in active] == [
        ("activation_stats", 10), ("attention_entropy", 50), ("weight_norms", 1),
    ]  # fmt: skip
    assert hooks.activate([]) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weight_norm", "no hook 'weight_norm'; there are: activation_stats, attention_entropy, weight_norms"),
        ("weight_norms:", "'weight_norms:' has no cadence in steps after its colon; write weight_norms:50"),
        ("weight_norms:0", "'weight_norms:0' has no cadence"),
        ("weight_norms:-1", "has no cadence"),
        ("weight_norms:1.5", "has no cadence"),
        ("weight_norms:²", "has no cadence"),
    ],
)
def test_a_hook_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        hooks.activate([name])
    assert message in str(raised.value)


def test_activation_stats_are_those_of_the_residual_stream() -> None:
    model = adapter().eval()
    (active,) = hooks.activate(["activation_stats"])
    measured = hooks.measure(active, model, IDS)
    states = [model.model.embedding(IDS[:4])]
    for block in model.model.blocks:
        states.append(block(states[-1], model.model._rotary(8), None, None, 0))
    for name, statistic in (("mean", torch.mean), ("std", torch.std), ("max_abs", lambda x: x.abs().max())):
        assert measured[name] == pytest.approx([float(statistic(x.detach())) for x in states], rel=1e-5, abs=1e-7)


def test_attention_entropy_is_that_of_the_probabilities() -> None:
    model = adapter()
    (active,) = hooks.activate(["attention_entropy"])
    with torch.no_grad():
        for block in model.model.blocks:
            block.attention.query_key_value.weight.zero_()
    even = hooks.measure(active, model, IDS)["entropy"]
    expected = sum(math.log(t) for t in range(1, 9)) / 8  # each query looks at all tokens up to itself alike
    assert even == [pytest.approx([expected] * 2, rel=1e-5)] * 3
    with torch.no_grad():
        model.model.blocks[1].attention.query_key_value.weight[:16] = torch.eye(16) * 100
        model.model.blocks[1].attention.query_key_value.weight[16:32] = torch.eye(16) * 100
    entropy = hooks.measure(active, model, IDS)["entropy"]
    assert entropy[0] == pytest.approx([expected] * 2, rel=1e-5)
    assert max(entropy[1]) < 0.5 * expected


def test_weight_norms_are_those_of_the_parameters() -> None:
    model = adapter()
    (active,) = hooks.activate(["weight_norms"])
    norms = hooks.measure(active, model, IDS)["norms"]
    assert norms == {
        name: pytest.approx(float(p.detach().square().sum().sqrt())) for name, p in model.model.named_parameters()
    }


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_mode_gradients_and_random_numbers_alone(training: bool) -> None:
    model = adapter().train(training)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for active in hooks.activate(sorted(hooks.HOOKS)):
        hooks.measure(active, model, IDS)
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def run(hooks_named: list[str], steps: int = 6) -> tuple[list[float], list[dict[str, Any]]]:
    config = TrainingConfig(hooks=hooks_named, batch_size=6, max_seq_len=8, seed=1, precision="fp32", max_steps=steps)
    told: list[dict[str, Any]] = []
    model = adapter()
    trainer = Trainer(model, create_optimizer(model.model, config), config, seed=1, listeners=[told.append])
    losses = [trainer.training_step(Batch(IDS, IDS.roll(-1, 1), torch.arange(6))) for _ in range(steps)]
    return losses, [event for event in told if event["event"] == "hook"]


def test_a_run_with_hooks_is_the_run_without_them() -> None:
    plain, none = run([])
    hooked, events = run(["activation_stats:2", "attention_entropy:3", "weight_norms:6"])
    assert hooked == plain
    assert none == []
    assert [(event["step"], event["name"]) for event in events] == [
        (2, "activation_stats"), (3, "attention_entropy"), (4, "activation_stats"), (6, "activation_stats"),
        (6, "attention_entropy"), (6, "weight_norms"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "recurrent_gemma"])
def test_a_model_without_attention_is_refused_when_the_run_is_built(kind: str, tmp_path: Path, corpus: Path) -> None:
    source = tiny_models.make(tmp_path / "source", kind)
    hub.import_model(str(source), name=kind, models_dir=None)
    config = {"model_name": kind, "max_seq_len": 8, "batch_size": 2, "max_steps": 1, "hooks": ["attention_entropy:5"]}
    with pytest.raises(
        ConfigError, match=f"^the attention of {kind} is not known; leave out attention_entropy"
    ) as caught:
        lab.build(config, data=corpus)
    assert "\n" not in str(caught.value)
    trainer = lab.build({**config, "hooks": ["activation_stats:1", "weight_norms"]}, data=corpus)
    assert math.isfinite(trainer.training_step(next(iter(trainer.train_dataloader))))


def test_switched_off_hooks_are_never_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "measure", lambda *_: pytest.fail("a hook was called"))
    run([])
    run(["weight_norms:7"])


def test_a_hook_of_ones_own_is_a_class_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    class Count(hooks.Hook):
        name = "count"

        def measure(self, model: Any, inputs_BT: torch.Tensor) -> dict[str, Any]:
            return {"windows": len(inputs_BT), "bad": math.inf, "training": model.training}

    monkeypatch.setitem(hooks.HOOKS, "count", Count)
    _, (event,) = run(["count:4"])
    assert (event["name"], event["windows"], event["training"]) == ("count", 4, False)


def put(monkeypatch: pytest.MonkeyPatch, measured: Any) -> None:
    """A hook `own` that returns what it is given, or raises it."""

    class Own(hooks.Hook):
        name = "own"

        def measure(self, model: Any, inputs_BT: torch.Tensor) -> dict[str, Any]:
            if isinstance(measured, Exception):
                raise measured
            return measured  # type: ignore[no-any-return]

    monkeypatch.setitem(hooks.HOOKS, "own", Own)


def test_what_a_hook_returns_is_written_as_plain_numbers(
    monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any], corpus: Path
) -> None:
    measured = {
        "scalar": np.float32(0.5), "count": np.int64(3), "array": np.array([[1, 2], [3, 4]]), "tensor": torch.ones(2),
        "half": torch.tensor(0.25, dtype=torch.bfloat16), "deep": {"a": [np.float32(1.5), (torch.tensor(2),)]},
        "nan": np.float32("nan"), "text": "so", "none": None, 7: True,
    }  # fmt: skip
    put(monkeypatch, measured)
    run = lab.run(tiny, corpus, hooks=["own:6"], listeners=[])
    (event,) = [event for event in events.read(run.log_path) if event["event"] == "hook"]
    assert {key: event[key] for key in event.keys() - set(events.HOOK_EVENT)} == {
        "scalar": 0.5, "count": 3, "array": [[1, 2], [3, 4]], "tensor": [1.0, 1.0], "half": 0.25,
        "deep": {"a": [1.5, [2]]}, "nan": "NaN", "text": "so", "none": None, "7": True,
    }  # fmt: skip
    assert (event["name"], event["step"]) == ("own", 6)


@pytest.mark.parametrize(
    ("measured", "error", "says"),
    [
        ({"name": 1}, UsageError, "the hook 'own' returned 'name', which its event says by itself; call it otherwise"),
        ({"step": 1}, UsageError, "the hook 'own' returned 'step'"),
        ({"odd": [{1, 2}]}, UsageError, "'odd' of the hook 'own' is a set, which the log cannot hold"),
        (0.5, UsageError, "the hook 'own' returned a float; return a mapping"),
        (ZeroDivisionError("of its own"), ZeroDivisionError, "of its own"),
    ],
    ids=["name", "step", "set", "number", "raises"],
)
def test_what_a_hook_raises_costs_no_step(
    measured: Any,
    error: type[Exception],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    tiny: dict[str, Any],
    corpus: Path,
) -> None:
    put(monkeypatch, measured)
    config = {**tiny, "checkpoint_cadence": None, "hooks": ["own:4"], "eval_cadence": 3}
    with pytest.raises(error, match=says):
        lab.run(config, corpus, run_name="hooked", listeners=[])
    put(monkeypatch, {"fine": 1})
    resumed = lab.resume("hooked", listeners=[])
    assert resumed.start["resumed_from"].endswith("step-00000004")
    straight = lab.run({**config, "hooks": []}, corpus, run_name="straight", listeners=[])
    assert resumed.last("val_loss") == straight.last("val_loss")
