"""Layers that the networks share: InsightFace's input scaling and its closing fully connected embedding."""

from __future__ import annotations

from vargface.runtime import mx

__all__ = ["batch_norm", "embedding_layer", "prelu", "scaled_input"]


def scaled_input(*, identity: bool = True) -> mx.sym.Symbol:
    """Return `data` (N, 3, 112, 112), RGB 0..255, scaled to about -1..1 inside the graph.

    `identity` puts the node `id` first, as InsightFace's fresnet does and its fmobilefacenet does not.
    """
    data = mx.sym.Variable("data")
    if identity:
        data = mx.sym.identity(data, name="id")
    return (data - 127.5) * 0.0078125


def batch_norm(data: mx.sym.Symbol, name: str, *, eps: float = 2e-5, fix_gamma: bool = False) -> mx.sym.Symbol:
    """Return batch normalisation with InsightFace's momentum (0.9)."""
    return mx.sym.BatchNorm(data, name=name, eps=eps, momentum=0.9, fix_gamma=fix_gamma)


def prelu(data: mx.sym.Symbol, name: str) -> mx.sym.Symbol:
    """Return MXNet's native PReLU with one slope a channel, `{name}_gamma`.

    Its gradient is wrong in the symbolic executor: `vargface.graph` replaces it before training (docs/prelu.md).
    """
    return mx.sym.LeakyReLU(data, name=name, act_type="prelu")


def embedding_layer(data: mx.sym.Symbol, embedding_size: int, *, fix_gamma: bool) -> mx.sym.Symbol:
    """Return the embedding `fc1` (N, embedding_size): flatten, `pre_fc1`, batch normalisation.

    The flatten changes no parameter. Without it MXNet 1.9.1 hands the fully connected layer a blocked MKLDNN array, and
    the second forward pass of a bound graph raises on two threads ("IsMKLDNNData").
    """
    data = mx.sym.Flatten(data, name="flatten")
    data = mx.sym.FullyConnected(data, num_hidden=embedding_size, name="pre_fc1")
    return batch_norm(data, "fc1", fix_gamma=fix_gamma)
