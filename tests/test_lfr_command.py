"""`vargface lfr ...` end to end: check, submit, score, merge, identify, and one line for bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
from test_lfr_scoring import all_scores, faces, files, naive

from vargface import workers
from vargface.checkpoint import load_checkpoint, load_params, save_checkpoint, write_params
from vargface.cli import main
from vargface.eval.lfr import identification, pairs, plan
from vargface.eval.lfr.features import normalised, open_features, open_test_set
from vargface.eval.lfr.submission import picture_of
from vargface.eval.lfr.tracks import Network, compliance
from vargface.files import locked_file
from vargface.inference import FrozenNetwork
from vargface.runtime import mx


@pytest.fixture(autouse=True)
def forget():
    open_test_set.cache_clear()
    yield
    open_test_set.cache_clear()


def refused(arguments, capsys) -> str:
    assert main([str(word) for word in arguments]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith("vargface: error: ")
    return error[len("vargface: error: ") : -1]


# --- check


AUTHORS = Network(1_022_864_152, 21_015_428, 20_957_000, ["float32"], 512)


def test_the_winner_passes_as_it_did_and_not_to_the_letter():
    verdicts = {(c.track, c.reading): c for c in compliance(AUTHORS)}
    assert len(verdicts) == 8
    for track in ("deepglint-light", "iqiyi-light"):
        letter, winners = verdicts[track, "to the letter"], verdicts[track, "as the winner's"]
        assert (letter.flops, letter.size, letter.float32, letter.dimensions, letter.passed) == (
            False,
            False,
            True,
            True,
            False,
        )
        assert winners.passed
    assert all(verdict.passed for (track, _), verdict in verdicts.items() if track.endswith("large"))


@pytest.mark.parametrize(
    ("change", "field", "kept"),
    [
        ({"flops": 10**9}, "flops", True),
        ({"flops": 10**9 + 1}, "flops", False),
        ({"file_bytes": 20 * 10**6 - 1}, "size", True),
        ({"file_bytes": 20 * 10**6}, "size", False),
        ({"dtypes": ["float16", "float32"]}, "float32", False),
        ({"dimensions": 512}, "dimensions", True),
        ({"dimensions": 513}, "dimensions", False),
    ],
)
def test_limits_to_the_letter(change, field, kept):
    light = Network(**{**vars(Network(1, 1, 1, ["float32"], 128)), **change})
    found = next(c for c in compliance(light) if c.track == "deepglint-light" and c.reading == "to the letter")
    assert getattr(found, field) is kept
    assert found.passed is kept


@pytest.mark.parametrize(
    ("change", "kept"),
    [({"flops": 1_024_000_000}, True), ({"flops": 1_024_000_001}, False)]
    + [
        ({"payload_bytes": 20 * 2**20 - 1}, True),
        ({"payload_bytes": 20 * 2**20}, False),
        ({"file_bytes": 10**9}, True),
    ],
)
def test_limits_as_the_winner_read_them(change, kept):
    network = Network(**{**vars(AUTHORS), **change})
    found = {(c.track, c.reading): c for c in compliance(network)}
    assert found["deepglint-light", "as the winner's"].passed is kept
    assert found["deepglint-large", "as the winner's"].passed


def test_check_prints_what_was_measured_and_the_verdicts(teacher, capsys):
    assert main(["lfr", "check", "--model", teacher, "--layers"]) == 0
    out = capsys.readouterr().out
    prefix = teacher.split(",")[0]
    size = Path(f"{prefix}-0003.params").stat().st_size
    assert f"{2 * 3 * 9 * 8 * 9 + 2 * 72 * 16:,}" in out
    assert f"{size:,}" in out
    assert out.count("PASS") == 8
    assert "conv1" in out
    assert "1 G = 1024 M" in out and "20 MB = 20,000,000 bytes" in out


def size_line(out: str, name: str) -> int:
    (line,) = (line for line in out.splitlines() if line.startswith(name))
    return int(line.split()[1].replace(",", ""))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_payload_is_what_the_values_take(teacher, tmp_path, capsys, dtype):
    checkpoint = load_checkpoint(teacher)
    params = ({name: value.astype(dtype) for name, value in part.items()} for part in checkpoint[1:3])
    status = main(["lfr", "check", "--model", save_checkpoint(tmp_path / "model", 0, checkpoint.symbol, *params)])
    out = capsys.readouterr().out
    values = sum(value.size for part in checkpoint[1:3] for value in part.values())
    assert size_line(out, "payload") == values * np.dtype(dtype).itemsize
    assert 0 < size_line(out, "file") - size_line(out, "payload") < 2000
    assert f"dtype     {dtype} " in out
    assert "unused" not in out
    passed = 8 if dtype == "float32" else 0
    assert (out.count("PASS"), status) == (passed, 0 if passed else 1)


def test_weights_that_the_network_does_not_use_count_and_are_named(teacher, tmp_path, capsys):
    """The class centres of a checkpoint in training: it is no entry as it stands."""
    checkpoint = load_checkpoint(teacher)
    model = save_checkpoint(tmp_path / "model", 0, checkpoint.symbol, checkpoint.args, checkpoint.auxs)
    assert main(["lfr", "check", "--model", model]) == 0
    alone = size_line(capsys.readouterr().out, "payload")
    path = tmp_path / "model-0000.params"
    saved = load_params(path)
    saved["arg:fc1_weight"] = saved.pop("arg:pre_fc1_weight")  # as old checkpoints have it: used all the same
    saved["arg:fc7_weight"], saved["aux:step"] = mx.nd.zeros((400_000, 16)), mx.nd.zeros((1,), dtype="int64")
    write_params(path, saved)
    assert main(["lfr", "check", "--model", model]) == 0
    out = capsys.readouterr().out
    assert size_line(out, "payload") == alone + 25_600_000 + 8
    assert size_line(out, "unused") == 25_600_008
    assert "by what is not the network: arg:fc7_weight, aux:step\n" in out
    assert out.count("PASS") == 4  # the large tracks


@pytest.mark.real
def test_check_of_an_insightface_checkpoint(real_faces, capsys):
    assert main(["lfr", "check", "--model", f"{real_faces}/insightface-y1/model,0"]) == 0
    out = capsys.readouterr().out
    assert out.count("PASS") == 8
    assert "embedding 128-d" in out


# --- submit


@pytest.fixture
def images(tmp_path):
    """A test set of 7 images in two folders."""
    folder = tmp_path / "images"
    names = []
    for identity in range(2):
        (folder / str(identity)).mkdir(parents=True)
        for number in range(4 - identity):
            names.append(f"{identity}/{number}.png")
            cv2.imwrite(str(folder / names[-1]), tiny.image(identity, number))
    (folder / "filelist.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


def submission(teacher, images, out, *more):
    return ["lfr", "submit", "--model", teacher, "--images", str(images), "--out", str(out), "--batch-size", "4", *more]


def test_submit_writes_the_networks_rows(teacher, images, tmp_path, capsys, caplog):
    out = tmp_path / "new" / "feat.bin"
    assert main(submission(teacher, images, out)) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}: 7 x 16 float32, one row a line of filelist.txt\n"
    assert "7 rows; the challenge's test set has 1,862,120 images" in caplog.text
    network = FrozenNetwork(load_checkpoint(teacher))
    names = (images / "filelist.txt").read_text().split()
    faces = np.stack([cv2.imread(str(images / name))[:, :, ::-1].transpose(2, 0, 1) for name in names])
    rows = normalised(network(faces) + network(faces[..., ::-1]))
    np.testing.assert_allclose(open_features(out), rows, atol=1e-5)


def test_submit_refuses(teacher, images, tmp_path, capsys, caplog):
    arguments = submission(teacher, images, tmp_path / "feat.bin")
    cv2.imwrite(str(images / "1/1.png"), np.zeros((100, 112, 3), np.uint8))
    assert refused(arguments, capsys) == f"{images}/1/1.png: is 100x112, not 112x112 - give aligned faces"
    (images / "1/1.png").write_bytes(b"")
    assert refused(arguments, capsys).startswith(f"{images}/1/1.png: is not an image that can be decoded (0")
    assert not (tmp_path / "feat.bin").exists()
    assert main([*arguments[:-2], "--batch-size", "2", "--on-error", "zero", "--out", str(tmp_path / "other.bin")]) == 0
    assert "1 images could not be read, the first: " in caplog.text
    assert "1 rows are zero" in caplog.text
    capsys.readouterr()
    assert refused(submission(teacher, tmp_path, tmp_path / "a.bin"), capsys).startswith(
        f"{tmp_path}/filelist.txt: cannot"
    )


def test_a_jpeg_that_is_cut_short_does_not_pass_for_a_face(teacher, images, tmp_path, capsys, caplog):
    jpeg = tiny.jpeg(1, 1)
    (images / "1/1.png").write_bytes(jpeg[: len(jpeg) * 2 // 5])
    arguments = submission(teacher, images, tmp_path / "feat.bin")
    said = refused(arguments, capsys)
    assert said.startswith(f"{images}/1/1.png: is a JPEG that is cut short") and said.endswith("or leave it out")
    assert main([*arguments, "--on-error", "zero"]) == 0
    assert "1/1.png: is a JPEG that is cut short" in caplog.text
    rows = open_features(tmp_path / "feat.bin")
    assert [row for row in range(7) if not rows[row].any()] == [5]


def test_submit_that_is_killed_goes_on_to_the_same_bytes(teacher, tmp_path):
    """SIGKILL in the middle, in a process of its own."""
    folder = tmp_path / "images"
    folder.mkdir()
    names = [f"{number}.jpg" for number in range(200)]
    for name in names:
        (folder / name).write_bytes(tiny.jpeg(0, int(name[:-4])))
    (folder / "filelist.txt").write_text("\n".join(names))
    assert main(submission(teacher, folder, tmp_path / "whole.bin")) == 0
    code = "\n".join(
        [
            "import sys",
            "from vargface.cli import main",
            "from vargface.eval.lfr import submission",
            "submission.SAVE_SECONDS = 0",
            "sys.exit(main())",
        ]
    )
    command = [sys.executable, "-c", code, *submission(teacher, folder, tmp_path / "feat.bin")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    progress = tmp_path / "feat.bin.partial" / "progress.json"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (progress.exists() and json.loads(progress.read_text())["done"] >= 40):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 40 <= json.loads(progress.read_text())["done"] < 200
    assert main(submission(teacher, folder, tmp_path / "feat.bin")) == 0
    assert (tmp_path / "feat.bin").read_bytes() == (tmp_path / "whole.bin").read_bytes()


# --- score, merge, identify


@pytest.fixture
def scored(tmp_path):
    rows, labels = faces(rows=400, noise=1.5)
    return rows, labels, files(tmp_path, rows, labels)


def test_score_in_two_processes_is_brute_forces(scored, tmp_path, capsys, caplog):
    rows, labels, names = scored
    report = tmp_path / "new" / "score.json"
    arguments = ["lfr", "score", *names, "--fpr", "1e-3", "--processes", "2", "--json", str(report)]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "a FPR of 1e-3 admits 78 of 78" in caplog.text  # fewer than 100
    tpr, threshold, accepted = naive(*all_scores(rows, labels), "1e-3")
    assert said.out.splitlines()[-1] == f"TPR {tpr:.6f} at FPR 1e-3"
    point = next(p for p in json.loads(report.read_text())["curve"] if p["fpr"] == "1e-3")
    assert (point["tpr"], point["threshold"], point["accepted"], point["exact"]) == (tpr, threshold, accepted, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["feat.bin", "labels.txt", "new"]


def test_parts_of_several_machines_are_merged(scored, capsys, monkeypatch):
    monkeypatch.setattr(pairs, "TILE", 64)
    _, _, names = scored
    assert main(["lfr", "score", *names, "--fpr", "1e-2", "--processes", "1"]) == 0
    whole = capsys.readouterr().out
    for index in (1, 2):
        assert main(["lfr", "score", *names, "--fpr", "1e-2", "--processes", "1", "--part", f"{index}/2"]) == 0
    parts = [f"{names[0]}.{index}-of-2.npz" for index in (1, 2)]
    capsys.readouterr()
    assert main(["lfr", "merge", *names, *parts]) == 0
    assert capsys.readouterr().out == whole
    assert (
        refused(["lfr", "merge", *names, parts[0]], capsys)
        == "parts 1/2 are not all of the pairs - give the others, too"
    )
    Path(parts[1]).write_bytes(Path(parts[1]).read_bytes()[:-1000])
    assert refused(["lfr", "merge", *names, *parts], capsys).startswith(f"{parts[1]}: is no state of 'vargface lfr'")
    assert refused(["lfr", "merge", *names, names[1]], capsys).startswith(f"{names[1]}: is no state of")


def misjudging(monkeypatch):
    """Every sample says that scores are 0.99, and no more than 300 pairs are kept."""
    make = plan.make_plan
    monkeypatch.setattr(plan, "_sampled", lambda *_: iter([np.full(1000, 0.99)]))
    monkeypatch.setattr(plan, "make_plan", lambda *names, **options: make(*names, kept=300, **options))


def test_a_sample_that_misjudges_costs_a_second_pass_which_is_said(scored, tmp_path, capsys, caplog, monkeypatch):
    rows, labels, names = scored
    misjudging(monkeypatch)
    assert main(["lfr", "score", *names, "--fpr", "1e-3", "--processes", "1"]) == 0
    tpr = naive(*all_scores(rows, labels), "1e-3")[0]
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"TPR {tpr:.6f} at FPR 1e-3"
    assert (
        "the sample of pairs misjudged where the threshold of FPR 1e-1, 1e-2, 1e-3, 1e-4 lies: a second pass over all "
        "pairs, about as long as the first, finds it"
    ) in caplog.messages
    assert sorted(path.name for path in tmp_path.iterdir()) == ["feat.bin", "labels.txt"]


def test_parts_of_a_sample_that_misjudges_are_scored_after_the_first(scored, capsys, monkeypatch):
    rows, labels, names = scored
    misjudging(monkeypatch)
    monkeypatch.setattr(pairs, "TILE", 64)
    score = ["lfr", "score", *names, "--fpr", "1e-2", "--processes", "1", "--part"]
    firsts, seconds = ([f"{names[0]}.{index}-of-2{end}.npz" for index in (1, 2)] for end in ("", ".second"))
    for index in "12":
        assert main([*score, f"{index}/2"]) == 0
    capsys.readouterr()
    message = refused(["lfr", "merge", *names, *firsts], capsys)
    assert message.startswith("the sample of pairs misjudged where the threshold of FPR 1e-1, 1e-2")
    assert message.endswith("- keep these parts and score each anew, with all of them after --after")
    for index in "12":
        assert main([*score, f"{index}/2", "--after", *firsts]) == 0
    capsys.readouterr()
    assert refused([*score, "1/2", "--after", *firsts, "--state", firsts[0]], capsys).startswith(
        f"{firsts[0]}: is of another scan"
    )
    capsys.readouterr()
    assert main(["lfr", "merge", *names, *seconds]) == 0
    tpr = naive(*all_scores(rows, labels), "1e-2")[0]
    low, *high = capsys.readouterr().out.splitlines()[-1].split()[1].split("..")
    assert float(low) - 1e-6 <= tpr <= float((high or [low])[0]) + 1e-6
    assert refused(["lfr", "merge", *names, firsts[0], seconds[1]], capsys).startswith("part 2/2 is of another scan")


def test_bounds_that_differ_are_printed_as_such(scored, capsys, monkeypatch):
    """Negatives that float32 cannot tell apart: the figure itself is a range then."""
    _, _, names = scored
    make = plan.make_plan
    monkeypatch.setattr(plan, "make_plan", lambda *names, **options: make(*names, kept=1, **options))
    monkeypatch.setattr(pairs, "score_error", lambda *_: 0.02)
    monkeypatch.setattr(plan, "score_error", lambda *_: 0.02)
    assert main(["lfr", "score", *names, "--fpr", "1e-2", "--processes", "1"]) == 0
    assert re.fullmatch(r"TPR 0\.\d{6}\.\.0\.\d{6} at FPR 1e-2", capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (["--fpr", "1/100000000"], "FPR '1/100000000': give a decimal number above 0 and below 1, such as 1e-8"),
        (["--fpr", "1e-300000000"], "FPR '1e-300000000': give a decimal number above 0 and below 1, such as 1e-8"),
        (["--fpr", "-1"], "FPR '-1': give a decimal number above 0 and below 1, such as 1e-8"),
        (["--fpr=-1e-3"], "FPR '-1e-3': give a decimal number above 0 and below 1, such as 1e-8"),
        (["--fpr", "nan"], "FPR 'nan': give a decimal number above 0 and below 1, such as 1e-8"),
        (["--fpr", "1e-300"], "78,947 pairs of different people are too few for a FPR of 1e-300: it admits 7.9e-296"),
    ],
)
def test_odd_fprs_are_one_line(scored, capsys, odd, said):
    assert refused(["lfr", "score", *scored[2], *odd], capsys).startswith(said)


def test_odd_seeds(scored, capsys):
    for seed in ("-1", "1.5", "x", "9" * 5000):
        with pytest.raises(SystemExit) as stop:
            main(["lfr", "score", *scored[2], "--seed", seed])
        assert stop.value.code == 2
        assert "error: argument --seed: " in capsys.readouterr().err.splitlines()[-1]
    arguments = ["lfr", "score", *scored[2], "--fpr", "1e-2", "--processes", "1", "--seed"]
    assert main([*arguments, "1"]) == main([*arguments, "9" * 40]) == 0
    first, other = capsys.readouterr().out.split("FPR   ")[1:]
    assert first == other


@pytest.mark.parametrize("command", [["score", "--fpr", "1e-2"], ["identify"]])
def test_a_state_is_of_one_process(scored, tmp_path, capsys, command):
    name, *options = command
    arguments = ["lfr", name, *scored[2], *options, "--processes", "1", "--state", str(tmp_path / "state.npz")]
    with locked_file(tmp_path / "state.npz"):
        assert refused(arguments, capsys) == (
            f"{tmp_path}/state.npz: another process is at work in it - wait until it ends, or choose another file"
        )
    assert main(arguments) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["feat.bin", "labels.txt"]


def test_a_state_of_other_features_is_refused(scored, tmp_path, capsys):
    rows, labels, names = scored
    score = ["lfr", "score", *names, "--fpr", "1e-2", "--processes", "1"]
    assert main([*score, "--part", "1/2"]) == 0
    capsys.readouterr()
    files(tmp_path, rows[::-1], labels)
    part = f"{names[0]}.1-of-2.npz"
    assert (
        refused([*score, "--part", "1/2"], capsys) == f"{part}: is of another scan - remove it, or give another --state"
    )
    assert refused(["lfr", "merge", *names, part], capsys).startswith(f"{part}: is not of {names[0]} with {names[1]}")


def units_done(state: Path) -> int:
    with np.load(state) as arrays:
        return int(arrays["done"].sum())


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(tmp_path):
    """In processes of their own, stopped as a terminal does: the signal goes to all of them."""
    rng = np.random.default_rng(0)
    rows = normalised(rng.normal(size=(24_000, 64)).astype(np.float32))
    names = files(tmp_path, rows, np.where(np.arange(24_000) < 3000, np.arange(24_000) // 10, -1))
    code = "import sys\nfrom vargface.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    (tmp_path / "run.py").write_text(code)
    command = [sys.executable, str(tmp_path / "run.py"), "lfr", "score", *names, "--fpr", "1e-5", "--processes", "2"]
    whole = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    slow = code.replace(
        "sys.exit", "from vargface.commands import lfr_state\n    lfr_state.SAVE_SECONDS = 0\n    sys.exit"
    )
    (tmp_path / "run.py").write_text(slow)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    signal_it = {
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        "start_new_session": True,
    }
    process = subprocess.Popen(command, **pipes, **signal_it)
    state = Path(f"{names[0]}.1-of-1.npz")
    until = time.monotonic() + 60
    while time.monotonic() < until and not (state.exists() and units_done(state)):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert error.splitlines()[-1] == "vargface: stopped; the same command goes on from the last saved state"
    assert "Traceback" not in error
    assert 0 < units_done(state) < 24
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == whole
    assert not state.exists()


def test_pictures(teacher, images, tmp_path, capsys):
    features, pictures = tmp_path / "feat.bin", tmp_path / "pictures"
    assert main(submission(teacher, images, features)) == 0
    (tmp_path / "labels.txt").write_text("0\n" * 4 + "1\n" * 3)
    score = ["lfr", "score", str(features), str(tmp_path / "labels.txt"), "--fpr", "0.2", "--processes", "1"]
    assert main([*score, "--pictures", str(pictures), "--images", str(images)]) == 0
    written = sorted(path.name for path in pictures.iterdir())
    assert written == ["false-accepts.png", "false-rejects.png", "roc.png", "scores.png"]
    for name in written:
        assert cv2.imread(str(pictures / name)).shape[1] > 500
    capsys.readouterr()
    (images / "filelist.txt").write_text("0/0.png\n")
    message = refused([*score, "--pictures", str(pictures), "--images", str(images)], capsys)
    assert message.startswith(f"{images}: filelist.txt has 1 lines, {features} 7 rows")


def test_what_cannot_be_read_is_a_grey_tile(teacher, images, tmp_path, caplog):
    """As after --on-error zero: rows of zeros are among the false rejects, and their images cannot be read."""
    features, pictures = tmp_path / "feat.bin", tmp_path / "pictures"
    (images / "0/1.png").write_bytes(b"no image")
    (images / "1/2.png").unlink()
    assert main(submission(teacher, images, features, "--on-error", "zero")) == 0
    (tmp_path / "labels.txt").write_text("0\n" * 4 + "1\n" * 3)
    score = ["lfr", "score", str(features), str(tmp_path / "labels.txt"), "--fpr", "0.2", "--processes", "1"]
    assert main([*score, "--pictures", str(pictures), "--images", str(images)]) == 0
    assert len(list(pictures.iterdir())) == 4
    assert "0/1.png: is not an image that can be decoded (8 bytes) - get it anew, or leave it out; drawn" in caplog.text
    assert "1/2.png: cannot read" in caplog.text
    assert sorted(path.name for path in tmp_path.glob("feat.bin*")) == ["feat.bin"]


def test_videos_are_shown_by_their_first_frames(teacher, tmp_path, caplog):
    folder, features, pictures = tmp_path / "videos", tmp_path / "feat.bin", tmp_path / "pictures"
    for number in range(4):
        (folder / f"v{number}").mkdir(parents=True)
        for frame in range(2):
            (folder / f"v{number}" / f"{frame}.jpg").write_bytes(tiny.jpeg(number // 2, 2 * number + frame))
    (folder / "filelist.txt").write_text("".join(f"v{number} 2\n" for number in range(4)))
    assert main(submission(teacher, folder, features, "--video")) == 0
    (tmp_path / "labels.txt").write_text("0\n0\n1\n1\n")
    score = ["lfr", "score", str(features), str(tmp_path / "labels.txt"), "--fpr", "0.4", "--processes", "1"]
    assert main([*score, "--pictures", str(pictures), "--images", str(folder)]) == 0
    assert len(list(pictures.iterdir())) == 4
    assert "grey" not in caplog.text
    assert picture_of(folder, "v1 2") == folder / "v1" / "0.jpg"


def test_identify_prints_and_writes(scored, tmp_path, capsys):
    _, _, names = scored
    report = tmp_path / "identify.json"
    assert main(["lfr", "identify", *names, "--processes", "2", "--json", str(report)]) == 0
    out = capsys.readouterr().out
    figures = json.loads(report.read_text())
    assert out.splitlines()[0].startswith(f"gallery {figures['gallery']} people; {figures['probes']} probes;")
    assert f"rank-1    {figures['rank']['1']:.6f}" in out
    assert f"{figures['tpir']['1e-1']:.6f}" in out
    assert figures["tpir"]["1e-4"] is None


def test_identify_that_was_stopped_goes_on(scored, capsys, monkeypatch):
    monkeypatch.setattr(identification, "TILE", 64)
    names = scored[2]
    arguments = ["lfr", "identify", *names, "--processes", "1"]
    assert main(arguments) == 0
    whole, probe, units = capsys.readouterr().out, identification._probe, []

    def stop(task):
        if len(units) == 3:
            raise KeyboardInterrupt
        units.append(task.start)
        return probe(task)

    with monkeypatch.context() as patch:
        patch.setattr(identification, "_probe", stop)
        assert main(arguments) == 130
    assert "goes on from the last saved state" in capsys.readouterr().err
    state = Path(f"{names[0]}.identify.npz")
    assert units_done(state) == 3
    monkeypatch.setattr(identification, "_probe", lambda task: units.append(task.start) or probe(task))
    assert main(arguments) == 0
    assert capsys.readouterr().out == whole
    assert units == list(range(0, 400, 64))
    assert not state.exists()
    state.write_bytes(b"PK")
    assert refused(arguments, capsys).startswith(f"{state}: is no state of 'vargface lfr', or damaged")
    np.savez(state, **{**identification.Probing.begun(*names).arrays(), "about": '{"fingerprint": "other"}'})
    assert refused(arguments, capsys).startswith(f"{state}: is of other features or labels - remove it")


def test_score_refuses(scored, tmp_path, capsys):
    _, _, names = scored
    assert "too few for a FPR of 1e-8" in refused(["lfr", "score", *names], capsys)
    assert refused(["lfr", "score", names[0], "none.txt"], capsys).startswith("none.txt: cannot read")
    assert refused(["lfr", "score", names[1], names[1]], capsys).startswith(f"{names[1]}: does not begin as")
    nowhere = ["--state", "/proc/state.npz", "--fpr", "1e-2", "--processes", "1"]
    assert refused(["lfr", "score", *names, *nowhere], capsys).startswith("/proc/state.npz.lock: cannot write")
    with pytest.raises(SystemExit):
        main(["lfr", "score", *names, "--part", "3/2"])
    assert "'3/2' must be I/K with I from 1 to K" in capsys.readouterr().err


# --- processes


def test_workers_have_one_blas_thread_and_a_variable_of_the_user_wins(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    names = ["OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE"]
    environment = {**workers.one_blas_thread(), "OPENBLAS_CORETYPE": "SkylakeX"}
    assert list(workers.in_order(os.getenv, names, 2, environment=environment)) == ["1", "Haswell"]
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_tasks_are_drawn_as_they_are_needed():
    drawn = []

    def tasks():
        for number in range(20):
            drawn.append(number)
            yield float(number)

    results = workers.in_order(abs, tasks(), 2)
    assert next(results) == 0
    assert len(drawn) == 3
    results.close()
    assert len(drawn) == 3
