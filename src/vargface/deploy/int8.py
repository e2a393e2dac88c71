"""An 8-bit ONNX file: weights by output channel, activations by their usual range on aligned faces.

By ONNX Runtime's static quantiser. MXNet's own (`quantize_model_mkldnn`) runs with poolings and squeeze-excitation left
out only, and gave embeddings of cosine 0.02 to the float ones (random weights). Convolutions and dense layers are
quantised, PReLUs and sums stay float.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vargface.data.packs import Pack, read_pack
from vargface.data.records import FaceRecords
from vargface.deploy.face_files import Face, find_faces, paths_of
from vargface.deploy.network import INPUT, Network
from vargface.deploy.onnx_file import export_onnx
from vargface.errors import InputError
from vargface.files import whole_file
from vargface.inference import unit
from vargface.packages import require

if TYPE_CHECKING:
    import onnx

__all__ = ["FEW", "LEAST_COSINE", "calibration_faces", "export_int8"]

# with fewer faces to calibrate on, or a mean cosine to the float network below this, a file is not to be trusted
FEW, LEAST_COSINE = 64, 0.9
# of the faces, so many are compared
COMPARED = 32


def calibration_faces(sources: str | Path | Sequence[str | Path], number: int, *, resize: bool = False) -> np.ndarray:
    """Return `number` aligned faces (n, 3, 112, 112) uint8, evenly spread over `sources`, all if those hold fewer.

    A source is a verification pack (.bin), a training folder (with train.rec) or what `face_files.find_faces` takes;
    resize: as `face_files.Face.pixels` has it. Raises InputError as those do, and where there is no face.
    """
    readers: list[Callable[[], np.ndarray]] = []
    for source in paths_of(sources):
        if source.suffix == ".bin":
            pack = read_pack(source)
            readers += [functools.partial(_of_pack, pack, row) for row in range(len(pack.images))]
        elif (source / "train.rec").is_file():
            records = FaceRecords(source)
            readers += [functools.partial(_of_record, records, place) for place in range(len(records))]
        else:
            readers += [functools.partial(_of_file, face, resize) for face in find_faces([source])]
    if not readers:
        raise InputError(f"{', '.join(map(str, paths_of(sources)))}: no face to calibrate on")
    chosen = np.linspace(0, len(readers) - 1, min(number, len(readers))).round().astype(int)
    return np.stack([readers[row]() for row in chosen])


def _of_pack(pack: Pack, row: int) -> np.ndarray:
    return pack.decode(row, row + 1)[0]


def _of_record(records: FaceRecords, place: int) -> np.ndarray:
    _, encoded = records.read(place)
    return Pack(records.name(place), [encoded], np.empty(0, bool)).decode(0, 1)[0]


def _of_file(face: Face, resize: bool) -> np.ndarray:
    return face.pixels(resize).transpose(2, 0, 1)


def export_int8(
    network: Network,
    path: str | Path,
    faces: np.ndarray,
    *,
    vnni: bool = False,
    on_face: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Write `network` to `path` quantised to 8 bits, calibrated on `faces` (n, 3, 112, 112), RGB 0..255.

    Return the cosines (at most 32,) of its embeddings of some of these faces, spread over all, to the float network's.
    An activation's range is the mean over faces of its smallest and largest value: the extremes over all faces would
    spend the 8 bits on a few of them. vnni: weights of 8 bits, not 7, for x86 CPUs with VNNI alone: the others add two
    products in 16 bits, which then saturate. on_face: called with 1 for each. Raises InputError where onnxruntime is
    missing, for an operator that cannot be exported and where the file cannot be written.
    """
    onnx = require("onnx", "an ONNX file")
    quantization = require("onnxruntime.quantization", "an int8 file")

    class Faces(quantization.CalibrationDataReader):
        """Feeds the faces one by one: the ranges are means over what is fed together."""

        def __init__(self) -> None:
            self._faces = iter(faces)

        def get_next(self) -> dict[str, np.ndarray] | None:
            face = next(self._faces, None)
            if face is None:
                return None
            if on_face is not None:
                on_face(1)
            return {INPUT: face[None].astype(np.float32)}

    with tempfile.TemporaryDirectory() as folder, _without_advice():
        float_file, int8_file = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        # split, a PReLU would be rounded to 8 bits three times
        export_onnx(network, float_file, whole_prelus=True)
        quantization.quantize_static(
            float_file,
            int8_file,
            Faces(),
            op_types_to_quantize=["Conv", "Gemm"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=not vnni,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={"CalibMovingAverage": True},
        )
        model = onnx.load(str(int8_file))
        _preprocessing_first(model.graph)
        _short_names(model.graph)
        onnx.checker.check_model(model)
        some = faces[np.unique(np.linspace(0, len(faces) - 1, COMPARED).round().astype(int))]
        exact, ours = (_embeddings(source, some) for source in (str(float_file), model.SerializeToString()))
        with whole_file(path) as file:
            file.write(model.SerializeToString())
    return (unit(exact) * unit(ours)).sum(axis=1)


def _embeddings(model: str | bytes, faces: np.ndarray) -> np.ndarray:
    """Return the embeddings (n, D) that ONNX Runtime gives of `faces` by a file, or what is in one."""
    session = require("onnxruntime", "an int8 file").InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {INPUT: face[None].astype(np.float32)})[0] for face in faces])


def _preprocessing_first(graph: onnx.GraphProto) -> None:
    """Put the subtraction and the multiplication of the input before all other nodes of `graph`.

    Among the first eight is where `insightface` looks for them; without them it would normalise the input again.
    """
    nodes = list(graph.node)
    (subtraction,) = (node for node in nodes if node.op_type == "Sub" and INPUT in node.input)
    (product,) = (node for node in nodes if node.op_type == "Mul" and subtraction.output[0] in node.input)
    first = [subtraction, product]
    del graph.node[:]
    graph.node.extend([*first, *(node for node in nodes if node not in first)])


def _short_names(graph: onnx.GraphProto) -> None:
    """Number what has a name inside `graph`: the quantiser's long names are a twentieth of the file.

    Left are those that consumers read: input, output, and the first two nodes', by which insightface knows them.
    """
    outside = {value.name for value in (*graph.input, *graph.output)}
    short: dict[str, str] = {}

    def renamed(name: str) -> str:
        return name if not name or name in outside else short.setdefault(name, str(len(short)))

    for array in graph.initializer:
        array.name = renamed(array.name)
    for number, node in enumerate(graph.node):
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        if number > 1:
            node.name = ""
    del graph.value_info[:]  # shapes of what is inside, which ONNX Runtime infers


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Keep the quantiser's advice to optimise the model first, which is done, from the log."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
