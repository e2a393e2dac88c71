"""Files are whole or absent, whatever stops the writing."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys

import numpy as np
import pytest
from tiny import largest_file, small_disk

from vargface.errors import InputError
from vargface.files import locked_file, locked_folder, make_folder, open_file, save_whole, whole_file


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 64 KiB."""
    with small_disk(tmp_path / "disk", "64k") as folder:
        yield folder


def test_a_whole_file_takes_its_name_at_the_end(tmp_path):
    path = tmp_path / "a.bin"
    with whole_file(path) as file:
        file.write(b"content")
        assert not path.exists()
        assert os.path.dirname(file.name) == str(tmp_path)
    assert path.read_bytes() == b"content"
    assert os.listdir(tmp_path) == ["a.bin"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_text_mode(tmp_path):
    with whole_file(tmp_path / "a.txt", "w") as file:
        file.write("text")
    assert (tmp_path / "a.txt").read_text() == "text"


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt, InputError])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, stop):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(stop, match="this one"), whole_file(path) as file:
        file.write(b"half of the n")
        raise stop("this one")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_only_files_are_opened(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"content")
    with open_file(tmp_path / "a.bin") as file:
        assert file.read() == b"content"
    os.mkfifo(tmp_path / "pipe")
    for other, why in (("pipe", "a pipe or a device"), (".", "Is a directory"), ("none", "No such file")):
        with pytest.raises(OSError, match=why):
            open_file(tmp_path / other)


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(InputError, match=r"no/a\.bin: cannot write \(No such file"), whole_file(tmp_path / "no/a.bin"):
        pass


def test_a_folder_in_the_way_is_said(tmp_path):
    (tmp_path / "a.bin" / "inside").mkdir(parents=True)
    with pytest.raises(InputError, match=r"a\.bin: cannot write"), whole_file(tmp_path / "a.bin"):
        pass
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_full_disk_is_said_and_leaves_the_old_file(full_disk):
    with whole_file(full_disk / "a.bin") as file:
        file.write(b"old")
    refused = pytest.raises(InputError, match=r"a\.bin: cannot write \(No space left on device\)")
    with refused, whole_file(full_disk / "a.bin") as file:
        file.write(bytes(100_000))
    assert (full_disk / "a.bin").read_bytes() == b"old"
    assert os.listdir(full_disk) == ["a.bin"]


def test_what_fails_only_when_the_buffer_is_flushed_is_said(tmp_path):
    with largest_file(10), pytest.raises(InputError, match=r"a\.bin: cannot write \(File too large\)"), whole_file(
        tmp_path / "a.bin"
    ) as file:
        file.write(bytes(11))
    assert os.listdir(tmp_path) == []


def test_make_folder_makes_the_parents_and_takes_one_that_exists(tmp_path):
    for _ in range(2):
        assert make_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert os.listdir(tmp_path / "a" / "b") == []


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_the_way_of_a_folder_is_said(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=f"{name}: cannot write there"):
        make_folder(tmp_path / name)


def test_a_folder_that_may_not_be_written_to_is_said():
    with pytest.raises(InputError, match="cannot write there"):
        make_folder("/proc/vargface")
    with pytest.raises(InputError, match="/proc: cannot write there"):
        make_folder("/proc")


HOLD = """
import sys, time
from vargface.files import locked_folder
with locked_folder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_locked_against_other_processes_until_the_holder_dies(tmp_path):
    folder = tmp_path / "new" / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError) as refused, locked_folder(folder):
            pass
        assert str(refused.value) == (
            f"{folder}: another process is at work in it - wait until it ends, or choose another folder"
        )
        holder.kill()
    for _ in range(2):
        with locked_folder(folder) as locked:
            assert locked == folder


def test_a_file_is_locked_against_other_processes_and_its_lock_leaves(tmp_path):
    path = tmp_path / "state.npz"
    for _ in range(2):
        with locked_file(path):
            assert os.listdir(tmp_path) == ["state.npz.lock"]
            with pytest.raises(InputError) as refused, locked_file(path):
                pass
            assert str(refused.value) == (
                f"{path}: another process is at work in it - wait until it ends, or choose another file"
            )
        assert os.listdir(tmp_path) == []
    told = r"none/state\.npz\.lock: cannot write"
    with pytest.raises(InputError, match=told), locked_file(tmp_path / "none/state.npz"):
        pass


def test_a_lock_of_a_file_that_its_holder_removes_meanwhile_is_not_taken(tmp_path, monkeypatch):
    """Opened before it was removed and locked after it: a third process would lock the file of that name."""
    path, taken, flock = tmp_path / "state.npz", [], fcntl.flock

    def late(descriptor, how):
        if not taken:
            os.unlink(f"{path}.lock")
        taken.append(descriptor)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked_file(path):
        assert len(taken) == 2
        assert os.listdir(tmp_path) == ["state.npz.lock"]


def test_a_lock_leaves_with_its_block_and_what_was_raised_in_it_stays(tmp_path):
    with pytest.raises(BlockingIOError), locked_folder(tmp_path):
        raise BlockingIOError
    with locked_folder(tmp_path):
        assert os.listdir(tmp_path) == [".lock"]


def test_where_the_file_system_has_no_locks_work_goes_on_and_it_is_said(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked_folder(tmp_path):
        pass
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}: cannot be locked (Function not implemented)")


def test_a_folder_whose_lock_cannot_be_written_is_refused(tmp_path):
    (tmp_path / ".lock").mkdir()
    told = r"\.lock: cannot write \(Is a directory\) - choose another folder"
    with pytest.raises(InputError, match=told), locked_folder(tmp_path):
        pass


@pytest.mark.parametrize("save", [np.save, lambda file, array: np.savez(file, a=array)], ids=["npy", "npz"])
def test_arrays_are_whole_or_not_there(tmp_path, save):
    array = np.arange(100_000)
    written = save_whole(tmp_path / "whole", lambda file: save(file, array))
    assert (tmp_path / "whole").read_bytes() == bytes(written)
    with largest_file(100_000), pytest.raises(InputError, match=r"few: cannot write \(File too large\)"):
        save_whole(tmp_path / "few", lambda file: save(file, array))
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
