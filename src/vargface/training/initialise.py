"""The weights that a network starts from where no checkpoint gives them."""

from __future__ import annotations

import importlib
import re

from easydict import EasyDict

from vargface.runtime import mx

__all__ = ["Start"]


class Start(mx.init.Xavier):
    """Xavier as an author advises for VarGFaceNet (gaussian, by fan-out, magnitude 2), gammas 1, betas 0, slopes 0.25.

    The gamma that closes each residual body starts at the recipe's `residual_gamma`: below 1 the network begins nearer
    to its shortcuts (arXiv 1706.02677, section 5.1, where it is 0).
    """

    def __init__(self, recipe: EasyDict) -> None:
        super().__init__(rnd_type="gaussian", factor_type="out", magnitude=2)
        network = importlib.import_module(f"vargface.symbols.{recipe.network}")
        self._residual_gamma = re.compile(f"(?:{network.RESIDUAL_NORM})_gamma$")
        self._residual_value = recipe.residual_gamma

    def _init_gamma(self, name: str, array: mx.nd.NDArray) -> None:
        array[:] = self._residual_value if self._residual_gamma.search(name) else 1.0
