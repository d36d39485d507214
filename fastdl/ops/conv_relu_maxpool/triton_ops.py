"""The Triton kernels as operators: which calls they serve, how they are launched.

`fastdl::<op>_triton` has the signature of `fastdl::<op>`: one dispatch key holds one kernel. Importing triton takes
seconds, so the kernels are imported by the first call, inside the operator, where Dynamo does not look.
"""

from __future__ import annotations

import contextlib
import importlib.util

import torch
from torch import Tensor

from ... import _extension
from ..raw_operators import define_triton
from . import registration, schema, triton_tiles
from .geometry import Geometry

INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = INSTALLED and _extension.triton_interpreted()

# The algorithm's code in the operators' arguments -> how a product of two fp32 numbers is made.
PRECISIONS = {3: "ieee", 4: "tf32"}

_INT32 = 2**31 - 2**16


def _unavailable(x: Tensor) -> str | None:
    if not INSTALLED:
        return "triton is not installed"
    if x.device.type != "cuda" and not (INTERPRETED and x.device.type == "cpu"):
        return f"x is on {x.device}"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no kernel for {x.dtype}"
    if x.is_cuda and x.dtype == torch.bfloat16 and torch.cuda.get_device_properties(x.device).major < 8:
        return "bfloat16 needs compute capability 8.0"
    return None


def refusal(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not `implicit_gemm`, whose fp32 products are exact; None if it serves."""
    if (reason := _unavailable(x) or g.window_refusal()) is not None:
        return reason
    if g.pool_size and any((g.pool_size[i] - 1) * g.pool_dilation[i] >= g.pool_stride[i] for i in (0, 1)):
        return "pool windows overlap: the convolution would be computed more than once"
    if g.groups > 1 and min(weight.shape[1], weight.shape[0] // g.groups) < 16:
        return "fewer than 16 channels a group cannot fill a matrix product"
    if weight.numel() >= _INT32:
        return "weight has 2^31 elements or more"
    return None


def refusal_composed(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not `composed`: torch's convolution, then one fused pass."""
    return _unavailable(x) or g.window_refusal()


def _pool_constants(g: Geometry) -> dict[str, object]:
    return {
        "POOL_SIZE": g.pool_size or (1, 1),
        "POOL_STRIDE": g.pool_stride or (1, 1),
        "POOL_PADDING": g.pool_padding or (0, 0),
        "POOL_DILATION": g.pool_dilation or (1, 1),
    }


def _constants(weight: Tensor, g: Geometry, algorithm: int) -> dict[str, object]:
    return {
        "GROUPS": g.groups,
        "C_GROUP": weight.shape[1],
        "C_OUT_GROUP": weight.shape[0] // g.groups,
        "KERNEL": tuple(weight.shape[2:]),
        "STRIDE": g.stride,
        "PADDING": g.padding,
        "DILATION": g.dilation,
        "INPUT_PRECISION": PRECISIONS[algorithm],
        # The default changes between versions of triton.
        "enable_fp_fusion": True,
        **_pool_constants(g),
    }


def _needs_64_bits(*tensors: Tensor) -> bool:
    return any(sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) >= _INT32 for t in tensors)


def _scattered(t: Tensor, channels: int) -> bool:
    return channels < 16 or t.stride(1) != 1


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def conv_relu_maxpool(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: list[int], algorithm: int, save_record: bool
) -> tuple[Tensor, Tensor]:
    from .triton_forward import conv_relu_maxpool_forward_kernel

    g = Geometry.unpack(geometry)
    output, record = registration.fake_conv_relu_maxpool(x, weight, bias, geometry, algorithm, save_record)
    if output.numel() == 0:
        return output, record
    constants = _constants(weight, g, algorithm)
    (CH, CW), (OH, OW) = g.conv_size(x, weight), output.shape[2:]
    window = constants["POOL_SIZE"][0] * constants["POOL_SIZE"][1]
    tiles = triton_tiles.forward_tiles(
        constants["C_OUT_GROUP"],
        window,
        _scattered(x, weight.shape[1]),
        PRECISIONS[algorithm],
        x.element_size(),
    )
    pixels = x.shape[0] * OH * OW
    column_blocks = -(-constants["C_OUT_GROUP"] // tiles.BLOCK_N) * g.groups
    with _on_device_of(x):
        conv_relu_maxpool_forward_kernel[(-(-pixels // tiles.BLOCK_M) * column_blocks,)](
            x, weight.permute(2, 3, 1, 0).contiguous(), bias, output, record if record.numel() else None,
            pixels, *x.shape[2:], CH, CW, OH, OW, *x.stride(), *output.stride(),
            **constants, POSITIONS=triton_tiles.positions_at_once(window),
            INDEX_64=_needs_64_bits(x, output), **tiles._asdict(),
        )  # fmt: skip
    return output, record


def conv_relu_maxpool_backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor,
    geometry: list[int],
    algorithm: int,
    *needs: bool,
) -> tuple[Tensor, ...]:
    g = Geometry.unpack(geometry)
    gradients = registration.fake_conv_relu_maxpool_backward(
        grad_output, x, weight, saved, geometry, algorithm, *needs
    )
    if grad_output.numel() == 0:
        return tuple(t.zero_() for t in gradients)
    constants = {**_constants(weight, g, algorithm), "POOLED": bool(g.pool_size)}
    grad_output = _like_saved(grad_output, saved)
    with _on_device_of(x):
        if needs[0]:
            _grad_input(grad_output, saved, weight, gradients[0], g, constants)
        if needs[1] or needs[2]:
            _grad_weight(grad_output, saved, x, *gradients[1:], constants)
    return gradients


def _like_saved(grad_output: Tensor, saved: Tensor) -> Tensor:
    # One offset reads both.
    if grad_output.stride() == saved.stride():
        return grad_output
    return torch.empty_like(saved, dtype=grad_output.dtype).copy_(grad_output)


def _grad_input(
    grad_output: Tensor, saved: Tensor, weight: Tensor, grad_input: Tensor, g: Geometry, constants: dict
) -> None:
    from .triton_backward import conv_relu_maxpool_grad_input_kernel

    C_out_group = constants["C_OUT_GROUP"]
    tiles = triton_tiles.grad_input_tiles(
        weight.shape[1],
        _scattered(grad_output, C_out_group),
        constants["INPUT_PRECISION"],
        weight.element_size(),
    )
    by_group = weight.unflatten(0, (g.groups, C_out_group))
    pixels = grad_input.shape[0] * grad_input.shape[2] * grad_input.shape[3]
    column_blocks = -(-weight.shape[1] // tiles.BLOCK_N) * g.groups
    conv_relu_maxpool_grad_input_kernel[(-(-pixels // tiles.BLOCK_M) * column_blocks,)](
        grad_output, saved, by_group.permute(3, 4, 1, 0, 2).contiguous(), grad_input,
        pixels, *grad_input.shape[2:], *g.conv_size(grad_input, weight), *grad_output.shape[2:],
        *grad_output.stride(), *grad_input.stride(),
        **constants, INDEX_64=_needs_64_bits(grad_output, grad_input), **tiles._asdict(),
    )  # fmt: skip


def _grad_weight(
    grad_output: Tensor, saved: Tensor, x: Tensor, grad_weight: Tensor, grad_bias: Tensor, constants: dict
) -> None:
    from .triton_backward import conv_relu_maxpool_grad_weight_kernel, sum_parts_kernel

    C_group, C_out_group, groups = constants["C_GROUP"], constants["C_OUT_GROUP"], constants["GROUPS"]
    taps = constants["KERNEL"][0] * constants["KERNEL"][1]
    window = constants["POOL_SIZE"][0] * constants["POOL_SIZE"][1]
    tiles = triton_tiles.grad_weight_tiles(
        C_group, C_out_group, taps, _scattered(x, C_group) or _scattered(grad_output, C_out_group),
        constants["INPUT_PRECISION"], x.element_size(),
    )  # fmt: skip
    pixels = grad_output.numel() // grad_output.shape[1]
    column_blocks = -(-C_group * taps // tiles.BLOCK_N) if grad_weight.numel() else 1
    blocks = -(-C_out_group // tiles.BLOCK_M) * groups * column_blocks
    parts, pixels_per_part = triton_tiles.grad_weight_parts(
        blocks, pixels, tiles.BLOCK_K, grad_weight.numel()
    )
    weight_parts, bias_parts = (
        x.new_empty(parts, t.numel(), dtype=torch.float32) if t.numel() else None
        for t in (grad_weight, grad_bias)
    )
    conv_relu_maxpool_grad_weight_kernel[(blocks, parts)](
        grad_output, saved, x, weight_parts, bias_parts,
        pixels, pixels_per_part, *x.shape[2:], *grad_output.shape[2:], *grad_output.stride(), *x.stride(),
        **constants, POSITIONS=triton_tiles.positions_at_once(window),
        INDEX_64=_needs_64_bits(x, grad_output), **tiles._asdict(),
    )  # fmt: skip
    block = triton_tiles.ELEMENTWISE_BLOCK
    for partial, total in ((weight_parts, grad_weight), (bias_parts, grad_bias)):
        if partial is not None:
            sum_parts_kernel[(-(-total.numel() // block),)](partial, total, parts, total.numel(), BLOCK=block)


def bias_relu_maxpool(
    conv: Tensor, bias: Tensor | None, pool: list[int], save_record: bool
) -> tuple[Tensor, Tensor]:
    from .triton_pool import bias_relu_maxpool_kernel

    g = Geometry.unpack_pool(pool)
    output, record = registration.fake_bias_relu_maxpool(conv, bias, pool, save_record)
    block = triton_tiles.ELEMENTWISE_BLOCK
    if output.numel():
        with _on_device_of(conv):
            bias_relu_maxpool_kernel[(-(-output.numel() // block),)](
                conv, bias, output, record if record.numel() else None,
                output.numel(), conv.shape[1], *conv.shape[2:], *output.shape[2:], *conv.stride(),
                **_pool_constants(g), CHANNELS_LAST=not output.is_contiguous(),
                INDEX_64=_needs_64_bits(conv, output), BLOCK=block,
            )  # fmt: skip
    return output, record


def bias_relu_maxpool_backward(
    grad_output: Tensor, saved: Tensor, CH: int, CW: int, pool: list[int]
) -> tuple[Tensor, Tensor]:
    from .triton_pool import bias_relu_maxpool_grad_kernel

    g = Geometry.unpack_pool(pool)
    grad_conv, grad_bias = registration.fake_bias_relu_maxpool_backward(grad_output, saved, CH, CW, pool)
    if grad_output.numel() == 0:
        return grad_conv.zero_(), grad_bias.zero_()
    grad_output = _like_saved(grad_output, saved)
    block = triton_tiles.ELEMENTWISE_BLOCK
    # The bias gradient of a 1x1 convolution from one channel, whose weight is not wanted.
    one_channel = grad_output.new_empty((grad_output.shape[1], 1, 1, 1))
    constants = {**_constants(one_channel, g, 3), "POOLED": bool(g.pool_size)}
    with _on_device_of(grad_output):
        bias_relu_maxpool_grad_kernel[(-(-grad_conv.numel() // block),)](
            grad_output, saved, grad_conv,
            grad_conv.numel(), grad_conv.shape[1], CH, CW, *grad_output.shape[2:], *grad_output.stride(),
            **_pool_constants(g), POOLED=bool(g.pool_size), CHANNELS_LAST=not grad_conv.is_contiguous(),
            INDEX_64=_needs_64_bits(grad_output, grad_conv), BLOCK=block,
        )  # fmt: skip
        _grad_weight(grad_output, saved, grad_conv, grad_conv.new_empty(0), grad_bias, constants)
    return grad_conv, grad_bias


library = define_triton(schema.SCHEMAS, globals(), vars(registration), INTERPRETED)
