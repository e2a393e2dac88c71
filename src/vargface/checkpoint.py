"""Checkpoints of the InsightFace stack: PREFIX-symbol.json and PREFIX-%04d.params, read strictly and written whole."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vargface.errors import InputError
from vargface.files import digest, whole_file
from vargface.graph import attribute
from vargface.runtime import mx

__all__ = [
    "OUTPUT",
    "Checkpoint",
    "load_checkpoint",
    "load_params",
    "matching",
    "model_digest",
    "parse_model",
    "save_checkpoint",
    "tagged",
    "untagged",
    "value_bytes",
    "write_params",
]

# the output that InsightFace's consumers ask for
OUTPUT = "fc1_output"
# names that old InsightFace checkpoints have for parameters of today's symbols
OLD_NAMES = {"pre_fc1_weight": "fc1_weight"}

Params = dict


class Checkpoint(NamedTuple):
    """A network: a symbol that ends in `fc1`, with its parameters (name -> NDArray)."""

    symbol: mx.sym.Symbol
    args: Params
    auxs: Params
    source: str

    @property
    def embedding_size(self) -> int:
        """Return D of the embeddings (N, D)."""
        _, outputs, _ = self.symbol.infer_shape(data=(1, 3, 112, 112))
        return outputs[0][1]


def parse_model(model: str) -> tuple[str, int]:
    """Return (prefix, epoch) of "PREFIX,EPOCH". Raises InputError for any other form."""
    prefix, comma, epoch = model.rpartition(",")
    if not comma or not prefix or not re.fullmatch(r"[0-9]+", epoch):
        raise InputError(
            f"model {model!r}: must be PREFIX,EPOCH, e.g. runs/demo/student/student,1 for student-0001.params"
        )
    return prefix, int(epoch)


def load_checkpoint(model: str) -> Checkpoint:
    """Return the checkpoint "PREFIX,EPOCH", cut at `fc1_output`: heads that came after it are left out.

    Raises InputError for files that are missing or cannot be read, for a symbol without `fc1_output` (naming what could
    be meant) and for parameters that the symbol needs and the file has not, has in another shape, or with values that
    no network can have.
    """
    symbol_file, params_file = _files(model)
    try:
        symbol = mx.sym.load(symbol_file)
    except UnicodeDecodeError as error:  # MXNet's message quotes what it read past the end of a file that was cut
        raise InputError(f"{symbol_file}: not a symbol that MXNet can read (cut short or not JSON)") from error
    except mx.MXNetError as error:
        raise InputError(f"{symbol_file}: not a symbol that MXNet can read ({_first_line(error)})") from error
    internals = symbol.get_internals()
    outputs = internals.list_outputs()
    if OUTPUT not in outputs:
        results = [name for name in outputs if name.endswith("_output")]
        likely = [name for name in results if re.search(r"fc|embed|feat|flatten", name)]
        named = ", ".join((likely or results)[-8:])
        raise InputError(f"{symbol_file}: has no {OUTPUT}; rename its embedding to fc1 - candidates: {named}")
    symbol = internals[OUTPUT]
    _check_input(symbol, symbol_file)
    args, auxs = matching(symbol, load_params(params_file), params_file)
    _check_values({**args, **auxs}, params_file)
    return Checkpoint(symbol, args, auxs, model)


def model_digest(model: str) -> str:
    """Return what tells the checkpoint "PREFIX,EPOCH" from others, wherever it lies: a SHA-256 of its two files.

    Raises InputError for another form and for files that are missing.
    """
    return digest(*map(Path, _files(model)))


def _files(model: str) -> tuple[str, str]:
    """Return the symbol's and the parameters' file of "PREFIX,EPOCH". Raises InputError where one is missing."""
    prefix, epoch = parse_model(model)
    files = f"{prefix}-symbol.json", f"{prefix}-{epoch:04d}.params"
    for path in files:
        if not os.path.isfile(path):
            raise InputError(f"{path}: no such file - model {model!r} needs {files[0]} and {files[1]}")
    return files


def _check_input(symbol: mx.sym.Symbol, symbol_file: str) -> None:
    """Raise InputError where `symbol` does not make embeddings (N, D) of `data` (N, 3, 112, 112)."""
    wrong = f"{symbol_file}: {OUTPUT} is no embedding (N, D) of images `data` (N, 3, 112, 112)"
    if "data" not in symbol.list_arguments():
        raise InputError(f"{wrong} - its inputs and parameters are {', '.join(symbol.list_arguments()[:5])}, ...")
    try:
        with warnings.catch_warnings():  # of what it cannot infer, for which the error below is enough
            warnings.simplefilter("ignore")
            _, outputs, _ = symbol.infer_shape(data=(1, 3, 112, 112))
    except mx.MXNetError as error:
        raise InputError(f"{wrong} ({_first_line(error)})") from error
    if outputs is None or len(outputs[0]) != 2:
        raise InputError(f"{wrong} alone - its shape is {outputs[0] if outputs else 'open'}")


def _check_values(params: Params, params_file: str) -> None:
    """Raise InputError where a parameter is not finite or a variance negative: embeddings would be NaN."""
    for name, value in params.items():
        array = value.asnumpy()
        wrong = ~np.isfinite(array)
        what = "not finite"
        if name.endswith("_moving_var") and not wrong.any():
            wrong, what = array < 0, "negative"
        if wrong.any():
            found = f"{int(wrong.sum())} of its {array.size} values are {what}"
            raise InputError(
                f"{params_file}: parameter {name}: {found} - take a checkpoint from before training failed"
            )


def load_params(path: str | Path) -> Params:
    """Return the named NDArrays of a .params file. Raises InputError where it cannot be read or names nothing."""
    try:
        saved = mx.nd.load(str(path))
    except mx.MXNetError as error:
        raise InputError(f"{path}: not a parameter file that MXNet can read ({_first_line(error)})") from error
    if not isinstance(saved, dict):
        raise InputError(f"{path}: holds no named parameters - a checkpoint has keys arg:... and aux:...")
    return saved


def matching(symbol: mx.sym.Symbol, saved: Params, source: str) -> tuple[Params, Params]:
    """Return (args, auxs) that `symbol` (input `data`) needs, out of `saved` with its keys arg:NAME and aux:NAME.

    Raises InputError where one is missing or has another shape. What the symbol does not need is left out.
    """
    arg_shapes, _, aux_shapes = symbol.infer_shape(data=(1, 3, 112, 112))
    found: tuple[Params, Params] = ({}, {})
    wanted = [
        ("arg", symbol.list_arguments(), arg_shapes, found[0]),
        ("aux", symbol.list_auxiliary_states(), aux_shapes, found[1]),
    ]
    for kind, names, shapes, into in wanted:
        for name, shape in zip(names, shapes):
            if name == "data":
                continue
            value = saved.get(f"{kind}:{name}", saved.get(f"{kind}:{OLD_NAMES.get(name, name)}"))
            if value is None:
                raise InputError(
                    f"{source}: lacks parameter {name} {shape} - is it of another network than the symbol?"
                )
            if value.shape != shape:
                raise InputError(f"{source}: parameter {name} is {value.shape}, the symbol needs {shape}")
            into[name] = value
    return found


def tagged(args: Params, auxs: Params) -> Params:
    """Return `args` and `auxs` as a .params file has them, with keys arg:NAME and aux:NAME."""
    return {**{f"arg:{name}": args[name] for name in args}, **{f"aux:{name}": auxs[name] for name in auxs}}


def untagged(params: Params) -> tuple[Params, Params]:
    """Return (args, auxs) of `params` with keys arg:NAME and aux:NAME; other keys are left out."""
    args, auxs = ({key[4:]: params[key] for key in params if key.startswith(kind)} for kind in ("arg:", "aux:"))
    return args, auxs


def value_bytes(value: mx.nd.NDArray) -> int:
    """Return how many bytes the values of an array take in a .params file."""
    return value.size * np.dtype(value.dtype).itemsize


def save_checkpoint(prefix: str | Path, epoch: int, symbol: mx.sym.Symbol, args: Params, auxs: Params) -> str:
    """Write PREFIX-symbol.json and PREFIX-%04d.params and return "PREFIX,EPOCH".

    Only parameters of `symbol` are written. Each file is whole or absent; raises InputError where there is no space,
    and ValueError, before anything is written, where `args` or `auxs` lack a parameter of the symbol.
    """
    prefix = Path(prefix)
    arguments = [name for name in symbol.list_arguments() if name != "data"]
    states = symbol.list_auxiliary_states()
    missing = [name for name in arguments if name not in args] + [name for name in states if name not in auxs]
    if missing:
        raise ValueError(f"{prefix}: no array for {', '.join(missing)}, which the symbol has")
    with whole_file(prefix.with_name(f"{prefix.name}-symbol.json"), "w") as file:
        file.write(symbol.tojson())
    attributes = symbol.attr_dict()
    own_args = {name: args[name] for name in arguments}
    own_auxs = {name: auxs[name] for name in states}
    for name in own_args:
        # a fixed gamma is 1 whatever its array holds (weight decay shrinks it), but not every consumer knows
        # (MXNet gives a node's attributes to all its variables, beta too)
        if name.endswith("_gamma") and attribute(attributes.get(name, {}), "fix_gamma", False):
            own_args[name] = mx.nd.ones_like(own_args[name])
    write_params(prefix.with_name(f"{prefix.name}-{epoch:04d}.params"), tagged(own_args, own_auxs))
    return f"{prefix},{epoch}"


def write_params(path: str | Path, params: Params) -> None:
    """Write named NDArrays as MXNet's own format. Raises InputError where there is no space or no permission."""
    with whole_file(path) as file:
        try:
            mx.nd.save(file.name, params)
            # MXNet does not report a full disk: what was written is whole if it can be read
            mx.nd.load(file.name)
        except mx.MXNetError as error:
            raise InputError(
                f"{path}: cannot write ({_first_line(error)}) - free space or choose another place"
            ) from error


def _first_line(error: Exception) -> str:
    """Return what MXNet says of an error, without its stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
