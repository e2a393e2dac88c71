"""Training by teachers of all kinds: from the loop or a store, which view, through a map, by generations."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tiny

from vargface.checkpoint import load_checkpoint
from vargface.cli import main
from vargface.deploy.network import fold
from vargface.deploy.onnx_file import export_onnx
from vargface.errors import InputError
from vargface.runtime import mx
from vargface.teachers.store import TeacherStore
from vargface.teachers.writer import make_store
from vargface.training import teacher as teacher_module
from vargface.training.fit import train
from vargface.training.generation import Generation
from vargface.training.report import result_of


def columns(folder, *names: str) -> np.ndarray:
    return np.array([[float(row[name]) for name in names] for row in tiny.rows(folder.path / "log.csv")])


@pytest.fixture(scope="module")
def stored(data, teacher, tmp_path_factory):
    return str(make_store(teacher, str(data), tmp_path_factory.mktemp("store"), workers=1))


LOSSES = ("margin_loss", "distillation_loss", "teacher_cosine")
TWENTY = {"steps": 20, "log_every": 1, "lr": 0.05, "warmup_steps": 5}


def test_the_first_losses_are_the_same_from_the_loop_and_from_the_store(make, teacher, stored, tmp_path, monkeypatch):
    (loop,) = train(make(teacher=teacher, out=tmp_path / "loop", **TWENTY))
    (store,) = train(make(teacher=teacher, teacher_store=stored, out=tmp_path / "store", **TWENTY))
    # the loop's embeddings, rounded as the store's are: what is left of the difference is not float16's
    rounded = teacher_module.unit
    monkeypatch.setattr(teacher_module, "unit", lambda rows: rounded(rows).astype(np.float16).astype(np.float32))
    (as_stored,) = train(make(teacher=teacher, out=tmp_path / "rounded", **TWENTY))
    loop, store, as_stored = (columns(folder, *LOSSES) for folder in (loop, store, as_stored))
    assert len(loop) == 20
    np.testing.assert_allclose(store, as_stored, rtol=1e-5)
    np.testing.assert_allclose(store, loop, rtol=5e-3, atol=1e-3)
    assert np.abs(store - loop).max() > 0  # or the store was not looked up in


def test_with_a_store_the_teacher_is_not_asked(make, teacher, stored, monkeypatch):
    monkeypatch.setattr(teacher_module, "Teacher", None)
    (folder,) = train(make(teacher=teacher, teacher_store=stored))
    assert columns(folder, "teacher_cosine").size


def test_a_run_goes_on_from_the_loop_with_a_store(make, teacher, stored, monkeypatch):
    def stopped(self, stop):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Generation, "_verify_and_save", stopped)
        train(make(teacher=teacher, save_every=2))
    (folder,) = train(make(teacher=teacher, save_every=2, teacher_store=stored))
    assert folder.result["step"] == 4


def test_a_store_of_another_teacher_stops_training_before_anything_is_written(make, stored, tmp_path):
    other = tiny.make_teacher(tmp_path, seed=8)
    with pytest.raises(InputError, match="a store of another teacher"):
        train(make(teacher=other, teacher_store=stored))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"augment": 0.5}, r"augment = 0.5: the teacher_store knows clean faces alone - say teacher_view=clean .* or "),
        ({"mix": 0.5}, r"mix = 0.5: the teacher_store knows clean faces alone"),
        ({"mix": 0.5, "teacher_view": "clean"}, r"mix = 0.5: a face of two has no clean view"),
        ({"teacher_view": "other"}, r"teacher_view = 'other': must be clean or augmented"),
        ({"teacher_view": "clean", "teacher_store": ""}, r"teacher_view = 'clean': needs a teacher_store"),
        ({"teacher": ""}, r"teacher_store = .*: whose it must be is not said - add teacher="),
    ],
)
def test_which_view_is_distilled_is_said_or_refused(make, teacher, stored, tmp_path, keys, message):
    with pytest.raises(InputError, match=message):
        train(make(**{"teacher": teacher, "teacher_store": stored, **keys}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("view", ["clean", "augmented"])
def test_what_is_distilled_of_an_augmented_face_is_what_the_recipe_says(make, teacher, stored, monkeypatch, view):
    batches = []
    whole = teacher_module.TaughtIterator.next

    def look(self):
        batches.append(whole(self))
        return batches[-1]

    monkeypatch.setattr(teacher_module.TaughtIterator, "next", look)
    recipe = make(teacher=teacher, teacher_store=stored, augment=1.0, teacher_view=view, steps=2)
    train(recipe)
    from vargface.data.records import FaceRecords
    from vargface.inference import unit
    from vargface.teachers.models import TeacherModels, teacher_digest

    store = TeacherStore(stored, FaceRecords(recipe.data), teacher_digest(teacher))
    network = TeacherModels(teacher).network(4, mx.cpu())
    for batch in batches:
        clean, seen = store.embeddings(batch), unit(network(batch.data[0].asnumpy()))
        assert np.abs(clean - seen).max() > 0.01
        due = clean if view == "clean" else seen
        np.testing.assert_allclose(batch.label[1].asnumpy(), due, atol=1e-5)


# --- other kinds of teacher


@pytest.fixture
def small_teacher(tmp_path, monkeypatch):
    """A teacher of half the dimensions."""
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "DIMENSIONS", tiny.DIMENSIONS // 2)
        return tiny.make_teacher(tmp_path)


def test_a_teacher_of_another_size_needs_a_map(make, small_teacher):
    with pytest.raises(InputError, match=r"set embedding_size=8, or teacher_map=True to learn a linear map"):
        train(make(teacher=small_teacher))


def test_a_map_is_learned_and_no_part_of_the_checkpoint(make, small_teacher):
    recipe = make(teacher=small_teacher, teacher_map=True, steps=40, lr=0.05, log_every=10, generations=2)
    first, second = train(recipe)
    cosines = columns(first, "teacher_cosine")
    assert cosines[-1] > cosines[0] + 0.2, cosines
    assert tiny.state(first)["teacher_map_weight"].shape == (8, tiny.DIMENSIONS)
    checkpoint = load_checkpoint(first.model(1))
    assert checkpoint.embedding_size == tiny.DIMENSIONS
    saved = mx.nd.load(f"{first.path}/student-0001.params")
    assert not [name for name in saved if "map" in name or "probe" in name]
    assert "teacher_map" not in (first.path / "student-symbol.json").read_text()
    # the next generation goes on with the map, too
    assert columns(second, "teacher_cosine")[0] > cosines[0] + 0.1


def test_several_teachers_are_one(make, teacher, tmp_path):
    other = tiny.make_teacher(tmp_path, seed=8)
    (folder,) = train(make(teacher=f"{teacher}+{other}", steps=40, lr=0.05, log_every=10))
    cosines = columns(folder, "teacher_cosine")
    assert cosines[-1] > cosines[0] + 0.2, cosines


# --- generations


def test_a_generation_can_be_run_alone(make, teacher, tmp_path, capsys):
    together = train(make(teacher=teacher, generations=3, out=tmp_path / "together"))
    for number in (1, 2, 3):
        apart = train(make(teacher=teacher), generation=number)
        assert len(apart) == number
    for one, other in zip(together, apart):
        tiny.equal(tiny.state(one), tiny.state(other))
        assert result_of(other).packs == result_of(one).packs


def test_a_generation_waits_for_the_one_before_it(make, teacher, tmp_path):
    recipe = make(teacher=teacher)
    with pytest.raises(InputError, match=r"run: generation 1 is not finished - run it first: --generation 1"):
        train(recipe, generation=2)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=r"--generation 0: the first one is 1"):
        train(recipe, generation=0)


def test_a_run_that_is_finished_can_have_one_more_generation(make, teacher):
    (first,) = train(make(teacher=teacher))
    again, second = train(make(teacher=teacher, generations=2))
    assert again.path == first.path
    assert second.result["step"] == 4


def test_the_table_has_a_row_a_generation(make, teacher, data, tmp_path, capsys, monkeypatch):
    keys = {**tiny.KEYS, "data": data, "out": tmp_path / "run", "steps": 2, "teacher": teacher}
    command = ["train", "base", *(f"{key}={value}" for key, value in keys.items())]
    assert main([*command, "--generation", "1"]) == 0
    assert main([*command, "--generation", "2"]) == 0
    table = capsys.readouterr().out
    first, second = [line for line in table.splitlines() if "/student,1" in line][-2:]
    assert "run/student,1" in first and "gen-2/student,1" in second


@pytest.mark.parametrize("stage", ["finished", "state", "generation", "init", "scratch"])
def test_what_a_generation_starts_from_is_the_first_of_the_rules_that_holds(
    make, teacher, tmp_path, monkeypatch, stage
):
    """A generation n > 1 with everything there, and one thing less each time."""
    init = tiny.make_teacher(tmp_path, seed=5)
    starts = []
    whole = Generation._start

    def look(self, weights, *more):
        whole(self, weights, *more)
        starts.append((self._step, {name: value.asnumpy() for name, value in self.module.get_params()[0].items()}))
        raise KeyboardInterrupt

    recipe = make(teacher=teacher, init="" if stage == "scratch" else init, generations=2, lr=0.05, save_every=2)
    first, second = train(recipe) if stage in ("finished", "state", "generation") else (None, None)
    if stage in ("state", "generation"):
        (second.path / "result.json").unlink()
    if stage == "state":
        due = tiny.state(second)
    elif stage == "generation":
        for file in (second.path / "state").iterdir():
            file.unlink()
        due = tiny.state(first)
    elif stage == "init":
        due = tiny.numpy_of(load_checkpoint(init)[1:3])
    monkeypatch.setattr(Generation, "_start", look)
    if stage == "finished":
        train(recipe)
        assert not starts
        return
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    ((step, found),) = starts
    assert step == (4 if stage == "state" else 0)
    if stage == "scratch":
        assert np.abs(found["conv1_weight"] - load_checkpoint(init).args["conv1_weight"].asnumpy()).max() > 1e-3
        return
    for name in set(due) & set(found):
        np.testing.assert_array_equal(found[name], due[name], err_msg=name)
    assert ("fc7_weight" in due) == (stage in ("state", "generation"))


# --- what is logged


def test_what_to_watch_is_logged(make, teacher):
    (folder,) = train(make(teacher=teacher, steps=6, log_every=3))
    (row, _) = tiny.rows(folder.path / "log.csv")
    assert float(row["teacher_cosine_p5"]) < float(row["teacher_cosine"]) < float(row["teacher_cosine_p95"])
    assert float(row["margin_gradient"]) > 0
    assert float(row["distillation_gradient"]) > 0
    assert "xnorm" in tiny.rows(folder.path / "verification.csv")[0]


def test_a_negligible_alpha_is_said_in_words(make, teacher, caplog):
    caplog.set_level(logging.WARNING)
    train(make(teacher=teacher, alpha=1e-4, steps=6, log_every=1))
    found = [
        record.getMessage() for record in caplog.records if "distillation teaches next to nothing" in record.message
    ]
    assert len(found) == 1
    assert "step 3: " in found[0]
    assert "raise alpha = 0.0001" in found[0]


def test_a_run_as_it_should_be_is_not_commented_on(make, teacher, caplog):
    caplog.set_level(logging.WARNING)
    train(make(teacher=teacher, steps=30, lr=0.05, log_every=1))
    assert not [record for record in caplog.records if record.name.startswith("vargface")]


# --- on photos


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["y1", "onnx", "mean", "map"])
def test_every_kind_of_teacher_trains_on_photos(real_faces, tmp_path, monkeypatch, kind):
    y1 = str(real_faces / "insightface-y1" / "model,0")
    teachers = {"y1": y1, "onnx": f"{tmp_path}/y1.onnx", "map": y1}
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
        export_onnx(fold(load_checkpoint(y1)), teachers["onnx"])
    if kind == "mean":
        monkeypatch.setattr(tiny, "DIMENSIONS", 128)
        teachers["mean"] = f"{y1}+{tiny.make_teacher(tmp_path)}"
    keys = {"teacher": teachers[kind], "embedding_size": 128, "multiplier": 0.25}
    if kind == "map":
        keys.update(embedding_size=64, teacher_map=True)
    keys.update(
        data=real_faces / "real-mini", out=tmp_path / "run", batch_size=8, steps=3, log_every=1, scale=16, m2=0.1
    )
    pack = tiny.make_pack(tmp_path / "few.bin")
    from vargface.recipe import load_recipe

    (folder,) = train(load_recipe("base", [f"{key}={value}" for key, value in {**keys, "packs": pack}.items()]))
    assert np.isfinite(columns(folder, *LOSSES)).all()
