"""Samples of the diffusion step, and one sample run by a backend, by eager PyTorch and in fp64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dispatch import Candidate
from ..ops.diffusion import schema
from ..ops.diffusion.backends import CANDIDATES, Call
from ..ops.diffusion.op import DiffusionFunction, make_options
from ..ops.diffusion.reference import Options, guided, reference, threshold
from ..ops.diffusion.table import COLUMNS, HISTORY, MODEL, NOISE, SAMPLE, X0, X0_MODEL, X0_SAMPLE, Table
from .checked_op import CheckedOp, Run, once_for_all_plans, reports_by_draws
from .error_rule import ErrorReport

NAMES = ("prev_sample", "x_0", "grad_sample", "grad_model", "grad_history", "grad_noise")
ROWS = 6


@dataclass(frozen=True)
class Sample:
    """One shape and what the step does."""

    shape: tuple[int, ...]
    timesteps: str = "each"  # "one" for all samples, or "each" its own
    history: bool = False
    noise: bool = True
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    clip: float | None = None
    threshold: tuple[float, float] | None = None
    channels_last: bool = False

    def __str__(self) -> str:
        words = ["x".join(map(str, self.shape)), self.timesteps]
        words += [
            f"{name}={value}".replace(" ", "")
            for name, value in vars(self).items()
            if name not in ("shape", "timesteps") and value != Sample.__dataclass_fields__[name].default
        ]
        return "-".join(words)

    def options(self) -> Options:
        return make_options(
            schema.WANT_PREV | schema.WANT_X0,
            self.guidance_scale,
            self.guidance_rescale,
            self.clip,
            self.threshold,
        )

    @property
    def differentiable(self) -> bool:
        """Whether the kernels have its gradient."""
        return self.threshold is None and not self.guidance_rescale

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor | None, ...]:
        """sample, model_output, history, noise and the incoming gradients: drawn in fp32, rounded to the dtype."""
        generator = torch.Generator().manual_seed(seed)

        def draw(batches: int = 1) -> Tensor:
            t = torch.randn(batches * self.shape[0], *self.shape[1:], generator=generator).to(dtype)
            return t.to(memory_format=torch.channels_last) if self.channels_last else t

        x, m = draw(), draw(1 if self.guidance_scale is None else 2)
        h, n = draw(), draw()
        return x, m, h if self.history else None, n if self.noise else None, draw(), draw()

    def rows(self) -> tuple[Tensor | None, int]:
        if self.timesteps == "one":
            return None, 2
        return torch.arange(self.shape[0]) * 5 % ROWS, 0


def coefficients() -> Table:
    """A table whose coefficients are all of order 1."""
    generator = torch.Generator().manual_seed(9)
    columns = {name: torch.randn(ROWS, generator=generator) for name in COLUMNS if name != "X0_NOISE"}
    return Table(ROWS, **columns)


SAMPLES = (
    Sample((2, 3, 16, 16)),
    Sample((3, 4, 9, 7), history=True, clip=1.0),  # sizes that are no multiple of four: noise out of step
    Sample((4, 1000), "one", noise=False, clip=0.5),
    Sample((2, 4, 8, 8), guidance_scale=7.5),
    Sample((2, 4, 8, 8), guidance_scale=3.0, guidance_rescale=0.7, clip=1.0),
    Sample((3, 3, 8, 8), threshold=(0.9, 2.0)),
    Sample((2, 5, 6, 6), channels_last=True, guidance_scale=2.0, history=True),
    Sample((5, 1), clip=1.0),
)


def run_backend(sample: Sample, backend: str, dtype: torch.dtype, seed: int, *, device: str = "cpu") -> Run:
    """The sample by one backend."""

    def compute(*tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        rows, row = sample.rows()
        table = coefficients().on(torch.device(device))
        rows = None if rows is None else rows.to(device)
        return DiffusionFunction.apply(
            backend, *tensors, None, rows, row, table, sample.options()
        )[:2]  # fmt: skip

    return _run(sample, dtype, seed, compute, device)


def run_eager(sample: Sample, dtype: torch.dtype, seed: int, *, device: str = "cpu") -> Run:
    """The sample by eager PyTorch in the dtype, coefficients rounded to it."""

    def compute(x: Tensor, m: Tensor, h: Tensor | None, n: Tensor | None) -> tuple[Tensor, Tensor]:
        rows, row = sample.rows()
        table = coefficients().on(torch.device(device)).to(dtype)
        c = table[row if rows is None else rows.to(device)].unbind(-1)
        c = [v.reshape(-1, *(1,) * (x.dim() - 1)) for v in c]
        options = sample.options()
        m = guided(m, options)
        x_0 = c[X0_SAMPLE] * x + c[X0_MODEL] * m
        if sample.threshold is not None:
            x_0 = threshold(x_0, options)
        elif sample.clip is not None:
            x_0 = x_0.clamp(-sample.clip, sample.clip)
        result = c[SAMPLE] * x + c[X0] * x_0 + c[MODEL] * m
        if h is not None:
            result = result + c[HISTORY] * h
        return (result if n is None else result + c[NOISE] * n), x_0

    return _run(sample, dtype, seed, compute, device)


def _run(sample: Sample, dtype: torch.dtype, seed: int, compute: Callable, device: str) -> Run:
    *drawn, grad_prev, grad_x0 = sample.inputs(dtype, seed)
    values = _values(
        sample, compute, [None if t is None else t.to(device) for t in drawn], grad_prev, grad_x0
    )

    def truth(*tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        rows, row = sample.rows()
        table = coefficients().on(torch.device("cpu"))
        return reference(*tensors, None, rows, row, table, sample.options())[:2]

    wide = [None if t is None else t.double() for t in drawn]
    return Run(values, _values(sample, truth, wide, grad_prev.double(), grad_x0.double()))


def _values(
    sample: Sample, compute: Callable, tensors: list[Tensor | None], grad_prev: Tensor, grad_x0: Tensor
) -> tuple[Tensor | None, ...]:
    leaves = [t for t in tensors if t is not None]
    for t in leaves:
        t.requires_grad_(sample.differentiable)
    outputs = compute(*tensors)
    found = [o.detach().cpu() for o in outputs]
    if not sample.differentiable:
        return (*found, *(None,) * 4)
    incoming = [g.to(outputs[0].device) for g in (grad_prev, grad_x0)]
    gradients = iter(torch.autograd.grad(outputs, leaves, incoming))
    return (*found, *(None if t is None else next(gradients).cpu() for t in tensors))


_eager = once_for_all_plans(run_eager)


def reports(sample: Sample, backend: str, dtype: torch.dtype, device: str = "cpu") -> dict[str, ErrorReport]:
    """The error rule's report for both outputs and each gradient of one sample by one backend."""
    return reports_by_draws(
        lambda seed: run_backend(sample, backend, dtype, seed, device=device),
        lambda seeds: _eager(sample, dtype, device, seeds),
        NAMES,
        dtype,
        lambda quantity: "fused",
    )


def _plan(sample: Sample, candidate: Candidate, dtype: torch.dtype, device: str) -> str | None:
    call = Call(
        torch.device(device), dtype, sample.options().flags, sample.guidance_rescale != 0.0, False,
        sample.differentiable,
    )  # fmt: skip
    return candidate.backend if candidate.refusal(call) is None else None


OPS = (CheckedOp("diffusion_step", SAMPLES, CANDIDATES, _plan, reports, lambda backend, quantity: "fused"),)
