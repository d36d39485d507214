"""Scaled-dot-product attention: public function, plan, autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import dispatch
from ...transforms import autocast, distinct, obstacle
from ..further_derivatives import beginnings, second_derivative
from ..philox import draw_seed
from . import backends
from .call import Call
from .checks import check_kinds, check_seed
from .plans import context_of, normalise, plan_of
from .quick import quick_plan
from .reference import Context, accumulate_dtype, reference
from .refusals import CANDIDATES

_sdpa = F.scaled_dot_product_attention


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool | str = False,
    window: tuple[int, int] | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    enable_gqa: bool = False,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    seed: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale q k^T + bias) v, keys hidden by mask, causality and window. Differentiable in q, k, v, bias, sink.

    A query that sees no key gives output 0, gradient 0 and lse = sink, or -inf without one. Memory is O(L), not
    O(L_q L_k), and backward computes the scores again from lse.

    Args:
        q: [B, H, L_q, D]; float64, float32, bfloat16 or float16, any strides.
        k: [B, H_kv, L_k, D], dtype of q.
        v: [B, H_kv, L_k, D_v], dtype of q.
        mask: bool, True sees, or added to the scores if it has the dtype of q; broadcasts to [B, H, L_q, L_k].
        bias: added to the scores, dtype of q; broadcasts to [B, H, L_q, L_k]; its gradient is summed over what
            was broadcast.
        causal: False; "top_left": query i sees keys up to i; "bottom_right": up to i + L_k - L_q.
        window: (left, right): keys at most so far before and after the one a query is aligned with (key i with
            "top_left", else i + L_k - L_q); -1 is open.
        alibi_slopes: [H] or [B, H]; slope times the distance from the aligned key is subtracted.
        softcap: scores become softcap * tanh(scores / softcap), before bias and ALiBi.
        sink: [H], one more score in each softmax, without a value.
        dropout_p: probability that a weight is zeroed; the others are divided by 1 - dropout_p.
        scale: default 1 / sqrt(D).
        enable_gqa: H may be a multiple of H_kv; head h of q sees head h // (H / H_kv).
        cu_seqlens_q, cu_seqlens_k: [B + 1] int32 or int64, from 0 to the number of rows; then q is [total_q, H, D],
            k [total_k, H_kv, D], v [total_k, H_kv, D_v], and sequence b has the rows from cu_seqlens[b] on.
        max_seqlen_q, max_seqlen_k: the longest sequence or more, if known; default the number of rows. On a GPU,
            where asking cu_seqlens would wait for it, rows past a bound that is too small give 0.
        seed: [1] int64, of the dropout; default drawn from torch's generator. One seed keeps the same weights on every
            backend. Without one, torch's own kernels may draw on a GPU.
        return_lse: also return the logarithm of each softmax's sum, differentiable.

    Returns:
        [B, H, L_q, D_v], packed [total_q, H, D_v], in the dtype of q (under autocast: its dtype); with return_lse
        also lse [B, H, L_q], packed [H, total_q], float32 (float64 for float64).

    Raises:
        TypeError: a tensor is of the wrong kind, or dtypes or devices differ.
        ValueError: a shape or an argument does not fit; the message says expected and got.
        UnsupportedError: `fastdl.strict()` or `fastdl.backend()` leaves nothing that can serve the call.

    Source: torch.nn.functional.scaled_dot_product_attention; see reference.py for the variants.

    >>> import fastdl, torch
    >>> q = k = v = torch.ones(1, 1, 2, 4)
    >>> fastdl.ops.attention(q, k, v, causal="top_left")[0, 0]
    tensor([[1., 1., 1., 1.],
            [1., 1., 1., 1.]])
    """
    packed = cu_seqlens_q is not None or cu_seqlens_k is not None
    beyond_torch = packed or alibi_slopes is not None or sink is not None or dropout_p or return_lse
    if not beyond_torch and window is None and softcap is None and (mask is None or bias is None):
        plan = quick_plan(q, k, v, mask, bias, causal, scale, enable_gqa)
        if plan is not None:
            if plan.algorithm == "sdpa":
                added, causal = mask if bias is None else bias, bool(causal)
                if added is None and scale is None and not enable_gqa:  # each keyword takes 0.1 us
                    return _sdpa(q, k, v, is_causal=causal)
                return _sdpa(q, k, v, _four(added), is_causal=causal, scale=scale, enable_gqa=enable_gqa)
            context = context_of(_four(mask), _four(bias))
            return _by_plan(plan, q, k, v, context)[0]
    check_kinds(
        q=q, k=k, v=v, mask=mask, bias=bias, alibi_slopes=alibi_slopes, sink=sink, seed=seed,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
    )  # fmt: skip
    q, k, v, mask, bias = autocast(q, k, v, mask, bias)
    check_seed(seed)
    tensors = context_of(
        mask, bias, _exact(alibi_slopes, q), _exact(sink, q), seed, cu_seqlens_q, cu_seqlens_k
    )
    numbers = (causal, window, softcap, dropout_p, scale, max_seqlen_q, max_seqlen_k)
    context = tensors._replace(
        mask=_four(tensors.mask), bias=_four(tensors.bias), seed=seed if dropout_p else None
    )
    reason = obstacle(q, k, v, *context)
    # what a choice compares would bind the sizes that an exporter leaves open
    if reason is not None:
        call = normalise(q, k, v, tensors, numbers, enable_gqa)
        dispatch.require_reference("attention", reason)
        plan = None
    else:
        plan = plan_of(q, k, v, tensors, numbers, enable_gqa, return_lse)
    if dropout_p and seed is None and (plan is None or plan.algorithm != "sdpa"):
        context = context._replace(seed=draw_seed(q.device))
    if plan is None:
        output, lse = reference(q, k, v, context, call)
    else:
        output, lse = _by_plan(plan, q, k, v, context)
    return (output, lse.to(accumulate_dtype(q.dtype))) if return_lse else output


def _by_plan(
    plan: backends.Plan, q: Tensor, k: Tensor, v: Tensor, context: Context
) -> tuple[Tensor, Tensor | None]:
    """(output, lse), by torch without lse."""
    if plan.algorithm == "sdpa":
        return backends.sdpa(q, k, v, context, plan.call), None
    if plan.backend == "reference":
        return reference(q, k, v, context, plan.call)
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (q, k, v, context.bias, context.sink)
    ):
        return Attention.apply(*distinct(q, k, v, *context), plan)
    return backends.forward(plan, q, k, v, context)


def _exact(t: Tensor | None, q: Tensor) -> Tensor | None:
    """Slopes and sinks, of whatever dtype, in the one that sums are kept in."""
    return t if t is None or not q.is_floating_point() else t.to(accumulate_dtype(q.dtype))


def _four(t: Tensor | None) -> Tensor | None:
    return t if t is None or t.dim() == 4 else t[(None,) * (4 - t.dim())]


class Attention(torch.autograd.Function):
    """The fused forward; its backward is a Function of its own, so that a second derivative exists."""

    @staticmethod
    def forward(ctx, q, k, v, mask, bias, alibi_slopes, sink, seed, cu_seqlens_q, cu_seqlens_k, plan):
        context = Context(mask, bias, alibi_slopes, sink, seed, cu_seqlens_q, cu_seqlens_k)
        output, lse = backends.forward(plan, q, k, v, context)
        ctx.save_for_backward(q, k, v, output, lse, *context)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        return output, lse

    @staticmethod
    def backward(ctx, grad_output, grad_lse):
        q, k, v, output, lse, *context = ctx.saved_tensors
        if grad_output is None:
            grad_output = torch.zeros_like(output)
        needs = (ctx.needs_input_grad[4], ctx.needs_input_grad[6])
        # without create_graph nothing asks for a second derivative, and a Function would cost 60 us
        compute = AttentionBackward.apply if torch.is_grad_enabled() else _backward
        grad_q, grad_k, grad_v, grad_bias, grad_sink = compute(
            grad_output, grad_lse, q, k, v, output, lse, *context, ctx.plan, needs
        )
        return grad_q, grad_k, grad_v, None, grad_bias, None, grad_sink, None, None, None, None


def _backward(grad_output, grad_lse, q, k, v, output, lse, *rest):
    *context, plan, needs = rest
    return tuple(
        backends.backward(plan, grad_output, grad_lse, q, k, v, output, lse, Context(*context), *needs)
    )


class AttentionBackward(torch.autograd.Function):
    """The fused backward; its own backward is the vector-Jacobian product of the reference's."""

    @staticmethod
    def forward(ctx, grad_output, grad_lse, q, k, v, output, lse, *rest):
        *context, plan, needs = rest
        ctx.save_for_backward(grad_output, grad_lse, q, k, v, *context)
        ctx.call = plan.call
        return _backward(grad_output, grad_lse, q, k, v, output, lse, *context, plan, needs)

    @staticmethod
    def backward(ctx, *grads):
        grad_output, grad_lse, q, k, v, *rest = ctx.saved_tensors
        context = Context(*rest)
        arrived = beginnings((grad_output, grad_lse))
        inputs = beginnings((q, k, v, context.bias, context.sink))
        with torch.enable_grad():
            context = context._replace(bias=inputs[3], sink=inputs[4])
            outputs = reference(*inputs[:3], context, ctx.call)[: 1 if grad_lse is None else 2]
            # (input, the gradient that arrived for its gradient) for those that have both
            pairs = [(t, d) for t, d in zip(inputs, grads, strict=True) if t is not None and d is not None]
            first = torch.autograd.grad(
                outputs, [t for t, _ in pairs], arrived[: len(outputs)], create_graph=True
            )
        *by_arrived, grad_q, grad_k, grad_v, grad_bias, grad_sink = second_derivative(
            first, (*arrived, *inputs), [d for _, d in pairs]
        )
        saved = (None, None)
        context = (None, grad_bias, None, grad_sink, None, None, None)
        return (*by_arrived, grad_q, grad_k, grad_v, *saved, *context, None, None)


def _dispatch_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    alibi_slopes: Tensor | None,
    sink: Tensor | None,
    enable_gqa: bool,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    seed: Tensor | None,
    return_lse: bool,
    **numbers: object,
) -> tuple[Tensor, Tensor, Tensor, Context, Call, bool]:
    """What the refusals see of a call."""
    q, k, v, mask, bias = autocast(q, k, v, mask, bias)
    context = context_of(
        mask, bias, _exact(alibi_slopes, q), _exact(sink, q), seed, cu_seqlens_q, cu_seqlens_k
    )
    names = ("causal", "window", "softcap", "dropout_p", "scale", "max_seqlen_q", "max_seqlen_k")
    call = normalise(q, k, v, context, tuple(numbers[name] for name in names), enable_gqa)
    return q, k, v, context, call, return_lse


dispatch.register("attention", CANDIDATES, attention, _dispatch_arguments)
