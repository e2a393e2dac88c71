"""The symbol that is trained: network, margin softmax and, with a teacher, angular distillation."""

from __future__ import annotations

from easydict import EasyDict

from vargface.graph import training_form
from vargface.runtime import mx
from vargface.symbols import angular_distillation, margin_softmax
from vargface.training.teacher import LABEL

__all__ = ["MARGIN_WEIGHT", "Objective"]

# the share of samples that are an identity's, (N,) of 0 and 1, where the recipe mixes faces
LABELLED = "labelled"
# the margin softmax's say over the backbone, (N,), fed as a label where the recipe ramps it
MARGIN_WEIGHT = "margin_weight"


class Objective:
    """The training symbol of a recipe and the names of its outputs, each (N,): `symbol`, `outputs`, `label_names`."""

    def __init__(self, network: mx.sym.Symbol, recipe: EasyDict, num_classes: int) -> None:
        """Build it on `network` (ends in `fc1`), for `num_classes` identities; distils if `recipe.teacher` is set."""
        embedding = training_form(network)
        label = mx.sym.Variable("softmax_label")
        distils = bool(recipe.teacher)
        self.label_names = ["softmax_label", LABEL] if distils else ["softmax_label"]
        classified = embedding
        if distils and recipe.margin_ramp[1] > 0:
            self.label_names.append(MARGIN_WEIGHT)
            weight = mx.sym.expand_dims(mx.sym.Variable(MARGIN_WEIGHT), axis=1)
            # the value is the embedding's, the gradient that reaches it `weight` times what the head sends; the class
            # centres (fc7) learn at full rate from the start
            learned = mx.sym.broadcast_mul(embedding, weight)
            classified = learned + mx.sym.BlockGrad(embedding - learned)
        margin = margin_softmax.get_symbol(
            classified,
            label,
            num_classes=num_classes,
            embedding_size=recipe.embedding_size,
            scale=recipe.scale,
            m1=recipe.m1,
            m2=recipe.m2,
            m3=recipe.m3,
        )
        outputs = {"margin_loss": margin.loss, "train_accuracy": margin.correct, "target_cosine": margin.target_cosine}
        self._of_labelled = list(outputs)
        if distils:
            distillation = angular_distillation.get_symbol(
                embedding, mx.sym.Variable(LABEL), form=recipe.distillation, weight=recipe.alpha
            )
            outputs["distillation_loss"] = distillation.loss
            outputs["teacher_cosine"] = distillation.teacher_cosine
        outputs["embedding_norm"] = mx.sym.BlockGrad(mx.sym.norm(embedding, axis=1))
        if distils and recipe.mix:
            outputs[LABELLED] = mx.sym.BlockGrad(label >= 0)
        self.outputs = list(outputs)
        self.symbol = mx.sym.Group(list(outputs.values()))

    def of_labelled(self, means: dict[str, float]) -> dict[str, float]:
        """Return `means` of the outputs with those of the margin softmax over the labelled samples alone."""
        if LABELLED not in means:
            return means
        # a batch or a few without any: 0, as the head says
        share = max(means[LABELLED], 1e-9)
        return {name: mean / share if name in self._of_labelled else mean for name, mean in means.items()}
