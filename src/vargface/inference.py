"""A network that only runs forward: teachers, verification and embedding all use this one."""

from __future__ import annotations

import os
import threading

import numpy as np

from vargface.checkpoint import Checkpoint
from vargface.graph import inference_form
from vargface.runtime import leave_threads_to_workers, mx

__all__ = ["HANDING_OVER", "FrozenNetwork", "unit", "values"]

# MXNet's Python layer is not made for several threads: a pass begun between another's images and its output would give
# one of them the other's embeddings. Held while work is handed to MXNet, not while it is done.
HANDING_OVER = threading.RLock()


class _Waiting:
    """The threads that wait in MXNet for values, counted: `with` it waits one more."""

    def __init__(self) -> None:
        self._threads, self._changed = 0, threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._threads -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Return once nobody waits, and let nobody in until `open`."""
        self._changed.acquire()
        self._changed.wait_for(lambda: not self._threads)

    def open(self) -> None:
        """Let threads wait again."""
        self._changed.release()


_WAITING = _Waiting()


def _before_fork() -> None:
    """See to it that no thread is in MXNet: the child would wait for ever for a lock of one, which it does not have."""
    HANDING_OVER.acquire()
    _WAITING.close()


def _after_fork() -> None:
    _WAITING.open()
    HANDING_OVER.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


class FrozenNetwork:
    """A checkpoint bound for inference; it has no gradients, so nothing can train it.

    Python threads may share it, and use several at a time.
    """

    def __init__(self, checkpoint: Checkpoint, batch_size: int = 32, context: mx.Context | None = None) -> None:
        """Bind `checkpoint` for batches of `batch_size` 112x112 images on `context` (default: CPU)."""
        self.embedding_size = checkpoint.embedding_size
        self.batch_size = batch_size
        leave_threads_to_workers()
        with HANDING_OVER:
            symbol = inference_form(checkpoint.symbol)
            self._module = mx.mod.Module(symbol, label_names=None, context=context or mx.cpu())
            self._module.bind([("data", (batch_size, 3, 112, 112))], for_training=False)
            # once and for all: MKLDNN's fused layers keep the weights of the first pass, whatever is set after it
            self._module.set_params(checkpoint.args, checkpoint.auxs, allow_extra=True)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the embeddings (n, D) float32, not normalised, of `images` (n, 3, 112, 112), RGB 0..255, any n."""
        rows = []
        for start in range(0, len(images), self.batch_size):
            chunk = images[start : start + self.batch_size]
            rows.append(values(self.begin(chunk))[: len(chunk)])
        return np.concatenate(rows) if rows else np.empty((0, self.embedding_size), np.float32)

    def begin(self, images: np.ndarray) -> mx.nd.NDArray:
        """Begin to work on at most a batch of `images` and return the embeddings (batch_size, D) that it will have.

        Rows past the images are of nothing. To ask for them (`values`) waits for them; networks on other contexts go on
        meanwhile.
        """
        # a short batch is filled up: binding anew for its size would cost more than it saves
        batch = np.zeros((self.batch_size, *images.shape[1:]), np.float32)
        batch[: len(images)] = images
        leave_threads_to_workers()
        with HANDING_OVER:
            self._module.forward(mx.io.DataBatch([mx.nd.array(batch)]), is_train=False)
            return self._module.get_outputs()[0].copy()  # the output's own memory is the next batch's


def values(begun: mx.nd.NDArray) -> np.ndarray:
    """Return the values of what was begun, when they are there."""
    with _WAITING:
        return begun.asnumpy()


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Return the rows (n, D) at unit norm; a row of zeros, without a direction, stays."""
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
