"""Scheduler configurations: diffusers' keys, checked; unknown ones warned about and kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..ops.diffusion import schedules
from ..ops.diffusion.schedule import PREDICTIONS

_logger = logging.getLogger("fastdl")

_ENDLESS = {"lambda_min_clipped"}  # may be infinite
_POSITIVE = {"clip_sample_range", "sample_max_value", "beta_start", "beta_end", "shift", "flow_shift"}
_SIGMA_KINDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
_CHOICES = {
    "beta_schedule": schedules.BETA_SCHEDULES,
    "prediction_type": PREDICTIONS,
    "timestep_spacing": schedules.SPACINGS,
    "final_sigmas_type": ("zero", "sigma_min"),
}


class Config(dict):
    """A read-only dict whose keys are attributes as well: what diffusers calls FrozenDict."""

    def __getattr__(self, name: str) -> object:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the configuration has no {name!r}") from None

    def _refuse(self, *args: object, **kwargs: object) -> None:
        raise TypeError("a scheduler's configuration cannot be changed; use from_config(config, key=value)")

    __setitem__ = __delitem__ = __setattr__ = update = pop = setdefault = clear = _refuse

    def __reduce__(self) -> tuple:
        return Config, (dict(self),)


def as_mapping(config: object) -> Mapping[str, object]:
    """The configuration of a dict, or of an object with `.config`."""
    if not isinstance(config, Mapping):
        config = getattr(config, "config", config)
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a dict or have a .config, got {type(config).__name__}")
    return config


def warn_unknown(name: str, unknown: list[str]) -> None:
    if unknown:
        _logger.warning("%s: unknown configuration keys are kept and ignored: %s", name, ", ".join(unknown))


def check(name: str, config: Config) -> None:
    """ValueError or TypeError for a value of the wrong kind, out of range, or against another one."""
    steps = config.num_train_timesteps
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise TypeError(f"{name}: num_train_timesteps must be an int, got {steps!r}")
    if not 1 <= steps <= schedules.MOST_TIMESTEPS:
        raise ValueError(
            f"{name}: num_train_timesteps must be in [1, {schedules.MOST_TIMESTEPS}], got {steps}"
        )
    for key, value in config.items():
        if isinstance(value, float) and not math.isfinite(value) and key not in _ENDLESS:
            raise ValueError(f"{name}: {key} must be finite, got {value}")
        if key in _POSITIVE and not (isinstance(value, int | float) and value > 0):
            raise ValueError(f"{name}: {key} must be a positive number, got {value!r}")
        if key in _CHOICES and value not in _CHOICES[key]:
            raise ValueError(f"{name}: {key} must be one of {_CHOICES[key]}, got {value!r}")
    asked = [key for key in _SIGMA_KINDS if config.get(key)]
    if len(asked) > 1:
        raise ValueError(f"{name}: only one of {', '.join(asked)} can be used")
    if config.get("use_beta_sigmas"):
        raise ValueError(f"{name}: use_beta_sigmas is not supported")


def _refuse_epsilon_with_zero_snr(name: str, config: Config) -> None:
    # alpha is 0 at the last timestep: its epsilon says nothing about x_0
    if config.rescale_betas_zero_snr and config.prediction_type == "epsilon":
        raise ValueError(
            f"{name}: prediction_type 'epsilon' contradicts rescale_betas_zero_snr: at the last timestep x_t is all "
            "noise, and x_0 = (x_t - epsilon) / 0; use 'v_prediction' or 'sample'"
        )


def betas_of(name: str, config: Config) -> Tensor:
    """beta_t, fp64, each in (0, 1], as the configuration says; refused where they contradict what is predicted."""
    _refuse_epsilon_with_zero_snr(name, config)
    if config.trained_betas is not None:
        betas = torch.as_tensor(config.trained_betas, dtype=torch.float64).flatten()
        if len(betas) != config.num_train_timesteps:
            raise ValueError(
                f"{name}: trained_betas must have num_train_timesteps = {config.num_train_timesteps} values, "
                f"got {len(betas)}"
            )
    else:
        betas = schedules.betas(
            config.beta_schedule, config.num_train_timesteps, config.beta_start, config.beta_end
        )
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError(f"{name}: every beta must be in (0, 1)")
    return schedules.zero_terminal_snr(betas) if config.rescale_betas_zero_snr else betas
