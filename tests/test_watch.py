"""Words about a log: a stall and a loss without a say, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from vargface.training.watch import Watch


def row(step: int, **values: float) -> dict[str, float]:
    usual = {"lr": 0.1, "teacher_cosine": 0.5, "train_accuracy": 0.5}
    return {"step": step, **usual, "margin_gradient": 2.0, "distillation_gradient": 1.0, **values}


def told(rows, **keys) -> list[tuple[int, str]]:
    watch = Watch(tiny.make_recipe(**{"lr": 0.1, "steps": 400, "log_every": 10, "warmup_steps": 20, **keys}))
    return [(each["step"], text) for each in rows for text in watch(each)]


def course(cosines, **values) -> list[dict[str, float]]:
    return [row(10 * number, teacher_cosine=cosine, **values) for number, cosine in enumerate(cosines, start=1)]


def test_a_cosine_that_rises_is_no_stall():
    assert told(course(np.linspace(0.0, 0.5, 40))) == []


def test_a_cosine_that_never_moves_is_said_and_said_again_a_stretch_later():
    found = told(course(np.full(50, 0.01)))
    # twenty rows after the warm-up of two, and twenty more each time
    assert [step for step, _ in found] == [220, 420]
    due = "distillation stalls: cosine to the teacher 0.010, then 0.010 in 200 steps - the student does not follow"
    assert found[0][1].startswith(due)


def test_a_rise_that_noise_may_hide_is_not_called_a_stall():
    noise = np.random.default_rng(0).normal(scale=0.02, size=40)
    assert told(course(np.linspace(0.2, 0.25, 40) + noise)) == []


def test_noise_around_a_level_is_a_stall_all_the_same():
    noise = np.random.default_rng(0).normal(scale=0.001, size=40)
    found = told(course(0.6 + noise))
    assert found
    assert "a lower lr, a larger alpha or a wider student" in found[0][1]


@pytest.mark.parametrize(("cosine", "lr"), [(0.95, 0.1), (0.6, 0.005)], ids=["near the teacher", "at the end"])
def test_where_nothing_more_is_to_be_expected_nothing_is_said(cosine, lr):
    assert told(course(np.full(40, cosine), lr=lr)) == []


def test_rows_of_steps_that_were_left_out_say_nothing():
    gone = dict.fromkeys(("teacher_cosine", "margin_gradient", "distillation_gradient"), np.nan)
    assert told([row(10 * number, **gone) for number in range(1, 40)]) == []
    cosines = np.full(50, 0.01)
    cosines[5:10] = np.nan
    assert [step for step, _ in told(course(cosines))] == [270, 470]


def test_a_long_run_is_looked_at_over_a_share_of_it():
    rows = course(np.full(600, 0.3))
    assert [step for step, _ in told(rows, steps=20_000, warmup_steps=0)] == [2000, 4000, 6000]


@pytest.mark.parametrize(
    ("margin", "distillation", "word"),
    [(2.0, 0.015, "teaches next to nothing"), (0.009, 1.0, "next to no say"), (0.0, 1.0, "infinitely many times")],
)
def test_a_term_that_is_orders_off_is_said_once(margin, distillation, word):
    rows = course(np.linspace(0, 0.6, 20), margin_gradient=margin, distillation_gradient=distillation)
    ((step, text),) = told(rows)
    assert step == 50  # the third row after the warm-up
    assert word in text
    assert "alpha = 7" in text


def test_terms_within_two_orders_are_left_alone():
    for distillation in (0.05, 1.0, 100.0):
        assert told(course(np.linspace(0, 0.6, 20), distillation_gradient=distillation)) == []


def test_a_single_batch_unlike_the_others_is_not_talked_about():
    rows = course(np.linspace(0, 0.6, 20))
    rows[10]["distillation_gradient"] = 1e-6
    assert told(rows) == []


def test_a_term_that_has_been_learned_may_be_small():
    small = {"margin_gradient": 1e-4, "train_accuracy": 0.99}
    assert told(course(np.linspace(0, 0.6, 20), **small)) == []
    assert told(course(np.linspace(0.91, 0.99, 20), distillation_gradient=1e-4)) == []


def test_while_the_margin_ramps_its_say_is_meant_to_be_small():
    rows = course(np.linspace(0, 0.6, 20), margin_gradient=0.0)
    assert told(rows, margin_ramp="300,400", teacher="a,0") == []


def test_a_run_without_a_teacher_is_not_watched():
    assert told([{"step": step, "lr": 0.1, "margin_loss": 3.0} for step in range(10, 400, 10)]) == []
