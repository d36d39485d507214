"""DDPM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.diffusion import Schedule, add_noise, schedules, schema, steps, velocity
from ..ops.diffusion.learned_variance import LEARNED, LearnedTables, learned_noise, learned_tables
from ..ops.diffusion.op import make_options
from .scheduler import Scheduler, SchedulerOutput, run_step


class VariancePreservingScheduler(Scheduler):
    """DDPM and DDIM: tables have a row for each training timestep, so that every sample may have its own."""

    init_noise_sigma = 1.0

    def _build(self) -> None:
        self.schedule = Schedule.from_alpha_bar(self._alpha_bar())
        self.timesteps = torch.arange(self.config.num_train_timesteps).flip(0)

    def add_noise(
        self, original_samples: Tensor, noise: Tensor | None, timesteps: int | Tensor, **keywords: object
    ) -> Tensor:
        """x_t from x_0; without noise the kernel makes it (see `fastdl.ops.add_noise`)."""
        return add_noise(original_samples, timesteps, self.schedule, noise=noise, **keywords)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: int | Tensor) -> Tensor:
        """The target of a "v_prediction" model."""
        return velocity(sample, noise, timesteps, self.schedule)

    def _options(self, guidance_scale: float | None, guidance_rescale: float) -> object:
        config = self.config
        threshold = (
            (config.dynamic_thresholding_ratio, config.sample_max_value) if config.thresholding else None
        )
        clip = config.clip_sample_range if config.clip_sample else None
        return make_options(
            schema.WANT_PREV | schema.WANT_X0, guidance_scale, guidance_rescale, clip, threshold
        )


class DDPMScheduler(VariancePreservingScheduler):
    """Ancestral sampling. Names, configuration and calls of diffusers' DDPMScheduler.

    Source: Ho et al. 2020.

    >>> import fastdl, torch
    >>> scheduler = fastdl.diffusion.DDPMScheduler(num_train_timesteps=100)
    >>> scheduler.set_timesteps(4)
    >>> x = torch.zeros(2, 3, 4, 4)
    >>> for t in scheduler.timesteps:
    ...     x = scheduler.step(torch.zeros_like(x), t, x).prev_sample
    >>> x.shape
    torch.Size([2, 3, 4, 4])
    """

    DEFAULTS = dict(
        num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear", trained_betas=None,
        variance_type="fixed_small", clip_sample=True, prediction_type="epsilon", thresholding=False,
        dynamic_thresholding_ratio=0.995, clip_sample_range=1.0, sample_max_value=1.0, timestep_spacing="leading",
        steps_offset=0, rescale_betas_zero_snr=False,
    )  # fmt: skip

    def _build(self) -> None:
        super()._build()
        if self.config.variance_type not in (*steps.VARIANCES, *LEARNED):
            raise ValueError(
                f"DDPMScheduler: variance_type must be one of {(*steps.VARIANCES, *LEARNED)}, "
                f"got {self.config.variance_type!r}"
            )

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: object = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose `num_inference_steps` timesteps by the configuration's spacing, or give them, largest first."""
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("pass num_inference_steps or timesteps")
        if timesteps is None:
            config = self.config
            listed = schedules.spaced_timesteps(
                config.timestep_spacing, len(self), num_inference_steps, config.steps_offset
            )
        else:
            listed = [int(t) for t in timesteps]
            if any(a <= b for a, b in zip(listed, listed[1:], strict=False)):
                raise ValueError("timesteps must be in descending order")
        if not listed or not 0 <= min(listed) <= max(listed) < len(self):
            raise ValueError(f"timesteps must be in [0, {len(self) - 1}], got {listed}")
        self._start(torch.tensor(listed), len(listed), device)
        # the largest listed timestep below each t
        below = torch.searchsorted(torch.tensor(sorted(listed)), torch.arange(len(self)))
        self._previous = torch.tensor([-1, *sorted(listed)])[below]
        self._step_table()
        if self.config.variance_type in LEARNED:
            self._learned_tables()

    def _step_table(self) -> steps.Table:
        kind = "fixed_small" if self.config.variance_type in LEARNED else self.config.variance_type
        return self._table(
            "step", lambda: steps.ddpm(self.schedule, self._previous, self.config.prediction_type, kind)
        )

    def _learned_tables(self) -> LearnedTables:
        return self._table(
            "learned", lambda: learned_tables(self.schedule, self._previous, self.config.prediction_type)
        )

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        *,
        variance_noise: Tensor | None = None,
        seed: Tensor | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """x_t -> x of the next timestep, one fused kernel.

        With guidance_scale the model's output is [2 B, ...], unconditional first. Others: `fastdl.ops.diffusion_step`.
        """
        self._needs_timesteps()
        config = self.config
        options = self._options(guidance_scale, guidance_rescale)
        if config.variance_type in LEARNED and model_output.shape[1] == 2 * sample.shape[1]:
            table, log_std = self._learned_tables()
            model_output, variance_noise = learned_noise(
                model_output, sample, timestep, log_std, config.variance_type,
                noise=variance_noise, seed=seed, generator=generator, guided=guidance_scale is not None,
            )  # fmt: skip
            generator = None
        else:
            table = self._step_table()
        found = run_step(
            model_output,
            timestep,
            sample,
            table,
            options,
            noise=variance_noise,
            seed=seed,
            generator=generator,
        )
        return SchedulerOutput(*found) if return_dict else found
