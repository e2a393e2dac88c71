"""The symbol that is trained: network, margin softmax and, with a teacher, angular distillation."""

from __future__ import annotations

from easydict import EasyDict

from vargface.graph import training_form
from vargface.runtime import mx
from vargface.symbols import angular_distillation, margin_softmax
from vargface.training.centres import OFFSET, WEIGHT
from vargface.training.teacher import LABEL

__all__ = ["MARGIN_WEIGHT", "Objective"]

# the share of samples that are an identity's, (N,) of 0 and 1, where the recipe mixes faces
LABELLED = "labelled"
# the margin softmax's say over the backbone, (N,), fed as a label where the recipe ramps it
MARGIN_WEIGHT = "margin_weight"
# column of the log -> (N, D) of zeros that is added to the embedding on its way to that loss: the gradient there is the
# loss's own, which at the embedding itself has been summed with the other's
PROBES = {"margin_gradient": "margin_probe", "distillation_gradient": "distillation_probe"}


class Objective:
    """The training symbol of a recipe and the names of its outputs, each (N,): `symbol`, `outputs`, `label_names`.

    states: the names of the module's: `probes`, which stay zero, where a step samples its classes their centres and,
    with `recipe.class_correction`, the logarithm of how many each stands for;
    gradients: the names of what `gradient_norms` gives;
    spread: outputs whose percentiles are worth logging.
    """

    def __init__(
        self, network: mx.sym.Symbol, recipe: EasyDict, num_classes: int, teacher_size: int | None = None
    ) -> None:
        """Build it on `network` (ends in `fc1`); distils if `recipe.teacher` is set.

        num_classes: as many as a step works on, which are all identities unless `recipe.class_share` is set.

        teacher_size: D of the teacher's embeddings, to which `recipe.teacher_map` maps the student's; None: as theirs.
        """
        embedding = training_form(network)
        label = mx.sym.Variable("softmax_label")
        distils, corrects = bool(recipe.teacher), bool(recipe.class_share and recipe.class_correction)
        self._of_probe: dict[str, str] = {}
        self.label_names = ["softmax_label", LABEL] if distils else ["softmax_label"]
        classified = self._probed(embedding, "margin_gradient")
        if distils and recipe.margin_ramp[1] > 0:
            self.label_names.append(MARGIN_WEIGHT)
            weight = mx.sym.expand_dims(mx.sym.Variable(MARGIN_WEIGHT), axis=1)
            # the value is the embedding's, the gradient that reaches it `weight` times what the head sends; the class
            # centres (fc7) learn at full rate from the start
            learned = mx.sym.broadcast_mul(classified, weight)
            classified = learned + mx.sym.BlockGrad(classified - learned)
        margin = margin_softmax.get_symbol(
            classified,
            label,
            num_classes=num_classes,
            embedding_size=recipe.embedding_size,
            scale=recipe.scale,
            m1=recipe.m1,
            m2=recipe.m2,
            m3=recipe.m3,
            offset=mx.sym.Variable(OFFSET) if corrects else None,
        )
        outputs = {"margin_loss": margin.loss, "train_accuracy": margin.correct, "target_cosine": margin.target_cosine}
        self._of_labelled = [*outputs, "margin_gradient"]
        if distils:
            compared = self._probed(embedding, "distillation_gradient")
            if recipe.teacher_map:
                size = teacher_size or recipe.embedding_size
                compared = mx.sym.FullyConnected(compared, num_hidden=size, no_bias=True, name="teacher_map")
            distillation = angular_distillation.get_symbol(
                compared, mx.sym.Variable(LABEL), form=recipe.distillation, weight=recipe.alpha
            )
            outputs["distillation_loss"] = distillation.loss
            outputs["teacher_cosine"] = distillation.teacher_cosine
        outputs["embedding_norm"] = mx.sym.BlockGrad(mx.sym.norm(embedding, axis=1))
        if distils and recipe.mix:
            outputs[LABELLED] = mx.sym.BlockGrad(label >= 0)
        self.outputs = list(outputs)
        self.probes, self.gradients = list(self._of_probe), list(self._of_probe.values())
        of_classes = [WEIGHT, OFFSET] if corrects else [WEIGHT] if recipe.class_share else []
        self.states = [*self.probes, *of_classes]
        self.spread = ["teacher_cosine"] if distils else []
        self.symbol = mx.sym.Group(list(outputs.values()))

    def _probed(self, embedding: mx.sym.Symbol, column: str) -> mx.sym.Symbol:
        self._of_probe[PROBES[column]] = column
        return embedding + mx.sym.Variable(PROBES[column])

    def grad_req(self, parameters: str) -> dict[str, str]:
        """Return `grad_req` of `Module.bind`: `parameters` ("write" or "add") for those, and the probes' own."""
        inputs = {"data", *self.label_names}
        names = [name for name in self.symbol.list_arguments() if name not in inputs]
        own = {**dict.fromkeys(self.probes, "write"), OFFSET: "null"}
        return {name: own.get(name, parameters) for name in names}

    def gradient_norms(self, module: mx.mod.Module) -> list[mx.nd.NDArray]:
        """Return, after a backward pass, the norms of the losses' gradients at each embedding: (N,) by `gradients`.

        `module` is bound with `probes` as its states, and `grad_req`. The gradients are of the sum over samples, what
        weighs a loss included.
        """
        executors = module._exec_group.execs
        norms = [[mx.nd.norm(each.grad_dict[probe], axis=1) for each in executors] for probe in self.probes]
        return [mx.nd.concat(*(part.as_in_context(parts[0].context) for part in parts), dim=0) for parts in norms]

    def of_labelled(self, means: dict[str, float]) -> dict[str, float]:
        """Return `means` of the outputs with those of the margin softmax over the labelled samples alone."""
        if LABELLED not in means:
            return means
        # a batch or a few without any: 0, as the head says
        share = max(means[LABELLED], 1e-9)
        return {name: mean / share if name in self._of_labelled else mean for name, mean in means.items()}
