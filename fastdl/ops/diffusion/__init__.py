"""Noise schedules, the forward process and every scheduler's reverse step, one fused kernel each."""

from . import registration as registration
from . import schedules, schema, steps
from .forward_process import add_noise, predict_x0, training_target, velocity
from .op import DiffusionStep, diffusion_step
from .schedule import Schedule
from .table import Table

__all__ = [
    "DiffusionStep",
    "Schedule",
    "Table",
    "add_noise",
    "diffusion_step",
    "predict_x0",
    "schedules",
    "schema",
    "steps",
    "training_target",
    "velocity",
]
