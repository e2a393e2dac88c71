"""Forms of PReLU in the graph that trains full-width VarGFaceNet: which slopes' gradients are right, speed, memory.

    python benchmarks/prelu_forms.py [--batch 8] [--rounds 5]
    python benchmarks/prelu_forms.py --slopes [--batch 8] [--multiplier 1.25]
    python benchmarks/prelu_forms.py --rounding FILE.params IMAGES.npz

The first prints, for every form, images a second of forward and backward on one thread, the forms taking turns, median
over rounds, and what the executor says it allocated. Squeeze-excitation and pooling are in their fast form in all rows
but the first. DNNL_MAX_CPU_ISA is AVX2 as in training; a value from outside wins. --slopes counts, for each network as
it is saved, the slopes whose gradient is a quarter of the true one (all slopes are at 0.25), VarGFaceNet's of this
multiplier: MXNET_MKLDNN_ENABLED=0 before it switches MKLDNN off, OMP_NUM_THREADS sets the threads. --rounding gives
what each form of the graph is off in float32 from float64, as a share of the embedding's largest value, for each image
in the file's `data` (N, 3, 112, 112), what moving each weight by half a unit in its last place, rounded (so half of
them by one), does to the native one, and what each is off from the file's `fc1` (N, 512).
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable
from unittest import mock

from vargface import runtime

runtime.prepare_for_training()

import numpy as np  # noqa: E402

from vargface import graph  # noqa: E402
from vargface.checkpoint import load_params, matching  # noqa: E402
from vargface.eval.table import format_table  # noqa: E402
from vargface.graph import Place, Rule, Writer, inference_form, rewrite, training_form  # noqa: E402
from vargface.runtime import mx  # noqa: E402
from vargface.symbols import mobilefacenet, resnet, vargfacenet  # noqa: E402

NETWORKS: dict[str, Callable[[float], mx.sym.Symbol]] = {
    "VarGFaceNet, authors'": lambda multiplier: vargfacenet.get_symbol(multiplier=multiplier),
    "LResNet18-IR": lambda _: resnet.get_symbol(num_layers=18),
    "MobileFaceNet y2": lambda _: mobilefacenet.get_symbol(variant="y2"),
}


def is_prelu(place: Place) -> bool:
    """Return whether the node is a PReLU."""
    return place.op == "LeakyReLU" and place.attrs.get("act_type") == "prelu"


def native(place: Place, write: Writer) -> list | None:
    """Return the PReLU as it is, so that no later rule has it."""
    return write(place.op, place.name, place.inputs, **place.attrs) if is_prelu(place) else None


def broadcast(place: Place, write: Writer) -> list | None:
    """Return max(x, 0) + g*min(x, 0), the product broadcast."""
    if not is_prelu(place):
        return None
    (data, slope), name = place.inputs, place.name
    slope = write("Reshape", f"{name}_below", [slope], shape=(1, -1, 1, 1))
    below = write("_minimum_scalar", f"{name}_negative", [data], scalar=0)
    above = write("_maximum_scalar", f"{name}_positive", [data], scalar=0)
    return write("elemwise_add", name, [above, write("broadcast_mul", f"{name}_scaled", [below, slope])])


def two_relus(place: Place, write: Writer) -> list | None:
    """Return relu(x) - g*relu(-x), the product a 1x1 depthwise convolution."""
    if not is_prelu(place):
        return None
    (data, slope), name, channels = place.inputs, place.name, place.shapes[0][1]
    slope = write("Reshape", f"{name}_below", [slope], shape=(channels, 1, 1, 1))
    above = write("Activation", f"{name}_positive", [data], act_type="relu")
    turned = write("negative", f"{name}_turned", [data])
    below = write("Activation", f"{name}_negative", [turned], act_type="relu")
    options = {"num_filter": channels, "num_group": channels, "kernel": (1, 1), "no_bias": True}
    return write("elemwise_sub", name, [above, write("Convolution", f"{name}_scaled", [below, slope], **options)])


def with_prelu(rule: Rule) -> Callable[[mx.sym.Symbol], mx.sym.Symbol]:
    """Return `training_form` with `rule` for its PReLU."""

    def form(symbol: mx.sym.Symbol) -> mx.sym.Symbol:
        with mock.patch.object(graph, "_prelu", rule):
            return training_form(symbol)

    return form


FORMS: dict[str, Callable[[mx.sym.Symbol], mx.sym.Symbol]] = {
    "the original graph": lambda symbol: symbol,
    "native PReLU": with_prelu(native),
    "max(x, 0) + g * min(x, 0), broadcast": with_prelu(broadcast),
    "relu(x) - g * relu(-x), depthwise": with_prelu(two_relus),
    "g * x + (1 - g) * relu(x), depthwise": training_form,
}


def bound(symbol: mx.sym.Symbol, batch: int) -> mx.mod.Module:
    """Return `symbol` bound for training, with weights of seed 0 and every slope at 0.25."""
    module = mx.mod.Module(symbol, label_names=None)
    module.bind([("data", (batch, 3, 112, 112))])
    mx.random.seed(0)
    np.random.seed(0)
    module.init_params(mx.init.Xavier(rnd_type="gaussian", factor_type="out", magnitude=2))
    return module


def step_of(module: mx.mod.Module) -> Callable[[], None]:
    """Return a function that goes forward and backward with the same images and the same gradient, and waits."""
    random = np.random.default_rng(0)
    images = mx.io.DataBatch([mx.nd.array(random.integers(0, 256, module.data_shapes[0].shape))])
    gradient = [mx.nd.array(random.normal(size=module.output_shapes[0][1]))]

    def step() -> None:
        module.forward(images, is_train=True)
        module.backward(gradient)
        mx.nd.waitall()

    return step


def slope_gradients(symbol: mx.sym.Symbol, slopes: list[str], batch: int) -> dict[str, np.ndarray]:
    """Return slope -> its gradient after one step."""
    module = bound(symbol, batch)
    step_of(module)()
    group = module._exec_group
    gradients = dict(zip(group.param_names, group.grad_arrays))
    return {name: gradients[name][0].asnumpy() for name in slopes}


def slopes_table(batch: int, multiplier: float) -> list[list[str]]:
    """Return a row for every network: its name, slopes with a quarter of the true gradient, with another wrong one."""
    rows = []
    for name, network in NETWORKS.items():
        symbol = network(multiplier)
        slopes = [argument for argument in symbol.list_arguments() if argument in slopes_of(symbol)]
        found, true = (slope_gradients(graph, slopes, batch) for graph in (symbol, training_form(symbol)))
        ratios = [float(np.vdot(found[key], true[key]) / np.vdot(true[key], true[key])) for key in slopes]
        quarter, right = (sum(abs(ratio - value) < 0.02 for ratio in ratios) for value in (0.25, 1))
        rows.append([name, f"{quarter} of {len(slopes)}", str(len(slopes) - quarter - right)])
    return rows


def slopes_of(symbol: mx.sym.Symbol) -> set[str]:
    """Return the names of the PReLUs' slopes."""
    found = set()
    rewrite(symbol, [lambda place, write: found.add(f"{place.name}_gamma") if is_prelu(place) else None])
    return found


def allocated(module: mx.mod.Module) -> int:
    """Return the MB that the executor says it allocated."""
    (executor,) = module._exec_group.execs
    return int(re.search(r"Total (\d+) MB allocated", executor.debug_str()).group(1))


def rounding_table(params: str, file: str) -> list[list[str]]:
    """Return a row for every form: its name, its error for each image, its distance from the golden embedding of each.

    float64 is the inference form's: MXNet works out the native PReLU in float32 whatever the arrays are.
    """
    with np.load(file) as stored:
        images, golden = stored["data"], stored["fc1"]
    symbol = vargfacenet.get_symbol()
    params = matching(symbol, load_params(params), params)

    def embed(form: mx.sym.Symbol, dtype: str = "float32", moved: float = 0.0) -> np.ndarray:
        random = np.random.default_rng(0)
        args, auxs = ({name: value.asnumpy().astype(dtype) for name, value in values.items()} for values in params)
        ulp = {
            name: np.spacing(np.abs(value)) * random.choice([-moved, moved], value.shape)
            for name, value in args.items()
        }
        args = {name: mx.nd.array(value.astype("float64") + ulp[name], dtype=dtype) for name, value in args.items()}
        args["data"] = mx.nd.array(images, dtype=dtype)
        auxs = {name: mx.nd.array(value, dtype=dtype) for name, value in auxs.items()}
        executor = form.bind(mx.cpu(), args, grad_req="null", aux_states=auxs)
        return executor.forward(is_train=False)[0].asnumpy().astype("float64")

    def errors(embeddings: np.ndarray, reference: np.ndarray) -> list[str]:
        return [f"{error:.1e}" for error in np.abs(embeddings - reference).max(1) / np.abs(reference).max(1)]

    exact = embed(inference_form(symbol), "float64")
    found = {
        "native symbol": embed(symbol),
        "inference_form": embed(inference_form(symbol)),
        "training_form": embed(training_form(symbol)),
        "float64": exact,
    }
    rows = [[name, *errors(value, exact), *errors(value, golden)] for name, value in found.items()]
    moved = embed(symbol, moved=0.5) - embed(symbol) + exact
    return [*rows, ["half of the weights moved by a unit", *errors(moved, exact), *[""] * len(images)]]


def main() -> None:
    """Print one of the three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--multiplier", type=float, default=1.25, help="width of VarGFaceNet's slopes")
    parser.add_argument("--slopes", action="store_true", help="count the wrong gradients instead")
    parser.add_argument("--rounding", nargs=2, metavar=("FILE.params", "IMAGES.npz"), help="errors of float32 instead")
    options = parser.parse_args()
    if options.rounding:
        rows = rounding_table(*options.rounding)
        numbers = range(1, len(rows[0]) // 2 + 1)
        columns = [f"image {n}, {what}" for what in ("from float64", "from fc1") for n in numbers]
        print(format_table(["form", *columns], rows, markdown=True))
        return
    if options.slopes:
        print(
            format_table(
                ["network", "a quarter", "otherwise wrong"],
                slopes_table(options.batch, options.multiplier),
                markdown=True,
            )
        )
        return
    modules = {form: bound(graph(vargfacenet.get_symbol()), options.batch) for form, graph in FORMS.items()}
    steps = {form: step_of(module) for form, module in modules.items()}
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for turn in range(options.rounds + 1):
        for form, step in steps.items():
            start = time.process_time()
            step()
            if turn:  # the first one of each warms up
                seconds[form].append(time.process_time() - start)
    rows = [
        [form, f"{options.batch / statistics.median(times):.1f}", str(allocated(modules[form]))]
        for form, times in seconds.items()
    ]
    print(format_table(["form", "img per CPU second", "MB"], rows, markdown=True))


if __name__ == "__main__":
    main()
