"""DPM-Solver++ of first and second order, deterministic or stochastic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.diffusion import Schedule, add_noise, schedules, schema, steps
from ..ops.diffusion.op import make_options
from .euler import converted_sigmas
from .scheduler import IndexedScheduler, SchedulerOutput, run_step

_ALGORITHMS = ("dpmsolver++", "sde-dpmsolver++")


class DPMSolverMultistepScheduler(IndexedScheduler):
    """DPM-Solver++ 1 and 2M. Names, configuration and calls of diffusers' DPMSolverMultistepScheduler.

    The second-order step reads the x_0 of the step before, kept as `model_outputs`.

    Source: Lu et al. 2022.

    >>> import fastdl, torch
    >>> scheduler = fastdl.diffusion.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    >>> scheduler.set_timesteps(3)
    >>> x = torch.zeros(1, 4)
    >>> for t in scheduler.timesteps:
    ...     x = scheduler.step(torch.zeros_like(x), t, x).prev_sample
    >>> x.shape
    torch.Size([1, 4])
    """

    DEFAULTS = dict(
        num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear", trained_betas=None,
        solver_order=2, prediction_type="epsilon", thresholding=False, dynamic_thresholding_ratio=0.995,
        sample_max_value=1.0, algorithm_type="dpmsolver++", solver_type="midpoint", lower_order_final=True,
        euler_at_final=False, use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False,
        use_lu_lambdas=False, use_flow_sigmas=False, flow_shift=1.0, final_sigmas_type="zero",
        lambda_min_clipped=-math.inf, variance_type=None, timestep_spacing="linspace", steps_offset=0,
        rescale_betas_zero_snr=False, use_dynamic_shifting=False, time_shift_type="exponential",
    )  # fmt: skip
    init_noise_sigma = 1.0

    def _build(self) -> None:
        config = self.config
        if config.algorithm_type not in _ALGORITHMS:
            raise ValueError(f"algorithm_type must be one of {_ALGORITHMS}, got {config.algorithm_type!r}")
        if config.solver_order not in (1, 2):
            raise ValueError(f"solver_order must be 1 or 2, got {config.solver_order!r}")
        if config.solver_type not in ("midpoint", "heun"):
            raise ValueError(f"solver_type must be midpoint or heun, got {config.solver_type!r}")
        if (config.prediction_type == "flow_prediction") != bool(config.use_flow_sigmas):
            raise ValueError(
                f"prediction_type {config.prediction_type!r} contradicts use_flow_sigmas={config.use_flow_sigmas}"
            )
        alpha_bar = self._alpha_bar(2.0**-24)  # as diffusers: a sigma that is large, not infinite
        self.all_sigmas = ((1 - alpha_bar) / alpha_bar).sqrt()
        self._flow_shift = config.flow_shift
        falling = torch.arange(len(self)).flip(0)
        self._set(falling, self.all_sigmas.flip(0), 0.0, None)
        self.timesteps = falling.float()  # as diffusers, before set_timesteps
        self.num_inference_steps = None

    def _set(self, timesteps: Tensor, sigmas: Tensor, last: float, device: object) -> None:
        self._sigmas = torch.cat((sigmas, torch.tensor([last], dtype=torch.float64)))
        self.sigmas = self._sigmas.float()
        if self.config.use_flow_sigmas:
            self.schedule, self._alpha, self._sigma = Schedule.flow(sigmas), 1 - self._sigmas, self._sigmas
        else:
            self._alpha = (self._sigmas**2 + 1).rsqrt()
            self._sigma = self._sigmas * self._alpha
            self.schedule = Schedule(self._alpha[:-1], self._sigma[:-1])
        self._start(timesteps, len(timesteps), device)
        self.model_outputs: list[Tensor | None] = [None] * self.config.solver_order
        self.lower_order_nums = 0

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: object = None,
        mu: float | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose steps by the configuration, or give `timesteps`. `mu` for dynamic shifting of flow sigmas."""
        config, everything = self.config, self.all_sigmas
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("pass num_inference_steps or timesteps")
        if mu is not None:
            if not config.use_dynamic_shifting:
                raise ValueError("mu needs use_dynamic_shifting")
            self._flow_shift = math.exp(mu)
        spaced = config.use_karras_sigmas or config.use_exponential_sigmas or config.use_lu_lambdas
        if timesteps is not None and spaced:
            raise ValueError("timesteps contradict the configuration's own sigmas")
        at = (
            self._spaced(num_inference_steps)
            if timesteps is None
            else torch.tensor([float(t) for t in timesteps], dtype=torch.float64)
        )
        count = len(at)
        if spaced:
            low, high = everything[0].item(), everything[-1].item()
            if config.use_lu_lambdas:
                sigmas = schedules.exponential_sigmas(low, high, count)
            else:
                sigmas = converted_sigmas(
                    config, torch.linspace(high, low, count, dtype=torch.float64), count
                )
            at = schedules.timestep_of_sigma(sigmas, everything)
            if not config.use_exponential_sigmas and config.beta_schedule != "squaredcos_cap_v2":
                at = at.round()
        elif config.use_flow_sigmas:
            sigmas = 1 - torch.linspace(1, 1 / len(self), count + 1, dtype=torch.float64)
            sigmas = schedules.shifted(sigmas, self._flow_shift).flip(0)[:-1]
            at = sigmas * len(self)
        else:
            sigmas = schedules.interpolated(everything, at)
        last = everything[0].item() if config.final_sigmas_type == "sigma_min" else 0.0
        self._set(at.long(), sigmas, last, device)
        for second in (False, True)[: config.solver_order]:
            self._step_table(second)

    def _spaced(self, steps: int) -> Tensor:
        config = self.config
        levels = -self.all_sigmas.log().flip(0)
        clipped = torch.searchsorted(levels, config.lambda_min_clipped).item()
        last = len(self) - clipped
        if not 1 <= steps <= last:
            raise ValueError(f"num_inference_steps must be in [1, {last}], got {steps}")
        if config.timestep_spacing == "trailing":
            ratio = len(self) / steps
            listed = [round(last - i * ratio) - 1 for i in range(math.ceil(last / ratio))]
        else:
            listed = schedules.spaced_floats(config.timestep_spacing, last, steps + 1, config.steps_offset)
            listed = [round(t) for t in listed[:-1]]
        return torch.tensor(listed, dtype=torch.float64)

    def _second_order(self) -> Tensor:
        # Where the last step has to be of first order: at sigma 0 the second is undefined, with few steps unstable.
        config, count = self.config, len(self._sigmas) - 1
        second = torch.ones(count, dtype=torch.bool)
        second[0] = False
        few = config.lower_order_final and count < 15
        second[-1] = not (config.euler_at_final or few or config.final_sigmas_type == "zero")
        return second & (config.solver_order == 2)

    def _step_table(self, second: bool) -> steps.Table:
        config = self.config

        def make() -> steps.Table:
            return steps.dpm_solver(
                self._alpha, self._sigma, config.prediction_type, self.schedule.kind,
                second_order=self._second_order() & second,
                stochastic=config.algorithm_type == "sde-dpmsolver++", heun=config.solver_type == "heun",
            )  # fmt: skip

        return self._table(second, make)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        *,
        seed: Tensor | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
    ) -> SchedulerOutput | tuple[Tensor]:
        """From sigma_i to sigma_(i + 1), one fused kernel; the first step after `set_timesteps` is of first order.

        With guidance_scale the model's output is [2 B, ...], unconditional first. Others: `fastdl.ops.diffusion_step`.
        """
        self._needs_timesteps()
        config = self.config
        row = self._row(timestep)
        second = config.solver_order == 2 and self.lower_order_nums > 0
        threshold = (
            (config.dynamic_thresholding_ratio, config.sample_max_value) if config.thresholding else None
        )
        prev_sample, x_0 = run_step(
            model_output, row, sample, self._step_table(second),
            make_options(_BOTH, guidance_scale, guidance_rescale, threshold=threshold),
            history=self.model_outputs[-1] if second else None,
            noise=variance_noise, seed=seed, generator=generator,
        )  # fmt: skip
        self.model_outputs = [*self.model_outputs[1:], x_0]
        self.lower_order_nums = min(self.lower_order_nums + 1, config.solver_order)
        self._advance()
        return SchedulerOutput(prev_sample, x_0) if return_dict else (prev_sample,)

    def add_noise(
        self, original_samples: Tensor, noise: Tensor | None, timesteps: int | Tensor, **keywords: object
    ) -> Tensor:
        """alpha_t x_0 + sigma_t noise; without noise the kernel makes it (see `fastdl.ops.add_noise`)."""
        return add_noise(
            original_samples, self._rows_of_noise(timesteps), self.schedule, noise=noise, **keywords
        )


_BOTH = schema.WANT_PREV | schema.WANT_X0
