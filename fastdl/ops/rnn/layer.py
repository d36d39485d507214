"""One layer as an autograd function; its backward is one too, so that a second derivative exists."""

from __future__ import annotations

import torch
from torch import Tensor

from ...transforms import batched, distinct
from ..further_derivatives import beginnings, second_derivative
from . import backends
from .backends import Plan, Saved
from .reference import reference_layer
from .steps import Context

# Among the arguments of the functions below: x, h_0, c_0, then the tensors of a Context, then the parameters.
_STATES, _CONTEXT = 3, 6


def run_layer(
    plan: Plan,
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    params: list[Tensor],
    context: Context,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(output, h_n, c_n) by the plan's backend; c_n is empty where the cell has none."""
    if plan.backend == "reference":
        return reference_layer(x, h_0, c_0, params, context, plan.s)
    if gradient:
        return RnnLayer.apply(plan, *distinct(x, h_0, c_0, *context[:_CONTEXT], *params))
    return backends.forward(plan, x, h_0, c_0, params, context, False)[:3]


def _split(plan: Plan, tensors: tuple) -> tuple[tuple, Context, tuple[Tensor, ...]]:
    """(x, h_0, c_0), the context, the parameters."""
    end = _STATES + _CONTEXT
    context = Context(*tensors[_STATES:end], tuple(plan.zoneout))
    return tensors[:_STATES], context, tensors[end:]


class RnnLayer(torch.autograd.Function):
    """The fused forward. With `plan.checkpoint` only its inputs are saved; backward computes the rest again."""

    @staticmethod
    def forward(ctx, plan, *tensors):
        (x, h_0, c_0), context, params = _split(plan, tensors)
        saved = backends.forward(plan, x, h_0, c_0, params, context, not plan.checkpoint)
        ctx.plan, ctx.inputs = plan, len(tensors)
        ctx.set_materialize_grads(False)
        if plan.checkpoint:
            ctx.save_for_backward(*tensors)
        else:
            ctx.save_for_backward(*tensors, saved.output, *saved[3:6], *saved.norms)
        if plan.s.cell != "lstm":
            ctx.mark_non_differentiable(saved.c_n)
        return saved.output, saved.h_n, saved.c_n

    @staticmethod
    def backward(ctx, *grads):
        plan, n = ctx.plan, ctx.inputs
        saved = ctx.saved_tensors  # read once: checkpoints compute anew what they give
        tensors, kept = saved[:n], saved[n:]
        # the gradient of an empty c_n means nothing
        grads = grads if plan.s.cell == "lstm" else (*grads[:2], None)
        if all(grad is None for grad in grads):
            return (None,) * (1 + n)
        needs = ctx.needs_input_grad[1:]
        if batched(*grads):
            found = _reference_gradients(plan, tensors, grads, needs)
        else:
            if plan.checkpoint:
                (x, h_0, c_0), context, params = _split(plan, tensors)
                with torch.no_grad():
                    again = backends.forward(plan, x, h_0, c_0, params, context, True)
                kept = (again.output, *again[3:6], *again.norms)
            # without create_graph nothing asks for a second derivative, and a Function would cost 60 us
            compute = RnnLayerBackward.apply if torch.is_grad_enabled() else _backward
            found = compute(plan, needs, len(kept), *grads, *kept, *tensors)
        return (None, *found[:_STATES], *[None] * _CONTEXT, *found[_STATES:])


def _reference_gradients(
    plan: Plan, tensors: tuple, grads: tuple[Tensor | None, ...], needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Those of x, h_0, c_0 and the parameters, by derivatives that vmap knows."""
    states, context, params = _split(plan, tensors)
    primals = (*states, *params)
    needs = needs[:_STATES] + needs[_STATES + _CONTEXT :]

    def outputs(*wanted: Tensor) -> tuple[Tensor, ...]:
        given = iter(wanted)
        every = [next(given) if needed else t for t, needed in zip(primals, needs, strict=True)]
        found = reference_layer(*every[:_STATES], every[_STATES:], context, plan.s)
        return tuple([o for o, g in zip(found, grads, strict=True) if g is not None])

    _, vjp = torch.func.vjp(outputs, *[t for t, needed in zip(primals, needs, strict=True) if needed])
    found = iter(vjp(tuple([g for g in grads if g is not None])))
    return tuple([next(found) if needed else None for needed in needs])


def _backward(
    plan: Plan, needs: tuple[bool, ...], num_kept: int, *tensors: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of x, h_0, c_0 and the parameters; `tensors`: three gradients, what forward kept, its inputs."""
    grads, kept, inputs = tensors[:3], tensors[3 : 3 + num_kept], tensors[3 + num_kept :]
    (x, h_0, c_0), context, params = _split(plan, inputs)
    saved = Saved(kept[0], kept[0], kept[0], *kept[1:4], kept[4:])
    needs = (*needs[:_STATES], *needs[_STATES + _CONTEXT :])
    return backends.backward(plan, grads, x, h_0, c_0, params, context, saved, needs)


class RnnLayerBackward(torch.autograd.Function):
    """The fused backward; its own backward is the vector-Jacobian product of the reference's."""

    @staticmethod
    def forward(ctx, plan, needs, num_kept, *tensors):
        ctx.plan, ctx.num_kept = plan, num_kept
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[:3], *tensors[3 + num_kept :])
        return _backward(plan, needs, num_kept, *tensors)

    @staticmethod
    def backward(ctx, *grads):
        saved = ctx.saved_tensors
        given, inputs = saved[:3], saved[3:]
        if all(grad is None for grad in grads):
            return (None,) * (3 + 3 + ctx.num_kept + len(inputs))
        (x, h_0, c_0), context, params = _split(ctx.plan, inputs)
        primals, given = beginnings((x, h_0, c_0, *params)), beginnings(given)
        with torch.enable_grad():
            outputs = reference_layer(*primals[:_STATES], primals[_STATES:], context, ctx.plan.s)
            with_gradient = [(o, g) for o, g in zip(outputs, given, strict=True) if g is not None]
            # (input, the gradient that arrived for its gradient) for those that have both
            pairs = [(t, g) for t, g in zip(primals, grads, strict=True) if t is not None and g is not None]
            first = torch.autograd.grad(
                [o for o, _ in with_gradient], [t for t, _ in pairs], [g for _, g in with_gradient],
                create_graph=True, materialize_grads=True,
            )  # fmt: skip
        found = second_derivative(first, (*given, *primals), [g for _, g in pairs])
        states = found[3 : 3 + _STATES]
        return (
            None, None, None, *found[:3], *[None] * ctx.num_kept, *states, *[None] * _CONTEXT,
            *found[3 + _STATES :],
        )  # fmt: skip
