"""Which backend may serve a call, and how each carries it out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ... import _extension, dispatch
from ...dispatch import Candidate, Choice
from . import registration, schema, triton_ops  # noqa: F401, the operators below must be defined
from .reference import Options


class Call(NamedTuple):
    """What a choice depends on."""

    device: torch.device
    dtype: torch.dtype
    flags: int
    rescaled: bool
    noise_in_x0: bool
    needs_grad: bool


def _limits(call: Call) -> str | None:
    if call.needs_grad and (call.rescaled or call.flags & schema.THRESHOLD):
        return "a gradient through guidance rescale or dynamic thresholding"
    if call.needs_grad and call.noise_in_x0 and call.flags & schema.CLIP:
        return "a gradient through clipping of an x_0 that contains noise"
    return None


def refuse_cpu(call: Call, *_: Tensor | None) -> str | None:
    """Why not the CPU kernels."""
    if call.device.type != "cpu":
        return f"sample is on {call.device}"
    if not _extension.cpu.loaded:
        return f"CPU kernels are not loaded: {_extension.cpu.error}"
    return _limits(call)


def refuse_cuda(call: Call, *_: Tensor | None) -> str | None:
    """Why not the CUDA kernels."""
    if call.device.type != "cuda":
        return f"sample is on {call.device}"
    if not _extension.cuda.loaded:
        return f"CUDA kernels are not loaded: {_extension.cuda.error}"
    return _limits(call)


def refuse_triton(call: Call, *_: Tensor | None) -> str | None:
    """Why not the Triton kernels."""
    if (reason := triton_ops.unavailable(call.device, call.dtype)) is not None:
        return reason
    return _limits(call)


CANDIDATES = [
    Candidate("cpu", "fused", refuse_cpu),
    Candidate("cuda", "fused", refuse_cuda),
    Candidate("triton", "fused", refuse_triton),
]

_chosen: dict[tuple, Choice] = {}


def choose(op: str, call: Call) -> Choice:
    """As dispatch.choose; what was chosen for the same call under the same settings is remembered."""
    if torch.compiler.is_compiling():
        return dispatch.choose(op, call)
    settings = dispatch.settings
    key = (op, call, settings.backend, settings.strict)
    choice = _chosen.get(key)
    if choice is None:
        choice = _chosen[key] = dispatch.choose(op, call)
    return choice


_FAMILY = torch.ops.fastdl
FORWARD = {
    "cpu": _FAMILY.diffusion_step.default,
    "cuda": _FAMILY.diffusion_step.default,
    "triton": _FAMILY.diffusion_step_triton.default,
}
BACKWARD = {
    "cpu": _FAMILY.diffusion_step_backward.default,
    "cuda": _FAMILY.diffusion_step_backward.default,
    "triton": _FAMILY.diffusion_step_backward_triton.default,
}


def forward(
    backend: str,
    sample: Tensor,
    model_output: Tensor | None,
    history: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    rows: Tensor | None,
    row: int,
    table: Tensor,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """(result, x_0, value), each empty unless its flag is set."""
    return FORWARD[backend](sample, model_output, history, noise, seed, rows, row, table, *options)
