"""The Triton kernel as an operator: which calls it serves, how it is launched.

`fastdl::conv2d_epilogue_triton` has the signature of `fastdl::conv2d_epilogue`: one dispatch key holds one kernel.
Importing triton takes seconds, so the kernel is imported by the first call, inside the operator, where Dynamo does
not look.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from ..conv_relu_maxpool.triton_ops import INTERPRETED
from ..raw_operators import define_triton
from . import registration, schema, triton_tiles
from .activations import named

_INT32 = 2**31 - 2**16


def conv2d_epilogue(
    y: Tensor, bias: Tensor | None, scale: Tensor | None, residual: Tensor | None, activation: int
) -> None:
    from .triton_kernels import conv2d_epilogue_kernel

    named(activation)
    if y.numel() == 0:
        return
    N, C, plane = y.shape[0], y.shape[1], y.shape[2] * y.shape[3]
    channels_last = not y.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    if not y.is_contiguous(memory_format=memory_format):
        raise ValueError(f"y must be contiguous or channels_last, got strides {list(y.stride())}")
    residual = None if residual is None else residual.contiguous(memory_format=memory_format)
    bias, scale = (None if t is None else t.contiguous() for t in (bias, scale))
    rows, columns = (N * plane, C) if channels_last else (N * C, plane)
    BLOCK_M, BLOCK_N = triton_tiles.epilogue_tile(columns)
    device = torch.cuda.device(y.device) if y.is_cuda else contextlib.nullcontext()
    with device:
        conv2d_epilogue_kernel[(-(-rows // BLOCK_M) * -(-columns // BLOCK_N),)](
            y, bias, scale, residual, rows, columns, C,
            CHANNELS_LAST=channels_last, ACTIVATION=activation, INDEX_64=y.numel() >= _INT32,
            BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N,
        )  # fmt: skip


_SCHEMAS = [each for each in schema.SCHEMAS if each.startswith("conv2d_epilogue(")]
library = define_triton(_SCHEMAS, globals(), vars(registration), INTERPRETED)
