"""Teachers by name: a checkpoint, an ONNX model, or several of either averaged on the sphere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vargface.checkpoint import Checkpoint, load_checkpoint, model_digest
from vargface.errors import InputError
from vargface.files import digest
from vargface.inference import FrozenNetwork, unit
from vargface.runtime import mx
from vargface.teachers.onnx_network import OnnxNetwork, files_of

__all__ = ["Average", "Network", "TeacherModels", "models_of", "teacher_digest"]

_MODEL = re.compile(r"([^+].*?(?:,[0-9]+|\.onnx))(?:\+(?!$)|$)")


class Network(Protocol):
    """What runs forward: FrozenNetwork, OnnxNetwork and what is made of them."""

    embedding_size: int

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the embeddings (n, D) float32, of any norm, of `images` (n, 3, 112, 112), RGB 0..255."""


def models_of(teacher: str) -> list[str]:
    """Return the models of `teacher`: PREFIX,EPOCH or FILE.onnx, several joined by "+"; InputError for others."""
    found, end = [], 0
    while end < len(teacher) or not found:
        match = _MODEL.match(teacher, end)
        if match is None:
            raise InputError(
                f"model {teacher!r}: must be PREFIX,EPOCH, FILE.onnx or several of these joined by '+', e.g. "
                "runs/demo/teacher/teacher,1+r50.onnx"
            )
        found.append(match[1])
        end = match.end()
    return found


def teacher_digest(teacher: str) -> str:
    """Return what tells `teacher` from others, wherever its files lie and in whatever order its models are named.

    Raises InputError for a file that is not there.
    """
    return " + ".join(sorted(_model_digest(model) for model in models_of(teacher)))


def _model_digest(model: str) -> str:
    if not model.endswith(".onnx"):
        return model_digest(model)
    return digest(*files_of(model))


class TeacherModels:
    """The models of one teacher, read and checked, not bound to a device yet."""

    def __init__(self, teacher: str) -> None:
        """Read `teacher` (as `models_of` has it).

        Raises InputError for a model that cannot be used, and for several that do not embed into as many dimensions.
        """
        self.names = models_of(teacher)
        self._models = [OnnxNetwork(name) if name.endswith(".onnx") else load_checkpoint(name) for name in self.names]
        sizes = [model.embedding_size for model in self._models]
        if len(set(sizes)) > 1:
            found = ", ".join(f"{name} into {size}" for name, size in zip(self.names, sizes))
            raise InputError(f"teacher {teacher}: models that are averaged embed into as many dimensions, not {found}")
        self.embedding_size = sizes[0]

    def network(self, batch_size: int, context: mx.Context) -> Network:
        """Return what embeds images on `context`, `batch_size` at a time: the model, or the average of several."""
        networks: list[Network] = []
        for model in self._models:
            if isinstance(model, Checkpoint):
                networks.append(FrozenNetwork(model, batch_size, context))
            else:
                networks.append(model.on(context, batch_size))
        return networks[0] if len(networks) == 1 else Average(networks)


class Average:
    """The mean of several teachers' unit embeddings, projected back onto the sphere.

    It is the point of the smallest mean squared distance to them all: Eq. 5 against each, averaged, differs from Eq. 5
    against it by a constant and a factor. Teachers trained apart do not share axes; the mean is then an embedding of
    its own, in which each pair's cosine is about the mean of theirs.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = list(networks)
        self.embedding_size = self._networks[0].embedding_size

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the embeddings (n, D) float32, unit norm, of `images` (n, 3, 112, 112), RGB 0..255."""
        return unit(np.mean([unit(network(images)) for network in self._networks], axis=0))
