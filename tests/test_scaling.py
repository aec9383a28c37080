"""The floor by position in the window, and the power law above it."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest

import lmlab as lab
from lmlab import storybook
from lmlab.data import DataLoader, WindowDataset
from lmlab.errors import UsageError
from lmlab.scaling import Scaling, fit_power_law, floors_by_position, flops_of, law_of
from lmlab.tokenizers import CharTokenizer

STORIES = {"data": "storybook:6000", "eval_cadence": 3, "listeners": []}


def test_the_fit_finds_the_law_that_made_the_points():
    flops = [1e9, 3e9, 1e10, 5e10]
    law = fit_power_law(flops, [0.1 + 40 * c**-0.15 for c in flops], floor=0.1)
    assert law.exponent == pytest.approx(0.15, rel=1e-9)
    assert law.scale == pytest.approx(40, rel=1e-7)
    assert law(2e11) == pytest.approx(0.1 + 40 * 2e11**-0.15, rel=1e-9)


def test_a_wrong_floor_predicts_worse():
    flops = [1e9, 4e9, 1.6e10, 6.4e10]
    losses = [0.5 + 900 * c**-0.3 for c in flops]
    true, wrong = (fit_power_law(flops, losses, floor)(1e12) for floor in (0.5, 0.0))
    assert abs(true - (0.5 + 900 * 1e12**-0.3)) < 1e-9 < abs(wrong - true)


@pytest.mark.parametrize(
    ("flops", "losses", "says"),
    [
        ([1e9], [2.0], "two different"),
        ([1e9, 1e9], [2.0, 1.0], "two different"),
        ([1e9, 2e9], [2.0, 0.05], "above the floor"),
    ],
)
def test_points_that_make_no_law_are_refused(flops: list[float], losses: list[float], says: str):
    with pytest.raises(UsageError, match=says):
        fit_power_law(flops, losses, floor=0.1)


def test_floor_by_position_is_the_grammar_s_cost_of_each_target():
    text = storybook.generate(3000)
    tokenizer = CharTokenizer.from_text(text)
    loader = DataLoader(WindowDataset(tokenizer.encode(text), 64), 4)
    floors_T = floors_by_position(tokenizer, loader)
    costs = [-log for log in storybook.log_probability_by_character(text)]
    for position in (0, 1, 17, 63):
        targets = costs[position + 1 :: 64]
        assert floors_T[position] == pytest.approx(sum(targets) / len(targets))


def test_positions_average_to_the_run_s_own_numbers(tiny: dict[str, object]):
    run = lab.run(tiny, **STORIES)
    positions = lab.by_position(run)
    n_val = run.start["data"]["n_val"]
    counts_T = np.bincount(np.arange(n_val - 1) % 16, minlength=16)
    assert (positions.losses_T * counts_T).sum() / (n_val - 1) == pytest.approx(run.last("val_loss"), rel=1e-4)
    mean_floor = (positions.floors_T * counts_T).sum() / (n_val - 1)
    assert mean_floor == pytest.approx(run.loss_floor, rel=0.05)  # that one counts the first character, too
    assert positions.gap(1, 16) == pytest.approx(positions.gaps_T.mean())
    assert "lm-figure" in positions._repr_html_()


def test_text_without_a_known_floor_is_refused(tiny: dict[str, object], corpus: Path):
    run = lab.run(tiny, data=corpus, eval_cadence=3, listeners=[])
    with pytest.raises(UsageError, match="not known"):
        lab.by_position(run)
    with pytest.raises(UsageError, match="3 or more"):
        lab.scaling_law(tiny, [{}, {}])
    with pytest.raises(UsageError, match="storybook"):
        lab.scaling_law(tiny, [{"max_steps": steps} for steps in (1, 2, 3)], data=corpus, listeners=[])


def test_a_run_that_was_trained_without_a_log_is_refused(tiny: dict[str, object]):
    lab.build(tiny, "storybook:6000", run_name="bare").fit()
    run = lab.attach("bare")
    assert (run.status, len(run.checkpoints())) == ("empty", 2)
    with pytest.raises(UsageError, match="the run bare has no log that says what it was trained on"):
        lab.by_position(run)


def test_a_law_through_a_run_that_is_not_completed_is_refused(tiny: dict[str, object]):
    def interrupt(event: dict[str, object]) -> None:
        if event["event"] == "step" and event["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    sizes = [{"max_steps": steps, "run_name": f"of-{steps}"} for steps in (2, 3, 6, 7)]
    with pytest.raises(UsageError, match=r"stopped in run 3 of 4, of-6"):
        lab.scaling_law(tiny, sizes, **{**STORIES, "listeners": [interrupt]})
    runs = [lab.attach(f"of-{steps}") for steps in (2, 3, 6)]
    with pytest.raises(UsageError, match=r"the run of-6 is stopped at step 4"):
        law_of(runs)
    lab.resume("of-6", listeners=[])
    assert law_of(runs).flops == [flops_of(run) for run in runs]


def test_a_study_fits_all_but_the_last_and_scores_the_prediction(tiny: dict[str, object]):
    sizes = [{"max_steps": steps} for steps in (10, 20, 40, 80)]
    study = lab.scaling_law(tiny, sizes, data="storybook:6000", listeners=[])
    assert study.flops == sorted(study.flops)
    assert study.flops[1] == 2 * study.flops[0]
    assert study.losses == [run.last("val_loss") for run in study.runs]
    assert study.law == fit_power_law(study.flops[:-1], study.losses[:-1], study.runs[0].loss_floor)
    assert study.error == pytest.approx(study.law(study.flops[-1]) - study.losses[-1])
    assert study.score == pytest.approx(1 - abs(study.error) / abs(study.losses[-2] - study.losses[-1]))
    assert study.score <= 1
    assert math.isfinite(study.score)
    assert "predicted" in repr(study.table())
    assert study._repr_html_().count("<tr>") == 5


def test_where_the_loss_did_not_move_there_is_no_score() -> None:
    law = fit_power_law([1e6, 1e7], [2.0, 1.5])
    study = Scaling([], [1e6, 1e7, 1e8], [2.0, 1.5, 1.5], law)
    assert math.isnan(study.score)
    assert repr(study).endswith("measured 1.5000 (-0.3750), score nan")


def test_a_law_of_runs_that_were_evaluated_on_different_text_is_refused(tiny: dict[str, object]):
    sizes = [{"max_steps": 3, "batch_size": size, "eval_batches": 10, "train_ratio": 0.5} for size in (4, 8, 16)]
    with pytest.raises(UsageError, match="evaluated on different parts of the text; set eval_batches to null"):
        lab.scaling_law(tiny, sizes, data="storybook:6000", listeners=[])
