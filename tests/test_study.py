"""Studies: which trainings there are, that they run, stop and go on, and what their figures come to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
from easydict import EasyDict

from vargface.checkpoint import load_checkpoint
from vargface.cli import main
from vargface.data.packs import read_pack
from vargface.errors import InputError
from vargface.eval.verification import verify
from vargface.inference import FrozenNetwork
from vargface.interrupt import Terminated
from vargface.recipe import load_recipe
from vargface.study import runner
from vargface.study.cells import Job, load_study
from vargface.study.picture import draw_study
from vargface.study.summary import Figures, HeldOut, collect, figures_of, paired, tables

STUDY = """
from easydict import EasyDict

recipe = EasyDict(
    network="resnet", num_layers=18, multiplier=0.125, embedding_size=16, batch_size=4, steps=1, lr=0.01,
    schedule="cosine", log_every=1, report=False, context="cpu",
)
cells = {
    "taught": {"generations": 2},
    "Un-taught": {"teacher": "", "teacher_store": ""},
    "weak": {"teacher": "{other}", "teacher_store": ""},
}
main = ["Un-taught"]
comparisons = [("taught", "Un-taught", "teaching"), ("taught, generation 2", "taught", "again")]
"""

# ten pairs of one person, of which a test sets what it needs
PACK = verify(np.ones((20, 2)), [True] * 10)


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.py").write_text(STUDY)
    return tmp_path / "study.py"


def test_main_rows_come_first_with_all_their_seeds(study, tmp_path):
    jobs = load_study(study).jobs(tmp_path, ["data=d", "teacher=t"], seeds=2, other="o")
    places = [(job.cell, job.seed) for job in jobs]
    assert places == [("Un-taught", 0), ("Un-taught", 1), *((c, s) for s in (0, 1) for c in ("taught", "weak"))]
    assert [job.generations for job in jobs if job.seed == 0] == [1, 2, 1]
    folders = {job.folder for job in jobs}
    assert len(folders) == 6
    assert tmp_path / "cells" / "un-taught" / "seed-1" in folders


def test_a_cells_keys_win_over_the_command_lines(study, tmp_path):
    jobs = load_study(study).jobs(tmp_path, ["data=d", "teacher=t"], seeds=1, other="o")
    taught, untaught, weak = (
        next(job.recipe for job in jobs if job.cell == cell) for cell in ("taught", "Un-taught", "weak")
    )
    assert all(job.recipe == load_recipe(study, job.keys) for job in jobs)  # what `vargface train` reads
    assert (taught.teacher, taught.teacher_store) == ("t", str(tmp_path / "store"))
    assert (untaught.teacher, untaught.teacher_store) == ("", "")
    assert (weak.teacher, weak.teacher_store) == ("o", "")
    assert taught.seed == 0
    assert taught.verify_every > taught.steps


@pytest.mark.parametrize("key", ["seed=9", "verify_every=1", "generations=3", "teacher_store=s", "may_change=lr"])
def test_what_the_study_sets_the_command_line_may_not(study, tmp_path, key):
    """Rows would not be what they are called."""
    with pytest.raises(InputError, match=f"^{key.partition('=')[0]}: set by the study"):
        load_study(study).jobs(tmp_path, ["data=d", key], 1, "")


def test_without_another_teacher_its_cells_are_left_out(study, tmp_path):
    assert {job.cell for job in load_study(study).jobs(tmp_path, [], 1, "")} == {"taught", "Un-taught"}


@pytest.mark.parametrize("name", ["real_mini", "synthetic"])
def test_the_cells_of_the_projects_studies_are_what_they_are_called(root, name):
    found = load_study(root / "recipes" / "study" / f"{name}.py")
    jobs = found.jobs(Path("out"), ["data=d", "teacher=t"], 3, "other")
    assert len({job.folder for job in jobs}) == len(jobs) == 3 * len(found.cells)
    assert not load_recipe(found.path).teacher
    of_cell = {job.cell: job.recipe for job in jobs if job.seed == 1}
    plain = of_cell["Eq. 5, alpha 7"]
    assert (plain.distillation, plain.alpha, plain.teacher, plain.generations) == ("angular", 7, "t", 3)
    assert (plain.variant or "authors", plain.augment, plain.seed) == ("authors", 0, 1)
    # generations apart, by what does a cell differ from that one?
    differing = {
        cell: {key: recipe[key] for key in recipe if key not in ("out", "generations") and recipe[key] != plain[key]}
        for cell, recipe in of_cell.items()
    }
    if name == "real_mini":
        assert differing.pop("ArcFace from the middle on") == {"margin_ramp": [200, 400]}
    untaught = {"teacher": "", "teacher_store": ""}
    assert differing == {
        "Eq. 5, alpha 7": {},
        "no distillation": untaught,
        "Eq. 5, alpha 1": {"alpha": 1},
        "Eq. 5, alpha 30": {"alpha": 30},
        "Eq. 5, alpha 100": {"alpha": 100},
        "Eq. 4": {"distillation": "shrink"},
        "cosine": {"distillation": "cosine"},
        "twice the steps": {"steps": 2 * plain.steps},
        "three times the steps": {"steps": 3 * plain.steps},
        "variant insightface": {"variant": "insightface"},
        "asked in the loop": {"teacher_store": ""},
        "another teacher": {"teacher": "other", "teacher_store": ""},
    }
    assert {cell: recipe.generations for cell, recipe in of_cell.items() if recipe.generations > 1} == {
        "Eq. 5, alpha 7": 3,
        "no distillation": 3,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("cells =", "cellar ="), "has no `cells"),
        (('main = ["Un', 'main = ["Wrong'), "'Wrong-taught'"),
        (('("taught, generation 2"', '("taught, generation 3"'), "'taught, generation 3'"),
        (('{"generations"', '{"generation"'), "unknown key 'generation'"),
        (('{"generations": 2}', "2"), "has no `cells"),
        (('["Un-taught"]', '"taught"'), "main = 'taught': must be a list"),
        (('"teaching")', '"teaching", 1)'), "comparisons: must be a list"),
        (('"weak":', '"un taught":'), "'Un-taught' and 'un taught' would have one folder"),
    ],
)
def test_a_study_that_names_what_there_is_not_is_refused(study, change, message):
    study.write_text(STUDY.replace(*change))
    with pytest.raises(InputError, match=message):
        load_study(study)


@pytest.mark.parametrize("missing", ["data", "teacher", "out"])
def test_what_must_be_given_is_asked_for(study, tmp_path, capsys, missing):
    keys = {"data": "d", "teacher": "t", "out": str(tmp_path / "out")}
    del keys[missing]
    assert main(["study", str(study), *(f"{key}={value}" for key, value in keys.items())]) == 2
    assert capsys.readouterr().err.startswith(f"vargface: error: {missing} is not given")
    assert not (tmp_path / "out").exists()


def test_a_study_from_store_to_table(study, data, teacher, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["study", str(study), f"data={data}", f"teacher={teacher}", f"out={out}", "--seeds", "1"]
    assert main([*command, "--summary"]) == 2
    assert "nothing of the study is finished" in capsys.readouterr().err
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed == (out / "study.md").read_text()
    assert (out / "study.png").read_bytes().startswith(b"\x89PNG")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line]
    assert rows[0][2:] == ["pairs %", "TAR pairs %", "cosine", "img/s"]
    assert [row[0] for row in rows[2:5]] == ["taught", "taught, generation 2", "Un-taught"]
    accuracy = json.loads((out / "cells/taught/seed-0/gen-2/result.json").read_text())["packs"]["pairs"]["accuracy"]
    assert rows[3][1:3] == ["0", f"{100 * accuracy:.2f}"]
    assert [row[4] != "-" for row in rows[2:5]] == [True, True, False]  # an undistilled one is held against nobody
    before = (out / "cells/taught/seed-0/result.json").stat().st_mtime_ns
    assert main([*command, "--summary"]) == 0
    assert main(command) == 0  # nothing left to do
    assert capsys.readouterr().out == printed * 2
    assert (out / "cells/taught/seed-0/result.json").stat().st_mtime_ns == before
    check_that_foreign_runs_are_refused(command, study, out, capsys)


def check_that_foreign_runs_are_refused(command, study, out, capsys) -> None:
    """Of a study that is finished: what is not of it is in no table."""
    cell = out / "cells/taught/seed-0"

    def refused(*arguments) -> str:
        assert main([*command, *arguments]) == 2
        return capsys.readouterr().err

    for arguments in (["--summary"], []):
        found = refused("batch_size=2", "lr=0.5", *arguments)
        assert f"{out}/cells/un-taught/seed-0: holds a run of another recipe (batch_size, lr differ)" in found
    assert "nosuch" in refused("teacher=nosuch,1", "--summary")
    assert "weak: " in refused("--other", "nosuch,1")

    kept = json.loads((cell / "held-out.json").read_text())
    for foreign in ({"teacher": "somebody"}, {"images": 7}, {"model": "another"}, {"packs": ["lfw"]}):
        (cell / "held-out.json").write_text(json.dumps({**kept, "cosine": 2, **foreign}))
        assert main([*command, "--summary"]) == 0
        assert json.loads((cell / "held-out.json").read_text()) == kept
    (cell / "held-out.json").write_text(json.dumps({**kept, "cosine": 0.1234}))
    assert main([*command, "--summary"]) == 0
    assert "0.123" in capsys.readouterr().out  # worked out once
    for file, text, message in (
        ("recipe.json", None, "and no recipe.json - put that back"),
        ("result.json", "{}", "result.json: not what training wrote"),
        ("result.json", json.dumps({**json.loads((cell / "result.json").read_text()), "packs": {}}), "verified on"),
        ("held-out.json", "no", "held-out.json: cannot be read"),
    ):
        before = (cell / file).read_bytes()
        (cell / file).unlink() if text is None else (cell / file).write_text(text)
        assert message in refused("--summary")
        (cell / file).write_bytes(before)
    study.write_text(STUDY.replace('{"generations": 2}', '{"generations": 2, "m2": 0.4}'))
    assert f"{cell}: holds a run of another recipe (m2 differ)" in refused("--summary")


def test_a_study_on_data_without_packs_is_refused_before_anything_is_written(study, data, teacher, tmp_path, capsys):
    bare = shutil.copytree(data, tmp_path / "bare", ignore=shutil.ignore_patterns("*.bin"))
    assert main(["study", str(study), f"data={bare}", f"teacher={teacher}", f"out={tmp_path / 'out'}"]) == 2
    assert "has no verification pack" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_cell_that_cannot_be_trained_is_refused_before_anything_is_written(study, data, teacher, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["study", str(study), f"data={data}", f"teacher={teacher}", f"out={out}"]
    assert main([*command, "--other", str(tmp_path / "nosuch,1")]) == 2
    assert capsys.readouterr().err.startswith("vargface: error: weak: ")
    assert not out.exists()


def test_a_study_whose_trainings_all_fail_says_so(study, data, teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "run_jobs", lambda recipe, jobs, at_once: [Path("a.log")])
    monkeypatch.setattr(runner, "make_store", lambda *_: None)
    assert main(["study", str(study), f"data={data}", f"teacher={teacher}", f"out={tmp_path / 'out'}"]) == 2
    assert "1 of 6 trainings failed - see a.log" in capsys.readouterr().err


def test_the_held_out_cosine_is_that_of_the_unit_embeddings(data, teacher, tmp_path):
    held_out = HeldOut(str(data), [])
    assert held_out.cosine(teacher, teacher) == pytest.approx(1, abs=1e-6)
    other = tiny.make_teacher(tmp_path, seed=8)
    images = read_pack(data / "pairs.bin").decode(0, 400)
    first, second = (FrozenNetwork(load_checkpoint(model))(images).astype(float) for model in (teacher, other))
    cosines = (first * second).sum(1) / np.sqrt((first**2).sum(1) * (second**2).sum(1))
    assert held_out.cosine(other, teacher) == pytest.approx(cosines.mean(), abs=1e-6)


def test_paired_differences_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, and the 97.5 % point of Student's t for 2 degrees is 4.3027."""
    mean, half = paired([3, 5, 7], [2, 3, 4])
    assert mean == 2
    assert half == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)
    assert np.isnan(paired([3], [2])[1])
    assert paired([3], [2])[0] == 1


# --- the runner, with a program in `vargface train`'s place

PROGRAM = """
import os, pathlib, signal, sys, time
keys = dict(word.split("=", 1) for word in sys.argv[3:])
out = pathlib.Path(keys["out"])
if keys["lr"] == "bad":
    print("vargface: error: no", flush=True)
    sys.exit(2)
def stop(*_):
    (out.parent / "stopped").write_text("")
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
out.mkdir(parents=True, exist_ok=True)
(out / "begun").write_text(os.environ.get("OMP_NUM_THREADS", ""))
time.sleep(float(keys["lr"]))
(out / "result.json").write_text("{}")
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setattr(runner, "PROGRAM", (sys.executable, str(tmp_path / "program.py")))
    monkeypatch.setattr(runner, "PAUSE", 0.02)

    def job(name: str, lr: str) -> Job:
        folder = tmp_path / name / "seed-0"
        return Job(name, 0, folder, (f"lr={lr}", f"out={folder}"), EasyDict(generations=1))

    return job


def test_a_training_that_fails_is_named_and_the_others_run(program, caplog):
    bad, good = program("a", "bad"), program("b", "0")
    failed = runner.run_jobs("recipe", [bad, good], 1)
    assert failed == [bad.folder.with_name("seed-0.log")]
    assert "vargface: error: no" in caplog.text
    assert (good.folder / "result.json").exists()


@pytest.mark.parametrize(("asked", "at_once", "given"), [("", 2, "1"), ("", 1, "7"), ("3", 2, "3")])
def test_trainings_side_by_side_have_a_thread_each(program, monkeypatch, asked, at_once, given):
    """Whatever MXNet's door has set in this process for itself; a value of the user's wins."""
    monkeypatch.setattr(runner, "THREADS", asked)
    monkeypatch.setenv("OMP_NUM_THREADS", asked or "7")
    job = program("a", "0")
    runner.run_jobs("recipe", [job], at_once)
    assert (job.folder / "begun").read_text() == given


def test_what_is_finished_is_not_run_again(program):
    job = program("a", "bad")
    job.folder.mkdir(parents=True)
    (job.folder / "result.json").write_text("{}")
    assert runner.run_jobs("recipe", [job], 1) == []


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGHUP, Terminated)])
def test_a_signal_stops_every_training_and_waits_for_it(program, number, error):
    """Ctrl-C, and the end of the terminal, of which the trainings, in sessions of their own, do not hear."""
    jobs = [program("a", "60"), program("b", "60"), program("c", "0")]

    def interrupt(*_):
        if all((job.folder / "begun").exists() for job in jobs[:2]):
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.kill(os.getpid(), number)

    hung_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    started = time.monotonic()
    try:
        with pytest.raises(error):
            runner.run_jobs("recipe", jobs, 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGHUP, hung_up)
    assert time.monotonic() - started < 30
    assert all((job.folder.parent / "stopped").exists() for job in jobs[:2])
    assert not (jobs[2].folder / "begun").exists()


def test_under_nohup_the_end_of_the_terminal_stops_nothing(program):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        job = program("a", "0.3")
        hang_up = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGHUP))
        hang_up.start()
        assert runner.run_jobs("recipe", [job], 1) == []
        hang_up.join()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_store_that_cannot_be_written_ends_the_study(tmp_path, monkeypatch):
    for code, error in ((2, InputError), (130, KeyboardInterrupt)):
        monkeypatch.setattr(
            runner.subprocess, "run", lambda command, check, code=code: subprocess.CompletedProcess(command, code)
        )
        with pytest.raises(error):
            runner.make_store("t", "d", tmp_path / "store")


@pytest.mark.parametrize("told", [True, False])
def test_means_and_deviations_are_those_of_the_seeds(study, tmp_path, monkeypatch, told):
    """Accuracies 0.5, 0.7 and 0.9 of the taught, 0.4, 0.5, 0.9 of the others: 70 ± 20, 60 ± 26.46, 10 ± 24.84."""
    pack = replace(PACK, tar=0.25, tars={"1e-3": 0.25} if told else {"1e-1": 0.5})
    accuracies = {"taught": (0.5, 0.7, 0.9), "Un-taught": (0.4, 0.5, 0.9)}
    found = load_study(study)
    jobs = found.jobs(tmp_path, [], 3, "")

    def figures(job, generation, held_out):
        tar = 0.25 + 0.125 * (job.cell == "taught" and job.seed == 1)
        packs = {"p": replace(pack, accuracy=accuracies[job.cell][job.seed], tar=tar)}
        return None if generation > 1 else Figures(packs, 0.5, 9.0)

    monkeypatch.setattr("vargface.study.summary.figures_of", figures)
    table, *notes, differences = tables(found, collect(found, jobs, None)).split("\n\n")
    assert [line[:23] for line in notes] == [*([] if told else [r"\* fewer than 1 / FAR p"]), "± in the table above: s"]
    mark = "" if told else r"\*"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert rows == [
        ["taught", "0, 1, 2", "70.00 ± 20.00", f"29.2 ± 7.2{mark}", "0.500 ± 0.000", "9"],
        ["Un-taught", "0, 1, 2", "60.00 ± 26.46", f"25.0 ± 0.0{mark}", "0.500 ± 0.000", "9"],
    ]
    (row,) = ([cell.strip() for cell in line.split("|")[1:-1]] for line in differences.splitlines()[2:])
    # TAR: 0, 12.5 and 0 points, a deviation of 7.217
    shown = ["+10.00 ± 24.84", "+10.00 ± 24.84", "+4.17 ± 17.93"]
    assert row == ["teaching", "taught", "Un-taught", "0, 1, 2", *shown]


def test_a_comparison_is_of_the_seeds_that_both_rows_have(study):
    """Of seeds 1 and 2: 20 and 0 points, a mean of 10 ± 12.706 x 14.142 / sqrt(2); seed 0, of one alone, is not in."""
    found = {
        "taught": {
            seed: Figures({"p": replace(PACK, accuracy=of)}, 0.5, 9.0) for seed, of in enumerate((1.0, 0.7, 0.9))
        },
        "Un-taught": {seed: Figures({"p": replace(PACK, accuracy=of)}, 0.5, 9.0) for seed, of in ((1, 0.5), (2, 0.9))},
    }
    last = tables(load_study(study), found).splitlines()[-1]
    assert [cell.strip() for cell in last.split("|")[4:6]] == ["1, 2", "+10.00 ± 127.06"]


def test_the_picture_has_a_row_a_cell_and_a_dot_a_seed():
    def figures(accuracy):
        packs = {"a": replace(PACK, accuracy=accuracy, tar=0.1), "b": replace(PACK, accuracy=accuracy - 0.2, tar=0.3)}
        return Figures(packs, float("nan"), 9.0)

    def dots(found):
        picture = cv2.imdecode(np.frombuffer(draw_study(found), np.uint8), cv2.IMREAD_COLOR)
        blue = (picture[..., 0].astype(int) - picture[..., 2]) > 60
        return picture.shape[0], cv2.connectedComponents(blue.astype(np.uint8))[0] - 1

    one_row, two = dots({"taught": {0: figures(0.6), 1: figures(0.9)}})
    assert two == 2 + 1  # accuracies apart, TARs on one place, no cosine
    two_rows, more = dots({"taught": {0: figures(0.6), 1: figures(0.9)}, "not": {0: figures(0.7)}})
    assert two_rows > one_row and more == 3 + 2


def test_a_cell_that_is_not_finished_has_no_figures(tmp_path):
    assert figures_of(Job("a", 0, tmp_path, (), EasyDict()), 1, None) is None
