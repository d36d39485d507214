"""Adam that also keeps a running mean of the parameters, which draws better than the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

DECAY = 0.999


class AveragedAdam(torch.optim.Adam):
    """`state[p]["average"]` moves by 1 - decay towards p after each step; decay rises to 0.999 over the first steps.

    The averages are part of the state_dict. Source: Kingma and Ba 2015; Polyak and Juditsky 1992.
    """

    @torch.no_grad()
    def step(self, closure: object = None) -> object:
        loss = super().step(closure)
        for parameter, state in self.state.items():
            if "average" not in state:
                state["average"] = parameter.detach().clone()
            done = state["step"].item() if parameter.device.type == "cpu" else state["step"]
            state["average"].lerp_(parameter, 1 - _decay(done))
        return loss

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the parameters have their averages' values."""
        kept = {parameter: parameter.detach().clone() for parameter in self.state}
        try:
            with torch.no_grad():
                for parameter, state in self.state.items():
                    parameter.copy_(state["average"])
            yield
        finally:
            with torch.no_grad():
                for parameter, values in kept.items():
                    parameter.copy_(values)


def _decay(steps: float | Tensor) -> float | Tensor:
    rising = (1 + steps) / (10 + steps)
    return rising.clamp(max=DECAY) if isinstance(rising, Tensor) else min(DECAY, rising)
