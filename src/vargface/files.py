"""Files: opened; written whole or not at all (a temporary name, synced, renamed); held by one process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from vargface.errors import InputError

__all__ = [
    "digest",
    "locked_file",
    "locked_folder",
    "make_folder",
    "open_file",
    "save_whole",
    "scratch_folder",
    "sha256",
    "whole_file",
]

logger = logging.getLogger(__name__)

LOCK = ".lock"


@contextlib.contextmanager
def whole_file(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Yield a file open for writing under a temporary name (`file.name`); it becomes `path` when the block has ended.

    After an exception nothing is left and what had the name `path` before still has it.

    Raises InputError where the system refuses the write (no space, no permission, a folder in the way).
    """
    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.fchmod(handle, 0o644)  # mkstemp's files are its owner's alone
        os.close(handle)
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(
            f"{path}: cannot write ({error.strerror or error}) - free space or choose another place"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _sync_folder(folder: Path) -> None:
    """Have the names in `folder` on the disk, too: what is removed next may be all that a power cut would leave."""
    with contextlib.suppress(OSError):  # some network file systems know no such thing
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_whole(path: str | Path, save: Callable[[IO[bytes]], object]) -> memoryview:
    """Have `save` write into memory and that to `path`, whole or not at all, and return what was written.

    For numpy's writers: straight into a file, `save` does not notice a full disk, and `savez` complains later of a file
    that was closed. Raises InputError as `whole_file`.
    """
    content = io.BytesIO()
    save(content)
    with whole_file(path) as file:
        file.write(content.getbuffer())
    return content.getbuffer()


def open_file(path: str | Path) -> IO[bytes]:
    """Return file `path` open for reading its bytes.

    Raises OSError where it cannot be read, and for a pipe or a device, at which a reader may wait for ever.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # of a folder, open says it
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
    return open(path, "rb")


def make_folder(path: str | Path) -> Path:
    """Create folder `path` with its parents, check that it can be written to, and return it.

    Raises InputError where it cannot be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot write there ({error.strerror or error}) - choose another folder") from error
    return path


@contextlib.contextmanager
def locked_folder(path: str | Path) -> Iterator[Path]:
    """Make folder `path` and yield it, its file `.lock` locked until the block ends or the process does, however.

    Raises InputError where it cannot be written to, and where another process holds it.
    """
    path = make_folder(path)
    # the file stays: it is of no weight in a folder, and removing it takes care (`locked_file`)
    lock = _locked(path / LOCK, path, "folder")
    try:
        yield path
    finally:
        os.close(lock)


@contextlib.contextmanager
def locked_file(path: str | Path) -> Iterator[None]:
    """Keep file `path`, which may not exist and may be replaced, from other processes that ask for it in this way.

    PATH.lock is locked until the block ends, which removes it, or the process does. Raises InputError as
    `locked_folder`.
    """
    name = Path(f"{path}.lock")
    while True:
        lock = _locked(name, path, "file")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(name), os.fstat(lock)):
                break
        os.close(lock)  # the process that held it has removed it meanwhile
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
        os.close(lock)


def _locked(name: Path, path: str | Path, kind: str) -> int:
    """Return the descriptor of file `name`, made and locked. Raises InputError where `path` is held."""
    try:
        lock = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"{name}: cannot write ({error.strerror or error}) - choose another {kind}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise InputError(
            f"{path}: another process is at work in it - wait until it ends, or choose another {kind}"
        ) from error
    except OSError as error:  # some network file systems have no locks
        logger.warning("%s: cannot be locked (%s); see to it that no other process uses it", path, error.strerror)
    return lock


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a folder that is gone, and all in it, when the block has ended."""
    with tempfile.TemporaryDirectory(prefix="vargface-") as folder:
        yield Path(folder)


def sha256(*paths: Path) -> str:
    """Return the SHA-256 (hexadecimal) of the bytes of these files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def digest(*paths: Path) -> str:
    """Return what recipes and stores say of files: "sha256 " and the first 16 digits of `sha256`."""
    return f"sha256 {sha256(*paths)[:16]}"
