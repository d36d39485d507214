"""linear + activation + dropout: public function, autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import dispatch
from ...transforms import autocast, distinct, needs_gradient, obstacle
from ..further_derivatives import beginnings, second_derivative
from ..philox import draw_seed
from ..plans import Plans
from . import backends
from .arguments import check, check_kinds
from .quick import forget, quick_choice
from .reference import reference
from .refusals import CANDIDATES


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """dropout(activation(x weight^T + bias)) in one pass. Differentiable.

    For backward relu, tanh and sigmoid save the output, gelu, gelu_tanh and silu their input, dropout its seed of
    eight bytes: the mask is drawn again, by Philox4x32-10 of the seed and the element's index, and is the same on
    every backend and for any number of threads. The seed comes from torch's generator of the device.

    Args:
        x: [..., in_features]; float64, float32, bfloat16 or float16.
        weight: [out_features, in_features], dtype of x.
        bias: [out_features] or None.
        activation: None, "relu", "gelu", "gelu_tanh" (its tanh approximation), "silu", "tanh" or "sigmoid".
        dropout_p: the probability that an element is dropped; the others are divided by 1 - dropout_p.

    Returns:
        [..., out_features] in the dtype of x (under autocast: its dtype).

    Raises:
        TypeError: a tensor is not floating point, or dtypes or devices differ.
        ValueError: a shape or an argument does not fit; the message says expected and got.
        UnsupportedError: `fastdl.strict()` or `fastdl.backend()` leaves nothing that can serve the call.

    Source: torch.nn.functional.linear, the activations and dropout of torch.nn.functional.

    >>> import fastdl, torch
    >>> fastdl.ops.linear(torch.ones(1, 3), torch.tensor([[1.0, 1, 1], [-1, -1, -1]]), activation="relu")
    tensor([[3., 0.]])
    """
    if type(dropout_p) is float and not dropout_p:
        compute = quick_choice(x, weight, bias, activation)
        if compute is not None:
            try:
                output = compute(x, weight, bias)
            except RuntimeError:
                check(x, weight, bias, activation, dropout_p)
                raise
            if output.is_cpu:
                return output
            forget(weight)
    check_kinds(x, weight, bias)
    if x.is_nested:
        dispatch.require_reference("linear", "no kernel for nested tensors")
        return reference(x, weight, bias, activation, dropout_p, draw_seed(x.device) if dropout_p else None)
    x, weight, bias = autocast(x, weight, bias)
    reason = obstacle(x, weight, bias)
    if reason is not None:
        check(x, weight, bias, activation, dropout_p)
        dispatch.require_reference("linear", reason)
        return reference(x, weight, bias, activation, dropout_p, draw_seed(x.device) if dropout_p else None)
    recorded = needs_gradient(x, weight, bias)
    plan = _plan(x, weight, bias, activation, dropout_p, recorded)
    seed = draw_seed(x.device) if dropout_p else None
    if plan.backend == "reference":
        return reference(x, weight, bias, activation, dropout_p, seed)
    return carried_out(plan, x, weight, bias, seed, recorded)


def carried_out(
    plan: backends.Plan, x: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor | None, recorded: bool
) -> Tensor:
    """The output by a plan; `recorded`: for backward."""
    if plan.plain:
        return backends.computation(plan, recorded)(x, weight, bias)
    if recorded:
        return Linear.apply(*distinct(x, weight, bias, seed), plan)
    return backends.forward(plan, x, weight, bias, seed, False)[0]


_planned: Plans[backends.Plan] = Plans()


def _plan(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    dropout_p: float,
    recorded: bool,
) -> backends.Plan:
    """The plan of a call, remembered by what it follows from."""
    if torch.compiler.is_compiling():
        return _decide(x, weight, bias, activation, dropout_p)
    settings = dispatch.settings
    key = (
        x.shape, x.dtype, x.device, weight.shape, weight.dtype, weight.device, weight.is_contiguous(),
        None if bias is None else (bias.shape, bias.dtype, bias.device),
        activation, dropout_p, settings.backend, settings.strict, recorded,
    )  # fmt: skip
    planned = _planned.get(key)
    if planned is None:
        planned = _decide(x, weight, bias, activation, dropout_p)
        _planned.put(key, planned)
    return planned


def _decide(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, dropout_p: float
) -> backends.Plan:
    check(x, weight, bias, activation, dropout_p)
    choice = dispatch.choose("linear", x, weight, bias, activation, dropout_p)
    return backends.make_plan(choice, activation, dropout_p)


class Linear(torch.autograd.Function):
    """The fused forward; its backward is a Function of its own, so that a second derivative exists."""

    @staticmethod
    def forward(ctx, x, weight, bias, seed, plan):
        output, saved = backends.forward(plan, x, weight, bias, seed, True)
        ctx.save_for_backward(x, weight, bias, saved, seed)
        ctx.plan = plan
        return output

    @staticmethod
    def backward(ctx, grad_output):
        x, weight, bias, saved, seed = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        # without create_graph nothing asks for a second derivative, and a Function would cost 30 us
        if torch.is_grad_enabled():
            gradients = LinearBackward.apply(grad_output, x, weight, bias, saved, seed, ctx.plan, needs)
        else:
            gradients = backends.backward(ctx.plan, grad_output, x, weight, saved, seed, needs)
        return (*gradients, None, None)


class LinearBackward(torch.autograd.Function):
    """The fused backward; its own backward is the vector-Jacobian product of the reference's."""

    @staticmethod
    def forward(ctx, grad_output, x, weight, bias, saved, seed, plan, needs):
        ctx.save_for_backward(grad_output, x, weight, bias)
        ctx.seed, ctx.plan = seed, plan
        return backends.backward(plan, grad_output, x, weight, saved, seed, needs)

    @staticmethod
    def backward(ctx, *grads):
        plan = ctx.plan
        args = beginnings(ctx.saved_tensors)
        with torch.enable_grad():
            grad_output, *inputs = args
            # (input, the gradient that arrived for its gradient) for those that have both
            pairs = [(t, d) for t, d in zip(inputs, grads, strict=True) if t is not None and d is not None]
            first = torch.autograd.grad(
                reference(*inputs, plan.activation, plan.dropout_p, ctx.seed),
                [t for t, _ in pairs],
                grad_output,
                create_graph=True,
            )
        return (*second_derivative(first, args, [d for _, d in pairs]), None, None, None, None)


def _dispatch_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, dropout_p: float
) -> tuple[Tensor, Tensor, Tensor | None, str | None, float]:
    """What the refusals see of a call."""
    x, weight, bias = autocast(x, weight, bias)
    check(x, weight, bias, activation, dropout_p)
    return x, weight, bias, activation, dropout_p


dispatch.register("linear", CANDIDATES, linear, _dispatch_arguments)
