"""DDIM."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.diffusion import schedules, steps
from .ddpm import VariancePreservingScheduler
from .scheduler import SchedulerOutput, run_step


class DDIMScheduler(VariancePreservingScheduler):
    """Implicit sampling, deterministic for eta = 0. Names, configuration and calls of diffusers' DDIMScheduler.

    Source: Song et al. 2021.

    >>> import fastdl, torch
    >>> scheduler = fastdl.diffusion.DDIMScheduler()
    >>> scheduler.set_timesteps(5)
    >>> scheduler.timesteps
    tensor([800, 600, 400, 200,   0])
    >>> scheduler.step(torch.zeros(1, 4), 800, torch.zeros(1, 4)).prev_sample
    tensor([[0., 0., 0., 0.]])
    """

    DEFAULTS = dict(
        num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear", trained_betas=None,
        clip_sample=True, set_alpha_to_one=True, steps_offset=0, prediction_type="epsilon", thresholding=False,
        dynamic_thresholding_ratio=0.995, clip_sample_range=1.0, sample_max_value=1.0, timestep_spacing="leading",
        rescale_betas_zero_snr=False,
    )  # fmt: skip

    def set_timesteps(self, num_inference_steps: int, device: object = None) -> None:
        """Choose `num_inference_steps` timesteps by the configuration's spacing."""
        config = self.config
        listed = schedules.spaced_timesteps(
            config.timestep_spacing, len(self), num_inference_steps, config.steps_offset
        )
        self._start(torch.tensor(listed), num_inference_steps, device)
        self._step_table()

    def _step_table(self, eta: float = 0.0, use_clipped_model_output: bool = False) -> steps.Table:
        def make() -> steps.Table:
            previous = torch.arange(len(self)) - len(self) // self.num_inference_steps
            final = 1.0 if self.config.set_alpha_to_one else self.schedule.alpha_bar[0]
            return steps.ddim(
                self.schedule, previous, self.config.prediction_type, eta, final, use_clipped_model_output
            )

        return self._table((eta, use_clipped_model_output), make)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        *,
        seed: Tensor | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """x_t -> x of timestep - num_train_timesteps // num_inference_steps, one fused kernel.

        With guidance_scale the model's output is [2 B, ...], unconditional first. Others: `fastdl.ops.diffusion_step`.
        """
        self._needs_timesteps()
        found = run_step(
            model_output, timestep, sample, self._step_table(eta, bool(use_clipped_model_output)),
            self._options(guidance_scale, guidance_rescale),
            noise=variance_noise, seed=seed, generator=generator,
        )  # fmt: skip
        return SchedulerOutput(*found) if return_dict else found
