"""Euler, on the sigmas of a variance exploding schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.diffusion import Schedule, add_noise, schedules, schema, steps, velocity
from ..ops.diffusion.op import apply, make_options
from .scheduler import IndexedScheduler, SchedulerOutput, run_step

_SCALE = make_options(schema.WANT_PREV)


class SigmaScheduler(IndexedScheduler):
    """Euler and Euler-ancestral: x_t = x_0 + sigma_t eps; the model sees x_t / sqrt(sigma_t^2 + 1)."""

    def _build(self) -> None:
        config = self.config
        if config.prediction_type == "flow_prediction":
            raise ValueError(f"{type(self).__name__}: for flow models use FlowMatchEulerDiscreteScheduler")
        alpha_bar = self._alpha_bar(2.0**-24)  # as diffusers: a sigma that is large, not infinite
        self.all_sigmas = ((1 - alpha_bar) / alpha_bar).sqrt()
        self._trained = Schedule.from_alpha_bar(alpha_bar)
        self._set(torch.arange(len(self)).flip(0).float(), self.all_sigmas.flip(0), 0.0, None)
        self.num_inference_steps = None

    def _set(self, timesteps: Tensor, sigmas: Tensor, last: float, device: object) -> None:
        self._sigmas = torch.cat((sigmas, torch.tensor([last], dtype=torch.float64)))
        self.sigmas = self._sigmas.float()
        self.schedule = Schedule.from_sigmas(sigmas)
        self._start(timesteps.float(), len(timesteps), device)

    def _spaced(self, steps: int) -> Tensor:
        config = self.config
        if not 1 <= steps <= len(self):
            raise ValueError(f"num_inference_steps must be in [1, {len(self)}], got {steps}")
        listed = schedules.spaced_floats(config.timestep_spacing, len(self), steps, config.steps_offset)
        return torch.tensor(listed, dtype=torch.float64)

    def _scaling_table(self) -> steps.Table:
        return self._table("scale", lambda: steps.scaling_input(self._sigmas[:-1]))

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the first sample."""
        largest = self._sigmas.max().item()
        within = self.config.timestep_spacing in ("linspace", "trailing")
        return largest if within else math.sqrt(largest**2 + 1)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor) -> Tensor:
        """x_t / sqrt(sigma_t^2 + 1)."""
        self._needs_timesteps()
        row = self._row(timestep)
        return apply(sample, None, None, None, None, row, self._scaling_table(), _SCALE)[0]

    def add_noise(
        self, original_samples: Tensor, noise: Tensor | None, timesteps: float | Tensor, **keywords: object
    ) -> Tensor:
        """x_0 + sigma_t noise; without noise the kernel makes it (see `fastdl.ops.add_noise`)."""
        return add_noise(
            original_samples, self._rows_of_noise(timesteps), self.schedule, noise=noise, **keywords
        )


class EulerDiscreteScheduler(SigmaScheduler):
    """Euler steps. Names, configuration and calls of diffusers' EulerDiscreteScheduler.

    Source: Karras et al. 2022, algorithm 2.

    >>> import fastdl, torch
    >>> scheduler = fastdl.diffusion.EulerDiscreteScheduler(use_karras_sigmas=True)
    >>> scheduler.set_timesteps(3)
    >>> x = torch.zeros(1, 4) * scheduler.init_noise_sigma
    >>> for t in scheduler.timesteps:
    ...     x = scheduler.step(torch.zeros_like(scheduler.scale_model_input(x, t)), t, x).prev_sample
    >>> x
    tensor([[0., 0., 0., 0.]])
    """

    DEFAULTS = dict(
        num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear", trained_betas=None,
        prediction_type="epsilon", interpolation_type="linear", use_karras_sigmas=False,
        use_exponential_sigmas=False, use_beta_sigmas=False, sigma_min=None, sigma_max=None,
        timestep_spacing="linspace", timestep_type="discrete", steps_offset=0, rescale_betas_zero_snr=False,
        final_sigmas_type="zero",
    )  # fmt: skip

    def _build(self) -> None:
        if self.config.interpolation_type not in ("linear", "log_linear"):
            raise ValueError(
                f"interpolation_type must be linear or log_linear, got {self.config.interpolation_type!r}"
            )
        super()._build()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: object = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Choose steps by the configuration, or give `timesteps`, or `sigmas` with the last one."""
        config, everything = self.config, self.all_sigmas
        if (num_inference_steps is not None) + (timesteps is not None) + (sigmas is not None) != 1:
            raise ValueError("pass exactly one of num_inference_steps, timesteps and sigmas")
        converted = config.use_karras_sigmas or config.use_exponential_sigmas
        if timesteps is not None and converted:
            raise ValueError("timesteps contradict use_karras_sigmas and use_exponential_sigmas")
        last = everything[0].item() if config.final_sigmas_type == "sigma_min" else 0.0
        if sigmas is not None:
            given = torch.tensor([float(s) for s in sigmas], dtype=torch.float64)
            chosen, last = given[:-1], given[-1].item()
            at = schedules.timestep_of_sigma(chosen, everything)
        else:
            at = (
                self._spaced(num_inference_steps)
                if timesteps is None
                else torch.tensor([float(t) for t in timesteps], dtype=torch.float64)
            )
            if config.interpolation_type == "log_linear":
                ends = everything.log()
                chosen = torch.linspace(ends[-1], ends[0], len(at) + 1, dtype=torch.float64).exp()
            else:
                chosen = schedules.interpolated(everything, at)
            if converted:
                chosen = converted_sigmas(config, chosen, len(at))
                at = schedules.timestep_of_sigma(chosen, everything)
            elif config.interpolation_type == "log_linear":  # as diffusers: to the least sigma, never to 0
                chosen, last = chosen[:-1], chosen[-1].item()
        if config.timestep_type == "continuous" and config.prediction_type == "v_prediction":
            at = 0.25 * chosen.log()
        self._set(at, chosen, last, device)
        self._scaling_table()
        self._step_table()

    def _step_table(
        self, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
    ) -> steps.Table:
        def make() -> steps.Table:
            sigma = self._sigmas[:-1]
            gamma = min(s_churn / len(sigma), math.sqrt(2) - 1)
            gammas = torch.where((s_tmin <= sigma) & (sigma <= s_tmax), gamma, 0.0)
            return steps.euler(self._sigmas, self.config.prediction_type, gammas, s_noise)

        return self._table((s_churn, s_tmin, s_tmax, s_noise), make)

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
        return_dict: bool = True,
        *,
        variance_noise: Tensor | None = None,
        seed: Tensor | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """From sigma_i to sigma_(i + 1), one fused kernel; s_churn raises the noise first.

        With guidance_scale the model's output is [2 B, ...], unconditional first. Others: `fastdl.ops.diffusion_step`.
        """
        self._needs_timesteps()
        row = self._row(timestep)
        found = run_step(
            model_output, row, sample, self._step_table(s_churn, s_tmin, s_tmax, s_noise),
            make_options(_BOTH, guidance_scale, guidance_rescale),
            noise=variance_noise, seed=seed, generator=generator,
        )  # fmt: skip
        self._advance()
        return SchedulerOutput(*found) if return_dict else found

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: float | Tensor) -> Tensor:
        """alpha_t noise - sigma_t x_0 of the variance preserving schedule at training timesteps."""
        at = timesteps.long() if isinstance(timesteps, Tensor) else int(timesteps)
        return velocity(sample, noise, at, self._trained)


_BOTH = schema.WANT_PREV | schema.WANT_X0


def converted_sigmas(config: object, sigmas: Tensor, steps: int) -> Tensor:
    """`steps` sigmas between the ends of `sigmas` (falling), or the configuration's, spaced as it says."""
    low, high = config.get("sigma_min"), config.get("sigma_max")
    low = sigmas[-1].item() if low is None else low
    high = sigmas[0].item() if high is None else high
    make = schedules.karras_sigmas if config.use_karras_sigmas else schedules.exponential_sigmas
    return make(low, high, steps)
