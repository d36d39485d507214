"""dropout alone: public function, autograd. The pass is linear's, without an activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import dispatch
from ...dispatch import Candidate
from ...transforms import obstacle
from ..philox import draw_seed
from . import triton_ops
from .backends import RAW
from .reference import dropped
from .refusals import kernel_asked_for, refuse_cpu

# Below, a Function in Python costs more than is won. torch draws 60 elements in a microsecond, by one thread.
_FEWEST = 8192


def dropout(x: Tensor, p: float = 0.5, *, training: bool = True) -> Tensor:
    """x / (1 - p) with each element 0 with probability p, in one pass. Differentiable, twice and more.

    Nothing is saved for backward but a seed of eight bytes: the mask is drawn again, by Philox4x32-10 of the seed and
    the element's index, the same for any number of threads. The seed comes from torch's generator of the device.
    What no kernel serves better (a GPU, few elements, torch.compile) is torch's own dropout.

    Args:
        x: any shape, floating point.
        p: the probability that an element is dropped, in [0, 1]; default 0.5.
        training: False gives x itself.

    Returns:
        The shape and dtype of x.

    Raises:
        TypeError: x is not a floating point tensor.
        ValueError: p is not in [0, 1].
        UnsupportedError: `fastdl.strict()` or `fastdl.backend()` leaves nothing that can serve the call.

    Source: torch.nn.functional.dropout; Srivastava et al. 2014.

    >>> import fastdl, torch
    >>> fastdl.ops.dropout(torch.ones(2, 3), 0.0)
    tensor([[1., 1., 1.],
            [1., 1., 1.]])
    """
    _check(x, p)
    if not training or not p:
        return x
    reason = obstacle(x)
    if reason is not None:
        dispatch.require_reference("dropout", reason)
        return F.dropout(x, p)
    backend, algorithm = dispatch.choose("dropout", x, p)
    if backend == "reference":
        return dropped(x, draw_seed(x.device), p)
    if algorithm == "torch":
        return F.dropout(x, p)
    return Dropout.apply(x, draw_seed(x.device), p, backend)


def _check(x: Tensor, p: float) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating point tensor, got {got}")
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], got {p}")


class Dropout(torch.autograd.Function):
    """Linear in x and its own transpose: backward is the same call on the gradient, with the same seed."""

    @staticmethod
    def forward(ctx, x, seed, p, backend):
        ctx.save_for_backward(seed)
        ctx.p, ctx.backend = p, backend
        return RAW[backend].activation(x, seed, 0, p)

    @staticmethod
    def backward(ctx, grad_output):
        return Dropout.apply(grad_output, *ctx.saved_tensors, ctx.p, ctx.backend), None, None, None


def refuse_cpu_fused(x: Tensor, p: float) -> str | None:
    """Why not the pass that draws its mask again in backward."""
    if (reason := refuse_cpu(x, p)) is not None:
        return reason
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no kernel for {x.dtype}"
    if not x.is_contiguous():
        return "x is not contiguous"
    if torch.compiler.is_compiling():
        return "a compiler draws dropout in its own kernels"
    if x.numel() < _FEWEST and not kernel_asked_for():
        return f"torch is faster below {_FEWEST} elements"
    return None


def refuse_cpu_torch(x: Tensor, p: float) -> str | None:
    """Why not torch's dropout on a CPU."""
    return None if x.device.type == "cpu" else f"x is on {x.device}"


def refuse_cuda_torch(x: Tensor, p: float) -> str | None:
    """Why not torch's dropout on a GPU, which is one kernel too."""
    return None if x.device.type == "cuda" else f"x is on {x.device}"


def refuse_triton_fused(x: Tensor, p: float) -> str | None:
    """Why not Triton's pass."""
    return triton_ops.refusal(x, x, None, None, p)


CANDIDATES = [
    Candidate("cpu", "fused", refuse_cpu_fused),
    Candidate("cpu", "torch", refuse_cpu_torch),
    Candidate("cuda", "torch", refuse_cuda_torch),
    Candidate("triton", "fused", refuse_triton_fused),
]


def _dispatch_arguments(x: Tensor, p: float, training: bool) -> tuple[Tensor, float]:
    """What the refusals see of a call."""
    _check(x, p)
    return x, p


dispatch.register("dropout", CANDIDATES, dropout, _dispatch_arguments)
