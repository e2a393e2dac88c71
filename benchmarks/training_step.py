"""Speed of a training step of full-width VarGFaceNet on the CPU: ours against the original graph, and PyTorch.

    python benchmarks/training_step.py [--batch 16 32] [--threads 2] [--rounds 7] [--torch PYTHON] [--profile]

A step is forward, backward and an SGD-momentum update of the backbone. Every way runs in a process of its own, for its
environment is read once; the processes take turns, one round each, so that a noisy machine is noisy for all. A figure
is the median over rounds, `ratio` is to the first way. PyTorch runs the same graph (benchmarks/torch_step.py) if the
interpreter of an environment with `torch` is named. With ReLU in PReLU's place it is another network: the row shows
what PReLU costs. --profile prints instead where the time of a step goes, by operator, of the graph that trains,
on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vargface.graph import Place, Writer

HERE = Path(__file__).parent
# way -> (what of its environment differs from MXNet's own, the graph, a context for every thread?)
WAYS = {
    "original": ({}, "native", False),
    "original, MKLDNN off": ({"MXNET_MKLDNN_ENABLED": "0"}, "native", False),
    "vargface, one context": ({"DNNL_MAX_CPU_ISA": "AVX2"}, "training", False),
    "vargface, a context a thread": ({"DNNL_MAX_CPU_ISA": "AVX2"}, "training", True),
    "ReLU for PReLU, one context": ({"DNNL_MAX_CPU_ISA": "AVX2"}, "relu", False),
}


def relu_for_prelu(place: Place, write: Writer) -> list | None:
    """Return the node that stands for a PReLU, None for any other."""
    return write("Activation", place.name, place.inputs[:1], act_type="relu") if place.op == "LeakyReLU" else None


def mxnet_step(graph: str, batch: int, contexts: int) -> Callable[[], None]:
    """Return a function that does one step of the network's `native`, `training` or `relu` graph, and waits for it."""
    import numpy as np

    from vargface.graph import rewrite, training_form
    from vargface.runtime import mx
    from vargface.symbols import vargfacenet

    symbol = vargfacenet.get_symbol()
    if graph == "relu":
        symbol = rewrite(symbol, [relu_for_prelu])
    if graph != "native":
        symbol = training_form(symbol)
    module = mx.mod.Module(symbol, label_names=None, context=[mx.cpu(number) for number in range(contexts)])
    module.bind([("data", (batch, 3, 112, 112))])
    module.init_params(mx.init.Xavier(rnd_type="gaussian", factor_type="out", magnitude=2))
    module.init_optimizer(optimizer_params={"learning_rate": 0.01, "momentum": 0.9, "rescale_grad": 1 / batch})
    random = np.random.default_rng(0)
    images = mx.io.DataBatch([mx.nd.array(random.integers(0, 256, (batch, 3, 112, 112)))])
    gradient = [mx.nd.array(random.normal(size=(batch, 512)))]

    def step() -> None:
        module.forward(images, is_train=True)
        module.backward(gradient)
        module.update()
        mx.nd.waitall()

    return step


def profile(batch: int, steps: int = 5) -> dict[str, float]:
    """Return operator -> seconds of a step of the training graph, largest first; in a process of its own."""
    os.environ.update(OMP_NUM_THREADS="1", DNNL_MAX_CPU_ISA="AVX2", MXNET_EXEC_BULK_EXEC_TRAIN="0")
    from vargface.runtime import mx

    step = mxnet_step("training", batch, 1)
    step()
    with tempfile.TemporaryDirectory() as folder:
        mx.profiler.set_config(profile_symbolic=True, aggregate_stats=True, filename=f"{folder}/profile.json")
        mx.profiler.set_state("run")
        for _ in range(steps):
            step()
        mx.profiler.set_state("stop")
        operators = json.loads(mx.profiler.dumps(format="json"))["Time"]["operator"]
    seconds = {name: found["Total"] / 1000 / steps for name, found in operators.items()}
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def answer(step: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> None:
    """Warm up, say so, then time one step for every line on standard input and print its seconds by `clock`."""
    for _ in range(2):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = clock()
        step()
        print(clock() - started, flush=True)


class Worker:
    """A process that times a step whenever it is asked."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self._line() != "ready":
            raise SystemExit(f"{' '.join(command)}: did not start - run it by hand to see why")

    def __call__(self) -> float:
        """Return the seconds of one step."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()

    def _line(self) -> str:
        return self._process.stdout.readline().strip()


def taking_turns(workers: Mapping[str, Worker], rounds: int) -> dict[str, list[float]]:
    """Return way -> the seconds of each of `rounds` steps, all ways taking turns; the workers end."""
    seconds: dict[str, list[float]] = {way: [] for way in workers}
    for _ in range(rounds):
        for way, worker in workers.items():
            seconds[way].append(worker())
    for worker in workers.values():
        worker.close()
    return seconds


def workers(batch: int, threads: int, torch: str | None, folder: Path) -> dict[str, Worker]:
    """Return way -> its process, warmed up."""
    theirs = ("MXNET_", "DNNL_", "OMP_", "MKL_")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    found = {}
    for way, (differing, _, split) in WAYS.items():
        environment = {**plain, **differing, "OMP_NUM_THREADS": str(1 if split else threads)}
        command = [sys.executable, __file__, "--way", way, "--batch", str(batch), "--threads", str(threads)]
        found[way] = Worker(command, environment)
    if torch:
        from vargface.symbols import vargfacenet

        graph = folder / "vargfacenet.json"
        graph.write_text(vargfacenet.get_symbol().tojson())
        command = [torch, str(HERE / "torch_step.py"), str(graph), str(batch), str(threads)]
        found["PyTorch, eager"] = Worker(command, {**plain, "OMP_NUM_THREADS": str(threads)})
    return found


def main() -> None:
    """Print the table, or answer as the worker of one way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has torch")
    parser.add_argument("--profile", action="store_true", help="by operator, of the first batch size")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        _, graph, split = WAYS[options.way]
        answer(mxnet_step(graph, options.batch[0], options.threads if split else 1))
        return
    if options.profile:
        seconds = profile(options.batch[0])
        total = sum(seconds.values())
        print(f"a step of {options.batch[0]} images on one thread: {total:.2f} s in operators")
        for name, spent in seconds.items():
            if spent > 0.005 * total:
                print(f"{100 * spent / total:>5.1f} %  {name}")
        return
    print(f"VarGFaceNet x 1.25, {options.threads} threads, median of {options.rounds} steps")
    print(f"{'batch':>5}  {'way':<28}  {'img/s':>6}  ratio")
    for batch in options.batch:
        with tempfile.TemporaryDirectory() as folder:
            seconds = taking_turns(workers(batch, options.threads, options.torch, Path(folder)), options.rounds)
        medians = {way: statistics.median(times) for way, times in seconds.items()}
        first = next(iter(medians.values()))
        for way, median in medians.items():
            print(f"{batch:>5}  {way:<28}  {batch / median:>6.1f}  {first / median:>5.2f}", flush=True)


if __name__ == "__main__":
    main()
