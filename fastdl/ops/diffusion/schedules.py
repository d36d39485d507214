"""Noise schedules and the choice of timesteps, in fp64 on the host. Nothing here touches a device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "cosine", "laplace", "exp", "sigmoid")
SPACINGS = ("linspace", "leading", "trailing")
MOST_TIMESTEPS = 1_000_000


def betas(name: str, steps: int, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """beta_t, [steps], fp64. "cosine" is diffusers' "squaredcos_cap_v2".

    Source: Ho et al. 2020 (linear), Rombach et al. 2022 (scaled_linear), Nichol and Dhariwal 2021 (cosine).

    >>> betas("linear", 3, 0.1, 0.3)
    tensor([0.1000, 0.2000, 0.3000], dtype=torch.float64)
    """
    if not 1 <= steps <= MOST_TIMESTEPS:
        raise ValueError(f"num_train_timesteps must be in [1, {MOST_TIMESTEPS}], got {steps}")
    if name == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if name == "scaled_linear":
        return torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64) ** 2
    if name == "sigmoid":
        return torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid() * (end - start) + start
    if name in _ALPHA_BARS:
        alpha_bar = _ALPHA_BARS[name]
        ratios = [alpha_bar((i + 1) / steps) / alpha_bar(i / steps) for i in range(steps)]
        return torch.tensor([min(1 - ratio, 0.999) for ratio in ratios], dtype=torch.float64)
    raise ValueError(f"beta_schedule must be one of {BETA_SCHEDULES}, got {name!r}")


def _cosine(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(t: float) -> float:
    log_snr = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * math.fabs(0.5 - t) + 1e-6)
    return math.sqrt(1 / (1 + math.exp(-log_snr)))


_ALPHA_BARS: dict[str, Callable[[float], float]] = {
    "squaredcos_cap_v2": _cosine,
    "cosine": _cosine,
    "laplace": _laplace,
    "exp": lambda t: math.exp(-12.0 * t),
}


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """The betas moved so that alpha_bar of the last timestep is exactly 0.

    Source: Lin et al. 2023, algorithm 1.
    """
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root**2
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


def spaced_timesteps(spacing: str, train_steps: int, steps: int, offset: int = 0) -> list[int]:
    """`steps` timesteps of a schedule of `train_steps`, largest first.

    Source: Lin et al. 2023, table 2.

    >>> spaced_timesteps("trailing", 1000, 4)
    [999, 749, 499, 249]
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(
            f"num_inference_steps must be in [1, num_train_timesteps = {train_steps}], got {steps}"
        )
    return [round(t) for t in spaced_floats(spacing, train_steps, steps, offset)]


def spaced_floats(spacing: str, train_steps: int, steps: int, offset: int = 0) -> list[float]:
    """As `spaced_timesteps`; "linspace" is not rounded."""
    if spacing == "linspace":
        return torch.linspace(0, train_steps - 1, steps, dtype=torch.float64).flip(0).tolist()
    if spacing == "leading":
        return [float(i * (train_steps // steps) + offset) for i in reversed(range(steps))]
    if spacing == "trailing":
        count = math.ceil(train_steps / (train_steps / steps))
        return [float(round(train_steps - i * (train_steps / steps)) - 1) for i in range(count)]
    raise ValueError(f"timestep_spacing must be one of {SPACINGS}, got {spacing!r}")


def karras_sigmas(low: float, high: float, steps: int, rho: float = 7.0) -> Tensor:
    """`steps` sigmas from `high` to `low`, even in sigma^(1 / rho).

    Source: Karras et al. 2022, equation 5.
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def exponential_sigmas(low: float, high: float, steps: int) -> Tensor:
    """`steps` sigmas from `high` to `low`, even in log sigma."""
    return torch.linspace(math.log(high), math.log(low), steps, dtype=torch.float64).exp()


def shifted(sigmas: Tensor, shift: float) -> Tensor:
    """Flow-matching sigmas moved towards noise: shift * sigma / (1 + (shift - 1) * sigma).

    Source: Esser et al. 2024, equation 23.
    """
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def interpolated(values: Tensor, at: Sequence[float] | Tensor) -> Tensor:
    """`values[t]` at fractional t, linearly; outside the ends, the ends."""
    t = torch.as_tensor(at, dtype=torch.float64).clamp(0, len(values) - 1)
    low = t.floor().long().clamp(max=max(len(values) - 2, 0))
    high = (low + 1).clamp(max=len(values) - 1)
    return values[low] + (values[high] - values[low]) * (t - low)


def timestep_of_sigma(sigmas: Tensor, all_sigmas: Tensor) -> Tensor:
    """Fractional t at which `all_sigmas`, rising, has each of `sigmas`: interpolated in log sigma."""
    log_sigmas, log_all = sigmas.clamp(min=1e-10).log(), all_sigmas.log()
    low = (torch.searchsorted(log_all, log_sigmas, right=True) - 1).clamp(0, len(log_all) - 2)
    weight = ((log_all[low] - log_sigmas) / (log_all[low] - log_all[low + 1])).clamp(0, 1)
    return low + weight
