"""Memory of scoring the LFR challenge beside the files that are mapped: the most of all processes together.

    python benchmarks/lfr_memory.py [--rows 1862120] [--dimensions 512] [--processes 2] [--seconds 150]
        [--command score]

A test set as in `lfr_scoring.py` is written (4 GB at the challenge's size), and the command watched for so many
seconds, 0 for its whole life: `RssAnon` and `RssShmem` of it and its workers, ten times a second. The total is that of
one moment; the parent's and a worker's most are each its own.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lfr_scoring import write_test_set

from vargface.runtime import cores


def own_bytes(process: int) -> int:
    """Return what a process has of memory that is no file's; 0 if it has ended."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{process}/status").read_text()
        return 1024 * sum(map(int, re.findall(r"^Rss(?:Anon|Shmem):\s*(\d+) kB", status, re.MULTILINE)))
    return 0


def children(process: int) -> list[int]:
    """Return the processes that `process` has started, and those that they have."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found + [other for child in found for other in children(child)]


def watched(command: list[str], seconds: float) -> tuple[int, int, int]:
    """Return the most bytes of all processes together, of the parent and of one worker."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most, until = (0, 0, 0), time.monotonic() + (seconds or float("inf"))
    while process.poll() is None and time.monotonic() < until:
        parent, workers = own_bytes(process.pid), list(map(own_bytes, children(process.pid)))
        most = tuple(map(max, most, (parent + sum(workers), parent, max(workers, default=0))))
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    if process.wait() not in (0, 130):
        raise SystemExit(f"{' '.join(command)}: ended with {process.returncode}")
    return most


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_862_120)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--processes", type=int, default=cores())
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--command", choices=("score", "identify"), default="score")
    parser.add_argument("--folder", help="for the test set (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "feat.bin"
        write_test_set(path, options.rows, options.dimensions)
        command = [str(Path(sys.executable).with_name("vargface")), "lfr", options.command, str(path), f"{path}.txt"]
        command += ["--processes", str(options.processes), *(["--fpr", "1e-6"] if options.command == "score" else [])]
        most = watched(command, options.seconds)
    total, parent, worker = (f"{number / 2**20:,.0f} MiB" for number in most)
    print(
        f"{options.command}, {options.rows:,} rows of {options.dimensions}-d, {options.processes} processes: {total}; "
        f"parent {parent}, a worker {worker}"
    )


if __name__ == "__main__":
    main()
