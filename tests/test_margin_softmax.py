"""The margin-softmax head against float64 numpy: values, gradients, the poles of the cosine, memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vargface.runtime import mx
from vargface.symbols import margin_softmax

NAMES = margin_softmax.MarginSoftmax._fields
# softmax, ArcFace, CosFace, SphereFace (ArcFace's), combined, SphereFace's own, and one below 1
MARGINS = [(1, 0, 0), (1, 0.5, 0), (1, 0, 0.35), (1.35, 0, 0), (1, 0.3, 0.2), (4, 0, 0), (0.9, 0.4, 0.15)]
SETTINGS = [dict(zip(("m1", "m2", "m3"), margins)) for margins in MARGINS]


def reference_target(cosine: float, m1: float, m2: float, m3: float) -> float:
    """cos(m1*theta + m2) - m3, mirrored and lowered by 2 at each multiple of pi so that it goes on falling."""
    phi, lowered, sign = m1 * math.acos(min(1.0, max(-1.0, cosine))) + m2, 0.0, 1.0
    while phi > math.pi:
        phi, lowered, sign = phi - math.pi, lowered + 2.0, -sign
        # cos(phi + pi) = -cos(phi): the two signs cancel, and what is left is cos(phi) itself, 2 lower.
    return math.cos(phi) - lowered - m3


def reference(embedding, weight, label, *, scale=64.0, m1=1.0, m2=0.5, m3=0.0, counts=1.0):
    """Return cross-entropy, target cosine and correctness, each (N,), in float64; a class is there `counts` times."""
    embedding, weight = np.asarray(embedding, np.float64), np.asarray(weight, np.float64)
    embedding = embedding / np.sqrt((embedding**2).sum(1, keepdims=True) + 1e-10)
    weight = weight / np.sqrt((weight**2).sum(1, keepdims=True) + 1e-10)
    logits = scale * embedding @ weight.T
    rows = np.arange(len(label))
    cosine = logits[rows, label] / scale
    logits[rows, label] = [scale * reference_target(c, m1, m2, m3) for c in cosine]
    top = logits.max(1)
    cross_entropy = np.log((counts * np.exp(logits - top[:, None])).sum(1)) + top - logits[rows, label]
    return cross_entropy, cosine, logits.argmax(1) == label


def finite_differences(function, array, step=1e-6):
    """Return the gradient of the scalar `function` at `array`, by central differences in float64."""
    array = np.array(array, np.float64)
    gradient = np.zeros_like(array)
    for place in np.ndindex(*array.shape):
        kept = array[place]
        array[place] = kept + step
        above = function(array)
        array[place] = kept - step
        gradient[place] = (above - function(array)) / (2 * step)
        array[place] = kept
    return gradient


def run(embedding, weight, label, *, heads=NAMES, dtype="float32", offset=None, **keywords):
    """Return ({output: array}, gradient of the embedding, gradient of the weight) of a bound head."""
    (classes, size), batch = weight.shape, len(label)
    if offset is not None:
        keywords["offset"] = mx.sym.Variable("offset")
    head = margin_softmax.get_symbol(
        mx.sym.Variable("embedding"), mx.sym.Variable("label"), num_classes=classes, embedding_size=size, **keywords
    )
    bound = mx.sym.Group([getattr(head, name) for name in heads]).simple_bind(
        mx.cpu(),
        embedding=(batch, size),
        label=(batch,),
        type_dict={"embedding": dtype, "label": "float32"},
        grad_req={"embedding": "write", "fc7_weight": "write", "label": "null"},
    )
    for name, value in {"embedding": embedding, "fc7_weight": weight, "label": label, "offset": offset}.items():
        if value is not None:
            bound.arg_dict[name][:] = value
    bound.forward(is_train=True)
    bound.backward()
    values = {name: output.asnumpy() for name, output in zip(heads, bound.outputs)}
    return values, bound.grad_dict["embedding"].asnumpy(), bound.grad_dict["fc7_weight"].asnumpy()


def problem(batch, classes=7, size=6, seed=0):
    """Return a random embedding, weight and label; the first labels are the two extremes."""
    rng = np.random.RandomState(seed)
    label = np.concatenate([[0, classes - 1], rng.randint(0, classes, batch)])[:batch]
    return rng.normal(size=(batch, size)) * 5, rng.normal(size=(classes, size)), label


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("margins", SETTINGS, ids=str)
@pytest.mark.parametrize("scale", [64.0, 8.0])
def test_value_and_gradient_are_those_of_the_formula(margins, scale):
    embedding, weight, label = problem(batch=9)
    # Angles of about 3.0, 2.8 and 0.1 to the labelled class: past theta + m = pi, on both sides of it, and near 0.
    for row, (along, aside) in zip((4, 5, 6), ((-7, 1), (-3, 1), (10, 1))):
        embedding[row] = along * unit(weight)[label[row]] + aside * unit(embedding)[row]
    values, to_embedding, to_weight = run(embedding, weight, label, scale=scale, **margins)

    margins = dict(margins, scale=scale)
    cross_entropy, cosine, correct = reference(embedding, weight, label, **margins)
    np.testing.assert_allclose(values["cross_entropy"], cross_entropy, rtol=1e-5, atol=2e-5)
    np.testing.assert_array_equal(values["loss"], values["cross_entropy"])
    np.testing.assert_allclose(values["target_cosine"], cosine, atol=1e-6)
    np.testing.assert_array_equal(values["correct"], correct)
    wanted = finite_differences(lambda e: reference(e, weight, label, **margins)[0].sum(), embedding)
    np.testing.assert_allclose(to_embedding, wanted, rtol=5e-4, atol=1e-4)
    wanted = finite_differences(lambda w: reference(embedding, w, label, **margins)[0].sum(), weight)
    np.testing.assert_allclose(to_weight, wanted, rtol=5e-4, atol=1e-3)


@pytest.mark.parametrize("margins", SETTINGS, ids=str)
def test_a_class_of_offset_ln_n_counts_as_n_of_it(margins):
    """Against the same head on as many copies."""
    embedding, weight, label = problem(6, classes=5)
    copies = np.array([1, 3, 1, 2, 4])
    label %= 1  # every sample is of class 0, which has one copy
    values, to_embedding, to_weight = run(embedding, weight, label, offset=np.log(copies), scale=8.0, **margins)
    due, due_embedding, due_weight = run(embedding, weight.repeat(copies, axis=0), label, scale=8.0, **margins)
    for name in ("loss", "cross_entropy", "target_cosine"):
        np.testing.assert_allclose(values[name], due[name], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(to_embedding, due_embedding, rtol=1e-4, atol=1e-5)
    starts = np.concatenate([[0], copies.cumsum()[:-1]])
    np.testing.assert_allclose(to_weight, np.add.reduceat(due_weight, starts), rtol=1e-4, atol=1e-5)


def test_the_nearest_class_is_who_it_is_whatever_the_offsets():
    weight = np.eye(3, 6)
    embedding = weight + [[0, 0.9, 0, 0, 0, 0]]  # class 1 is near to all of them
    values, *_ = run(embedding, weight, np.arange(3), offset=np.log([1, 1000, 1]), scale=8.0, m2=0)
    assert values["correct"].tolist() == [1, 1, 1]
    assert values["cross_entropy"][0] > 1, "by the loss it is class 1"


@pytest.mark.parametrize("label", [0, 6])
def test_batch_of_one(label):
    embedding, weight, _ = problem(batch=1)
    values, to_embedding, _ = run(embedding, weight, np.array([label]))
    np.testing.assert_allclose(values["loss"], reference(embedding, weight, [label])[0], rtol=1e-5)
    wanted = finite_differences(lambda e: reference(e, weight, [label])[0].sum(), embedding)
    np.testing.assert_allclose(to_embedding, wanted, rtol=5e-4, atol=1e-4)


@pytest.mark.parametrize("margins", SETTINGS, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_cosine_of_exactly_one_and_minus_one(margins, sign):
    weight = np.concatenate([np.eye(6), np.ones((1, 6))])
    embedding, label = sign * np.eye(6)[:3] * 2, np.array([0, 1, 2])
    values, to_embedding, to_weight = run(embedding, weight, label, scale=2.0, **margins)
    assert set(values["target_cosine"]) == {float(sign)}
    np.testing.assert_allclose(
        values["loss"], reference(embedding, weight, label, scale=2.0, **margins)[0], rtol=1e-5, atol=1e-6
    )
    # The other classes' share is smooth here and must be right to the digit; the label's own has no direction at the
    # pole, and must be small rather than infinite.
    wanted = finite_differences(
        lambda w: reference(embedding, w, label, scale=2.0, **margins)[0].sum(), weight, step=1e-5
    )
    np.testing.assert_allclose(to_weight[3:], wanted[3:], rtol=1e-3, atol=1e-5)
    assert np.isfinite(to_embedding).all() and np.abs(to_embedding).max() < 4


@pytest.mark.parametrize("margins", SETTINGS, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_400_rows_parallel_to_the_class_weight(margins, sign):
    rng = np.random.RandomState(0)
    weight = rng.normal(size=(400, 512)).astype(np.float32)
    embedding = sign * weight * rng.uniform(0.5, 40, size=(400, 1)).astype(np.float32)
    label = np.arange(400)
    values, to_embedding, to_weight = run(embedding, weight, label, **margins)
    assert (np.abs(values["target_cosine"]) > 1).sum() > 20, "rounding takes none past 1: this tests nothing"
    assert np.isfinite(to_embedding).all() and np.isfinite(to_weight).all()
    # Rounding a 512-d cosine by 2e-6 at the pole turns it by 2e-3; the value moves by scale * m1 times that.
    wanted = reference(embedding, weight, label, **margins)[0]
    np.testing.assert_allclose(values["loss"], wanted, atol=64 * margins["m1"] * 2e-3)


def test_the_slope_is_right_up_to_the_poles():
    theta = np.array([2e-3, 1e-2, 0.3, 2.0, math.pi - 0.51, math.pi - 0.49, 3.1, math.pi - 2e-3])
    embedding = np.stack([np.cos(theta), np.sin(theta), 0 * theta], axis=1).astype(np.float32)
    weight = np.array([[1.0, 0, 0], [0, 0, 1.0]])
    label = np.zeros(len(theta), int)
    _, to_embedding, _ = run(embedding, weight, label, scale=1.0)
    wanted = finite_differences(lambda e: reference(e, weight, label, scale=1.0)[0].sum(), embedding, step=1e-7)
    # 1 - cos = 2e-6 at 2e-3 radians, known to float32's 6e-8.
    np.testing.assert_allclose(to_embedding, wanted, rtol=0.03, atol=2e-3)


@settings(max_examples=60, deadline=None)
@given(
    m1=st.floats(0.5, 4),
    m2=st.floats(0, math.pi, allow_subnormal=False),  # mxnet refuses a subnormal scalar
    m3=st.floats(-1, 1, allow_subnormal=False),
    angles=st.lists(st.floats(0, math.pi), min_size=2, max_size=12),
)
def test_the_loss_never_falls_as_the_angle_grows(m1, m2, m3, angles):
    theta = np.sort(np.concatenate([angles, [0, math.pi]]))
    embedding = np.stack([np.cos(theta), np.sin(theta), 0 * theta], axis=1)
    weight = np.array([[1.0, 0, 0], [0, 0, 1.0]])
    values, _, _ = run(embedding, weight, 0 * theta, scale=1.0, m1=m1, m2=m2, m3=m3)
    # The other logit is 0, so the target is -log(exp(loss) - 1).
    target = -np.log(np.expm1(values["loss"].astype(np.float64)))
    assert (np.diff(target) <= 1e-5).all()
    assert target[0] - target[-1] > 0.2


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("norm", [0, 6e-8, 1e-6, 1e-4, 5e-3])
def test_a_short_embedding_has_a_bounded_gradient(dtype, norm):
    embedding, weight, label = problem(batch=9)
    embedding = unit(embedding)
    _, whole, _ = run(embedding, weight, label)
    values, short, to_weight = run(norm * embedding, weight, label, dtype=dtype)
    assert np.isfinite(values["loss"]).all() and np.isfinite(to_weight).all()
    assert np.isfinite(short).all() and np.abs(short).max() <= 101 * np.abs(whole).max()
    if norm == 5e-3:  # exact in float32's value; the gradient is a norm of 0.01's
        np.testing.assert_allclose(short, 100 * whole, rtol=0.02, atol=0.5)


def test_a_loss_is_never_below_zero():
    embedding, weight, label = problem(batch=64, classes=1)
    values, to_embedding, _ = run(embedding, weight, label, m2=0.0)
    assert (values["loss"] >= 0).all() and (values["loss"] < 1e-5).all()
    assert np.abs(to_embedding).max() < 1e-5


def test_a_loss_of_nan_stays_nan():
    embedding, weight, label = problem(batch=3)
    embedding[1] = np.nan
    values, _, _ = run(embedding, weight, label)
    assert list(np.isnan(values["loss"])) == [False, True, False]


def test_float16_embedding():
    embedding, weight, label = problem(batch=9)
    embedding = (embedding * 50).astype(np.float16)
    values, to_embedding, to_weight = run(embedding, weight, label, dtype="float16")
    wanted_values, wanted_embedding, wanted_weight = run(embedding.astype(np.float32), weight, label)
    assert to_embedding.dtype == np.float16 and to_weight.dtype == np.float32
    for name in NAMES:
        np.testing.assert_array_equal(values[name], wanted_values[name])
    np.testing.assert_allclose(to_embedding, wanted_embedding, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(to_weight, wanted_weight)


def test_zero_embedding_is_finite():
    _, weight, label = problem(batch=3)
    values, to_embedding, to_weight = run(np.zeros((3, 6)), weight, label)
    assert np.isfinite(values["loss"]).all() and np.isfinite(to_embedding).all() and np.isfinite(to_weight).all()


def test_cross_entropy_of_a_probability_that_underflows():
    embedding, weight, label = np.array([[-1.0, 0]]), np.array([[1.0, 0], [-1.0, 0]]), np.array([0])
    values, _, _ = run(embedding, weight, label)
    assert np.exp(np.float32(-values["loss"][0])) == 0
    np.testing.assert_allclose(values["loss"], reference(embedding, weight, label)[0], rtol=1e-5)
    assert values["loss"][0] > 128


def test_grad_scale_acts_on_the_gradient_alone():
    values, to_embedding, to_weight = run(*problem(batch=5))
    scaled_values, scaled_embedding, scaled_weight = run(*problem(batch=5), grad_scale=3.0)
    np.testing.assert_array_equal(scaled_values["loss"], values["loss"])
    np.testing.assert_allclose(scaled_embedding, 3 * to_embedding, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scaled_weight, 3 * to_weight, rtol=1e-4, atol=1e-3)


def test_outputs_to_log_add_no_gradient():
    _, to_embedding, to_weight = run(*problem(batch=5), heads=("loss",))
    _, both_embedding, both_weight = run(*problem(batch=5))
    assert np.abs(to_embedding).max() > 0.1
    np.testing.assert_allclose(both_embedding, to_embedding, rtol=1e-6)
    np.testing.assert_allclose(both_weight, to_weight, rtol=1e-6)
    _, none_embedding, none_weight = run(*problem(batch=5), heads=NAMES[1:])
    assert not none_embedding.any() and not none_weight.any()


@pytest.mark.parametrize("contexts", [1, 2])
def test_a_module_steps_along_the_mean_gradient(contexts):
    embedding, weight, label = problem(batch=8)
    head = margin_softmax.get_symbol(
        mx.sym.Variable("data"), mx.sym.Variable("softmax_label"), num_classes=7, embedding_size=6
    )
    module = mx.mod.Module(mx.sym.Group(list(head)), context=[mx.cpu(i) for i in range(contexts)])
    module.bind([("data", embedding.shape)], [("softmax_label", label.shape)])
    module.init_params(arg_params={"fc7_weight": mx.nd.array(weight)})
    module.init_optimizer(optimizer_params={"learning_rate": 0.5})
    module.forward_backward(mx.io.DataBatch([mx.nd.array(embedding)], [mx.nd.array(label)]))
    module.update()
    gradient = finite_differences(lambda w: reference(embedding, w, label)[0].mean(), weight)
    stepped = module.get_params()[0]["fc7_weight"].asnumpy()
    np.testing.assert_allclose(stepped, weight - 0.5 * gradient, rtol=1e-4, atol=1e-3)
    assert [output.shape for output in module.get_outputs()] == [(8,)] * 4


def test_a_label_past_the_classes_is_clipped():
    embedding, weight, _ = problem(batch=2)
    values, _, _ = run(embedding, weight, np.array([5, 7]))
    np.testing.assert_allclose(values["loss"], reference(embedding, weight, [5, 6])[0], rtol=1e-5)


@pytest.mark.parametrize("margins", SETTINGS, ids=str)
@pytest.mark.parametrize("none", [-1, -0.5, -7, np.nan])
def test_a_sample_of_no_class_counts_for_nothing(margins, none):
    embedding, weight, label = problem(batch=9)
    kept = np.array([0, 1, 3, 5, 6, 8])
    some = np.full(9, none)
    some[kept] = label[kept]
    values, to_embedding, to_weight = run(embedding, weight, some, **margins)
    alone, to_kept, to_weight_alone = run(embedding[kept], weight, label[kept], **margins)
    for name in NAMES:
        np.testing.assert_allclose(values[name][kept], alone[name], rtol=1e-5, atol=1e-6)
        assert not np.delete(values[name], kept).any()
    np.testing.assert_allclose(to_embedding[kept], to_kept, rtol=1e-4, atol=1e-5)
    assert not np.delete(to_embedding, kept, axis=0).any()
    np.testing.assert_allclose(to_weight, to_weight_alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("offset", [None, "offset"])
def test_memory_planned_is_that_of_the_plain_softmax(offset):
    def planned(symbol):
        bound = symbol.simple_bind(mx.cpu(), embedding=(256, 8), label=(256,), grad_req="write")
        lines = bound.debug_str().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Total") and "MB" in line)

    embedding, label = mx.sym.Variable("embedding"), mx.sym.Variable("label")
    keys = {"num_classes": 20_000, "embedding_size": 8, "offset": offset and mx.sym.Variable(offset)}
    head = margin_softmax.get_symbol(embedding, label, **keys)
    logits = margin_softmax._scaled_cosines(embedding, 20_000, 8, 64.0)
    plain = mx.sym.Group(
        [
            mx.sym.SoftmaxOutput(logits, label),
            mx.sym.BlockGrad(mx.sym.pick(mx.sym.log_softmax(logits), label)),
        ]
    )
    assert planned(mx.sym.Group(list(head))) <= planned(plain)


@pytest.mark.parametrize(
    "setting",
    [
        *({"num_classes": 0}, {"embedding_size": 0}, {"scale": 0.0}, {"m1": 0.0}, {"m2": -0.1}, {"m2": 3.2}),
        *({"m3": math.nan}, {"scale": math.inf}, {"m1": math.inf}, {"grad_scale": math.nan}),
    ],
)
def test_settings_outside_their_range_are_refused_by_name(setting):
    keywords = {"num_classes": 7, "embedding_size": 6, **setting}
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"{name} = {value}"):
        margin_softmax.get_symbol(mx.sym.Variable("embedding"), mx.sym.Variable("label"), **keywords)
