"""A run's cost, foretold: from real steps, and nothing stays behind."""

from __future__ import annotations

import os
import re

import pytest
import tiny

from vargface.cli import main
from vargface.errors import InputError
from vargface.progress import duration
from vargface.training import rehearsal
from vargface.training.rehearsal import rehearse, time_input


@pytest.mark.parametrize(
    "seconds, text",
    [
        (3.24, "3.2 s"),
        (59.9, "59.9 s"),
        (250, "4 min 10 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (4 * 86400 + 7205, "4 d 2 h"),
    ],
)
def test_durations_for_people(seconds, text):
    assert duration(seconds) == text


def lines(text: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in text.splitlines())


def test_everything_that_a_run_takes_and_nothing_stays(make, teacher, tmp_path):
    recipe = make(teacher=teacher, generations=2, steps=600, verify_every=250)
    found = lines(rehearse(recipe))
    assert list(found) == ["devices", "memory", "speed", "epoch", "verification", "disk", "total"]
    rate, step = map(float, re.findall(r"[\d.]+", found["speed"])[:2])
    assert rate * step == pytest.approx(4, rel=0.3)  # both are rounded
    assert found["epoch"].startswith("6 steps, ")
    assert found["verification"].endswith("3 times a generation")
    assert found["speed"].endswith("the teacher asked anew)")
    assert found["total"].startswith("2 x 600 steps (100.0 epochs): ")
    assert found["total"].endswith(", less than that from the second epoch on: the teacher's answers are remembered")
    assert os.listdir(tmp_path) == []


def test_the_total_is_steps_and_verifications(make, monkeypatch):
    monkeypatch.setattr(
        rehearsal.Generation, "timed_steps", lambda self, weights, count: self._start(weights) or [2.0] * 3
    )
    monkeypatch.setattr(rehearsal, "_verification_seconds", lambda plan, params: 100.0)
    found = lines(rehearse(make(generations=3, steps=1000, verify_every=400)))
    assert found["speed"].startswith("2.0 img/s, 2.000 s a step of 4")
    assert found["speed"].endswith("(median of 3)")
    assert found["total"].endswith(": 1 h 55 min")  # 3 x (2000 + 3 x 100) seconds


def test_what_training_would_refuse_is_refused(make, tmp_path):
    for run in (rehearse, time_input):
        with pytest.raises(InputError, match="batch of 99"):
            run(make(batch_size=99))


def test_input_alone(make, monkeypatch, tmp_path):
    monkeypatch.setattr(rehearsal, "INPUT_SECONDS", 0.2)
    rate, images, spent = map(float, re.findall(r"[\d.]+", time_input(make(augment=1.0)).replace(",", "")))
    assert rate == pytest.approx(images / spent, rel=0.3) and images % 4 == 0 and images > 24
    assert os.listdir(tmp_path) == []


def test_a_rehearsed_run_is_the_run(make, tmp_path):
    """Steps of a rehearsal leave the run itself as it would have been."""
    from vargface.training.fit import train

    (straight,) = train(make(out=tmp_path / "straight"))
    rehearse(make())
    tiny.equal(tiny.state(train(make())[0]), tiny.state(straight))


def test_the_commands(make, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(rehearsal, "INPUT_SECONDS", 0.1)
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "AVX2"))  # which training sets
    keys = [f"{key}={value}" for key, value in {**tiny.KEYS, "data": make().data, "steps": 5}.items()]
    assert main(["train", "base", *keys, "--dry-run", "--test-io"]) == 0
    assert list(lines(capsys.readouterr().out)) == ["input", "devices", "memory", "speed", "epoch", "verification"] + [
        "disk",
        "total",
    ]
    assert os.listdir(tmp_path) == []
    assert main(["train", "base", *keys, "batch_size=99", "--dry-run"]) == 2
    assert "batch of 99" in capsys.readouterr().err
