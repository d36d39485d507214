"""Which backend and algorithm may serve a call: the candidates in order of preference, each with its refusal.

A refusal sees the description of the call (`Call`) and then its tensors. One that only says "slower" must not
apply while torch.compile traces (`call.compiling`): what torch offers instead is unrolled there, step by step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _extension, dispatch
from ...dispatch import Candidate
from .. import products, tf32
from . import grid, registration, triton_ops  # noqa: F401, the operators must be defined before they are asked for
from .call import Call

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
    if dispatch.settings.strict or dispatch.settings.backend is not None:
        return None
    return _faster_in_torch(call)


# Measured in float32. An autograd function of ours costs 0.2 ms more than torch's: so many steps it must save.
_FEW_STEPS = {"lstm": 4, "gru": 4, "rnn_tanh": 8, "rnn_relu": 8}
_PLAIN = ("rnn_tanh", "rnn_relu")
# So many units, and of all steps so many, oneDNN's layer trains in less than ours needs around its kernels.
_FEW_UNITS, _FEW_SUMS = 64, 2**13
# From so many sequences on a weight is packed: for AMX too, with whose tiles torch's layer multiplies any number.
_FEWEST_PACKED = 4
# Products below which a single step of a plain cell without gradient costs less in torch.
_SMALL_CELL = 2**15
# The same where MKL has AVX-512, of any rows and of so few that they do not fill a vector; and rows of many units in
# which MKL is near the machine's limit.
_SMALL_WIDE_CELL, _SMALL_WIDE_FEW_ROWS, _FEW_ROWS = 5 * 2**17, 2**23, 16
_MANY_ROWS, _MANY_UNITS = 129, 256


def _faster_in_torch(call: Call) -> str | None:
    """Why torch's own layer would be faster, where one computes the call."""
    if call.packed or call.compiling or not_torchs(call) is not None:
        return None
    if call.dtype is torch.bfloat16 and _extension.cpu_isa() == "amx":
        inferred = call.s.cell == "lstm" and not (call.s.has_projection or call.gradient or call.one_step)
        few = inferred and call.sizes[1] < _FEWEST_PACKED
        return f"fewer than {_FEWEST_PACKED} sequences do not fill the rows of a tile" if few else None
    if call.dtype is not torch.float32:
        return None
    (T, B, _, H, _), cell = call.sizes, call.s.cell
    if call.gradient and T < _FEW_STEPS[cell]:  # noqa: SIM300
        return f"{T} steps do not pay for an autograd function"
    if cell in _PLAIN and T == 1 and not call.gradient and (refusal := _single_plain_step(call)) is not None:
        return refusal
    if (
        cell == "lstm"
        and call.gradient
        and H <= _FEW_UNITS
        and T * B * H <= _FEW_SUMS
        and not call.s.has_projection
    ):
        return f"{T * B} steps of {H} units do not pay for an autograd function"
    if cell != "lstm" or call.s.has_projection or _extension.cpu_isa() not in ("baseline", "avx2"):
        return None
    # oneDNN's layer
    if call.gradient and H <= _FEW_UNITS and B >= 16:
        return f"torch trains {B} sequences of {H} units faster"
    if not call.gradient and H >= 256 and B >= 128:
        return f"torch's products of {B} rows are near the machine's limit"
    return None


def _single_plain_step(call: Call) -> str | None:
    _, B, I, H, _ = call.sizes  # noqa: E741
    size, small = B * H * (I + H), _SMALL_CELL
    if products.wide_mkl():
        if B >= _MANY_ROWS and H >= _MANY_UNITS:
            return f"torch's products of {B} rows are near the machine's limit"
        small = _SMALL_WIDE_FEW_ROWS if B < _FEW_ROWS else _SMALL_WIDE_CELL
    if size < small or not call.one_step:
        return "a single step this small has less overhead in torch"
    return None


def refuse_cuda_fused(call: Call, *tensors: Tensor | None) -> str | None:
    """Why not the CUDA kernels."""
    if call.device.type != "cuda":
        return f"x is on {call.device}"
    if not _CUDA_KERNELS:
        return f"CUDA kernels are not loaded: {_extension.cuda.error or 'built without this family'}"
    if call.dtype is torch.bfloat16 and torch.cuda.get_device_capability(call.device) < (8, 0):
        return "bfloat16 needs compute capability 8.0"
    if dispatch.settings.strict or dispatch.settings.backend is not None:
        return None
    return _better_by_cudnn(call)


# Recurrent weights, in bytes by the size of an element, that a block of a persistent kernel holds in registers and
# shared memory; a cluster has up to 16 blocks, machines before compute capability 9.0 have no clusters. What more
# blocks hold, a cooperative grid serves (grid.py).
_BLOCK_BYTES = {2: 2**18, 4: 5 * 2**15}
_CLUSTER_BLOCKS = 16
_MOST_UNITS = {1: 128, _CLUSTER_BLOCKS: 1024}


def _better_by_cudnn(call: Call) -> str | None:
    """Why cuDNN's layer, where it computes the call: without a persistent kernel ours launches kernels every step."""
    if call.one_step or call.compiling or not_torchs(call) is not None or not _has_cudnn():
        return None
    if call.s.has_projection:
        return "no persistent kernel has a projection, cuDNN needs fewer launches"
    size = call.dtype.itemsize
    if size not in _BLOCK_BYTES:
        return f"no persistent kernel computes in {call.dtype}, cuDNN needs fewer launches"
    blocks = _CLUSTER_BLOCKS if torch.cuda.get_device_capability(call.device) >= (9, 0) else 1
    H, most_units, most_bytes = call.sizes.H, _MOST_UNITS[blocks], blocks * _BLOCK_BYTES[size]
    if most_units < H or call.s.num_gates * H * H * size > most_bytes:
        return grid.refusal(call)
    return None


def _has_cudnn() -> bool:
    return torch.backends.cudnn.enabled and torch.backends.cudnn.is_available()


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
    if not tf32.allowed("rnn"):
        return "torch.backends.cudnn does not allow TF32"
    return triton_ops.refusal(call)


CANDIDATES = [
    Candidate("cpu", "fused", refuse_cpu_fused),
    Candidate("cpu", "aten", refuse_cpu_aten),
    Candidate("cuda", "fused", refuse_cuda_fused),
    Candidate("cuda", "cudnn", refuse_cuda_cudnn),
    Candidate("triton", "fused_tf32", refuse_triton_tf32),
    Candidate("triton", "fused", triton_ops.refusal),
]
