"""The noise made in the kernels: its definition, its distribution, and bf16 without lost timesteps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import fastdl
from fastdl import _extension
from fastdl.ops.diffusion import Schedule, schedules
from fastdl.ops.normal import normals

needs_cpu = pytest.mark.skipif(not _extension.cpu.loaded, reason="CPU kernels are not loaded")
noise = torch.ops.fastdl.normal_noise.default
ULPS = 4


@needs_cpu
@pytest.mark.isa
@pytest.mark.parametrize("seed", [[0, 0], [-1, -1], [2**62 + 12345, 2**33 + 1]])
def test_is_the_definition(seed):
    seed = torch.tensor(seed)
    ours, expected = noise(torch.empty(100_003), seed), normals(100_003, seed)
    assert ((ours - expected).abs() <= ULPS * 2**-23 * expected.abs().clamp(min=0.01)).all()


@needs_cpu
def test_a_part_of_a_step_is_the_same_noise():
    seed, schedule = torch.tensor([5, 6]), Schedule.flow(torch.tensor([1.0]))
    for shape in ((3, 7, 5), (64, 64), (1, 70001)):
        found = fastdl.ops.add_noise(
            torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64), schedule, seed=seed
        )
        assert torch.equal(found, noise(torch.empty(shape), seed))
    image = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    in_memory = fastdl.ops.add_noise(image, 0, schedule, seed=seed).permute(0, 2, 3, 1)
    assert torch.equal(in_memory.flatten(), noise(torch.empty(120), seed))


@needs_cpu
def test_counters_carry_into_the_high_word():
    """Elements 2^34 away from each other do not share a counter: the block's high word counts."""
    from fastdl.ops.normal import box_muller
    from fastdl.ops.philox import philox

    low = torch.stack(box_muller(*philox((5, 0, 0, 0), torch.tensor(9))[:2]))
    high = torch.stack(box_muller(*philox((5, 1, 0, 0), torch.tensor(9))[:2]))
    assert not torch.equal(low, high)


def test_never_log_of_zero():
    from fastdl.ops.normal import box_muller

    ends = torch.tensor([0, 1, 2**31, 2**32 - 1])
    cosine, sine = box_muller(ends, ends)
    assert torch.isfinite(cosine).all()
    assert torch.isfinite(sine).all()
    assert cosine.abs().max() < 6.77


@needs_cpu
def test_distribution():
    n = 10_000_000
    x = noise(torch.empty(n), torch.tensor([2024, 7])).double()
    assert abs(x.mean()) < 5 / n**0.5
    assert abs(x.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((x**3).mean()) < 5 * (15 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 5 * (96 / n) ** 0.5
    for lag in (1, 2, 3, 4, 8, 32, 64, 4096):
        assert abs((x[:-lag] * x[lag:]).mean()) < 5 / n**0.5, lag
        assert abs((x[:-lag] ** 2 * x[lag:] ** 2).mean() - 1) < 5 * (8 / n) ** 0.5, lag
    # Kolmogorov and Smirnov: the largest distance to the normal distribution, p > 1e-4
    ordered = x.sort().values
    rank = torch.arange(1, n + 1, dtype=torch.float64) / n
    distance = (torch.special.ndtr(ordered) - rank).abs().max() * n**0.5
    assert distance < math.sqrt(-0.5 * math.log(1e-4 / 2))


@needs_cpu
def test_seeds_and_offsets_are_streams_of_their_own():
    n = 1 << 20
    one = noise(torch.empty(n), torch.tensor([1, 0])).double()
    for other in ([2, 0], [1, 1], [1, 2**32], [2**32 + 1, 0]):
        x = noise(torch.empty(n), torch.tensor(other)).double()
        assert abs((one * x).mean()) < 5 / n**0.5


def test_manual_seed_reproduces():
    schedule = Schedule.flow(torch.tensor([0.5]))
    x = torch.zeros(2, 8)
    torch.manual_seed(1)
    first, second = fastdl.ops.add_noise(x, 0, schedule), fastdl.ops.add_noise(x, 0, schedule)
    torch.manual_seed(1)
    assert torch.equal(fastdl.ops.add_noise(x, 0, schedule), first)
    assert not torch.equal(first, second)
    generator = torch.Generator().manual_seed(3)
    by_generator = fastdl.ops.add_noise(x, 0, schedule, generator=generator)
    assert torch.equal(fastdl.ops.add_noise(x, 0, schedule, generator=generator.manual_seed(3)), by_generator)


def noise_std_errors(formula: str, dtype: torch.dtype = torch.bfloat16) -> tuple[int, float, int]:
    """(timesteps without noise, largest relative error of the noise's std, timesteps above 1%), linear betas."""
    schedule = Schedule.from_betas(schedules.betas("linear", 1000))
    ones = torch.ones(1000, 8192, dtype=dtype)
    t = torch.arange(1000)
    if formula == "fastdl":
        # x_0 = 0 and a noise of 1: what arrives is sigma itself
        found = fastdl.ops.add_noise(torch.zeros_like(ones), t, schedule, noise=ones)[:, 0].double()
    else:
        alpha_bar = schedule.alpha_bar.float().to(dtype)
        found = ((1 - alpha_bar[t]) ** 0.5).double()
    error = (found / schedule.sigma - 1).abs()
    return int((found == 0).sum()), error.max().item(), int((error > 0.01).sum())


def test_bf16_keeps_the_noise_of_every_timestep():
    lost, worst, _ = noise_std_errors("fastdl")
    assert lost == 0
    assert worst < 0.005
    assert noise_std_errors("alphas_cumprod in bf16, as diffusers")[::2] == (10, 62)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_page_states_what_is_measured(dtype):
    page = (Path(__file__).parents[2] / "docs/diffusion.md").read_text()
    word = str(dtype).removeprefix("torch.")
    for formula, alpha_bar in (
        ("fastdl", "fp32, as here"),
        ("alphas_cumprod in its dtype", f"{word}, as diffusers' `add_noise`"),
    ):
        lost, worst, above = noise_std_errors(formula, dtype)
        assert f"| {word} | {alpha_bar} | {lost} | {worst:.2%} | {above} |" in page


@needs_cpu
def test_bf16_noise_over_an_image():
    """The std of real noise on real data, over all timesteps: the rounding of x_t does not eat it either."""
    schedule = Schedule.from_betas(schedules.betas("linear", 1000))
    x = torch.zeros(1000, 16384, dtype=torch.bfloat16)
    found = fastdl.ops.add_noise(x, torch.arange(1000), schedule, seed=torch.tensor([1, 2])).double()
    drawn = noise(torch.empty(x.shape), torch.tensor([1, 2])).double()
    error = (found.std(1) / (schedule.sigma * drawn.std(1)) - 1).abs()
    assert error.max() < 0.005
