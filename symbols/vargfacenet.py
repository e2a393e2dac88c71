"""VarGFaceNet: a face network of variable group convolutions, 8 channels a group (arXiv 1910.04985).

Two variants of one network, named for whose checkpoints they load:

| variant       | squeeze-excitation | gamma of `fc1` | parameters | learnable | challenge FLOPs |
| ------------- | ------------------ | -------------- | ---------- | --------- | --------------- |
| `authors`     | on                 | learned        | 526        | 5,198,292 | 1,022,864,152   |
| `insightface` | off                | fixed at 1     | 466        | 4,957,512 | 1,022,388,952   |

Counts are for the paper's width (multiplier 1.25) and a 512-d embedding; tests assert them.
"""

from __future__ import annotations

from vargface.runtime import mx
from vargface.symbols.layers import batch_norm, embedding_layer, prelu, scaled_input

__all__ = ["GROUP_CHANNELS", "RESIDUAL_NORM", "VARIANTS", "get_symbol"]

VARIANTS = ("authors", "insightface")
GROUP_CHANNELS = 8
BASE_WIDTHS = (32, 64, 128, 256)
STAGE_UNITS = (3, 7, 4)
LAST_WIDTH = 1024
SE_RATIO = 4
# the batch norms that close the body of a block, before the shortcut is added: a pattern of their names' end
RESIDUAL_NORM = r"_sep2_data_conv2d_pointwise_bn"


def _group_conv(data, in_channels: int, out_channels: int, name: str, *, kernel: int, stride: int, pad: int):
    """Convolve with `in_channels / 8` groups: the number of groups varies, their width does not."""
    return mx.sym.Convolution(
        data,
        name=name,
        num_filter=out_channels,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        pad=(pad, pad),
        num_group=in_channels // GROUP_CHANNELS,
        no_bias=True,
    )


def _pointwise_conv(data, out_channels: int, name: str, *, no_bias: bool = True):
    return mx.sym.Convolution(data, name=name, num_filter=out_channels, kernel=(1, 1), no_bias=no_bias)


def _separable(data, in_channels: int, out_channels: int, name: str, *, factor: int, stride: int = 1, act: bool):
    """3x3 group convolution to `in_channels * factor`, BN, PReLU, 1x1 to `out_channels`, BN and, with `act`, PReLU."""
    depthwise, pointwise = f"{name}_conv2d_depthwise", f"{name}_conv2d_pointwise"
    data = _group_conv(data, in_channels, in_channels * factor, depthwise, kernel=3, stride=stride, pad=1)
    data = prelu(batch_norm(data, f"{depthwise}_bn"), f"{depthwise}_act")
    data = batch_norm(_pointwise_conv(data, out_channels, pointwise), f"{pointwise}_bn")
    return prelu(data, f"{pointwise}_act") if act else data


def _squeeze_excite(data, channels: int, name: str):
    scale = mx.sym.Pooling(data, global_pool=True, kernel=(7, 7), pool_type="avg", name=f"{name}_se_pool1")
    scale = _pointwise_conv(scale, channels // SE_RATIO, f"{name}_se_conv1", no_bias=False)
    scale = _pointwise_conv(prelu(scale, f"{name}_se_act1"), channels, f"{name}_se_conv2", no_bias=False)
    return mx.sym.broadcast_mul(data, mx.sym.sigmoid(scale, name=f"{name}_se_sigmoid"))


def _normal_block(data, in_channels: int, out_channels: int, name: str, *, factor: int, stride: int, se: bool):
    """Two separable units (+ squeeze-excitation) + shortcut, PReLU on the sum."""
    body = _separable(data, in_channels, out_channels, f"{name}_sep1_data", factor=factor, stride=stride, act=True)
    body = _separable(body, out_channels, out_channels, f"{name}_sep2_data", factor=factor, act=False)
    if se:
        body = _squeeze_excite(body, out_channels, name)
    shortcut = data
    if stride != 1 or in_channels != out_channels:
        shortcut_name = f"{name}_shortcut"
        shortcut = _separable(data, in_channels, out_channels, shortcut_name, factor=factor, stride=stride, act=False)
    return prelu(body + shortcut, f"{name}_out_data_act")


def _down_sampling_block(data, in_channels: int, out_channels: int, name: str):
    """Two parallel stride-2 units, summed, PReLU, a third unit, + a stride-2 shortcut unit, PReLU on the sum."""
    half, third = {"factor": 2, "stride": 2, "act": False}, {"factor": 2, "act": False}
    first = _separable(data, in_channels, out_channels, f"{name}_sep1_data_branch", **half)
    second = _separable(data, in_channels, out_channels, f"{name}_sep2_data_branch", **half)
    body = prelu(first + second, f"{name}_sep1_data_act")
    body = _separable(body, out_channels, out_channels, f"{name}_sep2_data", **third)
    shortcut = _separable(data, in_channels, out_channels, f"{name}_shortcut", **half)
    return prelu(body + shortcut, f"{name}_out_data_act")


def _widths(multiplier: float) -> list[int]:
    widths = [base * multiplier for base in BASE_WIDTHS]
    if any(width <= 0 or width % GROUP_CHANNELS for width in widths):
        raise ValueError(f"multiplier {multiplier}: must make 32 x multiplier a multiple of 8, e.g. 0.25, 0.5, 1, 1.25")
    return [int(width) for width in widths]


def get_symbol(embedding_size: int = 512, multiplier: float = 1.25, variant: str = "authors") -> mx.sym.Symbol:
    """Return VarGFaceNet from `data` (N, 3, 112, 112), RGB 0..255, to `fc1` (N, embedding_size), not normalised.

    multiplier: width of all stages relative to 32/64/128/256; the paper's network is 1.25.
    variant: `authors` or `insightface` (see the table above).
    Raises ValueError for an unknown variant or a multiplier that gives groups of other than 8 channels.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: must be one of {', '.join(VARIANTS)}")
    se = variant == "authors"
    widths = _widths(multiplier)
    # a name manager of its own: the nodes nobody names are called the same however often this is called
    with mx.name.NameManager():
        data = scaled_input()
        data = mx.sym.Convolution(
            data, name="vargface_head_conv1", num_filter=widths[0], kernel=(3, 3), pad=(1, 1), no_bias=True
        )
        data = prelu(batch_norm(data, "vargface_head_conv1_bn"), "vargface_head_conv1_act")
        data = _normal_block(data, widths[0], widths[0], "vargface_head_head_pooling", factor=1, stride=2, se=se)
        for stage, units in enumerate(STAGE_UNITS, start=2):
            in_channels, channels = widths[stage - 2 : stage]
            data = _down_sampling_block(data, in_channels, channels, f"vargface_stage_{stage}_unit_1")
            for unit in range(2, units + 1):
                name = f"vargface_stage_{stage}_unit_{unit}"
                data = _normal_block(data, channels, channels, name, factor=2, stride=1, se=se)
        data = prelu(batch_norm(_pointwise_conv(data, LAST_WIDTH, "embed_convx"), "embed_convx_bn"), "embed_convx_act")
        data = _group_conv(data, LAST_WIDTH, LAST_WIDTH, "embed_convx_depthwise", kernel=7, stride=1, pad=0)
        data = batch_norm(data, "embed_convx_depthwise_bn")
        data = batch_norm(_pointwise_conv(data, LAST_WIDTH // 2, "embed_convx_pointwise"), "embed_convx_pointwise_bn")
        data = prelu(data, "embed_convx_pointwise_act")
        return embedding_layer(data, embedding_size, fix_gamma=variant == "insightface")
