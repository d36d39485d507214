"""The Triton kernels as operators: which calls they serve, how they are launched.

`fastdl::attention_triton` has the signature of `fastdl::attention`: one dispatch key holds one kernel. Importing triton
takes seconds, so the kernels are imported by the first call, inside the operator, where Dynamo does not look.
"""

from __future__ import annotations

import contextlib
import importlib.util

import torch
from torch import Tensor

from ... import _extension
from ..philox import dropout_threshold
from ..raw_operators import define_triton
from . import registration, schema, triton_tiles
from .call import Call
from .reference import Context

INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = INSTALLED and _extension.triton_interpreted()
LARGEST_D = 256

# An open side of the window: further than any key.
_OPEN = 1 << 29


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
    if max(q.shape[-2], k.shape[-2]) >= _OPEN:
        return f"{_OPEN} rows or more"
    return None


def _on_device_of(t: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(t.device) if t.is_cuda else contextlib.nullcontext()


def _strides(t: Tensor) -> tuple[int, int, int]:
    """Of b, h and l: dense [B, H, L, D], packed [L, H, D]."""
    return t.stride()[:3] if t.dim() == 4 else (0, t.stride(1), t.stride(0))


def _rows(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 or t.shape[-1] <= 1 else t.contiguous()


def _broadcast(t: Tensor | None) -> tuple[int, ...]:
    return (
        (0,) * 4 if t is None else tuple(0 if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True))
    )


class _Launch:
    """What the launches of a call share."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call, tiles: triton_tiles.Tiles
    ) -> None:
        self.q, self.k, self.v, self.context, self.tiles = _rows(q), _rows(k), _rows(v), context, tiles
        self.packed = context.cu_seqlens_q is not None
        self.B = context.cu_seqlens_q.shape[0] - 1 if self.packed else q.shape[0]
        self.H, self.H_kv = q.shape[-2 if self.packed else 1], k.shape[-2 if self.packed else 1]
        self.L_q, self.L_k = (q.shape[0], k.shape[0]) if self.packed else (q.shape[2], k.shape[2])
        self.max_q = min(call.max_q, self.L_q) if self.packed else self.L_q
        self.max_k = min(call.max_k, self.L_k) if self.packed else self.L_k
        mask = context.mask
        self.mask = None if mask is None else mask.view(torch.uint8)
        self.slopes = None if context.alibi_slopes is None else context.alibi_slopes.contiguous()
        self.sink = None if context.sink is None else context.sink.contiguous()
        self.starts = (context.cu_seqlens_q, context.cu_seqlens_k)
        if self.packed:
            self.starts = tuple(t.contiguous() for t in self.starts)
        left, right = call.window
        right = 0 if call.causal else right
        self.sees = (_OPEN if left < 0 else min(left, _OPEN), _OPEN if right < 0 else min(right, _OPEN))
        self.seed = context.seed if call.dropout_p else None
        self.numbers = (
            dropout_threshold(call.dropout_p) - 2**31, call.scale, call.softcap, 1 / (1 - call.dropout_p)
        )  # fmt: skip
        self.constants = {
            "D": q.shape[-1],
            "D_V": v.shape[-1],
            "CAPPED": bool(call.softcap),
            "TOP_LEFT": call.causal == "top_left",
            "RANGED": bool(call.causal) or call.window != (-1, -1),
            **tiles._asdict(),
            # The default changes between versions of triton.
            "enable_fp_fusion": True,
        }
        per_sequence = self.slopes is not None and self.slopes.dim() == 2
        self.strides = (
            *_strides(self.q), *_strides(self.k), *_strides(self.v), *_broadcast(mask), *_broadcast(context.bias),
            self.H if per_sequence else 0,
        )  # fmt: skip
        self.lse_strides = (0, self.L_q) if self.packed else (self.H * self.L_q, self.L_q)
        self.sizes = (self.H, self.H // self.H_kv, self.L_q, self.L_k)

    def query_grid(self) -> tuple[int]:
        return (-(-self.max_q // self.tiles.BLOCK_M) * self.B * self.H,)

    def empty(self, like: Tensor, *shape: int) -> Tensor:
        """Contiguous. Rows of no sequence are 0: on a GPU the content of cu_seqlens is not checked."""
        return like.new_zeros(shape) if self.packed else like.new_empty(shape)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | None | list[int] | list[float]
) -> tuple[Tensor, Tensor]:
    from .triton_forward import attention_forward_kernel

    context, call = Context(*rest[:7]), Call.unpack(*rest[7:9])
    launch = _Launch(
        q, k, v, context, call, triton_tiles.forward_tiles(q.shape[-1], v.shape[-1], q.element_size())
    )
    output = launch.empty(q, *q.shape[:-1], v.shape[-1])
    rows = (launch.H, launch.L_q) if launch.packed else q.shape[:-1]
    lse = launch.empty(q.new_empty(0, dtype=torch.float64), *rows)
    if lse.numel() and launch.max_q:
        with _on_device_of(q):
            attention_forward_kernel[launch.query_grid()](
                launch.q, launch.k, launch.v, launch.mask, context.bias, launch.slopes, launch.sink, launch.seed,
                *launch.starts, output, lse, *launch.strides, *_strides(output), *launch.lse_strides,
                *launch.sizes, launch.max_q, *launch.sees, *launch.numbers, **launch.constants,
            )  # fmt: skip
    return output, lse


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
    launch = _Launch(q, k, v, context, call, tiles)
    gradients = [launch.empty(t, *t.shape) for t in (q, k, v)]
    grad_output, output, lse = _rows(grad_output), output.contiguous(), lse.contiguous()
    delta = launch.empty(q.new_empty(0, dtype=torch.float32), *lse.shape)
    tensors = (launch.q, launch.k, launch.v, launch.mask, context.bias, launch.slopes, launch.seed)
    arrived = (*_strides(grad_output), *launch.lse_strides)
    numbers = (*launch.sees, *launch.numbers)
    rows = launch.max_q if lse.numel() else 0
    with _on_device_of(q):
        if rows:
            triton_backward.attention_delta_kernel[launch.query_grid()](
                output, grad_output, None if grad_lse is None else grad_lse.contiguous(), launch.starts[0], delta,
                *_strides(output), *arrived, launch.H, launch.L_q, launch.max_q,
                D_V=v.shape[-1], BLOCK_DV=tiles.BLOCK_DV, BLOCK_M=tiles.BLOCK_M,
            )  # fmt: skip
            triton_backward.attention_grad_q_kernel[launch.query_grid()](
                *tensors, *launch.starts, grad_output, lse, delta, gradients[0],
                *launch.strides, *arrived, *_strides(gradients[0]),
                *launch.sizes, launch.max_q, *numbers, **launch.constants,
            )  # fmt: skip
        if launch.max_k and k.numel() + v.numel():
            grid = (-(-launch.max_k // tiles.BLOCK_N) * launch.B * launch.H_kv,)
            triton_backward.attention_grad_kv_kernel[grid](
                *tensors, *launch.starts, grad_output, lse, delta, *gradients[1:],
                *launch.strides, *arrived, *_strides(gradients[1]), *_strides(gradients[2]),
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


def _grad_sink(context: Context, launch: _Launch, lse: Tensor, delta: Tensor, needed: bool) -> Tensor:
    if not needed:
        return lse.new_empty(0, dtype=torch.float32)
    share = (context.sink.double()[:, None] - lse).exp() * delta
    return -share.sum(-1 if launch.packed else (0, 2)).float()


library = define_triton(schema.SCHEMAS, globals(), vars(registration), INTERPRETED)
