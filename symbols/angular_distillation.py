"""Angular distillation: the student's embedding learns the direction of the teacher's.

VarGFaceNet, https://arxiv.org/abs/1910.04985, with F_t and F_s the teacher's and the student's embedding of one image:

* "angular" (Eq. 5, the paper's): || F_t/|F_t| - F_s/|F_s| ||^2, summed over the dimensions, which is 2 (1 - cos).
* "shrink" (Eq. 4, ShrinkTeaNet, https://arxiv.org/abs/1905.10620): (1 - cos)^2; its gradient vanishes as cos -> 1.
* "cosine": 1 - cos, half of "angular".

The paper adds it to ArcFace with weight 7. No parameters.
"""

from __future__ import annotations

from typing import NamedTuple

from vargface.runtime import mx
from vargface.symbols.layers import direction

__all__ = ["FORMS", "AngularDistillation", "get_symbol"]

FORMS = ("angular", "shrink", "cosine")


class AngularDistillation(NamedTuple):
    """The loss's outputs, each (N,) float32. Only `loss` has a gradient: group it with the margin softmax's.

    loss: weight * distance of each sample; its gradient is that of their SUM over the batch.
    distance: the distance in the form asked for, without the weight, to log.
    teacher_cosine: cosine between the student's and the teacher's embedding.
    """

    loss: mx.sym.Symbol
    distance: mx.sym.Symbol
    teacher_cosine: mx.sym.Symbol


def get_symbol(
    embedding: mx.sym.Symbol,
    teacher_embedding: mx.sym.Symbol,
    *,
    form: str = "angular",
    weight: float | mx.sym.Symbol = 7.0,
) -> AngularDistillation:
    """Return the distillation loss of `embedding` against `teacher_embedding`, (N, D) float32 or float16.

    Their norms do not matter, within what `layers.direction` says: everything is finite at a zero vector, whose
    direction is zero, and in float16.

    The gradient reaches the student and never the teacher. It is that of the sum over samples, as the margin softmax's:
    a Module's rescale_grad = 1 / (whole batch) makes it the paper's mean.

    `weight` is a number, or a symbol of shape (N,): fed as one more label, with the same value in every place, it is a
    weight that changes during training (a ramp; it splits over contexts as every label does), and 0 in one place leaves
    that sample out. It multiplies before MakeLoss, where it acts on the gradient too.

    Raises ValueError for an unknown form or a negative weight.
    """
    if form not in FORMS:
        raise ValueError(f"form = {form!r}: must be one of {', '.join(FORMS)}")
    if not isinstance(weight, mx.sym.Symbol) and not weight >= 0:
        raise ValueError(f"weight = {weight}: must be at least 0")
    stop = mx.sym.BlockGrad
    student, teacher = direction(embedding), stop(direction(teacher_embedding))
    # All three from the squared difference: 1 - cos itself has lost its digits where student and teacher agree.
    squared = mx.sym.sum(mx.sym.square(student - teacher), axis=1)
    distance = {"angular": squared, "shrink": mx.sym.square(squared / 2), "cosine": squared / 2}[form]
    weighted = distance * (stop(weight) if isinstance(weight, mx.sym.Symbol) else weight)
    return AngularDistillation(
        loss=mx.sym.MakeLoss(weighted, name="distillation_loss"),
        distance=stop(distance, name="distillation_distance"),
        teacher_cosine=stop(mx.sym.sum(student * teacher, axis=1), name="teacher_cosine"),
    )
