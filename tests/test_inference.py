"""The network that only runs forward: any number of images, any number of threads, more than once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vargface.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vargface.inference import FrozenNetwork
from vargface.runtime import mx
from vargface.symbols import vargfacenet

SIZE = 16
SHARED = Path(__file__).resolve().parents[2] / "shared"


def narrow_checkpoint(seed: int) -> Checkpoint:
    mx.random.seed(seed)
    symbol = vargfacenet.get_symbol(SIZE, 0.25)
    module = mx.mod.Module(symbol, label_names=None)
    module.bind([("data", (1, 3, 112, 112))], for_training=False)
    module.init_params(mx.init.Xavier(rnd_type="gaussian", factor_type="out", magnitude=2))
    return Checkpoint(symbol, *module.get_params(), f"seed {seed}")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return narrow_checkpoint(0)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 3, 112, 112), np.uint8)


def assert_close(embeddings, expected):
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.fixture(scope="module")
def native_embeddings(checkpoint, images) -> np.ndarray:
    """What InsightFace's consumers get of the same checkpoint: the native symbol in a Module of its own."""
    module = mx.mod.Module(checkpoint.symbol, label_names=None)
    module.bind([("data", images.shape)], for_training=False)
    module.set_params(checkpoint.args, checkpoint.auxs)
    module.forward(mx.io.DataBatch([mx.nd.array(images)]), is_train=False)
    return module.get_outputs()[0].asnumpy()


def test_any_number_of_images_gives_each_its_embedding(checkpoint, images, native_embeddings):
    network = FrozenNetwork(checkpoint, batch_size=2)
    assert network.embedding_size == SIZE
    for number in (5, 4, 2, 1):
        embeddings = network(images[:number])
        assert embeddings.dtype == np.float32
        assert_close(embeddings, native_embeddings[:number])
    assert network(images[:0]).shape == (0, SIZE)
    # a short batch leaves nothing behind in the next one, nor takes anything from the one before
    assert_close(network(images[4:]), native_embeddings[4:])


def test_networks_bound_side_by_side_keep_their_own_weights(checkpoint, images, native_embeddings):
    network, other = FrozenNetwork(checkpoint, batch_size=5), FrozenNetwork(narrow_checkpoint(1), batch_size=5)
    assert np.abs(other(images) - native_embeddings).max() > 0.1 * np.abs(native_embeddings).max()
    assert_close(network(images), native_embeddings)


def test_running_changes_no_weight_and_no_moving_average(checkpoint, images):
    before = {name: value.asnumpy() for name, value in {**checkpoint.args, **checkpoint.auxs}.items()}
    network = FrozenNetwork(checkpoint, batch_size=5)
    first = network(images)
    np.testing.assert_array_equal(network(images), first)
    for name, value in {**checkpoint.args, **checkpoint.auxs}.items():
        np.testing.assert_array_equal(value.asnumpy(), before[name])


# Every network for batches of 1, 2 and 32, three times each, with as many threads as OMP_NUM_THREADS says. Prints the
# largest difference of any embedding of image 0, relative to the largest number in it.
THREE_FORWARDS = """
import sys
import numpy as np
from vargface.checkpoint import load_checkpoint
from vargface.inference import FrozenNetwork
images = np.random.default_rng(0).integers(0, 256, (32, 3, 112, 112), np.uint8)
for model in sys.argv[1:]:
    rows = []
    for batch_size in (1, 2, 32):
        network = FrozenNetwork(load_checkpoint(model), batch_size)
        rows += [network(images[:batch_size])[0] for _ in range(3)]
    rows = np.stack(rows)
    print(np.abs(rows - rows[0]).max() / np.abs(rows[0]).max(), *rows[0])
"""


@pytest.fixture(scope="module", params=[1, 2, 4], ids="threads={}".format)
def three_forwards(request, checkpoint, tmp_path_factory) -> list[list[float]]:
    """For our network, then for the real one if it is there: the difference, and the embedding of image 0."""
    prefix = tmp_path_factory.mktemp("three_forwards") / "narrow"
    models = [save_checkpoint(prefix, 0, checkpoint.symbol, checkpoint.args, checkpoint.auxs)]
    real = Path(os.environ.get("VARGFACE_FACES", SHARED / "faces")) / "insightface-y1" / "model"
    models += [f"{real},0"] * real.parent.is_dir()
    theirs = ("MXNET_", "DNNL_", "OMP_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    environment["OMP_NUM_THREADS"] = str(request.param)
    command = [sys.executable, "-c", THREE_FORWARDS, *models]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [[float(number) for number in line.split()] for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_ours_runs_three_times_at_every_batch_size_and_thread_count(three_forwards):
    """An unsafe graph raises `IsMKLDNNData` from the second forward pass on; ours at batch 1 with several threads."""
    difference, *embedding = three_forwards[0]
    assert difference < 1e-4
    assert len(embedding) == SIZE


@pytest.mark.slow
def test_the_real_checkpoint_runs_three_times_at_every_batch_size_and_thread_count(real_faces, three_forwards):
    difference, *embedding = three_forwards[1]
    assert difference < 1e-4
    assert len(embedding) == 128


NATIVE = """
import sys
from vargface.checkpoint import load_checkpoint
from vargface.runtime import mx
checkpoint = load_checkpoint(sys.argv[1])
module = mx.mod.Module(checkpoint.symbol, label_names=None)
module.bind([("data", (1, 3, 112, 112))], for_training=False)
module.set_params(checkpoint.args, checkpoint.auxs)
for _ in range(2):
    module.forward(mx.io.DataBatch([mx.nd.ones((1, 3, 112, 112))]), is_train=False)
    print(*module.get_outputs()[0].asnumpy()[0], flush=True)
"""


def test_the_real_checkpoint_fails_without_the_rewriting(real_faces):
    """Pins MXNet's fault: its own symbol runs once. The day this fails, `inference_form` needs no Flatten any more.

    With all of MKLDNN's kernels, as MXNet has it by default: which of them run decides whether the fault shows.
    """
    model = f"{real_faces}/insightface-y1/model,0"
    found = subprocess.run(
        [sys.executable, "-c", NATIVE, model],
        env={**os.environ, "DNNL_MAX_CPU_ISA": "ALL"},
        capture_output=True,
        text=True,
    )
    assert found.returncode != 0 and "IsMKLDNNData" in found.stderr
    (once,) = found.stdout.splitlines()
    native = np.array([once.split()], np.float32)
    network = FrozenNetwork(load_checkpoint(model), batch_size=1)
    for _ in range(3):
        assert_close(network(np.ones((1, 3, 112, 112), np.uint8)), native)


@pytest.mark.parametrize("last", [True, False])
def test_a_prelu_behind_a_dense_layer(last):
    """Old checkpoints have one; MKLDNN must not put a part of it into that layer."""
    data = mx.sym.Pooling(mx.sym.Variable("data"), kernel=(16, 16), stride=(16, 16), pool_type="avg", name="coarse")
    dense = mx.sym.FullyConnected(mx.sym.Flatten(data), num_hidden=SIZE, name="fc1" if last else "fc0")
    symbol = mx.sym.LeakyReLU(dense, act_type="prelu", name="act" if not last else "fc1_act")
    if not last:
        symbol = mx.sym.FullyConnected(symbol, num_hidden=SIZE, name="fc1")
    random = np.random.default_rng(0)
    args = {
        name: mx.nd.array(random.normal(size=shape) * 0.1)
        for name, shape in zip(symbol.list_arguments(), symbol.infer_shape(data=(1, 3, 112, 112))[0])
        if name != "data"
    }
    images = random.integers(0, 256, (3, 3, 112, 112), np.uint8)
    coarse = images.reshape(3, 3, 7, 16, 7, 16).mean(axis=(3, 5)).reshape(3, -1)
    names = [name for name in ("fc0", "fc1") if f"{name}_weight" in args]
    due = coarse @ args[f"{names[0]}_weight"].asnumpy().T + args[f"{names[0]}_bias"].asnumpy()
    (slope,) = (value.asnumpy() for name, value in args.items() if name.endswith("gamma"))
    due = np.maximum(due, 0) + slope * np.minimum(due, 0)
    if not last:
        due = due @ args["fc1_weight"].asnumpy().T + args["fc1_bias"].asnumpy()
    network = FrozenNetwork(Checkpoint(symbol, args, {}, "dense"), batch_size=2)
    for _ in range(2):
        assert_close(network(images), due)
