"""MobileFaceNet y1 and y2, the baselines of the LFR challenge: InsightFace's `fmobilefacenet` (arXiv 1804.07573).

| variant | blocks     | embedding | parameters (learnable) | challenge FLOPs |
| ------- | ---------- | --------- | ---------------------- | --------------- |
| `y1`    | 1, 4, 6, 2 | 128-d     | 1,003,264              | 439.8 M         |
| `y2`    | 2, 8, 16, 4 | 256-d    |                        | 933,336,950     |
"""

from __future__ import annotations

from vargface.runtime import mx
from vargface.symbols.layers import batch_norm, embedding_layer, prelu, scaled_input

__all__ = ["RESIDUAL_NORM", "VARIANTS", "get_symbol"]

# blocks before and between the three down-samplings, and the embedding's size
VARIANTS = {"y1": ((1, 4, 6, 2), 128), "y2": ((2, 8, 16, 4), 256)}
# InsightFace leaves MXNet's default here, unlike in its other networks
EPS = 1e-3
# the batch norms that close the body of a block, before the shortcut is added: a pattern of their names' end
RESIDUAL_NORM = r"_block\d+_conv_proj_batchnorm"


def _conv(data, channels: int, name: str, *, kernel: int = 1, stride: int = 1, pad: int = 0, groups: int = 1, act=True):
    data = mx.sym.Convolution(
        data,
        name=f"{name}_conv2d",
        num_filter=channels,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        pad=(pad, pad),
        num_group=groups,
        no_bias=True,
    )
    data = batch_norm(data, f"{name}_batchnorm", eps=EPS)
    return prelu(data, f"{name}_relu") if act else data


def _bottleneck(data, channels: int, hidden: int, name: str, *, stride: int):
    """1x1 to `hidden`, 3x3 depthwise with `stride`, linear 1x1 to `channels`."""
    data = _conv(data, hidden, f"{name}_conv_sep")
    data = _conv(data, hidden, f"{name}_conv_dw", kernel=3, stride=stride, pad=1, groups=hidden)
    return _conv(data, channels, f"{name}_conv_proj", act=False)


def _residual_stage(data, blocks: int, channels: int, hidden: int, name: str):
    for block in range(blocks):
        data = _bottleneck(data, channels, hidden, f"{name}_block{block}", stride=1) + data
    return data


def get_symbol(variant: str = "y1", embedding_size: int | None = None) -> mx.sym.Symbol:
    """Return MobileFaceNet from `data` (N, 3, 112, 112), RGB 0..255, to `fc1` (N, embedding_size), not normalised.

    embedding_size: None takes the variant's own (y1 128, y2 256). Raises ValueError for an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: must be one of {', '.join(VARIANTS)}")
    blocks, own_size = VARIANTS[variant]
    with mx.name.NameManager():  # see vargfacenet.get_symbol
        data = _conv(scaled_input(identity=False), 64, "conv_1", kernel=3, stride=2, pad=1)
        if blocks[0] == 1:
            data = _conv(data, 64, "conv_2_dw", kernel=3, pad=1, groups=64)
        else:
            data = _residual_stage(data, blocks[0], 64, 64, "res_2")
        data = _bottleneck(data, 64, 128, "dconv_23", stride=2)
        data = _residual_stage(data, blocks[1], 64, 128, "res_3")
        data = _bottleneck(data, 128, 256, "dconv_34", stride=2)
        data = _residual_stage(data, blocks[2], 128, 256, "res_4")
        data = _bottleneck(data, 128, 512, "dconv_45", stride=2)
        data = _residual_stage(data, blocks[3], 128, 256, "res_5")
        data = _conv(data, 512, "conv_6sep")
        data = _conv(data, 512, "conv_6dw7_7", kernel=7, groups=512, act=False)
        return embedding_layer(data, embedding_size or own_size, fix_gamma=True)
