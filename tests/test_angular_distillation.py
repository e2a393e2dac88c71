"""Angular distillation against float64 numpy: values, gradients, who receives them, and how the weight acts."""

from __future__ import annotations

import numpy as np
import pytest

from vargface.runtime import mx
from vargface.symbols import angular_distillation, margin_softmax

NAMES = angular_distillation.AngularDistillation._fields


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def reference(student, teacher, form):
    """Return the distance (N,), from the cosine."""
    cosine = (unit(student) * unit(teacher)).sum(1)
    return {"angular": 2 * (1 - cosine), "shrink": (1 - cosine) ** 2, "cosine": 1 - cosine}[form]


def finite_differences(function, array, step=1e-6):
    """Return the gradient of the scalar `function` at `array`, by central differences in float64."""
    gradient = np.zeros(array.shape)
    for place in np.ndindex(*array.shape):
        shift = np.zeros(array.shape)
        shift[place] = step
        gradient[place] = (function(array + shift) - function(array - shift)) / (2 * step)
    return gradient


def run(student, teacher, *, heads=NAMES, dtype="float32", sample_weight=None, **keywords):
    """Return ({output: array}, {input: its gradient}) of a bound loss."""
    inputs = {"embedding": student, "teacher_embedding": teacher}
    if sample_weight is not None:
        inputs["weight"] = np.asarray(sample_weight)
        keywords["weight"] = mx.sym.Variable("weight")
    losses = angular_distillation.get_symbol(
        mx.sym.Variable("embedding"), mx.sym.Variable("teacher_embedding"), **keywords
    )
    bound = mx.sym.Group([getattr(losses, name) for name in heads]).simple_bind(
        mx.cpu(),
        type_dict={"embedding": dtype, "teacher_embedding": dtype},
        grad_req="write",
        **{name: value.shape for name, value in inputs.items()},
    )
    for name, value in inputs.items():
        bound.arg_dict[name][:] = value
    bound.forward(is_train=True)
    bound.backward()
    values = {name: output.asnumpy() for name, output in zip(heads, bound.outputs)}
    return values, {name: gradient.asnumpy() for name, gradient in bound.grad_dict.items()}


def pairs(batch=6, size=5, seed=0):
    """Return student and teacher rows, unequal norms; the second pair nearly agrees, the third nearly opposes."""
    rng = np.random.RandomState(seed)
    student, teacher = rng.normal(size=(batch, size)) * 4, rng.normal(size=(batch, size)) * 30
    for row, sign in ((1, 1), (2, -1)):
        if row < batch:
            student[row] = sign * 0.2 * teacher[row] + 0.05 * student[row]
    return student, teacher


@pytest.mark.parametrize("form", angular_distillation.FORMS)
@pytest.mark.parametrize("batch", [1, 6])
def test_value_and_gradient_are_those_of_the_formula(form, batch):
    student, teacher = pairs(batch)
    values, gradients = run(student, teacher, form=form, weight=3.0)
    wanted = reference(student, teacher, form)
    np.testing.assert_allclose(values["distance"], wanted, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(values["loss"], 3 * wanted, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(values["teacher_cosine"], (unit(student) * unit(teacher)).sum(1), atol=1e-6)
    wanted = finite_differences(lambda s: 3 * reference(s, teacher, form).sum(), student)
    np.testing.assert_allclose(gradients["embedding"], wanted, rtol=1e-3, atol=1e-7)


def test_equation_5_with_weight_7_is_the_default():
    student, teacher = pairs()
    values, _ = run(student, teacher)
    np.testing.assert_allclose(values["loss"], 7 * ((unit(student) - unit(teacher)) ** 2).sum(1), rtol=1e-4)


@pytest.mark.parametrize("form", angular_distillation.FORMS)
def test_the_weight_acts_on_the_gradient(form):
    once, seven = (run(*pairs(), form=form, weight=weight)[1]["embedding"] for weight in (1.0, 7.0))
    assert np.abs(once).max() > 1e-3
    np.testing.assert_allclose(seven, 7 * once, rtol=2e-4)


def test_a_weight_fed_with_the_batch_acts_sample_by_sample():
    weight = np.array([0, 1, 2.5, 0, 7, 1])
    values, gradients = run(*pairs(), sample_weight=weight)
    plain_values, plain_gradients = run(*pairs(), weight=1.0)
    np.testing.assert_allclose(values["loss"], weight * plain_values["loss"], rtol=1e-6)
    np.testing.assert_array_equal(values["distance"], plain_values["distance"])
    np.testing.assert_allclose(gradients["embedding"], weight[:, None] * plain_gradients["embedding"], rtol=2e-4)
    assert not gradients["weight"].any()


@pytest.mark.parametrize("form", angular_distillation.FORMS)
def test_the_teacher_receives_no_gradient(form):
    _, gradients = run(*pairs(), form=form)
    assert np.abs(gradients["embedding"]).max() > 1e-3
    assert not gradients["teacher_embedding"].any()


def test_outputs_to_log_add_no_gradient():
    _, alone = run(*pairs(), heads=("loss",))
    _, grouped = run(*pairs())
    np.testing.assert_array_equal(grouped["embedding"], alone["embedding"])
    _, logged = run(*pairs(), heads=NAMES[1:])
    assert not logged["embedding"].any()


@pytest.mark.parametrize("form", angular_distillation.FORMS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_agreement_is_exact_and_opposition_finite(form, dtype):
    teacher = np.random.RandomState(1).normal(size=(40, 512)).astype(np.float16)
    values, gradients = run(teacher * 2, teacher, form=form, dtype=dtype)
    assert np.abs(values["distance"]).max() < 1e-11 and np.abs(gradients["embedding"]).max() < 1e-6
    values, gradients = run(-teacher, teacher, form=form, dtype=dtype)
    np.testing.assert_allclose(values["distance"], {"angular": 4, "shrink": 4, "cosine": 2}[form], rtol=1e-5)
    assert np.abs(gradients["embedding"]).max() < 1e-3


@pytest.mark.parametrize("form", angular_distillation.FORMS)
def test_a_zero_vector_is_finite(form):
    student, teacher = pairs()
    student[0], teacher[1] = 0, 0
    student[2], teacher[2] = 0, 0
    values, gradients = run(student, teacher, form=form)
    assert all(np.isfinite(value).all() for value in values.values())
    assert np.isfinite(gradients["embedding"]).all()


@pytest.mark.parametrize("form", angular_distillation.FORMS)
@pytest.mark.parametrize("norm", [0, 6e-8, 1e-6, 1e-4])
def test_a_short_student_has_a_bounded_gradient(form, norm):
    student, teacher = pairs()
    student = unit(student)
    whole = run(student, teacher, form=form, weight=100.0)[1]["embedding"]
    values, gradients = run(norm * student, teacher, form=form, weight=100.0, dtype="float16")
    assert np.isfinite(values["loss"]).all() and np.isfinite(gradients["embedding"]).all()
    assert np.abs(gradients["embedding"]).max() <= 101 * max(np.abs(whole).max(), 300)


def test_float16_embeddings():
    student, teacher = (rows.astype(np.float16) for rows in pairs())
    values, gradients = run(student, teacher, dtype="float16")
    wanted_values, wanted_gradients = run(student.astype(np.float32), teacher.astype(np.float32))
    assert gradients["embedding"].dtype == np.float16
    for name in NAMES:
        np.testing.assert_array_equal(values[name], wanted_values[name])
    np.testing.assert_allclose(gradients["embedding"], wanted_gradients["embedding"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("contexts", [1, 2])
def test_a_module_adds_it_to_the_margin_softmax_and_averages_both(contexts):
    """The step of an embedding layer is that of mean(arcface) + 7 * mean(distance), each counted once."""
    rng = np.random.RandomState(3)
    data, teacher, label = rng.normal(size=(8, 4)), rng.normal(size=(8, 5)), rng.randint(0, 3, 8)
    layer = rng.normal(size=(5, 4))

    def stepped(alpha):
        embedding = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=5, no_bias=True, name="layer")
        head = margin_softmax.get_symbol(embedding, mx.sym.Variable("softmax_label"), num_classes=3, embedding_size=5)
        losses = angular_distillation.get_symbol(embedding, mx.sym.Variable("teacher_embedding"), weight=alpha)
        module = mx.mod.Module(
            mx.sym.Group([*head, *losses]),
            label_names=["softmax_label", "teacher_embedding"],
            context=[mx.cpu(i) for i in range(contexts)],
        )
        module.bind([("data", data.shape)], [("softmax_label", label.shape), ("teacher_embedding", teacher.shape)])
        fc7 = mx.nd.array(np.random.RandomState(4).normal(size=(3, 5)))
        module.init_params(arg_params={"layer_weight": mx.nd.array(layer), "fc7_weight": fc7})
        module.init_optimizer(optimizer_params={"learning_rate": 1.0})
        module.forward_backward(mx.io.DataBatch([mx.nd.array(data)], [mx.nd.array(label), mx.nd.array(teacher)]))
        module.update()
        return module.get_params()[0]["layer_weight"].asnumpy()

    wanted = finite_differences(lambda w: 7 * reference(data @ w.T, teacher, "angular").mean(), layer)
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(stepped(0.0) - stepped(7.0), wanted, rtol=1e-3, atol=1e-4)


def test_settings_outside_their_range_are_refused():
    student, teacher = mx.sym.Variable("embedding"), mx.sym.Variable("teacher_embedding")
    with pytest.raises(ValueError, match="form = 'euclid': must be one of angular, shrink, cosine"):
        angular_distillation.get_symbol(student, teacher, form="euclid")
    with pytest.raises(ValueError, match="weight = -1"):
        angular_distillation.get_symbol(student, teacher, weight=-1)
