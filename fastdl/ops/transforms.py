"""What every public op asks first: is a transform open, does autocast apply."""

from __future__ import annotations

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_PLAIN = (Tensor, torch.nn.Parameter, FakeTensor)


def transformed(*tensors: Tensor | None) -> bool:
    """Whether plain PyTorch must serve: a functorch transform or forward-mode level is open, the call is being
    exported (torch.export, ONNX, torch.jit.trace: others can only read standard operators), or a subclass came."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        return True
    return any(t is not None and type(t) not in _PLAIN for t in tensors)


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in the autocast dtype if autocast is on for their device; float64 is left alone, as in torch."""
    device_type = tensors[0].device.type
    if not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype is not torch.float64 else t
        for t in tensors
    )
