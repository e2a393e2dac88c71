"""Jobs of several processes on the loopback: what they learn is what one learns, and none is left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from easydict import EasyDict
from test_centres import tables, updates_of

import vargface.cli
from vargface.__main__ import run
from vargface.cli import main
from vargface.errors import InputError
from vargface.files import locked_folder
from vargface.jobs import launch as jobs
from vargface.jobs.launch import Failure, Host, Stopped, launch, read_hosts
from vargface.training import plan
from vargface.training.fit import train
from vargface.training.run_folder import RunFolder
from vargface.training.team import Team, team_of

# seconds after which a job that hangs is a failure, on a machine that does other things too
LONG = 240

# what every process of a job finds before it does anything else: a network in which no sample sees another
TINY_NETWORK = """
import sys
if "worker" in getattr(sys, "orig_argv", ["worker"]):
    import tiny
    from vargface.training import plan
    plan.network_symbol = lambda recipe: tiny.network(norm=False)
"""
# the same, where a part of a table of class centres has so many bytes
IN_PARTS = """
    from vargface.training import centres
    centres.PART_BYTES = {}
"""


@pytest.fixture
def job(data, tmp_path):
    """Starts `vargface launch OPTION... -- train base KEY=VALUE...` on the tiny data set, with a tiny network."""
    (tmp_path / "site").mkdir()
    path = os.pathsep.join([str(tmp_path / "site"), str(Path(tiny.__file__).parent)])
    started = []

    def start(options="-n 2 -s 2", split=30, site="", **keys) -> subprocess.Popen:
        """split: arrays of more numbers than that are shared out among servers; site: what Python runs first in all."""
        (tmp_path / "site" / "sitecustomize.py").write_text(TINY_NETWORK + site)
        given = {**tiny.KEYS, "data": data, "batch_size": 8, "context": "cpu", **keys}
        settings = [f"{key}={value}" for key, value in given.items()]
        vargface = "import sys; from vargface.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", vargface, "launch", *options.split(), "--", "train", "base", *settings]
        environment = {**os.environ, "PYTHONPATH": path, "MXNET_KVSTORE_BIGARRAY_BOUND": str(split)}
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()


def end_of(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    out, err = process.communicate(timeout=LONG)
    return process.returncode, out, err


def members(out: Path, role: str = "") -> list[int]:
    """The processes of the job that writes into `out`, its launcher aside."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode().split("\0") if entry.name.isdigit() else []
            # of this job: what `job` has all its processes find
            ours = str(out.parent / "site") in (entry / "environ").read_text() if words else False
            if ours and "vargface.member" in words and role in words:
                found.append(int(entry.name))
    return sorted(found)


def wait_until(met: Callable[[], object]) -> None:
    until = time.monotonic() + LONG
    while not met():
        assert time.monotonic() < until
        time.sleep(0.05)


def wait_for(folder: Path, pattern: str, process: subprocess.Popen) -> None:
    """Wait for a file of the run that `process` is at."""

    def there() -> bool:
        assert process.poll() is None, process.communicate()
        return any(folder.glob(pattern))

    wait_until(there)


@pytest.fixture
def without_norm(make, monkeypatch):
    monkeypatch.setattr(plan, "network_symbol", lambda recipe: tiny.network(norm=False))


def close(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-5, err_msg=name)


def close_centres(one: RunFolder, other: RunFolder) -> np.ndarray:
    """Compare what the last states have of sampled centres; returns the tables (2, C, D) of the other."""
    np.testing.assert_array_equal(updates_of(one), updates_of(other))
    found, due = map(tables, (one, other))
    np.testing.assert_allclose(found, due, rtol=1e-4, atol=1e-5)
    return due


# the rate falls tenfold twice: first soon, where it matters
KEYS = {"steps": 30, "schedule": "step", "lr_steps": "3,20", "lr": 0.05, "save_every": 5, "verify_every": 15}


@pytest.mark.slow
def test_two_workers_of_two_contexts_learn_what_one_does(job, make, without_norm, tmp_path):
    keys = {**KEYS, "steps": 10, "log_every": 1, "verify_every": 10}
    (alone,) = train(make(**keys, batch_size=8, context="cpu", out=tmp_path / "alone"))
    out = tmp_path / "job"
    # an image a worker, context and part
    code, table, err = end_of(job(**{**keys, "context": "cpu(0),cpu(1)"}, accumulate=2, out=out))
    assert code == 0 and "pairs %" in table, err
    close(tiny.state(RunFolder(out, EasyDict(alone.recipe, accumulate=2))), tiny.state(alone))
    for name in ("lr", "margin_loss", "target_cosine"):
        due, found = ([float(row[name]) for row in tiny.rows(folder / "log.csv")] for folder in (alone.path, out))
        np.testing.assert_allclose(found, due, rtol=1e-4, atol=1e-6)
    logs = {file.name for file in (out / "logs").iterdir()}
    assert logs - {".lock"} == {"scheduler-0.log", "server-0.log", "server-1.log", "worker-0.log", "worker-1.log"}


@pytest.mark.slow
def test_moving_statistics_are_the_mean_over_workers_and_contexts(job, make, tmp_path):
    """Weights stand still: before any normalisation the moving mean is that of the whole batch, a part varies less."""
    keys = {**KEYS, "steps": 6, "lr": 0, "verify_every": 6}
    (alone,) = train(make(**keys, batch_size=8, context="cpu", out=tmp_path / "alone"))
    out, several = tmp_path / "job", {**keys, "context": "cpu(0),cpu(1)", "kvstore": "dist_device_sync"}
    code, _, err = end_of(job(site="    plan.network_symbol = lambda recipe: tiny.network()\n", **several, out=out))
    assert code == 0, err
    due, found = tiny.state(alone), tiny.state(RunFolder(out, alone.recipe))
    mean, variance = "bn1_moving_mean", "bn1_moving_var"
    np.testing.assert_allclose(found[mean], due[mean], rtol=1e-4, atol=1e-5)
    assert np.abs(due[mean]).max() > 0.01
    assert (found[variance] < due[variance]).all()


@pytest.mark.slow
def test_sampled_centres_learn_on_the_servers_what_they_do_here_also_when_the_job_is_stopped_and_goes_on_as_another(
    job, make, without_norm, tmp_path
):
    """So the rate falls there, too: centres and momenta are those of one process, at a rate that falls twice, and those
    that the next generation goes on from.

    The table is in two parts of two rows there, and then of one.
    """
    keys = {**KEYS, "class_share": 0.5, "batch_size": 2, "wd": 0.05, "generations": 2}
    both = train(make(**keys, context="cpu", out=tmp_path / "alone"))
    out, row = tmp_path / "job", 4 * tiny.DIMENSIONS
    process = job(**keys, site=IN_PARTS.format(2 * row), out=out)
    wait_for(out, "state/00000005.json", process)
    process.send_signal(signal.SIGTERM)
    code, _, err = end_of(process)
    assert code == 143 and "stopped; the same command goes on" in err
    assert not members(out)
    assert not (out / "result.json").exists(), "it was to be stopped in the first generation"
    # one worker of two contexts, on two servers that have a whole table or none: the batch is not theirs to change
    others = {"context": "cpu(0),cpu(1)", "kvstore": "dist_device_sync"}
    code, _, err = end_of(job("-n 1 -s 2", 1_000_000, IN_PARTS.format(row), **{**keys, **others}, out=out))
    assert code == 0 and re.search(r"resumed at step \d+", err), err
    for alone, folder in zip(both, (out, out / "gen-2")):
        folder = RunFolder(folder, alone.recipe)
        close(tiny.state(folder), tiny.state(alone))
        assert np.abs(close_centres(folder, alone)[1]).max() > 1e-3


@pytest.mark.slow
def test_a_share_of_the_classes_on_workers_of_several_contexts_with_a_teacher(
    job, make, without_norm, monkeypatch, tmp_path, teacher
):
    """Two workers of two contexts that go through their batch in two parts, and three servers, against one process."""
    monkeypatch.setattr(tiny, "IDENTITIES", 24)
    data = tiny.make_data(tmp_path / "data")
    keys = {**KEYS, "steps": 12, "verify_every": 12, "class_share": 0.5, "teacher": teacher, "data": data, "wd": 0.05}
    (alone,) = train(make(**keys, batch_size=8, context="cpu", out=tmp_path / "alone"))
    out, parted = tmp_path / "job", {**keys, "context": "cpu(0),cpu(1)", "accumulate": 2}
    code, _, err = end_of(job("-n 2 -s 3", **parted, out=out))
    assert code == 0, err
    folder = RunFolder(out, EasyDict(alone.recipe, accumulate=2))
    close(tiny.state(folder), tiny.state(alone))
    close_centres(folder, alone)
    assert len(set(updates_of(alone))) > 1, "some rows were not taken last"


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_job_which_can_go_on(job, make, without_norm, tmp_path):
    out, keys = tmp_path / "job", {"steps": 100_000, "save_every": 5, "log_every": 1000}
    process = job("-n 2 -s 1", **keys, out=out)
    wait_for(out, "state/00000005.json", process)
    os.kill(members(out, "worker")[-1], signal.SIGKILL)
    code, _, err = end_of(process)
    assert code == 128 + signal.SIGKILL
    assert re.search(r"error: worker [01] was killed by SIGKILL - the job is ended, the same command goes on", err)
    assert not members(out)
    # as one process, this time: what was saved is whole
    saved = max(int(file.stem) for file in (out / "state").glob("*.json"))
    (folder,) = train(make(**{**keys, "steps": saved + 2}, batch_size=8, lr=0.02, may_change="steps", out=out))
    assert [row["step"] for row in tiny.rows(folder.path / "verification.csv")] == [str(saved + 2)]


@pytest.mark.slow
def test_workers_whose_launcher_is_killed_save_and_none_is_left(job, make, without_norm, tmp_path):
    out, keys = tmp_path / "job", {"steps": 100_000, "save_every": 100_000, "log_every": 5, "class_share": 0.5}
    process = job("-n 2 -s 2", **keys, batch_size=2, out=out)
    wait_for(out, "log.csv", process)
    process.send_signal(signal.SIGUSR1)
    wait_for(out, "state/*.json", process)
    process.kill()
    wait_until(lambda: not members(out))
    first, saved = sorted(int(file.stem) for file in (out / "state").glob("*.json"))
    assert first < saved, "SIGUSR1 saves, and it goes on"
    (folder,) = train(make(**{**keys, "steps": saved + 2}, batch_size=2, may_change="steps", out=out))
    assert folder.result["step"] == saved + 2


def test_a_worker_ends_with_what_it_refuses(data, tmp_path):
    """As a process of its own: what the launcher makes of its end is tested with a stand-in. SIGUSR1 ends none."""
    settings = [f"data={data}", "steps=0", "kvstore=dist_sync", f"out={tmp_path}/job"]
    command = [sys.executable, "-m", "vargface.member", "worker", "train", "base", *settings]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdin.write("USR1\n")
    process.stdin.flush()
    assert process.wait(LONG) == 2
    assert process.stderr.read() == "vargface: error: steps = 0: must be at least 1\n"
    assert not (tmp_path / "job").exists()


@pytest.mark.slow
def test_a_job_that_is_stopped_and_cannot_save_ends_with_the_words_of_who_could_not(job, tmp_path):
    """The other worker has stopped by then, and MXNet's store, as it goes, would wait for it."""
    out = tmp_path / "job"
    process = job("-n 2 -s 1", steps=100_000, save_every=20, log_every=1000, out=out)
    wait_for(out, "state/00000020.json", process)
    (out / "state").rename(out / "kept")
    (out / "state").touch()
    process.send_signal(signal.SIGTERM)
    code, _, err = end_of(process)
    assert code == 2
    assert re.search(r"error: worker 0 ended with exit code 2: .*state: cannot be made", err)
    assert not members(out)


@pytest.mark.slow
def test_a_server_that_cannot_update_ends_the_job(job, tmp_path):
    """MXNet drops what Python raises there, and would go on. Through a command that leaves out the machine for ssh."""
    (tmp_path / "hosts").write_text("# two names of this machine\nhere 127.0.0.1\nthere 127.0.0.1\n")
    (tmp_path / "ssh").write_text('#!/bin/sh\nshift\nexec sh -c "$1"\n')
    (tmp_path / "ssh").chmod(0o755)
    site = """
if b"server" in open("/proc/self/cmdline", "rb").read().split(b"\\0"):  # Python 3.8 has no sys.orig_argv
    from vargface.training import row_update
    row_update.RowUpdate._learn = None
"""
    out = tmp_path / "job"
    options = f"-n 1 -s 1 --hosts {tmp_path}/hosts --ssh {tmp_path}/ssh"
    code, _, err = end_of(job(options, site=site, steps=100_000, class_share=0.5, out=out))
    assert code == 1
    said = r"error: server 0 on here ended with exit code 1: TypeError: .* from the last saved state, if there is one"
    assert re.search(said, err)
    assert not members(out)


@pytest.mark.slow
def test_a_signal_while_workers_start_stops_the_job(job, tmp_path):
    out = tmp_path / "job"
    process = job("-n 2 -s 1", steps=100_000, out=out)
    wait_for(out, "logs/worker-1.log", process)
    process.send_signal(signal.SIGINT)
    code, _, err = end_of(process)
    assert code == 130, err
    assert "Traceback" not in err and err.endswith("vargface: stopped; nothing was saved\n")
    assert not members(out)


@pytest.mark.slow
def test_a_worker_that_is_told_of_sigterm_as_it_starts_ends(tmp_path):
    command = [sys.executable, "-m", "vargface.member", "worker", "train", "base", f"out={tmp_path}/job"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(b"TERM\n")
    process.stdin.flush()  # and not closed: its end would be the launcher's
    assert process.wait(LONG) == 143 and b"Traceback" not in process.stderr.read()


# what stands in a member's place: waits to be ended, does so as it is asked to, or leaves with some words
WAITS = "import sys\nfor line in sys.stdin:\n    if line == 'KILL\\n': break\n"
STOPS = "import sys\nsys.stdin.readline()\nsys.exit(143)\n"
FAILS = "import sys, time\nsys.stdin.readline()\ntime.sleep(0.5)\nprint('disk full', file=sys.stderr)\nsys.exit(2)\n"
BREAKS = "import sys, time\ntime.sleep(0.5)\nsys.exit('no memory')\n"
SAYS = "import sys\nfor number in range(20_000):\n    print(number)\n    print(number, file=sys.stderr)\n"


@pytest.fixture
def stand_ins(monkeypatch):
    """Has `launch` start Python programs in its members' place, by name; those without one wait for their end."""

    def use(programs: dict[str, str], signals=(), real=()) -> None:
        """signals: seconds and number of those that come once all members are there; real: roles with no stand-in."""

        def start(role, number, *arguments):
            if role in real:
                return members_own(role, number, *arguments)
            program = programs.get(f"{role} {number}", WAITS)
            return jobs._Member(role, number, Host("", ""), [sys.executable, "-S", "-c", program], dict(os.environ))

        def wait(*arguments):
            for seconds, number in signals:
                threading.Timer(seconds, os.kill, (os.getpid(), number)).start()
            return waited(*arguments)

        members_own, waited = jobs._start, jobs._wait
        monkeypatch.setattr(jobs, "_start", start)
        monkeypatch.setattr(jobs, "_wait", wait)

    return use


@pytest.mark.parametrize(
    "programs, message, code",
    [
        ({"worker 0": FAILS, "worker 1": STOPS}, "worker 0 ended with exit code 2: disk full", 2),
        ({"worker 1": STOPS, "server 0": BREAKS}, "server 0 ended with exit code 1: no memory", 1),
    ],
)
def test_who_fails_while_a_job_stops_is_its_end(stand_ins, tmp_path, programs, message, code):
    stand_ins(programs, [(0, signal.SIGTERM)])
    with pytest.raises(Failure, match=message) as failed:
        launch([], 2, 1, logs=tmp_path / "logs")
    assert failed.value.code == code


@pytest.mark.parametrize(
    "stop_seconds, signals, code, least",
    [
        (1, [(0, signal.SIGTERM)], 143, 1),
        # timeout(1)'s two, and one later
        (600, [(0, signal.SIGTERM), (0.1, signal.SIGTERM), (1.5, signal.SIGTERM)], 143, 1.5),
        (600, [(0, signal.SIGINT), (0.3, signal.SIGINT)], 130, 0.3),
    ],
)
def test_workers_that_do_not_end_at_a_signal_are_ended(
    stand_ins, monkeypatch, caplog, tmp_path, stop_seconds, signals, code, least
):
    monkeypatch.setattr(jobs, "STOP_SECONDS", stop_seconds)
    monkeypatch.setattr(jobs, "AGAIN_SECONDS", 1)
    stand_ins({}, signals)
    began = time.monotonic()
    with pytest.raises(Stopped) as stopped:
        launch([], 2, 1, logs=tmp_path / "logs")
    assert stopped.value.code == code and least <= time.monotonic() - began < 60
    assert ("worker 0 has not ended in 1 s, and is ended" in caplog.text) == (stop_seconds == 1)


def test_what_nobody_reads_stops_no_job(stand_ins, monkeypatch, tmp_path):
    """More than a pipe holds, from both ends of it."""
    read, write = os.pipe()
    os.close(read)
    stand_ins({"worker 0": SAYS})
    with open(write, "w", closefd=False) as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        monkeypatch.setattr(sys, "stderr", gone)
        launch([], 1, 1, logs=tmp_path)
        monkeypatch.undo()
        # what is left in it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)
    said = (tmp_path / "worker-0.log").read_text().split()
    assert sorted(map(int, said)) == sorted([*range(20_000)] * 2)


def test_a_log_that_cannot_be_written_stops_no_job(stand_ins, capsys, caplog, tmp_path):
    (tmp_path / "worker-0.log").symlink_to("/dev/full")
    stand_ins({"worker 0": SAYS})
    launch([], 1, 1, logs=tmp_path)
    out, err = capsys.readouterr()
    assert out.split() == list(map(str, range(20_000))) and "[worker 0] 19999" in err
    told = [record.message for record in caplog.records]
    assert set(told) == {
        f"{tmp_path}/worker-0.log: cannot be written (No space left on device), and lacks some of what worker 0 says"
    }
    assert len(told) <= 2, "once for each of its outputs"
    (tmp_path / "server-0.log").unlink()
    (tmp_path / "server-0.log").mkdir()
    with pytest.raises(InputError, match="server-0.log: cannot be written"):
        launch([], 1, 1, logs=tmp_path)


def test_servers_and_workers_take_turns_on_the_machines(stand_ins, monkeypatch, tmp_path):
    stand_ins({f"worker {number}": "pass" for number in range(3)})
    stand_in, places = jobs._start, []

    def start(role, number, host, arguments, variables, ssh):
        places.append((role, number, host.name, variables["DMLC_NODE_HOST"], variables["DMLC_PS_ROOT_URI"]))
        return stand_in(role, number)

    monkeypatch.setattr(jobs, "_start", start)
    launch([], 3, 1, logs=tmp_path, hosts=[Host("a", "192.0.2.1"), Host("b", "192.0.2.2")], port=9000)
    assert {place[4] for place in places} == {"192.0.2.1"}
    assert [place[:4] for place in places] == [
        ("scheduler", 0, "a", "192.0.2.1"),
        ("server", 0, "a", "192.0.2.1"),
        ("worker", 0, "a", "192.0.2.1"),
        ("worker", 1, "b", "192.0.2.2"),
        ("worker", 2, "a", "192.0.2.1"),
    ]


def test_a_refused_job_leaves_nothing(stand_ins, capsys, tmp_path):
    stand_ins({"worker 0": FAILS.replace("sys.stdin.readline()", "")})
    assert main(["launch", "-n", "1", "--", "train", "base", f"out={tmp_path}/runs/job"]) == 2
    assert capsys.readouterr().err.endswith("exit code 2: disk full - the job is ended, nothing was saved\n")
    assert not (tmp_path / "runs").exists()


def test_a_signal_while_the_first_members_start_stops_the_job(stand_ins, monkeypatch, tmp_path):
    """Those that are to come would not have heard of it."""
    started = []

    def start(role, *arguments):
        started.append(role)
        signal.raise_signal(signal.SIGTERM)
        return first(role, *arguments)

    stand_ins({})
    first = jobs._start
    monkeypatch.setattr(jobs, "_start", start)
    with pytest.raises(Stopped) as stopped:
        launch([], 2, 2, logs=tmp_path / "logs")
    assert stopped.value.code == 143 and started == ["scheduler"]


def test_ctrl_c_before_the_command_line_is_loaded(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(vargface.cli, "main", interrupted)
    assert run() == 130
    assert capsys.readouterr().err == "vargface: stopped\n"


def test_a_port_that_is_taken_is_refused(capsys, tmp_path):
    command = ["-n", "1", "--", "train", "base", f"out={tmp_path}/job"]
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["launch", "--port", str(port), *command]) == 2
    assert capsys.readouterr().err == f"vargface: error: --port {port}: Address already in use - choose another one\n"
    assert not (tmp_path / "job").exists()
    # which port is free on a machine that is another one nobody can tell from here
    assert jobs._port_of(Host("there", "192.0.2.1"), port) == port


@pytest.mark.slow
def test_a_scheduler_without_its_port_ends_the_job(stand_ins, monkeypatch, tmp_path):
    """Where it could not be seen from the launcher that it is taken."""
    stand_ins({}, real=["scheduler"])
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr(jobs, "_port_of", lambda *_: other.getsockname()[1])
        with pytest.raises(Failure, match="scheduler ended with exit code 1"):
            launch(["train", "base", f"out={tmp_path}/job"], 1, 1, logs=tmp_path / "logs")


@pytest.mark.parametrize(
    "ssh, message",
    [
        ("/nonexistent/ssh", "/nonexistent/ssh: cannot be started (No such file or directory) - see --ssh"),
        ("'x", "--ssh 'x: is no command (No closing quotation)"),
        ("", "--ssh: is empty"),
    ],
)
def test_an_ssh_that_cannot_be_started_is_refused(capsys, ssh, message, tmp_path):
    (tmp_path / "hosts").write_text("here 127.0.0.1\n")
    command = ["-n", "1", "--hosts", f"{tmp_path}/hosts", "--ssh", ssh, "--", "train", "base", f"out={tmp_path}/job"]
    assert main(["launch", *command]) == 2
    assert message in capsys.readouterr().err


def test_two_jobs_do_not_share_a_folder(capsys, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker-0.log").write_text("of the first\n")
    with locked_folder(tmp_path / "logs"):
        assert main(["launch", "-n", "1", "--", "train", "base", f"out={tmp_path}"]) == 2
    assert "logs: another process is at work in it" in capsys.readouterr().err
    assert (tmp_path / "logs" / "worker-0.log").read_text() == "of the first\n"


def test_what_is_not_for_several_processes_is_refused(make, capsys, tmp_path):
    for command, message in [
        (["verify", "--model", "x,1"], "launch verify: only train is for several processes"),
        (["train", "base"], "out is not given"),
        (["train", "base", f"out={tmp_path}/x", "--dry-run"], "--dry-run and --test-io are for one process"),
    ]:
        assert main(["launch", "-n", "2", "--", *command]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_hosts(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("localhost\n\nb 127.0.0.1 # itself, too\n")
    assert read_hosts(file) == [Host("localhost", "127.0.0.1"), Host("b", "127.0.0.1")]
    file.write_text("a 10.0.0.1\nb.lan b\n")
    assert read_hosts(file) == [Host("a", "10.0.0.1"), Host("b.lan", "b")]
    for own in ("127.0.1.1", "::1", "localhost"):
        file.write_text(f"a 10.0.0.1\nb {own}\n")
        with pytest.raises(InputError, match=f"b has the address {own}, .* the others reach it: b ADDRESS"):
            read_hosts(file)
    file.write_text("b 10.0.0.2 16\n")
    with pytest.raises(InputError, match=r"'b 10.0.0.2 16' - a line is NAME \[ADDRESS\], no more"):
        read_hosts(file)
    file.write_text("# none\n")
    with pytest.raises(InputError, match="names no machine"):
        read_hosts(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_hosts(tmp_path / "none")


def test_a_recipe_for_several_processes_is_not_trained_by_one(make, monkeypatch):
    monkeypatch.delenv("VARGFACE_RANK", raising=False)
    with pytest.raises(InputError, match="kvstore = 'dist_sync': is for several processes"):
        train(make(kvstore="dist_sync"))
    with pytest.raises(InputError, match="kvstore = 'dist_async': must be dist_sync"):
        train(make(kvstore="dist_async"))


@pytest.fixture
def of_two(monkeypatch):
    """As in a worker of a job of two."""
    monkeypatch.setenv("VARGFACE_RANK", "0")
    monkeypatch.setenv("DMLC_NUM_WORKER", "2")


def test_a_batch_that_workers_cannot_share_out_is_refused(make, of_two):
    message = "batch_size = 6: must be a multiple of the 2 workers x 2 contexts x accumulate = 1"
    with pytest.raises(InputError, match=message):
        plan.make_plan(make(kvstore="dist_sync", batch_size=6, context="cpu(0),cpu(1)"))


def test_a_head_that_servers_cannot_sum_is_refused(make, of_two, monkeypatch):
    size = 4 * tiny.IDENTITIES * tiny.DIMENSIONS
    monkeypatch.setattr(plan, "MOST_BYTES", size - 1)
    with pytest.raises(InputError, match="4 classes x embedding_size = 16 are 0.00 GB of fc7, .* - set class_share"):
        plan.make_plan(make(kvstore="dist_sync"))
    plan.make_plan(make(kvstore="dist_sync", class_share=1))
    plan.make_plan(make())
    monkeypatch.setattr(plan, "MOST_BYTES", size)
    plan.make_plan(make(kvstore="dist_sync"))


def test_the_team_of_one_sums_nothing_and_hears_itself():
    team = team_of("")
    assert (team.rank, team.size, team.leads) == (0, 1, True)
    assert team.agreed(3, 2**30) == [3, 2**30]
    team.note(stop=True, save=False)
    assert team.heard == {"stop"}


def test_who_waits_for_the_others_says_so(monkeypatch, caplog):
    from vargface.runtime import mx
    from vargface.training import team

    monkeypatch.setattr(team, "WAIT_SECONDS", 0.1)
    monkeypatch.setenv("DMLC_NUM_SERVER", "3")
    monkeypatch.setattr(team, "_joined", [])

    def come(kind: str) -> None:
        until = time.monotonic() + 10
        while len(caplog.records) < 2 and time.monotonic() < until:
            time.sleep(0.01)

    monkeypatch.setattr(mx.kv, "create", come)
    Team("dist_sync", size=2).join()
    said = [record.message for record in caplog.records]
    assert said[:2] == ["waiting for others of the job: 2 workers and 3 servers are to come"] * 2
    time.sleep(0.25)
    assert len(caplog.records) == len(said), "it goes on once they are there"


def test_a_team_sums_over_contexts_and_workers():
    """The store of this process in a server's place: what is summed then is its contexts' alone."""
    from vargface.runtime import mx

    team = Team("local", size=1)
    team.join()
    arrays = [mx.nd.full((3,), value, ctx=mx.cpu(at)) for at, value in enumerate((1, 2))]
    team.sum("x", arrays)
    assert [list(array.asnumpy()) for array in arrays] == [[3] * 3] * 2
    team.mean("x", arrays)
    assert [list(array.asnumpy()) for array in arrays] == [[3] * 3] * 2
    arrays[1][:] = 7
    team.give("x", arrays)
    assert [list(array.asnumpy()) for array in arrays] == [[3] * 3] * 2
    team.note(stop=False, save=True)
    assert team.heard == frozenset()
    team.sum_gradients(["y"], [arrays])
    assert team.heard == {"save"} and list(arrays[0].asnumpy()) == [6] * 3
