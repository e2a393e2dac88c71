"""A network that only runs forward: teachers, verification and embedding all use this one."""

from __future__ import annotations

import threading

import numpy as np

from vargface.checkpoint import Checkpoint
from vargface.graph import inference_form
from vargface.runtime import mx

__all__ = ["FrozenNetwork", "unit"]

# MXNet's Python layer is not made for several threads: a pass begun between another's images and its output would give
# one of them the other's embeddings. Held while work is handed to MXNet, not while it is done.
_HANDING_OVER = threading.Lock()


class FrozenNetwork:
    """A checkpoint bound for inference; it has no gradients, so nothing can train it.

    Python threads may share it, and use several at a time.
    """

    def __init__(self, checkpoint: Checkpoint, batch_size: int = 32, context: mx.Context | None = None) -> None:
        """Bind `checkpoint` for batches of `batch_size` 112x112 images on `context` (default: CPU)."""
        self.embedding_size = checkpoint.embedding_size
        self.batch_size = batch_size
        with _HANDING_OVER:
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
            rows.append(self.begin(chunk).asnumpy()[: len(chunk)])
        return np.concatenate(rows) if rows else np.empty((0, self.embedding_size), np.float32)

    def begin(self, images: np.ndarray) -> mx.nd.NDArray:
        """Begin to work on at most a batch of `images` and return the embeddings (batch_size, D) that it will have.

        Rows past the images are of nothing. To ask for values (`asnumpy`) waits for them; networks on other contexts go
        on meanwhile.
        """
        # a short batch is filled up: binding anew for its size would cost more than it saves
        batch = np.zeros((self.batch_size, *images.shape[1:]), np.float32)
        batch[: len(images)] = images
        with _HANDING_OVER:
            self._module.forward(mx.io.DataBatch([mx.nd.array(batch)]), is_train=False)
            return self._module.get_outputs()[0].copy()  # the output's own memory is the next batch's


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Return the rows (n, D) at unit norm; a row of zeros, without a direction, stays."""
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
