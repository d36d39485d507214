"""Schedulers with the names, configurations and calls of diffusers, each step one fused kernel.

>>> import fastdl
>>> ddim = fastdl.diffusion.DDIMScheduler(beta_schedule="scaled_linear")
>>> fastdl.diffusion.EulerDiscreteScheduler.from_config(ddim.config).config.beta_schedule
'scaled_linear'
"""

from .ddim import DDIMScheduler
from .ddpm import DDPMScheduler
from .dpm_solver_multistep import DPMSolverMultistepScheduler
from .euler import EulerDiscreteScheduler
from .euler_ancestral import EulerAncestralDiscreteScheduler
from .flow_match_euler import FlowMatchEulerDiscreteScheduler
from .scheduler import SchedulerOutput

__all__ = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "SchedulerOutput",
]
