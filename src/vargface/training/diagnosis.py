"""What is known of a step whose loss or gradient is not finite: where it began, on which records, why, likely."""

from __future__ import annotations

from typing import Any

import numpy as np
from easydict import EasyDict

from vargface.data.records import FaceRecords
from vargface.runtime import mx
from vargface.training.step import NotFinite

__all__ = ["diagnose"]


def diagnose(
    fault: NotFinite,
    module: mx.mod.Module,
    outputs: list[str],
    recipe: EasyDict,
    records: FaceRecords,
    step: int,
    lr: float,
) -> dict[str, Any]:
    """Return, ready for JSON, what is known of `fault`, met in step `step` (the first is 1) at rate `lr`.

    Runs the part of the batch, the last that `module` went forward with, once more, each layer's output looked at.
    """
    weights = [name for part in module.get_params() for name, value in part.items() if not _finite(value)]
    layers = _layers_not_finite(module)
    values = {name: float(output.asnumpy().mean()) for name, output in zip(outputs, module.get_outputs())}
    inputs = _inputs_not_finite(module, fault.part)
    found = {
        "step": step,
        "where": fault.where,
        "lr": lr,
        "means": {name: value if np.isfinite(value) else str(value) for name, value in values.items()},
        "inputs_not_finite": inputs,
        "weights_not_finite": weights,
        # of the forward pass, in its order
        "first_layer": layers[0] if layers else None,
        # backward goes from the last to the first
        "first_gradient": fault.names[-1] if fault.where == "gradient" else None,
        "gradients_not_finite": fault.names if fault.where == "gradient" else [],
        "records": [records.name(int(position)) for position in fault.part.index],
    }
    found["likely"] = _causes(found, values, recipe)
    return found


def _layers_not_finite(module: mx.mod.Module) -> list[str]:
    """Return the outputs of operators that are not finite in the last forward pass, gone again, in its order.

    On executors of their own, over the module's arrays: a monitor cannot be taken out again, and slows every step.
    """
    group, monitor = module._exec_group, mx.mon.Monitor(1, lambda array: mx.nd.multi_all_finite(array, num_arrays=1))
    again = []
    for context, executor in zip(group.contexts, group.execs):
        gradients = {name: array for name, array in executor.grad_dict.items() if array is not None}
        statistics = {name: array.copy() for name, array in executor.aux_dict.items()}
        again.append(module.symbol.bind(context, executor.arg_dict, gradients, group.grad_req, statistics))
        monitor.install(again[-1])
    monitor.tic()
    for executor in again:
        executor.forward(is_train=True)
    mx.nd.waitall()
    arguments = set(module.symbol.list_arguments())
    return [name for _, name, finite in monitor.toc() if not float(finite) and name not in arguments]


def _inputs_not_finite(module: mx.mod.Module, part: mx.io.DataBatch) -> list[str]:
    names = [*module.data_names, *module.label_names]
    return [name for name, array in zip(names, [*part.data, *part.label]) if not _finite(array)]


def _finite(array: mx.nd.NDArray) -> bool:
    return bool(np.isfinite(array.asnumpy()).all())


def _causes(found: dict[str, Any], values: dict[str, float], recipe: EasyDict) -> list[str]:
    """Return likely causes in words, the likeliest first."""
    if found["inputs_not_finite"]:
        return [f"{', '.join(found['inputs_not_finite'])} came in not finite: look at the records and at the teacher"]
    causes = []
    if found["weights_not_finite"]:
        causes.append("a weight was not finite before this step: the step before overflowed, lr is too high")
    elif found["first_layer"]:
        causes.append(f"{found['first_layer']} overflowed: its input grew too large, lr is too high")
    elif found["where"] == "gradient":
        causes.append(f"the gradient of {found['first_gradient']} overflowed, every layer's output being finite")
    norm = values.get("embedding_norm", 0.0)
    if np.isfinite(norm) and norm > 20 * np.sqrt(recipe.embedding_size):
        causes.append(f"embeddings have grown to a norm of {norm:.3g}: more weight decay (wd) or a lower lr")
    if found["step"] <= max(1000, 2 * recipe.warmup_steps):
        causes.append(f"the start, at warmup_steps = {recipe.warmup_steps}: warm up for longer")
    usual = 0.1 * recipe.batch_size / 512
    if recipe.optimizer == "sgd" and recipe.lr > usual:
        causes.append(f"lr = {recipe.lr:g} where a batch of {recipe.batch_size} is usually given {usual:.2g}")
    return causes
