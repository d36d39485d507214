"""From a text and noise to images: reverse steps of any scheduler, with classifier-free guidance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...diffusion import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from ...diffusion.scheduler import Scheduler
from ...ops.diffusion.schedule import x0_coefficients
from ...ops.diffusion.schedules import timestep_of_sigma


@torch.no_grad()
def sample(
    model: nn.Module,
    tokens: Tensor,
    scheduler: Scheduler,
    *,
    guidance_scale: float = 1.0,
    nothing: Tensor | None = None,
    trained: DDPMScheduler | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images x_0: [B, channels, S, S] of the texts tokens: [B, L].

    Args:
        model: `TextToImage` or its twin.
        scheduler: any of `fastdl.diffusion`, after `set_timesteps`.
        guidance_scale: g in u + g (c - u), c predicted with the text and u without; 1 is no guidance.
        nothing: [L], the text of no words; guidance needs it.
        trained: holds the noise schedule and the prediction type that the model was trained with. Flow matching needs
            it: it then steps through the same noise levels, x_t = (alpha x_0 + sigma noise) / (alpha + sigma).
        generator: on the CPU; draws the first noise, and what the steps add.

    Raises:
        ValueError: an argument that is needed is missing, or `set_timesteps` was not called.

    Source: Ho et al. 2020; Ho and Salimans 2022.

    >>> import fastdl, torch
    >>> model = fastdl.models.TextToImage(vocabulary_size=3, width=8, text_size=8).eval()
    >>> ddim = fastdl.diffusion.DDIMScheduler(prediction_type="v_prediction")
    >>> ddim.set_timesteps(2)
    >>> words = torch.ones(4, 1, dtype=torch.int64)
    >>> fastdl.models.text_to_image.sample(model, words, ddim).shape
    torch.Size([4, 1, 28, 28])
    """
    if scheduler.num_inference_steps is None:
        raise ValueError("call the scheduler's set_timesteps first")
    guided = guidance_scale != 1.0
    if guided and nothing is None:
        raise ValueError("guidance_scale needs `nothing`, the text of no words")
    levels = _levels(scheduler, trained)
    parameter = next(model.parameters())
    x = torch.randn(len(tokens), *model.image_shape, generator=generator)
    x = x.to(parameter.device, parameter.dtype) * scheduler.init_noise_sigma
    if guided:
        tokens = torch.cat((nothing.expand_as(tokens), tokens))
    text = model.encode(tokens.to(x.device))
    for i, t in enumerate(scheduler.timesteps.tolist()):
        level = None if levels is None else levels[i]
        seen = scheduler.scale_model_input(x, t) if level is None else x * level.scale
        if guided:
            seen = torch.cat((seen, seen))
        at = torch.full((len(seen),), t if level is None else level.t, device=x.device)
        output = model.denoiser(seen, at, *text)
        if level is not None:
            output = level.of_seen * seen + level.of_model * output
        guidance = {"guidance_scale": guidance_scale} if guided else {}
        x = scheduler.step(output, t, x, generator=generator, **guidance)[0]
    return x


class _Level(NamedTuple):
    """A noise level of a flow as one of a variance preserving schedule.

    The model sees x_t * scale at timestep t; the flow's velocity noise - x_0 is of_seen times that, plus of_model
    times what the model predicts.
    """

    t: float
    scale: float
    of_seen: float
    of_model: float


def _levels(scheduler: Scheduler, trained: DDPMScheduler | None) -> list[_Level] | None:
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return None
    if trained is None:
        raise ValueError("flow matching needs `trained`, the noise schedule the model was trained with")
    known = trained.schedule.sigma / trained.schedule.alpha
    flow = scheduler.sigmas[:-1].cpu().double()
    ratio = (flow / (1 - flow)).clamp(known[0], known[-1])
    alpha = (1 + ratio**2).rsqrt()
    sigma = ratio * alpha
    of_seen, of_model = x0_coefficients(alpha, sigma, trained.config.prediction_type)
    scale = alpha + sigma
    # noise - x_0 = (x_t - x_0) / flow
    columns = timestep_of_sigma(ratio, known), scale, (1 / scale - of_seen) / flow, -of_model / flow
    return [_Level(*row) for row in torch.stack(columns, 1).tolist()]
