"""Whole trajectories in fp64 against the papers' formulas, written once more without tables."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.diffusion.trajectories import PREDICTIONS, SHAPE, SPACINGS, STEPS, noises, ours

ONE = torch.tensor(1.0, dtype=torch.float64)


def denoiser(x: Tensor, t: Tensor | float) -> Tensor:
    return torch.tanh(0.7 * x + 0.2 * torch.roll(x, 1, -1)) * (0.5 + float(t) / 2000)


def start(sigma: float = 1.0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * sigma


def noise(i: int) -> Tensor:
    return noises()[i].double()


def alpha_bars(zero_snr: bool, least: float = 0.0) -> Tensor:
    bars = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    if zero_snr:
        first, last = bars[0].sqrt(), bars[-1].sqrt()
        bars = ((bars.sqrt() - last) * first / (first - last)) ** 2
        bars[-1] = least
    return bars


def to_x0(x: Tensor, m: Tensor, bar: Tensor, prediction: str) -> Tensor:
    if prediction == "epsilon":
        return (x - (1 - bar).sqrt() * m) / bar.sqrt()
    return m if prediction == "sample" else bar.sqrt() * x - (1 - bar).sqrt() * m


def spaced(spacing: str) -> list[float]:
    """Table 2 of Lin et al. 2023."""
    rising = range(STEPS)
    if spacing == "linspace":
        return [999 * i / (STEPS - 1) for i in reversed(rising)]
    if spacing == "leading":
        return [i * (1000 // STEPS) for i in reversed(rising)]
    return [round(1000 - i * 1000 / STEPS) - 1 for i in rising]


def ddpm(prediction: str, spacing: str, zero_snr: bool) -> Tensor:
    bars, x, ts = alpha_bars(zero_snr), start(), [round(t) for t in spaced(spacing)]
    for i, t in enumerate(ts):
        bar, before = bars[t], bars[ts[i + 1]] if i + 1 < STEPS else ONE
        x0 = to_x0(x, denoiser(x, t), bar, prediction).clamp(-1, 1)
        beta = 1 - bar / before
        mean = before.sqrt() * beta / (1 - bar) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - bar) * x
        std = ((1 - before) / (1 - bar) * beta).sqrt()
        x = mean + (std * noise(i) if t > 0 else 0)
    return x


def ddim(prediction: str, spacing: str, zero_snr: bool, eta: float) -> Tensor:
    bars, x, stride = alpha_bars(zero_snr), start(), 1000 // STEPS
    for i, t in enumerate(round(t) for t in spaced(spacing)):
        bar, before = bars[t], bars[t - stride] if t >= stride else ONE
        raw = to_x0(x, denoiser(x, t), bar, prediction)
        eps = (x - bar.sqrt() * raw) / (1 - bar).sqrt()
        std = eta * ((1 - before) / (1 - bar) * (1 - bar / before)).sqrt()
        rest = (1 - before - std**2).clamp(min=0)  # exactly 0 at alpha_bar = 0 with eta = 1
        x = before.sqrt() * raw.clamp(-1, 1) + rest.sqrt() * eps + std * noise(i)
    return x


def euler(prediction: str, spacing: str, zero_snr: bool, ancestral: bool) -> Tensor:
    bars = alpha_bars(zero_snr, least=2.0**-24)
    every = ((1 - bars) / bars).sqrt()
    sigmas = []
    for t in spaced(spacing):
        low = min(int(t), 998)
        sigmas.append(every[low] + (every[low + 1] - every[low]) * (t - low))
    sigmas.append(0 * ONE)
    largest = float(max(sigmas))
    x = start((largest**2 + 1) ** 0.5 if spacing == "leading" else largest)
    for i, t in enumerate(torch.tensor(spaced(spacing)).tolist()):  # timesteps are float32
        s, following = sigmas[i], sigmas[i + 1]
        m = denoiser(x / (s**2 + 1).sqrt(), t)
        if prediction == "epsilon":
            x0 = x - s * m
        else:
            x0 = m if prediction == "sample" else x / (s**2 + 1) - s / (s**2 + 1).sqrt() * m
        slope = (x - x0) / s
        if ancestral:
            up = (following**2 * (s**2 - following**2) / s**2).sqrt()
            x = x + slope * ((following**2 - up**2).sqrt() - s) + up * noise(i)
        else:
            x = x + slope * (following - s)
    return x


def dpm_timesteps(spacing: str) -> list[int]:
    """STEPS + 1 of them, the last of which is left out."""
    if spacing == "trailing":
        return spaced(spacing)
    rising = range(1, STEPS + 1)
    return [round(999 * i / STEPS) if spacing == "linspace" else i * (1000 // (STEPS + 1)) for i in rising][
        ::-1
    ]


def dpm_solver(prediction: str, spacing: str, zero_snr: bool, sde: bool) -> Tensor:
    bars, x, before, ts = alpha_bars(zero_snr, least=2.0**-24), start(), None, dpm_timesteps(spacing)
    points = [(bars[t].sqrt(), (1 - bars[t]).sqrt()) for t in ts] + [(ONE, 0 * ONE)]
    level = [a.log() - s.log() for a, s in points]
    for i, t in enumerate(ts):
        x0 = to_x0(x, denoiser(x, t), bars[t], prediction)
        (_, s), (a, s_next) = points[i], points[i + 1]
        h = level[i + 1] - level[i]
        data = x0
        if before is not None and i + 1 < STEPS:
            data = x0 + 0.5 * h / (level[i] - level[i - 1]) * (x0 - before)
        if sde:
            x = s_next / s * (-h).exp() * x + a * (1 - (-2 * h).exp()) * data
            x = x + s_next * (1 - (-2 * h).exp()).sqrt() * noise(i)
        else:
            x = s_next / s * x + a * (1 - (-h).exp()) * data
        before = x0
    return x


def flow_match(shift: float) -> Tensor:
    # diffusers shifts the ends once, and the sigmas between them again
    ends = [shift * e / (1 + (shift - 1) * e) for e in (1.0, 0.001)]
    even = [ends[0] + (ends[1] - ends[0]) * i / (STEPS - 1) for i in range(STEPS)]
    sigmas = [shift * e / (1 + (shift - 1) * e) for e in even] + [0.0]
    x = start()
    for i in range(STEPS):
        x = x + (sigmas[i + 1] - sigmas[i]) * denoiser(x, torch.tensor(sigmas[i] * 1000).item())
    return x


KINDS = [
    ("DDPM", {}, {}, ddpm, ()),
    *(("DDIM", {}, dict(eta=eta), ddim, (eta,)) for eta in (0.0, 1.0)),
    ("EulerDiscrete", {}, {}, euler, (False,)),
    ("EulerAncestralDiscrete", {}, {}, euler, (True,)),
    ("DPMSolverMultistep", dict(algorithm_type="dpmsolver++"), {}, dpm_solver, (False,)),
    ("DPMSolverMultistep", dict(algorithm_type="sde-dpmsolver++"), {}, dpm_solver, (True,)),
]


def run(scheduler: object, **keywords: object) -> Tensor:
    x = start() * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        output = denoiser(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, variance_noise=noise(i), **keywords).prev_sample
    return x


def check(found: Tensor, truth: Tensor) -> None:
    # tables are fp32: each step may add an ulp of it, and an epsilon at t = 999 is divided by alpha = 0.006
    assert (found - truth).abs().max() <= 1e-5 * truth.abs().max()


@pytest.mark.parametrize(
    ("prediction", "zero_snr"),
    [(p, z) for p, z in itertools.product(PREDICTIONS, (False, True)) if not (z and p == "epsilon")],
)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join([k[0], *map(str, {**k[1], **k[2]}.values())]))
def test_in_fp64(kind, prediction, spacing, zero_snr):
    name, config, keywords, expected, arguments = kind
    config = dict(
        config, prediction_type=prediction, timestep_spacing=spacing, rescale_betas_zero_snr=zero_snr
    )
    check(run(ours(name, config), **keywords), expected(prediction, spacing, zero_snr, *arguments))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_in_fp64(shift):
    check(run(ours("FlowMatchEulerDiscrete", dict(shift=shift))), flow_match(shift))
