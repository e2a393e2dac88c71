"""Runs the trainings of a study, several at a time, each `vargface train` in a process of its own."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from vargface.errors import InputError
from vargface.files import make_folder
from vargface.interrupt import terminated_by
from vargface.runtime import THREADS
from vargface.study.cells import Job
from vargface.training.run_folder import generation_folder

__all__ = ["make_store", "run_jobs"]

logger = logging.getLogger(__name__)

PROGRAM = (sys.executable, "-m", "vargface")
# seconds between looks at the processes
PAUSE = 0.5


def make_store(teacher: str, data: str, store: Path) -> None:
    """Have `vargface teacher-store` write `store`, or finish it. Raises InputError where it cannot."""
    command = [*PROGRAM, "teacher-store", "--model", teacher, data, str(store)]
    code = subprocess.run(command, check=False).returncode  # what it says, it says for itself
    if code:
        raise KeyboardInterrupt if code in (130, 143) else InputError(f"{store}: was not written, see above")


def run_jobs(recipe: str, jobs: Sequence[Job], at_once: int) -> list[Path]:
    """Run what of `jobs` is not finished, `at_once` at a time, in their order; the output of each goes to FOLDER.log.

    A training that fails is said and the others go on; the logs of those that did are returned. Ctrl-C, SIGTERM and the
    end of the terminal stop all of them, each with its state saved; run again, they go on.
    """
    waiting = [job for job in jobs if not (generation_folder(job.folder, job.generations) / "result.json").exists()]
    running: dict[subprocess.Popen, Job] = {}
    failed: list[Path] = []
    # the trainings, in sessions of their own, hear neither; nohup has SIGHUP ignored
    ends = [signal.SIGTERM] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGTERM, signal.SIGHUP]
    with terminated_by(*ends), tqdm(
        total=len(jobs), initial=len(jobs) - len(waiting), unit="training", disable=None
    ) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    job = waiting.pop(0)
                    running[_start(recipe, job, at_once)] = job
                for process in [process for process in running if process.poll() is not None]:
                    job = running.pop(process)
                    if process.returncode:
                        failed.append(_log_of(job))
                        logger.warning("%s: %s", failed[-1], _last_line(failed[-1]))
                    bar.update()
                time.sleep(PAUSE)
        finally:
            for process in running:
                process.send_signal(signal.SIGINT)
            for process in running:
                process.wait()
    return failed


def _start(recipe: str, job: Job, at_once: int) -> subprocess.Popen:
    make_folder(job.folder.parent)
    environment = dict(os.environ)
    if at_once > 1 and not THREADS:  # what is in the environment otherwise is this process's own setting
        environment["OMP_NUM_THREADS"] = "1"
    with open(_log_of(job), "ab") as log:
        # in a session of its own: a terminal's Ctrl-C would reach it twice, which means to leave at once
        return subprocess.Popen(
            [*PROGRAM, "train", recipe, *job.keys],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _log_of(job: Job) -> Path:
    return job.folder.with_name(f"{job.folder.name}.log")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else "ended without a word"
