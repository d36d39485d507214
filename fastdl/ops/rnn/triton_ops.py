"""The Triton kernels as operators: which calls they serve, how they are launched.

`fastdl::rnn_sequence_triton` has the signature of `fastdl::rnn_sequence`: one dispatch key holds one kernel;
`fastdl::rnn_sequence_triton_tf32` makes float32 products from TF32 numbers. Importing triton takes seconds, so the
kernels are imported by the first call, inside the operator, where Dynamo does not look.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from ... import _extension
from ..raw_operators import define_triton
from . import registration, schema, triton_tiles
from .call import Call
from .steps import Context
from .structure import CELLS, Structure

INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = INSTALLED and _extension.triton_interpreted()

# The operators' suffix -> how a product of two fp32 numbers is made.
PRECISIONS = {"triton": "ieee", "triton_tf32": "tf32"}

_INT32 = 2**31 - 2**16


def refusal(call: Call, *tensors: Tensor | None) -> str | None:
    """Why not the Triton kernels, whose fp32 products are exact; None if they serve."""
    s, sizes, device = call.s, call.sizes, call.device
    if not INSTALLED:
        return "triton is not installed"
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"x is on {device}"
    if call.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no kernel for {call.dtype}"
    on_gpu, bfloat16 = device.type == "cuda", call.dtype == torch.bfloat16
    if on_gpu and bfloat16 and torch.cuda.get_device_properties(device).major < 8:
        return "bfloat16 needs compute capability 8.0"
    if s.layer_norm:
        return "layer norm is over all gates, which no program of a step holds"
    if s.directions * s.num_gates * sizes.H * max(sizes.R, sizes.B) >= _INT32:
        return "weight_hh or the states have 2^31 elements or more"
    return None


class _Launch:
    """What both launches of a call are given: sizes, options, weights of all directions, masks as bytes."""

    def __init__(
        self, s: Structure, weights: list[Tensor], context: Context, rows: Tensor, batch: int
    ) -> None:
        by_direction = s.by_direction(weights)
        self.weights = {name: _together([w[name] for w in by_direction]) for name in by_direction[0]}
        gate_rows, self.R = by_direction[0]["weight_hh"].shape
        self.s, self.B, self.H = s, batch, gate_rows // s.num_gates
        self.T = rows.shape[1 if s.batch_first else 0]
        self.offsets = None
        if context.batch_sizes is not None:
            self.T = len(context.batch_sizes)
            first_rows = [0, *itertools.accumulate(context.batch_sizes.tolist())]
            self.offsets = torch.tensor(first_rows, dtype=torch.int32, device=rows.device)
        self.zoneout, self.itemsize = context.zoneout, rows.element_size()
        elements = rows.shape[:-1].numel() * s.directions * 4 * self.H
        extent = sum((n - 1) * stride for n, stride in zip(rows.shape, rows.stride(), strict=True))
        self.index_64 = max(elements, extent) >= _INT32
        self.context = [
            self.offsets,
            _contiguous(context.lengths),
            _bytes(context.reset),
            _contiguous(context.recurrent_mask),
            *map(_bytes, (context.zoneout_h, context.zoneout_c)),
        ]
        self.varied = s.peephole or any(self.zoneout) or any(t is not None for t in self.context)
        self.all_steps = triton_tiles.takes_all_steps(s.num_gates, self.H, self.R, self.itemsize)

    def constants(self, precision: str) -> dict[str, object]:
        return {
            "CELL": CELLS.index(self.s.cell),
            "G": self.s.num_gates,
            "D": self.s.directions,
            "H": self.H,
            "R": self.R,
            "BATCH_FIRST": self.s.batch_first and self.offsets is None,
            "INDEX_64": self.index_64,
            "ZONEOUT_H": self.zoneout[0] != 0,
            "ZONEOUT_C": self.zoneout[1] != 0,
            "INPUT_PRECISION": precision,
            # The default changes between versions of triton.
            "enable_fp_fusion": True,
        }

    def grid(self, tiles: triton_tiles.Tiles, width: int | None = None) -> tuple[int, ...]:
        """Programs of all steps, or of one step over `width` columns."""
        columns = () if width is None else (-(-width // tiles.BLOCK_H),)
        return (-(-self.B // tiles.BLOCK_B), *columns, self.s.directions)


def _together(directions: list[Tensor]) -> Tensor:
    return directions[0].contiguous() if len(directions) == 1 else torch.stack(directions)


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _stored(t: Tensor) -> Tensor | None:
    return t if t.numel() else None


def rnn_sequence(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    recurrent_mask: Tensor | None,
    zoneout_h: Tensor | None,
    zoneout_c: Tensor | None,
    structure: list[int],
    zoneout: list[float],
    save: bool,
    *,
    precision: str,
) -> tuple[Tensor, ...]:
    from .triton_forward import rnn_forward_sequence_kernel, rnn_forward_step_kernel

    found = registration.fake_rnn_sequence(
        x, h_0, c_0, weights, batch_sizes, lengths, reset, recurrent_mask, zoneout_h, zoneout_c, structure,
        zoneout, save,
    )  # fmt: skip
    output, h_n, c_n, gates, cells, _ = found
    s = Structure.unpack(structure)
    context = Context(batch_sizes, lengths, reset, recurrent_mask, zoneout_h, zoneout_c, tuple(zoneout))
    launch = _Launch(s, weights, context, x, h_n.shape[1])
    # A step reads one half and writes the other.
    states = x.new_empty(2, *h_n.shape)
    states[0].copy_(h_0) if h_0 is not None else states[0].zero_()
    c_n.copy_(c_0) if c_0 is not None else c_n.zero_()
    x = x if x.stride(-1) == 1 else x.contiguous()
    strides = (0, x.stride(0)) if launch.offsets is not None else (x.stride(1), x.stride(0))
    if launch.offsets is None and not s.batch_first:
        strides = strides[::-1]
    tensors = (
        x, states, states.new_empty(s.directions, launch.B, launch.H) if s.has_projection else None,
        *map(launch.weights.get, ("weight_hh", "bias_hh", "weight_hr", "weight_peephole")),
        output, c_n, _stored(gates), _stored(cells), *launch.context,
    )  # fmt: skip
    numbers, constants = (launch.T, launch.B, *strides, *zoneout), launch.constants(precision)
    tiles = triton_tiles.forward_tiles(s.num_gates, launch.H, launch.all_steps, precision, launch.itemsize)
    if not launch.B or not launch.T:
        pass
    elif launch.all_steps:
        with _on_device_of(x):
            rnn_forward_sequence_kernel[launch.grid(tiles)](
                *tensors, *numbers, **constants, **tiles._asdict()
            )
    else:
        stages = (launch.H, launch.R) if s.has_projection else (launch.H,)
        with _on_device_of(x):
            for step, (stage, width) in itertools.product(range(launch.T), enumerate(stages)):
                rnn_forward_step_kernel[launch.grid(tiles, width)](
                    *tensors, step, *numbers, **constants, STAGE=stage, **tiles._asdict()
                )
    h_n.copy_(states[launch.T % 2])
    return found


def rnn_sequence_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    rstd: Tensor,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    recurrent_mask: Tensor | None,
    zoneout_h: Tensor | None,
    zoneout_c: Tensor | None,
    structure: list[int],
    zoneout: list[float],
    *,
    precision: str,
) -> tuple[Tensor, ...]:
    from .triton_backward import rnn_backward_sequence_kernel, rnn_backward_step_kernel

    found = registration.fake_rnn_sequence_backward(
        grad_output, grad_h_n, grad_c_n, h_0, c_0, weights, output, gates, cells, rstd, batch_sizes, lengths,
        reset, recurrent_mask, zoneout_h, zoneout_c, structure, zoneout,
    )  # fmt: skip
    grad_gates, grad_gates_hh, grad_h_0, grad_c_0, grad_projected, _ = found
    s = Structure.unpack(structure)
    context = Context(batch_sizes, lengths, reset, recurrent_mask, zoneout_h, zoneout_c, tuple(zoneout))
    launch = _Launch(s, weights, context, output, grad_h_0.shape[1])
    carry = grad_h_0.new_zeros(grad_h_0.shape, dtype=torch.float32)
    if grad_h_n is not None:
        carry.copy_(grad_h_n)
    grad_c_0.copy_(grad_c_n) if grad_c_n is not None else grad_c_0.zero_()
    h_0 = torch.zeros_like(grad_h_0) if h_0 is None else h_0.contiguous()
    c_0 = torch.zeros_like(grad_c_0) if c_0 is None else c_0.contiguous()
    tensors = (
        _contiguous(grad_output), h_0, c_0,
        *map(launch.weights.get, ("weight_hh", "weight_hr", "weight_peephole")),
        output.contiguous(), gates.contiguous(), cells.contiguous(),
        grad_gates, grad_gates_hh, grad_h_0, carry, grad_c_0, _stored(grad_projected), *launch.context,
    )  # fmt: skip
    numbers, constants = (launch.T, launch.B, *zoneout), launch.constants(precision)
    tiles = triton_tiles.backward_tiles(launch.H, launch.all_steps, launch.varied, precision, launch.itemsize)
    if not launch.B or not launch.T:
        grad_h_0.copy_(carry)
    elif launch.all_steps:
        with _on_device_of(output):
            rnn_backward_sequence_kernel[launch.grid(tiles)](
                *tensors, *numbers, **constants, **tiles._asdict()
            )
    else:
        stages = (launch.R, launch.H) if s.has_projection else (launch.R,)
        launches = [*itertools.product(range(launch.T), enumerate(stages)), (launch.T, (2, launch.R))]
        with _on_device_of(output):
            for step, (stage, width) in launches:
                rnn_backward_step_kernel[launch.grid(tiles, width)](
                    *tensors, step, *numbers, **constants, STAGE=stage, **tiles._asdict()
                )
    return found


def _kernels(precision: str) -> dict[str, Callable]:
    return {
        name: functools.partial(kernel, precision=precision)
        for name, kernel in (("rnn_sequence", rnn_sequence), ("rnn_sequence_backward", rnn_sequence_backward))
    }


libraries = [
    define_triton(schema.SEQUENCES, _kernels(precision), vars(registration), INTERPRETED, suffix)
    for suffix, precision in PRECISIONS.items()
]
