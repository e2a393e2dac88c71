"""Starts the processes of a job, here or through ssh, and ends all of them when one dies: none is left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import ipaddress
import logging
import math
import os
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from vargface.errors import InputError
from vargface.files import make_folder
from vargface.interrupt import handled
from vargface.jobs.orders import NAMES, RANK, ROLES, STOP_SECONDS

__all__ = ["Failure", "Host", "Stopped", "launch", "read_hosts"]

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
# seconds: for the others to end once rank 0 has; for what a member said last to come
FOLLOW_SECONDS, LAST_WORDS_SECONDS = 5.0, 5.0
# seconds after the first SIGTERM from which another is none of timeout(1)'s, which sends it twice
AGAIN_SECONDS = 10.0
# what of this process's environment its members on other machines get too
FORWARDED = ("MXNET_", "OMP_", "DNNL_", "PS_", "CUDA_")


class Failure(Exception):
    """A member died; `code` is the exit code that its end gives the job."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Stopped(Exception):
    """The job was stopped by a signal; `code` is 130 or 143."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclasses.dataclass(frozen=True)
class Host:
    """A machine: `name` for ssh, "" for this one without ssh, and the `address` at which the others reach it."""

    name: str
    address: str


def read_hosts(path: str | Path) -> list[Host]:
    """Return the machines of a file of lines NAME [ADDRESS]; without an address it is what the name resolves to.

    Raises InputError where the file cannot be read, names none, a name does not resolve, or the others cannot reach it.
    """
    try:
        lines = [line.partition("#")[0].split() for line in Path(path).read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    hosts = []
    for name, *address in filter(None, lines):
        if len(address) > 1:
            raise InputError(f"{path}: {' '.join([name, *address])!r} - a line is NAME [ADDRESS], no more")
        try:
            hosts.append(Host(name, address[0] if address else socket.gethostbyname(name)))
        except OSError as error:
            raise InputError(f"{path}: {name} has no address ({error}) - write it behind the name") from error
    if not hosts:
        raise InputError(f"{path}: names no machine - write one a line: NAME [ADDRESS]")
    own = [host for host in hosts if _is_loopback(host.address)]
    if 0 < len(own) < len(hosts):
        raise InputError(
            f"{path}: {own[0].name} has the address {own[0].address}, where each machine finds itself alone - write "
            f"the one at which the others reach it: {own[0].name} ADDRESS"
        )
    return hosts


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a name
        return address == "localhost"


class _Member:
    """A process of the job."""

    def __init__(self, role: str, number: int, host: Host, command: list[str], environment: dict[str, str]) -> None:
        self.role, self.number = role, number
        self.name = role if role == "scheduler" else f"{role} {number}"
        self.where = f"{self.name} on {host.name}" if host.name else self.name
        self.last = ""
        # a session of its own: a terminal's Ctrl-C is for the launcher, which passes it on
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def tell(self, name: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has ended
            self.process.stdin.write(f"{name}\n".encode())
            self.process.stdin.flush()

    def kill(self) -> None:
        """End it and all that it started."""
        self.tell("KILL")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def launch(
    arguments: Sequence[str],
    workers: int,
    servers: int,
    *,
    logs: str | Path,
    hosts: Sequence[Host] = (),
    ssh: str = "ssh",
    port: int = 0,
) -> None:
    """Run `vargface ARGUMENT...` as `workers` workers with as many parameter `servers` as said, until all have ended.

    hosts: the machines that workers and servers take turns on, the scheduler on the first; none: all are on this one,
    and talk through its loopback alone. Each machine has this Python, this folder and the files that the command names
    under the same paths. port: of the scheduler; 0: a free one of this machine.

    What the members say goes to `logs`/ROLE-NUMBER.log and, with its origin before it, to stderr; what worker 0 prints
    goes to stdout as it is. SIGINT, SIGTERM and SIGUSR1 are passed on to the workers.

    Raises InputError where `port` is taken or `ssh` cannot be started, Failure as soon as a member has died, Stopped
    after a signal, each when no process is left. Workers have STOP_SECONDS to end after a signal; a second SIGINT, or
    SIGTERM after AGAIN_SECONDS, waits for none.
    """
    where = list(hosts) or [Host("", LOOPBACK)]
    network = {
        "DMLC_PS_ROOT_URI": where[0].address,
        "DMLC_PS_ROOT_PORT": str(_port_of(where[0], port)),
        "DMLC_NUM_WORKER": str(workers),
        "DMLC_NUM_SERVER": str(servers),
    }
    ended: queue.Queue = queue.Queue()
    members: list[_Member] = []
    folder = make_folder(logs)
    with _signals_to(members) as heard:
        try:
            for role, count in zip(ROLES, (1, servers, workers)):
                for number in range(count):
                    host = where[number % len(where)]
                    variables = {**network, "DMLC_NODE_HOST": host.address, RANK: str(number)}
                    members.append(_start(role, number, host, arguments, variables, ssh))
                    _listen(members[-1], folder / f"{role}-{number}.log", ended)
                    if heard:  # who is not there yet would not hear of it
                        raise Stopped(_code_of(heard))
            _wait(members, ended, heard)
        finally:
            for member in members:
                member.kill()


def _port_of(host: Host, port: int) -> int:
    """Return `port` of `host`, or one that is free for 0. Raises InputError where it is seen from here to be taken."""
    try:
        with socket.socket() as probe:
            # as MXNet does: a connection that has just ended takes no port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.address, port))
            probe.listen()
            return probe.getsockname()[1]
    except OSError as error:
        if not port:
            raise InputError(f"{host.name}: no port can be found from here - say one free there: --port") from error
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):  # the address of another machine
            return port
        raise InputError(f"--port {port}: {error.strerror} - choose another one") from error


def _start(
    role: str, number: int, host: Host, arguments: Sequence[str], variables: dict[str, str], ssh: str
) -> _Member:
    command = [sys.executable, "-m", "vargface.member", role, *(arguments if role == "worker" else ())]
    environment = {**os.environ, **variables}
    if host.name:
        passed = {**{key: os.environ[key] for key in os.environ if key.startswith(FORWARDED)}, **variables}
        settings = [f"{key}={value}" for key, value in passed.items()]
        there = f"cd {shlex.quote(os.getcwd())} && exec env {shlex.join([*settings, *command])}"
        command = [*_words_of(ssh), host.name, there]
    try:
        return _Member(role, number, host, command, environment)
    except OSError as error:
        raise InputError(f"{command[0]}: cannot be started ({error.strerror}) - see --ssh") from error


def _words_of(ssh: str) -> list[str]:
    try:
        words = shlex.split(ssh)
    except ValueError as error:
        raise InputError(f"--ssh {ssh}: is no command ({error})") from error
    if not words:
        raise InputError("--ssh: is empty - leave it out for `ssh`")
    return words


def _listen(member: _Member, log: Path, ended: queue.Queue) -> None:
    """Have threads copy what `member` says, and put it into `ended` when it has ended and all is copied.

    Raises InputError where `log` cannot be written.
    """
    try:
        with open(log, "ab"):
            pass
    except OSError as error:
        raise InputError(f"{log}: cannot be written ({error.strerror})") from error
    plain = member.role == "worker" and member.number == 0
    streams = (member.process.stdout, plain), (member.process.stderr, False)
    threads = [threading.Thread(target=_copy, args=(member, *stream, log), daemon=True) for stream in streams]

    def wait() -> None:
        member.process.wait()
        for thread in threads:
            thread.join(LAST_WORDS_SECONDS)  # a process that it left may hold the pipe
        ended.put(member)

    for thread in (*threads, threading.Thread(target=wait, daemon=True)):
        thread.start()


def _copy(member: _Member, stream: IO[bytes], plain: bool, log: Path) -> None:
    """Copy all that comes, whatever becomes of it: who has a full pipe waits, and the job with it, for ever."""
    told = False
    with open(log, "ab", buffering=0) as file:
        for line in stream:
            try:
                file.write(line)
            except OSError as error:
                if not told:
                    told = True
                    _warn(f"{log}: cannot be written ({error.strerror}), and lacks some of what {member.name} says")
            text = line.decode(errors="replace").rstrip("\n")
            with contextlib.suppress(OSError):  # nobody takes it
                if plain:
                    print(text, flush=True)
                elif text:
                    member.last = text
                    print(f"[{member.name}] {text}", file=sys.stderr, flush=True)


def _warn(text: str) -> None:
    with contextlib.suppress(OSError):
        logger.warning(text)


@contextlib.contextmanager
def _signals_to(members: list[_Member]) -> Iterator[list[tuple[int, float]]]:
    """Pass signals on to the workers among `members`; yields the list of those heard that stop a job, each with when.

    When is a time of time.monotonic.
    """
    heard: list[tuple[int, float]] = []

    def pass_on(number: int, _frame: object) -> None:
        if number != signal.SIGUSR1:
            heard.append((number, time.monotonic()))
        name = next(name for name, value in NAMES.items() if value == number)
        for member in members:
            if member.role == "worker":
                member.tell(name)

    with handled(pass_on, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        yield heard


def _wait(members: list[_Member], ended: queue.Queue, heard: list[tuple[int, float]]) -> None:
    """Return when all workers have ended well; raises Failure or Stopped where one has not."""
    left = {member.number: member for member in members if member.role == "worker"}
    stopped, until = 0, math.inf
    while left:
        if heard:
            until = min(until, heard[0][1] + STOP_SECONDS)
        if time.monotonic() > until or _is_urged(heard):
            break
        try:
            # a signal is met between two waits
            member = ended.get(timeout=0.2)
        except queue.Empty:
            continue
        code = member.process.returncode
        if member.role != "worker" or code not in (0, 130, 143):  # also when others have stopped: it may have to save
            raise Failure(*_end_of(member))
        del left[member.number]
        if code:
            stopped = stopped or code
            # whatever there is to save is the first worker's
            until = min(until, time.monotonic() + (STOP_SECONDS if member.number else FOLLOW_SECONDS))
    if 0 in left and not _is_urged(heard):
        _warn(f"{left[0].where} has not ended in {STOP_SECONDS:.0f} s, and is ended")
    if stopped or left:
        raise Stopped(_code_of(heard) if heard else stopped)


def _is_urged(heard: list[tuple[int, float]]) -> bool:
    """Return whether Ctrl-C came again, or SIGTERM well after the first."""
    times = [when for number, when in heard if number == signal.SIGTERM]
    again = times and times[-1] - times[0] > AGAIN_SECONDS
    return bool(again) or sum(number == signal.SIGINT for number, _ in heard) > 1


def _code_of(heard: list[tuple[int, float]]) -> int:
    return 130 if any(number == signal.SIGINT for number, _ in heard) else 143


def _end_of(member: _Member) -> tuple[str, int]:
    """Return what happened to a member, and the job's exit code for it."""
    code = member.process.returncode
    if code < 0:
        return f"{member.where} was killed by {signal.Signals(-code).name}", 128 - code
    said = f": {member.last}" if member.last else ""
    return f"{member.where} ended with exit code {code}{said}", code or 1
