"""Memory and time of a training step as it is and with MXNET_BACKWARD_DO_MIRROR, which computes activations twice.

    python benchmarks/activation_memory.py [--networks vargfacenet resnet100] [--batch 8]

Network and ArcFace head of 1,000 classes, one thread, every way in a process of its own: `planned` is what MXNet's
executor says that it shares out, `peak` how far the resident set rose from before the bind to the highest point of two
steps, `s/step` the processor's time of the second.
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

NETWORKS = {"vargfacenet": vargfacenet.get_symbol, "resnet100": resnet.get_symbol}
WAYS = {"as it is": "0", "mirror": "1"}


def measure(network: str, batch: int) -> str:
    """Return the figures of a network as text."""
    embedding, label = training_form(NETWORKS[network]()), mx.sym.Variable("softmax_label")
    symbol = margin_softmax.get_symbol(embedding, label, num_classes=1000, embedding_size=512).loss
    inputs = {"data": (batch, 3, 112, 112), "softmax_label": (batch,)}
    requests = {name: "null" if name in inputs else "write" for name in symbol.list_arguments()}
    before = resident("VmRSS")
    bound = symbol.simple_bind(mx.cpu(), grad_req=requests, **inputs)
    for name, array in bound.arg_dict.items():
        array[:] = 1 if name in inputs else mx.nd.random.normal(0, 0.05, shape=array.shape)
    for _ in range(2):
        mx.nd.waitall()
        started = time.process_time()
        bound.forward(is_train=True)
        bound.backward()
        mx.nd.waitall()
    seconds = time.process_time() - started
    planned = re.search(r"Total ([0-9]+) MB", bound.debug_str()).group(1)
    return f"{planned:>7}  {resident('VmHWM') - before:>8.0f}  {seconds:>6.2f}"


def main() -> None:
    """Print a row a network and way, or the figures of one for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(measure(options.one, options.batch))
        return
    print(f"{'network':<12}  {'batch':>5}  {'way':<8}  {'planned':>7}  {'peak MiB':>8}  {'s/step':>6}")
    for network in options.networks:
        for way, mirror in WAYS.items():
            command = [sys.executable, __file__, "--batch", str(options.batch), "--one", network]
            environment = {**os.environ, "MXNET_BACKWARD_DO_MIRROR": mirror, "OMP_NUM_THREADS": "1"}
            finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            print(f"{network:<12}  {options.batch:>5}  {way:<8}  {finished.stdout.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
