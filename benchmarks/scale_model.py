"""A cost model of training: its parts measured, and its sum checked against three runs.

    python benchmarks/scale_model.py parts > parts.json
    python benchmarks/scale_model.py check parts.json DATA

benchmarks/scale_parts.json is what `parts` gave for docs/scale.md; scale_plan.py makes its plan of it. `parts`
measures, in the processor's time of one thread (so other work on the machine counts little): an image through a narrow
VarGFaceNet and back, an image's class in the head, a class's own work, a row on its way from the table and back, a byte
on its way to the servers and back, what an array costs there beside its bytes, and a byte of the tables on the servers,
at the start and in a state. `check` holds what they add up to against three runs on DATA: one process, two workers with
a server, and the same with so many classes that rows count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from vargface import runtime

# one thread, here and in the jobs that this starts
os.environ["OMP_NUM_THREADS"] = "1"
runtime.prepare_for_training()

import numpy as np  # noqa: E402
from scale_plan import SIZE, WHEN, Exchange  # noqa: E402

from vargface.data.recordio import pack  # noqa: E402
from vargface.data.records import FaceRecords  # noqa: E402
from vargface.data.writer import PlainWriter  # noqa: E402
from vargface.files import sha256  # noqa: E402
from vargface.recipe import load_recipe  # noqa: E402
from vargface.runtime import mx  # noqa: E402
from vargface.training.centres import OFFSET, WEIGHT, Centres  # noqa: E402
from vargface.training.row_update import Missed, RowUpdate  # noqa: E402
from vargface.training.team import Team, team_of  # noqa: E402

RECIPE = ["multiplier=0.25", "embedding_size=128", "context=cpu", "report=False", "lr=0.01", "verify_every=100000"]
BATCH = 32
# images that the reader gives a second, on one thread (docs/data.md)
DECODED = 9290
# numbers that a sum is measured of: in one array, and in many
SUMMED, ARRAYS, FEW = 4_000_000, 200, 16
# classes, and images a batch, of a check in which rows count
MANY, FEW_IMAGES = 100_000, 8
# rows of the tables that a start and a state are measured of
ROWS = 50_000, 450_000


def seconds_of(work, times: int = 3) -> float:
    """Return the processor's time of the best of `times` calls of `work`, after one that is not counted."""
    found = []
    for _ in range(times + 1):
        mx.nd.waitall()
        started = time.process_time()
        work()
        mx.nd.waitall()
        found.append(time.process_time() - started)
    return min(found[1:])


def measure_parts() -> dict[str, float]:
    """Return seconds of the processor: per image, image and class, class, parameter, row, byte, array, and as named."""
    from vargface.graph import training_form
    from vargface.symbols import margin_softmax, vargfacenet

    def head(batch: int, classes: int) -> float:
        data, label = mx.sym.Variable("data"), mx.sym.Variable("label")
        loss = margin_softmax.get_symbol(data, label, num_classes=classes, embedding_size=SIZE).loss
        requests = {"data": "write", "fc7_weight": "write", "label": "null"}
        bound = loss.simple_bind(mx.cpu(), grad_req=requests, data=(batch, SIZE), label=(batch,))
        bound.arg_dict["data"][:] = mx.nd.random.normal(shape=(batch, SIZE))
        bound.arg_dict["fc7_weight"][:] = mx.nd.random.normal(shape=(classes, SIZE))
        return seconds_of(lambda: (bound.forward(is_train=True), bound.backward()))

    symbol = training_form(vargfacenet.get_symbol(embedding_size=SIZE, multiplier=0.25))
    bound = symbol.simple_bind(mx.cpu(), grad_req="write", data=(BATCH, 3, 112, 112))
    for array in bound.arg_dict.values():
        array[:] = mx.nd.random.normal(0, 0.05, shape=array.shape)
    gradient = mx.nd.ones((BATCH, SIZE))
    image = seconds_of(lambda: (bound.forward(is_train=True), bound.backward([gradient]))) / BATCH
    few, many = head(32, 20_000), head(128, 20_000)
    image_and_class = (many - few) / 96 / 20_000
    weight, velocity = mx.nd.ones((4_000_000,)), mx.nd.zeros((4_000_000,))
    update = seconds_of(lambda: mx.nd.sgd_mom_update(weight, weight * 0, velocity, lr=0.1, out=weight)) / 4_000_000
    return {
        "image": image,
        "image and class": image_and_class,
        "class": few / 20_000 - 32 * image_and_class,
        "parameter": update,
        "number of another context": _another_seconds(),
        **_row_seconds(),
        "update missed": _missed_seconds(),
        "byte": _sum_seconds(1, SUMMED) / (4 * SUMMED),
        "array": _sum_seconds(ARRAYS, FEW) / ARRAYS,
        "array beside sampled centres": _sum_seconds(ARRAYS, FEW, "sampled") / ARRAYS,
        **_table_seconds(),
    }


def _table_of(classes: int, taken: int, team: Team) -> Centres:
    """Return tables that have been started, for a module that is none."""
    executor = SimpleNamespace(arg_dict={}, grad_dict={})
    for arrays in (executor.arg_dict, executor.grad_dict):
        arrays[WEIGHT] = mx.nd.zeros((taken, SIZE))
    executor.arg_dict[OFFSET] = mx.nd.zeros((taken,))
    module = SimpleNamespace(_exec_group=SimpleNamespace(execs=[executor]))
    keys = [f"class_share={taken / classes}", f"embedding_size={SIZE}", "batch_size=32", "schedule=poly"]
    table = Centres(load_recipe("base", keys), classes, team, module)
    table.start(None, 0, with_momentum=False)
    return table


def _row_seconds(classes: int = 100_000, taken: int = 20_000) -> dict[str, float]:
    """Return the seconds of a row from the table and back, and of its update, which its server does."""
    table = _table_of(classes, taken, Team())
    labels, steps, updating = np.arange(32), itertools.count(), []
    update = RowUpdate.update_multi_precision

    def timed(*arguments) -> None:
        mx.nd.waitall()
        started = time.process_time()
        update(*arguments)
        mx.nd.waitall()
        updating.append(time.process_time() - started)

    def step() -> None:
        number = next(steps)
        updating.clear()
        table.take(labels, (0, number), number)
        table.update()

    RowUpdate.update_multi_precision = timed
    found = []
    for _ in range(10):
        whole = seconds_of(step, 1)
        found.append((whole - sum(updating), sum(updating)))
    RowUpdate.update_multi_precision = update
    return dict(zip(("row", "row updated"), (np.median(found, axis=0) / taken).tolist()))


def _another_seconds(numbers: int = 20_000_000) -> float:
    """Return the seconds for a number of a gradient, more than the cache has, that is added to another context's."""
    total, other = mx.nd.ones((numbers,)), mx.nd.ones((numbers,))

    def step() -> None:
        nonlocal total
        total += other

    return seconds_of(step) / numbers


def _missed_seconds(updates: int = 2000) -> float:
    """Return the seconds of an update of the longest gap after which a row is taken."""
    gone, table, rows = Missed([(1e-5, 0.9)] * updates), np.ones((2, 1, SIZE), np.float32), np.arange(1)

    def step() -> None:
        gone.append(1e-5, 0.9)
        gone.catch_up(*table, rows, np.array([updates]))

    return seconds_of(step) / updates


def _sum_seconds(*what: object) -> float:
    """Return the seconds, of two workers and a server together, that a sum of `what` (`sum_some`) costs a worker."""
    few, many = (_job_seconds([sys.executable, __file__, "sums", str(times), *map(str, what)]) for times in (5, 65))
    return (many - few) / 60 / 2


def _table_seconds() -> dict[str, float]:
    """Return the seconds, of a worker and a server together, that a byte of two tables on the server costs."""
    found = []
    for saves in (0, 1):
        few, many = (_job_seconds([sys.executable, __file__, "tables", f"{rows}", f"{saves}"]) for rows in ROWS)
        found.append((many - few) / ((ROWS[1] - ROWS[0]) * SIZE * 8))
    return {f"byte of the tables {what}": seconds for what, seconds in zip(WHEN, (found[0], found[1] - found[0]))}


def launch_some(work: str, workers: int, arguments: list[str]) -> None:
    """Launch a job of so many workers and a server: the function `work` of this file stands for their command."""
    from vargface.jobs.launch import launch

    with tempfile.TemporaryDirectory() as folder:
        here = str(Path(__file__).parent)
        (Path(folder) / "sitecustomize.py").write_text(
            f"import sys\nsys.path.insert(0, {here!r})\nif 'worker' in getattr(sys, 'orig_argv', ['worker']):\n"
            f"    import scale_model, vargface.cli\n    vargface.cli.main = scale_model.{work}\n"
        )
        os.environ["PYTHONPATH"] = folder
        launch(arguments, workers, 1, logs=folder)


def keep_tables(arguments: list[str]) -> int:
    """Be a worker of `launch_some`: rows of the tables, and how often they are saved."""
    team = team_of("dist_sync")
    team.join()
    table = _table_of(int(arguments[0]), 1000, team)
    for _ in range(int(arguments[1])):
        with tempfile.NamedTemporaryFile() as file:
            table.save(file)
            file.flush()
            sha256(Path(file.name))  # as a state has
    return 0


def sum_some(arguments: list[str]) -> int:
    """Be a worker of `launch_some`: times, arrays, numbers of an array; "sampled": with centres on the servers."""
    times, arrays, numbers = map(int, arguments[:3])
    team = team_of("dist_sync")
    team.join()
    if arguments[3:] and team.leads:
        team.store.set_optimizer(RowUpdate())
    team.meet()
    gradients = [[mx.nd.ones((numbers,))] for _ in range(arrays)]
    for _ in range(times):
        team.sum_gradients([str(number) for number in range(arrays)], gradients)
        mx.nd.waitall()
        for (gradient,) in gradients:
            gradient[:] = 1
    return 0


def _job_seconds(command: list[str]) -> float:
    """Return the processor's time of `command` and all that it starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def check(parts: dict[str, float], data: str) -> None:
    """Print, of three configurations, the processor's time of a step: the sum of the parts, and measured."""
    from vargface.training.plan import make_plan
    from vargface.training.space import space_of

    plan = make_plan(load_recipe("base", [*RECIPE, f"data={data}", f"batch_size={BATCH}", "steps=2", "lr_steps=1"]))
    network, arrays = space_of(plan).checkpoint / 4, len(plan.network.list_arguments()) - 1  # the images
    print(f"{network:,.0f} parameters of the network; seconds of the processor a step")
    with tempfile.TemporaryDirectory() as folder:
        many = spread(data, f"{folder}/data", MANY)
        for workers, faces, classes, batch in [
            (1, data, plan.records.num_identities, BATCH),
            (2, data, plan.records.num_identities, BATCH),
            (2, many, MANY, FEW_IMAGES),
        ]:
            taken = classes // workers
            found = batch * (parts["image"] + 1 / DECODED) + workers * (
                taken * parts["class"] + batch / workers * taken * parts["image and class"]
            )
            exchange = Exchange(network, arrays, classes, taken, SIZE, workers=workers)
            found += workers * (network * parts["parameter"] + exchange.seconds(parts))
            found += taken * SIZE * parts["parameter"] * (not exchange.sampled)
            launcher = ["launch", "-n", "2", "-s", "1", "--"] if workers > 1 else []
            share = ["class_share=0.5"] if workers > 1 else []
            steps = []
            for count in (10, 50):
                with tempfile.TemporaryDirectory() as out:
                    keys = [*RECIPE, *share, f"data={faces}", f"batch_size={batch}", f"steps={count}", f"out={out}/run"]
                    command = [sys.executable, "-m", "vargface", *launcher, "train", "base", *keys]
                    steps.append(_job_seconds([*command, "lr_steps=1000", "log_every=1000"]))
            measured = (steps[1] - steps[0]) / 40
            print(
                f"{workers} worker(s), {taken:>7,} of {classes:>7,} classes, batch {batch:>2}: model {found:.3f}  "
                f"measured {measured:.3f}  ratio {found / measured:.2f}",
                flush=True,
            )


def spread(data: str, folder: str, classes: int) -> str:
    """Write `folder`, the first of the faces of `data` with their identities spread over so many classes."""
    records = FaceRecords(data)
    with PlainWriter(folder, classes, records.image_size) as writer:
        for position in range(400):
            label, jpeg = records.read(position)
            writer.add(pack(float(classes - 1 - label), jpeg, position))
    return folder


def main() -> None:
    """Do what the first word says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("parts", "check", "sums", "tables"))
    parser.add_argument("files", nargs="*", help="parts.json, and for check DATA")
    options = parser.parse_args()
    if options.what == "check" and len(options.files) != 2:
        parser.error("check takes parts.json and DATA, a folder of `vargface synth`")
    if options.what in ("sums", "tables"):  # `parts` calls them
        work, workers = {"sums": ("sum_some", 2), "tables": ("keep_tables", 1)}[options.what]
        launch_some(work, workers, options.files)
        return
    if options.what == "parts":
        print(json.dumps(measure_parts(), indent=1))
    else:
        check(json.loads(Path(options.files[0]).read_text()), options.files[1])


if __name__ == "__main__":
    main()
