"""Configurations, and whole trajectories of a fixed model under a scheduler."""

from __future__ import annotations

import torch
from torch import Tensor

import fastdl

SHAPE = (2, 3, 8, 8)
STEPS = 12


def model(x: Tensor, t: Tensor | float) -> Tensor:
    """Bounded, smooth, and dependent on t, in the dtype of x."""
    return torch.tanh(0.7 * x + 0.2 * torch.roll(x, 1, -1)) * (0.5 + float(t) / 2000)


def first_sample(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)


def noises() -> list[Tensor]:
    """The noise of each step."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(SHAPE, generator=generator) for _ in range(STEPS + 2)]


def run(scheduler: object, model_timesteps: Tensor | None = None, **keywords: object) -> list[Tensor]:
    """Every sample of a trajectory, the first one included; each step is given its noise."""
    x = first_sample() * scheduler.init_noise_sigma
    samples = [x]
    seen = scheduler.timesteps if model_timesteps is None else model_timesteps
    for i, t in enumerate(scheduler.timesteps):
        output = model(scheduler.scale_model_input(x, t), seen[i])
        x = scheduler.step(output, t, x, variance_noise=noises()[i], **keywords).prev_sample
        samples.append(x)
    return samples


def case(scheduler: str, keywords: dict | None = None, **config: object) -> tuple[str, dict, dict]:
    return scheduler, config, keywords or {}


NAMES = (
    "DDPM", "DDIM", "DPMSolverMultistep", "EulerDiscrete", "EulerAncestralDiscrete", "FlowMatchEulerDiscrete",
)  # fmt: skip
SPACINGS = ("linspace", "leading", "trailing")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
_BOTH = [dict(prediction_type=p, timestep_spacing=s) for p in PREDICTIONS for s in SPACINGS]
_EULER = [c for c in _BOTH if c["prediction_type"] != "sample"]
# fmt: off
CASES = [
    *(case("DDPM", **c) for c in _BOTH),
    *(case("DDPM", variance_type=v) for v in ("fixed_small_log", "fixed_large")),
    case("DDPM", beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
    case("DDPM", beta_schedule="squaredcos_cap_v2"),
    case("DDPM", beta_schedule="sigmoid"),
    case("DDPM", thresholding=True, sample_max_value=1.5, dynamic_thresholding_ratio=0.9),
    case("DDPM", rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"),
    *(case("DDIM", **c) for c in _BOTH),
    *(case("DDIM", dict(eta=1.0), **c) for c in _BOTH),
    case("DDIM", dict(use_clipped_model_output=True), beta_schedule="scaled_linear"),
    case("DDIM", dict(eta=0.5), set_alpha_to_one=False, clip_sample_range=2.0),
    case("DDIM", thresholding=True, sample_max_value=1.5),
    case("DDIM", rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"),
    *(case("DPMSolverMultistep", **c) for c in _BOTH),
    *(case("DPMSolverMultistep", algorithm_type="sde-dpmsolver++", **c) for c in _BOTH),
    *(case("DPMSolverMultistep", solver_type="heun", algorithm_type=a, final_sigmas_type=f)
      for a in ("dpmsolver++", "sde-dpmsolver++") for f in ("zero", "sigma_min")),
    case("DPMSolverMultistep", solver_order=1),
    case("DPMSolverMultistep", use_karras_sigmas=True),
    case("DPMSolverMultistep", use_exponential_sigmas=True),
    case("DPMSolverMultistep", use_lu_lambdas=True),
    case("DPMSolverMultistep", use_karras_sigmas=True, beta_schedule="squaredcos_cap_v2"),
    case("DPMSolverMultistep", use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    case("DPMSolverMultistep", thresholding=True, sample_max_value=1.5),
    case("DPMSolverMultistep", rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    case("DPMSolverMultistep", lower_order_final=False, euler_at_final=True, final_sigmas_type="sigma_min"),
    case("DPMSolverMultistep", lambda_min_clipped=-4.0),
    *(case("EulerDiscrete", **c) for c in _EULER),
    case("EulerDiscrete", prediction_type="sample"),
    case("EulerDiscrete", use_karras_sigmas=True),
    case("EulerDiscrete", use_exponential_sigmas=True, final_sigmas_type="sigma_min"),
    case("EulerDiscrete", use_karras_sigmas=True, sigma_min=0.1, sigma_max=20.0),
    *(case("EulerDiscrete", interpolation_type="log_linear", prediction_type=p) for p in ("epsilon", "sample")),
    case("EulerDiscrete", interpolation_type="log_linear", use_karras_sigmas=True),
    case("EulerDiscrete", timestep_type="continuous", prediction_type="v_prediction", use_karras_sigmas=True),
    case("EulerDiscrete", rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"),
    case("EulerDiscrete", dict(s_churn=4.0, s_tmin=0.5, s_tmax=50.0, s_noise=1.01)),
    case("EulerDiscrete", dict(s_churn=4.0), prediction_type="v_prediction"),
    *(case("EulerAncestralDiscrete", **c) for c in _EULER),
    case("EulerAncestralDiscrete", beta_schedule="scaled_linear"),
    case("FlowMatchEulerDiscrete"),
    case("FlowMatchEulerDiscrete", shift=3.0),
    case("FlowMatchEulerDiscrete", shift=3.0, shift_terminal=0.02),
    case("FlowMatchEulerDiscrete", use_karras_sigmas=True),
    case("FlowMatchEulerDiscrete", use_exponential_sigmas=True),
    case("FlowMatchEulerDiscrete", stochastic_sampling=True),
    case("FlowMatchEulerDiscrete", invert_sigmas=True),
]
# fmt: on


def name(values: tuple[str, dict, dict]) -> str:
    scheduler, config, keywords = values
    return "-".join([scheduler, *(f"{k}={v}" for k, v in {**config, **keywords}.items())])


def ours(scheduler: str, config: dict) -> object:
    made = getattr(fastdl.diffusion, f"{scheduler}Scheduler")(**config)
    made.set_timesteps(STEPS)
    return made
