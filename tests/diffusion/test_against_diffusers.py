"""Whole trajectories against diffusers, where it is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor

import fastdl
from tests.diffusion.trajectories import CASES, STEPS, first_sample, model, name, noises, ours, run

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")


@contextlib.contextmanager
def given_noise(scheduler: object, noise: Tensor) -> Iterator[None]:
    """diffusers draws its noise by a function of its module."""
    with mock.patch(f"{type(scheduler).__module__}.randn_tensor", return_value=noise.clone()):
        yield


def theirs(scheduler: str, config: dict) -> object:
    made = getattr(diffusers, f"{scheduler}Scheduler")(**config)
    made.set_timesteps(STEPS)
    if hasattr(made, "set_begin_index"):  # of two equal timesteps it would start at the second
        made.set_begin_index(0)
    return made


def run_theirs(scheduler: object, **keywords: object) -> list[Tensor]:
    x = first_sample() * getattr(scheduler, "init_noise_sigma", 1.0)
    samples = [x]
    for i, t in enumerate(scheduler.timesteps):
        output = model(scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x, t)
        with given_noise(scheduler, noises()[i]):
            x = scheduler.step(output, t, x, **keywords).prev_sample
        samples.append(x)
    return samples


@pytest.mark.parametrize("case", CASES, ids=name)
def test_trajectories(case):
    scheduler, config, keywords = case
    a, b = ours(scheduler, config), theirs(scheduler, config)
    assert len(a.timesteps) == len(b.timesteps)
    # a fractional timestep that is cut to an integer may fall on either side of it
    fractional = config.get("use_exponential_sigmas") or config.get("use_karras_sigmas")
    cut = fractional and a.timesteps.dtype is torch.int64
    torch.testing.assert_close(a.timesteps.double(), b.timesteps.double(), rtol=2e-5, atol=1 if cut else 2e-2)
    mine = run(a, model_timesteps=b.timesteps, **keywords)
    for i, (x, y) in enumerate(zip(mine, run_theirs(b, **keywords), strict=True)):
        scale = y.abs().max().item()
        # diffusers computes its tables in fp32: a sigma has 1e-5 of error where 1 - alpha_bar cancels
        assert (x - y).abs().max().item() <= 5e-4 * scale, f"step {i}"


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shifting(kind):
    config = dict(use_dynamic_shifting=True, time_shift_type=kind)
    a = fastdl.diffusion.FlowMatchEulerDiscreteScheduler(**config)
    b = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    for scheduler in (a, b):
        scheduler.set_timesteps(STEPS, mu=0.8)
    torch.testing.assert_close(a.sigmas, b.sigmas)
    torch.testing.assert_close(a.timesteps, b.timesteps)
    with pytest.raises(ValueError, match="use_dynamic_shifting needs mu"):
        a.set_timesteps(STEPS)
