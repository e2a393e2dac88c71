"""Speed of VarGFaceNet on the CPU, images to embeddings: MXNet as InsightFace uses it, ours, ONNX Runtime, int8.

    python benchmarks/inference.py [--model PREFIX,EPOCH] [--calibrate DATA] [--torch PYTHON] [--batch 1 32]
        [--threads 1 2] [--rounds 9] [--cpu-time] [--only WAY ...]

Without a model it is VarGFaceNet at full width with random weights, which is as fast; int8 needs faces to calibrate on.
`Module` is what InsightFace's code does with a checkpoint (symbol, Module, forward), with the kernels that MKLDNN
chooses by itself; its OpenMP threads are as `vargface.runtime` leaves them, not as MXNet comes. `Embedder` is ours,
with a batch on every core (OMP_NUM_THREADS=1), or with all cores on one batch. `MXNet's exporter` is MXNet 1.9.1's own
ONNX, repaired until ONNX Runtime takes it and folds its batch norms (fixed gammas 1, slopes (C, 1, 1), explicit
flatten, arrays that are no inputs). PyTorch runs the checkpoint's own graph (benchmarks/torch_inference.py) if the
interpreter of an environment with `torch` is named: eager, and compiled by it.

Every way runs in a process of its own; they take turns, a pass each round. A figure is the median over rounds, `ratio`
is to the first way. --cpu-time counts seconds of CPU instead of the clock's: on one thread they are the same on a quiet
machine, and still fair on a busy one. Memory is the process's largest, load the time from the import of the package to
the first embedding. --files keeps the exported files for the next call, of the same model.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# what PyTorch's worker reads
GRAPH, WEIGHTS = "graph.json", "weights.npz"
# whose the exported files are
WHOSE = "model.txt"
# way -> environment that differs from MXNet's own; {threads} is the number asked for
WAYS = {
    "Module": {"OMP_NUM_THREADS": "{threads}"},
    "Embedder, a batch a core": {"OMP_NUM_THREADS": "1"},
    "Embedder, all cores on one": {"OMP_NUM_THREADS": "{threads}"},
    "ONNX Runtime, MXNet's exporter": {},
    "ONNX Runtime, our export": {},
    "ONNX Runtime, our export --avx512": {},
    "ONNX Runtime, our int8": {},
    "PyTorch, eager": {"OMP_NUM_THREADS": "{threads}"},
    "PyTorch, compiled": {"OMP_NUM_THREADS": "{threads}"},
}
HERE = Path(__file__).parent


def mxnets_own_export(model: str, out: Path) -> None:
    """Write what MXNet 1.9.1's exporter makes of `model`, repaired."""
    import onnx

    from vargface.checkpoint import load_checkpoint
    from vargface.graph import attribute, rewrite
    from vargface.runtime import mx

    def repaired(place, write):
        if place.op == "FullyConnected":
            return write(place.op, place.name, place.inputs, **{**place.attrs, "flatten": "True"})
        if place.op == "Dropout":
            return place.inputs[0]
        return None

    checkpoint = load_checkpoint(model)
    symbol = rewrite(checkpoint.symbol, [repaired])
    attributes = symbol.attr_dict()
    params = {**checkpoint.args, **checkpoint.auxs}
    for name in params:
        if name.endswith("_gamma") and attribute(attributes.get(name, {}), "fix_gamma", False):
            params[name] = mx.nd.ones_like(params[name])
    shapes = {"in_shapes": [(1, 3, 112, 112)], "dynamic": True, "dynamic_input_shapes": [("N", 3, 112, 112)]}
    mx.onnx.export_model(symbol, params, in_types="float32", onnx_file_path=str(out), **shapes)
    proto = onnx.load(str(out))
    slopes = {node.input[1] for node in proto.graph.node if node.op_type == "PRelu"}
    for array in proto.graph.initializer:
        if array.name in slopes:
            array.dims.extend([1, 1])
    # arrays that are listed as inputs, too, are no constants: ONNX Runtime would not fold the batch norms
    images = [value for value in proto.graph.input if value.name == "data"]
    del proto.graph.input[:]
    proto.graph.input.extend(images)
    onnx.save(proto, str(out))


def embed_with(way: str, model: str, files: Path, threads: int) -> Callable:
    """Return a function from images (n, 3, 112, 112) uint8 to embeddings."""
    import numpy as np

    if way.startswith("ONNX"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(files / f"{way}.onnx"), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda images: session.run(None, {name: images.astype(np.float32)})[0]
    if way.startswith("Embedder"):
        from vargface.deploy import embedder

        # as on a machine of so many cores
        embedder.cores = lambda: threads
        return embedder.Embedder(model)
    from vargface.checkpoint import parse_model
    from vargface.runtime import mx

    symbol, args, auxs = mx.model.load_checkpoint(*parse_model(model))
    symbol = symbol.get_internals()["fc1_output"]
    modules = {}

    def embed(images: np.ndarray) -> np.ndarray:
        if len(images) not in modules:
            modules[len(images)] = module = mx.mod.Module(symbol, label_names=None)
            module.bind([("data", images.shape)], for_training=False)
            module.set_params(args, auxs)
        modules[len(images)].forward(mx.io.DataBatch([mx.nd.array(images)]), is_train=False)
        return modules[len(images)].get_outputs()[0].asnumpy()

    return embed


def work(options: argparse.Namespace) -> None:
    """Load, say how long it took, then time a pass for every line on standard input."""
    started = time.perf_counter()
    import numpy as np

    embed = embed_with(options.way, options.model, options.files, options.threads[0])
    images = np.random.default_rng(0).integers(0, 256, (options.batch[0], 3, 112, 112), np.uint8)
    embed(images[:1])
    answer(embed, images, time.perf_counter() - started, clock_of(options))


def clock_of(options: argparse.Namespace) -> str:
    """Return the name, in `time`, of the clock that counts."""
    return "process_time" if options.cpu_time else "perf_counter"


def answer(embed: Callable, images: np.ndarray, load: float, clock: str, **more: float) -> None:
    """Warm up, say how long loading took and what `more` there is; then time a pass for every line that comes in."""
    now = getattr(time, clock)
    for _ in range(2):
        embed(images)
    print(json.dumps({"load": load, **more}), flush=True)
    for _ in sys.stdin:
        started = now()
        embed(images)
        taken = now() - started
        print(json.dumps({"seconds": taken, "memory": largest_memory()}), flush=True)


def largest_memory() -> float:
    """Return the largest memory that this program had, in MB; `getrusage` would count what started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024


class Worker:
    """The process of one way."""

    def __init__(self, way: str, batch: int, threads: int, files: Path, options: argparse.Namespace) -> None:
        theirs = ("MXNET_", "DNNL_", "OMP_", "MKL_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
        environment.update({name: value.format(threads=threads) for name, value in WAYS[way].items()})
        # Module: with the kernels of MXNet as it comes; its threads are vargface.runtime's, as everywhere here
        if way == "Module":
            environment.update(DNNL_MAX_CPU_ISA="ALL")
        command = [sys.executable, __file__, "--way", way, "--model", options.model, "--files", str(files)]
        command += ["--batch", str(batch), "--threads", str(threads), *(["--cpu-time"] if options.cpu_time else [])]
        if way.startswith("PyTorch"):
            command = [options.torch, str(HERE / "torch_inference.py"), str(files / GRAPH), str(files / WEIGHTS)]
            command += [str(batch), str(threads), clock_of(options), way.rpartition(" ")[2]]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{way}: did not start - run it by hand to see why: {' '.join(command)}")
        said = json.loads(answer)
        self.load, self.memory, self.seconds = said["load"], 0.0, []
        if said.get("apart", 0) > 1e-4:
            raise SystemExit(f"{way}: another network - its unit embedding differs by {said['apart']:.1e}")

    def measure(self) -> None:
        """Time one pass."""
        time.sleep(0.2)  # the way before has threads that go on spinning for a while
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        self.seconds.append(answer["seconds"])
        self.memory = answer["memory"]

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Print the table, or answer as the worker of one way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", metavar="PREFIX,EPOCH")
    parser.add_argument("--calibrate", metavar="DATA", help="aligned faces for int8; without: no int8")
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has torch")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--files", type=Path, help="keep the exported files there, and take them from there")
    options = parser.parse_args()
    if options.way:
        work(options)
        return
    from vargface.errors import InputError  # not above: torch_inference.py takes `answer` from here, without vargface

    lacking = [word for word, given in {"int8": options.calibrate, "PyTorch": options.torch}.items() if not given]
    ways = [way for way in options.only if not any(word in way for word in lacking)]
    with tempfile.TemporaryDirectory() as temporary:
        files = options.files or Path(temporary)
        files.mkdir(parents=True, exist_ok=True)
        try:
            options.model = options.model or random_model(files)
            check_whose(files, options.model)
            export(ways, options, files)
        except InputError as error:
            print(f"inference.py: error: {error}", file=sys.stderr)
            sys.exit(2)
        print(f"{'batch':>5} {'threads':>7}  {'way':<34} {'img/s':>6} {'ratio':>6} {'MB':>6} {'load s':>6}")
        for threads in options.threads:
            for batch in options.batch:
                workers = {way: Worker(way, batch, threads, files, options) for way in ways}
                for _ in range(options.rounds):
                    for worker in workers.values():
                        worker.measure()
                for worker in workers.values():
                    worker.close()
                first = statistics.median(workers[ways[0]].seconds)
                for way, worker in workers.items():
                    median = statistics.median(worker.seconds)
                    figures = f"{batch / median:>6.1f} {first / median:>6.2f} {worker.memory:>6.0f} {worker.load:>6.2f}"
                    print(f"{batch:>5} {threads:>7}  {way:<34} {figures}", flush=True)


def random_model(files: Path) -> str:
    """Write a VarGFaceNet of random weights, if none is there, and return its PREFIX,EPOCH."""
    from vargface.checkpoint import save_checkpoint
    from vargface.runtime import mx
    from vargface.symbols import vargfacenet

    if (files / "random-0000.params").is_file():
        return f"{files / 'random'},0"
    symbol = vargfacenet.get_symbol()
    module = mx.mod.Module(symbol, label_names=None)
    module.bind([("data", (1, 3, 112, 112))], for_training=False)
    module.init_params(mx.init.Xavier(rnd_type="gaussian", factor_type="out", magnitude=2))
    return save_checkpoint(files / "random", 0, symbol, *module.get_params())


def for_torch(model: str, files: Path) -> None:
    """Write the graph, the weights, and an image with its embedding, for torch_inference.py."""
    import numpy as np

    from vargface.checkpoint import load_checkpoint
    from vargface.inference import FrozenNetwork

    checkpoint = load_checkpoint(model)
    image = np.random.default_rng(1).integers(0, 256, (1, 3, 112, 112), np.uint8)
    arrays = {name: value.asnumpy() for name, value in {**checkpoint.args, **checkpoint.auxs}.items()}
    (files / GRAPH).write_text(checkpoint.symbol.tojson())
    np.savez(files / WEIGHTS, **arrays, image=image, embedding=FrozenNetwork(checkpoint, 1)(image))


def check_whose(files: Path, model: str) -> None:
    """Write down that `files` are those of `model`. Raises InputError where they are another's."""
    from vargface.checkpoint import model_digest
    from vargface.errors import InputError

    whose = model_digest(model)
    if (files / WHOSE).is_file() and (files / WHOSE).read_text() != whose:
        raise InputError(f"{files}: holds files exported from another model - name another folder, or remove it")
    (files / WHOSE).write_text(whose)


def export(ways: list[str], options: argparse.Namespace, files: Path) -> None:
    """Write the files that `ways` need and that are not there."""
    from vargface.checkpoint import load_checkpoint
    from vargface.deploy.int8 import calibration_faces, export_int8
    from vargface.deploy.network import fold
    from vargface.deploy.onnx_file import export_onnx

    network = fold(load_checkpoint(options.model))
    if any(way.startswith("PyTorch") for way in ways):
        for_torch(options.model, files)
    for way in ways:
        out = files / f"{way}.onnx"
        if not way.startswith("ONNX") or out.is_file():
            continue
        if "MXNet" in way:
            mxnets_own_export(options.model, out)
        elif "int8" in way:
            export_int8(network, out, calibration_faces([options.calibrate], 256))
        else:
            export_onnx(network, out, wide_groups="avx512" in way)


if __name__ == "__main__":
    main()
