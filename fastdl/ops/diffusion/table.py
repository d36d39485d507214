"""A table of coefficients: what turns one fused kernel into every scheduler's step.

Each row belongs to one timestep (or one step of a schedule); each column multiplies one tensor of

    x_0    = X0_SAMPLE * sample + X0_MODEL * model_output + X0_NOISE * noise
    result = SAMPLE * sample + X0 * limited(x_0) + MODEL * model_output + HISTORY * history + NOISE * noise

VALUE multiplies nothing: it is handed out for each sample (the standard deviation of a step's noise, the weight of a
loss).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .copies import OnDevices

COLUMNS = ("X0_SAMPLE", "X0_MODEL", "X0_NOISE", "SAMPLE", "X0", "MODEL", "HISTORY", "NOISE", "VALUE")
X0_SAMPLE, X0_MODEL, X0_NOISE, SAMPLE, X0, MODEL, HISTORY, NOISE, VALUE = range(len(COLUMNS))


class Table(OnDevices):
    """Coefficients [rows, 9] in fp32, computed in fp64 on the host; a copy for each device it was used on.

    Columns are given by name, each a float or [rows]; those not given are 0.

    >>> table = Table(2, SAMPLE=torch.tensor([0.5, 1.0]), NOISE=2.0)
    >>> table.on(torch.device("cpu"))[:, SAMPLE]
    tensor([0.5000, 1.0000])
    """

    def __init__(self, rows: int, **columns: Tensor | float) -> None:
        values = torch.zeros(rows, len(COLUMNS), dtype=torch.float64)
        for name, value in columns.items():
            values[:, COLUMNS.index(name)] = torch.as_tensor(value, dtype=torch.float64)
        super().__init__(values.float())
        self.rows = rows
        used = {name for name in columns if any(self.column(name).tolist())}
        self.noise_in_x0 = "X0_NOISE" in used
        self.has_noise = bool(used & {"NOISE", "X0_NOISE"})

    def column(self, name: str) -> Tensor:
        """One column on the host."""
        return self.values[:, COLUMNS.index(name)]
