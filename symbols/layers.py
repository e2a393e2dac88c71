"""What networks and losses share: the input's scaling, the closing dense embedding, an embedding's direction."""

from __future__ import annotations

from vargface.runtime import mx

__all__ = ["batch_norm", "direction", "embedding_layer", "prelu", "scaled_input"]

# The norm below which an embedding's gradient stops to grow: 65504 / 100, so that a loss whose gradient at unit norm is
# below 655 (margin softmax: about scale * (1 + m1); Eq. 5: 2 * weight) fits into float16.
_SHORTEST = 0.01


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


def direction(embedding: mx.sym.Symbol) -> mx.sym.Symbol:
    """Return the rows of `embedding` (N, D), float32 or float16, at unit norm, float32.

    The norm is sqrt(sum of squares + 1e-10): exact for rows of norm 0.01..1e18, the cosine 5e-5 off at 1e-3. A zero
    row's direction is zero, and so is that of a row whose square overflows. The gradient is exact from norm 0.01 on;
    that of a shorter row is what it would be at 0.01: finite in float16, and no step throws a row near zero far away.
    """
    embedding = mx.sym.cast(embedding, dtype="float32")
    exact = mx.sym.L2Normalization(embedding, mode="instance")
    norm = mx.sym.sqrt(mx.sym.sum(mx.sym.square(embedding), axis=1, keepdims=True) + 1e-10)
    share = mx.sym.BlockGrad(mx.sym.clip(norm / _SHORTEST, 0, 1))
    bounded = mx.sym.broadcast_mul(exact, share)  # the value is made good, the gradient is not
    return bounded + mx.sym.BlockGrad(exact - bounded)
