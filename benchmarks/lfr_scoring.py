"""Scoring the LFR challenge, end to end, against this machine's matrix product; and what 1,862,120 images would take.

    python benchmarks/lfr_scoring.py [--rows 25000 50000 100000] [--dimensions 512] [--processes 2] [--rounds 3]

`sgemm` is what as many processes, with one BLAS thread and the same code each, reach with products of 1024 x D x 1024
that they do nothing with. `score` is `vargface lfr score` as a process, from its start to the printed table: 15 % of
the rows are of persons with 15 images each, the others distractors, in random order. Rate: 2 D operations a pair, pairs
counted once. Products and scores take turns; figures are medians.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vargface.eval.lfr.features import header, normalised
from vargface.runtime import cores
from vargface.workers import one_blas_thread

CHALLENGE_ROWS = 1_862_120
PRODUCTS = """
import sys, time
import numpy as np
side, dimensions, seconds = 1024, int(sys.argv[1]), 1.5
rows = np.random.default_rng(0).normal(size=(2, side, dimensions)).astype(np.float32)
out, count = np.empty((side, side), np.float32), 0
np.dot(rows[0], rows[1].T, out=out)
print(flush=True)
sys.stdin.readline()
start, cpu = time.perf_counter(), time.process_time()
while time.perf_counter() - start < seconds:
    np.dot(rows[0], rows[1].T, out=out)
    count += 1
done = 2 * side * side * dimensions * count
print(done / (time.perf_counter() - start), done / (time.process_time() - cpu))
"""


def sgemm_rates(dimensions: int, processes: int) -> tuple[float, float]:
    """Return the operations a second, and a CPU second, of `processes` processes that multiply at the same time."""
    command = [sys.executable, "-c", PRODUCTS, str(dimensions)]
    environment = {**one_blas_thread(), **os.environ}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, env=environment, **pipes) for _ in range(processes)]
    for process in running:
        process.stdout.readline()
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    rates = [list(map(float, process.communicate()[0].split())) for process in running]
    return sum(rate for rate, _ in rates), statistics.mean(rate for _, rate in rates)


def write_test_set(path: Path, rows: int, dimensions: int) -> None:
    """Write a feature file and PATH.txt, its labels."""
    rng = np.random.default_rng(rows)
    known = rows * 15 // 100
    labels = rng.permutation(np.concatenate([np.arange(known) // 15, np.full(rows - known, -1)]))
    centres = rng.normal(size=(known // 15 + 1, dimensions)).astype(np.float32)
    with open(path, "wb") as file:
        file.write(header(rows, dimensions))
        for start in range(0, rows, 8192):
            some = labels[start : start + 8192]
            noise = rng.normal(size=(len(some), dimensions)).astype(np.float32)
            file.write(normalised(np.where(some[:, None] >= 0, centres[some] + noise, noise)).tobytes())
    np.savetxt(f"{path}.txt", labels, fmt="%d")


def score_seconds(path: Path, processes: int) -> tuple[float, float]:
    """Return how long the command takes, by the clock and in CPU time."""
    command = [str(Path(sys.executable).with_name("vargface")), "lfr", "score", str(path), f"{path}.txt"]
    command += ["--fpr", "1e-6", "--processes", str(processes)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[25_000, 50_000, 100_000])
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--processes", type=int, default=cores())
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{options.dimensions}-d, {options.processes} processes of one BLAS thread, median of {options.rounds}")
    print("     rows  seconds  CPU s  GFLOP/s  sgemm   of it  by CPU time  hours for 1,862,120 on 1, 4, 16 machines")
    with tempfile.TemporaryDirectory() as folder:
        for rows in options.rows:
            path = Path(folder) / f"{rows}.bin"
            write_test_set(path, rows, options.dimensions)
            figures = [
                (*sgemm_rates(options.dimensions, options.processes), *score_seconds(path, options.processes))
                for _ in range(options.rounds)
            ]
            rate, cpu_rate, seconds, cpu_seconds = (statistics.median(column) for column in zip(*figures))
            work = rows * (rows - 1) * options.dimensions
            by_clock, by_cpu = work / seconds / rate, work / cpu_seconds / cpu_rate
            hours = cpu_seconds / options.processes * (CHALLENGE_ROWS / rows) ** 2 / 3600
            projected = ", ".join(f"{hours / machines:.2f}" for machines in (1, 4, 16))
            print(
                f"{rows:>9,}  {seconds:>7.1f}  {cpu_seconds:>5.1f}  {work / seconds / 1e9:>7.0f}  {rate / 1e9:>5.0f}"
                f"  {by_clock:>6.1%}  {by_cpu:>11.1%}  {projected}",
                flush=True,
            )


if __name__ == "__main__":
    main()
