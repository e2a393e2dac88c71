"""What goes on from a run folder: a stopped run ends as the straight one would, any other is left alone."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from tensorboardX.proto.event_pb2 import Event

from vargface.checkpoint import load_checkpoint
from vargface.cli import main
from vargface.data.packs import Pack
from vargface.data.sampling import epoch_order
from vargface.data.writer import RecordWriter
from vargface.errors import InputError
from vargface.interrupt import Terminated, interrupt_after_step
from vargface.training import fit, plan
from vargface.training.fit import train
from vargface.training.generation import Generation
from vargface.training.run_folder import RunFolder


def optimizer_state(folder: RunFolder) -> list[np.ndarray]:
    """The optimiser's arrays, in the order of the parameters."""
    found = pickle.loads(folder.load_state()[2])
    flat = (entry if isinstance(entry, tuple) else (entry,) for _, entry in sorted(found.items()))
    return [array.asnumpy() for arrays in flat for array in arrays]


@pytest.fixture
def without_norm(make, monkeypatch):
    """A network in which no sample of a batch sees another."""
    monkeypatch.setattr(plan, "network_symbol", lambda recipe: tiny.network(norm=False))


def interrupt(monkeypatch, at: int, generation: int = 1) -> None:
    """Let Ctrl-C come before step `at` + 1 of a generation."""
    whole = Generation._train_step

    def step(self, means):
        if self._step == at and (self._folder.path.name == f"gen-{generation}") == (generation > 1):
            monkeypatch.setattr(Generation, "_train_step", whole)
            raise KeyboardInterrupt
        whole(self, means)

    monkeypatch.setattr(Generation, "_train_step", step)


@pytest.mark.parametrize(
    "keys",
    [
        {"optimizer": "sgd"},
        {"optimizer": "adam", "lr": 0.01},
        {"schedule": "step", "lr_steps": "3,7,9"},
        {"schedule": "poly", "warmup_steps": 6},
        {"distil": True, "margin_ramp": "2,7"},
        {"distil": True, "augment": 1.0, "mix": 0.5, "accumulate": 2},
    ],
)
def test_a_resumed_run_ends_in_the_same_weights(make, teacher, tmp_path, monkeypatch, keys):
    if keys.pop("distil", False):
        keys["teacher"] = teacher
    keys = {"steps": 11, "verify_every": 4, "log_every": 1, **keys}  # the state at step 8 is past the first epoch of 6
    (straight,) = train(make(**keys, out=tmp_path / "straight"))
    for at in (2, 6, 10):
        interrupt(monkeypatch, at)
        with pytest.raises(KeyboardInterrupt):
            train(make(**keys))
        assert RunFolder(tmp_path / "run", make(**keys)).result is None
    (resumed,) = train(make(**keys))
    tiny.equal(tiny.state(resumed), tiny.state(straight))
    for one, other in zip(optimizer_state(resumed), optimizer_state(straight)):
        np.testing.assert_array_equal(one, other)
    assert resumed.result == straight.result
    assert logged(resumed) == logged(straight)


def test_tensorboard_has_what_the_logs_have_also_after_a_kill(make, monkeypatch):
    """By TensorBoard's own rule: where a file begins with a restart at a step, later steps of those before it go."""
    keys = {"steps": 6, "verify_every": 2, "log_every": 1}
    interrupt(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        train(make(**keys))
    (folder,) = train(make(**keys))
    found: dict[str, dict[int, float]] = {}
    for file in sorted((folder.path / "tensorboard").iterdir()):
        for event in events(file):
            if event.HasField("session_log") and event.session_log.status == event.session_log.START:
                found = {tag: {s: v for s, v in row.items() if s < event.step} for tag, row in found.items()}
            for value in event.summary.value:
                assert event.step not in found.setdefault(value.tag, {}), "twice"
                found[value.tag][event.step] = value.simple_value
    for tag, path, column in [
        ("train/margin_loss", folder.log._path, "margin_loss"),
        ("accuracy/pairs", folder.verifications._path, "accuracy"),
    ]:
        due = {int(row["step"]): float(row[column]) for row in tiny.rows(path)}
        assert found[tag].keys() == due.keys()
        np.testing.assert_allclose(list(found[tag].values()), list(due.values()), rtol=1e-4)


def events(file: Path):
    """The events of a TensorBoard file: records of length, its checksum, the event, its checksum."""
    content, at = file.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield Event.FromString(content[at + 12 : at + 12 + length])
        at += 16 + length


def logged(folder: RunFolder) -> list[list[dict[str, str]]]:
    """The rows of both logs, without what depends on the clock."""
    found = [tiny.rows(folder.path / name) for name in ("log.csv", "verification.csv")]
    return [[{key: row[key] for key in row if key != "images_per_second"} for row in rows] for rows in found]


@pytest.mark.parametrize("method", ["save", "amend_state"])
def test_a_run_killed_in_a_verification_logs_it_once(make, tmp_path, method):
    keys = {"steps": 6, "verify_every": 2, "log_every": 1}
    (straight,) = train(make(**keys, out=tmp_path / "straight"))
    whole = getattr(RunFolder, method)

    def killed(self, *rest, **keys):
        # after the checkpoint, the state is amended (which `save_state` does as well)
        if (method == "save" or rest[0]["verified"] == 4) and len(tiny.rows(self.verifications._path)) == 2:
            raise KeyboardInterrupt
        return whole(self, *rest, **keys)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, method, killed)
        train(make(**keys))
    assert (tmp_path / "run" / "state" / "00000004.json").exists()
    (resumed,) = train(make(**keys))
    tiny.equal(tiny.state(resumed), tiny.state(straight))
    assert logged(resumed) == logged(straight)


PROGRAM = """
import os, signal, sys
import tiny
from vargface import files
from vargface.training import plan
from vargface.training.fit import train
plan.network_symbol = lambda recipe: tiny.network()
replace = os.replace
def kill(source, target):
    if str(target).endswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
if sys.argv[2]:
    os.replace = kill
train(tiny.make_recipe(**eval(sys.argv[1])))
"""


@pytest.mark.slow
def test_a_killed_process_leaves_what_ends_in_the_same_bits(make, data, tmp_path):
    """SIGKILL twice: from outside at whatever moment, and with a state half written."""
    keys = {"data": str(data), "steps": 60, "save_every": 2, "verify_every": 20, "log_every": 1}
    (straight,) = train(make(**keys, out=tmp_path / "straight"))
    run = tmp_path / "run"
    command = [sys.executable, "-c", PROGRAM, repr({**keys, "out": str(run)})]
    environment = {**os.environ, "PYTHONPATH": str(Path(tiny.__file__).parent)}
    process = subprocess.Popen([*command, ""], env=environment)
    while process.poll() is None and not (run / "state" / "00000006.json").exists():
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert subprocess.run([*command, "00000040.optimizer"], env=environment).returncode == -signal.SIGKILL
    assert not (run / "state" / "00000040.json").exists() and (run / "state" / "00000040.params").exists()
    (resumed,) = train(make(**keys))
    tiny.equal(tiny.state(resumed), tiny.state(straight))
    for one, other in zip(optimizer_state(resumed), optimizer_state(straight)):
        np.testing.assert_array_equal(one, other)
    assert logged(resumed) == logged(straight) and resumed.result == straight.result
    for file in straight.path.glob("*-0*.params"):
        assert (run / file.name).read_bytes() == file.read_bytes()


def test_a_resumed_run_goes_on_counting_unusable_images(make, tmp_path, monkeypatch):
    order = epoch_order(24, make().seed, 0)
    with RecordWriter(tmp_path / "data", tiny.IDENTITIES) as writer:
        for position in range(24):
            usable = position not in (order[1], order[21])  # in steps 1 and 6
            writer.add(position // tiny.EACH, tiny.jpeg(position // tiny.EACH, position) if usable else b"no image")
    tiny.make_pack(tmp_path / "data" / "pairs.bin")
    recipe = make(data=tmp_path / "data", max_bad=0.05, steps=8)
    interrupt(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    with pytest.raises(InputError, match="with it 2 of 24 images are unusable, more than max_bad allows"):
        train(recipe)


def test_behind_a_damaged_state_a_run_ends_as_the_straight_one(make, teacher, tmp_path, monkeypatch):
    keys = {"teacher": teacher, "steps": 11, "save_every": 2, "verify_every": 4, "log_every": 1}
    (straight,) = train(make(**keys, out=tmp_path / "straight"))
    interrupt(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        train(make(**keys))
    params = tmp_path / "run" / "state" / "00000006.params"
    params.write_bytes(params.read_bytes()[:-100])
    (resumed,) = train(make(**keys))
    tiny.equal(tiny.state(resumed), tiny.state(straight))
    assert logged(resumed) == logged(straight)


def test_behind_a_damaged_state_the_best_checkpoint_is_one_that_is_there(make, tmp_path, monkeypatch):
    scores = iter([0.5, 0.75, 0.25, 0.125])
    monkeypatch.setattr("vargface.training.generation.mean_accuracy", lambda results: next(scores))
    keys = {"steps": 6, "verify_every": 2}
    interrupt(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        train(make(**keys))
    (tmp_path / "run" / "state" / "00000004.optimizer").unlink()  # in step 2's the best is 1, which 2 has taken out
    (folder,) = train(make(**keys))
    assert (folder.result["best"], folder.result["last"]) == (2, 3)
    load_checkpoint(folder.model(2))


@pytest.mark.parametrize("states", ["00000004", "*"])
def test_a_generation_after_a_damaged_state_starts_from_the_last_checkpoint(make, teacher, monkeypatch, states):
    keys = {"teacher": teacher, "generations": 2, "steps": 4, "verify_every": 2}
    interrupt(monkeypatch, 1, generation=2)
    with pytest.raises(KeyboardInterrupt):
        train(make(**keys))
    recipe = make(**keys)
    for file in (Path(recipe.out) / "state").glob(f"{states}.params"):
        file.unlink()
    starts = []
    whole = Generation._start
    monkeypatch.setattr(
        Generation, "_start", lambda self, weights, *more: starts.append(weights) or whole(self, weights, *more)
    )
    first, _ = train(recipe)
    (start,) = starts
    last = load_checkpoint(first.model(first.result["last"]))
    tiny.equal(tiny.numpy_of(start), tiny.numpy_of((last.args, last.auxs)))


def test_a_resumed_run_drops_the_same(with_dropout, tmp_path, monkeypatch):
    keys = {"steps": 6, "verify_every": 2}
    (straight,) = train(with_dropout(**keys, out=tmp_path / "straight"))
    interrupt(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(with_dropout(**keys))
    (resumed,) = train(with_dropout(**keys))
    tiny.equal(tiny.state(resumed), tiny.state(straight))


def test_dropout_draws_anew_each_step(with_dropout, tmp_path):
    one, other = (train(with_dropout(steps=3, seed=seed, out=tmp_path / str(seed)))[0] for seed in (0, 1))
    assert np.abs(tiny.state(one)["fc1_weight"] - tiny.state(other)["fc1_weight"]).max() > 1e-4


def test_resuming_in_a_later_generation_leaves_the_first_alone(make, teacher, tmp_path, monkeypatch):
    keys = {"teacher": teacher, "generations": 2, "steps": 5, "verify_every": 2}
    straight = train(make(**keys, out=tmp_path / "straight"))
    interrupt(monkeypatch, 3, generation=2)
    with pytest.raises(KeyboardInterrupt):
        train(make(**keys))
    before = (tmp_path / "run" / "student-0003.params").stat().st_mtime_ns
    resumed = train(make(**keys))
    assert (tmp_path / "run" / "student-0003.params").stat().st_mtime_ns == before
    for one, other in zip(resumed, straight):
        tiny.equal(tiny.state(one), tiny.state(other))


def test_an_interruption_before_the_first_state_starts_again(make, tmp_path, monkeypatch):
    (straight,) = train(make(out=tmp_path / "straight"))
    interrupt(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(make())
    tiny.equal(tiny.state(train(make())[0]), tiny.state(straight))


def test_a_run_killed_after_its_last_state_is_only_finished(make, monkeypatch):
    recipe = make()
    (folder,) = train(recipe)
    result, weights = folder.result, tiny.state(folder)
    (folder.path / "result.json").unlink()
    interrupt(monkeypatch, recipe.steps)
    (again,) = train(recipe)
    assert again.result == result
    tiny.equal(tiny.state(again), weights)


def test_a_finished_run_is_not_run_again(make, teacher, monkeypatch):
    recipe = make(teacher=teacher, generations=2)
    folders = train(recipe)
    before = {path: path.stat().st_mtime_ns for path in folders[0].path.rglob("*")}

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr("vargface.training.fit.Generation", never)
    again = train(recipe)
    assert [folder.path for folder in again] == [folder.path for folder in folders]
    assert [folder.result for folder in again] == [folder.result for folder in folders]
    assert {path: path.stat().st_mtime_ns for path in folders[0].path.rglob("*")} == before


def test_another_recipe_in_the_same_folder_is_refused(make):
    (folder,) = train(make())
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    with pytest.raises(InputError, match=r"run: holds a run of another recipe \(lr, m2 differ\) - choose another out"):
        train(make(lr=0.5, m2=0.2))
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before


def test_a_key_that_may_change_changes_from_the_saved_state_on(make, monkeypatch):
    keys = {"steps": 6, "verify_every": 2, "log_every": 1, "schedule": "step", "lr_steps": "100"}
    interrupt(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(make(**keys))
    with pytest.raises(InputError, match="allow it by may_change=lr$"):
        train(make(**keys, lr=0.001))
    (folder,) = train(make(**keys, lr=0.001, may_change="lr"))
    assert [float(row["lr"]) for row in tiny.rows(folder.path / "log.csv")] == [0.02, 0.02] + [0.001] * 4
    noted = json.loads((folder.path / "recipe.json").read_text())
    assert noted["lr"] == 0.001 and noted["changed"] == [{"lr": [0.02, 0.001]}]
    assert train(make(**keys, lr=0.001))[0].result == folder.result


@pytest.mark.parametrize("contexts", [("cpu", "cpu(0),cpu(1)"), ("cpu(0),cpu(1)", "cpu")])
def test_another_number_of_devices_goes_on_with_the_momentum(make, without_norm, monkeypatch, tmp_path, contexts):
    """In a network without batch norm the number of devices changes nothing but rounding."""
    keys = {"steps": 8, "save_every": 4, "lr": 0.05}
    (straight,) = train(make(**keys, context="cpu", out=tmp_path / "straight"))
    interrupt(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        train(make(**keys, context=contexts[0]))
    (folder,) = train(make(**keys, context=contexts[1]))
    one, other = tiny.state(folder), tiny.state(straight)
    for name in other:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-6, err_msg=name)
    momenta, due = ({k: v for k, v in pickle.loads(run.load_state()[2]).items()} for run in (folder, straight))
    assert len(momenta) == len(due)


def test_fewer_steps_than_were_gone_are_refused(make, monkeypatch):
    interrupt(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        train(make(steps=8, save_every=1, verify_every=8))
    with pytest.raises(InputError, match="steps = 4, and the run is at step 5 - give as many or more"):
        train(make(steps=4, save_every=1, verify_every=8, may_change="steps"))


@pytest.mark.parametrize("keys", [{"multiplier": 1.0}, {"optimizer": "adam"}])
def test_what_the_weights_are_never_changes(make, keys):
    train(make())
    with pytest.raises(InputError, match=r"differ\) - choose another out$"):
        train(make(**keys, may_change="lr,multiplier,optimizer"))


def test_another_data_set_is_refused_in_the_same_run_folder(make, tmp_path):
    train(make())
    larger = tiny.make_data(tmp_path / "larger", each=tiny.EACH + 1)
    with pytest.raises(InputError, match=r"data: 24 images of 4 .* then, 28 images of 4 .* now"):
        train(make(data=larger))


def test_other_faces_of_the_same_number_are_another_data_set(make, tmp_path):
    train(make())
    other = tiny.make_data(tmp_path / "other", first=20)
    with pytest.raises(InputError, match="data: 24 images of 4 identities"):
        train(make(data=other))


@pytest.mark.parametrize("key", ["teacher", "init"])
def test_a_teacher_or_start_is_known_by_its_weights_not_its_path(make, tmp_path, key):
    first, moved, other = (tmp_path / name for name in ("first", "moved", "other"))
    for folder, seed in ((first, 1), (moved, 1), (other, 2)):
        folder.mkdir()
        tiny.make_teacher(folder, seed)
    (folder,) = train(make(**{key: f"{first}/teacher,3"}))
    again = train(make(**{key: f"{moved}/teacher,3"}))
    assert again[0].result == folder.result
    for model in (f"{other}/teacher,3", ""):
        with pytest.raises(InputError, match=rf"{key}: sha256 \w+ then, (sha256 \w+|none) now"):
            train(make(**{key: model}))


@pytest.mark.parametrize("number, raised", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_saves_the_step_and_the_rerun_ends_as_the_straight_run(make, monkeypatch, tmp_path, number, raised):
    before = signal.getsignal(number)
    straight = train(make(steps=6, out=tmp_path / "straight"))[0]
    steps = iter(range(6))
    original = Generation._train_step

    def step_with_signal(self, means):
        if next(steps) == 2:
            os.kill(os.getpid(), number)
        original(self, means)

    monkeypatch.setattr(Generation, "_train_step", step_with_signal)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(make(steps=6, out=tmp_path / "stopped"))
    assert (stopped.type, signal.getsignal(number)) == (raised, before)
    assert (tmp_path / "stopped" / "state" / "00000003.json").exists()
    monkeypatch.setattr(Generation, "_train_step", original)
    tiny.equal(tiny.state(straight), tiny.state(train(make(steps=6, out=tmp_path / "stopped"))[0]))


def test_sigusr1_saves_and_training_goes_on(make, monkeypatch, tmp_path):
    saved = []
    original, save_state = Generation._train_step, RunFolder.save_state

    def step_with_signal(self, means):
        if self._step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        original(self, means)

    monkeypatch.setattr(Generation, "_train_step", step_with_signal)
    monkeypatch.setattr(
        RunFolder,
        "save_state",
        lambda self, state, *rest: saved.append(state["step"]) or save_state(self, state, *rest),
    )
    (folder,) = train(make(steps=6))
    assert saved == [3, 6] and folder.result["step"] == 6


def test_ctrl_c_in_the_last_step_ends_the_generation_and_begins_no_other(make, monkeypatch, tmp_path):
    original = Generation._verify_and_save

    def verify_with_signal(self, stop):
        original(self, stop)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Generation, "_verify_and_save", verify_with_signal)
    with pytest.raises(KeyboardInterrupt):
        train(make(generations=2))
    assert (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "gen-2").exists()


@pytest.mark.parametrize("verified", [1, 2], ids=["in the middle", "at the end"])
@pytest.mark.parametrize("number, raised", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_leaves_a_verification_and_the_rerun_verifies_again(
    make, monkeypatch, tmp_path, verified, number, raised
):
    keys = {"steps": 4, "verify_every": 2, "log_every": 1}
    monkeypatch.setattr("vargface.training.generation.VERIFY_BATCH", 4)
    (straight,) = train(make(**keys, out=tmp_path / "straight"))
    decoded, whole = [], Pack.decode

    def decode(self, start, stop):
        if stop - start == 4:
            decoded.append(start)
            if decoded.count(start) == verified and start == 4:
                os.kill(os.getpid(), number)
        return whole(self, start, stop)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as stopped:
        patch.setattr(Pack, "decode", decode)
        train(make(**keys))
    assert stopped.type is raised and decoded[-1] == 4  # of 20 images
    assert not (tmp_path / "run" / "result.json").exists()
    (resumed,) = train(make(**keys))
    tiny.equal(tiny.state(resumed), tiny.state(straight))
    assert logged(resumed) == logged(straight) and resumed.result == straight.result


def test_sigusr1_ends_no_command(make, monkeypatch, data, tmp_path):
    """At start-up, between generations and in the report there is nothing that is not saved."""
    heard = []

    def signalled(name, whole):
        def call(*rest):
            os.kill(os.getpid(), signal.SIGUSR1)
            heard.append(name)
            return whole(*rest)

        return call

    for name in ("check_space", "RunFolder"):
        monkeypatch.setattr(f"vargface.training.fit.{name}", signalled(name, getattr(fit, name)))
    monkeypatch.setattr("vargface.training.generation.write_report", signalled("report", lambda folder: None))
    keys = {**tiny.KEYS, "report": True, "data": data, "out": tmp_path / "run", "steps": 2, "generations": 2}
    assert main(["train", "base", *(f"{key}={value}" for key, value in keys.items())]) == 0
    assert heard == ["check_space", "RunFolder", "report", "RunFolder", "report"]


def test_a_resumed_run_watches_what_was_logged_before(make, teacher, monkeypatch):
    seen = []
    monkeypatch.setattr("vargface.training.generation.Watch", lambda recipe: lambda row: seen.append(row) or [])
    keys = {"teacher": teacher, "steps": 6, "log_every": 1, "save_every": 4}
    interrupt(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        train(make(**keys))
    before = seen[:4]
    del seen[:]
    train(make(**keys))
    assert [row["step"] for row in seen] == [1, 2, 3, 4, 5, 6]
    for row, due in zip(seen, before):
        assert row == pytest.approx(due, rel=1e-5)


def test_without_a_terminal_the_log_says_what_time_is_left(make, monkeypatch, caplog):
    monkeypatch.setattr("vargface.progress.EVERY", 0.0)
    with caplog.at_level("INFO"):
        train(make(steps=4, log_every=2))
    lines = [message for message in caplog.messages if " left" in message]
    assert re.fullmatch(r".*run: step 2 of 4, loss=[\d.]+, img/s=[\de.+]+, \d+\.\d s left", lines[0])
    assert lines[1].endswith(", 0.0 s left")


@pytest.mark.parametrize(
    ("numbers", "at_once"),
    [((signal.SIGTERM, signal.SIGTERM), None), ((signal.SIGTERM, signal.SIGINT), KeyboardInterrupt)],
)
def test_only_ctrl_c_leaves_a_step_that_is_to_be_the_last(numbers, at_once):
    """timeout(1) and others send SIGTERM twice in a row; what they end is to be saved all the same."""
    with interrupt_after_step() as stop:
        os.kill(os.getpid(), numbers[0])
        with pytest.raises(at_once) if at_once else contextlib.nullcontext():
            os.kill(os.getpid(), numbers[1])
        assert stop.asked is Terminated
