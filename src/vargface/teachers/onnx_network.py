"""An ONNX model as a teacher, through onnxruntime (the extra `export`)."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from vargface.errors import InputError
from vargface.packages import require
from vargface.runtime import cores, is_thread_count, mx

__all__ = ["OnnxNetwork", "files_of"]

logger = logging.getLogger(__name__)

# as InsightFace's ArcFaceONNX decides it: a model that begins with a subtraction and a product scales its input itself
_FIRST_NODES = 8
_SCALING = (("Sub", "_minus"), ("Mul", "_mul"))
_MEAN, _DEVIATION = 127.5, 127.5


class OnnxNetwork:
    """An ONNX model with one input (N, 3, 112, 112) RGB, whose first output is the embedding (N, D).

    embedding_size: D. scales_itself: whether it takes 0..255; any other is fed (x - 127.5) / 127.5. InsightFace's rule:
    it takes 0..255 if, of the first 8 nodes, one is called Sub... or _minus... and one Mul... or _mul...
    """

    def __init__(self, file: str | Path) -> None:
        """Open `file` on the CPU. Raises InputError where it cannot be read, run or is no such model."""
        self._file = str(file)
        if not Path(file).is_file():
            raise InputError(f"{file}: no such file - give the teacher's ONNX model")
        self.scales_itself = _scales_itself(self._file)
        self._session, self.batch_size = _session(self._file, None), 32
        entry = self._session.get_inputs()[0]
        self._input = entry.name
        shape = [size if isinstance(size, int) else wanted for size, wanted in zip(entry.shape, (0, 3, 112, 112))]
        if len(self._session.get_inputs()) != 1 or len(entry.shape) != 4 or shape[1:] != [3, 112, 112]:
            raise InputError(f"{file}: takes {entry.name} {entry.shape} - a teacher takes (N, 3, 112, 112) alone")
        # a model exported for one batch size takes no other
        self._fixed = shape[0] or None
        embedding = self._run(np.zeros((self._fixed or 1, 3, 112, 112), np.float32))
        if embedding.ndim != 2:
            raise InputError(f"{file}: its first output is {embedding.shape} of one image, no embedding (N, D)")
        self.embedding_size = int(embedding.shape[1])

    def on(self, context: mx.Context, batch_size: int) -> OnnxNetwork:
        """Return this network, to run on `context` from now on, `batch_size` images at a time."""
        self.batch_size = batch_size
        if context.device_type == "gpu":
            self._session = _session(self._file, context.device_id)
        return self

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the embeddings (n, D) float32, of any norm, of `images` (n, 3, 112, 112), RGB 0..255, any n."""
        size = self._fixed or self.batch_size
        found = [np.empty((0, self.embedding_size), np.float32)]
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            # a short last batch is filled up only where the model takes no other size
            batch = np.zeros((self._fixed or len(chunk), *images.shape[1:]), np.float32)
            batch[: len(chunk)] = chunk
            found.append(self._run(batch if self.scales_itself else (batch - _MEAN) / _DEVIATION)[: len(chunk)])
        return np.concatenate(found)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        try:
            return self._session.run(None, {self._input: np.ascontiguousarray(batch, np.float32)})[0]
        except Exception as error:  # onnxruntime's own kinds have no public base
            raise InputError(f"{self._file}: cannot be run ({_first_line(error)})") from error


def files_of(file: str | Path) -> list[Path]:
    """Return the files of an ONNX model: itself and those its weights lie in, where they are not in it.

    Raises InputError where one is missing.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f"{file}: no such file - give the teacher's ONNX model")
    content, locations = file.read_bytes(), set()
    if b"location" in content:  # the key under which a tensor names its file
        onnx = require("onnx", f"{file}: an ONNX teacher")
        try:
            model = onnx.load(str(file), load_external_data=False)
        except Exception as error:  # protobuf's own kind, of a package that is not ours to import
            raise InputError(f"{file}: not an ONNX model ({_first_line(error)})") from error
        tensors = onnx.external_data_helper._get_all_tensors(model)
        locations = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    others = [file.parent / location for location in sorted(locations)]
    for other in others:
        if not other.is_file():
            raise InputError(f"{file}: its weights are in {other.name}, which is not beside it - put it there")
    return [file, *others]


def _scales_itself(file: str) -> bool:
    onnx = require("onnx", f"{file}: an ONNX teacher")
    try:
        nodes = onnx.load(file, load_external_data=False).graph.node[:_FIRST_NODES]
    except Exception as error:  # protobuf's own kind, of a package that is not ours to import
        raise InputError(f"{file}: not an ONNX model ({_first_line(error)})") from error
    found = all(any(node.name.startswith(names) for node in nodes) for names in _SCALING)
    logger.info("%s: %s", file, "takes 0..255" if found else "fed (x - 127.5) / 127.5, for it does not scale its input")
    return found


def _session(file: str, gpu: int | None) -> Any:
    onnxruntime = require("onnxruntime", f"{file}: an ONNX teacher")
    options = onnxruntime.SessionOptions()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    options.intra_op_num_threads = int(threads) if is_thread_count(threads) else cores()
    # threads that wait busily would take the cores from MXNet's
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if gpu is not None:
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": gpu}))
        else:
            logger.warning("%s: this onnxruntime has no CUDA: it runs on the CPU - pip install onnxruntime-gpu", file)
    try:
        return onnxruntime.InferenceSession(file, options, providers=providers)
    except Exception as error:  # onnxruntime's own kinds have no public base
        raise InputError(f"{file}: not a model that onnxruntime can run ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
