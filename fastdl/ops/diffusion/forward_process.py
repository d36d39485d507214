"""The forward process, fused: noise added, targets, velocities, and x_0 from a prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import dispatch
from . import schema
from .backends import CANDIDATES
from .checks import random_seed
from .op import apply, explained, make_options
from .schedule import Schedule


def add_noise(
    x_0: Tensor,
    t: int | Tensor,
    schedule: Schedule,
    *,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """x_t = alpha_t x_0 + sigma_t noise, with fp32 coefficients for every dtype. Differentiable in x_0 and noise.

    Args:
        x_0: [B, ...]; float64, float32, bfloat16 or float16. channels_last is kept.
        t: int, or int64 or int32 tensor: one timestep for all or one for each sample. Outside the schedule:
            IndexError on a CPU; on a GPU the sample is NaN.
        schedule: `fastdl.ops.diffusion.Schedule`.
        noise: standard normal, broadcast to x_0. Without it the kernel makes it from `seed`, int64 [2] (seed,
            offset), by default drawn from `generator`, or torch's.

    Returns:
        x_t in the dtype and format of x_0.

    Raises:
        TypeError, ValueError, IndexError: as `diffusion_step`.

    Source: Ho et al. 2020, equation 4.

    >>> import fastdl, torch
    >>> schedule = fastdl.ops.diffusion.Schedule.flow(torch.tensor([0.25, 1.0]))
    >>> fastdl.ops.add_noise(torch.ones(2, 1), torch.tensor([0, 1]), schedule, noise=torch.zeros(2, 1))
    tensor([[0.7500],
            [0.0000]])
    """
    if noise is None and seed is None:
        seed = random_seed(x_0, generator)
    return apply(x_0, None, None, noise, seed, t, schedule.adding_noise(), _RESULT, "add_noise")[0]


def velocity(x_0: Tensor, noise: Tensor, t: int | Tensor, schedule: Schedule) -> Tensor:
    """v_t = alpha_t noise - sigma_t x_0, what a "v_prediction" model learns; of a flow noise - x_0.

    Args, returns, raises: as `add_noise`.

    Source: Salimans and Ho 2022, equation 11.

    >>> import fastdl, torch
    >>> schedule = fastdl.ops.diffusion.Schedule.from_alpha_bar(torch.tensor([0.64]))
    >>> fastdl.ops.velocity(torch.ones(1, 1), torch.ones(1, 1), 0, schedule)
    tensor([[0.2000]])
    """
    return apply(x_0, None, None, noise, None, t, schedule.velocity(), _RESULT, "velocity")[0]


def predict_x0(
    x_t: Tensor,
    model_output: Tensor,
    t: int | Tensor,
    schedule: Schedule,
    *,
    prediction_type: str = "epsilon",
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    clip: float | None = None,
    threshold: tuple[float, float] | None = None,
) -> Tensor:
    """x_0 from x_t and the model's output: of "epsilon" (x_t - sigma_t m) / alpha_t, then clipped or thresholded.

    Args:
        prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction".
        others: as `diffusion_step`. "epsilon" where alpha_t is 0 gives an infinity or NaN, as the formula does.

    Source: Ho et al. 2020, equation 15; Salimans and Ho 2022.

    >>> import fastdl, torch
    >>> schedule = fastdl.ops.diffusion.Schedule.from_alpha_bar(torch.tensor([0.25]))
    >>> fastdl.ops.predict_x0(torch.ones(1, 1), torch.zeros(1, 1), 0, schedule)
    tensor([[2.]])
    """
    options = make_options(schema.WANT_X0, guidance_scale, guidance_rescale, clip, threshold)
    table = schedule.predicting_x0(prediction_type)
    return apply(x_t, model_output, None, None, None, t, table, options, "predict_x0")[1]


def training_target(
    x_0: Tensor,
    t: int | Tensor,
    schedule: Schedule,
    *,
    prediction_type: str = "epsilon",
    weighting: str | None = None,
    gamma: float = 5.0,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(x_t, target, weight): everything a training step needs, in one pass.

    Args:
        prediction_type: what the target is: the noise, x_0, v, or the flow's velocity.
        weighting: None (weight 1), "snr" (alpha^2 / sigma^2) or "min_snr" (min-SNR-`gamma`, whose value at snr 0 is
            its limit).
        others: as `add_noise`.

    Returns:
        x_t and target in the dtype and format of x_0; weight fp32, one for each timestep given.

    Source: Ho et al. 2020; Salimans and Ho 2022; Hang et al. 2023 (min-SNR).

    >>> import fastdl, torch
    >>> schedule = fastdl.ops.diffusion.Schedule.flow(torch.tensor([0.25, 1.0]))
    >>> x_t, target, weight = fastdl.ops.training_target(
    ...     torch.ones(1, 1), 0, schedule, prediction_type="flow_prediction", noise=torch.zeros(1, 1))
    >>> x_t, target, weight
    (tensor([[0.7500]]), tensor([[-1.]]), tensor([1.]))
    """
    if noise is None and seed is None:
        seed = random_seed(x_0, generator)
    table = schedule.training(prediction_type, weighting, gamma)
    return apply(x_0, None, None, noise, seed, t, table, _ALL, "training_target")


_RESULT = make_options(schema.WANT_PREV)
_ALL = make_options(schema.WANT_PREV | schema.WANT_X0 | schema.WANT_VALUE)


def _explain_add_noise(x_0: Tensor, schedule: Schedule, noise: Tensor | None, **_: object) -> tuple:
    return explained(x_0, None, None, noise, schedule.adding_noise(), _RESULT)


def _explain_velocity(x_0: Tensor, noise: Tensor, schedule: Schedule, **_: object) -> tuple:
    return explained(x_0, None, None, noise, schedule.velocity(), _RESULT)


def _explain_predict_x0(
    x_t: Tensor, model_output: Tensor, t: object, schedule: Schedule, prediction_type: str, **limits: object
) -> tuple:
    options = make_options(schema.WANT_X0, **limits)
    return explained(x_t, model_output, None, None, schedule.predicting_x0(prediction_type), options)


def _explain_training_target(
    x_0: Tensor, schedule: Schedule, prediction_type: str, weighting: str | None, gamma: float,
    noise: Tensor | None, **_: object,
) -> tuple:  # fmt: skip
    table = schedule.training(prediction_type, weighting, gamma)
    return explained(x_0, None, None, noise, table, _ALL)


dispatch.register("add_noise", CANDIDATES, add_noise, _explain_add_noise)
dispatch.register("velocity", CANDIDATES, velocity, _explain_velocity)
dispatch.register("predict_x0", CANDIDATES, predict_x0, _explain_predict_x0)
dispatch.register("training_target", CANDIDATES, training_target, _explain_training_target)
