"""Memory and time of a training step: as it is, with MXNET_BACKWARD_DO_MIRROR (activations computed twice), in float16.

    python benchmarks/activation_memory.py [--networks vargfacenet resnet100] [--batch 8] [--classes 1000]

Network and ArcFace head, one thread, every way in a process of its own: `bound` is how far the process's data rose by
the bind, which weights and gradients are given memory by; `planned` what MXNet's executor says that it shares out;
`peak` how far the resident set rose from before the bind to the highest point of three steps; `s/step` the processor's
time of the faster of the last two. In float16 are the images and what the network makes of them, its weights and
gradients, as InsightFace has it: the head is in float32. The network `none` leaves the head alone, on embeddings.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time

from vargface import runtime

runtime.prepare_for_training()

from head_memory import resident  # noqa: E402

from vargface.graph import training_form  # noqa: E402
from vargface.runtime import mx  # noqa: E402
from vargface.symbols import margin_softmax, resnet, vargfacenet  # noqa: E402

NETWORKS = {"vargfacenet": vargfacenet.get_symbol, "resnet100": resnet.get_symbol, "none": None}
# name: MXNET_BACKWARD_DO_MIRROR and the type
WAYS = {"as it is": ("0", "float32"), "mirror": ("1", "float32"), "float16": ("0", "float16")}


def measure(network: str, batch: int, classes: int, kind: str) -> str:
    """Return the figures of a network as text, and in place of some the reason why MXNet has none."""
    made, label = NETWORKS[network], mx.sym.Variable("softmax_label")
    # of the head alone the embeddings have a gradient, too
    embedding = mx.sym.cast(training_form(made()), dtype="float32") if made else mx.sym.Variable("data") * 1
    symbol = margin_softmax.get_symbol(embedding, label, num_classes=classes, embedding_size=512).loss
    inputs = {"data": (batch, 3, 112, 112) if made else (batch, 512), "softmax_label": (batch,)}
    requests = {name: "null" if name in inputs else "write" for name in symbol.list_arguments()}
    if not made:
        requests["data"] = "write"
    types = {"data": kind, "softmax_label": "float32"}
    before, data = resident("VmRSS"), resident("VmData")
    bound = symbol.simple_bind(mx.cpu(), grad_req=requests, type_dict=types, **inputs)
    given = resident("VmData") - data
    planned = re.search(r"Total ([0-9]+) MB", bound.debug_str()).group(1)
    for name, array in bound.arg_dict.items():
        array[:] = 1 if name in inputs else mx.nd.random.normal(0, 0.05, shape=array.shape)
    seconds = []
    for _ in range(3):
        mx.nd.waitall()
        started = time.process_time()
        bound.forward(is_train=True)
        bound.backward()
        try:
            mx.nd.waitall()
        except mx.MXNetError as error:
            return f"{given:>9.0f}  {planned:>7}  {str(error).strip().splitlines()[-1]}"
        seconds.append(time.process_time() - started)
    return f"{given:>9.0f}  {planned:>7}  {resident('VmHWM') - before:>8.0f}  {min(seconds[1:]):>6.2f}"


def main() -> None:
    """Print a row a network and way, or the figures of one for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["vargfacenet", "resnet100"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        network, kind = options.one
        print(measure(network, options.batch, options.classes, kind))
        return
    columns = f"{'bound MiB':>9}  {'planned':>7}  {'peak MiB':>8}  {'s/step':>6}"
    print(f"{'network':<12}  {'batch':>5}  {'way':<8}  {columns}")
    for network in options.networks:
        for way, (mirror, kind) in WAYS.items():
            if network == "none" and kind != "float32":  # the head is in float32 whatever the network is in
                continue
            numbers = ["--batch", f"{options.batch}", "--classes", f"{options.classes}"]
            command = [sys.executable, __file__, *numbers, "--one", network, kind]
            environment = {**os.environ, "MXNET_BACKWARD_DO_MIRROR": mirror, "OMP_NUM_THREADS": "1"}
            finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            print(f"{network:<12}  {options.batch:>5}  {way:<8}  {finished.stdout.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
