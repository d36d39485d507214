"""What every public op asks first: must plain PyTorch serve, does autocast apply, is the call recorded."""

from __future__ import annotations

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _get_tracing_state, _is_any_autocast_enabled
from torch._subclasses.fake_tensor import FakeTensor
from torch.compiler import is_dynamo_compiling

_PLAIN = (Tensor, torch.nn.Parameter, FakeTensor)


def obstacle(*tensors: Tensor | None) -> str | None:
    """Why only plain PyTorch can serve a call, whatever the op; None if kernels may.

    Under a transform the reference is right by construction; an exporter can only read standard operators.
    """
    if _are_functorch_transforms_active():
        return "a functorch transform is open"
    if forward_ad._current_level >= 0:
        return "a forward-mode level is open"
    if _get_tracing_state() is not None or torch.compiler.is_exporting():
        return "the call is being exported"
    for t in tensors:
        if t is not None and type(t) not in _PLAIN:
            return f"no kernel for the tensor subclass {type(t).__name__}"
    return None


# Torch's own name for what `is_grads_batched` hands to a backward; without it, that is a functorch vmap as any other.
_is_mapped = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda _: False)


def batched(*grads: Tensor | None) -> bool:
    """Whether vmap maps a backward, by torch.vmap or by `is_grads_batched`; Dynamo traces neither."""
    if is_dynamo_compiling():
        return False
    return _are_functorch_transforms_active() or any(g is not None and _is_mapped(g) for g in grads)


def eager() -> bool:
    """Whether no autocast, compiler, transform, forward-mode level or tracer has a say in a call: asked in 0.5 us."""
    if is_dynamo_compiling() or _is_any_autocast_enabled() or _are_functorch_transforms_active():
        return False
    return forward_ad._current_level < 0 and _get_tracing_state() is None


def distinct(*arguments: object) -> tuple:
    """The arguments of an autograd.Function, a tensor given again as a view: Dynamo takes none twice."""
    if not is_dynamo_compiling():
        return arguments
    found: list[object] = []
    for a in arguments:
        again = isinstance(a, Tensor) and any(a is b for b in found)
        found.append(a.view_as(a) if again else a)
    return tuple(found)


def needs_gradient(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a call is recorded for backward."""
    return torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in the autocast dtype if autocast is on for their device; float64 is left alone, as in torch."""
    device_type = tensors[0].device.type
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype is not torch.float64 else t
        for t in tensors
    )
