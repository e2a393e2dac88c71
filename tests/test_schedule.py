"""The learning rate, step by step; MXNet counts the first step as 1."""

from __future__ import annotations

import math

import pytest

from vargface.errors import InputError
from vargface.recipe import load_recipe
from vargface.training.schedule import SCHEDULES, learning_rate_schedule, ramp

STEPS, WARMUP, LR, FINAL = 100, 10, 0.4, 0.1


def recipe(schedule: str, **keys):
    keys = {"steps": STEPS, "lr": LR, "lr_steps": "40,70", "final_lr": FINAL, "warmup_steps": WARMUP, **keys}
    return load_recipe("base", [f"schedule={schedule}", *(f"{key}={value}" for key, value in keys.items())])


def rates(schedule: str, **keys) -> list[float]:
    """[rate of step 0, 1, ... 100], asked in the order in which training asks."""
    give = learning_rate_schedule(recipe(schedule, **keys))
    return [give(step) for step in range(STEPS + 1)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_warm_up_is_linear_from_nothing(schedule):
    assert rates(schedule)[:WARMUP] == pytest.approx([LR * step / WARMUP for step in range(WARMUP)])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_after_the_warm_up_the_rate_is_whole(schedule):
    assert rates(schedule)[WARMUP] == pytest.approx(LR)
    assert max(rates(schedule)) == pytest.approx(LR)


def test_steps_are_taken_after_the_step_they_name():
    found = rates("step", lr_factor=0.5)
    assert found[WARMUP:41] == [LR] * (41 - WARMUP)
    assert found[41:71] == pytest.approx([LR / 2] * 30)
    assert found[71:] == pytest.approx([LR / 4] * 30)


def test_cosine_falls_from_the_warm_up_to_the_last_step():
    span = STEPS - WARMUP
    due = [FINAL + (LR - FINAL) * (1 + math.cos(math.pi * step / span)) / 2 for step in range(span + 1)]
    assert rates("cosine")[WARMUP:] == pytest.approx(due)
    assert rates("cosine")[-1] == pytest.approx(FINAL)
    assert rates("cosine")[WARMUP + span // 2] == pytest.approx((LR + FINAL) / 2)


def test_poly_falls_with_the_square():
    span = STEPS - WARMUP
    due = [FINAL + (LR - FINAL) * (1 - step / span) ** 2 for step in range(span + 1)]
    assert rates("poly")[WARMUP:] == pytest.approx(due)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_a_warm_up_the_first_step_has_the_whole_rate(schedule):
    assert rates(schedule, warmup_steps=0)[0] == pytest.approx(LR)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("step", [5, WARMUP, 40, 41, 71, 99, 100])
def test_a_resumed_run_has_the_rates_of_the_straight_one(schedule, step):
    fresh = learning_rate_schedule(recipe(schedule))
    assert [fresh(later) for later in range(step, STEPS + 1)] == rates(schedule)[step:]


@pytest.mark.parametrize("schedule", ["cosine", "poly"])
def test_past_the_last_step_the_rate_stays(schedule):
    give = learning_rate_schedule(recipe(schedule))
    assert [give(STEPS), give(STEPS + 50)] == pytest.approx([FINAL, FINAL])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"schedule": "linear"}, "schedule = 'linear': must be one of step, cosine, poly"),
        ({"warmup_steps": STEPS}, f"warmup_steps = {STEPS}: must be fewer than steps = {STEPS}"),
        ({"schedule": "step", "lr_steps": ""}, "lr_steps = []: must be one or more rising step numbers"),
        ({"schedule": "step", "lr_steps": "0,5"}, "lr_steps = [0, 5]: must be"),
        ({"schedule": "step", "lr_steps": "5,5"}, "lr_steps = [5, 5]: must be"),
        ({"schedule": "step", "lr_factor": 10}, "lr_factor = 10.0: must be at most 1"),
    ],
)
def test_what_does_not_fit_is_refused(keys, message):
    with pytest.raises(InputError) as caught:
        learning_rate_schedule(recipe(**{"schedule": "cosine", **keys}))
    assert str(caught.value).startswith(message)


def test_lr_steps_concern_the_schedule_of_that_name_alone():
    assert rates("cosine", lr_steps="5,5")[-1] == pytest.approx(FINAL)


@pytest.mark.parametrize(
    ("first", "full", "weights"),
    [(2, 4, [0, 0, 0, 0.5, 1, 1]), (0, 4, [0, 0.25, 0.5, 0.75, 1, 1]), (3, 3, [0, 0, 0, 1, 1, 1]), (0, 0, [1] * 6)],
)
def test_a_ramp_rises_from_its_first_step_to_its_last(first, full, weights):
    assert [ramp(step, first, full) for step in range(6)] == weights
