"""Class centres by the row: drawn classes, and a softmax over a share of them against the one over all."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_margin_softmax import finite_differences, reference

from vargface.errors import InputError
from vargface.runtime import mx
from vargface.symbols import margin_softmax
from vargface.training import centres, plan
from vargface.training.centres import OFFSET, WEIGHT, Centres, _Part, classes_taken, draw_classes, stands_for
from vargface.training.fit import train
from vargface.training.optimiser import init_optimizer
from vargface.training.step import Step
from vargface.training.team import Team


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.data())
def test_the_classes_of_a_step(num_classes, data):
    labels = np.array(data.draw(st.lists(st.integers(-1, num_classes - 1), min_size=1, max_size=20)))
    taken = data.draw(st.integers(min(len(labels), num_classes), num_classes))
    drawn = draw_classes(labels, taken, num_classes, (1, 2))
    assert len(drawn) == taken and (np.diff(drawn) > 0).all()
    assert drawn[0] >= 0 and drawn[-1] < num_classes
    assert set(labels[labels >= 0]) <= set(drawn)
    np.testing.assert_array_equal(drawn, draw_classes(labels, taken, num_classes, (1, 2)))


def test_every_other_class_is_as_likely():
    counts = np.zeros(12)
    for seed in range(3000):
        counts[draw_classes(np.array([3, 7, 3, -1]), 5, 12, (seed,))] += 1
    assert counts[3] == counts[7] == 3000
    others = np.delete(counts, [3, 7])  # 3 of 10 each: 900 with a deviation of 25
    assert (np.abs(others - 900) < 5 * 25).all()


@pytest.mark.parametrize("labels", [[3, 7, 3, -1], [-1, -1], [0, 1, 2, 11]])
def test_a_sum_over_the_classes_of_a_step_is_in_the_mean_that_over_all(labels):
    """What the correction is for: with it the softmax's denominator is estimated without a bias."""
    labels, values = np.array(labels), np.exp(np.arange(12) / 4)
    sums = []
    for seed in range(4000):
        classes = draw_classes(labels, 5, 12, (seed,))
        counts = stands_for(classes, labels, 12)
        assert (counts[np.isin(classes, labels)] == 1).all() and counts.sum() == pytest.approx(12)
        sums.append((values[classes] * counts).sum())
    assert np.mean(sums) == pytest.approx(values.sum(), abs=5 * np.std(sums) / np.sqrt(len(sums)))


@pytest.mark.parametrize("classes", [np.arange(12), np.array([3, 7])])
def test_where_none_is_drawn_each_class_stands_for_itself(classes):
    """All of them taken, or the batch's own alone."""
    assert (stands_for(classes, np.array([3, 7, -1]), 12) == 1).all()


def test_a_step_is_fed_with_what_its_classes_stand_for(make, monkeypatch):
    fed, update = [], centres.Centres.update

    def look(self):
        fed.extend((each.arg_dict[OFFSET].asnumpy(), self._rows) for each in self._module._exec_group.execs)
        update(self)

    monkeypatch.setattr(centres.Centres, "update", look)
    train(make(steps=2, class_share=0.75, batch_size=2, context="cpu(0),cpu(1)"))
    assert len(fed) == 4
    for offsets, rows in fed:  # 3 of 4 classes, 1 or 2 of them the batch's: those drawn stand for 3/2 or 2 each
        assert len(rows) == 3
        assert sorted(np.exp(offsets).round(4).tolist()) in ([1, 1.5, 1.5], [1, 1, 2])


@pytest.mark.parametrize(
    "share, limit, batch, due", [(0, 0, 8, 1000), (0.1, 0, 8, 100), (0.1, 30, 8, 30), (0.001, 0, 8, 8), (1, 0, 8, 1000)]
)
def test_how_many_classes_a_step_takes(share, limit, batch, due):
    assert classes_taken(tiny.make_recipe(class_share=share, class_limit=limit, batch_size=batch), 1000) == due


def head_on_a_share(num_classes: int, size: int, keys: dict) -> tuple[mx.mod.Module, Centres]:
    """A margin softmax alone, on data (N, size) times a learned gain, and its tables of centres, begun."""
    recipe = tiny.make_recipe(embedding_size=size, **keys)
    embedding = mx.sym.broadcast_mul(mx.sym.Variable("data"), mx.sym.Variable("gain_gamma", shape=(1, size)))
    loss = margin_softmax.get_symbol(
        embedding,
        mx.sym.Variable("softmax_label"),
        num_classes=classes_taken(recipe, num_classes),
        embedding_size=size,
        scale=recipe.scale,
        m2=recipe.m2,
        offset=mx.sym.Variable(OFFSET) if recipe.class_correction else None,
    ).loss
    states = [WEIGHT, OFFSET] if recipe.class_correction else [WEIGHT]
    module = mx.mod.Module(loss, label_names=["softmax_label"], state_names=states, context=mx.cpu())
    learnt = {"gain_gamma": "write", WEIGHT: "write", OFFSET: "null"}
    module.bind([("data", (recipe.batch_size, size))], [("softmax_label", (recipe.batch_size,))], grad_req=learnt)
    module.init_params()
    init_optimizer(module, recipe, Team())
    return module, Centres(recipe, num_classes, Team(), module)


@pytest.mark.parametrize("correction", [True, False])
def test_steps_on_a_share_are_those_of_sgd_on_all_rows(tmp_path, correction):
    """Against float64: the formula's gradient by differences, zero for classes not taken; a step is left out."""
    classes, size, batch, steps, random = 12, 4, 3, 9, np.random.default_rng(2)
    keys = {"class_share": 0.4, "batch_size": batch, "scale": 4.0, "lr": 0.3, "wd": 0.1, "steps": steps}
    keys.update(schedule="step", lr_steps=[3, 6], class_correction=correction)
    module, table = head_on_a_share(classes, size, keys)
    table.start(None, 0, with_momentum=False)
    with open(tmp_path / "start", "wb") as file:
        table.save(file)
    due, velocity = np.load(tmp_path / "start").astype(np.float64)
    gain, gain_velocity = np.ones(size), np.zeros(size)
    step, updates = Step(module, ["loss"], 1, team=Team(), centres=table), 0
    for number in range(steps + 1):
        lr = 0.3 * 0.1 ** ((updates >= 3) + (updates >= 6))
        images, labels = random.normal(size=(batch, size)), random.integers(0, classes, batch)
        rows = draw_classes(labels, 5, classes, (0, number))
        among = table.take(labels, (0, number), updates)
        fed = module._exec_group.execs[0].arg_dict[WEIGHT].asnumpy()
        np.testing.assert_allclose(fed, due[rows], rtol=1e-4, atol=1e-6, err_msg=f"step {number}")
        if number == 4:
            continue
        step(mx.io.DataBatch([mx.nd.array(images)], [mx.nd.array(among)], index=np.arange(batch)))
        updates += 1

        others = np.where(np.isin(rows, labels), 1, (classes - len(set(labels))) / (5 - len(set(labels))))
        counts = others if correction else 1

        def loss(gain, weight, images=images, among=among, counts=counts):
            return reference(images * gain, weight, among.astype(int), scale=4.0, m2=0.1, counts=counts)[0].mean()

        gradient = np.zeros_like(due)
        gradient[rows] = finite_differences(lambda weight: loss(gain, weight), due[rows])  # noqa: B023
        of_gain = finite_differences(lambda gain: loss(gain, due[rows]), gain)  # noqa: B023
        velocity = 0.9 * velocity - lr * (gradient + 0.1 * due)
        gain_velocity = 0.9 * gain_velocity - lr * (of_gain + 0.1 * gain)
        due, gain = due + velocity, gain + gain_velocity
    np.testing.assert_allclose(module.get_params()[0]["gain_gamma"].asnumpy()[0], gain, rtol=1e-4)
    with open(tmp_path / "end", "wb") as file:
        table.save(file)
    assert np.abs(np.load(tmp_path / "end")[0] - due).max() > 1e-3, "rows not taken last are behind"
    still = np.zeros_like(due)
    for name, changed, goes_on, expected in [
        # rows that are behind go along with updates at the rate, decay and momentum that there were
        ("on", {"lr": 0.1, "wd": 0.2, "momentum": 0.5}, True, [due, velocity]),
        ("still", {"idle_updates": False}, True, [due, velocity]),
        ("next", {"momentum": 0.5}, False, [due, still]),
    ]:
        _, other = head_on_a_share(classes, size, {**keys, **changed})
        other.start(tmp_path / "end", steps * goes_on, with_momentum=goes_on)
        if name == "on":
            for first in range(0, classes, batch):
                other.take(np.arange(first, first + batch), (1, first), steps)
        with open(tmp_path / name, "wb") as file:
            other.save(file)
        np.testing.assert_allclose(np.load(tmp_path / name), expected, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.fixture
def without_norm(make, monkeypatch):
    """A network in which no sample of a batch sees another."""
    monkeypatch.setattr(plan, "network_symbol", lambda recipe: tiny.network(norm=False))


def tables(folder) -> np.ndarray:
    """(2, C, D): the class centres and their momenta after the last step."""
    return np.load(folder.centres(folder.result["step"]))


def updates_of(folder) -> np.ndarray:
    """(C,): the updates that each row is up to in the state of the last step."""
    with open(folder.centres(folder.result["step"]), "rb") as file:
        np.load(file)
        return np.load(file)


# the rate falls on the way
KEYS = {"steps": 9, "schedule": "step", "lr_steps": "4,7", "batch_size": 8, "log_every": 1}


@pytest.mark.parametrize("keys", [{}, {"context": "cpu(0),cpu(1)"}, {"accumulate": 2}, {"teacher": True, "mix": 0.5}])
def test_with_all_classes_taken_it_is_the_full_softmax(make, without_norm, teacher, tmp_path, keys):
    """Weights, centres and their momenta after steps from the same start."""
    keys = {**KEYS, **keys, **({"teacher": teacher} if "teacher" in keys else {})}
    # both begin with the centres that the table draws
    (first,) = train(make(**{**keys, "steps": 1, "lr": 0, "lr_steps": "1"}, class_share=1, out=tmp_path / "first"))
    full = make(**keys, out=tmp_path / "full")
    from vargface.training.generation import Generation
    from vargface.training.run_folder import RunFolder
    from vargface.training.teacher import labels_of

    made = plan.make_plan(full)
    folder = RunFolder(tmp_path / "full", full)
    args, auxs = first.load_state()[1]
    weights = {**args, "fc7_weight": mx.nd.array(tables(first)[0])}
    taught = labels_of(made.teacher, full, len(made.records), made.devices[0])
    Generation(made, folder, taught, 1).fit((weights, auxs))
    (sampled,) = train(make(**keys, class_share=1, out=tmp_path / "sampled"))
    due, found = tiny.state(folder), tiny.state(sampled)
    np.testing.assert_allclose(tables(sampled)[0], due.pop("fc7_weight"), rtol=1e-5, atol=1e-6)
    assert due.keys() == found.keys()
    for name in due:
        np.testing.assert_allclose(found[name], due[name], rtol=1e-5, atol=1e-5, err_msg=name)
    for name in ("margin_loss", "target_cosine", "margin_gradient", "lr"):
        due, found = ([float(row[name]) for row in tiny.rows(each.path / "log.csv")] for each in (folder, sampled))
        np.testing.assert_allclose(found, due, rtol=1e-4, atol=1e-5)


def test_a_sampled_run_that_was_stopped_ends_as_the_straight_one(make, monkeypatch, tmp_path):
    from test_resume import interrupt

    keys = {**KEYS, "batch_size": 2, "class_share": 0.5, "generations": 2, "verify_every": 4}
    straight = train(make(**keys, out=tmp_path / "straight"))
    for generation, at in ((1, 2), (1, 6), (2, 5)):
        interrupt(monkeypatch, at, generation)
        with pytest.raises(KeyboardInterrupt):
            train(make(**keys))
    resumed = train(make(**keys))
    for one, other in zip(resumed, straight):
        tiny.equal(tiny.state(one), tiny.state(other))
        assert one.centres(9).read_bytes() == other.centres(9).read_bytes()
        assert len(set(updates_of(one))) > 1, "rows are not all up to the same update"
        assert "fc7_weight" not in tiny.state(one) and (tables(one)[1] != 0).any()
    kept = {file.suffix for file in (straight[0].path / "state").iterdir()}
    assert kept == {".json", ".params", ".optimizer", ".centres"}


@pytest.mark.parametrize("keys", [{}, {"idle_updates": False}])
def test_tables_in_parts_are_those_in_one(make, monkeypatch, tmp_path, keys):
    """To the bit, also where a step takes no row of some part, and a run goes on in other parts."""
    keys = {**KEYS, "batch_size": 2, "class_share": 0.5, "save_every": 3, **keys}
    (whole,) = train(make(**keys, out=tmp_path / "whole"))
    made = []
    store_rows = _Part.make
    monkeypatch.setattr(_Part, "make", lambda part, table: made.append(part.count) or store_rows(part, table))
    for rows, steps in ((1, 3), (2, 6), (3, 9)):
        monkeypatch.setattr(centres, "PART_BYTES", rows * 4 * tiny.DIMENSIONS)
        (parts,) = train(make(**{**keys, "steps": steps}, may_change="steps", out=tmp_path / "parts"))
        (parts.path / "result.json").unlink()
        assert max(made) <= rows and sum(made) % 4 == 0, "four classes a table"
        made.clear()
    tiny.equal(tiny.state(parts), tiny.state(whole))
    assert parts.centres(9).read_bytes() == whole.centres(9).read_bytes()


def test_a_run_takes_up_idle_updates_on_its_way(make):
    """All rows are up to the last update where it begins."""
    keys = {**KEYS, "batch_size": 2, "class_share": 0.5}
    train(make(**{**keys, "steps": 5}, idle_updates=False))[0].path.joinpath("result.json").unlink()
    (folder,) = train(make(**keys, may_change="steps,idle_updates"))
    assert updates_of(folder).min() >= 5 and updates_of(folder).max() == 9


def test_a_table_that_is_damaged_is_not_gone_on_from(make, tmp_path):
    (folder,) = train(make(**KEYS, class_share=0.5, save_every=4))
    (folder.path / "result.json").unlink()
    file = folder.centres(9)
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert folder.load_state()[0]["step"] == 8


@pytest.mark.parametrize(
    "keys, message",
    [
        (
            {"class_share": 0.1, "optimizer": "adam"},
            "class_share = 0.1: class centres are sampled with optimizer = 'sgd'",
        ),
        ({"class_limit": 10}, "class_limit = 10: of no effect without class_share"),
        (
            {"class_share": 0.5, "class_limit": 3, "batch_size": 4},
            "class_limit = 3: must be 0 or at least batch_size = 4",
        ),
        ({"idle_updates": False}, "idle_updates = False: of no effect without class_share"),
        ({"class_correction": False}, "class_correction = False: of no effect without class_share"),
        ({"class_share": 1.5}, "class_share = 1.5: must be at least 0 and at most 1"),
    ],
)
def test_what_cannot_be_sampled_is_refused(make, keys, message):
    with pytest.raises(InputError, match=message):
        train(make(**keys))


@pytest.mark.parametrize(
    "keys, warns", [({}, True), ({"class_correction": False}, False), ({"batch_size": 2, "class_share": 1}, False)]
)
def test_a_batch_that_leaves_no_room_for_others_is_warned_of(make, caplog, keys, warns):
    plan.make_plan(make(**{"batch_size": 3, "class_share": 0.5, **keys}))
    assert ("a step takes 3 classes, for a batch of 3: the few beside" in caplog.text) == warns


def test_a_table_of_another_form_is_refused(tmp_path):
    np.save(tmp_path / "00000003.npy", np.zeros((2, 12, 4), np.float32))
    _, table = head_on_a_share(12, 4, {"class_share": 0.5})
    with pytest.raises(InputError, match=r"00000003.npy: of another version's form .* - begin the run anew"):
        table.start(tmp_path / "00000003.npy", 3, with_momentum=True)


def test_all_classes_and_a_share_are_not_one_run(make):
    train(make(steps=2))
    with pytest.raises(InputError, match="another recipe"):
        train(make(steps=2, class_share=0.5, may_change="class_share"))
