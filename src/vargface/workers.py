"""A function on each of many tasks in several processes: results in order, and a quiet end whatever ends them."""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["in_order", "one_blas_thread"]

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int,
    *,
    start: Callable[[], Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Result]:
    """Yield `function(task)` of each of `tasks`, in order, from `workers` processes, or from this one if 1.

    Tasks are drawn as they are needed, a few ahead of the results. start: called first in each process. environment:
    variables of the processes; those that this one has already win. When the iterator is closed before its end, or this
    process gets an exception, the workers end where they are.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    others = set(multiprocessing.active_children())
    # Spawned, not forked: the caller may hold threads (MXNet's) that do not survive a fork.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (start,))
    futures: collections.deque = collections.deque()
    try:
        for task in tasks:
            with _deaf_children(), _environment(environment or {}):
                futures.append(pool.submit(function, task))
            if len(futures) > workers:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    except BaseException:
        # not cancelled: a pool complains of what it finds cancelled when its workers end just then
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        # one may have been ended in the middle of a result, of whose rest the pool would wait for ever: without this
        # end of the pipe, it comes to its end with the workers
        pool._result_queue._writer.close()
        raise
    finally:
        pool.shutdown()


def _start_worker(start: Callable[[], Any] | None) -> None:
    # a parent that is killed cannot end its workers, which would wait for work for ever
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def one_blas_thread() -> dict[str, str]:
    """Return the environment of a process that shares the cores with others like it, a thread of OpenBLAS each.

    OpenBLAS picks its code by the processor's name and takes the one for AVX2 where it does not know it, as that of
    numpy 1.23 does not know AMD's that have AVX-512; the one for AVX-512 is twice as fast there.
    """
    environment = {"OPENBLAS_NUM_THREADS": "1"}
    with contextlib.suppress(OSError):  # no Linux, no such file
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if flags and {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"} <= set(flags[1].split()):
            environment["OPENBLAS_CORETYPE"] = "SkylakeX"
    return environment


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set `variables` that are not set, for the processes started in this block."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started in this block never hear Ctrl-C, which a terminal sends to all; this one does when it ends.

    Children that are told to ignore it would die of it, and complain, in the half second before they are. SIGTERM,
    which ends them without a word, waits here too: a child whose parent leaves off starting it complains as well.
    """
    heard: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()  # which alone hears them
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    handlers = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # children have it from their parent
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if heard:  # also where a child that the same signal ended has broken the pool
            signal.raise_signal(heard[0])
