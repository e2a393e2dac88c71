"""A run folder: whose run it holds, which checkpoints stay, what training goes on from, and the logs."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny import largest_file

from vargface.checkpoint import load_checkpoint
from vargface.errors import InputError
from vargface.runtime import mx
from vargface.training.log import CsvLog, Means
from vargface.training.run_folder import OWN_SUM, RunFolder


@pytest.fixture
def recipe(tmp_path):
    return tiny.make_recipe(out=tmp_path / "run")


@pytest.fixture
def folder(recipe):
    return RunFolder(recipe.out, recipe)


@pytest.fixture
def network():
    return tiny.network()


@pytest.fixture
def params(network):
    """Weights as a training module has them: with class centres."""
    args, auxs = tiny.weights(network)
    return {**args, "fc7_weight": mx.nd.random.normal(shape=(tiny.IDENTITIES, tiny.DIMENSIONS))}, auxs


def names(folder) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_new_folder_holds_the_recipe_as_run(folder, recipe):
    assert names(folder.path) == ["recipe.json"]
    assert json.loads((folder.path / "recipe.json").read_text()) == {**recipe, "trained_on": {}}
    assert folder.result is None
    assert folder.load_state() is None


def test_the_same_recipe_opens_it_again(folder, recipe):
    assert RunFolder(recipe.out, recipe).path == folder.path


def test_a_key_that_is_younger_than_the_run_had_its_default_value(folder, recipe):
    path = folder.path / "recipe.json"
    path.write_text(json.dumps({key: value for key, value in recipe.items() if key != "residual_gamma"}))
    assert RunFolder(recipe.out, recipe).path == folder.path
    with pytest.raises(InputError, match=r"\(residual_gamma differ\)"):
        RunFolder(recipe.out, tiny.make_recipe(out=recipe.out, residual_gamma=0.5))


def test_another_recipe_is_refused_naming_what_differs(folder, recipe):
    recipe = tiny.make_recipe(out=recipe.out, lr=0.5, margin_ramp="1,2")
    with pytest.raises(InputError) as caught:
        RunFolder(recipe.out, recipe)
    due = f"{folder.path}: holds a run of another recipe (lr, margin_ramp differ) - choose another out"
    assert str(caught.value) == f"{due}, or allow it by may_change=lr,margin_ramp"
    assert names(folder.path) == ["recipe.json"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("out", "moved"),
        ("data", "elsewhere"),
        ("packs", "a.bin"),
        ("context", "cpu"),
        ("log_every", 7),
        ("verify_every", 9),
    ],
)
def test_what_says_where_things_are_may_differ(folder, recipe, key, value):
    RunFolder(folder.path, tiny.make_recipe(**{"out": recipe.out, key: value}))


@pytest.mark.parametrize(("name", "text"), [("recipe.json", "[]"), ("result.json", "{}"), ("result.json", "[1]")])
def test_a_file_of_another_shape_is_said(folder, recipe, name, text):
    (folder.path / name).write_text(text)
    with pytest.raises(InputError, match=rf"{name}: not what training wrote - remove it, or choose another out"):
        _ = RunFolder(recipe.out, recipe).result


def test_parts_of_a_state_that_was_never_finished_go_with_the_next_one(folder):
    args, auxs = tiny.weights(tiny.network())
    (folder.path / "state").mkdir()
    for suffix in (".params", ".optimizer"):
        (folder.path / "state" / f"00000003{suffix}").write_bytes(b"half")
    folder.save_state({"step": 5}, (args, auxs), b"")
    assert {file.stem for file in (folder.path / "state").iterdir()} == {"00000005"}


@pytest.mark.parametrize("name", ["recipe.json", "result.json"])
def test_a_damaged_file_is_said(folder, recipe, name):
    (folder.path / name).write_text('{"lr": 0.')
    with pytest.raises(InputError, match=rf"{name}: cannot be read .* - remove it, or choose another out"):
        _ = RunFolder(recipe.out, recipe).result


def test_a_checkpoint_is_ready_for_insightface(folder, network, params):
    model = folder.save(1, network, params, keep=set())
    assert model == folder.model(1) == f"{folder.path}/student,1"
    saved = load_checkpoint(model)
    assert saved.symbol.list_outputs() == ["fc1_output"]
    assert set(mx.nd.load(f"{folder.path}/student-0001.params")) == {
        *(f"arg:{name}" for name in params[0] if name != "fc7_weight"),
        *(f"aux:{name}" for name in params[1]),
    }
    np.testing.assert_array_equal(saved.args["pre_fc1_weight"].asnumpy(), params[0]["pre_fc1_weight"].asnumpy())


def test_the_best_and_the_last_checkpoint_stay(folder, network, params):
    for number, best in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3)]:
        folder.save(number, network, params, keep={best})
        kept = [name for name in names(folder.path) if name.endswith(".params")]
        assert kept == [f"student-{left:04d}.params" for left in sorted({best, number})]


def test_files_of_others_are_left_alone(folder, network, params):
    others = [
        "student-undistilled-0001.params",
        "student-best.params",
        "teacher-0001.params",
        "student-0001.onnx",
        "student-².params",
    ]
    for other in others:
        (folder.path / other).write_bytes(b"")
    folder.save(1, network, params, keep=set())
    folder.save(2, network, params, keep=set())
    assert set(others) <= set(names(folder.path))
    assert "student-0001.params" not in names(folder.path)


def test_the_role_names_the_checkpoints(tmp_path, network, params):
    folder = RunFolder(tmp_path, tiny.make_recipe(out=tmp_path, role="teacher"))
    folder.save(1, network, params, keep=set())
    assert names(tmp_path) == ["recipe.json", "teacher-0001.params", "teacher-symbol.json"]


def test_a_finished_run_says_which_is_which(folder, recipe):
    packs = {"lfw": {"accuracy": 0.5, "xnorm": None}}
    folder.finish({"number": 2, "score": 0.5, "packs": packs}, last=3, step=30)
    assert RunFolder(recipe.out, recipe).result == {"best": 2, "last": 3, "step": 30, "packs": packs}


def state(step: int) -> dict:
    return {"step": step, "number": 1, "verified": 0, "best": {"number": 1, "score": 1 / 3, "packs": {}}}


def test_a_state_comes_back_as_it_was(folder, params, recipe):
    folder.save_state(state(10), params, b"momentum")
    place, back, optimizer = RunFolder(recipe.out, recipe).load_state()
    assert (place, optimizer) == (state(10), b"momentum")
    assert [set(part) for part in back] == [set(part) for part in params]
    for name, value in tiny.numpy_of(params).items():
        np.testing.assert_array_equal(tiny.numpy_of(back)[name], value)


def test_the_two_newest_states_stay(folder, params):
    for step in (5, 10, 100, 1000):
        folder.save_state(state(step), params, str(step).encode())
    due = [f"{step:08d}.{kind}" for step in (100, 1000) for kind in ("json", "optimizer", "params")]
    assert names(folder.path / "state") == due
    assert folder.load_state()[0]["step"] == 1000
    assert folder.load_state()[2] == b"1000"


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    """One bit, in the middle of the arrays: MXNet reads it all the same."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def rewrite(file, change):
    said = json.loads(file.read_text())
    change(said)
    file.write_text(json.dumps(said))


def drop(said, *keys):
    for key in keys:
        del said[key]


DAMAGES = {
    "half the parameters": (".params", halve),
    "other parameters": (".params", flip),
    "no parameters": (".params", lambda file: file.unlink()),
    "half an optimiser": (".optimizer", halve),
    "other momenta": (".optimizer", flip),
    "no optimiser": (".optimizer", lambda file: file.unlink()),
    "half a json": (".json", halve),
    "zeros": (".json", lambda file: file.write_bytes(bytes(100))),
    "another json": (".json", lambda file: file.write_text("null")),
    "of another step": (".json", lambda file: file.write_text('{"step": 19}')),
    "a json with another digit": (".json", lambda file: rewrite(file, lambda said: said.update(number=2))),
    "a json that says less": (".json", lambda file: rewrite(file, lambda said: said.pop("number"))),
    "no number and no sum": (".json", lambda file: rewrite(file, lambda said: drop(said, "number", OWN_SUM))),
    "no best and no sum": (".json", lambda file: rewrite(file, lambda said: drop(said, "best", OWN_SUM))),
    "nothing of the best and no sum": (
        ".json",
        lambda file: rewrite(file, lambda said: drop(said, OWN_SUM) or said.update(best={})),
    ),
}


@pytest.fixture
def damaged(folder, params):
    """Saves states 10 and 20 and does something to the files of some."""

    def states(kind, *steps):
        suffix, damage = DAMAGES[kind]
        for step in (10, 20):
            folder.save_state(state(step), params, str(step).encode() * 50)
        for step in steps:
            damage(folder.path / "state" / f"{step:08d}{suffix}")
        return folder

    return states


@pytest.mark.parametrize("kind", DAMAGES)
def test_behind_a_damaged_state_the_older_one_is_taken_and_it_is_said(damaged, caplog, kind):
    place, _, optimizer = damaged(kind, 20).load_state()
    assert (place, optimizer) == (state(10), b"10" * 50)
    (message,) = caplog.messages
    assert f"/state/00000020{DAMAGES[kind][0]}: " in message
    assert message.endswith(" - the newest whole state is that of step 10")
    assert "\n" not in message


@pytest.mark.parametrize("kind", DAMAGES)
def test_where_no_state_is_whole_it_is_said_what_to_do(damaged, kind):
    folder = damaged(kind, 10, 20)
    with pytest.raises(InputError) as refused:
        folder.load_state()
    message, states = str(refused.value), folder.path / "state"
    assert message.startswith(f"{states}/00000020{DAMAGES[kind][0]}: ")
    assert message.endswith(f"no other state in {states} is whole - remove {states} to start anew")
    assert "\n" not in message


def test_a_damaged_older_state_does_not_matter(damaged, caplog):
    assert damaged("half a json", 10).load_state()[0] == state(20)
    assert caplog.messages == []


def test_a_damaged_state_goes_when_training_is_past_the_one_before_it(damaged, params):
    folder = damaged("no optimiser", 20)
    folder.save_state(state(15), params, b"15")
    due = [f"{step:08d}.{kind}" for step in (10, 15) for kind in ("json", "optimizer", "params")]
    assert names(folder.path / "state") == due


def test_what_a_state_says_can_be_amended(folder, params, recipe):
    folder.save_state(state(10), params, b"momentum")
    folder.amend_state({**state(10), "number": 2})
    assert RunFolder(recipe.out, recipe).load_state()[0] == {**state(10), "number": 2}


def test_a_state_from_before_there_were_checksums_is_taken(folder, params):
    folder.save_state(state(10), params, b"momentum")
    (folder.path / "state" / "00000010.json").write_text(json.dumps(state(10)))
    assert folder.load_state()[0] == state(10)


def test_a_folder_that_is_removed_under_a_run_is_not_made_anew(folder, params):
    folder.save_state(state(10), params, b"10")
    shutil.rmtree(folder.path)
    for _ in range(2):
        with pytest.raises(InputError, match="run: was removed, or its recipe.json, while the run went on"):
            folder.save_state(state(20), params, b"20")
    assert not folder.path.exists()


@pytest.mark.parametrize("left", ["state", "result"])
def test_a_run_without_its_recipe_is_refused(folder, params, recipe, left):
    if left == "state":
        folder.save_state(state(10), params, b"10")
    else:
        folder.finish(state(10)["best"], 1, 10)
    (folder.path / "recipe.json").unlink()
    before = names(folder.path)
    with pytest.raises(InputError, match=rf"run: holds {left}.*json and no recipe.json - put that back"):
        RunFolder(recipe.out, recipe)
    assert names(folder.path) == before


def test_the_folder_is_synced_before_an_older_state_is_removed(folder, params, monkeypatch):
    done = []
    sync, unlink = os.fsync, Path.unlink

    def synced(handle):
        name = os.readlink(f"/proc/self/fd/{handle}")
        done.append(os.path.basename(name) if os.path.isdir(name) else "a file")
        sync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "unlink", lambda self: done.append(self.name) or unlink(self))
    for step in (5, 10, 20):
        del done[:]
        folder.save_state(state(step), params, b"momentum")
    # each of the three files, then its name
    assert done[:6] == ["a file", "state"] * 3
    assert sorted(done[6:]) == [f"00000005.{kind}" for kind in ("json", "optimizer", "params")]


def test_half_a_state_is_not_looked_at(folder, params):
    folder.save_state(state(10), params, b"10")
    for suffix in (".params", ".optimizer"):
        (folder.path / "state" / f"{20:08d}{suffix}").write_bytes(b"half")
    assert folder.load_state()[0] == state(10)


@pytest.mark.parametrize("size", [100, 4000])
def test_no_space_for_a_state_is_said_and_the_one_before_it_stays(folder, params, size):
    folder.save_state(state(10), params, b"10")
    before = names(folder.path / "state")
    with largest_file(size), pytest.raises(InputError, match=r"00000020\.params: .*free space or choose another place"):
        folder.save_state(state(20), params, b"20")
    assert names(folder.path / "state") == before
    assert folder.load_state()[0] == state(10)


def test_no_space_for_a_checkpoint_leaves_the_one_before_it(folder, network, params):
    folder.save(1, network, params, keep=set())
    before = names(folder.path)
    with largest_file(100), pytest.raises(InputError, match="free space"):
        folder.save(2, network, params, keep=set())
    assert names(folder.path) == before
    load_checkpoint(folder.model(1))


def test_a_log_has_one_header_however_often_it_is_opened(tmp_path):
    for step in (1, 2):
        CsvLog(tmp_path / "log.csv").write({"step": step, "loss": step / 3, "pack": "a,b"})
    with open(tmp_path / "log.csv", newline="") as file:
        assert list(csv.reader(file)) == [["step", "loss", "pack"], ["1", "0.333333", "a,b"], ["2", "0.666667", "a,b"]]


def test_a_column_that_is_younger_than_a_log_is_added_to_it(tmp_path):
    log = CsvLog(tmp_path / "log.csv")
    log.write({"step": 1, "loss": 0.5})
    CsvLog(tmp_path / "log.csv").write({"step": 2, "cosine": 0.1, "loss": 0.25})
    log.write({"step": 3, "loss": 0.125})
    assert (tmp_path / "log.csv").read_bytes() == b"step,loss,cosine\r\n1,0.5,\r\n2,0.25,0.1\r\n3,0.125,\r\n"


def test_rows_past_a_step_are_dropped_and_so_is_one_that_was_cut_short(tmp_path):
    path = tmp_path / "log.csv"
    log = CsvLog(path)
    log.drop_after(0)
    assert not path.exists()
    for step in (5, 10, 10, 15):
        log.write({"step": step, "loss": 0.25, "pack": "a,b"})
    before = path.read_bytes().splitlines(keepends=True)
    with open(path, "ab") as file:
        file.write(bytes(7) + b"\r\n1,0.")  # a crash of the system, then one of the process
    log.drop_after(10)
    assert path.read_bytes() == b"".join(before[:-1])
    written = path.stat().st_mtime_ns
    log.drop_after(10)
    assert path.stat().st_mtime_ns == written
    log.drop_after(0)
    assert path.read_bytes() == before[0]
    path.write_bytes(before[0][:-3])
    log.drop_after(0)
    log.write({"step": 5, "loss": 0.25, "pack": "a,b"})
    assert path.read_bytes() == b"".join(before[:2])


def test_a_log_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(InputError, match=r"log\.csv: cannot write \(No such file"):
        CsvLog(tmp_path / "gone" / "log.csv").write({"step": 1})


def test_means_are_over_samples_and_steps_since_the_last_look(monkeypatch):
    clock = iter([0.0, 2.0, 3.0, 6.0, 7.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    means = Means(["loss", "norm"], batch_size=2)
    for value in (1, 3):
        means.add([mx.nd.full((2,), value), mx.nd.array([value, 0])])
    assert means.take() == {"loss": 2.0, "norm": 1.0, "images_per_second": 2 * 2 / 2.0}
    means.add([mx.nd.ones((2,)), mx.nd.ones((2,))])
    with means.clock_stopped():  # from 3 to 6
        pass
    assert means.take() == {"loss": 1.0, "norm": 1.0, "images_per_second": 2 / (7.0 - 2.0 - 3.0)}


def test_means_of_no_step_are_nan():
    means = Means(["loss"], batch_size=2)
    row = means.take()
    assert np.isnan(row["loss"]) and row["images_per_second"] == 0
