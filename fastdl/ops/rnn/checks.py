"""Every tensor of a call of the recurrent ops, checked before any memory is touched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .options import Options
from .structure import Structure

HX = Tensor | tuple[Tensor, Tensor] | None


class Sizes(NamedTuple):
    """T steps, B sequences, I inputs, H hidden units, R columns of h."""

    T: int
    B: int
    I: int  # noqa: E741, torch's letter
    H: int
    R: int


def check_dense(x: Tensor) -> None:
    """TypeError for a nested tensor: torch has no recurrent layer of one either, and its shape cannot be asked for."""
    if x.is_nested:
        raise TypeError("x must be a dense Tensor, got a nested one")


def parameter_list(params: Iterable[Tensor]) -> list[Tensor]:
    """`params` as a list, a generator taken once; TypeError unless it is an iterable of several."""
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise TypeError(f"params must be a list of Tensors, got {type(params).__name__}")
    return list(params)


def check_kinds(x: Tensor, params: list[Tensor], **others: Tensor | None) -> None:
    """TypeError unless x is a dense Tensor, every parameter a Tensor and every other one, or None."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a Tensor, got {type(x).__name__}")
    check_dense(x)
    for i, t in enumerate(params):
        if not isinstance(t, Tensor):
            raise TypeError(f"params[{i}] must be a Tensor, got {type(t).__name__}")
    for name, t in others.items():
        if t is not None and not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a Tensor or None, got {type(t).__name__}")


def split_states(hx: HX, cell: str) -> tuple[Tensor | None, Tensor | None]:
    """(h_0, c_0) of an op's `hx`."""
    if hx is None:
        return None, None
    if cell != "lstm":
        if not isinstance(hx, Tensor):
            raise TypeError(f"hx must be a Tensor h_0 or None, got {type(hx).__name__}")
        return hx, None
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        got = f"{len(hx)} of them" if isinstance(hx, (tuple, list)) else type(hx).__name__
        raise TypeError(f"hx must be a pair (h_0, c_0) or None, got {got}")
    h_0, c_0 = hx
    if not isinstance(h_0, Tensor) or not isinstance(c_0, Tensor):
        got = f"({type(h_0).__name__}, {type(c_0).__name__})"
        raise TypeError(f"hx must be a pair (h_0, c_0) of Tensors or None, got {got}")
    return h_0, c_0


def find_structure(params: list[Tensor], options: Options) -> Structure:
    """The structure of every layer; a projection is recognised by the number of parameters."""
    stacks = options.num_layers * options.directions
    plain = options.structure(False)
    expected = [len(plain.names()) * stacks]
    if len(params) == expected[0]:
        return plain
    if options.cell == "lstm":
        projecting = options.structure(True)
        expected.append(len(projecting.names()) * stacks)
        if len(params) == expected[1]:
            return projecting
    raise ValueError(
        f"params must hold {' or '.join(map(str, expected))} tensors ({', '.join(plain.names())} of each layer and "
        f"direction), got {len(params)}"
    )


def check_sequence(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    params: list[Tensor],
    s: Structure,
    num_layers: int,
    batch_sizes: Tensor | None,
    packed_batch: int | None,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> Sizes:
    """Kinds, dtypes, devices and shapes of a whole stack."""
    check_floating(x, hx=(h_0, c_0), params=params)
    if batch_sizes is not None:
        if x.dim() != 2:
            raise ValueError(f"x must have shape [total, I] with batch_sizes, got {list(x.shape)}")
        T, B = batch_sizes.shape[0], packed_batch
        if lengths is not None:
            raise ValueError("lengths and batch_sizes say the same: give one of them")
    else:
        if x.dim() != 3:
            layout = "[B, T, I]" if s.batch_first else "[T, B, I]"
            raise ValueError(f"x must have shape {layout}, got {list(x.shape)}")
        B, T = x.shape[:2] if s.batch_first else (x.shape[1], x.shape[0])
    H, R = check_parameters(params, s, x.shape[-1], num_layers)
    check_states(h_0, c_0, num_layers * s.directions, B, H, R)
    _check_lengths(x, lengths, B)
    if reset is not None:
        check_mask("reset", reset, x, tuple(x.shape[:-1]))
    return Sizes(T, B, x.shape[-1], H, R)


def check_states(h_0: Tensor | None, c_0: Tensor | None, states: int, B: int, H: int, R: int) -> None:
    """ValueError unless both have the shape that belongs to num_layers * directions = `states`."""
    for name, t, width in (("h_0", h_0, R), ("c_0", c_0, H)):
        expected = (states, B, width)
        if t is not None and tuple(t.shape) != expected:
            raise ValueError(
                f"{name} must have shape [num_layers * directions, B, {'R' if name == 'h_0' else 'H'}] = "
                f"{list(expected)}, got {list(t.shape)}"
            )


def check_floating(x: Tensor, **groups: list[Tensor | None] | tuple[Tensor | None, ...]) -> None:
    """TypeError unless x is floating point and every other tensor has its dtype and device; c_0 may be float32."""
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}")
    for group, tensors in groups.items():
        for i, t in enumerate(tensors):
            if t is None:
                continue
            name = group if len(tensors) == 1 else f"{group}[{i}]"
            kept = group == "hx" and i == 1 and t.dtype is torch.float32
            if t.dtype != x.dtype and not (kept and x.dtype is not torch.float64):
                raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {t.dtype}")
            if t.device != x.device:
                raise TypeError(f"{name} must be on the device of x, {x.device}, got {t.device}")


def check_parameters(
    params: list[Tensor], s: Structure, input_size: int, num_layers: int = 1
) -> tuple[int, int]:
    """(H, R), read off the first weight_hh; every other shape must follow from them."""
    weight_hh = params[1]
    if weight_hh.dim() != 2 or weight_hh.shape[0] % s.num_gates or min(weight_hh.shape) < 1:
        raise ValueError(
            f"weight_hh must have shape [{s.num_gates} * H, R], not empty, got {list(weight_hh.shape)}"
        )
    H, R = weight_hh.shape[0] // s.num_gates, weight_hh.shape[1]
    if s.has_projection and R >= H:
        raise ValueError(f"the projection of h must be smaller than H = {H}, got {R}")
    if not s.has_projection and R != H:
        expected = [s.num_gates * H, H]
        raise ValueError(
            f"weight_hh must have shape [{s.num_gates} * H, H] = {expected}, got {list(weight_hh.shape)}"
        )
    at = iter(params)
    for layer in range(num_layers):
        shapes = s.shapes(input_size if layer == 0 else R * s.directions, H, R)
        for direction in range(s.directions):
            for name, expected in shapes.items():
                got = tuple(next(at).shape)
                if got != expected:
                    where = f"{name} of layer {layer}" + (", reverse" if direction else "")
                    raise ValueError(f"{where} must have shape {list(expected)}, got {list(got)}")
    return H, R


def packed_batch(batch_sizes: Tensor, h_0: Tensor | None) -> int:
    """B of packed rows; reads batch_sizes only where h_0 [states, B, R] does not say it."""
    if batch_sizes.device.type != "cpu" or batch_sizes.dtype is not torch.int64 or batch_sizes.dim() != 1:
        raise TypeError(
            f"batch_sizes must be [T] int64 on the CPU, got {list(batch_sizes.shape)} {batch_sizes.dtype} on "
            f"{batch_sizes.device}"
        )
    if batch_sizes.shape[0] == 0:
        raise ValueError("batch_sizes must not be empty")
    return int(batch_sizes[0]) if h_0 is None or h_0.dim() != 3 else h_0.shape[1]


def check_batch_sizes(batch_sizes: Tensor, total: int, B: int) -> None:
    """ValueError unless the values are positive, do not increase, start with B and sum to `total`."""
    counts = batch_sizes.tolist()
    if counts != sorted(counts, reverse=True) or counts[-1] < 1:
        raise ValueError("batch_sizes must be positive and not increase")
    if counts[0] != B:
        raise ValueError(f"hx must have B = batch_sizes[0] = {counts[0]}, got {B}")
    if sum(counts) != total:
        raise ValueError(f"x must have sum(batch_sizes) = {sum(counts)} rows, got {total}")


def _check_lengths(x: Tensor, lengths: Tensor | None, B: int) -> None:
    if lengths is None:
        return
    if lengths.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"lengths must be int64 or int32, got {lengths.dtype}")
    if tuple(lengths.shape) != (B,):
        raise ValueError(f"lengths must have shape [B] = [{B}], got {list(lengths.shape)}")
    if lengths.device != x.device and lengths.device.type != "cpu":
        raise TypeError(f"lengths must be on the CPU or the device of x, {x.device}, got {lengths.device}")


def check_length_values(lengths: Tensor, T: int) -> None:
    """ValueError unless every length is from 0 to T; for lengths on the CPU."""
    if lengths.numel():
        least, most = (int(v) for v in torch.aminmax(lengths))
        if least < 0 or most > T:
            raise ValueError(f"lengths must be from 0 to T = {T}, got {least if least < 0 else most}")


def check_mask(name: str, mask: Tensor, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raises unless `mask` is bool, on the device of x and of `shape`."""
    if mask.dtype is not torch.bool:
        raise TypeError(f"{name} must be bool, got {mask.dtype}")
    if mask.device != x.device:
        raise TypeError(f"{name} must be on the device of x, {x.device}, got {mask.device}")
    if tuple(mask.shape) != shape:
        raise ValueError(f"{name} must have the rows of x, {list(shape)}, got {list(mask.shape)}")
