"""When does VarGFaceNet diverge? Short trainings with ArcFace by the project's own loop, one setting changed at a time.

    python benchmarks/divergence.py DATA [--seeds 3] [--steps 60] [--cells NAME ...] [KEY=VALUE ...]

DATA is an InsightFace folder (`vargface synth`). KEY=VALUE go into the recipe of every cell. A row is a cell: seeds
that met a loss or weight that is not finite, the mean embedding norm of a batch at its highest (of any seed; about
sqrt(dimensions) is what batch norm starts at), the loss of the last ten steps (median over seeds).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

from vargface import runtime

runtime.prepare_for_training()

from vargface.errors import InputError  # noqa: E402
from vargface.eval.table import format_table  # noqa: E402
from vargface.recipe import load_recipe  # noqa: E402
from vargface.runtime import mx  # noqa: E402
from vargface.symbols import margin_softmax  # noqa: E402
from vargface.training import fit, objective  # noqa: E402
from vargface.training.report import history_of  # noqa: E402

MS1M_CLASSES = 93_431
KEYS = ["multiplier=0.25", "embedding_size=128", "batch_size=32", "schedule=cosine", "lr=0.1", "log_every=1"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """What differs from the defaults: recipe keys, the initialiser, the head, the graph."""

    keys: tuple[str, ...] = ()
    initialiser: Callable[[], mx.init.Initializer] | None = None
    head: Callable | None = None
    native: bool = False


def insightface_head(
    embedding: mx.sym.Symbol,
    label: mx.sym.Symbol,
    *,
    num_classes: int,
    embedding_size: int,
    scale: float,
    m2: float,
    **_: float,
) -> margin_softmax.MarginSoftmax:
    """Return ArcFace as InsightFace's graph has it: arccos of an unclipped cosine, SoftmaxOutput's gradient."""
    sym = mx.sym
    weight = sym.Variable("fc7_weight", shape=(num_classes, embedding_size), init=mx.init.Normal(0.01))
    embedding = sym.L2Normalization(embedding, mode="instance") * scale
    weight = sym.L2Normalization(weight, mode="instance")
    logits = sym.FullyConnected(embedding, weight, no_bias=True, num_hidden=num_classes, name="fc7")
    of_label = sym.pick(logits, label, axis=1)
    with_margin = sym.cos(sym.arccos(of_label / scale) + m2) * scale
    logits = logits + sym.broadcast_mul(
        sym.one_hot(label, depth=num_classes), sym.expand_dims(with_margin - of_label, axis=1)
    )
    probability = sym.pick(sym.SoftmaxOutput(logits, label), label, axis=1)
    loss = sym.BlockGrad(-sym.log(probability)) + probability - sym.BlockGrad(probability)
    correct = sym.argmax(logits, axis=1) == label
    return margin_softmax.MarginSoftmax(
        sym.MakeLoss(loss), sym.BlockGrad(loss), sym.BlockGrad(of_label / scale), sym.BlockGrad(correct)
    )


def of_ms1m(head: Callable) -> Callable:
    """Return `head` with as many classes as ms1m-retinaface has, of which the data set has a few."""
    return lambda *tensors, **options: head(*tensors, **{**options, "num_classes": MS1M_CLASSES})


def xavier(factor: str, magnitude: float, kind: str = "gaussian") -> Callable[[], mx.init.Initializer]:
    """Return a maker of MXNet's Xavier."""
    return lambda: mx.init.Xavier(rnd_type=kind, factor_type=factor, magnitude=magnitude)


CELLS = {
    "defaults": Cell(),
    "warm-up 20": Cell(("warmup_steps=20",)),
    "lr 0.3": Cell(("lr=0.3",)),
    "lr 1": Cell(("lr=1",)),
    "lr 1, warm-up 20": Cell(("lr=1", "warmup_steps=20")),
    "lr 3": Cell(("lr=3",)),
    "lr 3, warm-up 20": Cell(("lr=3", "warmup_steps=20")),
    "residual_gamma 0.2": Cell(("residual_gamma=0.2",)),
    "lr 3, residual_gamma 0.2": Cell(("lr=3", "residual_gamma=0.2")),
    "Xavier avg 2": Cell(initialiser=xavier("avg", 2)),
    "Xavier in 2": Cell(initialiser=xavier("in", 2)),
    "Xavier uniform avg 3": Cell(initialiser=xavier("avg", 3, "uniform")),
    "uniform 0.07": Cell(initialiser=lambda: mx.init.Uniform(0.07)),
    "normal 0.01": Cell(initialiser=lambda: mx.init.Normal(0.01)),
    "normal 1": Cell(initialiser=lambda: mx.init.Normal(1)),
    "no SE": Cell(("variant=insightface",)),
    "batch 8": Cell(("batch_size=8",)),
    "batch 128": Cell(("batch_size=128",)),
    "InsightFace's head": Cell(head=insightface_head),
    "InsightFace's head, lr 1": Cell(("lr=1",), head=insightface_head),
    "93,431 classes": Cell(head=of_ms1m(margin_softmax.get_symbol)),
    "93,431 classes, InsightFace's head": Cell(head=of_ms1m(insightface_head)),
    "native PReLU": Cell(native=True),
    "native PReLU, InsightFace's head": Cell(native=True, head=insightface_head),
}


def trained(cell: Cell, data: Path, seed: int, keys: Sequence[str], folder: str) -> tuple[bool, float, float]:
    """Return (diverged?, highest mean embedding norm, loss of the last ten steps) of one short training."""
    recipe = load_recipe("base", [*KEYS, *keys, *cell.keys, f"data={data}", f"out={folder}", f"seed={seed}"])
    with loop_of(cell):
        try:
            fit.train(recipe)
            diverged = False
        except InputError as error:
            if "diverged" not in str(error):
                raise
            diverged = True
    try:
        log = history_of(folder).log
    except InputError:  # diverged before the first line
        return True, float("nan"), float("nan")
    return diverged, float(log["embedding_norm"].max()), float(log["margin_loss"][-10:].mean())


def loop_of(cell: Cell) -> contextlib.ExitStack:
    """Return a context in which the training loop is as `cell` has it."""
    stack = contextlib.ExitStack()
    if cell.initialiser:
        stack.enter_context(mock.patch("vargface.training.generation.Start", lambda recipe: cell.initialiser()))
    if cell.head:
        stack.enter_context(mock.patch.object(margin_softmax, "get_symbol", cell.head))
    if cell.native:
        stack.enter_context(mock.patch.object(objective, "training_form", lambda symbol: symbol))
    return stack


def main() -> None:
    """Print a row for every cell, as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), metavar="NAME")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"  # the training set without its packs: nothing is verified
        data.mkdir()
        for name in ("train.rec", "train.idx", "property"):
            (data / name).symlink_to((options.data / name).resolve())
        keys = [f"steps={options.steps}", f"verify_every={options.steps}", *options.keys]
        for name in options.cells:
            runs = [trained(CELLS[name], data, s, keys, f"{scratch}/{name}-{s}") for s in range(options.seeds)]
            diverged, norms, losses = zip(*runs)
            figures = f"{sum(diverged)} of {options.seeds}", f"{max(norms):.1f}", f"{statistics.median(losses):.2f}"
            rows.append([name, *figures])
            print(*rows[-1], sep="\t", flush=True)
    print(format_table(["cell", "diverged", "highest norm", "loss"], rows, markdown=True))


if __name__ == "__main__":
    main()
