"""Margin softmax: s*(cos(m1*theta + m2) - m3) for the labelled class, s*cos(theta) for every other one.

ArcFace, https://arxiv.org/abs/1801.07698, in the combined form of InsightFace (`arcface_mxnet`), which takes in
SphereFace (https://arxiv.org/abs/1704.08063) and CosFace (https://arxiv.org/abs/1801.09414). One parameter:
`fc7_weight` (num_classes, embedding_size). The names used in papers are settings of m1, m2, m3:

| softmax | ArcFace   | CosFace    | SphereFace | combined    |
| ------- | --------- | ---------- | ---------- | ----------- |
| 1, 0, 0 | 1, 0.5, 0 | 1, 0, 0.35 | 1.35, 0, 0 | 1, 0.3, 0.2 |

(SphereFace's own m1 = 4 does not converge without annealing; 1.35 is ArcFace's, table 2.)

It differs from InsightFace's graph where that one fails:

* Past phi = m1*theta + m2 > pi the cosine would rise again and reward a worse angle. The target goes on as SphereFace's
  (-1)^k cos(phi) - 2k, k = floor(phi / pi): one formula for every m1 and m2, continuous with its first derivative,
  falling all the way, and cos(phi) itself up to pi. (ArcFace's usual cos(theta) - m2*sin(m2) jumps and knows no m1.)
* d cos(phi) / d cos(theta) = m1 * sin(phi) / sin(theta) is infinite at cos = +-1, and arccos is NaN of a cosine that
  rounding took past 1. Value and slope are computed apart: the value from the clipped cosine, exactly; the slope at an
  angle kept `_NEAREST` radians from 0 and pi. The embedding's own gradient carries the factor sin(theta) and needs no
  more: nearer to the poles float32 cosines do not tell angles apart.
* The margin is worked out on the (N,) cosines of the labels. The head needs as much memory as the same softmax without
  a margin: of size (N, num_classes) backward keeps the softmax's output alone (benchmarks/head_memory.py).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from vargface.runtime import mx
from vargface.symbols.layers import direction

__all__ = ["MarginSoftmax", "get_symbol"]

# Radians. 1 - cos(1e-3) = 5e-7, about what rounding does to the float32 cosine of two 512-d unit vectors.
_NEAREST = 1e-3
_NO_CLASS = -1


class MarginSoftmax(NamedTuple):
    """The head's outputs, each (N,) float32. Only `loss` has a gradient: group what you like, nothing counts twice.

    loss: the cross-entropy of each sample; its gradient is `grad_scale` times that of their SUM over the batch.
    cross_entropy: the same numbers, to log. From log-softmax and pick: exact and finite however small the probability.
    target_cosine: cosine between embedding and labelled class, without the margin.
    correct: 1 where the labelled class has the largest logit, margin included (as InsightFace logs it), else 0.
    """

    loss: mx.sym.Symbol
    cross_entropy: mx.sym.Symbol
    target_cosine: mx.sym.Symbol
    correct: mx.sym.Symbol


def get_symbol(
    embedding: mx.sym.Symbol,
    label: mx.sym.Symbol,
    *,
    num_classes: int,
    embedding_size: int,
    scale: float = 64.0,
    m1: float = 1.0,
    m2: float = 0.5,
    m3: float = 0.0,
    grad_scale: float = 1.0,
    offset: mx.sym.Symbol | None = None,
) -> MarginSoftmax:
    """Return the margin-softmax head on `embedding` (N, embedding_size), float32 or float16.

    Norms do not matter, within what `layers.direction` says; gradients are finite at zero and in float16, too.

    `label` (N,) of any dtype holds class numbers 0..num_classes-1, exact to 2^24 (larger ones are clipped, so that none
    writes outside a buffer: whoever makes the labels checks them); a sample with a negative label, or NaN, is of no
    class: its outputs and its gradient are 0. The head computes in float32 and normalises both the embedding and every
    row of `fc7_weight`, which starts as InsightFace's, Normal(0.01). (Rows of that have no bound such as `direction`
    has: one within 1e-5 of zero, which no training was seen to meet, gets a gradient of 1e6.)

    The gradient is that of the sum over samples, as SoftmaxOutput(normalization="null") gives it; a Module's optimizer
    with its usual rescale_grad = 1 / (whole batch) makes it the mean, with any number of contexts or workers.
    `grad_scale` multiplies the gradient and not the values, as everywhere in MXNet. `offset` (num_classes,), 0 for each
    class that is labelled, is added to the logits in the loss, not in `correct`: ln(n) for a class that stands for n.

    Raises ValueError for a setting outside its range: num_classes and embedding_size >= 1, scale > 0, m1 > 0,
    0 <= m2 <= pi, all of them finite.
    """
    _check(num_classes=num_classes, embedding_size=embedding_size, scale=scale, m1=m1, m2=m2)
    _check_finite(m3=m3, grad_scale=grad_scale)
    stop = mx.sym.BlockGrad
    label = mx.sym.floor(mx.sym.cast(label, dtype="float32"))
    labelled = label >= 0  # NaN is not
    label = mx.sym.where(labelled, mx.sym.clip(label, 0, num_classes - 1), mx.sym.zeros_like(label) + _NO_CLASS)
    logits = _scaled_cosines(embedding, num_classes, embedding_size, scale, offset)
    cosine = mx.sym.pick(logits, label, axis=1) * labelled / scale
    # Worked out from a cosine without a gradient, so that backward keeps neither the one-hot nor the arccos;
    # `margin_gradient` below makes good what that leaves out.
    value = stop(cosine)
    target, slope = _target(value, m1, m2, m3)
    change = mx.sym.expand_dims((target - value) * scale, axis=1)
    logits = logits + mx.sym.broadcast_mul(mx.sym.one_hot(label, depth=num_classes), change)
    cross_entropy = -mx.sym.pick(mx.sym.log_softmax(logits, axis=1), label, axis=1) * labelled
    cross_entropy = mx.sym.relu(cross_entropy)  # log_softmax rounds a probability of 1 to as much as 1 + 1e-6
    without = logits if offset is None else mx.sym.broadcast_sub(logits, mx.sym.expand_dims(offset, axis=0))
    correct = mx.sym.argmax(without, axis=1) == label

    # SoftmaxOutput's backward is grad_scale * (p - onehot) whatever stands above it, in the buffer of p: were p an
    # output of the graph, that buffer could not be used again.
    probability = mx.sym.SoftmaxOutput(logits, label, grad_scale=grad_scale, use_ignore=True, ignore_label=_NO_CLASS)
    probability = mx.sym.pick(probability, label, axis=1)
    # The margin's share at the label: d loss / d logit = p - 1, times the slope, less the 1 that went straight through.
    margin_gradient = stop((probability - 1) * (slope - 1) * (scale * grad_scale)) * cosine
    loss = stop(cross_entropy) + _gradient_only(probability) + _gradient_only(margin_gradient)
    return MarginSoftmax(
        loss=mx.sym.MakeLoss(loss, name="margin_softmax_loss"),
        cross_entropy=stop(cross_entropy, name="cross_entropy"),
        target_cosine=stop(cosine, name="target_cosine"),
        correct=stop(correct, name="correct"),
    )


def _check(**settings: float) -> None:
    """Raise ValueError naming the setting, its value and the range allowed."""
    _check_finite(**settings)
    smallest = {"num_classes": 1, "embedding_size": 1, "m2": 0.0}
    for name, value in settings.items():
        if name in smallest and not value >= smallest[name]:
            raise ValueError(f"{name} = {value}: must be at least {smallest[name]:g}")
        if name not in smallest and not value > 0:
            raise ValueError(f"{name} = {value}: must be greater than 0")
    if settings["m2"] > math.pi:
        raise ValueError(f"m2 = {settings['m2']}: an angle in radians, at most pi")


def _check_finite(**settings: float) -> None:
    """Raise ValueError naming the setting that is infinite or no number."""
    for name, value in settings.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} = {value}: must be a finite number")


def _scaled_cosines(
    embedding: mx.sym.Symbol, num_classes: int, embedding_size: int, scale: float, offset: mx.sym.Symbol | None = None
) -> mx.sym.Symbol:
    """Return scale * cos(embedding, class) and the class's offset, (N, num_classes) float32."""
    weight = mx.sym.Variable("fc7_weight", shape=(num_classes, embedding_size), init=mx.init.Normal(0.01))
    embedding = direction(embedding) * scale
    weight = mx.sym.L2Normalization(weight, mode="instance")
    # as a bias it takes no (N, num_classes) of its own
    offset = {"no_bias": True} if offset is None else {"bias": offset}
    return mx.sym.FullyConnected(embedding, weight, num_hidden=num_classes, name="fc7", **offset)


def _target(cosine: mx.sym.Symbol, m1: float, m2: float, m3: float) -> tuple[mx.sym.Symbol, mx.sym.Symbol]:
    """Return the labelled class's cosine with the margin, and its slope against the plain cosine, both (N,)."""
    theta = mx.sym.arccos(mx.sym.clip(cosine, -1, 1))
    phi = theta * m1 + m2
    turns = mx.sym.floor(phi / math.pi)
    sign = 1 - 2 * (turns % 2)
    target = sign * mx.sym.cos(phi) - 2 * turns - m3
    theta = mx.sym.clip(theta, _NEAREST, math.pi - _NEAREST)
    slope = m1 * mx.sym.abs(mx.sym.sin(theta * m1 + m2)) / mx.sym.sin(theta)
    return target, slope


def _gradient_only(value: mx.sym.Symbol) -> mx.sym.Symbol:
    """Return exact zeros that have the gradient of `value`, which must be finite."""
    return value - mx.sym.BlockGrad(value)
