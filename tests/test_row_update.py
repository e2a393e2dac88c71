"""What a store does with rows of class centres that are pushed to it, against SGD by hand and MXNet's own."""

from __future__ import annotations

import runpy

import numpy as np
import pytest

from vargface.runtime import mx
from vargface.training import row_update
from vargface.training.row_update import CENTRES, LAST, MOMENTUM, RowUpdate


def rows_of(values, rows, shape) -> mx.nd.sparse.RowSparseNDArray:
    return mx.nd.sparse.row_sparse_array((mx.nd.array(values), mx.nd.array(rows, dtype=np.int64)), shape=shape)


def store_of(start: np.ndarray, **options) -> mx.kv.KVStore:
    """The tables of centres that are `start` (C, D), with SGD at a rate that falls tenfold behind the second update."""
    store, every, shape = mx.kv.create("local"), np.arange(len(start)), start.shape
    shapes = {CENTRES: shape, MOMENTUM: shape, LAST: (len(start), 1)}
    for key, shape in shapes.items():
        store.init(key, rows_of(np.ones(shape), every, shape))
    store.set_optimizer(RowUpdate(loads=True))
    for key, shape in shapes.items():
        store.push(key, rows_of(start if key == CENTRES else np.zeros(shape), every, shape))
    schedule = mx.lr_scheduler.MultiFactorScheduler([2], factor=0.1, base_lr=0.5)
    store.set_optimizer(RowUpdate(learning_rate=0.5, lr_scheduler=schedule, rescale_grad=0.25, **options))
    for key, shape in shapes.items():
        store.push(key, mx.nd.sparse.zeros("row_sparse", shape))
    return store


def pulled(store: mx.kv.KVStore, key: int, shape: tuple[int, int]) -> np.ndarray:
    out = mx.nd.sparse.zeros("row_sparse", shape)
    store.row_sparse_pull(key, out=out, row_ids=mx.nd.arange(shape[0], dtype=np.int64))
    return out.asnumpy()


def test_rows_are_updated_as_sgd_would_update_them_and_no_others():
    """Against sums by hand, at a rate that falls, a few rows at a time."""
    random, shape = np.random.default_rng(0), (6, 3)
    start = random.normal(size=shape).astype(np.float32)
    store = store_of(start, momentum=0.9, wd=0.1)
    due, velocity = start.astype(np.float64), np.zeros(shape)
    for step, lr in enumerate((0.5, 0.5, 0.05, 0.05)):
        rows = np.sort(random.choice(6, 4, replace=False))
        gradient = random.normal(size=(4, 3)).astype(np.float32)
        store.push(CENTRES, rows_of(gradient, rows, shape))
        velocity[rows] = 0.9 * velocity[rows] - lr * (0.25 * gradient + 0.1 * due[rows])
        due[rows] += velocity[rows]
        for key, expected in ((CENTRES, due), (MOMENTUM, velocity)):
            np.testing.assert_allclose(
                pulled(store, key, shape), expected, rtol=1e-5, atol=1e-6, err_msg=f"step {step}"
            )


@pytest.mark.parametrize("momentum, wd", [(0.9, 0), (0.9, 0.2), (1.0, 0), (0.0, 0.2), (0.0, 0)])
def test_rows_that_catch_up_are_where_sgd_on_all_rows_has_them(momentum, wd):
    """Against MXNet's own SGD on a dense array, whose gradient is zero where a row is not taken; a step is left out."""
    random, shape, steps = np.random.default_rng(1), (9, 3), 12
    start = random.normal(size=shape).astype(np.float32)
    store = store_of(start, momentum=momentum, wd=wd)
    dense, velocity, updates = mx.nd.array(start), mx.nd.zeros(shape), 0
    for step in range(steps):
        rows = np.sort(random.choice(9, 3, replace=False))
        store.push(LAST, rows_of(np.full((3, 1), updates), rows, (9, 1)))
        found = pulled(store, CENTRES, shape)[rows]
        np.testing.assert_allclose(found, dense.asnumpy()[rows], rtol=1e-5, atol=1e-5, err_msg=f"step {step}")
        if step == 5:
            continue
        gradient = np.zeros(shape, np.float32)
        gradient[rows] = random.normal(size=(3, 3))
        lr = 0.5 if updates < 2 else 0.05
        mx.nd.sgd_mom_update(
            dense, mx.nd.array(gradient), velocity, out=dense, lr=lr, momentum=momentum, wd=wd, rescale_grad=0.25
        )
        store.push(CENTRES, rows_of(gradient[rows], rows, shape))
        updates += 1
    store.push(LAST, rows_of(np.full((9, 1), updates), np.arange(9), (9, 1)))
    for key, due in ((CENTRES, dense), (MOMENTUM, velocity)):
        np.testing.assert_allclose(pulled(store, key, shape), due.asnumpy(), rtol=1e-5, atol=1e-5)
    assert (pulled(store, LAST, (9, 1)) == updates).all()


@pytest.mark.parametrize("servers", [1, 2, 3, 1024])
def test_keys_of_tables_lie_on_one_server_and_those_of_sums_on_all(monkeypatch, servers):
    """MXNet's rule for what it does not split, in 32 bits."""
    monkeypatch.setenv("DMLC_NUM_SERVER", str(servers))
    names = runpy.run_path(row_update.__file__)
    tables = {names["key_of"](table, part) for table in names["TABLES"] for part in range(64)}
    sums = [names["sum_key"](number) for number in range(2000)]
    assert len(tables) == 3 * 64 and len(set(sums)) == 2000 and not tables & set(sums)
    assert {key * 9973 % servers for key in tables} == {0}
    assert max(*sums, names["key_of"](names["LAST"], 0)) * 9973 < 2**31
    on_each = np.bincount([key * 9973 % servers for key in sums], minlength=servers)
    assert on_each.max() <= 1.5 * on_each.mean() + 2
