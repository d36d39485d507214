"""Which backend and algorithm may serve a call: the candidates in order of preference, each with its refusal.

A refusal sees the description of the call (`Call`) and then its tensors. One that only says "slower" must not
apply while torch.compile traces (`call.compiling`): what torch offers instead is unrolled there, step by step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ... import _extension, dispatch
from ...dispatch import Candidate
from . import registration, triton_ops  # noqa: F401, the operators must be defined before they are asked for
from .checks import Sizes
from .structure import Structure


class Call(NamedTuple):
    """What is asked for, the same for every layer of a stack; sizes are those of the first layer."""

    s: Structure
    sizes: Sizes
    num_layers: int
    dtype: torch.dtype
    device: torch.device
    one_step: bool  # a cell
    packed: bool
    lengths: bool
    reset: bool
    recurrent_mask: bool
    zoneout: tuple[float, float]
    zoneout_masks: bool  # else the expectation
    dropout: float  # between layers, 0 unless training
    gradient: bool  # something requires grad
    checkpoint: bool
    compiling: bool


_KERNELS = ("rnn_sequence", "rnn_sequence_backward")


def has_kernels(key: str) -> bool:
    """Whether compiled kernels of both raw operators are registered for a dispatch key, "CPU" or "CUDA"."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return all(has(f"fastdl::{name}", key) for name in _KERNELS)


_CPU_KERNELS, _CUDA_KERNELS = has_kernels("CPU"), has_kernels("CUDA")


def refuse_cpu_fused(call: Call, *tensors: Tensor | None) -> str | None:
    """Why not the C++ kernels."""
    if call.device.type != "cpu":
        return f"x is on {call.device}"
    if not _CPU_KERNELS:
        return f"CPU kernels are not loaded: {_extension.cpu.error or 'built without this family'}"
    if call.dtype == torch.float64:
        return "the CPU kernels compute in float32"
    return None


def refuse_cuda_fused(call: Call, *tensors: Tensor | None) -> str | None:
    """Why not the CUDA kernels."""
    if call.device.type != "cuda":
        return f"x is on {call.device}"
    if not _CUDA_KERNELS:
        return f"CUDA kernels are not loaded: {_extension.cuda.error or 'built without this family'}"
    return None


def refuse_cpu_aten(call: Call, *tensors: Tensor | None) -> str | None:
    """Why not torch's own layer (oneDNN's for LSTM inference)."""
    if call.device.type != "cpu":
        return f"x is on {call.device}"
    return not_torchs(call)


def refuse_cuda_cudnn(call: Call, *tensors: Tensor | None) -> str | None:
    """Why not torch's own layer (cuDNN's)."""
    if call.device.type != "cuda":
        return f"x is on {call.device}"
    return not_torchs(call)


def not_torchs(call: Call) -> str | None:
    """Why no layer of torch computes this, on any device."""
    s = call.s
    asked = {
        "lengths": call.lengths,
        "reset": call.reset,
        "recurrent dropout": call.recurrent_mask,
        "zoneout": call.zoneout != (0.0, 0.0),
        "layer norm": s.layer_norm,
        "a peephole": s.peephole,
        "recomputation": call.checkpoint,
    }
    for name, wanted in asked.items():
        if wanted:
            return f"torch has no {name}"
    if call.sizes.T == 0 or call.sizes.B == 0:
        return "torch's layer takes no empty sequence"
    return None


def refuse_triton_tf32(call: Call, *tensors: Tensor | None) -> str | None:
    """Why not Triton's kernels with fp32 products rounded to TF32."""
    if call.dtype is not torch.float32:
        return f"TF32 is for float32, x is {call.dtype}"
    if dispatch.settings.precision == "strict":
        return "precision 'strict' refuses TF32's error"
    if not torch.backends.cudnn.allow_tf32:
        return "torch.backends.cudnn.allow_tf32 is off"
    return triton_ops.refusal(call)


CANDIDATES = [
    Candidate("cpu", "fused", refuse_cpu_fused),
    Candidate("cpu", "aten", refuse_cpu_aten),
    Candidate("cuda", "fused", refuse_cuda_fused),
    Candidate("cuda", "cudnn", refuse_cuda_cudnn),
    Candidate("triton", "fused_tf32", refuse_triton_tf32),
    Candidate("triton", "fused", triton_ops.refusal),
]
