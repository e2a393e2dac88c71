"""What a parameter server, or this process's own store, does with what is pushed: rows of class centres, and sums.

A server gets a RowUpdate pickled, and imports this module for it.
"""

from __future__ import annotations

from typing import Any

from vargface.runtime import mx

__all__ = ["CENTRES", "MOMENTUM", "RowUpdate"]

# keys of the store: two tables of the same shape, whose rows lie on the servers alike
CENTRES, MOMENTUM = 0, 1


class RowUpdate(mx.optimizer.Optimizer):
    """SGD with momentum on the rows of CENTRES that a step has worked on; the sum of what was pushed of any other key.

    The momentum of a row is a row of another table of the store: so it can be read, and saved, from where it lies.
    tables: those that something has been pushed to since.
    """

    def __init__(self, momentum: float = 0.0, loads: bool = False, **options: Any) -> None:
        """Take SGD's options; with `loads`, rows of both tables become what is pushed."""
        super().__init__(**options)
        self._momentum, self._loads = momentum, loads
        self.tables: dict[int, mx.nd.NDArray] = {}

    def create_state_multi_precision(self, index: int, weight: mx.nd.NDArray) -> None:
        """Return None: what an optimiser keeps of a weight cannot be read on a server."""

    def update_multi_precision(self, index: int, weight: mx.nd.NDArray, grad: mx.nd.NDArray, state: None) -> None:
        """Update `weight`, what the store holds under key `index`, by `grad`, what was pushed in all."""
        if index not in (CENTRES, MOMENTUM):
            grad.copyto(weight)
            return
        self.tables[index] = weight
        if self._loads or index == MOMENTUM:
            # rows that nobody pushed stay; of the others (1 - lr wd) w - lr rescale g is g
            mx.nd.sparse.sgd_update(weight, grad, out=weight, lr=1.0, wd=1.0, rescale_grad=-1.0, lazy_update=True)
            weight.wait_to_read()
            return
        self._update_count(index)
        options = {"lr": self._get_lr(index), "wd": self._get_wd(index), "rescale_grad": self.rescale_grad}
        momentum = self.tables[MOMENTUM]
        mx.nd.sparse.sgd_mom_update(
            weight, grad, momentum, out=weight, momentum=self._momentum, lazy_update=True, **options
        )
        momentum.wait_to_read()  # MXNet's server waits for the weight alone before it sends rows of either
