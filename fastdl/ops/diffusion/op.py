"""One diffusion step: public function, checks, autograd."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ... import dispatch
from ...transforms import distinct, obstacle
from ..further_derivatives import beginnings, second_derivative
from . import backends, schema
from .backends import CANDIDATES, Call
from .checks import check_tensors, in_the_widest_dtype, random_seed, rows_of, with_index_error
from .reference import Options, reference
from .table import Table


class DiffusionStep(NamedTuple):
    """What a step gives."""

    prev_sample: Tensor
    x_0: Tensor
    log_prob: Tensor | None


def diffusion_step(
    x_t: Tensor,
    model_output: Tensor,
    t: int | Tensor,
    table: Table,
    *,
    history: Tensor | None = None,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    clip: float | None = None,
    threshold: tuple[float, float] | None = None,
    prev_sample: Tensor | None = None,
    return_log_prob: bool = False,
) -> DiffusionStep:
    """One reverse step of any scheduler, in one kernel. Differentiable in x_t, model_output, history and noise.

    m = model_output, or u + guidance_scale * (c - u) where it is [2 B, ...], unconditional half first;
    x_0 = a_t x_t + b_t m + ..., clipped or thresholded; prev_sample = c_t x_t + d_t x_0 + e_t m + f_t history +
    g_t noise. The table holds the coefficients, in fp32 for every dtype; arithmetic is in fp32 (fp64 for fp64).
    Nothing waits for the device. A term whose coefficient is 0 may be left out: an infinite or NaN input may then leave
    a number where the formula has 0 * inf = NaN.

    Args:
        x_t: [B, ...]; float64, float32, bfloat16 or float16. channels_last is kept.
        model_output: as x_t; with `guidance_scale` [2 B, ...].
        t: the row of the table: an int, or an int64 or int32 tensor, one for all or one for each sample ([B], or the
            leading sizes of x_t). Outside the table: IndexError on a CPU; on a GPU the sample is NaN.
        table: coefficients, see `fastdl.ops.diffusion.steps`.
        history: what the step before gave as x_0, for steps of second order.
        noise: standard normal, broadcast to x_t. Without it, where the table has noise, the kernel makes it.
        seed: int64 [2], (seed, offset) of the kernel's noise, in the memory order of x_t. One pair gives the same
            Philox words on every backend, and values within 4 ulps of the definition's (near 0, of 0.01). Default:
            drawn from `generator`, or torch's.
        guidance_scale, guidance_rescale: classifier-free guidance; the rescale of Lin et al. 2023, whose ratio of
            standard deviations is 1 where the divisor is 0.
        clip: x_0 is clamped to [-clip, clip]. NaN stays.
        threshold: (ratio, largest): dynamic thresholding: x_0 is clamped to [-s, s] and divided by s, the quantile
            `ratio` of the sample's |x_0|, between 1 and `largest`.
        prev_sample: the log-probability of this one is wanted, and it is returned; nothing is drawn.
        return_log_prob: also log N(prev_sample; mean, std^2), summed over each sample, fp32 [B]. prev_sample counts
            as a constant there. 0 where the step has no noise. Costs a second pass.

    Returns:
        DiffusionStep(prev_sample, x_0, log_prob); the first two in the dtype and format of x_t.

    Raises:
        TypeError: a tensor is not floating point, dtypes differ (under autocast they meet in the widest), or t is not
            an integer.
        ValueError: a shape does not fit; the message says expected and got.
        IndexError: t outside the table (CPU).

    Source: Ho et al. 2020; Song et al. 2021; Ho and Salimans 2022 (guidance); Saharia et al. 2022 (thresholding).

    >>> import fastdl, torch
    >>> from fastdl.ops.diffusion import steps
    >>> table = steps.flow_match_euler(torch.tensor([1.0, 0.5, 0.0]))
    >>> x_t, velocity = torch.ones(1, 4), torch.full((1, 4), 2.0)
    >>> fastdl.ops.diffusion_step(x_t, velocity, 0, table).prev_sample
    tensor([[0., 0., 0., 0.]])
    """
    options = make_options(
        schema.WANT_PREV | schema.WANT_X0, guidance_scale, guidance_rescale, clip, threshold
    )
    if not return_log_prob:
        if noise is None and table.has_noise and prev_sample is None:
            seed = random_seed(x_t, generator) if seed is None else seed
        result, x_0, _ = apply(x_t, model_output, history, noise, seed, t, table, options)
        return DiffusionStep(result if prev_sample is None else prev_sample, x_0, None)
    options = options._replace(flags=options.flags | schema.WANT_VALUE)
    mean, x_0, std = apply(x_t, model_output, history, None, None, t, table, options)
    if prev_sample is None:
        if noise is None and table.has_noise:
            seed = random_seed(x_t, generator) if seed is None else seed
        prev_sample = apply(x_t, model_output, history, noise, seed, t, table, options)[0]
    return DiffusionStep(prev_sample, x_0, log_prob(prev_sample.detach(), mean, std))


def make_options(
    flags: int,
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    clip: float | None = None,
    threshold: tuple[float, float] | None = None,
) -> Options:
    """The keyword arguments as flags and scalars, checked."""
    guidance, rescale, limit, quantile = 1.0, 0.0, 1.0, 0.995
    if guidance_scale is not None:
        flags |= schema.GUIDED
        guidance, rescale = float(guidance_scale), float(guidance_rescale)
    elif guidance_rescale:
        raise ValueError("guidance_rescale needs a guidance_scale")
    if threshold is not None:
        quantile, limit = (float(value) for value in threshold)
        if not 0 <= quantile <= 1:
            raise ValueError(f"the threshold's ratio must be in [0, 1], got {quantile}")
        flags |= schema.THRESHOLD
    elif clip is not None:
        limit = float(clip)
        if not limit >= 0:
            raise ValueError(f"clip must not be negative, got {clip}")
        flags |= schema.CLIP
    return Options(flags, guidance, rescale, limit, quantile)


def log_prob(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(value; mean, std^2) summed over each sample, fp32 [B]; 0 where std is 0."""
    std = std.expand(value.shape[0]) if std.numel() == 1 else std.reshape(value.shape[0], -1)[:, 0]
    has_noise = std > 0
    safe = torch.where(has_noise, std, 1.0)
    count = value[0].numel() if value.shape[0] else 0
    squares = (value.float() - mean.float()).reshape(value.shape[0], count).square().sum(1) / safe.square()
    total = -0.5 * squares - count * (safe.log() + 0.5 * math.log(2 * math.pi))
    return torch.where(has_noise, total, 0.0)


def apply(
    sample: Tensor,
    model_output: Tensor | None,
    history: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    t: int | Tensor,
    table: Table,
    options: Options,
    op: str = "diffusion_step",
) -> tuple[Tensor, Tensor, Tensor]:
    """The step as chosen by the settings: (result, x_0, value), each empty unless its flag is set."""
    flags = options.flags
    if torch._C._is_any_autocast_enabled():
        sample, model_output, history, noise = in_the_widest_dtype(sample, model_output, history, noise)
    check_tensors(sample, model_output, history, noise, flags)
    if noise is not None and noise.shape != sample.shape:
        noise = noise.expand(sample.shape)
    rows, row = rows_of(t, sample, table.rows, flags)
    call = call_of(sample, model_output, history, noise, table, options)
    backend = backends.choose(op, call).backend
    reason = obstacle(sample, model_output, history, noise)
    if reason is not None:
        dispatch.require_reference(op, reason)
    coefficients = table.on(sample.device)
    if reason is not None or backend == "reference":
        found = reference(sample, model_output, history, noise, seed, rows, row, coefficients, options)
        wanted = (schema.WANT_PREV, schema.WANT_X0, schema.WANT_VALUE)
        return tuple(
            f if flags & w else sample.new_empty(0) for f, w in zip(found, wanted, strict=True)
        )  # fmt: skip
    arguments = (sample, model_output, history, noise, seed, rows, row, coefficients, options)
    if call.needs_grad:
        return DiffusionFunction.apply(backend, *distinct(*arguments))
    return with_index_error(backends.forward, rows, backend, *arguments)


def call_of(
    sample: Tensor,
    model_output: Tensor | None,
    history: Tensor | None,
    noise: Tensor | None,
    table: Table,
    options: Options,
) -> Call:
    """What the choice of a backend depends on."""
    needs_grad = torch.is_grad_enabled() and (
        sample.requires_grad
        or (model_output is not None and model_output.requires_grad)
        or (history is not None and history.requires_grad)
        or (noise is not None and noise.requires_grad)
    )
    return Call(
        sample.device, sample.dtype, options.flags, options.rescale != 0.0, table.noise_in_x0, needs_grad
    )  # fmt: skip


class DiffusionFunction(torch.autograd.Function):
    """The fused step; its backward is a Function of its own, so that a second derivative exists."""

    @staticmethod
    def forward(
        ctx, backend, sample, model_output, history, noise, seed, rows, row, coefficients, options
    ):  # fmt: skip
        outputs = with_index_error(
            backends.forward, rows, backend,
            sample, model_output, history, noise, seed, rows, row, coefficients, options,
        )  # fmt: skip
        clipped = options.has(schema.CLIP)
        # Without clipping a step is linear, and its backward needs no tensor.
        ctx.save_for_backward(
            sample if clipped else None, model_output if clipped else None, rows, coefficients
        )
        ctx.rest = (backend, row, options)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(outputs[2])
        return outputs

    @staticmethod
    def backward(ctx, grad_prev, grad_x0, _):
        backend, row, options = ctx.rest
        needs = ctx.needs_input_grad[1:5]
        # a compiler makes zeros of what is None, of an output that is empty too
        grad_prev = grad_prev if options.has(schema.WANT_PREV) else None
        grad_x0 = grad_x0 if options.has(schema.WANT_X0) else None
        if grad_prev is None and grad_x0 is None:
            return (None,) * 10
        wanted = (schema.NEED_SAMPLE, schema.NEED_MODEL, schema.NEED_HISTORY, schema.NEED_NOISE)
        flags = options.flags & (schema.GUIDED | schema.CLIP)
        flags |= sum(flag for flag, need in zip(wanted, needs, strict=True) if need)
        compute = DiffusionBackward.apply if torch.is_grad_enabled() else _backward
        gradients = compute(
            grad_prev, grad_x0, *ctx.saved_tensors, backend, row, options._replace(flags=flags)
        )
        gradients = (g if need else None for g, need in zip(gradients, needs, strict=True))
        return (None, *gradients, *(None,) * 5)


def _backward(
    grad_prev: Tensor | None,
    grad_x0: Tensor | None,
    sample: Tensor | None,
    model_output: Tensor | None,
    rows: Tensor | None,
    coefficients: Tensor,
    backend: str,
    row: int,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return backends.BACKWARD[backend](
        grad_prev, grad_x0, sample, model_output, rows, row, coefficients,
        options.flags, options.guidance, options.limit,
    )  # fmt: skip


class DiffusionBackward(torch.autograd.Function):
    """The fused backward; its own backward is the vector-Jacobian product of the reference's."""

    @staticmethod
    def forward(ctx, grad_prev, grad_x0, sample, model_output, rows, coefficients, backend, row, options):
        ctx.save_for_backward(grad_prev, grad_x0, sample, model_output, rows, coefficients)
        ctx.rest = (row, options)
        return _backward(grad_prev, grad_x0, sample, model_output, rows, coefficients, backend, row, options)

    @staticmethod
    def backward(ctx, *grads):
        from .registration import diffusion_step_backward

        row, options = ctx.rest
        grad_prev, grad_x0, sample, model_output, rows, coefficients = ctx.saved_tensors
        # Where x_0 is clipped does not move: only the incoming gradients have a derivative.
        incoming = beginnings((grad_prev, grad_x0))
        with torch.enable_grad():
            outputs = diffusion_step_backward(
                *incoming, sample, model_output, rows, row, coefficients,
                options.flags, options.guidance, options.limit,
            )  # fmt: skip
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad and g is not None]
        found = second_derivative([o for o, _ in pairs], incoming, [g for _, g in pairs])
        return (*found, *(None,) * 7)


def explained(
    sample: Tensor,
    model_output: Tensor | None,
    history: Tensor | None,
    noise: Tensor | None,
    table: Table,
    options: Options,
) -> tuple[Call | Tensor | None, ...]:
    """The arguments of the refusals, and the tensors, whose kind may be an obstacle."""
    tensors = in_the_widest_dtype(sample, model_output, history, noise)
    return call_of(*tensors, table, options), *tensors


def _dispatch_arguments(
    x_t: Tensor, model_output: Tensor, t: int | Tensor, table: Table, **keywords: object
) -> tuple[Call | Tensor | None, ...]:
    options = make_options(
        schema.WANT_PREV | schema.WANT_X0,
        keywords["guidance_scale"],
        keywords["guidance_rescale"],
        keywords["clip"],
        keywords["threshold"],
    )
    return explained(x_t, model_output, keywords["history"], keywords["noise"], table, options)


dispatch.register("diffusion_step", CANDIDATES, diffusion_step, _dispatch_arguments)
