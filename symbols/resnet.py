"""LResNet-E-IR, the teacher: InsightFace's `fresnet`, "unit 3, input 1, output E" (arXiv 1801.07698, section 3.2).

Challenge FLOPs (512-d, output E): 34 layers 8.914 G, 50 layers 12.613 G, 100 layers 24,169,929,728; tests assert them.
"""

from __future__ import annotations

from vargface.runtime import mx
from vargface.symbols.layers import batch_norm, embedding_layer, prelu, scaled_input

__all__ = ["OUTPUTS", "RESIDUAL_NORM", "STAGE_UNITS", "get_symbol"]

STAGE_UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
WIDTHS = (64, 64, 128, 256, 512)
OUTPUTS = ("E", "FC")
# the batch norms that close the body of a block, before the shortcut is added: a pattern of their names' end
RESIDUAL_NORM = r"_bn3"


def _conv(data, channels: int, name: str, *, kernel: int = 3, stride: int = 1):
    return mx.sym.Convolution(
        data,
        name=name,
        num_filter=channels,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        pad=(kernel // 2, kernel // 2),
        no_bias=True,
    )


def _unit(data, channels: int, name: str, *, stride: int, dim_match: bool):
    """BN, 3x3, BN, PReLU, 3x3 (stride), BN; shortcut 1x1 + BN where shapes change; no activation on the sum."""
    body = _conv(batch_norm(data, f"{name}_bn1"), channels, f"{name}_conv1")
    body = prelu(batch_norm(body, f"{name}_bn2"), f"{name}_relu1")
    body = batch_norm(_conv(body, channels, f"{name}_conv2", stride=stride), f"{name}_bn3")
    shortcut = data
    if not dim_match:
        shortcut = _conv(data, channels, f"{name}_conv1sc", kernel=1, stride=stride)
        shortcut = batch_norm(shortcut, f"{name}_sc")
    return body + shortcut


def get_symbol(
    num_layers: int = 100, embedding_size: int = 512, output: str = "E", multiplier: float = 1.0
) -> mx.sym.Symbol:
    """Return LResNet-IR from `data` (N, 3, 112, 112), RGB 0..255, to `fc1` (N, embedding_size), not normalised.

    num_layers: 18, 34, 50 or 100. output: `E` (BN, dropout 0.4, fully connected, BN) or `FC` (without the dropout).
    multiplier: width relative to 64/128/256/512; anything but 1 is ours, for teachers small enough for a demo.
    Raises ValueError for a depth, an output or a width that does not exist.
    """
    if num_layers not in STAGE_UNITS:
        raise ValueError(f"num_layers {num_layers}: must be one of {', '.join(map(str, STAGE_UNITS))}")
    if output not in OUTPUTS:
        raise ValueError(f"output {output!r}: must be one of {', '.join(OUTPUTS)}")
    widths = [int(width * multiplier) for width in WIDTHS]
    if min(widths) < 1:
        raise ValueError(f"multiplier {multiplier}: leaves no channels in the first stage (64 x multiplier)")
    with mx.name.NameManager():  # see vargfacenet.get_symbol
        data = _conv(scaled_input(), widths[0], "conv0")
        data = prelu(batch_norm(data, "bn0"), "relu0")
        for stage, units in enumerate(STAGE_UNITS[num_layers], start=1):
            for unit in range(1, units + 1):
                first = unit == 1
                name = f"stage{stage}_unit{unit}"
                data = _unit(data, widths[stage], name, stride=2 if first else 1, dim_match=not first)
        data = batch_norm(data, "bn1")
        if output == "E":
            data = mx.sym.Dropout(data, p=0.4, name="dropout0")
        return embedding_layer(data, embedding_size, fix_gamma=True)
