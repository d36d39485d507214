"""The Triton kernels as operators: which calls they serve, how they are launched.

`fastdl::attention_triton` has the signature of `fastdl::attention`: one dispatch key holds one kernel. Importing triton
takes seconds, so the kernels are imported by the first call, inside the operator, where Dynamo does not look.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from ... import _extension
from ..raw_operators import define_triton
from . import registration, schema, triton_tiles
from .call import Call, length
from .reference import Context
from .triton_launch import OPEN, Launch, on_device_of, rows_of, strides_of

INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = INSTALLED and _extension.triton_interpreted()
LARGEST_D = 256


def refusal(q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call, return_lse: bool) -> str | None:
    """Why not the Triton kernels; None if they serve."""
    if not INSTALLED:
        return "triton is not installed"
    if q.device.type != "cuda" and not (INTERPRETED and q.device.type == "cpu"):
        return f"q is on {q.device}"
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no kernel for {q.dtype}"
    on_gpu, bfloat16 = q.device.type == "cuda", q.dtype == torch.bfloat16
    if on_gpu and bfloat16 and torch.cuda.get_device_properties(q.device).major < 8:
        return "bfloat16 needs compute capability 8.0"
    if max(q.shape[-1], v.shape[-1]) > LARGEST_D:
        return f"a head is larger than {LARGEST_D}"
    if max(length(q), length(k)) >= OPEN:
        return f"{OPEN} rows or more"
    if on_gpu and q.dtype != torch.float32 and triton_tiles.narrows(q.shape[-1], v.shape[-1]):
        return (
            "a head of v that needs a smaller block than one of k gave wrong results on an H200 (triton 3.6)"
        )
    return None


def attention(
    q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | None | list[int] | list[float]
) -> tuple[Tensor, Tensor]:
    from .triton_forward import attention_forward_kernel

    context, call, decode = Context(*rest[:7]), Call.unpack(*rest[7:9]), rest[7][-1] == 1
    tiles = triton_tiles.decode_tiles if decode else triton_tiles.forward_tiles
    launch = Launch(q, k, v, context, call, tiles(q.shape[-1], v.shape[-1], q.element_size()))
    output = launch.empty(q, *q.shape[:-1], v.shape[-1])
    rows = (launch.H, launch.L_q) if launch.packed else q.shape[:-1]
    lse = launch.empty(q.new_empty(0, dtype=torch.float64), *rows)
    if lse.numel() and launch.max_q:
        if decode:
            _decode(launch, context, output, lse)
            return output, lse
        with on_device_of(q):
            attention_forward_kernel[launch.query_grid()](
                launch.q, launch.k, launch.v, launch.mask, context.bias, launch.slopes, launch.sink, launch.seed,
                *launch.starts, output, lse, *launch.strides, *strides_of(output), *launch.lse_strides,
                *launch.sizes, launch.max_q, *launch.sees, *launch.numbers, **launch.constants,
            )  # fmt: skip
    return output, lse


def _decode(launch: Launch, context: Context, output: Tensor, lse: Tensor) -> None:
    from . import triton_decode

    tiles, sizes = launch.tiles, launch.sizes
    blocks = -(-launch.H // launch.H_kv * launch.max_q // tiles.BLOCK_M) * launch.B * launch.H_kv
    splits = launch.splits(blocks)
    places = (*strides_of(output), *launch.lse_strides)
    partial = None
    if splits > 1:
        partial = output.new_empty((blocks, splits, tiles.BLOCK_M, 2 + tiles.BLOCK_DV), dtype=torch.float32)
    with on_device_of(output):
        triton_decode.attention_decode_kernel[(blocks * splits,)](
            launch.q, launch.k, launch.v, launch.mask, context.bias, launch.slopes, launch.sink, launch.seed,
            *launch.starts, output, lse, partial, *launch.strides, *places,
            *sizes, launch.max_q, splits, *launch.sees, *launch.numbers, **launch.constants,
        )  # fmt: skip
        if partial is not None:
            triton_decode.attention_combine_kernel[(blocks * tiles.BLOCK_M,)](
                partial, launch.starts[0], output, lse, *places, *sizes[:3], launch.max_q, splits,
                D_V=launch.v.shape[-1], BLOCK_DV=tiles.BLOCK_DV, BLOCK_M=tiles.BLOCK_M,
                BLOCK_S=triton_tiles.COMBINED_SPLITS,
            )  # fmt: skip


def attention_backward(
    grad_output: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    *rest: Tensor | None | list[int] | list[float] | bool,
) -> tuple[Tensor, ...]:
    from . import triton_backward, triton_bias

    context, call, (need_bias, need_sink) = Context(*rest[:7]), Call.unpack(*rest[7:9]), rest[9:]
    tiles = triton_tiles.backward_tiles(q.shape[-1], v.shape[-1], q.element_size())
    launch = Launch(q, k, v, context, call, tiles)
    gradients = [launch.empty(t, *t.shape) for t in (q, k, v)]
    grad_output, output, lse = rows_of(grad_output), output.contiguous(), lse.contiguous()
    delta = launch.empty(q.new_empty(0, dtype=torch.float32), *lse.shape)
    tensors = (launch.q, launch.k, launch.v, launch.mask, context.bias, launch.slopes, launch.seed)
    arrived = (*strides_of(grad_output), *launch.lse_strides)
    numbers = (*launch.sees, *launch.numbers)
    rows = launch.max_q if lse.numel() else 0
    with on_device_of(q):
        if rows:
            triton_backward.attention_delta_kernel[launch.query_grid()](
                output, grad_output, None if grad_lse is None else grad_lse.contiguous(), launch.starts[0], delta,
                *strides_of(output), *arrived, launch.H, launch.L_q, launch.max_q,
                D_V=v.shape[-1], BLOCK_DV=tiles.BLOCK_DV, BLOCK_M=tiles.BLOCK_M,
            )  # fmt: skip
            triton_backward.attention_grad_q_kernel[launch.query_grid()](
                *tensors, *launch.starts, grad_output, lse, delta, gradients[0],
                *launch.strides, *arrived, *strides_of(gradients[0]),
                *launch.sizes, launch.max_q, *numbers, **launch.constants,
            )  # fmt: skip
        if launch.max_k and k.numel() + v.numel():
            grid = (-(-launch.max_k // tiles.BLOCK_N) * launch.B * launch.H_kv,)
            triton_backward.attention_grad_kv_kernel[grid](
                *tensors, *launch.starts, grad_output, lse, delta, *gradients[1:],
                *launch.strides, *arrived, *strides_of(gradients[1]), *strides_of(gradients[2]),
                *launch.sizes, launch.max_k, *numbers, **launch.constants,
            )  # fmt: skip
        grad_bias = q.new_empty(context.bias.shape if need_bias else 0)
        if grad_bias.numel():
            b, h, i, j = grad_bias.shape
            grid = (b * h * -(-i // tiles.BLOCK_M) * -(-j // tiles.BLOCK_N),)
            triton_bias.attention_grad_bias_kernel[grid](
                *tensors, grad_output, lse, delta, grad_bias,
                *launch.strides, *arrived, *grad_bias.shape, launch.B, *launch.sizes, *numbers, **launch.constants,
            )  # fmt: skip
    return *gradients, grad_bias, _grad_sink(context, launch, lse, delta, need_sink)


def _grad_sink(context: Context, launch: Launch, lse: Tensor, delta: Tensor, needed: bool) -> Tensor:
    if not needed:
        return lse.new_empty(0, dtype=torch.float32)
    share = (context.sink.double()[:, None] - lse).exp() * delta
    return -share.sum(-1 if launch.packed else (0, 2)).float()


library = define_triton(schema.SCHEMAS, globals(), vars(registration), INTERPRETED)
