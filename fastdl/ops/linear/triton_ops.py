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
from ..philox import dropout_threshold
from ..raw_operators import define_triton
from . import registration, schema, triton_tiles
from .activations import BY_OUTPUT, NAMES

INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = INSTALLED and _extension.triton_interpreted()


def refusal(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, dropout_p: float
) -> str | None:
    """Why not Triton; None if it serves."""
    if not INSTALLED:
        return "triton is not installed"
    if x.device.type != "cuda" and not (INTERPRETED and x.device.type == "cpu"):
        return f"x is on {x.device}"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no kernel for {x.dtype}"
    if x.is_cuda and x.dtype == torch.bfloat16 and torch.cuda.get_device_properties(x.device).major < 8:
        return "bfloat16 needs compute capability 8.0"
    return "dropout_p = 1 drops everything" if dropout_p == 1 else None


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _dropout(dropout_p: float) -> tuple[int, float]:
    return dropout_threshold(dropout_p), 1 / (1 - dropout_p)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    activation: int,
    dropout_p: float,
    save: bool,
) -> tuple[Tensor, Tensor]:
    from .triton_kernels import linear_kernel

    output, pre = registration.fake_linear(x, weight, bias, seed, activation, dropout_p, save)
    (N, K), M = weight.shape, output.numel() // max(weight.shape[0], 1)
    tiles = triton_tiles.linear_tiles(N, x.element_size(), dropout_p > 0)
    if output.numel():
        with _on_device_of(x):
            linear_kernel[(-(-M // tiles.BLOCK_M) * -(-N // tiles.BLOCK_N),)](
                x.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous(), seed, output,
                pre if pre.numel() else None, M, N, K, *_dropout(dropout_p),
                ACTIVATION=activation, DROPOUT=dropout_p > 0, INPUT_PRECISION="ieee", **tiles._asdict(),
            )  # fmt: skip
    return output, pre


def linear_activation(pre: Tensor, seed: Tensor | None, activation: int, dropout_p: float) -> Tensor:
    output = pre.new_empty(pre.shape)
    _activate(pre.contiguous(), output, seed, activation, dropout_p)
    return output


def linear_activation_inplace(values: Tensor, seed: Tensor | None, activation: int, dropout_p: float) -> None:
    dense = values.contiguous()
    _activate(dense, dense, seed, activation, dropout_p)
    if dense is not values:
        values.copy_(dense)


def _activate(pre: Tensor, output: Tensor, seed: Tensor | None, activation: int, dropout_p: float) -> None:
    from .triton_kernels import linear_activation_kernel

    block = triton_tiles.ELEMENTWISE_BLOCK
    if output.numel():
        with _on_device_of(pre):
            linear_activation_kernel[(-(-output.numel() // block),)](
                pre, seed, output, output.numel(), *_dropout(dropout_p),
                ACTIVATION=activation, DROPOUT=dropout_p > 0, BLOCK=block,
            )  # fmt: skip


def linear_activation_backward(
    grad_output: Tensor,
    saved: Tensor,
    seed: Tensor | None,
    activation: int,
    dropout_p: float,
    need_bias: bool,
) -> tuple[Tensor, Tensor]:
    from .triton_kernels import linear_activation_backward_kernel

    N = grad_output.shape[-1]
    grad_pre, M = grad_output.new_empty(grad_output.shape), grad_output.numel() // max(N, 1)
    parts, rows = triton_tiles.bias_parts(M)
    bias_parts = grad_output.new_empty((parts, N), dtype=torch.float32) if need_bias else None
    if grad_pre.numel():
        with _on_device_of(grad_output):
            linear_activation_backward_kernel[(-(-N // triton_tiles.BACKWARD_BLOCK_N), parts)](
                grad_output.contiguous(), saved.contiguous(), seed, grad_pre, bias_parts,
                M, N, rows, *_dropout(dropout_p), 1 - dropout_p,
                ACTIVATION=activation, DROPOUT=dropout_p > 0, BY_OUTPUT=NAMES[activation] in BY_OUTPUT,
                BLOCK_M=triton_tiles.BACKWARD_BLOCK_M, BLOCK_N=triton_tiles.BACKWARD_BLOCK_N,
            )  # fmt: skip
    grad_bias = bias_parts.sum(0).to(grad_output.dtype) if need_bias else grad_output.new_empty(0)
    return grad_pre, grad_bias


_SCHEMAS = [each for each in schema.SCHEMAS if each != schema.PRODUCT]
library = define_triton(_SCHEMAS, globals(), vars(registration), INTERPRETED)
