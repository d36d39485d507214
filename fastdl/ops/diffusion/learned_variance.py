"""Steps whose variance the model predicts, in the second half of its output's channels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import schema
from .checks import random_seed
from .op import apply, make_options
from .schedule import Schedule
from .steps import ddpm
from .table import Table

LEARNED = ("learned", "learned_range")


class LearnedTables(NamedTuple):
    """`step`: as `ddpm`, with noise of unit scale: its standard deviation is in the noise already.

    `log_std`: log std = VALUE + SAMPLE * v, of "learned_range".
    """

    step: Table
    log_std: Table


def learned_tables(schedule: Schedule, previous: Tensor, prediction_type: str) -> LearnedTables:
    """The tables of a step whose variance is predicted. Row 0 has no noise."""
    table = ddpm(schedule, previous, prediction_type)
    unit = torch.ones(len(schedule), dtype=torch.float64)
    unit[0] = 0.0
    columns = {name: table.column(name) for name in ("X0_SAMPLE", "X0_MODEL", "SAMPLE", "X0")}
    low, high = (
        ddpm(schedule, previous, prediction_type, name).column("VALUE").double().clamp(min=1e-10).log()
        for name in ("fixed_small", "fixed_large")
    )
    return LearnedTables(
        Table(len(schedule), NOISE=unit, **columns),
        Table(len(schedule), SAMPLE=(high - low) / 2, VALUE=(high + low) / 2),
    )


def learned_noise(
    model_output: Tensor,
    sample: Tensor,
    t: int | Tensor,
    log_std: Table,
    kind: str,
    *,
    noise: Tensor | None,
    seed: Tensor | None,
    generator: torch.Generator | None,
    guided: bool,
) -> tuple[Tensor, Tensor]:
    """(the prediction, the noise times the predicted standard deviation).

    "learned": the channels are the variance. "learned_range": they are v in [-1, 1], and the log variance is
    (v + 1) / 2 of the way from the posterior's to beta's. With guidance the conditional half counts.
    Source: Nichol and Dhariwal 2021, equation 15.
    """
    C = sample.shape[1]
    prediction, v = model_output[:, :C], model_output[:, C:]
    if guided:
        v = v.chunk(2)[1]
    if noise is None:
        seed = random_seed(sample, generator) if seed is None else seed
        noise = torch.ops.fastdl.normal_noise(sample, seed)
    if kind == "learned":
        return prediction, noise * v.sqrt()
    from_v, _, middle = apply(v, None, None, None, None, t, log_std, _LOG_STD)
    std = (from_v + middle.reshape(-1, *(1,) * (v.dim() - 1))).exp()
    return prediction, noise * std.to(noise.dtype)


_LOG_STD = make_options(schema.WANT_PREV | schema.WANT_VALUE)
