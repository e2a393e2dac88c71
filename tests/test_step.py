"""A step: parts that make one gradient, and what happens where a loss or a gradient is not finite."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny

from vargface.errors import InputError
from vargface.runtime import mx
from vargface.training import plan
from vargface.training.fit import train
from vargface.training.generation import Generation
from vargface.training.step import NotFinite, Step
from vargface.training.team import Team


def module(batch_size: int, symbol=None, grad_req: str = "write", contexts: int = 1):
    """A bound regression of 3 numbers by a layer without bias: loss of a sample = sum((w x - y)^2) / 2."""
    if symbol is None:
        found = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=3, no_bias=True, name="fc")
        symbol = mx.sym.MakeLoss(mx.sym.sum((found - mx.sym.Variable("label")) ** 2, axis=1) / 2, name="loss")
    made = mx.mod.Module(symbol, label_names=["label"], context=[mx.cpu(number) for number in range(contexts)])
    made.bind([("data", (batch_size, 5))], [("label", (batch_size, 3))], grad_req=grad_req)
    mx.random.seed(3)
    made.init_params(mx.init.Uniform(1))
    made.init_optimizer(optimizer_params={"learning_rate": 0.5, "rescale_grad": 1 / 8})
    return made


def batch(seed: int = 0) -> mx.io.DataBatch:
    random = np.random.default_rng(seed)
    data, label = random.normal(size=(8, 5)), random.normal(size=(8, 3))
    return mx.io.DataBatch([mx.nd.array(data)], [mx.nd.array(label)], index=np.arange(8))


def weight(made) -> np.ndarray:
    return made.get_params()[0]["fc_weight"].asnumpy()


@pytest.mark.parametrize("parts, contexts", [(1, 1), (2, 1), (4, 2), (8, 1)])
def test_parts_make_the_step_of_the_whole_batch(parts, contexts):
    made = module(8 // parts, grad_req="add" if parts > 1 else "write", contexts=contexts)
    step, due = Step(made, ["loss"], parts), weight(made).astype(np.float64)
    for number in range(3):
        given = batch(number)
        outputs = step(given)
        x, y = given.data[0].asnumpy(), given.label[0].asnumpy()
        error = x @ due.T - y
        losses = np.concatenate([part[0].asnumpy() for part in outputs])
        np.testing.assert_allclose(losses, (error**2).sum(axis=1) / 2, rtol=1e-4)
        due -= 0.5 * error.T @ x / 8
        np.testing.assert_allclose(weight(made), due, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("contexts", [1, 2])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_what_is_not_gone_moves_no_statistics_of_a_batch_norm(kind, contexts):
    """Also not those of the parts before the bad one, whose backward had moved them."""
    data = mx.sym.BatchNorm(mx.sym.Variable("data"), fix_gamma=False, name="bn")
    found = mx.sym.FullyConnected(data, num_hidden=3, no_bias=True, name="fc")
    # a slope of infinity where an output is its label
    loss = mx.sym.sum(mx.sym.sqrt(mx.sym.abs(found - mx.sym.Variable("label"))), axis=1)
    made = module(4, mx.sym.MakeLoss(loss, name="loss"), grad_req="add", contexts=contexts)
    step = Step(made, ["loss"], 2)
    step(batch())

    def statistics():
        mx.nd.waitall()
        return [array.asnumpy() for arrays in made._exec_group.aux_arrays for array in arrays]

    before, bad = statistics(), batch(1)
    if kind == "loss":
        bad.data[0][7] = np.nan
    else:
        made.forward(mx.io.DataBatch([bad.data[0][4:]], [bad.label[0][4:]]), is_train=True)
        executor = made._exec_group.execs[-1]
        inside = executor._symbol.get_internals()["fc_output"].bind(
            executor._ctx, {name: executor.arg_dict[name] for name in ("data", "bn_gamma", "bn_beta", "fc_weight")},
            aux_states={name: array.copy() for name, array in executor.aux_dict.items()},
        )  # fmt: skip
        bad.label[0][7] = inside.forward(is_train=True)[0][-1]
    with pytest.raises(NotFinite) as caught:
        step(bad)
    assert caught.value.where == kind and 7 in caught.value.part.index
    for array, due in zip(statistics(), before):
        np.testing.assert_array_equal(array, due)
    step(batch(2))
    assert any((array != due).any() for array, due in zip(statistics(), before))


@pytest.mark.parametrize("parts", [1, 4])
def test_a_loss_that_is_not_finite_changes_nothing(parts):
    made = module(8 // parts, grad_req="add" if parts > 1 else "write")
    step, before = Step(made, ["loss"], parts), weight(made)
    bad = batch()
    bad.data[0][5, 2] = np.nan
    with pytest.raises(NotFinite) as caught:
        step(bad)
    assert (caught.value.where, caught.value.names) == ("loss", ["loss"])
    assert 5 in caught.value.part.index and len(caught.value.part.index) == 8 // parts
    np.testing.assert_array_equal(weight(made), before)
    # nothing of the parts before is left in the gradient of the next step
    step(batch(1))
    fresh = module(8)
    Step(fresh, ["loss"], 1)(batch(1))
    np.testing.assert_allclose(weight(made), weight(fresh), rtol=1e-5)


def test_a_gradient_that_is_not_finite_changes_nothing():
    data = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=3, no_bias=True, name="fc")
    root = mx.sym.sqrt(mx.sym.abs(data - data))  # 0, with a slope of infinity times 0
    made = module(8, mx.sym.MakeLoss(mx.sym.sum(root, axis=1) + mx.sym.sum(mx.sym.Variable("label"), axis=1)))
    before = weight(made)
    with pytest.raises(NotFinite) as caught:
        Step(made, ["loss"], 1)(batch())
    assert (caught.value.where, caught.value.names) == ("gradient", ["fc_weight"])
    np.testing.assert_array_equal(weight(made), before)


class Others(Team):
    """A team whose other workers' gradients are `theirs`."""

    theirs = 0.0

    def sum_gradients(self, names, gradients):
        super().sum_gradients(names, gradients)
        for arrays in gradients:
            for array in arrays:
                array += self.theirs


@pytest.mark.parametrize(
    "own, theirs, where", [(np.nan, 0, "loss"), (1, np.nan, "elsewhere"), (1, np.inf, "elsewhere")]
)
def test_a_team_leaves_a_step_out_together(own, theirs, where):
    """Who meets a number that is not finite lets the others know through the sum, and nobody's weights change."""
    made, team = module(8), Others("local")
    team.join()
    step, before, bad = Step(made, ["loss"], 1, team=team), weight(made), batch()
    bad.data[0][5, 2] *= own
    team.theirs = theirs
    with pytest.raises(NotFinite) as caught:
        step(bad)
    assert caught.value.where == where
    assert not np.isfinite(made._exec_group.grad_arrays[0][0].asnumpy()).all()  # what the others were sent, too
    np.testing.assert_array_equal(weight(made), before)
    team.theirs = 0.0
    step(batch(1))
    assert (weight(made) != before).any()


def poison(monkeypatch, steps, row: int = 1) -> None:
    """Let an image of these steps (from 0) be NaN, the second of its batch."""
    whole = Generation._next_batch

    def next_batch(self):
        found = whole(self)
        if self._step in steps:
            found.data[0][row] = np.nan
        return found

    monkeypatch.setattr(Generation, "_next_batch", next_batch)


def test_a_bad_step_stops_the_run_with_a_diagnosis(make, teacher, monkeypatch, tmp_path):
    poison(monkeypatch, {4})
    keys = {"steps": 8, "save_every": 3, "teacher": teacher}
    with pytest.raises(InputError, match=r"run: step 5: loss not finite: .*distillation_loss.*data came in not finite"):
        train(make(**keys))
    found = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert (found["step"], found["where"], found["inputs_not_finite"]) == (5, "loss", ["data"])
    assert len(found["records"]) == 4 and all("train.rec: record " in name for name in found["records"])
    assert found["means"]["margin_loss"] == "nan" and found["lr"] > 0
    assert sorted(file.name for file in (tmp_path / "run" / "state").glob("*.json")) == ["00000003.json"]
    # mended, the run goes on as if nothing had been
    monkeypatch.undo()
    monkeypatch.setattr(plan, "network_symbol", lambda recipe: tiny.network())
    (resumed,) = train(make(**keys))
    (straight,) = train(make(**keys, out=tmp_path / "straight"))
    tiny.equal(tiny.state(resumed), tiny.state(straight))


def test_bad_steps_are_left_out_as_long_as_they_are_few(make, monkeypatch, tmp_path):
    poison(monkeypatch, {1, 4})
    (folder,) = train(make(steps=6, skip_steps=2, log_every=1, out=tmp_path / "two"))
    assert [row["steps_left_out"] for row in tiny.rows(folder.path / "log.csv")] == ["0", "1", "1", "1", "2", "2"]
    assert all(np.isfinite(value).all() for value in tiny.state(folder).values())
    with pytest.raises(InputError, match="diverged"):
        train(make(steps=6, skip_steps=1, log_every=1, out=tmp_path / "one"))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_left_out_is_as_if_its_batch_had_not_been(make, monkeypatch, tmp_path, parts):
    """Weights and moving statistics after it: those before it, also where its last part alone is bad."""
    keys = {"skip_steps": 1, "accumulate": parts, "schedule": "step", "lr_steps": "100"}
    (before,) = train(make(steps=3, out=tmp_path / "three", **keys))
    poison(monkeypatch, {3}, row=3)
    (after,) = train(make(steps=4, out=tmp_path / "four", **keys))
    tiny.equal(tiny.state(after), tiny.state(before))


def test_a_run_resumed_behind_a_step_left_out_is_the_straight_one(make, monkeypatch, tmp_path):
    """A step left out is no update: neither the rate nor the optimiser has gone on, also not for who resumes."""
    poison(monkeypatch, {2})
    keys = {"steps": 8, "skip_steps": 3, "save_every": 4, "log_every": 1, "optimizer": "adam", "lr": 0.01}
    (straight,) = train(make(**keys, out=tmp_path / "straight"))
    whole = Generation._train_step

    def stop(self, means):
        if self._step == 6:
            raise KeyboardInterrupt
        whole(self, means)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Generation, "_train_step", stop)
        train(make(**keys))
    (resumed,) = train(make(**keys))
    tiny.equal(tiny.state(resumed), tiny.state(straight))
    rates = [[row["lr"] for row in tiny.rows(run.path / "log.csv")] for run in (straight, resumed)]
    assert rates[0] == rates[1]


def test_a_diagnosis_leaves_no_monitor_behind(make, monkeypatch):
    """It would slow every step that follows."""
    installed = []
    monkeypatch.setattr(mx.mod.Module, "install_monitor", lambda self, monitor: installed.append(self))
    looked = []
    whole = Generation._leave_out

    def leave_out(self, fault):
        whole(self, fault)
        looked.extend(executor._monitor_callback for executor in self.module._exec_group.execs)

    monkeypatch.setattr(Generation, "_leave_out", leave_out)
    poison(monkeypatch, {1})
    train(make(steps=3, skip_steps=1))
    assert installed == [] and looked == [None]


def test_a_rate_far_too_high_is_named(make, tmp_path):
    with pytest.raises(InputError, match="diverged - lower lr"):
        train(make(steps=8, lr=1e30, schedule="step", warmup_steps=0))
    found = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert found["first_layer"] or found["first_gradient"]
    assert any("lr" in cause for cause in found["likely"])
    assert not found["inputs_not_finite"]


@pytest.mark.parametrize("keys", [{}, {"context": "cpu(0),cpu(1)"}])
def test_an_accumulated_batch_is_the_big_one(make, monkeypatch, teacher, tmp_path, keys):
    """But for batch norm, which the network here has none of."""
    monkeypatch.setattr(plan, "network_symbol", lambda recipe: tiny.network(norm=False))
    keys = {"teacher": teacher, "batch_size": 8, "steps": 5, "log_every": 5, "mix": 0.5, **keys}
    (whole,) = train(make(**keys, out=tmp_path / "whole"))
    (parts,) = train(make(**keys, accumulate=4, out=tmp_path / "parts"))
    one, other = tiny.state(whole), tiny.state(parts)
    for name in one:
        np.testing.assert_allclose(other[name], one[name], rtol=1e-4, atol=1e-6, err_msg=name)
    (one,), (other,) = (tiny.rows(folder.path / "log.csv") for folder in (whole, parts))
    for name in set(one) - {"images_per_second"}:
        assert float(other[name]) == pytest.approx(float(one[name]), rel=1e-4), name
