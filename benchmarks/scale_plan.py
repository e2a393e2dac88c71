"""What the cost model says of jobs that nobody has run: hours and bottlenecks, of parts that scale_model.py measures.

    python benchmarks/scale_plan.py [parts.json]

Without a file it is benchmarks/scale_parts.json. Nothing here is measured but what rows, bytes, arrays and contexts
cost the processor: it says what it assumes of GPUs and networks.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

# numbers of a row that parts are measured of
SIZE = 128
# what the bytes of the tables are measured at
WHEN = ("at the start", "in a state")


class Exchange(NamedTuple):
    """What a worker gives away and gets back in a step.

    params, arrays: the network's; taken: of `classes`, rows of `size` numbers, of a table where they are not all, whose
    gradients are then summed over `contexts` on the CPU; workers: with as many servers, which have a part of the rows
    each; one has none.
    """

    params: float
    arrays: int
    classes: int
    taken: int
    size: int
    contexts: int = 1
    workers: int = 1

    @property
    def sampled(self) -> bool:
        """Return whether rows are of a table."""
        return self.taken < self.classes

    @property
    def given(self) -> float:
        """Return the bytes each way."""
        return 4 * (self.params + self.taken * self.size)

    def seconds(self, parts: dict[str, float]) -> float:
        """Return the seconds of the processor for a worker and what is served to it."""
        found = 0.0
        if self.sampled:
            numbers, gap = self.taken * self.size, self.classes / self.taken * math.log(self.taken)
            found += numbers / SIZE * (parts["row"] + parts["row updated"] / self.workers)
            # the longest that one of the rows taken was not
            found += gap * parts["update missed"] + (self.contexts - 1) * numbers * parts["number of another context"]
        if self.workers > 1:
            array = parts["array beside sampled centres" if self.sampled else "array"]
            found += self.given * parts["byte"] + self.arrays * array
        return found


# of a machine with eight V100-like GPUs, PCIe, 100 Gb/s, half of which is used; decoding: docs/data.md's rate of a core
GPUS = 8
ASSUMED = {
    "FLOP a second of a GPU": 5e12,
    "bytes a second to a GPU": 10e9,
    "bytes a second of the network": 6.25e9,
    "cores a machine": 32,
    "images a core decodes a second": 8000,
}
# bytes of an image in train.rec, as of 10,598 real photographs (49.0 MB); arrays of a network, each summed by itself
RECORD, RESNET, VARG = 4_627, 463, 368
# images of lfw, cfp_fp and agedb_30, and the steps between two verifications, base.py's
VERIFIED, VERIFY_EVERY = 12_000 + 14_000 + 12_000, 2_000
# name: images, classes, classes a step takes, epochs, global batch, machines, multiply-adds forward, parameters,
# arrays of them
JOBS = {
    "MS1M, teacher ResNet100": (5_179_510, 93_431, 93_431, 20, 1024, 1, 12.1e9, 65.2e6, RESNET),
    "MS1M, student VarGFaceNet": (5_179_510, 93_431, 93_431, 20, 1024, 1, 0.51e9, 5.2e6, VARG),
    "WebFace42M, ResNet100, share 0.1": (42_474_557, 2_059_906, 205_991, 20, 8192, 8, 12.1e9, 65.2e6, RESNET),
    "WebFace42M, ResNet100, 20,000 taken": (42_474_557, 2_059_906, 20_000, 20, 8192, 8, 12.1e9, 65.2e6, RESNET),
}


def plan(parts: dict[str, float]) -> None:
    """Print what the model says of jobs that nobody has run."""
    print(f"assumed: {GPUS} GPUs a machine, {ASSUMED}")
    for name, (images, classes, taken, epochs, batch, machines, macs, params, arrays) in JOBS.items():
        own, rows = batch / machines / GPUS, 4 * taken * 512
        exchange = Exchange(params, arrays, classes, taken, 512, GPUS, machines)
        given, sampled = exchange.given, exchange.sampled
        # each GPU sums its part of the machine's gradients, has it from the others and gives it to them; between
        # machines the sum goes to the CPU and comes back. Sampled rows come from there, and their gradients go there
        summed = given - rows * sampled
        bus = 2 * summed + 2 * summed * (machines > 1) + 2 * rows * sampled
        ways = {
            # forward and twice that backward, two operations a multiply-add
            "GPU": own * 6 * (macs + taken * 512) / ASSUMED["FLOP a second of a GPU"],
            "bus": bus / ASSUMED["bytes a second to a GPU"],
            # each machine is a worker and a server: what it sends for itself, and what it serves to the others; both
            # ways one after the other, though a full-duplex link has them at once
            "network": 2 * 2 * given / ASSUMED["bytes a second of the network"] * (machines > 1),
            # one thread's
            "processor": exchange.seconds(parts),
            "decoding": batch / machines / ASSUMED["images a core decodes a second"] / ASSUMED["cores a machine"],
        }
        # decoding goes on beside the rest
        step = max(sum(ways.values()) - ways["decoding"], ways["decoding"])
        steps, learnt = epochs * images / batch, params + classes * 512
        # all wait while one device looks at both views of the packs
        looked = 2 * 2 * VERIFIED * macs / ASSUMED["FLOP a second of a GPU"]
        looks = steps / VERIFY_EVERY * looked
        print(
            f"{name}: {(step * steps + looks) / 3600:.1f} h, {steps:,.0f} steps of {step:.3f} s, verifications of "
            f"{looked:.0f} s, {looks / 3600:.1f} h of it ("
            + ", ".join(f"{way} {seconds:.4f}" for way, seconds in ways.items())
            + f"; most: {max(ways, key=ways.get)}); a state {8 * learnt / 1e9:.1f} GB, centres and momenta "
            f"{8 * classes * 512 / machines / 1e9:.1f} GB a machine, logits {own * taken * 4 / 1e9:.2f} GB a GPU, "
            f"the head's four arrays of rows {4 * rows / 1e9:.2f} GB a GPU, "
            f"records {images * RECORD / 1e9:.0f} GB"
        )
        if sampled:
            # the worker that leads draws or reads all of them, and writes all of them
            tables = {what: 8 * classes * 512 * parts[f"byte of the tables {what}"] for what in WHEN}
            print("   the tables: " + ", ".join(f"{what} {seconds:.0f} s" for what, seconds in tables.items()))
        if "student" in name:
            views = 2 * 2 * images * 12.1e9 / ASSUMED["FLOP a second of a GPU"] / 3600
            print(f"   the store of ResNet100's embeddings: {views:.1f} h of one GPU, {views / GPUS:.1f} of {GPUS}")


def main() -> None:
    """Print the plan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", type=Path, nargs="?", default=Path(__file__).with_name("scale_parts.json"))
    plan(json.loads(parser.parse_args().parts.read_text()))


if __name__ == "__main__":
    main()
