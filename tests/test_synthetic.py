"""Synthetic faces: same seed, same bytes; aligned; people differ more than their pictures do; the folder reads back."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from vargface import demo
from vargface.cli import main
from vargface.data.packs import read_pack
from vargface.data.records import FaceRecords
from vargface.data.synthetic import (
    Identity,
    View,
    contact_sheet,
    head,
    make_dataset,
    person,
    picture,
    progress_bar,
    render,
)
from vargface.errors import InputError

SMALL = {"identities": 3, "images_per_identity": 4, "pairs": 20, "pack_identities": 4, "seed": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("synthetic") / "set", workers=1, **SMALL)


def decode(jpeg: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)


def digests(folder) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_folder_is_an_insightface_folder(folder):
    packs, data = ["agedb_30.bin", "cfp_fp.bin", "lfw.bin"], ["images.idx", "property", "train.idx", "train.rec"]
    assert sorted(digests(folder)) == sorted(packs + data)
    records = FaceRecords(folder)
    assert (records.num_identities, records.image_size, len(records)) == (3, (112, 112), 12)
    identities, jpegs = zip(*(records.read(k) for k in range(12)))
    assert list(identities) == [0] * 4 + [1] * 4 + [2] * 4
    assert all(decode(jpeg).shape == (112, 112, 3) for jpeg in jpegs)
    assert jpegs[6] == picture(5, 1, 2), "an image depends on its seed, person and number only"


@pytest.mark.parametrize("name", ["lfw", "cfp_fp", "agedb_30"])
def test_every_tenth_of_a_pack_has_both_kinds_of_pair(folder, name):
    pack = read_pack(folder / f"{name}.bin")
    assert len(pack.images) == 40 and pack.issame.sum() == 10
    assert all(0 < fold.sum() < len(fold) for fold in np.array_split(pack.issame, 10))
    assert len({bytes(image) for image in pack.images}) == 40


def test_nobody_in_the_packs_is_trained_on(monkeypatch, tmp_path):
    from vargface.data.synthetic import dataset

    asked = []

    def noted(seed, identity, image, kind="any"):
        asked.append((identity, image, kind))
        return cv2.imencode(".jpg", np.zeros((112, 112, 3), np.uint8))[1].tobytes()

    monkeypatch.setattr(dataset, "picture", noted)
    make_dataset(tmp_path / "set", workers=1, **SMALL)
    assert {identity for identity, _, kind in asked if kind == "any"} == {0, 1, 2}
    assert {identity for identity, _, kind in asked if kind != "any"} <= {3, 4, 5, 6}
    assert len(set(asked)) == len(asked) == 12 + 3 * 40


def test_same_bytes_for_any_number_of_workers(folder, tmp_path):
    other = make_dataset(tmp_path / "two", workers=2, **SMALL)
    assert digests(other) == digests(folder)


def test_another_seed_gives_other_people():
    assert person(1, 0).jaw_width != person(2, 0).jaw_width
    assert picture(1, 0, 0) != picture(2, 0, 0)


def test_progress_ends_at_the_total(tmp_path):
    calls = []
    make_dataset(tmp_path / "set", workers=1, progress=lambda done, total: calls.append((done, total)), **SMALL)
    assert calls[-1] == (12 + 120, 12 + 120)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_an_interrupted_folder_is_not_there(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path / "set", workers=1, progress=stop, **SMALL)
    assert list(tmp_path.iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_is_for_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar() as progress:
        progress(30, 120)
        progress(120, 120)
    assert "100%" in sys.stderr.getvalue() and "120/120" in sys.stderr.getvalue()


def test_synth_says_nothing_elsewhere(tmp_path, capfd):
    assert main(["synth", str(tmp_path / "set"), "--identities", "2", "--images", "2", "--pairs", "20"]) == 0
    assert capfd.readouterr() == ("", "")
    assert len(FaceRecords(tmp_path / "set")) == 4


def test_the_demo_draws_with_a_bar(monkeypatch, tmp_path):
    def draw(folder, *, progress, **counts):
        progress(7, 9)
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(demo, "make_dataset", draw)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo([f"out={tmp_path}"])
    assert "7/9" in sys.stderr.getvalue()


@pytest.mark.parametrize(("seen", "later"), [("draw:", 0.2), ("%|", 0)], ids=["while workers start", "in the middle"])
@pytest.mark.parametrize(
    ("tell", "number"),
    [(os.killpg, signal.SIGINT), (os.killpg, signal.SIGTERM), (os.kill, signal.SIGTERM)],
    ids=["Ctrl-C", "SIGTERM to all", "SIGTERM to the parent"],
)
def test_a_stop_on_a_terminal_leaves_nothing(tmp_path, seen, later, tell, number):
    """The terminal tells every process of the group: none of them complains, and the parent leaves no folder."""
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # no bar on one without columns
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            # who runs the tests in the background of a shell has Ctrl-C ignored, and hands that on
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
            "import sys; from vargface.cli import main; sys.exit(main())",
            "synth",
            tmp_path / "set",
        ],
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    said = ""
    with open(ours, "rb", buffering=0) as screen, contextlib.suppress(OSError):  # so Linux says that nobody is left
        while seen not in said:
            said += screen.read(4096).decode(errors="replace")
        time.sleep(later)
        tell(process.pid, number)
        while more := screen.read(4096):
            said += more.decode(errors="replace")
    assert process.wait() == 128 + number, said
    assert "Traceback" not in said and "leaked" not in said and said.endswith("vargface: stopped\r\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"identities": 0}, "identities=0"),
        ({"images_per_identity": 0}, "images_per_identity=0"),
        ({"pairs": 10}, "pairs=10"),
        ({"pairs": 25}, "give 30"),
        ({"pack_identities": 1}, "pack_identities=1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_counts_out_of_range_are_refused(tmp_path, wrong, named):
    with pytest.raises(InputError, match=named):
        make_dataset(tmp_path / "set", **{**SMALL, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_and_kept(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not empty"):
        make_dataset(tmp_path / "set", **SMALL)
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "set").mkdir()
    assert len(FaceRecords(make_dataset(tmp_path / "set", workers=1, **SMALL))) == 12


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("frontal", 0, 18), ("profile", 30, 50), ("young", 0, 18), ("old", 0, 18)]
)
def test_a_view_is_of_its_kind(kind, low, high):
    views = [View.draw(np.random.default_rng(k), kind) for k in range(50)]
    assert all(low <= abs(view.yaw) <= high for view in views)
    assert {view.yaw > 0 for view in views} == {True, False}
    if kind in ("young", "old"):
        assert all((view.age <= 28) if kind == "young" else (view.age >= 58) for view in views)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="sideways"):
        View.draw(np.random.default_rng(0), "sideways")


@pytest.mark.parametrize("yaw", [0.0, 20.0, -40.0, 60.0])
def test_landmarks_lie_where_insightface_puts_them(yaw):
    """No similarity brings the five points of the turned head closer to the template than where they are."""
    identity, view = person(0, 3), replace(View.plain(), yaw=yaw)
    layout = head.Layout(identity, view)
    points = head.surface(identity, view, layout, np.zeros((head.ROWS, head.COLUMNS), np.float32))
    landmarks = head.landmarks(identity, view, layout, points)
    flat = head.Pose(view, landmarks)(landmarks.T)[0][:, :2]
    system = np.array([row for x, y in flat for row in ([x, -y, 1, 0], [y, x, 0, 1])])
    best = np.linalg.lstsq(system, head.TEMPLATE.ravel(), rcond=None)[0]
    np.testing.assert_allclose(best, [1, 0, 0, 0], atol=2e-3)
    if yaw == 0:
        assert np.abs(flat - head.TEMPLATE).max() < 7


def test_eyes_are_dark_and_where_they_should_be():
    """A pale passport face is darker at the eyes than on the cheeks, at the template's places."""
    pale = replace(person(0, 1), skin=np.array([0.95, 0.8, 0.72], np.float32))
    grey = render(pale, View.plain(), np.random.default_rng(0)).mean(axis=-1)
    for x, y in np.round(head.TEMPLATE[:2]).astype(int):
        assert grey[y - 3 : y + 4, x - 4 : x + 5].min() < 0.5 * grey[y + 14 : y + 20, x - 3 : x + 4].mean()


def test_turning_hides_the_far_side():
    """A mole on one cheek shows when the head turns one way and is hidden when it turns the other."""
    plain = replace(person(0, 1), moles=np.zeros((0, 4)), freckle_places=np.zeros((0, 3)), scar=None)
    marked = replace(plain, moles=np.array([[34.0, 20.0, 2.5, 0.9]]))

    def difference(yaw):
        view = replace(View.plain(), yaw=yaw)
        one, other = (render(who, view, np.random.default_rng(0)).astype(int) for who in (plain, marked))
        return np.abs(one - other).max()

    assert difference(-35.0) > 40
    assert difference(60.0) < 10


@pytest.mark.parametrize(
    "change",
    [
        {"age": 75.0},
        {"smile": 1.0},
        {"mouth_open": 1.0},
        {"glasses": "clear"},
        {"hat": "cap"},
        {"occluder": "mask"},
        {"beard": 1.0},
    ],
)
def test_each_nuisance_shows(change):
    who = replace(person(0, 2), beard_grows=1.0)
    plain, changed = (
        render(who, view, np.random.default_rng(0)).astype(int)
        for view in (View.plain(), replace(View.plain(), **change))
    )
    assert np.abs(plain - changed).max() > 30


def test_every_parameter_of_a_person_varies():
    people = [Identity.draw(np.random.default_rng(k)) for k in range(40)]
    drawn = [f.name for f in fields(Identity) if f.metadata]
    assert len(drawn) >= 50
    assert all(len({getattr(one, name) for one in people}) > 1 for name in drawn)


def test_accidents_outweigh_people_in_raw_pixels():
    """Nearest neighbours in pixels say next to nothing of who is in a picture, so a data set has something to teach."""
    images = np.array(
        [decode(picture(0, who, k, "frontal"))[::8, ::8].ravel() for who in range(20) for k in range(4)], np.float32
    )
    who = np.repeat(np.arange(20), 4)
    distance = ((images[:, None] - images) ** 2).sum(axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (who[distance.argmin(axis=1)] == who).mean() < 0.5


def test_contact_sheet_has_a_row_per_person():
    sheet = contact_sheet(2, seed=3)
    assert sheet.shape == (2 * 112, 9 * 112, 3) and sheet.dtype == np.uint8
    assert np.array_equal(sheet[112:], contact_sheet(1, seed=3, first=1))


def test_the_baselines_refuse_what_they_cannot_learn_from(folder, tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "synthetic_baselines.py"
    for data, why in ((tmp_path / "none", "no such folder"), (folder, "12 pictures of 3 people, too few")):
        done = subprocess.run([sys.executable, script, data], capture_output=True, text=True)
        assert done.returncode == 2 and done.stdout == ""
        assert why in done.stderr and done.stderr.count("\n") == 1


def test_the_command_draws_a_sheet_alone(tmp_path, capsys):
    assert main(["synth", "--sheet", str(tmp_path / "sheet.png"), "--seed", "3"]) == 0
    drawn = cv2.cvtColor(cv2.imread(str(tmp_path / "sheet.png")), cv2.COLOR_BGR2RGB)
    assert np.array_equal(drawn, contact_sheet(seed=3))
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]
    assert main(["synth"]) == 2
    assert capsys.readouterr().err == "vargface: error: nothing to draw - give the folder to make, or --sheet FILE\n"
