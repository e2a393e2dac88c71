"""The training symbol: which losses are in it, and what each sends to the backbone and to the class centres."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from vargface.graph import training_form
from vargface.runtime import mx
from vargface.symbols import angular_distillation
from vargface.training.objective import LABELLED, MARGIN_WEIGHT, PROBES, Objective
from vargface.training.teacher import LABEL

BATCH, CLASSES = 4, 5
MARGIN = ["margin_loss", "train_accuracy", "target_cosine"]
DISTILLATION = ["distillation_loss", "teacher_cosine"]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def labels(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "softmax_label": random.integers(0, CLASSES, BATCH).astype(np.float32),
        LABEL: unit(random.normal(size=(BATCH, tiny.DIMENSIONS))).astype(np.float32),
        MARGIN_WEIGHT: np.ones(BATCH, np.float32),
    }


def objective(**keys) -> Objective:
    return Objective(tiny.network(), tiny.make_recipe(**keys), CLASSES)


def run(symbol, moved=None, **given) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """One step of `symbol`, always from the same weights (plus `moved`, by name): outputs, and gradient by name."""
    feed = {**labels(), **given}
    names = [name for name in feed if name in symbol.list_arguments()]
    probes = [name for name in PROBES.values() if name in symbol.list_arguments()]
    module = mx.mod.Module(symbol, label_names=names, state_names=probes)
    module.bind([("data", (BATCH, 3, 112, 112))], [(name, feed[name].shape) for name in names] or None)
    args, auxs = tiny.weights(tiny.network())
    args.update({name: args[name] + mx.nd.array(by) for name, by in (moved or {}).items()})
    centres = mx.nd.array(np.random.default_rng(3).normal(size=(CLASSES, tiny.DIMENSIONS)))
    module.init_params(None, {**args, "fc7_weight": centres}, auxs, allow_extra=True)
    images = np.stack([tiny.image(number % tiny.IDENTITIES, number) for number in range(BATCH)]).transpose(0, 3, 1, 2)
    batch = mx.io.DataBatch([mx.nd.array(images)], [mx.nd.array(feed[name]) for name in names])
    module.forward_backward(batch)
    gradients = {name: found[0].asnumpy() for name, found in zip(module._param_names, module._exec_group.grad_arrays)}
    return [output.asnumpy() for output in module.get_outputs()], gradients


def same(one: dict, other: dict) -> None:
    """Equal but for rounding; what stands before a batch norm (biases) has a gradient of nothing else."""
    assert one.keys() == other.keys()
    scale = max(np.abs(found).max() for found in other.values())
    assert scale > 1e-3
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name)


def backbone(gradients: dict) -> dict:
    return {name: found for name, found in gradients.items() if name != "fc7_weight"}


@pytest.fixture(scope="module")
def distillation_alone():
    """Gradients of alpha * Eq. 5, in a graph without a margin loss."""
    found = angular_distillation.get_symbol(training_form(tiny.network()), mx.sym.Variable(LABEL), weight=7.0)
    return run(mx.sym.Group([found.loss]))[1]


def test_without_a_teacher_distillation_is_not_in_the_graph():
    found = objective()
    assert found.label_names == ["softmax_label"]
    assert found.outputs == [*MARGIN, "embedding_norm"]
    assert LABEL not in found.symbol.list_arguments()
    assert not [name for name in found.symbol.get_internals().list_outputs() if "distillation" in name]


def test_with_a_teacher_it_is():
    found = objective(teacher="any,0")
    assert found.label_names == ["softmax_label", LABEL]
    assert found.outputs == [*MARGIN, *DISTILLATION, "embedding_norm"]
    assert set(found.label_names) <= set(found.symbol.list_arguments())


@pytest.mark.parametrize(("ramp", "weighted"), [("0,0", False), ("0,5", True), ("5,5", True)])
def test_the_margins_weight_is_a_label_where_it_ramps(ramp, weighted):
    found = objective(teacher="any,0", margin_ramp=ramp)
    assert (MARGIN_WEIGHT in found.symbol.list_arguments()) == weighted
    assert (found.label_names[-1] == MARGIN_WEIGHT) == weighted


def test_without_a_teacher_there_is_nothing_to_ramp_against():
    assert objective(margin_ramp="0,5").label_names == ["softmax_label"]


@pytest.mark.parametrize("keys", [{}, {"teacher": "any,0"}, {"teacher": "any,0", "margin_ramp": "0,5"}])
def test_every_output_has_a_name_and_a_value_a_sample(keys):
    found = objective(**keys)
    outputs, _ = run(found.symbol)
    assert [output.shape for output in outputs] == [(BATCH,)] * len(found.outputs)


def test_outputs_are_what_they_are_called():
    found = objective(teacher="any,0", alpha=3, m2=0)
    values = dict(zip(found.outputs, run(found.symbol)[0]))
    (embedding,), _ = run(mx.sym.MakeLoss(training_form(tiny.network())))
    np.testing.assert_allclose(values["embedding_norm"], np.linalg.norm(embedding, axis=1), rtol=1e-5)
    embedding = unit(embedding)
    cosine = (embedding * labels()[LABEL]).sum(axis=1)
    np.testing.assert_allclose(values["teacher_cosine"], cosine, atol=1e-5)
    np.testing.assert_allclose(values["distillation_loss"], 3 * 2 * (1 - cosine), rtol=1e-4)
    centres = unit(np.random.default_rng(3).normal(size=(CLASSES, tiny.DIMENSIONS)))
    logits, label = embedding @ centres.T, labels()["softmax_label"].astype(int)
    np.testing.assert_allclose(values["target_cosine"], logits[range(BATCH), label], atol=1e-5)
    logits *= tiny.KEYS["scale"]
    loss = np.log(np.exp(logits).sum(axis=1)) - logits[range(BATCH), label]
    np.testing.assert_allclose(values["margin_loss"], loss, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(values["train_accuracy"], logits.argmax(axis=1) == label)


def test_the_backbone_learns_from_both_losses(distillation_alone):
    _, both = run(objective(teacher="any,0").symbol)
    _, margin = run(objective().symbol)
    total = {name: margin[name] + distillation_alone[name] for name in distillation_alone}
    same(backbone(both), total)
    np.testing.assert_array_equal(both["fc7_weight"], margin["fc7_weight"])


def test_alpha_multiplies_the_gradient_not_only_the_value():
    at = {alpha: backbone(run(objective(teacher="any,0", alpha=alpha).symbol)[1]) for alpha in (0, 1, 7)}
    once, seven = ({name: at[alpha][name] - at[0][name] for name in at[0]} for alpha in (1, 7))
    same(seven, {name: 7 * found for name, found in once.items()})


def test_at_weight_nothing_the_backbone_learns_from_the_teacher_alone_and_the_centres_as_ever(distillation_alone):
    ramped = objective(teacher="any,0", margin_ramp="0,5").symbol
    outputs, found = run(ramped, margin_weight=np.zeros(BATCH, np.float32))
    same(backbone(found), distillation_alone)
    whole_outputs, whole = run(objective(teacher="any,0").symbol)
    same({"fc7_weight": found["fc7_weight"]}, {"fc7_weight": whole["fc7_weight"]})
    for one, other in zip(outputs, whole_outputs):  # the weight changes what is learned, not what is logged
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_at_weight_one_it_is_as_without_a_ramp():
    same(run(objective(teacher="any,0", margin_ramp="0,5").symbol)[1], run(objective(teacher="any,0").symbol)[1])


def test_between_the_margins_share_is_the_weight(distillation_alone):
    ramped = objective(teacher="any,0", margin_ramp="0,5").symbol
    _, found = run(ramped, margin_weight=np.full(BATCH, 0.25, np.float32))
    _, margin = run(objective().symbol)
    same(backbone(found), {name: alone + 0.25 * margin[name] for name, alone in distillation_alone.items()})


def test_the_gradient_is_that_of_the_sum_of_the_losses():
    found = objective(teacher="any,0")
    name, step = "pre_fc1_weight", 1e-2
    _, gradients = run(found.symbol)
    direction = np.random.default_rng(5).normal(size=gradients[name].shape)
    direction /= np.linalg.norm(direction)
    ahead, behind = (run(found.symbol, {name: sign * step * direction})[0] for sign in (1, -1))
    values = [dict(zip(found.outputs, outputs)) for outputs in (ahead, behind)]
    ahead, behind = (float((v["margin_loss"] + v["distillation_loss"]).sum(dtype=np.float64)) for v in values)
    assert (ahead - behind) / (2 * step) == pytest.approx((gradients[name] * direction).sum(), rel=0.02)


def test_a_mixed_face_is_taught_but_classified_as_nobody(distillation_alone):
    found = objective(teacher="any,0", mix=0.5)
    assert found.outputs == [*MARGIN, *DISTILLATION, "embedding_norm", LABELLED]
    nobody = np.full(BATCH, -1, np.float32)
    outputs, gradients = run(found.symbol, softmax_label=nobody)
    values = dict(zip(found.outputs, outputs))
    assert not any(values[name].any() for name in (*MARGIN, LABELLED))
    assert values["distillation_loss"].all()
    same(backbone(gradients), distillation_alone)
    assert not gradients["fc7_weight"].any()


def test_what_is_logged_of_the_margin_is_of_the_faces_with_an_identity():
    found = objective(teacher="any,0", mix=0.5)
    label = labels()["softmax_label"]
    label[2:] = -1
    values = dict(zip(found.outputs, run(found.symbol, softmax_label=label)[0]))
    row = found.of_labelled({name: float(value.mean()) for name, value in values.items()})
    for name in MARGIN:
        assert row[name] == pytest.approx(values[name][:2].mean(), rel=1e-6)
    for name in DISTILLATION:
        assert row[name] == pytest.approx(values[name].mean(), rel=1e-6)
    assert row[LABELLED] == 0.5
    nobody = found.of_labelled({"margin_loss": 0.0, LABELLED: 0.0})
    assert nobody == {"margin_loss": 0.0, LABELLED: 0.0}


def test_without_a_teacher_nothing_is_mixed():
    assert LABELLED not in objective(mix=0.5).outputs


# --- the gradient of each loss


def probed(found: Objective, parts: int = 1, **given) -> tuple[mx.mod.Module, dict[str, np.ndarray]]:
    """A module after a step, and the gradient at each of its probes."""
    feed = {**labels(), **given}
    names = found.label_names
    contexts = [mx.cpu(number) for number in range(parts)]
    module = mx.mod.Module(found.symbol, label_names=names, state_names=found.probes, context=contexts)
    shapes = [(name, feed[name].shape) for name in names]
    module.bind([("data", (BATCH, 3, 112, 112))], shapes, grad_req=found.grad_req("write"))
    args, auxs = tiny.weights(tiny.network(norm=False))
    centres = mx.nd.array(np.random.default_rng(3).normal(size=(CLASSES, tiny.DIMENSIONS)))
    module.init_params(mx.init.Xavier(), {**args, "fc7_weight": centres}, auxs, allow_missing=True)
    images = np.stack([tiny.image(number % tiny.IDENTITIES, number) for number in range(BATCH)]).transpose(0, 3, 1, 2)
    module.forward_backward(mx.io.DataBatch([mx.nd.array(images)], [mx.nd.array(feed[name]) for name in names]))
    executors = module._exec_group.execs
    rows = {
        name: np.concatenate([executor.grad_dict[name].asnumpy() for executor in executors]) for name in found.probes
    }
    return module, rows


def gradient_norms(found: Objective, module: mx.mod.Module) -> dict[str, np.ndarray]:
    """Column -> the norm of each sample's gradient (N,)."""
    return dict(zip(found.gradients, (norms.asnumpy() for norms in found.gradient_norms(module))))


def without_norm(**keys) -> Objective:
    return Objective(tiny.network(norm=False), tiny.make_recipe(**keys), CLASSES)


def test_a_losses_gradient_at_the_embedding_is_its_own():
    found = without_norm(teacher="any,0", alpha=3)
    module, rows = probed(found)
    embedding = embeddings_without_norm()
    norm = np.linalg.norm(embedding, axis=1, keepdims=True)
    student, teacher = embedding / norm, labels()[LABEL]
    # d alpha |t - s|^2 / d embedding = -2 alpha (t - cos s) / |embedding|
    cosine = (student * teacher).sum(axis=1, keepdims=True)
    due = -2 * 3 * (teacher - cosine * student) / norm
    np.testing.assert_allclose(rows["distillation_probe"], due, rtol=1e-4, atol=1e-5 * np.abs(due).max())
    norms = gradient_norms(found, module)
    np.testing.assert_allclose(norms["distillation_gradient"], np.linalg.norm(due, axis=1), rtol=1e-4)
    # what reaches the last layer's bias is the sum of both
    bias = module._exec_group.grad_arrays[module._param_names.index("fc1_bias")][0].asnumpy()
    both = rows["distillation_probe"] + rows["margin_probe"]
    np.testing.assert_allclose(bias, both.sum(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norms["margin_gradient"], np.linalg.norm(rows["margin_probe"], axis=1), rtol=1e-5)


def embeddings_without_norm() -> np.ndarray:
    """The embeddings that `probed` starts from."""
    symbol = training_form(tiny.network(norm=False))
    module = mx.mod.Module(symbol, label_names=None)
    module.bind([("data", (BATCH, 3, 112, 112))], for_training=False)
    module.init_params(None, *tiny.weights(tiny.network(norm=False)))
    images = np.stack([tiny.image(number % tiny.IDENTITIES, number) for number in range(BATCH)]).transpose(0, 3, 1, 2)
    module.forward(mx.io.DataBatch([mx.nd.array(images)]), is_train=False)
    return module.get_outputs()[0].asnumpy()


def test_the_gradients_of_two_contexts_are_those_of_one():
    found = without_norm(teacher="any,0")
    (module, one), (split, two) = probed(found), probed(found, parts=2)
    for name in found.probes:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-6)
    together, apart = gradient_norms(found, module), gradient_norms(found, split)
    for name in found.gradients:
        np.testing.assert_allclose(apart[name], together[name], rtol=1e-4)


def test_the_margins_gradient_has_its_weight_in_it():
    found = without_norm(teacher="any,0", margin_ramp="0,5")
    norms = {
        weight: gradient_norms(found, probed(found, margin_weight=np.full(BATCH, weight, np.float32))[0])
        for weight in (0.0, 0.25, 1.0)
    }
    assert not norms[0.0]["margin_gradient"].any()
    np.testing.assert_allclose(norms[0.25]["margin_gradient"], 0.25 * norms[1.0]["margin_gradient"], rtol=1e-4)
    np.testing.assert_allclose(norms[0.25]["distillation_gradient"], norms[1.0]["distillation_gradient"], rtol=1e-5)


def test_without_a_teacher_there_is_one_gradient_to_watch():
    assert list(gradient_norms(without_norm(), probed(without_norm())[0])) == ["margin_gradient"]


def test_through_a_map_the_teacher_may_be_of_another_size():
    found = Objective(
        tiny.network(norm=False), tiny.make_recipe(teacher="any,0", teacher_map=True), CLASSES, teacher_size=24
    )
    teacher = unit(np.random.default_rng(1).normal(size=(BATCH, 24))).astype(np.float32)
    module, rows = probed(found, **{LABEL: teacher})
    weight = module.get_params()[0]["teacher_map_weight"].asnumpy()
    assert weight.shape == (24, tiny.DIMENSIONS)
    embedding = embeddings_without_norm()
    mapped = unit(embedding @ weight.T)
    values = dict(zip(found.outputs, module.get_outputs()))
    np.testing.assert_allclose(values["teacher_cosine"].asnumpy(), (mapped * teacher).sum(axis=1), atol=1e-5)
    # the gradient is that at the embedding, before the map
    assert rows["distillation_probe"].shape == (BATCH, tiny.DIMENSIONS)
    assert np.abs(rows["distillation_probe"]).max() > 0
