"""conv + bias + ReLU + max-pool: public function, schemas, fakes, autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import dispatch
from ...transforms import autocast, distinct, needs_gradient, obstacle
from ..further_derivatives import beginnings, second_derivative
from ..plans import Plans
from . import backends
from .geometry import Geometry, IntPair, check_kinds, normalise
from .reference import indices_from_record, reference
from .refusals import CANDIDATES
from .signature import signature


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
        pool_size: window, None for no pool. Beyond 255 elements the reference serves.
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
    arguments = (
        stride, padding, dilation, groups,
        pool_size, pool_stride, pool_padding, pool_dilation, ceil_mode, return_indices,
    )  # fmt: skip
    key = None if torch.compiler.is_compiling() else signature(x, weight, bias, arguments)
    try:
        plan = _planned[key]
    except (KeyError, TypeError):  # new, or None, or with a list in it, which has no hash
        return _checked(x, weight, bias, arguments, key)
    if plan.backend == "reference":
        return reference(x, weight, bias, plan.g)
    return compute(plan, x, weight, bias, False, key[-1])[0]


def _checked(
    x: Tensor, weight: Tensor, bias: Tensor | None, arguments: tuple, key: tuple | None
) -> Tensor | tuple[Tensor, Tensor]:
    """The call with every check and conversion; a plan that needs neither is remembered under `key`."""
    given = x
    check_kinds(x, weight, bias)
    x, weight, bias = autocast(x, weight, bias)
    return_indices = arguments[-1]
    unbatched = x.dim() == 3
    if unbatched:
        x = x[None]
    g, uneven = normalise(x, weight, bias, *arguments)
    if uneven:
        x = F.pad(x, uneven)
    reason = obstacle(x, weight, bias)
    # what a choice compares would bind the sizes that an exporter leaves open
    if reason is not None:
        dispatch.require_reference("conv_relu_maxpool", reason)
        plan = None
    else:
        plan = backends.make_plan(dispatch.choose("conv_relu_maxpool", x, weight, bias, g), g)
        if key is not None and x is given and not return_indices:
            _planned.put(key, plan)
    if plan is None or plan.backend == "reference":
        output, indices = _by_reference(x, weight, bias, g, return_indices)
    else:
        output, record = compute(plan, x, weight, bias, return_indices, needs_gradient(x, weight, bias))
        indices = indices_from_record(record, g.conv_size(x, weight), g) if return_indices else None
    if unbatched:
        output, indices = output[0], indices[0] if return_indices else None
    return (output, indices) if return_indices else output


def compute(
    plan: backends.Plan, x: Tensor, weight: Tensor, bias: Tensor | None, save_record: bool, recorded: bool
) -> tuple[Tensor, Tensor | None]:
    """(output, record) by a plan; `recorded`: for backward."""
    if recorded and not plan.torch_alone:
        return ConvReluMaxpool.apply(*distinct(x, weight, bias), plan)
    return backends.forward(plan, x, weight, bias, save_record)


_planned: Plans[backends.Plan] = Plans()


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
    def forward(ctx, x, weight, bias, plan):
        output, record = backends.forward(plan, x, weight, bias, True)
        # Pooled: the record says where gradients go. Not pooled: the output does.
        ctx.save_for_backward(x, weight, bias, record if plan.g.pool_size else output)
        ctx.mark_non_differentiable(record)
        ctx.plan = plan
        return output, record

    @staticmethod
    def backward(ctx, grad_output, _):
        x, weight, bias, saved = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        # without create_graph nothing asks for a second derivative, and a Function would cost 30 us
        compute = _differentiable_backward if torch.is_grad_enabled() else backends.backward
        gradients = compute(ctx.plan, grad_output, x, weight, bias, saved, needs)
        return (*gradients, None)


def _differentiable_backward(plan, grad_output, x, weight, bias, saved, needs):
    return ConvReluMaxpoolBackward.apply(grad_output, x, weight, bias, saved, plan, needs)


class ConvReluMaxpoolBackward(torch.autograd.Function):
    """The fused backward; its own backward is the vector-Jacobian product of the reference's."""

    @staticmethod
    def forward(ctx, grad_output, x, weight, bias, saved, plan, needs):
        ctx.save_for_backward(grad_output, x, weight, bias)
        ctx.g = plan.g
        return backends.backward(plan, grad_output, x, weight, bias, saved, needs)

    @staticmethod
    def backward(ctx, *grads):
        args = beginnings(ctx.saved_tensors)
        with torch.enable_grad():
            grad_output, *inputs = args
            # (input, the gradient that arrived for its gradient) for those that have both
            pairs = [(t, d) for t, d in zip(inputs, grads, strict=True) if t is not None and d is not None]
            first = torch.autograd.grad(
                reference(*inputs, ctx.g), [t for t, _ in pairs], grad_output, create_graph=True
            )
        return (*second_derivative(first, args, [d for _, d in pairs]), None, None, None)


def _dispatch_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, **arguments: object
) -> tuple[Tensor, Tensor, Tensor | None, Geometry]:
    """What the refusals see of a call."""
    x, weight, bias = autocast(x[None] if x.dim() == 3 else x, weight, bias)
    g, uneven = normalise(x, weight, bias, **arguments)
    return (F.pad(x, uneven) if uneven else x), weight, bias, g


dispatch.register("conv_relu_maxpool", CANDIDATES, conv_relu_maxpool, _dispatch_arguments)
