"""The command line: what it prints, and one line and exit code 2 for every bad input."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny

from vargface import cli, demo
from vargface.checkpoint import load_checkpoint, save_checkpoint
from vargface.cli import main
from vargface.commands import parsed
from vargface.data import synthetic
from vargface.data.packs import write_pack
from vargface.files import locked_folder
from vargface.inference import FrozenNetwork
from vargface.interrupt import Terminated
from vargface.runtime import mx
from vargface.training import fit, plan
from vargface.training.generation import Generation

COMMANDS = ["demo", "train", "launch", "verify", "curves", "report", "study", "synth", "flops"]
COMMANDS += ["lfr", "teacher-store", "embed", "export", "rec", "doctor"]
LFR_STEPS = ["check", "submit", "score", "merge", "identify"]


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """`vargface train` sets this for its process, which here is that of all tests."""
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "AVX2"))


@pytest.fixture
def tiny_network(monkeypatch):
    monkeypatch.setattr(plan, "network_symbol", lambda recipe: tiny.network())


@pytest.fixture
def arguments(data, tmp_path):
    """`train` with the tiny recipe's keys, others in their place where given."""

    def make(**keys):
        keys = {**tiny.KEYS, "data": data, "out": tmp_path / "run", "steps": 2, **keys}
        return ["train", "base", *(f"{key}={value}" for key, value in keys.items())]

    return make


@pytest.fixture
def copy(data, tmp_path):
    """A data folder of one's own."""
    return Path(shutil.copytree(data, tmp_path / "data"))


def refused(arguments, capsys) -> str:
    """Run, and return the message of the one line that it must print."""
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.endswith("\n")
    assert error.count("\n") == 1
    assert error.startswith("vargface: error: ")
    return error[len("vargface: error: ") : -1]


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# --- what is refused before anything is written


@pytest.fixture
def nothing_written(tmp_path):
    """Checks that a test leaves no run folder and no temporary file."""
    yield
    assert not (tmp_path / "run").exists()
    assert not [name for name in everything(tmp_path) if name.endswith(".tmp")]


@pytest.mark.usefixtures("nothing_written")
class TestRefused:
    def test_a_missing_data_folder(self, arguments, tmp_path, capsys):
        message = refused(arguments(data=tmp_path / "none"), capsys)
        assert message.startswith(f"{tmp_path / 'none'}: no such folder - give an InsightFace folder")

    def test_an_empty_data_folder(self, arguments, tmp_path, capsys):
        (tmp_path / "data").mkdir()
        message = refused(arguments(data=tmp_path / "data"), capsys)
        assert message.startswith(f"{tmp_path / 'data'}: no train.rec in it - give an InsightFace folder")

    @pytest.mark.parametrize("identities", [3, 5])
    def test_a_property_that_disagrees_with_the_labels(self, arguments, copy, capsys, identities):
        (copy / "property").write_text(f"{identities},112,112")
        message = refused(arguments(data=copy), capsys)
        assert str(copy / "property") in message
        assert str(identities) in message

    def test_a_teacher_of_another_embedding_size(self, arguments, teacher, capsys):
        message = refused(arguments(teacher=teacher, embedding_size=32), capsys)
        due = (
            f"teacher {teacher}: embeds into 16 dimensions, the student into 32 - set embedding_size=16, or teacher_map"
        )
        assert message.startswith(due)

    def test_an_unknown_key(self, arguments, capsys):
        message = refused(arguments(learning_rat=1), capsys)
        assert message.startswith("argument 'learning_rat=1': unknown key 'learning_rat'")
        message = refused(arguments(lr_step=1), capsys)
        assert message == "argument 'lr_step=1': unknown key 'lr_step' - did you mean 'lr_steps'?"

    def test_an_unknown_key_in_a_file(self, tmp_path, capsys):
        (tmp_path / "mine.py").write_text("recipe = dict(multiplyer=1.0)")
        message = refused(["train", str(tmp_path / "mine.py")], capsys)
        assert message == f"{tmp_path / 'mine.py'}: unknown key 'multiplyer' - did you mean 'multiplier'?"

    def test_a_value_of_the_wrong_type(self, arguments, capsys):
        message = refused(arguments(steps="many"), capsys)
        assert message == "argument 'steps=many': steps must be a whole number, e.g. 240000, not 'many'"

    def test_a_recipe_that_does_not_exist(self, capsys):
        assert refused(["train", "nowhere.py"], capsys).startswith("recipe 'nowhere.py': no such file - give a path")

    def test_a_pack_of_no_pairs(self, arguments, copy, capsys):
        (copy / "pairs.bin").write_bytes(pickle.dumps(([], [])))
        message = refused(arguments(data=copy), capsys)
        assert message.startswith(f"{copy / 'pairs.bin'}: has no pairs")

    @pytest.mark.parametrize("missing", ["symbol.json", "0003.params"])
    def test_a_teacher_that_does_not_exist(self, arguments, teacher, tmp_path, capsys, missing):
        (tmp_path / "gone").mkdir()
        for file in Path(teacher).parent.glob("teacher-*"):
            if not file.name.endswith(missing):
                shutil.copy(file, tmp_path / "gone")
        message = refused(arguments(teacher=tmp_path / "gone" / "teacher,3"), capsys)
        assert message.startswith(f"{tmp_path / 'gone' / 'teacher'}-{missing}: no such file - model ")

    @pytest.mark.parametrize("model", ["teacher", "teacher,x", ",3", "teacher,-1"])
    def test_a_teacher_in_another_form(self, arguments, capsys, model):
        assert refused(arguments(teacher=model), capsys).startswith(f"model '{model}': must be PREFIX,EPOCH")

    def test_a_teacher_without_fc1_output_names_what_could_be_meant(self, arguments, tmp_path, capsys):
        data = mx.sym.Pooling(mx.sym.Variable("data"), kernel=(56, 56), stride=(56, 56), name="pool")
        symbol = mx.sym.FullyConnected(data, num_hidden=16, name="my_embedding")
        model = save_checkpoint(tmp_path / "foreign", 0, symbol, *tiny.weights(symbol))
        message = refused(arguments(teacher=model), capsys)
        assert message.startswith(f"{tmp_path / 'foreign'}-symbol.json: has no fc1_output")
        assert "candidates: my_embedding_output" in message

    def test_a_damaged_teacher(self, arguments, teacher, tmp_path, capsys):
        for file in Path(teacher).parent.glob("teacher-*"):
            shutil.copy(file, tmp_path)
        params = tmp_path / "teacher-0003.params"
        params.write_bytes(params.read_bytes()[:-100])
        message = refused(arguments(teacher=tmp_path / "teacher,3"), capsys)
        assert message.startswith(f"{params}: not a parameter file that MXNet can read")

    def test_the_line_is_all_that_a_process_says(self, arguments, tmp_path):
        code = "import sys; from vargface.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, *arguments(data=tmp_path / "none")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stdout == ""
        assert re.fullmatch(r"vargface: error: .*/none: no such folder - .*\n", done.stderr)


# --- no place to write to


@pytest.mark.parametrize("command", [["verify", "--model", "m,0", "p.bin"], ["rec", "info", "d"], ["flops"]])
def test_numpy_2_is_told_before_anything_that_does_not_load_with_it(command, capsys, monkeypatch):
    monkeypatch.setattr("vargface.runtime.np.__version__", "2.1.0")
    assert refused(command, capsys).startswith("numpy 2.1.0 is installed, MXNet 1.9.1 needs an older one - pip")


@pytest.mark.parametrize(
    ("into", "code", "said"),
    [("| true", "141", ""), ("> /dev/full", "2", "vargface: error: the output: cannot write (No space left on")],
)
def test_output_that_nobody_takes_has_no_traceback(into, code, said, tmp_path):
    command = f"({sys.executable} -m vargface doctor; echo $? >&2) {into}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == code
    assert done.stderr.startswith(said) and "Traceback" not in done.stderr


def test_a_file_in_the_way_of_the_run_folder(arguments, tmp_path, capsys, tiny_network):
    (tmp_path / "run").write_text("mine")
    assert refused(arguments(), capsys).startswith(f"{tmp_path / 'run'}: cannot write there (File exists)")
    assert refused(arguments(out=tmp_path / "run" / "below"), capsys).startswith(
        f"{tmp_path / 'run' / 'below'}: cannot"
    )
    assert (tmp_path / "run").read_text() == "mine"
    assert everything(tmp_path) == {"run"}


def test_a_folder_that_may_not_be_written_to(arguments, capsys, tiny_network):
    assert refused(arguments(out="/proc/run"), capsys).startswith("/proc/run: cannot write there (")


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for the first files of a run."""
    with tiny.small_disk(tmp_path / "disk", "40k") as folder:
        yield folder


def test_a_disk_that_is_too_small_is_told_at_once(arguments, small_disk, capsys, tiny_network):
    message = refused(arguments(out=small_disk / "run"), capsys)
    assert message.startswith(f"{small_disk}/run: 0 MB free, the run takes up to")
    assert everything(small_disk) == set()


def test_a_full_disk_leaves_whole_files_and_the_run_goes_on_elsewhere(
    arguments, small_disk, tmp_path, capsys, tiny_network, monkeypatch
):
    monkeypatch.setattr(fit, "check_space", lambda plan: None)  # others fill it while the run goes on
    message = refused(arguments(out=small_disk / "run"), capsys)
    assert message.startswith(f"{small_disk}/run/")
    assert message.endswith("free space or choose another place")
    assert not [name for name in everything(small_disk) if name.endswith((".tmp", "result.json"))]
    for params in small_disk.rglob("*.params"):
        assert mx.nd.load(str(params))
    shutil.copytree(small_disk / "run", tmp_path / "run")
    assert main(arguments()) == 0
    load_checkpoint(f"{tmp_path}/run/student,1")


# --- what is done


def test_train_prints_a_table_that_ends_with_the_checkpoint(arguments, tmp_path, capsys, tiny_network, teacher):
    assert main(arguments(teacher=teacher, generations=2)) == 0
    out, _ = capsys.readouterr()
    header, _, first, second, _, note = out.splitlines()
    assert note.startswith("* fewer than 1 / FAR pairs")
    assert header.split() == ["model", "pairs", "%", "pairs", "TAR@1e-3", "%", "params", "MFLOPs", "checkpoint"]
    assert first.startswith("run ")
    assert first.endswith(f" {tmp_path}/run/student,1")
    assert second.startswith("gen-2 ")
    assert second.endswith(f" {tmp_path}/run/gen-2/student,1")
    load_checkpoint(first.split()[-1])


def test_train_again_prints_the_same_table(arguments, capsys, tiny_network):
    assert main(arguments()) == 0
    table = capsys.readouterr().out
    assert main(arguments()) == 0
    assert capsys.readouterr().out == table


def test_another_recipe_in_the_same_folder(arguments, tmp_path, capsys, tiny_network):
    assert main(arguments()) == 0
    capsys.readouterr()
    before = everything(tmp_path)
    assert refused(arguments(m2=0.4), capsys).endswith("(m2 differ) - choose another out, or allow it by may_change=m2")
    assert everything(tmp_path) == before


def test_a_run_without_a_whole_state_is_refused_and_left_as_it_is(arguments, tmp_path, capsys, tiny_network):
    assert main(arguments()) == 0
    capsys.readouterr()
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "state" / "00000002.params").write_bytes(b"")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    message = refused(arguments(), capsys)
    assert message.endswith(f"is whole - remove {tmp_path / 'run' / 'state'} to start anew")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    shutil.rmtree(tmp_path / "run" / "state")
    assert main(arguments()) == 0


def test_a_folder_that_another_process_trains_into_is_left_alone(arguments, tmp_path, capsys, tiny_network):
    before = everything(tmp_path)
    with locked_folder(tmp_path / "run"):  # another file object: to the system, another holder
        message = refused(arguments(), capsys)
    assert message.startswith(f"{tmp_path / 'run'}: another process is at work in it - wait until it ends, or")
    assert everything(tmp_path) - before == {"run", "run/.lock"}
    assert main(arguments()) == 0


@pytest.mark.parametrize("raised, code", [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_a_stop_says_how_to_go_on(arguments, capsys, tiny_network, monkeypatch, raised, code):
    def stop(self, means):
        raise raised

    monkeypatch.setattr(Generation, "_train_step", stop)
    assert main(arguments()) == code
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error == "vargface: stopped; the same command goes on from the last saved state\n"


def test_sigterm_ends_any_command_with_one_line_and_is_heard_once(tmp_path, capsys, monkeypatch):
    """timeout(1) sends it twice in a row: the second must not cut the clean-up of the first short."""
    cleaned = []

    def draw(seed):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(synthetic, "contact_sheet", draw)
    assert main(["synth", "--sheet", str(tmp_path / "sheet.png")]) == 143
    assert capsys.readouterr() == ("", "vargface: stopped\n")
    assert (cleaned, signal.getsignal(signal.SIGTERM)) == ([True], before)


def test_main_runs_in_a_thread_which_no_signal_reaches(capsys):
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(main, ["flops"]).result() == 0


def test_a_bug_of_ours_keeps_its_traceback(arguments, tiny_network, monkeypatch):
    def stop(self, means):
        raise ZeroDivisionError

    monkeypatch.setattr(Generation, "_train_step", stop)
    with pytest.raises(ZeroDivisionError):
        main(arguments())


def test_the_demos_data_alone_is_drawn_once_and_as_the_demo_draws_it(tmp_path, capsys, monkeypatch):
    drawn = []

    def make_dataset(folder, progress, **settings):
        drawn.append((folder, settings))
        folder.mkdir(parents=True)
        (folder / "property").touch()

    monkeypatch.setattr(demo, "make_dataset", make_dataset)
    for _ in range(2):
        assert main(["demo", "--data-only", f"out={tmp_path / 'run'}"]) == 0
    assert drawn == [(tmp_path / "run" / "data", demo.DATA)]
    assert capsys.readouterr().out == ""
    assert everything(tmp_path) == {"run", "run/data", "run/data/property"}


def test_verify_prints_the_figures_and_writes_them(data, teacher, tmp_path, capsys):
    other = tiny.make_pack(tmp_path / "other.bin", pairs=20)
    json_file = tmp_path / "figures.json"
    assert main(["verify", "--model", teacher, "--json", str(json_file), str(data / "pairs.bin"), str(other)]) == 0
    table, _, details = capsys.readouterr().out.partition("\n\n")
    header, _, row = table.splitlines()
    figures = json.loads(json_file.read_text())
    assert list(figures) == ["pairs", "other"]
    assert [figures[pack]["pairs"] for pack in figures] == [10, 20]
    for pack in figures:
        assert f"{pack} %" in header
        assert 0 <= figures[pack]["accuracy"] <= 1
        assert figures[pack]["xnorm"] > 0
        assert f"{100 * figures[pack]['accuracy']:.2f} ± {100 * figures[pack]['accuracy_std']:.2f}" in row
        assert f" {figures[pack]['cosine_threshold']:.4f}" in details
        assert f" {figures[pack]['auc']:.6f}" in details
        assert f" {figures[pack]['norms']['median']:.4g}" in details
    assert (row.split()[0], row.split()[-1]) == ("teacher", teacher)  # as in the table of `train`


def test_verify_judges_an_onnx_file_and_one_view(data, teacher, tmp_path, capsys):
    """As whoever quantises a network has to, and whoever puts a threshold into software that embeds one view."""
    pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    file, pack = tmp_path / "teacher.onnx", str(data / "pairs.bin")
    assert main(["export", "onnx", "--model", teacher, "--out", str(file)]) == 0
    figures = {}
    for model in (teacher, str(file)):
        for more in ((), ("--no-flip",)):
            out = tmp_path / "figures.json"
            assert main(["verify", "--model", model, "--json", str(out), *more, pack]) == 0
            figures[model, more] = json.loads(out.read_text())["pairs"]
    assert " -  " in next(line for line in capsys.readouterr().out.splitlines() if line.endswith(".onnx"))
    for more in ((), ("--no-flip",)):
        ours, theirs = figures[teacher, more], figures[str(file), more]
        assert theirs["accuracy"] == ours["accuracy"]
        assert theirs["xnorm"] == pytest.approx(ours["xnorm"], rel=1e-4)
    assert figures[teacher, ()]["tar_threshold"] != figures[teacher, ("--no-flip",)]["tar_threshold"]


def test_verify_at_a_far_that_the_pack_can_tell(data, teacher, tmp_path, capsys):
    arguments = ["verify", "--model", teacher, "--json", str(tmp_path / "figures.json"), str(data / "pairs.bin")]
    assert main([*arguments, "--far", "0.5"]) == 0
    found = json.loads((tmp_path / "figures.json").read_text())["pairs"]
    assert found["far_target"] == 0.5
    table = capsys.readouterr().out
    assert "pairs TAR@5e-1 %" in table
    assert "*" not in table
    for far in ("0", "1", "-1", "nan"):
        with pytest.raises(SystemExit, match="2"):
            main([*arguments, f"--far={far}"])
        assert "--far: must be more than 0 and less than 1" in capsys.readouterr().err


def test_verify_draws_what_a_person_should_look_at(data, teacher, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    assert main(["verify", "--model", teacher, "--pictures", str(pictures), str(data / "pairs.bin")]) == 0
    assert everything(pictures) == {"pairs-roc.png", "pairs-scores.png", "pairs-wrong.png"}
    for picture in pictures.iterdir():
        assert cv2.imread(str(picture)).shape[1] > 500


def test_verify_tells_what_may_explain_norms_out_of_the_ordinary(data, teacher, caplog, monkeypatch):
    def embed(self, images):
        rows = np.ones((len(images), 16), np.float32)
        rows[0] *= 1000
        return rows

    monkeypatch.setattr(FrozenNetwork, "__call__", embed)
    assert main(["verify", "--model", teacher, str(data / "pairs.bin")]) == 0
    assert "pairs: 1 images have norms 3 times off the median 4: image 0 (pair 0) 4000" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model": "nowhere,1"}, "nowhere-symbol.json: no such file"),
        ({"--model": "nowhere"}, "model 'nowhere': must be PREFIX,EPOCH"),
        ({"pack": "nowhere.bin"}, "nowhere.bin: no such verification pack"),
        ({"--json": "/proc/figures.json"}, "/proc/figures.json: cannot write"),
    ],
)
def test_verify_refuses(data, teacher, capsys, change, message):
    given = {"--model": teacher, "pack": str(data / "pairs.bin"), **change}
    arguments = [word for name in ("--model", "--json") if name in given for word in (name, given[name])]
    assert main(["verify", *arguments, given["pack"]]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"vargface: error: {message}")
    assert error.count("\n") == 1


def test_verify_refuses_a_pack_of_no_pairs(teacher, tmp_path, capsys):
    (tmp_path / "none.bin").write_bytes(pickle.dumps(([], [])))
    arguments = ["verify", "--model", teacher, "--json", str(tmp_path / "a.json"), str(tmp_path / "none.bin")]
    assert refused(arguments, capsys).startswith(f"{tmp_path / 'none.bin'}: has no pairs")
    assert everything(tmp_path) == {"none.bin"}


def test_verify_names_the_file_of_a_broken_image(teacher, tmp_path, capsys):
    pack = tmp_path / "lfw.bin"
    write_pack(pack, [*[tiny.jpeg(0, number) for number in range(7)], b"broken", *[tiny.jpeg(1, 0)] * 12], [True] * 10)
    assert refused(["verify", "--model", teacher, str(pack)], capsys).startswith(f"{pack}: image 7 (pair 3) is not an")


def test_verify_says_that_a_pack_is_a_folder(teacher, tmp_path, capsys):
    (tmp_path / "foo.bin").mkdir()
    message = refused(["verify", "--model", teacher, str(tmp_path / "foo.bin")], capsys)
    assert message.startswith(f"{tmp_path / 'foo.bin'}: is a folder, not a verification pack - ")


@pytest.mark.parametrize("sheet", ["s.xyz", "sheet", "s.jpg.gif"])
def test_a_sheet_of_another_kind_is_refused_before_anything_is_drawn(tmp_path, capsys, monkeypatch, sheet):
    monkeypatch.setattr(synthetic, "contact_sheet", lambda seed: pytest.fail("drawn"))
    message = refused(["synth", str(tmp_path / "set"), "--sheet", str(tmp_path / sheet)], capsys)
    assert message == f"{tmp_path / sheet}: a contact sheet is a picture - give it a name in .png, .jpg or .jpeg"
    assert everything(tmp_path) == set()


@pytest.mark.parametrize(("sheet", "start"), [("a.png", b"\x89PNG"), ("a.JPG", b"\xff\xd8"), ("a.jpeg", b"\xff\xd8")])
def test_a_sheet_is_what_its_name_says(tmp_path, monkeypatch, sheet, start):
    monkeypatch.setattr(synthetic, "contact_sheet", lambda seed: tiny.image(0, 0))
    assert main(["synth", "--sheet", str(tmp_path / sheet)]) == 0
    assert (tmp_path / sheet).read_bytes().startswith(start)


def test_flops_of_the_papers_network(capsys):
    assert main(["flops"]) == 0
    out = capsys.readouterr().out
    assert "1,022,864,152" in out
    assert "5,198,292" in out


@pytest.mark.parametrize(
    ("arguments", "flops"),
    [
        (["variant=insightface"], "1,022,388,952"),
        (["network=mobilefacenet", "variant=y2"], "933,336,950"),
        (["network=mobilefacenet"], "439,821,056"),
        (["network=resnet"], "24,169,929,728"),
        (["--recipe", "lfr_teacher"], "24,169,929,728"),
    ],
)
def test_flops_of_other_networks(arguments, flops, capsys):
    assert main(["flops", *arguments]) == 0
    assert f"challenge FLOPs {flops} " in capsys.readouterr().out


def test_flops_of_a_checkpoint_by_layer(teacher, capsys):
    assert main(["flops", "--layers", "--model", teacher]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if " Convolution " in line] == ["conv1"]
    # 8 filters of 3x3 on 3 channels, with a bias, at 3x3 places; then 72 to 16, with a bias
    assert f"challenge FLOPs {2 * 3 * 9 * 8 * 9 + 2 * 72 * 16:,} " in out
    params = sum(value.size for value in load_checkpoint(teacher).args.values())
    assert f"learnable parameters {params:,} " in out


def test_flops_refuses(capsys):
    assert refused(["flops", "multiplyer=1"], capsys).endswith("did you mean 'multiplier'?")
    assert refused(["flops", "multiplier=0.3"], capsys).startswith("network = 'vargfacenet': multiplier 0.3")
    assert refused(["flops", "--model", "nowhere,1"], capsys).startswith("nowhere-symbol.json: no such file")


# --- help


def help_of(capsys, *command) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    out, error = capsys.readouterr()
    assert error == ""
    return out


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"vargface {importlib.metadata.version('vargface')}\n"


def test_help_lists_every_command(capsys):
    listed = re.findall(r"^    ([\w-]+)(?: |$)", help_of(capsys), re.MULTILINE)
    assert listed == COMMANDS


@pytest.mark.parametrize("command", [*COMMANDS, *(f"lfr {step}" for step in LFR_STEPS)])
def test_every_command_has_an_example_that_it_would_take(command, capsys):
    text = " ".join(help_of(capsys, *command.split()).split())
    (example,) = re.findall(r"example: (vargface .*)", text)
    words = example.split()
    assert " ".join([*words, ""]).startswith(f"vargface {command} ")
    arguments = cli._parser().parse_args(words[1:])
    for word in getattr(arguments, "overrides", []):
        assert "=" in word


def test_overrides_may_stand_on_both_sides_of_an_option():
    arguments = parsed(cli._parser(), ["train", "r.py", "lr=1", "--generation", "2", "wd=0", "--dry-run", "data=a=b"])
    assert (arguments.overrides, arguments.generation, arguments.dry_run) == (["lr=1", "wd=0", "data=a=b"], 2, True)
    for words in (["train", "r.py", "--dry-run", "data"], ["train", "r.py", "--dry-ran=1"], ["doctor", "lr=1"]):
        with pytest.raises(SystemExit) as stopped:
            parsed(cli._parser(), words)
        assert stopped.value.code == 2


def test_no_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "the following arguments are required: COMMAND" in capsys.readouterr().err


def test_train_asks_for_the_recipe_alone(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith("the following arguments are required: recipe\n")
