"""Every scheduler's step as a table: nothing but coefficients, in fp64 on the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .schedule import Schedule, epsilon_coefficients, x0_coefficients
from .table import Table

VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")


def ddpm(
    schedule: Schedule, previous: Tensor, prediction_type: str, variance_type: str = "fixed_small"
) -> Table:
    """Ancestral steps from timestep t to previous[t] (below 0: to the data), a row for each t. Row 0 has no noise.

    Source: Ho et al. 2020, equations 6 and 7 with alpha_bar taken over the whole stride.
    """
    if variance_type not in VARIANCES:
        raise ValueError(f"variance_type must be one of {VARIANCES}, got {variance_type!r}")
    bar, bar_previous = schedule.alpha_bar, _previous_bar(schedule, previous, 1.0)
    alpha = bar / bar_previous
    beta = 1 - alpha
    variance = ((1 - bar_previous) / (1 - bar) * beta).clamp(min=1e-20)
    if variance_type.startswith("fixed_large"):
        variance = beta
    std = variance.sqrt()
    std[0] = 0.0
    of_sample, of_model = schedule.x0_coefficients(prediction_type)
    return Table(
        len(schedule), X0_SAMPLE=of_sample, X0_MODEL=of_model, X0=bar_previous.sqrt() * beta / (1 - bar),
        SAMPLE=alpha.sqrt() * (1 - bar_previous) / (1 - bar), NOISE=std, VALUE=std,
    )  # fmt: skip


def ddim(
    schedule: Schedule,
    previous: Tensor,
    prediction_type: str,
    eta: float = 0.0,
    final_alpha_bar: float = 1.0,
    use_clipped_model_output: bool = False,
) -> Table:
    """Steps from timestep t to previous[t], a row for each t.

    Source: Song et al. 2021, equations 12 and 16.
    """
    bar, bar_previous = schedule.alpha_bar, _previous_bar(schedule, previous, final_alpha_bar)
    alpha, sigma = schedule.alpha, schedule.sigma
    variance = (1 - bar_previous) / (1 - bar) * (1 - bar / bar_previous)
    std = eta * variance.clamp(min=0).sqrt()
    direction = (1 - bar_previous - std**2).clamp(min=0).sqrt()
    of_sample, of_model = schedule.x0_coefficients(prediction_type)
    if use_clipped_model_output:  # eps = (x_t - alpha x_0) / sigma, x_0 as limited
        columns = dict(SAMPLE=direction / sigma, X0=bar_previous.sqrt() - direction * alpha / sigma)
    else:
        eps_sample, eps_model = epsilon_coefficients(alpha, sigma, prediction_type)
        columns = dict(SAMPLE=direction * eps_sample, MODEL=direction * eps_model, X0=bar_previous.sqrt())
    return Table(
        len(schedule), X0_SAMPLE=of_sample, X0_MODEL=of_model, NOISE=std, VALUE=std, **columns
    )  # fmt: skip


def _previous_bar(schedule: Schedule, previous: Tensor, final: float) -> Tensor:
    return torch.where(previous >= 0, schedule.alpha_bar[previous.clamp(min=0)], final)


def scaling_input(sigmas: Tensor) -> Table:
    """x / sqrt(sigma^2 + 1): what a model trained on a variance preserving schedule wants to see."""
    return Table(len(sigmas), SAMPLE=(sigmas**2 + 1).rsqrt())


def euler(
    sigmas: Tensor, prediction_type: str, gammas: Sequence[float] | Tensor = 0.0, s_noise: float = 1.0
) -> Table:
    """Steps from sigmas[i] to sigmas[i + 1]; with gamma > 0 the noise is first raised to (1 + gamma) sigmas[i].

    Source: Karras et al. 2022, algorithm 2 without its second order correction.
    """
    sigma, following = sigmas[:-1], sigmas[1:]
    raised = sigma * (1 + torch.as_tensor(gammas, dtype=torch.float64))
    added = s_noise * (raised**2 - sigma**2).clamp(min=0).sqrt()
    return _ode_step(sigma, raised, following, added, prediction_type, torch.zeros_like(sigma))


def euler_ancestral(sigmas: Tensor, prediction_type: str) -> Table:
    """Steps from sigmas[i] down to sigma_down, then noise of sigma_up, which together have sigmas[i + 1].

    Source: k-diffusion, get_ancestral_step.
    """
    sigma, following = sigmas[:-1], sigmas[1:]
    up = (following**2 * (sigma**2 - following**2) / sigma**2).clamp(min=0).sqrt()
    down = (following**2 - up**2).clamp(min=0).sqrt()
    return _ode_step(sigma, sigma, down, torch.zeros_like(sigma), prediction_type, up)


def _ode_step(
    sigma: Tensor, raised: Tensor, target: Tensor, added: Tensor, prediction_type: str, fresh: Tensor
) -> Table:
    # x^ = x + added * noise; x' = x^ + (x^ - x_0) / raised * (target - raised) + fresh * noise
    level = raised if prediction_type == "epsilon" else sigma
    of_sample, of_model = x0_coefficients(torch.ones_like(sigma), level, prediction_type, "ve")
    ratio = target / raised
    if prediction_type == "epsilon":  # (x^ - x_0) / raised is the model's output
        columns = dict(SAMPLE=1.0, MODEL=target - raised, NOISE=added + fresh)
    else:
        columns = dict(SAMPLE=ratio, X0=1 - ratio, NOISE=ratio * added + fresh)
    return Table(
        len(sigma), X0_SAMPLE=of_sample, X0_MODEL=of_model, X0_NOISE=of_sample * added,
        VALUE=columns["NOISE"], **columns,
    )  # fmt: skip


def flow_match_euler(sigmas: Tensor, stochastic: bool = False) -> Table:
    """Steps of dx = velocity dsigma from sigmas[i] to sigmas[i + 1]; `stochastic`: new noise at sigmas[i + 1].

    Source: Esser et al. 2024.
    """
    sigma, following = sigmas[:-1], sigmas[1:]
    if stochastic:
        columns = dict(X0=1 - following, NOISE=following, VALUE=following)
    else:
        columns = dict(SAMPLE=1.0, MODEL=following - sigma)
    return Table(len(sigma), X0_SAMPLE=1.0, X0_MODEL=-sigma, **columns)


def dpm_solver(
    alpha: Tensor,
    sigma: Tensor,
    prediction_type: str,
    kind: str,
    *,
    second_order: Tensor,
    stochastic: bool = False,
    heun: bool = False,
) -> Table:
    """DPM-Solver++ steps from (alpha[i], sigma[i]) to the next; where `second_order`, with the x_0 of the step before.

    Source: Lu et al. 2022, algorithm 2 (2M); its stochastic form: Lu et al. 2022, equation 18 of the DPM-Solver++
    appendix, as in diffusers.
    """
    level = alpha.log() - sigma.log()
    h = level[1:] - level[:-1]
    factor = h * (2.0 if stochastic else 1.0)
    decay, drop = (-h).exp(), torch.expm1(-factor)  # drop is negative
    of_data = -alpha[1:] * drop
    of_sample = sigma[1:] / sigma[:-1] * (decay if stochastic else 1.0)
    noise = sigma[1:] * (-torch.expm1(-2 * h)).sqrt() if stochastic else torch.zeros_like(h)
    # of D_1 = (x_0 - x_0 before) / r_0
    of_difference = alpha[1:] * (drop / factor + 1) if heun else of_data / 2
    inverse_r0 = torch.cat((torch.zeros_like(h[:1]), h[1:] / (level[1:-1] - level[:-2])))
    of_difference = torch.where(second_order, of_difference * inverse_r0, 0.0)
    x0_sample, x0_model = x0_coefficients(alpha[:-1], sigma[:-1], prediction_type, kind)
    return Table(
        len(h), X0_SAMPLE=x0_sample, X0_MODEL=x0_model, SAMPLE=of_sample, X0=of_data + of_difference,
        HISTORY=-of_difference, NOISE=noise, VALUE=noise,
    )  # fmt: skip
