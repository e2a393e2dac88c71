"""The disk that a run takes: foretold to the byte and a little, and refused before anything is written."""

from __future__ import annotations

import os
import shutil

import pytest
import tiny

from vargface.errors import InputError
from vargface.training.fit import train
from vargface.training.plan import make_plan
from vargface.training.space import space_of


@pytest.mark.parametrize("keys", [{}, {"optimizer": "adam", "lr": 0.001}, {"margin_ramp": "1,2", "mix": 0.5}])
def test_what_is_foretold_is_what_is_written(make, teacher, keys):
    recipe = make(teacher=teacher, steps=2, **keys)
    space = space_of(make_plan(recipe))
    (folder,) = train(recipe)
    state = sum(file.stat().st_size for file in (folder.path / "state").glob("*2.*"))
    checkpoint = os.path.getsize(folder.path / "student-0001.params")
    # names and shapes take some, too: much of these small ones, little of real ones
    assert space.checkpoint < checkpoint < space.checkpoint + 3000
    assert space.state < state < space.state + 6000


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(make, teacher, tmp_path, monkeypatch):
    recipe = make(teacher=teacher, generations=3)
    needed = space_of(make_plan(recipe)).of_run(3)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(InputError, match=r"run: 0 MB free, the run takes up to 0 MB .* - free space or choose"):
        train(recipe)
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    train(recipe)
    # what is there already is not asked for again
    there = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*") if file.is_file())
    assert there > needed / 3
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - there))
    train(recipe)


def test_a_real_network(make, monkeypatch):
    """VarGFaceNet's payload of 19.99 MiB (SPEC, section 1); beside it 4 x 512 of class centres, and all the momenta."""
    monkeypatch.undo()
    recipe = tiny.make_recipe(data=make().data, embedding_size=512)
    space = space_of(make_plan(recipe))
    assert space.checkpoint / 2**20 == pytest.approx(19.99, abs=0.005)
    assert space.state == pytest.approx(2 * space.checkpoint, rel=0.02)
