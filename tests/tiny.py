"""Things to train on in a second: a data set of two dozen smooth images, a network of two layers, its checkpoint."""

from __future__ import annotations

import contextlib
import csv
import resource
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from vargface.checkpoint import save_checkpoint
from vargface.data.packs import write_pack
from vargface.data.writer import RecordWriter
from vargface.recipe import load_recipe
from vargface.runtime import mx
from vargface.symbols.layers import batch_norm, embedding_layer, prelu, scaled_input

IDENTITIES, EACH, DIMENSIONS = 4, 6, 16

# a base for recipes on this data set; `out` is the test's
KEYS = {
    "embedding_size": DIMENSIONS,
    "batch_size": 4,
    "scale": 16,
    "m2": 0.1,
    "schedule": "cosine",
    "lr": 0.02,
    "report": False,
}


def image(identity: int, number: int) -> np.ndarray:
    """(112, 112, 3) uint8: the identity's own few blobs, and fainter ones of the image's."""
    own = np.random.default_rng(identity).integers(40, 216, (4, 4, 3))
    other = np.random.default_rng([identity, number]).integers(-40, 40, (4, 4, 3))
    return cv2.resize((own + other).astype(np.uint8), (112, 112), interpolation=cv2.INTER_LINEAR)


def jpeg(identity: int, number: int) -> bytes:
    return cv2.imencode(".jpg", image(identity, number), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def make_pack(path: Path, pairs: int = 10) -> Path:
    """Pairs in turn of one identity and of two."""
    images = []
    for pair in range(pairs):
        first = pair % IDENTITIES
        images += [jpeg(first, 10 + pair), jpeg(first if pair % 2 == 0 else (first + 1) % IDENTITIES, 50 + pair)]
    write_pack(path, images, [pair % 2 == 0 for pair in range(pairs)])
    return path


def make_data(folder: Path, each: int = EACH, first: int = 0) -> Path:
    """An InsightFace folder with one pack, `pairs.bin`; each identity has images `first` to `first + each - 1`."""
    with RecordWriter(folder, IDENTITIES) as writer:
        for identity in range(IDENTITIES):
            for number in range(first, first + each):
                writer.add(identity, jpeg(identity, number))
    make_pack(folder / "pairs.bin")
    return folder


def network(norm: bool = True) -> mx.sym.Symbol:
    """A network in the form of the real ones, a thousandth of their size; without `norm` no sample sees another."""
    with mx.name.NameManager():
        data = mx.sym.Pooling(scaled_input(), kernel=(14, 14), stride=(14, 14), pool_type="avg", name="coarse")
        data = mx.sym.Convolution(data, num_filter=8, kernel=(3, 3), stride=(2, 2), name="conv1")
        if norm:
            data = batch_norm(data, "bn1")
        data = prelu(data, "relu1")
        if norm:
            return embedding_layer(data, DIMENSIONS, fix_gamma=False)
        return mx.sym.FullyConnected(mx.sym.Flatten(data), num_hidden=DIMENSIONS, name="fc1")


def weights(symbol: mx.sym.Symbol, seed: int = 0) -> tuple[dict, dict]:
    """Random (args, auxs) of `symbol`."""
    mx.random.seed(seed)
    np.random.seed(seed)
    module = mx.mod.Module(symbol, label_names=None)
    module.bind([("data", (1, 3, 112, 112))], for_training=False)
    module.init_params(mx.init.Xavier(rnd_type="gaussian", factor_type="out", magnitude=2))
    return module.get_params()


def make_teacher(folder: Path, seed: int = 7) -> str:
    """Write a teacher of random weights and return its PREFIX,EPOCH."""
    symbol = network()
    return save_checkpoint(folder / "teacher", 3, symbol, *weights(symbol, seed))


def make_recipe(**keys):
    """The recipe of `KEYS` and `keys`."""
    return load_recipe("base", [f"{key}={value}" for key, value in {**KEYS, **keys}.items()])


def numpy_of(params: tuple[dict, dict]) -> dict[str, np.ndarray]:
    """name -> array of (args, auxs)."""
    return {name: value.asnumpy() for part in params for name, value in part.items()}


@contextlib.contextmanager
def largest_file(size: int):
    """Let the system refuse what any file would have past `size` bytes, as a disk that is full does.

    Only around the call that is tested: the limit is the process's, and pytest itself may be writing to a long file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def state(folder) -> dict[str, np.ndarray]:
    """All weights after the last step, class centres and moving statistics included."""
    return numpy_of(folder.load_state()[1])


def equal(one: dict, other: dict) -> None:
    """Equal to the last bit."""
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def rows(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """Mount a file system of `size`, e.g. "64k", on a new folder; skips where this process may not mount one."""
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("may not mount a tmpfs")
    try:
        yield folder
    finally:
        # lazily: TensorBoard's writer may hold a file that it could not write out
        subprocess.run(["umount", "-l", str(folder)], check=True)
