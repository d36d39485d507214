"""The Triton kernels as operators: which calls they serve, how they are launched.

`fastdl::<op>_triton` has the signature of `fastdl::<op>`: one dispatch key holds one kernel. Importing triton takes
seconds, so the kernels are imported by the first call, inside the operator, where Dynamo does not look.
"""

from __future__ import annotations

import contextlib
import importlib.util

import torch
from torch import Tensor

from ... import _extension
from ..memory_format import is_channels_last
from ..raw_operators import define_triton
from . import registration, schema
from .reference import dense_like

INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = INSTALLED and _extension.triton_interpreted()
BLOCK = 1024


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why not Triton on this device and dtype; None if it serves."""
    if not INSTALLED:
        return "triton is not installed"
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"sample is on {device}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no kernel for {dtype}"
    if (
        device.type == "cuda"
        and dtype is torch.bfloat16
        and torch.cuda.get_device_capability(device) < (8, 0)
    ):
        return "bfloat16 needs compute capability 8.0"
    return None


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _in_order(t: Tensor | None, channels_last: bool) -> Tensor | None:
    if t is None:
        return None
    return t.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _samples(like: Tensor, rows: Tensor | None) -> tuple[int, int]:
    """(samples with a row of their own, elements of each); all together where they share one."""
    samples = 1 if rows is None or rows.numel() == 1 else rows.numel()
    return samples, like.numel() // samples


def _grid(samples: int, size: int) -> tuple[int, int]:
    return -(-(size + 3) // BLOCK), samples


def diffusion_step(
    sample: Tensor,
    model_output: Tensor | None,
    history: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    rows: Tensor | None,
    row: int,
    table: Tensor,
    flags: int,
    guidance: float,
    rescale: float,
    limit: float,
    quantile: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from .triton_kernels import diffusion_step_kernel

    outputs = registration.fake_diffusion_step(
        sample, model_output, history, noise, seed, rows, row, table, flags
    )
    if sample.numel() == 0:
        return registration.diffusion_step(
            sample,
            model_output,
            history,
            noise,
            seed,
            rows,
            row,
            table,
            flags,
            guidance,
            rescale,
            limit,
            quantile,
        )
    channels_last = is_channels_last(outputs[0] if flags & schema.WANT_PREV else sample)
    tensors = (
        *(_in_order(t, channels_last) for t in (sample, model_output, history, noise)), seed, rows, table,
        *(t if flags & want else None for t, want in zip(outputs, _WANTS, strict=True)),
    )  # fmt: skip
    guided = bool(flags & schema.GUIDED)
    with _on_device_of(sample):
        if flags & schema.THRESHOLD or (guided and rescale != 0):
            _launch_by_sample(tensors, row, flags, guidance, rescale, limit, quantile)
            return outputs
        samples, size = _samples(sample, rows)
        diffusion_step_kernel[_grid(samples, size)](
            *tensors, size, sample.numel(), row, table.shape[0], guidance, limit,
            ROW_STRIDE=int(samples > 1), GUIDED=guided, CLIP=bool(flags & schema.CLIP), BLOCK=BLOCK,
        )  # fmt: skip
    return outputs


def _launch_by_sample(
    tensors: tuple[Tensor | None, ...],
    row: int,
    flags: int,
    guidance: float,
    rescale: float,
    limit: float,
    quantile: float,
) -> None:
    from .triton_sample_kernel import diffusion_step_sample_kernel

    sample, *_, rows, table = tensors[:7]
    samples = sample.shape[0]
    size = sample.numel() // samples
    if size >= 2**31:
        raise ValueError(f"a sample must have fewer than 2**31 elements here, got {size}")
    if rows is not None and rows.numel() not in (1, samples):
        raise ValueError("this needs one timestep a sample")
    position = quantile * (size - 1)
    low = int(position)
    diffusion_step_sample_kernel[(samples,)](
        *tensors, size, sample.numel(), row, table.shape[0], guidance, rescale, limit, low, position - low,
        ROW_STRIDE=int(rows is not None and rows.numel() > 1), GUIDED=bool(flags & schema.GUIDED),
        RESCALED=bool(flags & schema.GUIDED) and rescale != 0, CLIP=bool(flags & schema.CLIP),
        THRESHOLD=bool(flags & schema.THRESHOLD), BLOCK=BLOCK,
        # Each pass computes x_0 anew, and all must find the same bits: nothing is contracted in one of them alone.
        enable_fp_fusion=False,
    )  # fmt: skip


def diffusion_step_backward(
    grad_prev: Tensor | None,
    grad_x0: Tensor | None,
    sample: Tensor | None,
    model_output: Tensor | None,
    rows: Tensor | None,
    row: int,
    table: Tensor,
    flags: int,
    guidance: float,
    limit: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from .triton_kernels import diffusion_step_backward_kernel

    gradients = registration.fake_diffusion_step_backward(
        grad_prev, grad_x0, sample, model_output, rows, row, table, flags
    )
    like = grad_prev if grad_prev is not None else grad_x0
    if like.numel() == 0:
        return gradients
    channels_last = is_channels_last(dense_like(like))
    samples, size = _samples(like, rows)
    with _on_device_of(like):
        diffusion_step_backward_kernel[_grid(samples, size)](
            *(_in_order(t, channels_last) for t in (grad_prev, grad_x0, sample, model_output)), rows, table,
            *(t if flags & need else None for t, need in zip(gradients, _NEEDS, strict=True)),
            size, like.numel(), row, table.shape[0], guidance, limit,
            ROW_STRIDE=int(samples > 1), GUIDED=bool(flags & schema.GUIDED), CLIP=bool(flags & schema.CLIP),
            BLOCK=BLOCK,
        )  # fmt: skip
    return gradients


def normal_noise(like: Tensor, seed: Tensor) -> Tensor:
    from .triton_kernels import normal_noise_kernel

    output = registration.fake_normal_noise(like, seed)
    if output.numel():
        with _on_device_of(like):
            normal_noise_kernel[_grid(1, output.numel())](seed, output, output.numel(), BLOCK=BLOCK)
    return output


_WANTS = (schema.WANT_PREV, schema.WANT_X0, schema.WANT_VALUE)
_NEEDS = (schema.NEED_SAMPLE, schema.NEED_MODEL, schema.NEED_HISTORY, schema.NEED_NOISE)


library = define_triton(schema.SCHEMAS, globals(), vars(registration), INTERPRETED)
