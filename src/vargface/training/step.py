"""One training step: forward and backward over the parts of a batch, looked at before the weights change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vargface.runtime import mx
from vargface.training.centres import WEIGHT, Centres
from vargface.training.team import Team

__all__ = ["NotFinite", "Step"]

# arrays that MXNet's operators on many of them are given at a time: past 200 they crash
_AT_ONCE = 100


class NotFinite(Exception):
    """A loss or a gradient of a step is not finite; the weights are as they were before it.

    where: "loss", "gradient", or "elsewhere" for another worker's. part: the part of the batch that it was met in.
    names: for a loss the outputs of the symbol, for a gradient the parameters, in the order of the graph.
    """

    def __init__(self, where: str, part: mx.io.DataBatch, names: Sequence[str]) -> None:
        what = f"{where} not finite: {', '.join(names)}"
        super().__init__("another worker's loss or gradient not finite" if where == "elsewhere" else what)
        self.where, self.part, self.names = where, part, list(names)


class Step:
    """Steps of a Module that is bound for a part of the batch: `parts` of them make the gradient of the whole.

    The gradient is that of the sum over the whole batch however many parts it has (batch norm aside: it sees a part at
    a time). Batch norm's moving statistics, which each part moves, are put back where the step is not gone.
    In a team it is that of the sum over all its workers' batches, and a step that one leaves out all leave out.
    """

    def __init__(
        self,
        module: mx.mod.Module,
        outputs: Sequence[str],
        parts: int,
        look: Callable[[mx.mod.Module], list[mx.nd.NDArray]] = lambda module: [],
        team: Team | None = None,
        centres: Centres | None = None,
    ) -> None:
        """Take a bound module (`grad_req` "add" for more than one part) and the names of its outputs.

        look: what of a part's gradients is given with its outputs. centres: the table whose rows the module works on,
        where they are none of its parameters.
        """
        self._module, self._outputs, self._parts, self._look = module, list(outputs), parts, look
        self._team, self._centres = team or Team(), centres

    def __call__(self, batch: mx.io.DataBatch, seed: int | None = None) -> list[list[mx.nd.NDArray]]:
        """Go a step along `batch` and return each part's outputs and what `look` gave; `seed`, for what dropout draws.

        Raises NotFinite, the weights, the optimiser and batch norm's moving statistics as they were.
        """
        statistics = [array for arrays in self._module._exec_group.aux_arrays for array in arrays]
        kept = [array.copy() for array in statistics]
        for array in kept:  # backward writes the statistics without telling the engine
            array.wait_to_read()
        try:
            found = self._gradients(batch, seed)
            self._module.update()
            if self._centres is not None:
                self._centres.update()
        except NotFinite:
            mx.nd.waitall()
            for array, before in zip(statistics, kept):
                before.copyto(array)
            raise
        finally:
            if self._parts > 1:
                for _, arrays in self._learnt():
                    for array in arrays:
                        array[:] = 0
        return found

    def _gradients(self, batch: mx.io.DataBatch, seed: int | None) -> list[list[mx.nd.NDArray]]:
        """Leave the gradient of the step in the module's arrays, the team's where there is one, and return as a step.

        A sum with a NaN in it is NaN for every worker: so all of them leave a step out, and none waits for another.
        """
        group, found, fault = self._module._exec_group, [], None
        try:
            for number, part in enumerate(self._split(batch)):
                if seed is not None:
                    mx.random.seed((seed + number) % 2**31)
                found.append(self._of_part(part))
        except NotFinite as met:
            fault = met
        if fault is not None and self._team.kvstore is not None:
            group.grad_arrays[0][0][:] = np.nan
        self._team.sum_gradients(group.param_names, group.grad_arrays)
        if fault is None and self._team.kvstore is not None and (bad := self._bad_gradients()):
            fault = NotFinite("elsewhere", part, bad)
        if fault is not None:
            raise fault
        return found

    def _of_part(self, part: mx.io.DataBatch) -> list[mx.nd.NDArray]:
        """Go forward and backward along `part` and return its outputs and what `look` gave. Raises NotFinite."""
        self._module.forward(part, is_train=True)
        outputs = self._module.get_outputs()
        if not _all_finite(outputs):
            bad = [name for name, output in zip(self._outputs, outputs) if not _all_finite([output])]
            raise NotFinite("loss", part, bad)
        # a copy, not the value: the executor writes the next part's output into the same array
        copies = [output.copy() for output in outputs]
        self._module.backward()
        if bad := self._bad_gradients():
            raise NotFinite("gradient", part, bad)
        return copies + self._look(self._module)

    def _split(self, batch: mx.io.DataBatch) -> list[mx.io.DataBatch]:
        if self._parts == 1:
            return [batch]
        size = batch.data[0].shape[0] // self._parts
        rows = [slice(start, start + size) for start in range(0, size * self._parts, size)]
        return [
            mx.io.DataBatch(
                [array[at] for array in batch.data], [array[at] for array in batch.label], index=batch.index[at]
            )
            for at in rows
        ]

    def _bad_gradients(self) -> list[str]:
        """Return the names of the parameters whose gradients are not finite."""
        learnt = self._learnt()
        if all(_all_finite(arrays) for arrays in zip(*(arrays for _, arrays in learnt))):
            return []
        return [name for name, arrays in learnt if not all(map(_finite, arrays))]

    def _learnt(self) -> list[tuple[str, list[mx.nd.NDArray]]]:
        """Return the name of all that learns with its gradients, one a context."""
        group = self._module._exec_group
        learnt = list(zip(group.param_names, group.grad_arrays))
        return learnt if self._centres is None else [*learnt, (WEIGHT, self._centres.gradients)]


def _finite(array: mx.nd.NDArray) -> bool:
    return _all_finite([array])


def _all_finite(arrays: Sequence[mx.nd.NDArray]) -> bool:
    """Return whether these arrays of one device are finite, and their squares summed; waits for them.

    (multi_all_finite, made for this, takes 17 times as long on a CPU: 43 ms against 2.5 for VarGFaceNet's gradients.)
    """
    parts = [arrays[start : start + _AT_ONCE] for start in range(0, len(arrays), _AT_ONCE)]
    return all(np.isfinite(mx.nd.multi_sum_sq(*part, num_arrays=len(part)).asnumpy()).all() for part in parts)
