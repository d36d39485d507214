"""How each backend and algorithm carries a plan out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...dispatch import Choice
from .. import products
from . import registration, triton_ops  # noqa: F401, the operators below must be defined
from .activations import ACTIVATIONS, BY_INPUT, BY_OUTPUT, function


class RawOperators(NamedTuple):
    """The family's raw operators of one backend. An overload called directly skips 1 us of overload resolution."""

    forward: torch._ops.OpOverload
    activation: torch._ops.OpOverload
    activation_inplace: torch._ops.OpOverload
    activation_backward: torch._ops.OpOverload


def _raw(suffix: str) -> RawOperators:
    names = ("linear", "linear_activation", "linear_activation_inplace", "linear_activation_backward")
    return RawOperators(*(getattr(torch.ops.fastdl, name + suffix).default for name in names))


# cpu and cuda are two keys of the same operators; Triton's are operators of their own.
_compiled, _triton = _raw(""), _raw("_triton")
RAW = {"cpu": _compiled, "cuda": _compiled, "triton": _triton}


class Plan(NamedTuple):
    """Everything about a call that follows from metadata: decided once a signature, then remembered."""

    backend: str
    algorithm: str
    activation: str | None
    code: int
    dropout_p: float
    # A product's fresh result may be overwritten: not where a compiler plans the memory.
    overwrite: bool

    @property
    def plain(self) -> bool:
        """Torch's own functions, autograd included."""
        return self.algorithm == "torch" and self.backend != "reference"


def make_plan(choice: Choice, activation: str | None, dropout_p: float) -> Plan:
    overwrite = not torch.compiler.is_compiling()
    return Plan(*choice, activation, ACTIVATIONS[activation], float(dropout_p), overwrite)


Computation = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def computation(plan: Plan, recorded: bool) -> Computation:
    """A plan without dropout as a function of x, weight and bias, with as little in between as there can be."""
    activation, code = plan.activation, plan.code
    if not plan.plain:
        raw = RAW[plan.backend]
        if plan.algorithm == "dot":
            return lambda x, weight, bias: raw.forward(x, weight, bias, None, code, 0.0, False)[0]
        return lambda x, weight, bias: forward(plan, x, weight, bias, None, False)[0]
    if activation is None:
        return F.linear
    activate = function(activation, fresh=plan.overwrite and not recorded)
    return lambda x, weight, bias: activate(F.linear(x, weight, bias))


def forward(
    plan: Plan, x: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor | None, save: bool
) -> tuple[Tensor, Tensor | None]:
    """(output, what backward needs of it)."""
    raw, code = RAW[plan.backend], plan.code
    if plan.algorithm in ("composed", "gemm"):
        pre = products.linear(x, weight, bias)
        if not code and not plan.dropout_p:
            return pre, None
        if plan.overwrite and not (save and plan.activation in BY_INPUT):
            raw.activation_inplace(pre, seed, code, plan.dropout_p)
            output = pre
        else:
            output = raw.activation(pre, seed, code, plan.dropout_p)
    else:
        output, pre = raw.forward(x, weight, bias, seed, code, plan.dropout_p, save)
    if plan.activation in BY_OUTPUT:
        return output, output
    return output, pre if plan.activation in BY_INPUT else None


def backward(
    plan: Plan,
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    seed: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, None where not needed."""
    need_input, need_weight, need_bias = needs
    grad_bias = None
    if plan.code or plan.dropout_p:
        saved = grad_output.new_empty(0) if saved is None else saved
        grad_pre, grad_bias = RAW[plan.backend].activation_backward(
            grad_output, saved, seed, plan.code, plan.dropout_p, need_bias
        )
    else:
        grad_pre = grad_output
        if need_bias:
            grad_bias = as_rows(grad_pre).sum(0)
    rows = as_rows(grad_pre)
    return (
        products.product(rows, weight).view(x.shape) if need_input else None,
        _grad_weight(rows, as_rows(x), weight) if need_weight else None,
        grad_bias if need_bias else None,
    )


def _grad_weight(grad_rows: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """In the layout of the weight: in another, it would be copied on its way to what the weight is a view of."""
    if weight.t().is_contiguous():
        return products.product(rows.t(), grad_rows).t()
    return products.product(grad_rows.t(), rows)


def as_rows(t: Tensor) -> Tensor:
    """[..., n] as [rows, n]; a reshape to -1 would not know how many rows of no elements there are."""
    return t[None] if t.dim() == 1 else t.reshape(t.shape[:-1].numel(), t.shape[-1])
