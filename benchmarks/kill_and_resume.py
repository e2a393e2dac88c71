"""Is a run that was killed the run that was not? Kills one again and again, at any moment, and compares every bit.

    python benchmarks/kill_and_resume.py DATA [--kills 20] [--steps 300] [--seed 0] [KEY=VALUE ...]

DATA is an InsightFace folder with packs (`vargface synth DATA --identities 40 --images 10 --pairs 30`). Trains a narrow
VarGFaceNet straight through; then the same again in a process that is killed (SIGKILL) at random moments, every other
one while a state is being written, and started anew, until it has been killed often enough. Prints where each kill
fell; exit code 1 if a weight, a moving statistic, the optimiser's state or a checkpoint differs in one bit, or
result.json or a line of a log is missing, twice there or another.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KEYS = [
    "multiplier=0.25",
    "embedding_size=64",
    "batch_size=16",
    "schedule=cosine",
    "lr=0.02",
    "context=cpu",
    "log_every=1",
    "save_every=5",
    "augment=0.5",
]
# what of a log depends on the clock
CLOCK = "images_per_second"


def start(data: Path, out: Path, keys: list[str]) -> subprocess.Popen:
    """Start the training of `out`, or go on with it."""
    program = "import sys; from vargface.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "train", "base", f"data={data}", f"out={out}", *KEYS, *keys]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def last_step(out: Path) -> int:
    """Return the last step that `out` has logged."""
    try:
        lines = (out / "log.csv").read_text().splitlines()[1:]
    except FileNotFoundError:
        return 0
    return int(lines[-1].partition(",")[0] or 0) if lines else 0


def kill(process: subprocess.Popen, out: Path, step: int, while_saving: bool) -> str | None:
    """Kill `process` once it is past `step`; returns where, None where it ended before."""
    before = {file.name for file in out.glob("state/*")}
    while process.poll() is None:
        if last_step(out) >= step:
            # a file under a temporary name, or parts of a state without its .json: it is being written
            files = {file.name for file in out.glob("state/*")} - before
            stems = {Path(name).stem for name in files if not name.startswith(".")}
            writing = any(name.startswith(".") for name in files) or any(f"{stem}.json" not in files for stem in stems)
            if writing or not while_saving:
                process.kill()
                process.wait()
                return f"step {last_step(out)}{', a state half written' if writing else ''}"
            before |= {f"{stem}{suffix}" for stem in stems for suffix in (".json", ".params", ".optimizer")}
        time.sleep(0.0005)
    return None


def differences(one: Path, other: Path) -> list[str]:
    """Return what of two finished runs differs: files of the last state by their bytes, logs by their lines."""
    found = []
    (last,) = sorted((one / "state").glob("*.json"))[-1:]
    for suffix in (".params", ".optimizer"):
        first, second = ((run / "state" / f"{last.stem}{suffix}").read_bytes() for run in (one, other))
        if first != second:
            found.append(f"state/{last.stem}{suffix}")
    saved = [sorted(file.name for file in run.glob("*-[0-9]*.params")) for run in (one, other)]
    if saved[0] != saved[1]:
        return [*found, f"checkpoints ({saved[0]}, {saved[1]})"]
    for name in [*saved[0], "result.json"]:
        if (one / name).read_bytes() != (other / name).read_bytes():
            found.append(name)
    for name in ("log.csv", "verification.csv"):
        if rows(one / name) != rows(other / name):
            found.append(name)
    return found


def rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a log, without what depends on the clock."""
    with open(path, newline="") as file:
        return [{**row, CLOCK: ""} for row in csv.DictReader(file)]


def main() -> int:
    """Train straight, train with kills, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    keys = [f"steps={options.steps}", f"verify_every={max(options.steps // 3, 1)}", *options.keys]
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        straight, killed = Path(scratch) / "straight", Path(scratch) / "killed"
        if start(options.data, straight, keys).wait():
            raise SystemExit("the straight run failed")
        for number in range(options.kills):
            process = start(options.data, killed, keys)
            # spread over the steps that are left, so that the last kill is near the end
            left = options.steps - last_step(killed)
            step = last_step(killed) + moments.randint(0, max(2 * left // (options.kills - number + 1), 1))
            time.sleep(moments.random() * 0.05)
            where = kill(process, killed, min(step, options.steps - 1), while_saving=bool(number % 2))
            print(f"kill {number + 1}: {where or 'the run had ended'}", flush=True)
            if where is None:
                break
        process = start(options.data, killed, keys)
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"the killed run failed: {errors}")
        differing = differences(straight, killed)
        shutil.rmtree(killed)
    print(f"differs: {', '.join(differing)}" if differing else "equal to the last bit")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
