"""Euler-ancestral."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.diffusion import schedules, schema, steps
from ..ops.diffusion.op import make_options
from .euler import SigmaScheduler
from .scheduler import SchedulerOutput, run_step


class EulerAncestralDiscreteScheduler(SigmaScheduler):
    """Euler steps with fresh noise. Names, configuration and calls of diffusers' EulerAncestralDiscreteScheduler.

    Source: k-diffusion, sample_euler_ancestral.

    >>> import fastdl, torch
    >>> scheduler = fastdl.diffusion.EulerAncestralDiscreteScheduler()
    >>> scheduler.set_timesteps(2)
    >>> x = torch.zeros(1, 4)
    >>> scheduler.step(torch.zeros(1, 4), scheduler.timesteps[0], x).prev_sample.shape
    torch.Size([1, 4])
    """

    DEFAULTS = dict(
        num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear", trained_betas=None,
        prediction_type="epsilon", timestep_spacing="linspace", steps_offset=0, rescale_betas_zero_snr=False,
    )  # fmt: skip

    def set_timesteps(self, num_inference_steps: int, device: object = None) -> None:
        """Choose `num_inference_steps` steps by the configuration's spacing."""
        at = self._spaced(num_inference_steps)
        self._set(at, schedules.interpolated(self.all_sigmas, at), 0.0, device)
        self._scaling_table()
        self._step_table()

    def _step_table(self) -> steps.Table:
        return self._table("step", lambda: steps.euler_ancestral(self._sigmas, self.config.prediction_type))

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        *,
        variance_noise: Tensor | None = None,
        seed: Tensor | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """From sigma_i to sigma_(i + 1), one fused kernel.

        With guidance_scale the model's output is [2 B, ...], unconditional first. Others: `fastdl.ops.diffusion_step`.
        """
        self._needs_timesteps()
        row = self._row(timestep)
        options = make_options(schema.WANT_PREV | schema.WANT_X0, guidance_scale, guidance_rescale)
        found = run_step(
            model_output, row, sample, self._step_table(), options,
            noise=variance_noise, seed=seed, generator=generator,
        )  # fmt: skip
        self._advance()
        return SchedulerOutput(*found) if return_dict else found
