"""conv + bias + ReLU + max-pool: public function, schemas, fakes, autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ... import dispatch
from ..transforms import autocast, transformed
from . import backends
from .geometry import Geometry, IntPair, normalise
from .reference import indices_from_record, reference


def conv_relu_maxpool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    pool_size: IntPair | None = None,
    pool_stride: IntPair | None = None,
    pool_padding: IntPair = 0,
    pool_dilation: IntPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """max_pool2d(relu(conv2d(x, weight, bias))); conv + ReLU if `pool_size` is None. Differentiable.

    Computed as relu(max(conv) + bias), which is the same. For backward one byte per pooled element is saved
    (which position was the maximum, or that the ReLU is closed) and nothing at the convolution's resolution.
    NaN passes through; of equal values the first is the maximum, as in torch.

    Args:
        x: [N, C, H, W] or [C, H, W]; float64, float32, bfloat16 or float16. channels_last is kept.
        weight: [C_out, C / groups, KH, KW], dtype of x.
        bias: [C_out] or None.
        stride, padding, dilation, groups: as torch.nn.functional.conv2d; padding also "same" and "valid".
        pool_size: window of at most 255 elements; None for no pool.
        pool_stride, pool_padding, pool_dilation, ceil_mode: as torch.nn.functional.max_pool2d.
        return_indices: also return max_pool2d's int64 indices into the flattened [CH, CW] plane. A window
            whose ReLU is closed gives its first position inside.

    Returns:
        [N, C_out, OH, OW] in the dtype of x (under autocast: its dtype), or (output, indices).

    Raises:
        TypeError: a tensor is not floating point, or dtypes or devices differ.
        ValueError: a shape or an argument does not fit; the message says expected and got.
        UnsupportedError: `fastdl.strict()` or `fastdl.backend()` leaves nothing that can serve the call.

    Source: torch.nn.functional.conv2d, relu, max_pool2d.

    >>> import fastdl, torch
    >>> x, w = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
    >>> fastdl.ops.conv_relu_maxpool(x, w, padding=1, pool_size=2)
    tensor([[[[9., 9.],
              [9., 9.]]]])
    """
    unbatched = x.dim() == 3
    x, weight, bias, g = _arguments(
        x, weight, bias, stride, padding, dilation, groups,
        pool_size, pool_stride, pool_padding, pool_dilation, ceil_mode, return_indices,
    )  # fmt: skip
    output, indices = _run(x, weight, bias, g, return_indices)
    if unbatched:
        output, indices = output[0], indices[0] if return_indices else None
    return (output, indices) if return_indices else output


def _arguments(
    x, weight, bias, stride, padding, dilation, groups,
    pool_size, pool_stride, pool_padding, pool_dilation, ceil_mode, return_indices,
) -> tuple[Tensor, Tensor, Tensor | None, Geometry]:  # fmt: skip
    """What the backends see of a call: a batch in the dtype of autocast, evenly padded, and the geometry."""
    x, weight, bias = autocast(x[None] if x.dim() == 3 else x, weight, bias)
    g, uneven = normalise(
        x, weight, bias, stride, padding, dilation, groups,
        pool_size, pool_stride, pool_padding, pool_dilation, ceil_mode, return_indices,
    )  # fmt: skip
    return (F.pad(x, uneven) if uneven else x), weight, bias, g


def _run(
    x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry, return_indices: bool
) -> tuple[Tensor, Tensor | None]:
    if transformed(x, weight, bias):
        return _by_reference(x, weight, bias, g, return_indices)
    choice = dispatch.choose("conv_relu_maxpool", x, weight, bias, g)
    if choice.backend == "reference":
        return _by_reference(x, weight, bias, g, return_indices)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        plan = (*choice, backends.backward_algorithm(choice, x, weight, g))
        output, record = ConvReluMaxpool.apply(x, weight, bias, g, plan)
    else:
        output, record = backends.forward(*choice, x, weight, bias, g, return_indices)
    return output, indices_from_record(record, g.conv_size(x, weight), g) if return_indices else None


def _by_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry, return_indices: bool
) -> tuple[Tensor, Tensor | None]:
    if not return_indices:
        return reference(x, weight, bias, g), None
    y = reference(x, weight, bias, g._replace(pool_size=()))
    return F.max_pool2d(y, g.pool_size, g.pool_stride, g.pool_padding, g.pool_dilation, g.ceil_mode, True)


class ConvReluMaxpool(torch.autograd.Function):
    """The fused forward; its backward is a Function of its own, so that a second derivative exists."""

    @staticmethod
    def forward(ctx, x, weight, bias, g, plan):
        backend, algorithm, _ = plan
        output, record = backends.forward(backend, algorithm, x, weight, bias, g, True)
        # Pooled: the record says where gradients go. Not pooled: the output does.
        ctx.save_for_backward(x, weight, bias, record if g.pool_size else output)
        ctx.mark_non_differentiable(record)
        ctx.g, ctx.plan = g, plan
        return output, record

    @staticmethod
    def backward(ctx, grad_output, _):
        x, weight, bias, saved = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        gradients = ConvReluMaxpoolBackward.apply(grad_output, x, weight, bias, saved, ctx.g, ctx.plan, needs)
        return (*gradients, None, None)


class ConvReluMaxpoolBackward(torch.autograd.Function):
    """The fused backward; its own backward is the vector-Jacobian product of the reference's."""

    @staticmethod
    def forward(ctx, grad_output, x, weight, bias, saved, g, plan, needs):
        ctx.save_for_backward(grad_output, x, weight, bias)
        ctx.g = g
        return backends.backward(plan[0], plan[2], grad_output, x, weight, bias, saved, g, needs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        with torch.enable_grad():
            args = [None if t is None else t.detach().requires_grad_() for t in ctx.saved_tensors]
            grad_output, *inputs = args
            # (input, the gradient that arrived for its gradient) for those that have both
            pairs = [(t, d) for t, d in zip(inputs, grads, strict=True) if t is not None and d is not None]
            wanted = [t for t in args if t is not None]
            first = torch.autograd.grad(
                reference(*inputs, ctx.g), [t for t, _ in pairs], grad_output, create_graph=True
            )
            second = iter(torch.autograd.grad(first, wanted, [d for _, d in pairs], allow_unused=True))
        return (*(None if t is None else next(second) for t in args), None, None, None, None)


dispatch.register("conv_relu_maxpool", backends.CANDIDATES, conv_relu_maxpool, _arguments)
