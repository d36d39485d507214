"""What a call may look like: kinds, shapes, timesteps. From metadata only; nothing here reads a tensor's values."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ...transforms import obstacle
from . import schema
from .copies import sent


def in_the_widest_dtype(sample: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under autocast tensors of different dtypes meet in the wider one, as in torch's own additions."""
    tensors, device = (sample, *others), sample.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtypes = {t.dtype for t in tensors if t is not None}
    if len(dtypes) == 1 or not all(dtype.is_floating_point for dtype in dtypes):
        return tensors
    widest = functools.reduce(torch.promote_types, dtypes)
    return tuple(None if t is None else t.to(widest) for t in tensors)


def check_tensors(
    sample: Tensor, model_output: Tensor | None, history: Tensor | None, noise: Tensor | None, flags: int
) -> None:
    """TypeError for kinds and dtypes, ValueError for shapes and devices."""
    if not sample.is_floating_point():
        raise TypeError(f"sample must be floating point, got {sample.dtype}")
    if sample.dim() == 0:
        raise ValueError("sample must have a batch dimension, got shape []")
    dtype, device, shape = sample.dtype, sample.device, sample.shape
    if model_output is not None:
        expected = (2 * shape[0], *shape[1:]) if flags & schema.GUIDED else shape
        if model_output.shape != expected:
            what = " (guidance: unconditional, then conditional)" if flags & schema.GUIDED else ""
            raise ValueError(
                f"model_output must have shape {list(expected)}{what}, got {list(model_output.shape)}"
            )
        _same(model_output, "model_output", dtype, device)
    if history is not None:
        if history.shape != shape:
            raise ValueError(f"history must have shape {list(shape)}, got {list(history.shape)}")
        _same(history, "history", dtype, device)
    if noise is not None:
        if noise.shape != shape and not _broadcasts(noise.shape, shape):
            raise ValueError(f"noise must broadcast to shape {list(shape)}, got {list(noise.shape)}")
        _same(noise, "noise", dtype, device)


def _same(t: Tensor, name: str, dtype: torch.dtype, device: torch.device) -> None:
    if t.dtype != dtype:
        raise TypeError(f"{name} must have the dtype of sample, {dtype}, got {t.dtype}")
    if t.device != device:
        raise ValueError(f"{name} must be on the device of sample, {device}, got {t.device}")


def _broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    if len(shape) > len(target):
        return False
    return all(n in (1, m) for n, m in zip(reversed(shape), reversed(target), strict=False))


def rows_of(t: int | Tensor, sample: Tensor, count: int, flags: int) -> tuple[Tensor | None, int]:
    """(rows on the device, 0), or (None, the one row of all samples)."""
    if not isinstance(t, Tensor):
        row = _integer(t)
        if not 0 <= row < count:
            raise IndexError(f"timestep {row} is outside the table's [0, {count - 1}]")
        return None, row
    if t.dtype is not torch.int64:
        if t.dtype is not torch.int32:
            raise TypeError(f"timesteps must be int64 or int32, got {t.dtype}")
        t = t.long()
    if t.device != sample.device:
        if t.device.type != "cpu":
            raise ValueError(f"timesteps must be on the device of sample, {sample.device}, got {t.device}")
        if t.numel() == 1 and _readable(t):
            return rows_of(int(t), sample, count, flags)
        t = sent(t, sample.device)
    if t.dim() > 0 and t.shape != sample.shape[: t.dim()] and t.numel() != 1:
        raise ValueError(
            f"timesteps must have no dimension or the leading sizes of the sample, {list(sample.shape)}, "
            f"got shape {list(t.shape)}"
        )
    if t.dim() > 1 and flags & schema.THRESHOLD:
        raise ValueError("dynamic thresholding takes one timestep a sample")
    return t.contiguous(), 0


def _readable(t: Tensor) -> bool:
    # A plain tensor of the host: reading it waits for nothing.
    return type(t) is Tensor and not torch.compiler.is_compiling() and obstacle() is None


def _integer(t: object) -> int:
    try:
        row = int(t)
    except (TypeError, ValueError) as error:
        raise TypeError(f"a timestep must be an integer or an integer tensor, got {t!r}") from error
    if row != t:
        raise TypeError(f"a timestep must be an integer, got {t!r}")
    return row


def random_seed(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """int64 [2] on the device of `like`, drawn from the generator: torch.manual_seed reproduces it."""
    device = like.device if generator is None else generator.device
    seed = torch.randint(-(2**63), 2**63 - 1, (2,), generator=generator, device=device)
    return seed if device == like.device else sent(seed, like.device)


def with_index_error(
    call: Callable[..., tuple[Tensor, Tensor, Tensor]], rows: Tensor | None, *arguments: object
) -> tuple[Tensor, Tensor, Tensor]:
    """`call(*arguments)`; a CPU kernel's complaint about a row outside the table is an IndexError."""
    if rows is None or torch.compiler.is_compiling():
        return call(*arguments)
    try:
        return call(*arguments)
    except RuntimeError as error:
        if "outside the table" not in str(error):
            raise
        raise IndexError(str(error).splitlines()[0]) from None
