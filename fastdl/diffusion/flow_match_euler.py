"""Euler steps of flow matching."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..dispatch import settings
from ..ops.diffusion import Schedule, add_noise, schedules, schema, steps
from ..ops.diffusion.copies import OnDevices
from ..ops.diffusion.op import make_options
from .euler import converted_sigmas
from .scheduler import IndexedScheduler, SchedulerOutput, run_step


class FlowMatchEulerDiscreteScheduler(IndexedScheduler):
    """dx = v dsigma by Euler's method. Names, configuration and calls of diffusers' FlowMatchEulerDiscreteScheduler.

    Source: Esser et al. 2024.

    >>> import fastdl, torch
    >>> scheduler = fastdl.diffusion.FlowMatchEulerDiscreteScheduler(shift=3.0)
    >>> scheduler.set_timesteps(2)
    >>> scheduler.sigmas
    tensor([1.0000, 0.0089, 0.0000])
    """

    DEFAULTS = dict(
        num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False, base_shift=0.5, max_shift=1.15,
        base_image_seq_len=256, max_image_seq_len=4096, invert_sigmas=False, shift_terminal=None,
        use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False,
        time_shift_type="exponential", stochastic_sampling=False,
    )  # fmt: skip
    init_noise_sigma = 1.0

    def _build(self) -> None:
        config = self.config
        if config.time_shift_type not in ("exponential", "linear"):
            raise ValueError(f"time_shift_type must be exponential or linear, got {config.time_shift_type!r}")
        self._shift = config.shift
        sigmas = torch.arange(len(self), 0, -1, dtype=torch.float64) / len(self)
        if not config.use_dynamic_shifting:
            sigmas = schedules.shifted(sigmas, self._shift)
        self.sigma_max, self.sigma_min = sigmas[0].item(), sigmas[-1].item()
        self._set(sigmas * len(self), torch.cat((sigmas, sigmas.new_zeros(1))), None)
        self.num_inference_steps = None

    @property
    def shift(self) -> float:
        """The configuration's shift, unless `set_shift` changed it."""
        return self._shift

    def set_shift(self, shift: float) -> None:
        """A new shift for the next `set_timesteps`."""
        self._shift = shift

    def _set(self, timesteps: Tensor, sigmas: Tensor, device: object) -> None:
        self._sigmas = sigmas
        self._differences = (sigmas[1:] - sigmas[:-1]).float().tolist()
        self.schedule = Schedule.flow(sigmas[:-1])
        self._start(timesteps.float(), len(timesteps), device)
        self.sigmas = OnDevices(sigmas.float()).on(self._device)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: object = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Choose evenly spaced sigmas, or give them without the last one; then the shift. `mu` for dynamic shifting."""
        config = self.config
        if config.use_dynamic_shifting and mu is None:
            raise ValueError("use_dynamic_shifting needs mu")
        lengths = {len(v) for v in (sigmas, timesteps) if v is not None}
        lengths |= set() if num_inference_steps is None else {num_inference_steps}
        if len(lengths) != 1 or min(lengths) < 1:
            raise ValueError(
                "pass num_inference_steps, sigmas or timesteps, of one length of at least 1, "
                f"got lengths {sorted(lengths)}"
            )
        (count,) = lengths
        given = (
            None if timesteps is None else torch.tensor([float(t) for t in timesteps], dtype=torch.float64)
        )
        if sigmas is not None:
            chosen = torch.tensor([float(s) for s in sigmas], dtype=torch.float64)
        elif given is not None:
            chosen = given / len(self)
        else:
            chosen = torch.linspace(self.sigma_max, self.sigma_min, count, dtype=torch.float64)
        chosen = schedules.shifted(chosen, self._scale(mu))
        if config.shift_terminal:
            rest = 1 - chosen
            chosen = 1 - rest * (1 - config.shift_terminal) / rest[-1]
        if config.use_karras_sigmas or config.use_exponential_sigmas:
            chosen = converted_sigmas(config, chosen, count)
        if config.invert_sigmas:
            chosen = 1 - chosen
        last = 1.0 if config.invert_sigmas else 0.0
        at = chosen * len(self) if given is None or config.invert_sigmas else given
        self._set(at, torch.cat((chosen, torch.tensor([last], dtype=torch.float64))), device)
        self._step_table()

    def _step_table(self) -> steps.Table:
        stochastic = self.config.stochastic_sampling
        return self._table("step", lambda: steps.flow_match_euler(self._sigmas, stochastic))

    def _scale(self, mu: float | None) -> float:
        if not self.config.use_dynamic_shifting:
            return self._shift
        return math.exp(mu) if self.config.time_shift_type == "exponential" else mu

    def scale_noise(
        self, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None, **keywords: object
    ) -> Tensor:
        """(1 - sigma_t) x_0 + sigma_t noise; without noise the kernel makes it (see `fastdl.ops.add_noise`)."""
        return add_noise(sample, self._rows_of_noise(timestep), self.schedule, noise=noise, **keywords)

    def add_noise(
        self, original_samples: Tensor, noise: Tensor | None, timesteps: float | Tensor, **keywords: object
    ) -> Tensor:
        """As `scale_noise`."""
        return self.scale_noise(original_samples, timesteps, noise, **keywords)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | None = None,
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
        *,
        variance_noise: Tensor | None = None,
        seed: Tensor | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
    ) -> SchedulerOutput | tuple[Tensor]:
        """From sigma_i to sigma_(i + 1), one fused kernel. The s_ arguments do nothing, as in diffusers.

        `per_token_timesteps`: [B, L], elements of `timesteps`, for a sample [B, L, ...]: each token steps from its
        own. With guidance_scale the model's output is [2 B, ...], unconditional first. Others:
        `fastdl.ops.diffusion_step`.
        """
        self._needs_timesteps()
        row = (
            self._row(timestep) if per_token_timesteps is None else self._rows_on_device(per_token_timesteps)
        )
        stochastic = self.config.stochastic_sampling
        if guidance_scale is None and not stochastic and _one_addition(model_output, row, sample):
            prev_sample = torch.add(sample, model_output, alpha=self._differences[row])
        else:
            options = make_options(schema.WANT_PREV, guidance_scale, guidance_rescale)
            prev_sample, _ = run_step(
                model_output,
                row,
                sample,
                self._step_table(),
                options,
                noise=variance_noise,
                seed=seed,
                generator=generator,
            )
        self._advance()
        return SchedulerOutput(prev_sample) if return_dict else (prev_sample,)


def _one_addition(model_output: Tensor, row: int | Tensor, sample: Tensor) -> bool:
    """Whether torch.add computes and rounds a plain step as the kernel does: 20 us sooner, since it reads no table."""
    if type(row) is not int or settings.backend is not None or settings.strict:
        return False
    known = sample.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return known and model_output.dtype is sample.dtype and model_output.shape == sample.shape
