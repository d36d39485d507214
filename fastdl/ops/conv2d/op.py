"""Convolution, and the scale, residual and activation that may follow it: public function, autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import dispatch
from ...transforms import autocast, distinct, needs_gradient, obstacle
from ..conv_relu_maxpool import conv_relu_maxpool
from ..conv_relu_maxpool.geometry import Geometry, IntPair, check_kinds, normalise
from ..conv_relu_maxpool.signature import signature
from ..further_derivatives import beginnings, second_derivative
from ..plans import Plans
from . import backends
from .activations import check as check_activation
from .epilogue import Epilogue, scaled
from .normalisation import Normalisation
from .reference import reference
from .refusals import CANDIDATES

_NO_POOL = (None, None, 0, 1, False, False)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """activation(scale * conv2d(x, weight) + bias + residual). Differentiable.

    With `scale` and `bias` made of a BatchNorm's running statistics this is the end of a block of a residual
    network, in one kernel or in torch's convolution and one pass. Where gradients are wanted the convolution is one
    kernel, what follows it torch's.

    Args:
        x: [N, C, H, W] or [C, H, W]; float64, float32, bfloat16 or float16. channels_last is kept.
        weight: [C_out, C / groups, KH, KW], dtype of x.
        bias: [C_out] or None.
        stride, padding, dilation, groups: as torch.nn.functional.conv2d; padding also "same" and "valid".
        scale: [C_out], dtype of x, or None: 1.
        residual: what is added, the shape and dtype of the output, or None.
        activation: None, "relu", "relu6", "silu", "hardswish", "gelu", "gelu_tanh" (its tanh approximation), "tanh" or
            "sigmoid".

    Returns:
        [N, C_out, CH, CW] or [C_out, CH, CW] in the dtype of x (under autocast: its dtype).

    Raises:
        TypeError: a tensor is not floating point, or dtypes or devices differ.
        ValueError: a shape or an argument does not fit; the message says expected and got.
        UnsupportedError: `fastdl.strict()` or `fastdl.backend()` leaves nothing that can serve the call.

    Source: torch.nn.functional.conv2d; He et al. 2016 (residual blocks), Lavin & Gray 2016 (Winograd).

    >>> import fastdl, torch
    >>> x, w = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 3)
    >>> fastdl.ops.conv2d(x, w, padding=1, scale=torch.tensor([-1.0]), residual=5 * x, activation="relu")
    tensor([[[[1., 1.],
              [1., 1.]]]])
    """
    arguments = (stride, padding, dilation, groups, *_NO_POOL)
    if activation is not None:
        check_activation(activation)
    epilogue = Epilogue(scale, residual, activation)
    key = None if torch.compiler.is_compiling() else signature(x, weight, bias, arguments)
    plan = None if key is None else _planned.get(key)
    if plan is None or not epilogue.is_plain(x, weight, plan.g):
        return _checked(x, weight, bias, epilogue, arguments, key)
    return compute(plan, x, weight, bias, epilogue)


def conv2d_batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Normalisation,
    *,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """conv2d with the scale and bias of a normalisation; a remembered plan of a kernel takes one operator for all."""
    plan = _normalised_plan(x, weight, bias, norm, (stride, padding, dilation, groups))
    if plan is not None and Epilogue(None, residual).is_plain(x, weight, plan.g):
        return backends.one_operator(plan)(x, weight, bias, norm, residual, activation)
    scale, shift = norm.scale_and_shift(bias)
    more = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    return conv2d(x, weight, shift, **more, scale=scale, residual=residual, activation=activation)


def one_operator(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: Normalisation, geometry: tuple
) -> backends.OneOperator | None:
    """What conv2d_batch_norm calls for a remembered plan, if that takes one operator."""
    plan = _normalised_plan(x, weight, bias, norm, geometry)
    return None if plan is None else backends.one_operator(plan)


def _normalised_plan(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: Normalisation, geometry: tuple
) -> backends.Plan | None:
    """A remembered plan of a kernel that takes the normalisation too; `geometry`: stride, padding, dilation, groups."""
    if torch.compiler.is_compiling():
        return None
    # the bias that will follow is like the mean
    key = signature(x, weight, norm.running_mean, (*geometry, *_NO_POOL))
    plan = None if key is None else _planned.get(key)
    fits = (
        plan is not None
        and plan.algorithm in backends.NORMALISED
        and plan.backend == "cpu"
        and x.dtype is torch.float32
        and not torch.is_grad_enabled()
        and norm.is_plain(bias)
    )
    return plan if fits else None


def _checked(
    x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue, arguments: tuple, key: tuple | None
) -> Tensor:
    """The call with every check and conversion; a plan that needs neither is remembered under `key`."""
    given = x
    check_kinds(x, weight, bias)
    epilogue.check_kinds()
    x, weight, bias, scale, residual = autocast(x, weight, bias, epilogue.scale, epilogue.residual)
    unbatched = x.dim() == 3
    if unbatched:
        x, residual = x[None], None if residual is None else residual[None]
    g, uneven = normalise(x, weight, bias, *arguments)
    if uneven:
        x = F.pad(x, uneven)
    epilogue = Epilogue(scale, residual, epilogue.activation)
    epilogue.check(x, weight, g, unbatched)
    reason = obstacle(x, weight, bias, scale, residual)
    # what a choice compares would bind the sizes that an exporter leaves open
    if reason is not None:
        dispatch.require_reference("conv2d", reason)
        output = reference(x, weight, bias, *epilogue, g)
    else:
        plan = backends.make_plan(dispatch.choose("conv2d", x, weight, bias, g), g)
        if key is not None and x is given:
            _planned.put(key, plan)
        output = compute(plan, x, weight, bias, epilogue)
    return output[0] if unbatched else output


def compute(
    plan: backends.Plan, x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue
) -> Tensor:
    """The output by a plan."""
    g, (scale, residual, activation) = plan.g, epilogue
    if plan.backend == "reference":
        return reference(x, weight, bias, *epilogue, g)
    if not (needs_gradient(x, weight, bias) or (torch.is_grad_enabled() and epilogue.requires_grad)):
        return backends.forward(plan, x, weight, bias, epilogue, False)
    own = plan.algorithm == "winograd"
    if scale is not None:
        if not own:  # oneDNN's gradient of a bias, and that of a scaled weight, are less exact
            return reference(x, weight, bias, *epilogue, g)
        weight = scaled(weight, scale)
    if activation == "relu" and residual is None:
        conv = dict(stride=g.stride, padding=g.padding, dilation=g.dilation, groups=g.groups)
        return conv_relu_maxpool(x, weight, bias, **conv)
    y = Conv2d.apply(*distinct(x, weight, bias), plan) if own else backends.recorded(plan, x, weight, bias)
    return backends.finish(y, residual, activation)


_planned: Plans[backends.Plan] = Plans()


class Conv2d(torch.autograd.Function):
    """The convolution alone; its backward is a Function of its own, so that a second derivative exists."""

    @staticmethod
    def forward(ctx, x, weight, bias, plan):
        ctx.save_for_backward(x, weight)
        ctx.plan, ctx.has_bias = plan, bias is not None
        return backends.forward(plan, x, weight, bias, Epilogue(), True)

    @staticmethod
    def backward(ctx, grad_output):
        x, weight = ctx.saved_tensors
        needs = (*ctx.needs_input_grad[:2], ctx.needs_input_grad[2] and ctx.has_bias)
        # without create_graph nothing asks for a second derivative, and a Function would cost 30 us
        compute = Conv2dBackward.apply if torch.is_grad_enabled() else _first_backward
        return (*compute(grad_output, x, weight, ctx.plan, needs), None)


def _first_backward(grad_output, x, weight, plan, needs):
    return backends.backward(plan, grad_output, x, weight, needs)


class Conv2dBackward(torch.autograd.Function):
    """The backward; its own backward is the vector-Jacobian product of the reference's."""

    @staticmethod
    def forward(ctx, grad_output, x, weight, plan, needs):
        ctx.save_for_backward(grad_output, x, weight)
        ctx.g = plan.g
        return backends.backward(plan, grad_output, x, weight, needs)

    @staticmethod
    def backward(ctx, *grads):
        g = ctx.g
        grad_output, x, weight = args = beginnings(ctx.saved_tensors)
        with torch.enable_grad():
            bias = weight.new_zeros(weight.shape[0], requires_grad=True)
            # (input, the gradient that arrived for its gradient) for those that have one
            pairs = [(t, d) for t, d in zip((x, weight, bias), grads, strict=True) if d is not None]
            first = torch.autograd.grad(
                reference(x, weight, bias, *Epilogue(), g),
                [t for t, _ in pairs],
                grad_output,
                create_graph=True,
            )
        return (*second_derivative(first, args, [d for _, d in pairs]), None, None)


def _dispatch_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, scale: Tensor | None, residual: Tensor | None,
    activation: str | None, **arguments: object,
) -> tuple[Tensor, Tensor, Tensor | None, Geometry]:  # fmt: skip
    """What the refusals see of a call."""
    x, weight, bias = autocast(x[None] if x.dim() == 3 else x, weight, bias)
    g, uneven = normalise(x, weight, bias, *arguments.values(), *_NO_POOL)
    return (F.pad(x, uneven) if uneven else x), weight, bias, g


dispatch.register("conv2d", CANDIDATES, conv2d, _dispatch_arguments)
