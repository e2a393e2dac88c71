"""Training from end to end on two dozen images: what is learned, what is left behind, and what goes on from it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny

from vargface.checkpoint import load_checkpoint, save_checkpoint
from vargface.data.iterator import FaceIterator
from vargface.data.packs import read_pack, write_pack
from vargface.errors import InputError
from vargface.inference import FrozenNetwork
from vargface.recipe import network_symbol
from vargface.runtime import mx
from vargface.teachers import models
from vargface.training import plan
from vargface.training.fit import train
from vargface.training.generation import Generation
from vargface.training.report import result_of
from vargface.training.run_folder import RunFolder
from vargface.training.schedule import learning_rate_schedule
from vargface.training.step import Step
from vargface.training.verifier import find_packs, verify_packs


@pytest.fixture
def without_norm(make, monkeypatch):
    """Like `make`, with a network in which no sample of a batch sees another."""
    monkeypatch.setattr(plan, "network_symbol", lambda recipe: tiny.network(norm=False))
    return make


def column(folder: RunFolder, name: str) -> list[float]:
    return [float(row[name]) for row in tiny.rows(folder.path / "log.csv")]


# --- what is learned


def test_both_losses_fall_and_the_student_nears_the_teacher(make, teacher):
    (folder,) = train(make(teacher=teacher, steps=40, lr=0.05, log_every=10))
    for name in ("margin_loss", "distillation_loss"):
        losses = column(folder, name)
        assert losses[-1] < 0.8 * losses[0], (name, losses)
    cosines = column(folder, "teacher_cosine")
    assert cosines[-1] > cosines[0] + 0.2, cosines
    assert column(folder, "train_accuracy")[-1] > 0.4


def test_a_teacher_is_trained_by_the_same_loop(make):
    (folder,) = train(make(role="teacher", steps=30, lr=0.05, log_every=10))
    assert column(folder, "margin_loss")[-1] < 0.8 * column(folder, "margin_loss")[0]
    assert "distillation_loss" not in tiny.rows(folder.path / "log.csv")[0]
    assert load_checkpoint(f"{folder.path}/teacher,1").embedding_size == tiny.DIMENSIONS


def test_the_teacher_is_the_same_after_training_as_before(make, teacher, monkeypatch):
    made = []

    class Watched(FrozenNetwork):
        def __init__(self, checkpoint, *rest):
            super().__init__(checkpoint, *rest)
            made.append((self, checkpoint.source))

    monkeypatch.setattr(models, "FrozenNetwork", Watched)
    prefix = teacher.partition(",")[0]
    before = Path(f"{prefix}-0003.params").read_bytes()
    due = tiny.numpy_of(tuple(load_checkpoint(teacher)[1:3]))
    train(make(teacher=teacher))
    (network,) = (network for network, source in made if source == teacher)
    mx.nd.waitall()
    tiny.equal({name: array[0].asnumpy() for name, array in executor_arrays(network._module)}, due)
    assert Path(f"{prefix}-0003.params").read_bytes() == before


def executor_arrays(module):
    """(name, arrays by context) of a bound module, as its executors hold them now."""
    group = module._exec_group
    return [*zip(group.param_names, group.param_arrays), *zip(group.aux_names, group.aux_arrays)]


def test_training_starts_as_the_authors_advise(make):
    (folder,) = train(make(steps=1, lr=0))
    found = tiny.state(folder)
    assert set(found["relu1_gamma"]) == {0.25}
    assert set(found["bn1_gamma"]) == {1}
    assert set(found["bn1_beta"]) == {0}
    deviation = np.sqrt(2 / (8 * 3 * 3))  # Xavier, gaussian, fan-out, magnitude 2
    assert found["conv1_weight"].std() == pytest.approx(deviation, rel=0.2)
    assert found["fc7_weight"].std() == pytest.approx(0.01, rel=0.3)


def test_the_rate_logged_is_the_schedules(make):
    recipe = make(steps=6, log_every=1, warmup_steps=2)
    (folder,) = train(recipe)
    schedule = learning_rate_schedule(recipe)
    assert column(folder, "lr") == pytest.approx([schedule(step) for step in range(1, 7)], rel=1e-5)
    assert [row["step"] for row in tiny.rows(folder.path / "log.csv")] == list("123456")


def test_the_first_update_is_the_rate_times_the_mean_gradient(without_norm, tmp_path, monkeypatch):
    gradients = {}
    whole = mx.mod.Module.update

    def update(self):
        gradients.update(
            {name: arrays[0].asnumpy() for name, arrays in zip(self._param_names, self._exec_group.grad_arrays)}
        )
        whole(self)

    monkeypatch.setattr(mx.mod.Module, "update", update)
    keys = {"steps": 1, "wd": 0, "schedule": "step"}
    before = tiny.state(train(without_norm(**keys, lr=0, out=tmp_path / "before"))[0])
    after = tiny.state(train(without_norm(**keys, lr=0.5, out=tmp_path / "after"))[0])
    for name, gradient in gradients.items():
        np.testing.assert_allclose(after[name], before[name] - 0.5 * gradient / 4, rtol=1e-4, atol=1e-6, err_msg=name)


def test_weight_decay_is_on_every_parameter(make, tmp_path):
    keys = {"steps": 1, "schedule": "step", "lr": 0.1}
    start = tiny.state(train(make(**{**keys, "lr": 0}, out=tmp_path / "start"))[0])
    without = tiny.state(train(make(**keys, wd=0, out=tmp_path / "without"))[0])
    decayed = tiny.state(train(make(**keys, wd=0.5, out=tmp_path / "with"))[0])
    seen = {"weight": 0, "gamma": 0, "bias": 0, "beta": 0}
    for name, was in start.items():
        kind = name.rpartition("_")[2]
        if kind not in seen:
            continue  # moving statistics
        seen[kind] += 1
        np.testing.assert_allclose(decayed[name] - without[name], -0.1 * 0.5 * was, atol=1e-6, err_msg=name)
    assert all(seen.values())


def test_the_same_seed_gives_the_same_weights_and_another_others(make, tmp_path):
    first, again, other = (
        train(make(out=tmp_path / out, seed=seed))[0] for out, seed in [("a", 3), ("b", 3), ("c", 4)]
    )
    tiny.equal(tiny.state(first), tiny.state(again))
    assert np.abs(tiny.state(first)["conv1_weight"] - tiny.state(other)["conv1_weight"]).max() > 1e-3


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_two_contexts_learn_what_one_does(without_norm, teacher, tmp_path, optimizer):
    keys = {"teacher": teacher, "steps": 5, "verify_every": 3, "margin_ramp": "1,3", "optimizer": optimizer, "lr": 0.01}
    one = train(without_norm(**keys, context="cpu", out=tmp_path / "one"))[0]
    two = train(without_norm(**keys, context="cpu(0),cpu(1)", out=tmp_path / "two"))[0]
    for name, value in tiny.state(one).items():
        np.testing.assert_allclose(
            tiny.state(two)[name], value, rtol=1e-3, atol=1e-4 * np.abs(value).max() + 1e-7, err_msg=name
        )
    for name in ("margin_loss", "distillation_loss", "embedding_norm"):
        assert column(two, name) == pytest.approx(column(one, name), rel=1e-3)


def test_two_contexts_hold_the_same_weights(make, monkeypatch):
    kept = []
    whole = Generation._verify_and_save

    def look(self, stop):
        mx.nd.waitall()
        kept.extend(executor_arrays(self.module))
        whole(self, stop)

    monkeypatch.setattr(Generation, "_verify_and_save", look)
    train(make(context="cpu(0),cpu(1)", steps=3))
    shared = [(name, arrays) for name, arrays in kept if "moving" not in name]
    assert len(shared) > 5
    for name, (first, second) in shared:
        np.testing.assert_array_equal(first.asnumpy(), second.asnumpy(), err_msg=name)


# --- what is left behind


def test_a_run_folder(make, data):
    (folder,) = train(make(steps=5, verify_every=2, log_every=2))
    due = {".lock", "recipe.json", "result.json", "machine.json", "distances.npz", "state", "student-symbol.json"}
    due |= {"log.csv", "verification.csv", "tensorboard", "student-0003.params"}
    found = set(os.listdir(folder.path))
    assert due <= found
    assert all(name.startswith("student-000") for name in found - due)
    assert [row["step"] for row in tiny.rows(folder.path / "log.csv")] == ["2", "4", "5"]
    places = [(row["step"], row["number"], row["pack"]) for row in tiny.rows(folder.path / "verification.csv")]
    assert places == [("2", "1", "pairs"), ("4", "2", "pairs"), ("5", "3", "pairs")]
    assert folder.result["last"] == 3
    assert folder.result["step"] == 5


def test_the_figures_are_those_of_the_checkpoint_that_is_kept(make, data):
    (folder,) = train(make(steps=4, verify_every=2))
    result = folder.result
    network = FrozenNetwork(load_checkpoint(folder.model(result["best"])))
    again = verify_packs(network, find_packs([], str(data)))
    assert result["packs"] == json.loads(json.dumps({name: found.as_dict() for name, found in again.items()}))
    row = result_of(folder)
    assert (row.name, row.checkpoint, row.packs) == ("run", folder.model(result["best"]), again)
    assert row.params == sum(value.size for value in load_checkpoint(row.checkpoint).args.values())


def test_the_best_is_the_latest_of_the_highest_accuracy_over_all_packs(make, data, monkeypatch):
    class Figures(dict):
        accuracy = accuracy_std = tar = far = xnorm = 0.0

        def as_dict(self):
            return {"accuracy": self.accuracy}

    def results(first, second):
        found = {"a": Figures(), "b": Figures()}
        found["a"].accuracy, found["b"].accuracy = first, second
        return found

    scores = iter([(0.5, 0.5), (0.75, 0.5), (0.5, 0.75), (1.0, 0.125)])
    monkeypatch.setattr("vargface.training.generation.verify_packs", lambda network, packs, **_: results(*next(scores)))
    monkeypatch.setattr(RunFolder, "write_distances", lambda self, distances: None)
    monkeypatch.setattr(plan, "find_packs", lambda packs, data: [])
    (folder,) = train(make(steps=4, verify_every=1))
    assert folder.result == {
        "best": 3,
        "last": 4,
        "step": 4,
        "packs": {"a": {"accuracy": 0.5}, "b": {"accuracy": 0.75}},
    }
    assert sorted(path.name for path in folder.path.glob("*.params")) == ["student-0003.params", "student-0004.params"]


def test_without_packs_the_last_is_the_best(make, data, monkeypatch):
    monkeypatch.setattr(plan, "find_packs", lambda packs, data: [])
    (folder,) = train(make(steps=4, verify_every=2))
    assert folder.result == {"best": 2, "last": 2, "step": 4, "packs": {}}


def test_packs_can_be_named(make, tmp_path):
    pack = tiny.make_pack(tmp_path / "other.bin", pairs=12)
    (folder,) = train(make(packs=pack))
    assert list(folder.result["packs"]) == ["other"]
    assert folder.result["packs"]["other"]["pairs"] == 12


def test_a_narrow_vargfacenet_loads_as_insightface_loads_it(data, tmp_path, teacher):
    recipe = tiny.make_recipe(data=data, out=tmp_path / "run", teacher=teacher, multiplier=0.25, steps=2)
    (folder,) = train(recipe)
    symbol, args, auxs = mx.model.load_checkpoint(f"{folder.path}/student", 1)
    assert symbol.list_outputs() == ["fc1_output"]
    assert not [name for name in args if name.startswith("fc7")]
    assert symbol.tojson() == network_symbol(recipe).tojson()  # the network, not the form it is trained in
    module = mx.mod.Module(symbol.get_internals()["fc1_output"], label_names=None)
    module.bind([("data", (2, 3, 112, 112))], for_training=False)
    module.set_params(args, auxs)
    images = read_pack(data / "pairs.bin").decode(0, 2).astype(np.float32)
    module.forward(mx.io.DataBatch([mx.nd.array(images)]), is_train=False)
    embeddings = module.get_outputs()[0].asnumpy()
    assert embeddings.shape == (2, tiny.DIMENSIONS)
    np.testing.assert_allclose(
        FrozenNetwork(load_checkpoint(folder.model(1)))(images), embeddings, rtol=1e-3, atol=1e-3
    )
    tiny.equal(
        {name: value for name, value in tiny.state(folder).items() if name in args},
        {k: v.asnumpy() for k, v in args.items()},
    )


# --- generations


def test_a_generation_starts_from_the_last_weights_of_the_one_before_it(make, teacher):
    first, second = train(make(teacher=teacher, generations=2, steps=6, lr=0.05, log_every=1, scale=4))
    assert second.path == first.path / "gen-2"
    nothing_learned = train(make(teacher=teacher, generations=2, steps=1, lr=0, out=first.path.parent / "still"))
    learned = [folder.load_state()[1][0] for folder in nothing_learned]
    tiny.equal(*({name: value.asnumpy() for name, value in args.items()} for args in learned))
    assert column(second, "teacher_cosine")[0] > column(first, "teacher_cosine")[0]


def test_each_generation_has_its_own_verified_checkpoint(make, teacher):
    folders = train(make(teacher=teacher, generations=3))
    assert [folder.path.name for folder in folders] == ["run", "gen-2", "gen-3"]
    for folder in folders:
        assert folder.result["packs"]["pairs"]["pairs"] == 10
        assert folder.result["best"] == 1
        load_checkpoint(folder.model(1))
    first, second, third = map(tiny.state, folders)
    assert np.abs(first["conv1_weight"] - second["conv1_weight"]).max() > 1e-5
    assert np.abs(second["conv1_weight"] - third["conv1_weight"]).max() > 1e-5


def test_only_the_first_generation_begins_without_the_margin(make, teacher, monkeypatch):
    seen = []
    whole = Step.__call__

    def look(self, batch, seed=None):
        seen.append(float(batch.label[-1].asnumpy()[0]))
        return whole(self, batch, seed)

    monkeypatch.setattr(Step, "__call__", look)
    train(make(teacher=teacher, generations=2, steps=4, margin_ramp="1,3"))
    assert seen == [0, 0, 0.5, 1] + [1] * 4


def test_a_generation_goes_over_the_data_in_another_order(make, teacher, monkeypatch):
    seeds = []
    whole = FaceIterator
    monkeypatch.setattr(
        "vargface.training.faces.FaceIterator",
        lambda records, size, **keys: seeds.append(keys.get("seed")) or whole(records, size, **keys),
    )
    train(make(teacher=teacher, generations=2, seed=5, steps=1))
    assert [seed for seed in seeds if seed is not None] == [5, 6]


def test_the_teacher_is_asked_about_a_view_once_in_all_generations(make, teacher, monkeypatch):
    asked = []

    class Counted(FrozenNetwork):
        def __call__(self, images):
            if self.source == teacher:
                asked.extend(image.tobytes() for image in images)
            return super().__call__(images)

        def __init__(self, checkpoint, *rest):
            super().__init__(checkpoint, *rest)
            self.source = checkpoint.source

    monkeypatch.setattr(models, "FrozenNetwork", Counted)
    train(make(teacher=teacher, generations=3, steps=12, mirror=False))
    assert len(asked) == len(set(asked)) == tiny.IDENTITIES * tiny.EACH


def test_a_generation_whose_forerunner_has_lost_its_state_starts_from_the_checkpoint(make, teacher):
    recipe = make(teacher=teacher, generations=2, steps=2)
    first, second = train(recipe)
    learned = tiny.state(first)
    for folder in (first.path / "state", second.path / "state"):
        for file in folder.iterdir():
            file.unlink()
    (second.path / "result.json").unlink()
    second.log._path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        starts = []
        whole = Generation._start
        patch.setattr(
            Generation, "_start", lambda self, weights, *more: starts.append(weights) or whole(self, weights, *more)
        )
        train(recipe)
    (start,) = starts
    found = tiny.numpy_of(start)
    assert "fc7_weight" not in found
    tiny.equal(found, {name: learned[name] for name in found})


# --- weights to start from


def test_init_gives_the_weights(make, teacher):
    (folder,) = train(make(init=teacher, lr=0, steps=1))
    learned = tiny.numpy_of((load_checkpoint(teacher).args, {}))
    tiny.equal({name: tiny.state(folder)[name] for name in learned}, learned)
    assert tiny.state(folder)["fc7_weight"].std() == pytest.approx(0.01, rel=0.3)


def test_init_of_another_network_is_refused(make, tmp_path):
    network = tiny.network(norm=False)
    model = save_checkpoint(tmp_path / "other", 1, network, *tiny.weights(network))
    with pytest.raises(InputError, match=r"other,1: lacks parameter bn1_gamma \(8,\)"):
        train(make(init=model))
    assert not (tmp_path / "run").exists()


# --- what is refused before anything is written


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data": ""}, "data is not given - add data=FOLDER"),
        ({"out": ""}, "out is not given - add out=FOLDER"),
        ({"batch_size": 0}, "batch_size = 0: must be at least 1"),
        ({"steps": 0}, "steps = 0: must be at least 1"),
        ({"seed": -1}, "seed = -1: must be at least 0"),
        ({"lr": -0.1}, "lr = -0.1: must be at least 0"),
        ({"alpha": -1}, "alpha = -1.0: must be at least 0"),
        ({"warmup_steps": -1}, "warmup_steps = -1: must be at least 0"),
        ({"optimizer": "sdg"}, "optimizer = 'sdg': must be sgd or adam"),
        ({"schedule": "linear"}, "schedule = 'linear': must be one of"),
        ({"distillation": "l2"}, "distillation = 'l2': must be one of angular, shrink, cosine"),
        ({"may_change": "lr,rl"}, "may_change = ['lr', 'rl']: rl is no key"),
        ({"accumulate": 3}, "batch_size = 4: must be a multiple of the 1 contexts x accumulate = 3"),
        ({"skip_steps": -1}, "skip_steps = -1: must be at least 0"),
        ({"augment": 1.5}, "augment = 1.5: must be at least 0 and at most 1"),
        ({"mix": -0.5}, "mix = -0.5: must be at least 0"),
        ({"margin_ramp": "5"}, "margin_ramp = [5]: must be two rising step numbers"),
        ({"margin_ramp": "5,1"}, "margin_ramp = [5, 1]: must be two rising step numbers"),
        ({"scale": 0}, "recipe: scale = 0.0: must be greater than 0"),
        ({"m2": 4}, "recipe: m2 = 4.0: an angle in radians"),
        ({"context": "tpu"}, "context 'tpu': give"),
        ({"context": "cpu(0),cpu(1),cpu(2)"}, "batch_size = 4: must be a multiple of the 3 contexts x"),
        ({"init": "nowhere/model,1"}, "nowhere/model-symbol.json: no such file"),
        ({"teacher": "nowhere/model,1"}, "nowhere/model-symbol.json: no such file"),
        ({"packs": "nowhere.bin"}, "nowhere.bin: no such verification pack"),
    ],
)
def test_a_key_that_cannot_be_used_is_refused_before_anything_is_written(make, tmp_path, keys, message):
    with pytest.raises(InputError) as caught:
        train(make(**keys))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_batch_larger_than_the_data_set_is_refused_and_may_be_mended(make, tmp_path):
    with pytest.raises(InputError, match="24 images are fewer than a batch of 25"):
        train(make(batch_size=25))
    assert os.listdir(tmp_path) == []
    train(make(batch_size=24, steps=1))


def test_images_of_another_size_are_refused(make, tmp_path, monkeypatch, data):
    for name in ("train.rec", "train.idx"):
        (tmp_path / name).write_bytes((data / name).read_bytes())
    (tmp_path / "property").write_text("4,96,112")
    with pytest.raises(InputError, match=r"images of 96x112, the networks take 112x112"):
        train(make(data=tmp_path))
    assert not (tmp_path / "run").exists()


def test_a_pack_too_small_to_verify_on_is_refused_before_training(make, tmp_path):
    pack = tiny.make_pack(tmp_path / "few.bin", pairs=9)
    with pytest.raises(InputError, match=r"few\.bin: 9 pairs, verification needs 10 or more"):
        train(make(packs=pack))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (
            b"\xff\xd8nothing",
            r"mine\.bin: image 15 \(pair 7\) is not an image that can be decoded \(9 bytes\) - get the pack anew, or "
            "leave it out",
        ),
        (b"", r"mine\.bin: image 15 \(pair 7\) is not an image that can be decoded \(0 bytes\)"),
        (
            cv2.imencode(".png", np.zeros((112, 96, 3), np.uint8))[1].tobytes(),
            r"mine\.bin: image 15 \(pair 7\) is 112x96",
        ),
    ],
)
def test_a_pack_with_an_image_that_cannot_be_used_is_refused_before_training(make, data, tmp_path, image, told):
    pack = read_pack(data / "pairs.bin")
    write_pack(tmp_path / "mine.bin", [*pack.images[:15], image, *pack.images[16:]], pack.issame)
    with pytest.raises(InputError, match=told):
        train(make(packs=tmp_path / "mine.bin"))
    assert not (tmp_path / "run").exists()


def test_two_packs_of_one_name_are_refused(make, tmp_path):
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(str(tiny.make_pack(tmp_path / folder / "lfw.bin")))
    with pytest.raises(InputError, match=r"a/lfw\.bin: two packs are called lfw"):
        train(make(packs=",".join(paths)))


def test_a_recipe_is_kept_as_it_was_run(make):
    recipe = make(lr=0.125)
    (folder,) = train(recipe)
    assert json.loads((folder.path / "recipe.json").read_text())["lr"] == 0.125


def test_a_fixed_gamma_is_saved_as_one_whatever_weight_decay_made_of_it(tmp_path):
    data = mx.sym.Variable("data")
    free = mx.sym.BatchNorm(mx.sym.Flatten(data), fix_gamma=False, name="free")
    symbol = mx.sym.BatchNorm(free, fix_gamma=True, name="fc1")
    shapes, _, aux_shapes = symbol.infer_shape(data=(1, 3, 112, 112))
    args = {name: mx.nd.full(shape, 0.5) for name, shape in zip(symbol.list_arguments(), shapes)}
    auxs = {name: mx.nd.ones(shape) for name, shape in zip(symbol.list_auxiliary_states(), aux_shapes)}
    saved = load_checkpoint(save_checkpoint(tmp_path / "net", 0, symbol, args, auxs)).args
    assert {name: float(saved[name].asnumpy().mean()) for name in ("fc1_gamma", "free_gamma")} == {
        "fc1_gamma": 1.0,
        "free_gamma": 0.5,
    }


def test_a_diverged_run_says_so_and_keeps_the_finite_state(make, tmp_path):
    with pytest.raises(InputError, match="diverged"):
        train(make(steps=8, lr=1e30, schedule="step", warmup_steps=0, save_every=1, verify_every=8))
    for params in (tmp_path / "run" / "state").glob("*.params"):
        assert all(np.isfinite(value.asnumpy()).all() for value in mx.nd.load(str(params)).values())


@pytest.mark.parametrize(
    ("key", "value"),
    [("role", ""), ("role", "a/b"), ("momentum", 5.0), ("lr", float("inf")), ("seed", 2**40), ("lr_factor", -1.0)],
)
def test_values_that_cannot_be_meant_are_refused_before_anything_is_written(make, tmp_path, key, value):
    with pytest.raises(InputError, match=key):
        train(make(**{key: value}))
    assert not (tmp_path / "run").exists()
