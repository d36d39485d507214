"""The noise the model is trained with, and the schedulers that remove it."""

from __future__ import annotations

from ... import diffusion
from ...diffusion.scheduler import Scheduler

_BY_NAME = {
    "ddpm": (diffusion.DDPMScheduler, {"timestep_spacing": "trailing"}),
    "ddim": (diffusion.DDIMScheduler, {"timestep_spacing": "trailing"}),
    "dpm_solver": (diffusion.DPMSolverMultistepScheduler, {"timestep_spacing": "trailing"}),
    "euler": (diffusion.EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "euler_ancestral": (diffusion.EulerAncestralDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "flow_match": (diffusion.FlowMatchEulerDiscreteScheduler, {}),
}


def trained(prediction: str) -> diffusion.DDPMScheduler:
    """A cosine schedule of 1000 timesteps. Source: Nichol and Dhariwal 2021.

    x_0 is not clipped: guidance leads it out of [-1, 1], and beside a clipped x_0 the noise no longer adds up to x_t.
    """
    return diffusion.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type=prediction, clip_sample=False
    )


def ready(name: str, prediction: str, steps: int) -> Scheduler:
    """The scheduler of that name, set to `steps` steps through the levels of `trained`."""
    kind, changes = _BY_NAME[name]
    scheduler = kind.from_config(trained(prediction).config, **changes)
    scheduler.set_timesteps(steps)
    return scheduler
