"""The default job: all its parts, once, and nothing drawn or trained for settings that cannot work."""

from __future__ import annotations

import pytest
import tiny

from vargface import demo
from vargface.cli import main
from vargface.training import plan


@pytest.fixture
def run(data, tmp_path, monkeypatch):
    """Runs the demo with tiny networks and returns its exit code; on the tiny data set unless `data` is given."""
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")  # set for the process, which here is that of all tests
    monkeypatch.setattr(plan, "network_symbol", lambda recipe: tiny.network())

    def call(*overrides: str) -> int:
        keys = {"data": data, "out": tmp_path / "demo", "embedding_size": tiny.DIMENSIONS, "batch_size": 4}
        keys.update({"steps": 3, "warmup_steps": 1, **dict(word.split("=", 1) for word in overrides)})
        return main(["demo", *(f"{key}={value}" for key, value in keys.items())])

    return call


def test_the_whole_job_runs_once(run, tmp_path, capsys, monkeypatch):
    assert run() == 0
    table = capsys.readouterr().out
    *rows, _, note = table.splitlines()[2:]
    assert note.startswith("* fewer than 1 / FAR pairs")
    names = [row.split("  ")[0] for row in rows]
    assert names == ["teacher", "student, no distillation", "student, generation 1", "student, generation 2"]
    for row in rows:
        prefix, number = row.split()[-1].split(",")
        assert (tmp_path / "demo" / f"{prefix}-{int(number):04d}.params").is_file()

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr("vargface.training.fit.Generation", never)
    assert run() == 0
    assert capsys.readouterr().out == table


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["steps=20", "warmup_steps=20"], "warmup_steps = 20"),
        (["m2=4"], "m2 = 4"),
        (["scale=-1"], "scale"),
        (["schedule=foo"], "schedule = 'foo'"),
        (["context=gpux"], "context 'gpux'"),
        (["batch_size=5"], "batch_size = 5: must be a multiple of the 2 contexts"),
        (["batch_size=100"], "fewer than a batch of 100"),
        (["embedding_size=9", "teacher={teacher}"], "embeds into 16 dimensions"),
        (["teacher=no/such,1"], "no/such"),
        (["init=no/such,1"], "no/such"),
        (["packs=no.bin"], "no.bin"),
        (["data=no/where"], "no/where"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_cannot_work_is_refused_before_anything_is_written(run, overrides, message, teacher, tmp_path, capsys):
    assert run(*(word.format(teacher=teacher) for word in overrides)) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith("vargface: error: ") and message in error
    assert not (tmp_path / "demo").exists()


def test_settings_are_checked_before_faces_are_drawn(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "make_dataset", lambda *_, **__: pytest.fail("drawn"))
    assert main(["demo", f"out={tmp_path / 'demo'}", "steps=20"]) == 2
    assert "warmup_steps = 20: must be fewer than steps = 20" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
