"""Schedulers: what a step can be given, and their configurations, states and refusals."""

from __future__ import annotations

import contextlib
import copy
import logging
import pickle
import re
from pathlib import Path

import pytest
import torch

import fastdl
from tests.diffusion.trajectories import NAMES, STEPS, ours

diffusion = fastdl.diffusion


def test_samples_of_a_batch_at_their_own_timesteps():
    scheduler = ours("DDIM", {})
    x, m = torch.randn(2, 3, 4, 4, 4)
    t = scheduler.timesteps[[0, 5, 11]]
    found = scheduler.step(m, t, x).prev_sample
    for i in range(3):
        alone = scheduler.step(m[i : i + 1], int(t[i]), x[i : i + 1]).prev_sample
        assert torch.equal(alone[0], found[i])


def test_learned_variance_range():
    scheduler = ours("DDPM", dict(variance_type="learned_range", clip_sample=False))
    x, noise = torch.randn(2, 2, 3, 4, 4)
    mean = torch.randn(2, 3, 4, 4)
    t = int(scheduler.timesteps[3])
    small, large = (
        ours("DDPM", dict(variance_type=v, clip_sample=False))
        .step(mean, t, x, variance_noise=noise)
        .prev_sample
        for v in ("fixed_small", "fixed_large")
    )
    for v, expected in ((-1.0, small), (1.0, large)):
        output = torch.cat((mean, torch.full_like(mean, v)), 1)
        torch.testing.assert_close(scheduler.step(output, t, x, variance_noise=noise).prev_sample, expected)


def test_learned_variance_has_no_noise_at_the_last_timestep():
    scheduler = ours("DDPM", dict(variance_type="learned_range", clip_sample=False))
    x, m, v = torch.randn(3, 2, 3, 4, 4)
    plain = ours("DDPM", dict(clip_sample=False)).step(m, 0, x).prev_sample
    for choice in (contextlib.nullcontext(), fastdl.backend("reference")):
        with choice:
            found = scheduler.step(torch.cat((m, v), 1), 0, x).prev_sample
        torch.testing.assert_close(found, plain)


def test_guidance_is_combined_in_the_step():
    scheduler = ours("DDPM", {})
    x, u, c, noise = torch.randn(4, 2, 3, 4, 4)
    t = scheduler.timesteps[2]
    found = scheduler.step(torch.cat((u, c)), t, x, variance_noise=noise, guidance_scale=4.0).prev_sample
    torch.testing.assert_close(
        found, scheduler.step(u + 4.0 * (c - u), t, x, variance_noise=noise).prev_sample
    )


def test_tuples_and_generators():
    scheduler = ours("DDPM", {})
    x, m = torch.randn(2, 2, 3, 4, 4)
    generator = torch.Generator().manual_seed(3)
    first = scheduler.step(m, 900, x, generator, return_dict=False)
    assert isinstance(first, tuple)
    assert len(first) == 2
    again = scheduler.step(m, 900, x, generator=generator.manual_seed(3))
    assert torch.equal(again.prev_sample, first[0])
    assert torch.equal(again[1], first[1])
    each = [torch.Generator().manual_seed(i) for i in (5, 6)]
    by_sample = scheduler.step(m, 900, x, generator=each).prev_sample
    alone = scheduler.step(m[1:], 900, x[1:], generator=[torch.Generator().manual_seed(6)]).prev_sample
    assert torch.equal(by_sample[1:], alone)
    with pytest.raises(ValueError, match="not both"):
        scheduler.step(m, 900, x, generator=generator, variance_noise=x)


def test_different_dtypes_meet_in_the_wider_one():
    scheduler = ours("EulerDiscrete", {})
    x = torch.randn(1, 4)
    found = scheduler.step(x.bfloat16(), scheduler.timesteps[0], x).prev_sample
    assert found.dtype is torch.float32


def test_configurations_travel(caplog):
    theirs = dict(
        num_train_timesteps=500,
        beta_schedule="scaled_linear",
        _class_name="X",
        skip_prk_steps=True,
        sigma_max=3.0,
    )
    with caplog.at_level(logging.WARNING, "fastdl"):
        scheduler = diffusion.DDIMScheduler.from_config(theirs, steps_offset=1)
    assert "skip_prk_steps" in caplog.text
    assert "sigma_max" not in caplog.text  # another scheduler's
    assert scheduler.config.skip_prk_steps is True
    assert (scheduler.config.steps_offset, len(scheduler)) == (1, 500)
    other = diffusion.EulerDiscreteScheduler.from_config(scheduler)  # an object with .config
    assert other.config.sigma_max == 3.0
    assert other.config["beta_schedule"] == "scaled_linear"
    with pytest.raises(TypeError, match="from_config"):
        other.config["beta_schedule"] = "linear"
    assert diffusion.DDPMScheduler(100, 0.001).config.beta_start == 0.001
    for copied in (pickle.loads(pickle.dumps(scheduler)), copy.deepcopy(scheduler)):
        assert copied.config == scheduler.config


def test_the_page_names_every_key():
    page = (Path(__file__).parents[2] / "docs/diffusion.md").read_text()
    common = page[page.index("All but FlowMatch") : page.index("| scheduler |")]
    for name in NAMES:
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}Scheduler`")]
        keys = set(getattr(diffusion, f"{name}Scheduler").DEFAULTS)
        named = set(re.findall(r"`(\w+)`", line.split("|")[2].split(";")[0]))
        assert (
            named
            | (set() if name == "FlowMatchEulerDiscrete" else keys & set(re.findall(r"`(\w+)`", common)))
            == keys
        )


@pytest.mark.parametrize(
    ("scheduler", "config", "message"),
    [
        *(
            (name, dict(rescale_betas_zero_snr=True), "contradicts rescale_betas_zero_snr")
            for name in NAMES
            if name != "FlowMatchEulerDiscrete"
        ),
        ("DDPM", dict(num_train_timesteps=10**12), "num_train_timesteps must be in"),
        ("DDPM", dict(beta_end=1.5), "every beta must be in"),
        ("DDPM", dict(beta_start=float("nan")), "beta_start must be"),
        ("DDPM", dict(clip_sample_range=float("inf")), "must be finite"),
        ("DDPM", dict(beta_schedule="x"), "beta_schedule must be one of"),
        ("DDPM", dict(prediction_type="flow_prediction"), "has no meaning"),
        ("DDPM", dict(variance_type="x"), "variance_type must be one of"),
        ("DDPM", dict(trained_betas=[0.1, 0.2]), "trained_betas must have"),
        ("EulerDiscrete", dict(use_karras_sigmas=True, use_exponential_sigmas=True), "only one of"),
        ("EulerDiscrete", dict(use_beta_sigmas=True), "not supported"),
        ("EulerDiscrete", dict(prediction_type="flow_prediction"), "FlowMatchEuler"),
        ("DPMSolverMultistep", dict(solver_order=3), "solver_order must be 1 or 2"),
        ("DPMSolverMultistep", dict(algorithm_type="dpmsolver"), "algorithm_type must be one of"),
        ("DPMSolverMultistep", dict(use_flow_sigmas=True), "contradicts use_flow_sigmas"),
        ("FlowMatchEulerDiscrete", dict(shift=-1.0), "positive"),
    ],
)
def test_refused_configurations(scheduler, config, message):
    def use() -> None:
        made = getattr(diffusion, f"{scheduler}Scheduler")(**config)
        made.set_timesteps(3)
        made.step(torch.zeros(1, 2), made.timesteps[0], torch.zeros(1, 2))

    with pytest.raises(ValueError, match=message):
        use()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_before_set_timesteps(name):
    x = torch.zeros(1, 2)
    scheduler = getattr(diffusion, f"{name}Scheduler")()
    with pytest.raises(ValueError, match=f"{name}Scheduler: call set_timesteps first"):
        scheduler.step(x, scheduler.timesteps[0], x)
    if name.startswith("Euler"):
        with pytest.raises(ValueError, match="call set_timesteps first"):
            scheduler.scale_model_input(x, scheduler.timesteps[0])
    scheduler.add_noise(x, x, scheduler.timesteps[:1])  # training needs no steps


def test_refused_calls():
    x = torch.zeros(1, 2)
    with pytest.raises(TypeError, match="no configuration key"):
        diffusion.DDPMScheduler(beta_begin=0.1)
    with pytest.raises(TypeError, match="num_train_timesteps must be an int"):
        diffusion.DDPMScheduler(num_train_timesteps=1e3)
    with pytest.raises(TypeError, match="config must be a dict"):
        diffusion.DDPMScheduler.from_config(3)
    scheduler = ours("EulerDiscrete", {})
    with pytest.raises(IndexError, match="not in timesteps"):
        scheduler.step(x, 3, x)
    with pytest.raises(IndexError):
        scheduler.step(x, torch.tensor(3.0), x)
    with pytest.raises(ValueError, match="exactly one"):
        scheduler.set_timesteps(3, sigmas=[1.0, 0.0])
    with pytest.raises(ValueError, match="num_inference_steps must be in"):
        ours("DDIM", {}).set_timesteps(1001)
    with pytest.raises(ValueError, match="descending"):
        ours("DDPM", {}).set_timesteps(timesteps=[1, 2])
    scheduler = ours("FlowMatchEulerDiscrete", {})
    for t in scheduler.timesteps:
        scheduler.step(x, t, x)
    with pytest.raises(IndexError, match="steps are done"):
        scheduler.step(x, scheduler.timesteps[0], x)


def test_log_linear_sigmas_end_at_the_least_one():
    def sigmas(**config: object) -> torch.Tensor:
        scheduler = fastdl.diffusion.EulerDiscreteScheduler(interpolation_type="log_linear", **config)
        least = scheduler.all_sigmas[0].float()
        scheduler.set_timesteps(5)
        assert len(scheduler.timesteps) == 5
        return scheduler.sigmas / least

    assert sigmas()[-1] == pytest.approx(1)
    assert sigmas(use_karras_sigmas=True)[-2:].tolist() == pytest.approx([1, 0])


def test_starting_in_the_middle():
    scheduler = ours("EulerDiscrete", {})
    x = torch.ones(1, 4)
    expected = None
    for start in (
        lambda s: s.timesteps[4],
        lambda s: s.timesteps[3:][1],
        lambda s: s.timesteps[4].item(),
        lambda s: (s.set_begin_index(4), s.timesteps[0])[1],
    ):
        scheduler.set_timesteps(STEPS)
        found = scheduler.step(x * 0.1, start(scheduler), x).prev_sample
        assert scheduler.step_index == 5
        expected = found if expected is None else expected
        assert torch.equal(found, expected)


def test_per_token_timesteps():
    scheduler = ours("FlowMatchEulerDiscrete", {})
    x, m = torch.randn(2, 1, 3, 8)
    t = scheduler.timesteps[[0, 4, 11]][None]
    found = scheduler.step(m, None, x, per_token_timesteps=t).prev_sample
    for i, place in enumerate((0, 4, 11)):
        expected = x[:, i] + (scheduler.sigmas[place + 1] - scheduler.sigmas[place]) * m[:, i]
        torch.testing.assert_close(found[:, i], expected)
