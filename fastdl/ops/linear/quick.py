"""The choice for the calls that end in microseconds: fp32 and bf16 on the CPU, no dropout, no setting."""

from __future__ import annotations

from collections.abc import Callable
from weakref import ref

from torch import Tensor, bfloat16, dtype, float32, is_grad_enabled
from torch._C import _get_tracing_state, _is_any_autocast_enabled
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from ..._extension import cpu_isa
from ...dispatch import Choice, settings
from ...transforms import obstacle
from .. import products
from .activations import ACTIVATIONS
from .backends import Computation, computation, make_plan
from .sizes import fastest, fastest_bf16

# (elements of x, dtype, activation, recorded): how, and whether by kernels; None: not quickly.
Choices = dict[tuple[int, dtype, str | None, bool], tuple[Computation, bool] | None]
# By the weight's id: the weight, the bias that fits it, what was chosen for them.
_known: dict[int, tuple[Callable[[], Tensor | None], Callable[[], Tensor | None], Choices]] = {}
_CHOICES_MOST = 256
_FASTEST = {float32: fastest, bfloat16: fastest_bf16}


def quick_choice(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> Computation | None:
    """What computes a call without dropout, found in 1 us instead of 5; None where more is to be asked.

    Torch's functions are right under any transform and for any kind of tensor. Whether x fits the weight is left to
    what computes, which raises or gives a result elsewhere: then `forget` it, it was moved.
    """
    if settings.backend is not None or settings.strict or _is_any_autocast_enabled() or is_dynamo_compiling():
        return None
    if _get_tracing_state() is not None:  # what is looked at once would be in the first graph alone
        return None
    try:
        kind = x.dtype
        if kind is not weight.dtype:
            return None
        known = _known.get(id(weight))
        if known is None or known[0]() is not weight or known[1]() is not bias:
            known = _learn(weight, bias)
            if known is None:
                return None
        recorded = is_grad_enabled() and (
            x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        )
        key = (x.numel(), kind, activation, recorded)
        choices = known[2]
        found = choices[key] if key in choices else _choose(choices, weight, *key)
    except (AttributeError, TypeError):  # no tensors, an activation that is none
        return None
    if found is None:
        return None
    compute, by_kernels = found
    if by_kernels and (obstacle(x, weight, bias) is not None or not weight.is_contiguous() or x.is_nested):
        return None
    return compute


def forget(weight: Tensor) -> None:
    """Look at the weight and its bias anew in the next call."""
    _known.pop(id(weight), None)


def _learn(weight: Tensor, bias: Tensor | None) -> tuple | None:
    """A weight and a bias that fit each other, remembered unless they are made anew for each call."""
    if weight.dtype not in _FASTEST or products.slow_in_torch(weight):
        return None
    if not weight.is_cpu or weight.dim() != 2 or cpu_isa() is None:
        return None
    if bias is not None and not (
        bias.dtype is weight.dtype and bias.is_cpu and bias.shape == weight.shape[:1]
    ):
        return None
    if weight._is_view() or type(weight) not in (Tensor, Parameter):
        return None
    key = id(weight)
    found = (
        ref(weight, lambda _: _known.pop(key, None)),
        (lambda: None) if bias is None else ref(bias),
        {},
    )
    _known[key] = found
    return found


def _choose(
    choices: Choices, weight: Tensor, elements: int, kind: dtype, activation: str | None, recorded: bool
) -> tuple[Computation, bool] | None:
    found, (N, K) = None, weight.shape
    if type(elements) is not int or type(N) is not int:  # traced, symbolic
        return None
    choose = _FASTEST.get(kind)
    if K and choose is not None and activation in ACTIVATIONS:
        algorithm = choose(elements // K, N, K, activation, recorded)
        by_kernels = algorithm != "torch"
        if not (by_kernels and recorded):
            plan = make_plan(Choice("cpu", algorithm), activation, 0.0)
            found = computation(plan, recorded), by_kernels
    if len(choices) >= _CHOICES_MOST:
        choices.clear()
    choices[elements, kind, activation, recorded] = found
    return found
